"""A request as the prompt cache sees it: a row of blocks, each ending a prefix.

Anthropic's cache knows prefixes: tools, then system, then messages, block after block (Anthropic docs, 2026-10). Two
requests share a prefix when all blocks up to there are equal, byte for byte, and so are the settings that count there.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import orjson

from server.content import THOUGHTS
from server.models import Model

DIGEST = 12  # bytes; of a keyed digest, so that a copied database cannot be searched for known lines
MARKABLE = {"text", "image", "document", "tool_use", "tool_result", "search_result", "server_tool_use"}
IMAGE_BYTES = 6_000  # what an image counts like, in bytes of text: about 1,500 tokens

KNOWN = 4_096  # blocks whose digests are remembered, some 300 bytes each: a few long chats

PART = itemgetter(0)  # of a place
CacheKey = tuple[bytes, bytes]  # what the cache may hold: the seal of a part and the digest of a prefix that ends in it


class Place(NamedTuple):
    """Where in the body a block stands."""

    part: str  # tools, system or messages
    message: int  # -1 in the head
    block: int
    tool: bool = False  # web search, a tool, stands in the system part


@dataclass(frozen=True)
class Prompt:
    """What the planner knows of a request. The digests are of content alone; the seals are of everything else that
    separates caches: who pays, the model, and the settings that count in each part."""

    payer: bytes  # digest of who shares a cache: upstream, credential, workspace
    model: str
    settings: Mapping[str, str]  # those that count in messages, in words for receipts
    places: tuple[Place, ...]
    roles: tuple[str, ...]  # "" in the head
    markable: tuple[bool, ...]
    own: tuple[bytes, ...]  # digest of each block alone
    chain: tuple[bytes, ...]  # digest of everything up to the end of each block
    size: tuple[int, ...]  # bytes of text up to the end of each block
    seals: Mapping[str, bytes]  # of each part
    streams: bool

    def __len__(self) -> int:
        return len(self.chain)

    @cached_property
    def head(self) -> int:
        """How many blocks stand before the messages."""
        return sum(place.part != "messages" for place in self.places)

    @cached_property
    def lead(self) -> int:
        """How many blocks stand before the second message: prompts that never move, on front ends without `system`."""
        return self.head + sum(place.part == "messages" and place.message == 0 for place in self.places)

    @property
    def front(self) -> bytes:
        """The digest of the prompts in front of the story."""
        return self.chain[(self.head or self.lead) - 1] if self.chain else b""

    @cached_property
    def weights(self) -> dict[bytes, int]:
        """The bytes of each block, by its own digest."""
        return {own: self.size[i] - (self.size[i - 1] if i else 0) for i, own in enumerate(self.own)}

    @cached_property
    def story(self) -> dict[bytes, int]:
        """The bytes of each block behind the prompts in front."""
        return {own: self.weights[own] for own in self.own[self.head or self.lead :]}

    @cached_property
    def weight(self) -> int:
        """The bytes of all blocks, each counted once."""
        return sum(self.weights.values())

    def key(self, i: int) -> CacheKey:
        """The cache entry a mark on block `i` reads or writes."""
        return self.seals[self.places[i].part], self.chain[i]

    def keys(self) -> Iterator[CacheKey]:
        """The cache entry of each block."""
        return zip(map(self.seals.__getitem__, map(PART, self.places)), self.chain, strict=True)

    def shared(self, other: Prompt) -> int:
        """How many blocks, from the start, are the same in both; settings aside."""
        one, two = self.chain, other.chain
        most = min(len(one), len(two))
        if most and one[most - 1] == two[most - 1]:
            return most  # as in a chat that only grew
        return bisect_left(range(most), True, key=lambda i: one[i] != two[i])

    def likeness(self, other: Prompt) -> float:
        """The share of this prompt, by bytes, that stands anywhere in the other one."""
        weights = self.weights
        return sum(map(weights.__getitem__, weights.keys() & other.weights.keys())) / max(self.weight, 1)

    def resembles(self, other: Prompt, share: float) -> bool:
        """Whether so much of it, or of its story, stands anywhere in the other one: the prompts in front may be one
        block that changes with each line. Mostly the common beginning says so already."""
        if self.chain and self.chain[-1:] == other.chain[-1:]:
            return self.weight > 0
        if agreed := self.shared(other):
            repeated = self.size[-1] - self.weight
            if self.size[agreed - 1] - repeated >= share * self.weight:
                return True
        both = self.weights.keys() & other.weights.keys()
        parts = (self.weights, self.story) if both else ()
        return any(sum(part.get(own, 0) for own in both) >= share * sum(part.values()) for part in parts if part)


UNREAD = Prompt(b"", "", {}, (), (), (), (), (), (), {}, False)  # stands for a prompt that nobody needs to know


class Digests:
    """The digest and the weight of blocks, read once: a chat comes back with every turn, and grows at its end.

    Which block it is, Python's own keyed hash says: 64 bits, and five times as fast.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._known: dict[tuple[str, str, str, int, int], tuple[bytes, int]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, part: str, role: str, kind: str, block: Mapping[str, Any]) -> tuple[bytes, int]:
        if kind == "text" and len(block) == 2 and isinstance(said := block.get("text"), str):
            key = (part, role, "", len(said), hash(said))
        elif picture := picture_in(block):
            media_type, data = picture
            key = (part, role, media_type, len(data), hash(data))
        else:
            return self._read(part, role, kind, block)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            known = self._known[key] = self._read(part, role, kind, block)
        return known

    def _read(self, part: str, role: str, kind: str, block: Mapping[str, Any]) -> tuple[bytes, int]:
        raw, weight = content_of(block)
        digest = hashlib.blake2b(f"{part}\0{role}\0{kind}\0".encode(), digest_size=DIGEST, key=self.secret)
        digest.update(raw)  # a large one in its place, and beside whatever else the process does
        return digest.digest(), weight


