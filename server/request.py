"""What is asked: the request as an immutable value, and the strict reading of its JSON."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import orjson

from server.errors import ProxyError

LARGE = 2**20  # bytes of a body; work on larger ones is a thread's, so that other chats go on meanwhile
MOST_MESSAGES = 100_000  # as the API itself
NESTING = frozenset({dict, list})
MAX_DEPTH = 100  # of brackets; Anthropic's schema needs about ten, tool schemas a few more
LONE_SURROGATE = re.compile(
    rb"(?<!\\)((?:\\\\)*)"  # an even number of backslashes before, so that the escape is one
    rb"(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


@dataclass(frozen=True)
class Change:
    """One thing the proxy changed in a request: the step's name and a sentence a player understands."""

    name: str
    detail: str


@dataclass(frozen=True)
class ChatRequest:
    """A Messages API request. Steps return changed copies; the original stays for a second attempt.

    `body` is the parsed JSON, unknown keys included. `version` and `betas` are the headers `anthropic-version` and
    `anthropic-beta`. `counting` is true for `/count_tokens`. `size` is that of the body as it came. `frozen` guards the
    top level only: steps build new lists.
    """

    body: Mapping[str, Any]
    persona: str = ""
    version: str = "2023-06-01"
    betas: tuple[str, ...] = ()
    counting: bool = False
    size: int = 0
    changes: tuple[Change, ...] = ()

    @cached_property
    def model(self) -> str:
        return str(self.body.get("model") or "")

    @property
    def streams(self) -> bool:
        return self.body.get("stream") is True

    @cached_property
    def shapes(self) -> frozenset[tuple[str, ...]]:
        """The shapes of the blocks in its messages, those inside tool results too: their type, then their keys.

        Read in one pass, so that a step sees without one of its own that there is nothing for it to do.
        """
        found = set()
        for message in self.body["messages"]:
            content = message.get("content")
            for block in content if isinstance(content, list) else ():
                found.add((block.get("type"), *block))
                inner = block.get("content") if block.get("type") == "tool_result" else None
                for part in inner if isinstance(inner, list) else ():
                    if isinstance(part, dict):
                        found.add((str(part.get("type")), *part))
        return frozenset(found)

    @property
    def length(self) -> int:
        """How many blocks its messages have; a bare text is one."""
        messages = self.body["messages"]
        return sum(len(content) if isinstance(content := message.get("content"), list) else 1 for message in messages)

    def has(self, *kinds: str) -> bool:
        """Whether a block of one of these types stands in its messages, inside tool results too."""
        return any(shape[0] in kinds for shape in self.shapes)

    @property
    def is_marked(self) -> bool:
        """Whether it carries `cache_control` anywhere."""
        system = self.body.get("system")
        things = [self.body, *(self.body.get("tools") or ()), *(system if isinstance(system, list) else ())]
        return any("cache_control" in thing for thing in things) or any("cache_control" in s[1:] for s in self.shapes)

    def but(self, name: str, detail: str, **body: Any) -> ChatRequest:
        """A copy with these body keys set, and the change noted under `name`."""
        return self.noted(name, detail, body={**self.body, **body})

    def without(self, name: str, detail: str, *keys: str) -> ChatRequest:
        """A copy without these body keys, and the change noted under `name`."""
        return self.noted(name, detail, body={k: v for k, v in self.body.items() if k not in keys})

    def noted(self, name: str, detail: str, **fields: Any) -> ChatRequest:
        """A copy with these fields set, and the change noted under `name`."""
        return replace(self, changes=(*self.changes, Change(name, detail)), **fields)

    @classmethod
    def bare(cls, version: str = "", betas: str = "", **fields: Any) -> ChatRequest:
        """A request with these header values, as sent, and nothing said yet."""
        listed = tuple(beta for part in betas.split(",") if (beta := part.strip()))
        return cls(**{"body": {}, **fields}, version=version or cls.version, betas=listed)

    @classmethod
    def parse(
        cls,
        raw: bytes,
        *,
        persona: str = "",
        version: str = "",
        betas: str = "",
        counting: bool = False,
        skip: Collection[str] = (),
    ) -> ChatRequest:
        """The request as the front end sent it, mended where it could not be read otherwise; `skip` names the mendings
        to leave out. Raises ProxyError 400 naming what is wrong with it."""
        body, mended = read_json(raw, mend="mend_text" not in skip)
        changes = [Change("mend_text", mended)] if mended else []
        try:
            require_messages_shape(body)
        except ProxyError:
            shaped = body if "mend_shape" in skip else with_known_shapes(body)
            mended = ", ".join(sorted(key for key in shaped if repr(shaped[key]) != repr(body.get(key))))
            if not mended:
                raise
            require_messages_shape(shaped)
            changes.append(Change("mend_shape", f"Wrote as the API spells it what came in another shape: {mended}."))
            body = shaped
        return cls.bare(
            version, betas, body=body, persona=persona, counting=counting, size=len(raw), changes=tuple(changes)
        )


