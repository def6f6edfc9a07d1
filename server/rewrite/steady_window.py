"""Step (opt-in, `cache_steady_window`): a full context is cut in larger steps.

A front end whose context is full drops its oldest messages one by one, and each time the prompt cache is lost from the
start of the story. So more is cut at once, and the story begins there until the front end's own window has passed it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from server.content import Message, as_blocks

CUT = 0.3  # of the prompt's bytes, at once
ALIKE = 3  # blocks in a row that must agree
STOOD = 3  # requests in which the first block stood: then its going is no note's


@dataclass(frozen=True)
class Window:
    """What is known of a chat's window: its blocks as last sent by the front end, as digests; in how many requests the
    first one stood; how often it slid; and the two blocks the story now begins with, if it was cut. `prompts`: what
    never changed in the first message, on front ends that put their prompts there."""

    blocks: tuple[str, ...]
    stood: int = 1
    slid: int = 0
    begins: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Story:
    """The blocks of the messages: digest, bytes, and the message each stands in. Where `system` is not used, the first
    message holds the `prompts`, and the story begins behind it."""

    digests: tuple[str, ...]
    sizes: tuple[int, ...]
    messages: tuple[int, ...]
    roles: tuple[str, ...]  # of each message
    prompts: tuple[str, ...] = ()

    @classmethod
    def of(cls, body: Mapping[str, Any], secret: bytes) -> Story:
        messages: list[Message] = body["messages"]
        rows = [(i, orjson.dumps([m["role"], b])) for i, m in enumerate(messages) for b in as_blocks(m.get("content"))]
        digests = [hashlib.blake2b(raw, digest_size=8, key=secret).hexdigest() for _, raw in rows]
        front = 0
        if not body.get("system") and messages[0]["role"] == "user":
            front = sum(i == 0 for i, _ in rows)
        return cls(
            tuple(digests[front:]),
            tuple(len(raw) for _, raw in rows[front:]),
            tuple(i for i, _ in rows[front:]),
            tuple(m["role"] for m in messages),
            tuple(digests[:front]),
        )

    def starts(self, blocks: Sequence[str]) -> int:
        """The message that begins with these blocks, -1 if none does."""
        for at in range(len(self.digests)):
            if self.digests[at : at + len(blocks)] == tuple(blocks) and self.begins_message(at):
                return self.messages[at]
        return -1

    def begins_message(self, at: int) -> bool:
        return at == 0 or self.messages[at] != self.messages[at - 1]

    def cut_at(self, most: float) -> int:
        """The block at which to cut so that about `most` bytes go: a user's message begins there; -1 if none does."""
        passed = 0
        for at, size in enumerate(self.sizes):
            if passed >= most and self.begins_message(at) and self.roles[self.messages[at]] == "user":
                return at if at < len(self.sizes) - 2 * ALIKE else -1
            passed += size
        return -1


def choose_window(story: Story, windows: Sequence[Window]) -> int:
    """The index of the chat this story continues, -1 for a new one: the one that has most of its blocks."""
    mine = set(story.digests)
    shares = [len(mine & set(window.blocks)) / max(len(mine), 1) for window in windows]
    best = max(range(len(windows)), key=lambda i: shares[i], default=-1)
    return best if best >= 0 and shares[best] >= 0.35 else -1


def slid(before: Sequence[object], now: Sequence[object]) -> bool:
    """Whether the first blocks are gone and the next ones are in place."""
    return len(now) > ALIKE and any(
        tuple(before[at : at + ALIKE]) == tuple(now[:ALIKE]) for at in range(1, len(before) - ALIKE + 1)
    )


def after(window: Window | None, story: Story, head_bytes: int) -> Window:
    """The window as it is for a request with this story; a side request with another story leaves it as it was."""
    if window is None:
        return Window(story.digests, prompts=story.prompts)
    same = story.digests[:1] == window.blocks[:1]
    moved = not same and slid(window.blocks, story.digests)
    known = Window(
        story.digests,
        window.stood + 1 if same else 1,
        window.slid + moved,
        window.begins if story.starts(window.begins) >= 0 else (),
        tuple(one for one in window.prompts if one in story.prompts),
    )
    full = moved and (known.slid >= 2 or window.stood >= STOOD)
    if known.begins or not (full or (window.begins and moved)):
        return known
    at = story.cut_at(CUT * (head_bytes + sum(story.sizes)))
    return replace(known, begins=story.digests[at : at + 2]) if at >= 0 else known


def steady_window(body: Mapping[str, Any], story: Story, window: Window) -> tuple[dict[str, Any], int]:
    """The body from the message on at which the window was cut; and how many messages were left out."""
    first = story.starts(window.begins) if window.begins else 0
    behind = 1 if story.prompts else 0
    if first <= behind:
        return dict(body), 0
    messages = body["messages"][first:]
    if story.prompts:  # without the player's words that stand behind them until they, too, slide out
        end = max((i + 1 for i, one in enumerate(story.prompts) if one in window.prompts), default=0)
        messages = [{**body["messages"][0], "content": as_blocks(body["messages"][0]["content"])[:end]}, *messages]
        messages = messages if end else messages[1:]
    return {**body, "messages": messages}, first - behind
