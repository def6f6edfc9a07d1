"""What the words of a 400 teach: a reader for each known kind of refusal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from server.content import (
    Block,
    as_blocks,
    image_digest,
    images_of,
    is_thought,
    loop_start,
    thought_digest,
    user_message,
)
from server.lesson import Lesson
from server.models import EFFORTS, SAMPLERS, THINKING_TYPES
from server.request import ChatRequest

# Without these there is no request, or no meaning in it: they are mended by their own steps or not at all.
NEVER_LEFT_OUT = {"model", "messages", "max_tokens", "system", "stream", "thinking", "tools"}
NEEDED_INSIDE = {
    *("type", "role", "content", "text", "source", "data", "media_type", "url", "file_id", "id", "name", "input"),
    *("tool_use_id", "input_schema", "description", "thinking", "signature", "budget_tokens"),
}


def lesson_of(message: str, sent: ChatRequest) -> Lesson | None:
    """What the words of a 400 teach about the request as it was sent; None if they name no known kind of refusal.

    The wording is not stable at the upstream (tests/test_refusals.py holds what was seen until 2026-11), so words
    are looked for, not sentences; a refusal of any other field that can be left out is understood by its name.
    """
    words = " ".join(message.lower().split())
    if any(phrase in words for phrase in NOTHING_TO_LEARN):
        return None
    readers = READERS
    if re.match(r"messages\.\d+\.[\w.]+:", message):  # a place in the chat is named: no setting is meant
        readers = tuple(reader for reader in READERS if reader not in ABOUT_SETTINGS)
    return next((found for reader in readers if (found := reader(words, message, sent)) is not None), None)


# What is wrong with a value says nothing about the field: such a lesson holds for the request in hand alone.
ABOUT_THE_VALUE = re.compile(
    r"at (?:most|least)|should (?:have|be|match)|range|characters|greater|less than|too (?:long|short|large|small)"
    r"|must be (?:a|an|one|between|in)\b|pattern"
)

NOTHING_TO_LEARN = (
    *("prompt is too long", "usage limits", "credit balance", "only authorized for", "third-party apps", "billing"),
    *("organization has been disabled", "content filtering", "subscription access", "oauth authentication"),
)
REFUSES = re.compile(
    r"not (?:be )?(?:\w+ )?(?:supported|permitted|allowed|available|valid|accepted|recognized|combined|used|set|enabled"
    r"|compatible)"
    r"|unsupported|unexpected|unknown|unrecognized|deprecated|extra input|no longer|cannot|can't|may only|may not"
    r"|invalid|must|should|removed|does not (?:support|accept|match|take|allow)|doesn't (?:support|accept)|range|refuse"
    r"|unavailable|instead of|at most|at least|too many|too long|maximum|only (?:support|accept|take|allow)"
)

Reader = Callable[[str, str, ChatRequest], Lesson | None]


def room_for_reply(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    """`input length and max_tokens exceed context limit: 196000 + 8192 > 200000`: a shorter reply fits."""
    found = re.search(r"context.*?(\d+) \+ (\d+) > (\d+)", words.replace(",", ""))
    if not found or (room := int(found[3]) - int(found[1])) < 256:
        return None
    return Lesson(
        "room", str(room), "so long a reply behind so long a chat", f"cut max_tokens to {room:,}", lasting=False
    )


def longest_reply(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    asked = sent.body.get("max_tokens")
    if (
        ("max_tokens" not in words and "output tokens" not in words)
        or "budget_tokens" in words
        or not isinstance(asked, int)
    ):
        return None
    compared = re.findall(r"\d+ > (\d+)", words)
    numbers = [int(n) for n in compared or re.findall(r"\d+", words.replace(",", "")) if 0 < int(n) < asked]
    if not numbers or not re.search(r">|maximum|at most|exceed|less than|up to|limit", words):
        return None
    most = max(numbers)
    return Lesson("max_tokens", str(most), f"a max_tokens of {asked:,}", f"cut it to {most:,}")


def pictures(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    """A picture that cannot be read, or is too large: by its place if the words name one, else all of them."""
    if "image" not in words or "input tag" in words or not (found := images_named(message, sent)):
        return None
    if most := re.search(r"too many images.*?> ?(\d+)|at most (\d+) images|maximum of (\d+) images", words):
        number = next(group for group in most.groups() if group)
        return Lesson("most_images", number, "so many pictures", f"left the oldest out, but for {number}")
    if re.search(r"(?:does not|doesn't) (?:support|accept|take) image|images? (?:inputs? )?(?:is|are) not", words):
        return Lesson("most_images", "0", "pictures", "put short notes in their place")
    pixels = re.search(r"(\d{3,5}) ?(?:pixels|px)", words)
    if pixels and not sent_with_limit(sent, int(pixels[1])):
        return Lesson("image_pixels", pixels[1], "so large a picture", f"shrank it to {pixels[1]} pixels")
    if not re.search(
        r"process|media type|exceed|dimension|base64|invalid|support|size|decode|format|corrupt|read", words
    ):
        return None
    return Lesson(f"image {' '.join(found)[:200]}", " ".join(found), "a picture", "put a short note in its place")


def images_named(message: str, sent: ChatRequest) -> list[str]:
    """The digests of the pictures at the place the words name; of all where they name none."""
    named = block_named(message, sent)
    chosen = list(images_of([user_message(named)])) if named else []
    return list(dict.fromkeys(map(image_digest, chosen or images_of(sent.body["messages"]))))


def block_named(message: str, sent: ChatRequest) -> Block | None:
    """The block at the place the words name."""
    place = re.search(r"messages\.(\d+)\.content\.(\d+)((?:\.\w+)*)", message)
    if not place:
        return None
    try:
        named = sent.body["messages"][int(place[1])]["content"][int(place[2])]
        if inner := re.search(r"\bcontent\.(\d+)", place[3]):
            named = named["content"][int(inner[1])]
    except (IndexError, KeyError, TypeError):
        return None
    return named if isinstance(named, dict) else None


def sent_with_limit(sent: ChatRequest, pixels: int) -> bool:
    """Whether the pictures were already shrunk to that many pixels, to no avail."""
    return any(change.name == "fit_images" and f"{pixels:,} pixels" in change.detail for change in sent.changes)


def prefill(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    if "prefill" in words or "must end with a user" in words or "last message must be" in words:
        lasting = not re.search(r"thinking|format|structured", words)  # only together with those
        return Lesson("prefill", "", "the opening words of its reply", "asked for them in words instead", lasting)
    return None


def thinking_type(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    """The type in the request, when the words refuse it; one they recommend is taken over if nothing else is left."""
    asked = (sent.body.get("thinking") or {}).get("type")
    if (
        not isinstance(asked, str)
        or "thinking" not in words
        or "tool_choice" in words
        or "budget" in words.split(". ")[0]
    ):
        return None
    first = re.split(r"[.;] ", words)[0]
    named = re.search(r"thinking\.(?:type\.)?(\w+)", first)
    speaks_of_it = asked in first or (named and named[1] in (asked, "type")) or re.search(r"\bthinking is not\b", first)
    if not speaks_of_it or not REFUSES.search(first):
        return None
    if any(name in first for name in (*SAMPLERS, "effort", "display", "block_binding", "signature", "expected")):
        return None
    others = re.findall(r"thinking\.type\.(\w+)", words) + re.findall(r"[\"'`](\w+)[\"'`]", words)
    instead = next((name for name in others if name != asked and name in THINKING_TYPES), "")
    return Lesson(f"thinking {asked}", instead, f"thinking “{asked}”", "asked for the nearest it takes")


def thinking_too_much(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    """Thinking that cannot be together with what else stands in this very request."""
    if "expected" in words and "thinking" in words and "found" in words:
        return Lesson("no_thinking", "", "to think in the middle of tool calls", "switched thinking off", lasting=False)
    if "thinking" in words and "tool_choice" in words:
        return Lesson("no_forced_thinking", "", "a forced tool while it thinks", "switched thinking off for that")
    return None


def effort(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    asked = (sent.body.get("output_config") or {}).get("effort")
    if "effort" not in words or "thinking.type." in words or not REFUSES.search(words):
        return None
    named = next((level for level in EFFORTS if re.search(rf"\b{level}\b", words)), "")
    if "thinking" in words and (level := asked or named) and re.search(r"disabled|\boff\b|between_tools", words):
        return Lesson(f"off_effort {level}", level, f"effort {level} without thinking", "asked for another one")
    if not isinstance(asked, str):
        return None
    listed = re.search(r"(?:supported|allowed|valid|available|one of|should be|must be)(.*)", words.split(asked, 1)[-1])
    levels = [level for level in EFFORTS if listed and re.search(rf"\b{level}\b", listed[1])]
    if levels and asked not in levels:
        return Lesson("efforts", " ".join(levels), f"effort {asked}", "asked for the nearest it takes")
    if asked in words:
        return Lesson(f"effort {asked}", asked, f"effort {asked}", "asked for the nearest it takes")
    return Lesson("efforts", "", "the effort setting", "left it out")


def samplers(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    """“deprecated” and “extra inputs” speak of all three at once; other words of those they name."""
    sent_ones = [name for name in SAMPLERS if name in sent.body]
    named = [name for name in SAMPLERS if re.search(rf"\b{name}\b", words)]
    if not sent_ones or not named or not REFUSES.search(words):
        return None
    for_good = re.search(r"deprecated|extra input|no longer|removed", words)
    named = sent_ones if for_good else [name for name in named if name in sent_ones]
    if not named:
        return None
    if "thinking" in words:
        return Lesson("thinking_samplers", "", " and ".join(named) + " while it thinks", "left it out of such requests")
    if for_good:
        return Lesson("sampling", "none", " and ".join(named), "left all samplers out")
    if "temperature" in named and "top_p" in named:
        return Lesson("sampling", "one", "temperature and top_p together", "kept one of the two")
    listed = " and ".join(named)
    did = f"left {'it' if len(named) == 1 else 'them'} out"
    return Lesson(f"field {listed}", " ".join(named), listed, did, lasting=not ABOUT_THE_VALUE.search(words))


def forced_tool(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    choice = (sent.body.get("tool_choice") or {}).get("type")
    if choice not in ("any", "tool") or "tool_choice" not in words or "thinking" in words or not REFUSES.search(words):
        return None
    return Lesson("forced_tools", "", "a forced tool", "asked for it in words instead")


def system_role(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    if not any(m.get("role") == "system" for m in sent.body["messages"]):
        return None
    if re.search(r"role[^.]{0,20}system|'system'|\"system\"|system message|\.role\b", words):
        lasting = not re.search(r"precede|follow|end the array", words)  # else only where they stand
        did = "sent them as marked user text"
        return Lesson("system_messages", "", "system messages inside the chat", did, lasting)
    return None


def order_of_roles(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    if "first message" in words and "user" in words:
        return Lesson("user_first", "", "a chat that begins with the assistant", "put a short user message in front")
    if re.search(r"\balternat|multiple .*roles? in a row|consecutive", words):
        return Lesson("alternate", "", "two messages of one side in a row", "joined them")
    return None


def betas(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    named = [beta for beta in sent.betas if beta.lower() in words]
    if not named and "long context beta" in words:
        named = [beta for beta in sent.betas if beta.startswith("context-1m")]
    if not named and "anthropic-beta" in words:
        named = list(sent.betas)
    if not named or any(beta.startswith("oauth-") for beta in named):
        return None
    return Lesson(f"beta {' '.join(named)}", " ".join(named), f"the beta {', '.join(named)}", "left it out")


def version(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    if "anthropic-version" in words and sent.version != ChatRequest.version:
        return Lesson("version", ChatRequest.version, f"version {sent.version}", f"spoke version {ChatRequest.version}")
    return None


def thoughts(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    """Thinking blocks sent back that no longer fit: first those of earlier turns go, then all. Which they are is a
    chat's own matter: those of earlier turns go from chats that hold the block named, or else the first."""
    if "thinking" not in words or not re.search(r"signature|block", words):
        return None
    if "block_binding" in (sent.body.get("thinking") or {}) and "extra input" in words:
        return None
    messages = sent.body["messages"]
    places = [i for i, m in enumerate(messages) if any(map(is_thought, as_blocks(m.get("content"))))]
    if not places:
        return None
    if places[0] < loop_start(messages):
        named = block_named(message, sent)
        first = next(block for block in as_blocks(messages[places[0]]["content"]) if is_thought(block))
        digest = thought_digest(named if named and is_thought(named) else first)
        return Lesson(f"thoughts {digest}", digest, "the earlier thinking in this chat", "left it out")
    return Lesson("all_thoughts", "", "thinking sent back", "left it out", lasting=False)