def read_json(raw: bytes, *, mend: bool = True) -> tuple[dict[str, Any], str]:
    """The JSON object in `raw`, and what had to be mended in it ("" if nothing).

    Refused with a 400: anything but UTF-8 (a byte order mark is skipped), NaN and infinities, numbers beyond a double,
    more than MAX_DEPTH brackets, anything but an object at the top. Of duplicate keys the last one wins.
    """
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    mended = ""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raw, count = replace_lone_surrogates(raw) if mend else (raw, 0)
        if not count:
            raise bad_json(error) from None
        mended = f"Replaced {count} broken character{'s' if count > 1 else ''} (half of an emoji) that Claude refuses."
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as second:
            raise bad_json(second) from None
    if not isinstance(value, dict):
        raise ProxyError(400, "The request body is not a JSON object. Send a Messages API body: {…}.")
    if deeper_than(value, MAX_DEPTH):
        raise ProxyError(400, f"The request body is nested more than {MAX_DEPTH} brackets deep. Send a flatter one.")
    return value, mended


def bad_json(error: orjson.JSONDecodeError) -> ProxyError:
    return ProxyError(
        400,
        f"The request body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno}). "
        "The front end or an extension sent something broken; try again or restart it.",
    )


def replace_lone_surrogates(raw: bytes) -> tuple[bytes, int]:
    """`raw` with each unpaired surrogate escape as U+FFFD, and how many there were."""
    count = 0

    def mend(match: re.Match[bytes]) -> bytes:
        nonlocal count
        if match[2]:
            return match[0]
        count += 1
        return match[1] + b"\\ufffd"

    return LONE_SURROGATE.sub(mend, raw), count


def deeper_than(value: Any, limit: int) -> bool:
    """Whether the lists and objects of some JSON stand more than `limit` deep; walked level by level, so that nothing
    overflows."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) in NESTING
        ]
        if not level:
            return False
    return True


def with_known_shapes(body: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which bare texts, bare blocks and numbers written as text stand as the API spells them."""
    new = dict(body)
    if isinstance(messages := body.get("messages"), list):
        new["messages"] = [
            {**message, "content": as_content(message.get("content"))} if isinstance(message, dict) else message
            for message in messages
        ]
    if body.get("system") is not None:
        new["system"] = as_content(body["system"])
    if isinstance(stop := body.get("stop_sequences"), str):
        new["stop_sequences"] = [stop]
    if isinstance(choice := body.get("tool_choice"), str):
        new["tool_choice"] = {"type": choice}
    longest = body.get("max_tokens")
    if (isinstance(longest, str) and longest.isascii() and longest.isdigit() and len(longest) < 10) or (
        isinstance(longest, float) and longest.is_integer()
    ):
        new["max_tokens"] = int(longest)
    return new


def as_content(given: Any) -> Any:
    """Text or a list of blocks, where it can be understood as such: a text or a block alone, texts among blocks, a
    block without its type."""
    if not isinstance(given, list | dict):
        return given
    parts = given if isinstance(given, list) else [given]
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "text", **part}
        if isinstance(part, dict) and isinstance(part.get("text"), str)
        else part
        for part in parts
    ]


def require_messages_shape(body: dict[str, Any]) -> None:
    """Refuse what no step could read, naming the field; everything finer is left to the upstream's own words."""
    model, messages = body.get("model") or "", body.get("messages")
    if not isinstance(model, str) or len(model) > 256 or not model.isprintable():
        raise ProxyError(400, "model: must be the name of a model, as text. Choose a model in your front end.")
    if not isinstance(messages, list) or not messages:
        raise ProxyError(400, "messages: at least one message is required. Write something and send it again.")
    if len(messages) > MOST_MESSAGES:
        raise ProxyError(400, f"messages: {len(messages):,} are too many, 100,000 the most. Lower the context size.")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ProxyError(400, f"messages.{i}: must be an object with role and content.")
        if message.get("role") not in ("user", "assistant", "system"):
            raise ProxyError(400, f"messages.{i}.role: must be user, assistant or system.")
        require_content(message.get("content"), "messages", i, "content")
    system = body.get("system")
    if system is not None:
        require_content(system, "system")
    if not isinstance(body.get("stream"), bool | None):
        raise ProxyError(400, "stream: must be true or false.")
    max_tokens = body.get("max_tokens")
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int | None) or (max_tokens or 0) < 0:
        raise ProxyError(400, "max_tokens: must be a whole number. Set the response length in your front end.")
    for key in ("thinking", "output_config", "cache_control", "tool_choice", "metadata"):
        if not isinstance(body.get(key), dict | None):
            raise ProxyError(400, f"{key}: must be an object.")
    for key in ("tools", "stop_sequences"):
        if not isinstance(body.get(key), list | None):
            raise ProxyError(400, f"{key}: must be a list.")


def require_content(content: Any, *path: str | int) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise ProxyError(400, f"{dotted(*path)}: must be text or a list of content blocks.")
    for i, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise ProxyError(400, f"{dotted(*path, i)}: must be a content block with a type.")
        if block["type"] == "text" and not isinstance(block.get("text"), str):
            raise ProxyError(400, f"{dotted(*path, i)}.text: must be text.")


def dotted(*path: str | int) -> str:
    """Where in a body, as Anthropic's errors say it: messages.0.content."""
    return ".".join(map(str, path))
