"""Recorded requests of the real SillyTavern: one chat per file, one request per line, packed.

Each line has `t` (seconds on the chat's own clock), `path`, `headers`, `body` and `meta` (turn, act, phase).
"""

import json
import lzma
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).with_name("data") / "traces"
NAMES = tuple(sorted(path.name.removesuffix(".jsonl.xz") for path in FOLDER.glob("*.jsonl.xz")))


@cache
def trace(name):
    """The requests of one chat, in order."""
    with lzma.open(FOLDER / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
        return tuple(json.loads(line) for line in lines)


def traces():
    return {name: trace(name) for name in NAMES}