def marks(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    if "cache_control" not in words:
        return None
    if most := re.search(r"maximum of (\d) block", words):
        return Lesson("marks", most[1], "so many cache marks", f"kept {most[1]}")
    lasting = not re.search(r"empty|thinking|come after|different", words)  # where they stand, not that they do
    if "ttl" in words and "ttl" in str(list(all_marks(sent.body))):
        return Lesson("ttl", "", "the lifetime of cache marks", "left it out", lasting)
    return Lesson("marks", "0", "cache marks", "left them out", lasting)


def all_marks(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if "cache_control" in value:
            yield value["cache_control"]
        for child in value.values():
            yield from all_marks(child)
    elif isinstance(value, list):
        for child in value:
            yield from all_marks(child)


def tool_kind(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    """A kind of tool that this model or account does not have, as an old web search."""
    kinds = {
        str(tool["type"]): None for tool in sent.body.get("tools") or () if isinstance(tool, dict) and tool.get("type")
    }
    named = [kind for kind in kinds if kind != "custom" and re.search(rf"\b{re.escape(kind.lower())}\b", words)]
    if not named and "web search" in words:
        named = [kind for kind in kinds if kind.startswith("web_search")]
    if not named or not REFUSES.search(words):
        return None
    of_a_field = re.match(r"tools\.\d+\.\w+\.\w", message)
    if of_a_field and (field := any_field(words, message, sent)):
        return field
    listed = ", ".join(named)
    return Lesson(f"tool {' '.join(named)}", " ".join(named), f"the tool {listed}", "left it out", not of_a_field)


def block_kind(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    """A kind of content block that is not known there."""
    found = re.search(r"input tag '([\w-]+)'", words) if "messages." in words else None
    if not found or found[1] in ("text", "user", "assistant"):
        return None
    return Lesson(f"block {found[1]}", found[1], f"content of the kind {found[1]}", "put a short note in its place")


def any_field(words: str, message: str, sent: ChatRequest) -> Lesson | None:
    """Any other field the words name by its path (`tools.0.custom.strict: …`) or as a word of its own."""
    if not REFUSES.search(words):
        return None
    spoken = [phrase for phrase in SPOKEN if phrase in words]
    paths = re.findall(r"[a-z_]\w*(?:\.\w+)*", message) + [SPOKEN[phrase] for phrase in spoken]
    paths += [
        str(name)
        for name in sent.body
        if "_" in str(name) and re.search(re.escape(str(name)).replace("_", "[ -]"), words)
    ]
    if re.match(r"\w+\.[\w.]+:", message):
        paths = paths[:1]  # the place is named: nothing else is meant
    pattern = next((found for path in paths if (found := field_pattern(path, sent.body))), "")
    if not pattern:
        return None
    lasting = not ABOUT_THE_VALUE.search(words)
    return Lesson(f"field {pattern}", pattern, pattern.replace(".*", ""), "left it out", lasting)


SPOKEN = {"fast mode": "speed", "structured output": "output_config.format", "automatic caching": "cache_control"}


def field_pattern(path: str, body: Mapping[str, Any]) -> str:
    """The field at `path` with `*` for numbers; "" if the body has none there, or one that is needed.

    Anthropic's paths name the kind of a block between its number and its field: `messages.0.content.1.text.citations`.
    """
    here: Any = body
    pattern: list[str] = []
    parts = path.split(".")
    for i, part in enumerate(parts):
        if isinstance(here, list):
            if not part.isdigit() or int(part) >= len(here):
                return ""
            here = here[int(part)]
            pattern.append("*")
        elif not isinstance(here, dict):
            return ""
        elif i + 1 < len(parts) and part in (here.get("type"), "custom"):
            continue
        elif part in here:
            here = here[part]
            pattern.append(part)
        else:
            return ""
    if not pattern or pattern[-1] == "*":
        return ""
    needed = NEVER_LEFT_OUT if len(pattern) == 1 else NEEDED_INSIDE
    return "" if pattern[-1] in needed else ".".join(pattern)


READERS: tuple[Reader, ...] = (
    version,
    betas,
    room_for_reply,
    longest_reply,
    marks,
    tool_kind,
    block_kind,
    pictures,
    prefill,
    thinking_too_much,
    effort,
    samplers,
    thinking_type,
    forced_tool,
    system_role,
    order_of_roles,
    thoughts,
    any_field,
)

ABOUT_SETTINGS = (longest_reply, effort, samplers, thinking_type, forced_tool)
