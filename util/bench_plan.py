"""Measures what planning the prompt cache costs per request: python util/bench_plan.py [--blocks N] [--turns N].

Chats of so many blocks go through the real planner, its memory and its journal, against the practice upstream's
accounting; no network. Planned is what is done before a request is sent, learned what is done when its reply begins:
CPU time, since a shared machine would show itself in any other, with the garbage collector set as in the running
program. The first turn is left out, as it warms up.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from server.cache_draft import Bounds
from server.cache_helps import CacheHelps
from server.cache_journal import Journal
from server.cache_memory import CacheMemory, Scope
from server.cache_planner import CachePlanner
from server.models import Models
from server.practice import accounting
from server.request import ChatRequest
from server.serve import spare_the_collector

BLOCKS, TURNS = 600, 101
HEAD = 12  # blocks in front of the story
PAUSE = 60.0  # seconds between two turns
MODEL = "claude-sonnet-4-6"
WORDS = "The ferry came late, and the lamp at its bow had gone out somewhere behind the third bend of the river. " * 4
SCOPE = Scope("https://api.anthropic.com", "the bench's own key")


class Turn(NamedTuple):
    """CPU milliseconds of planning and of learning, and what the upstream read and wrote."""

    planned: float
    learned: float
    bill: accounting.Bill


def block(name: str) -> dict[str, str]:
    return {"type": "text", "text": f"{name} {WORDS}"}


def body(head: list[str], story: range) -> dict[str, Any]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": [block(f"Message {i}.")]} for i in story]
    return {"model": MODEL, "max_tokens": 300, "stream": True, "system": [*map(block, head)], "messages": messages}


def first_sight(blocks: int, turns: int) -> Iterator[dict[str, Any]]:
    """Each turn is a chat nobody has seen."""
    for turn in range(turns):
        chat = body([f"Chat {turn}, rule {i}." for i in range(HEAD)], range(blocks - HEAD))
        for message in chat["messages"]:
            message["content"] = [block(f"Chat {turn}. {message['content'][0]['text'][:16]}")]
        yield chat


def growing(blocks: int, turns: int) -> Iterator[dict[str, Any]]:
    """A chat that has so many blocks and goes on, by two at each turn."""
    for turn in range(turns):
        yield body([f"Rule {i}." for i in range(HEAD)], range(blocks - HEAD + 2 * turn))


def rewritten(blocks: int, turns: int) -> Iterator[dict[str, Any]]:
    """A chat that goes on, and at each turn the second block of its head is another one."""
    for turn, chat in enumerate(growing(blocks, turns)):
        chat["system"][1] = block(f"It is minute {turn}.")
        yield chat


CHATS: Mapping[str, tuple[Callable[[int, int], Iterator[dict[str, Any]]], CacheHelps]] = {
    "first sight": (first_sight, CacheHelps()),
    "growing chat": (growing, CacheHelps()),
    "rewritten head": (rewritten, CacheHelps()),
    "rewritten head, both helps": (rewritten, CacheHelps(cache_late_lore=True, cache_steady_window=True)),
}


def played(chat: Iterator[dict[str, Any]], helps: CacheHelps, folder: Path) -> Iterator[Turn]:
    """Each request of a chat planned, billed and learned from."""
    model = Models.load().like(MODEL)
    entries: dict[bytes, accounting.Entry] = {}
    memory = CacheMemory(b"the bench's own secret", Journal(folder / "state.sqlite", now=0.0))
    planner = CachePlanner(memory)
    for turn, asked in enumerate(chat):
        now = turn * PAUSE
        begun = time.thread_time()
        sent, plan = planner.plan(ChatRequest(asked), model, SCOPE, now, Bounds(helps=helps))
        planned = time.thread_time() - begun
        bill, changed = accounting.settle(entries, accounting.read_prompt(sent.body, model), model.min_cacheable, now)
        accounting.remember(entries, changed, now)
        begun = time.thread_time()
        planner.began(plan, accounting.usage(bill, 300), now, now + 1.0)
        yield Turn(planned * 1000, (time.thread_time() - begun) * 1000, bill)
    memory.close()


def figures(times: list[float]) -> str:
    last = sorted(times)
    return f"median {median(last):6.2f} ms, p99 {last[min(int(len(last) * 0.99), len(last) - 1)]:6.2f} ms"


def report(blocks: int = BLOCKS, turns: int = TURNS) -> Iterator[str]:
    """A line for each kind of chat."""
    for name, (chat, helps) in CHATS.items():
        with tempfile.TemporaryDirectory() as folder:
            _, *told = played(chat(blocks, turns), helps, Path(folder))
        planned, learned = figures([turn.planned for turn in told]), figures([turn.learned for turn in told])
        yield f"{name:27} of {blocks} blocks: planned in {planned}; learned in {learned}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--turns", type=int, default=TURNS)
    given = parser.parse_args()
    spare_the_collector()
    for line in report(given.blocks, given.turns):
        print(line, flush=True)


if __name__ == "__main__":
    main()
