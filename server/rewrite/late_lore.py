"""Step (opt-in, `cache_late_lore`): changing lines of the prompts in front stand behind the stable part.

World Info and macros change lines in front of the whole story, and the prompt cache is lost from there on. So lines
that came, went or changed leave the front and are sent just before the player's last message. Their order changes, not
a word.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

from server.content import Block, Message, as_blocks, text_block
from server.models import Model

SETTLED = 8  # requests in a row that had a line, until it may stand in front (again)
SETTLED_AGAIN = 16  # for a line that left once
MOST = 0.6  # of the prompts may have changed for it to be the same one by its lines alone
MOST_LINES = 5_000  # in front; more stay as they are, since to compare them would hold up every other request
OFTEN = 100  # lines that stand there oftener, such as blank ones, are found by their neighbours alone
SAME_STORY = 0.3  # of the messages were there before: then it is the same one, though another character speaks


@dataclass(frozen=True)
class Head:
    """The stable lines of a chat's prompts, as digests, in order. Of every line lately seen in it: in how many
    requests in a row, and whether it ever left. And the chat's messages as they were last."""

    stable: tuple[str, ...]
    streaks: Mapping[str, int]
    left: frozenset[str] = frozenset()
    story: frozenset[str] = frozenset()

    def stands(self, line: str) -> bool:
        return self.streaks.get(line, 0) >= (SETTLED_AGAIN if line in self.left else SETTLED)


@dataclass(frozen=True)
class Lines:
    """The lines of the prompts in front: for each its block, its text and its digest; none of blocks that are more than
    text, and not the required line, which keeps its place. Where `system` is not used, the prompts are the first
    message, up to the last line known to be stable."""

    blocks: Sequence[Block]
    rows: tuple[tuple[int, str, str], ...]
    in_message: bool = False

    @classmethod
    def of(cls, body: Mapping[str, Any], secret: bytes, required_line: str = "") -> Lines:
        blocks, in_message = as_blocks(body.get("system")), False
        if not blocks and len(body["messages"]) > 1 and body["messages"][0]["role"] == "user":
            blocks, in_message = as_blocks(body["messages"][0]["content"]), True
        movable = [(i, block["text"]) for i, block in enumerate(blocks) if is_plain(block)]
        texts = [(i, line) for i, text in movable if text.strip() != required_line for line in text.split("\n")]
        if len(texts) > MOST_LINES:
            return cls(blocks, (), in_message)
        return cls(blocks, tuple((i, line, digest(line, secret)) for i, line in texts), in_message)

    @property
    def digests(self) -> list[str]:
        return [one for _, _, one in self.rows]

    def moved(self, stable: Sequence[str]) -> set[int]:
        """The rows that are not among the stable ones, in their order."""
        kept: set[int] = set()
        matcher = SequenceMatcher(None, stable, self.digests, autojunk=False)
        looked_for: dict[str, list[int]] = matcher.b2j  # type: ignore[attr-defined]  # documented, missing in typeshed
        for line in [line for line, rows in looked_for.items() if len(rows) > OFTEN]:
            del looked_for[line]
        for block in matcher.get_matching_blocks():
            kept.update(range(block.b, block.b + block.size))
        end = max(kept, default=-1) if self.in_message else len(self.rows)
        return set(range(end)) - kept

    def share(self, rows: set[int]) -> float:
        total = sum(len(line) for _, line, _ in self.rows)
        return sum(len(self.rows[row][1]) for row in rows) / total if total else 0.0


def is_plain(block: Block) -> bool:
    return block.get("type") == "text" and len(block) == 2


def digest(line: str, secret: bytes) -> str:
    return hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=8, key=secret).hexdigest()


def choose_head(lines: Lines, story: frozenset[str], heads: Sequence[Head]) -> int:
    """The index of the head these lines belong to, -1 if they are of a new one."""
    told = [len(story & head.story) / max(len(story), 1) for head in heads]
    best = max(range(len(heads)), key=lambda i: told[i], default=-1)
    if best >= 0 and told[best] >= SAME_STORY:
        return best
    shares = [lines.share(lines.moved(head.stable)) for head in heads]
    best = min(range(len(heads)), key=lambda i: shares[i], default=-1)
    return best if best >= 0 and shares[best] <= MOST else -1


def after(head: Head | None, lines: Lines, story: frozenset[str], cold: bool) -> Head:
    """The head as it is for a request with these lines. It changes where a stable line left; and since the cache is
    lost then, or when it is cold anyway, it takes in the lines that have settled."""
    present = lines.digests
    if head is None:
        return Head(tuple(present), dict.fromkeys(present, 1), story=story)
    streaks = {line: head.streaks.get(line, 0) + 1 for line in present}
    left = head.left | (head.streaks.keys() - streaks.keys())
    known = Head(head.stable, streaks, left, story)
    moved = lines.moved(head.stable)
    kept = [line for row, (_, _, line) in enumerate(lines.rows) if row not in moved]
    if len(kept) < len(head.stable) or cold:
        stable = tuple(line for row, line in enumerate(present) if row not in moved or known.stands(line))
        return replace(known, stable=stable)
    return known


def late_lore(body: Mapping[str, Any], lines: Lines, head: Head, model: Model) -> tuple[dict[str, Any], int]:
    """The body with the lines that are not in the head moved behind the story; and how many they were."""
    moved = lines.moved(head.stable)
    text = "\n".join(lines.rows[row][1] for row in sorted(moved)).strip("\n")
    if not text.strip():
        return dict(body), 0
    rows: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for row, (i, line, _) in enumerate(lines.rows):
        rows[i].append((row, line))
    front: list[Block] = []
    for i, block in enumerate(lines.blocks):
        mine = rows[i]
        kept = [line for row, line in mine if row not in moved]
        if len(kept) == len(mine):
            front.append(block)
        elif "".join(kept).strip():
            front.append(text_block("\n".join(kept)))
    changed, messages = dict(body), body["messages"]
    if lines.in_message:
        messages = [{**messages[0], "content": front}, *messages[1:]]
    elif front:
        changed["system"] = front
    else:
        del changed["system"]
    changed["messages"] = with_late(messages, text, model)
    return changed, sum(1 for row in moved if lines.rows[row][1].strip())


def with_late(messages: list[Message], text: str, model: Model) -> list[Message]:
    """The messages with the text just before the last user message; as a `system` message where the model takes one.

    That must follow a user's turn and end the list (Anthropic docs, 2026-08). Results of tools stand first in theirs.
    """
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    if last < 0:
        return [{"role": "user", "content": [text_block(text)]}, *messages]
    if model.system_messages and last == len(messages) - 1:
        return [*messages, {"role": "system", "content": [text_block(text)]}]
    blocks = as_blocks(messages[last]["content"])
    results = sum(block.get("type") == "tool_result" for block in blocks)
    changed = {**messages[last], "content": [*blocks[:results], text_block(text), *blocks[results:]]}
    return [*messages[:last], changed, *messages[last + 1 :]]
