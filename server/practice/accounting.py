"""What a request reads from the prompt cache, writes to it and costs, by the rules Anthropic documents.

Values in, values out: the store of entries, the clock and the moment a response begins are the caller's. Where the
documentation is silent (marked ¹ below), the choice is the one its description of the bill implies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import orjson

from server.models import Model
from server.practice.blocks import THOUGHTS, Block, as_bytes, images_in, row, tokens

LIFETIMES = {"5m": 300, "1h": 3_600}  # seconds, from the start of the request that wrote or read
LOOKBACK = 20  # positions at which a mark finds an entry, the marked block being the first


@dataclass(frozen=True)
class Prompt:
    """A request as the cache knows it: each block's path, and the digest and tokens of all up to its end."""

    paths: tuple[str, ...]  # `system.0`, `messages.3.content.1`
    chain: tuple[bytes, ...]
    upto: tuple[int, ...]
    marks: Mapping[int, str]  # position of a marked block → "5m" or "1h"

    @property
    def tokens(self) -> int:
        return self.upto[-1] if self.upto else 0


class Entry(NamedTuple):
    """A cached prefix."""

    lifetime: str
    alive_until: float
    readable_from: float


class Bill(NamedTuple):
    """The tokens of a prompt, by what Anthropic charges for them."""

    read: int
    write_1h: int
    write_5m: int
    plain: int


def read_prompt(body: Mapping[str, Any], model: Model, scope: bytes = b"") -> Prompt:
    """A well-formed body as the cache sees it. `scope` is who shares the cache: an organisation's workspace.

    Settings that a part of the prompt is made with enter its digests: a change of `speed` or citations loses system and
    messages; of `tool_choice`, thinking, effort, or whether there are images, the messages alone. Web search belongs to
    the settings too: its definition counts behind the other tools, so that switching it keeps them.
    """
    blocks = row(body)
    if model.strips_old_thinking:
        blocks = without_old_thinking(blocks)
    sections = (
        (None, [block for block in blocks if block.place == "tools" and not web_search(block)]),
        (system_settings(body, blocks), [block for block in blocks if block.place == "system" or web_search(block)]),
        (messages_settings(body, blocks, model), [block for block in blocks if block.place == "messages"]),
    )
    digest, total = scope + model.id.encode(), 0
    chain, upto = [], []
    for settings, section in sections:
        digest = digest_of(digest, orjson.dumps(settings))
        for block in section:
            content = as_bytes(block.content)
            digest = digest_of(digest, f"{block.place}\0{block.role}\0{block.kind}\0".encode(), content)
            total += tokens(block.content, len(content))
            chain.append(digest)
            upto.append(total)
    blocks = [block for _, section in sections for block in section]
    return Prompt(tuple(block.path for block in blocks), tuple(chain), tuple(upto), marks_of(body, blocks))


