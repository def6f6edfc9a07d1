"""The signatures of practice thinking blocks, which bind them to their text, their model and what stood before them."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from server.practice.blocks import THOUGHTS, Block, as_bytes

MAKER = "practice"


class Signature(NamedTuple):
    model: str
    thought: str  # digest of the full thinking
    before: str  # digest of everything before the block

    def __str__(self) -> str:
        return base64.b64encode(":".join((MAKER, *self)).encode()).decode()


def read_signature(text: str) -> Signature | None:
    """The signature in `text`, None if it is not one of ours."""
    try:
        maker, *parts = base64.b64decode(text, validate=True).decode().split(":")
        return Signature(*parts) if maker == MAKER else None
    except (binascii.Error, UnicodeDecodeError, TypeError):
        return None


def sign(model: str, thought: str, blocks: Iterable[Block]) -> str:
    """The signature of a thought that follows these blocks."""
    *_, before = befores(blocks)
    return str(Signature(model, digest(thought), before))


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def befores(blocks: Iterable[Block]) -> Iterator[str]:
    """The digest of everything before each block, and at last of all: other thinking, marks and settings left out."""
    running = hashlib.blake2b(digest_size=12)
    for block in blocks:
        yield running.hexdigest()
        if block.kind not in THOUGHTS:
            content = as_bytes(block.content)
            running.update(f"{block.place}\0{block.role}\0{block.kind}\0{len(content)}\0".encode() + content)
    yield running.hexdigest()