def read_prompt(body: Mapping[str, Any], model: Model, scope: str, digests: Digests) -> Prompt:
    """The body of a request that carries no marks. `scope` is who shares a cache: upstream, credential, workspace."""
    drop = old_thinking(body["messages"]) if model.strips_old_thinking else ()
    places, roles, markable, own, size = [], [], [], [], []
    total = 0
    special = []  # in messages: more than a text
    for place, role, block in blocks(body):
        part, kind = place.part, block.get("type", "custom")
        if part == "messages" and (kind != "text" or len(block) > 2):
            special.append(block)
        if kind in THOUGHTS and place.message in drop:
            continue
        one, weight = digests.of(part, role, kind, block)
        total += weight
        places.append(place)
        roles.append(role)
        markable.append(can_carry_mark(part, role, kind, block))
        own.append(one)
        size.append(total)
    payer = keyed(digests.secret, scope.encode())
    settings = settings_of(body, model, special)
    return Prompt(
        payer=payer,
        model=model.id,
        settings=settings["messages"],
        places=tuple(places),
        roles=tuple(roles),
        markable=tuple(markable),
        own=tuple(own),
        chain=tuple(chained(own)),
        size=tuple(size),
        seals=seals_of(settings, payer, model, digests.secret),
        streams=body.get("stream") is True,
    )


def picture_in(block: Mapping[str, Any]) -> tuple[str, str] | None:
    """Media type and data of a block that is a picture and nothing else, written in the usual order."""
    source = block.get("source")
    if [*block] != ["type", "source"] or not isinstance(source, dict) or [*source] != ["type", "media_type", "data"]:
        return None
    kind, media_type, data = source.values()
    return (media_type, data) if block["type"] == "image" and kind == "base64" and isinstance(data, str) else None


def keyed(secret: bytes, said: bytes) -> bytes:
    """A short digest that only the holder of the secret can make."""
    return hashlib.blake2b(said, digest_size=DIGEST, key=secret).digest()


def chained(own: Iterable[bytes]) -> Iterator[bytes]:
    """For each block the digest of everything up to its end."""
    digest = b""
    for one in own:
        digest = hashlib.blake2b(digest + one, digest_size=DIGEST).digest()
        yield digest


def blocks(body: Mapping[str, Any]) -> Iterator[tuple[Place, str, Mapping[str, Any]]]:
    """Every block in the order of the cache. Web search counts behind the other tools: it is a setting of `system`."""
    tools = [(i, tool) for i, tool in enumerate(body.get("tools") or ()) if isinstance(tool, dict)]
    for i, tool in sorted(tools, key=lambda numbered: is_web_search(numbered[1])):
        yield placed("system" if is_web_search(tool) else "tools", -1, i, tool=True), "", tool
    for j, block in parts(body.get("system")):
        yield placed("system", -1, j), "", block
    for i, message in enumerate(body["messages"]):
        role, content = message["role"], message.get("content")
        for j, block in enumerate(content) if isinstance(content, list) else parts(content):
            yield placed("messages", i, j), role, block