def digest_of(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def web_search(block: Block) -> bool:
    return block.place == "tools" and block.kind.startswith("web_search_")


def system_settings(body: Mapping[str, Any], blocks: Iterable[Block]) -> list[Any]:
    """Only documents and search results switch citations; in a text block `citations` are those of a reply."""
    cites = any((block.content.get("citations") or {}).get("enabled") for block in blocks if block.kind != "text")
    return [body.get("speed") or "standard", cites]


def messages_settings(body: Mapping[str, Any], blocks: list[Block], model: Model) -> list[Any]:
    """A default that is named counts as one left out."""
    choice = {key: value for key, value in (body.get("tool_choice") or {"type": "auto"}).items() if value is not False}
    thinking = body.get("thinking") or {"type": "adaptive" if model.thinks_by_default else "disabled"}
    effort = (body.get("output_config") or {}).get("effort") or model.default_effort
    images = any(True for _ in images_in(blocks))
    return [choice, thinking["type"], thinking.get("budget_tokens"), effort, images]


def without_old_thinking(blocks: list[Block]) -> list[Block]:
    """The row on models that drop the thinking of earlier turns once an ordinary user turn arrives."""
    ordinary = [i for i, block in enumerate(blocks) if block.role == "user" and block.kind != "tool_result"]
    last = ordinary[-1] if ordinary else -1
    return [block for i, block in enumerate(blocks) if i > last or block.kind not in THOUGHTS]


def marks_of(body: Mapping[str, Any], blocks: list[Block]) -> dict[int, str]:
    """The marked positions; a top-level mark stands on the last block that can carry one."""
    marks = {i: block.mark.get("ttl", "5m") for i, block in enumerate(blocks) if block.mark}
    if automatic := body.get("cache_control"):
        last = max((i for i, block in enumerate(blocks) if block.markable), default=None)
        if last is not None:
            marks.setdefault(last, automatic.get("ttl", "5m"))
    return marks


def settle(
    entries: Mapping[bytes, Entry], prompt: Prompt, minimum: int, now: float, first_byte: float = 0.0
) -> tuple[Bill, dict[bytes, Entry]]:
    """The bill of a request that starts at `now`, and the entries it writes and renews.

    The entries count from the moment the response begins, `first_byte` seconds later: a request refused or broken off
    before that must not `remember` them. A mark with fewer tokens before it than `minimum` does nothing.
    """
    marks = {i: lifetime for i, lifetime in prompt.marks.items() if prompt.upto[i] >= minimum}
    alive = {
        i: entry
        for i in {j for mark in marks for j in range(max(0, mark - LOOKBACK + 1), mark + 1)}
        if (entry := entries.get(prompt.chain[i])) and entry.readable_from <= now < entry.alive_until
    }
    hit = max(alive, default=-1)  # ¹ of either lifetime, whatever the mark's own
    read = prompt.upto[hit] if hit >= 0 else 0
    upto_1h = max([read, *(prompt.upto[i] for i, lifetime in marks.items() if lifetime == "1h")])
    upto_5m = max([upto_1h, *(prompt.upto[i] for i in marks)])
    bill = Bill(read, upto_1h - read, upto_5m - upto_1h, prompt.tokens - upto_5m)
    changed = {
        prompt.chain[i]: Entry(lifetime, now + LIFETIMES[lifetime], now + first_byte)
        for i, lifetime in marks.items()
        if i > hit
    }
    for i in {*marks, hit} & alive.keys():  # ¹ marked entries below the hit too, each for its own lifetime
        changed[prompt.chain[i]] = alive[i]._replace(alive_until=now + LIFETIMES[alive[i].lifetime])
    return bill, changed


def remember(entries: dict[bytes, Entry], changed: Mapping[bytes, Entry], now: float) -> None:
    """Take over what `settle` returned. Of requests that overlapped, the longer life and the earlier start count."""
    for digest, entry in changed.items():
        old = entries.get(digest)
        if old and now < old.alive_until:
            longer = max(old, entry, key=lambda one: one.alive_until)
            entry = longer._replace(readable_from=min(old.readable_from, entry.readable_from))
        entries[digest] = entry


def usage(bill: Bill, output: int, thinking: int = 0, *, speed: str | None = None, searches: int = 0) -> dict[str, Any]:
    """The bill in the shape of a reply's `usage`."""
    counts = {
        "input_tokens": bill.plain,
        "cache_creation_input_tokens": bill.write_5m + bill.write_1h,
        "cache_read_input_tokens": bill.read,
        "cache_creation": {"ephemeral_5m_input_tokens": bill.write_5m, "ephemeral_1h_input_tokens": bill.write_1h},
        "output_tokens": output,
        "output_tokens_details": {"thinking_tokens": thinking},
        "server_tool_use": {"web_search_requests": searches, "web_fetch_requests": 0} if searches else None,
        "service_tier": "standard",
    }
    return counts | ({"speed": speed} if speed else {})


def missed_because(old_model: str, old: Prompt, new_model: str, new: Prompt) -> dict[str, Any] | None:
    """Where a prompt first parts from an earlier one, in the shape of the API's cache diagnostics; None if nowhere."""
    if old_model != new_model:
        return {"type": "model_changed", "cache_missed_input_tokens": old.tokens}
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(old.chain, new.chain, strict=False)))
    if shared == len(old.chain):
        return None
    place = old.paths[shared].partition(".")[0]
    return {
        "type": f"{place}_changed",
        "cache_missed_input_tokens": old.tokens - (old.upto[shared - 1] if shared else 0),
    }