@lru_cache(maxsize=KNOWN)
def placed(part: str, message: int, block: int, tool: bool = False) -> Place:
    """One object for all prompts: dozens are remembered, and the collector would visit each place of each."""
    return Place(part, message, block, tool)


def parts(content: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if isinstance(content, str):
        if content:
            yield 0, {"type": "text", "text": content}
    else:
        yield from enumerate(content or ())


def is_web_search(tool: Mapping[str, Any]) -> bool:
    return str(tool.get("type", "")).startswith("web_search_")


def content_of(block: Mapping[str, Any]) -> tuple[bytes, int]:
    """What of a block the cache compares, and what it counts like in bytes of text."""
    if block.get("type") == "text" and len(block) == 2 and isinstance(text := block.get("text"), str):
        raw = text.encode("utf-8", "surrogatepass")
        return raw, len(raw)
    raw = orjson.dumps(block)
    return raw, IMAGE_BYTES if block.get("type") == "image" else len(raw)


def text_size(body: Mapping[str, Any]) -> int:
    """What a prompt counts like in bytes of text."""
    return sum(content_of(block)[1] for _, _, block in blocks(body))


def can_carry_mark(part: str, role: str, kind: str, block: Mapping[str, Any]) -> bool:
    """Whether a mark may stand on a block: only where the API's documentation says so."""
    if role == "system":
        return False
    if kind == "text":
        text = block.get("text")
        return isinstance(text, str) and bool(text) and not text.isspace()
    if part == "messages":
        return kind in MARKABLE or kind.endswith("_tool_result")
    return not is_web_search(block) and not block.get("defer_loading")


def old_thinking(messages: list[dict[str, Any]]) -> range:
    """The messages whose thinking older models drop: those before the last ordinary user turn."""
    ordinary = (
        i
        for i in range(len(messages) - 1, -1, -1)
        if messages[i]["role"] == "user"
        and any(block.get("type") != "tool_result" for _, block in parts(messages[i].get("content")))
    )
    return range(next(ordinary, 0))


def settings_of(
    body: Mapping[str, Any], model: Model, special: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, str]]:
    """The settings that count in each part besides its content, of a body with these blocks, and texts, in its
    messages. A default that is named counts as one left out."""
    inner = [part for block in special if isinstance(block.get("content"), list) for part in block["content"]]
    cites = any(cites_sources(block) for block in special)
    images = any(isinstance(block, dict) and block.get("type") == "image" for block in (*special, *inner))
    thinking = body.get("thinking") or {"type": "adaptive" if model.thinks_by_default else "disabled"}
    effort = (body.get("output_config") or {}).get("effort") or model.default_effort
    choice = body.get("tool_choice") or {"type": "auto"}
    forced = f"{choice.get('name', '')} {choice.get('disable_parallel_tool_use') or ''}".strip()
    return {
        "tools": {},
        "system": {"speed": str(body.get("speed") or "standard"), "citations": "on" if cites else "off"},
        "messages": {
            "tool_choice": str(choice.get("type")),
            "forced tool": hashlib.blake2b(forced.encode(), digest_size=4).hexdigest() if forced else "none",
            "thinking": " ".join(str(thinking[key]) for key in ("type", "budget_tokens") if key in thinking),
            "effort": str(effort or "none"),
            "images": "some" if images else "none",
        },
    }


def cites_sources(block: Mapping[str, Any]) -> bool:
    """Whether a document or search result asks for citations; in a text block `citations` are those of a reply."""
    citations = block.get("citations")
    return block.get("type") != "text" and isinstance(citations, dict) and bool(citations.get("enabled"))


def seals_of(settings: Mapping[str, Mapping[str, str]], payer: bytes, model: Model, secret: bytes) -> dict[str, bytes]:
    """What besides content separates the caches of each part: who pays, the model, and the settings up to there."""
    seals, said = {}, [payer.hex(), model.id]
    for part, values in settings.items():
        said += values.values()
        seals[part] = keyed(secret, orjson.dumps(said))
    return seals
