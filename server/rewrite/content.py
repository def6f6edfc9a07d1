"""Content as blocks: the one shape the steps work on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Block = dict[str, Any]


def text_block(text: str) -> Block:
    return {"type": "text", "text": text}


def as_blocks(content: str | list[Block] | None) -> list[Block]:
    """`system` or a message's `content` as a list of blocks; none for null, absent and "" (the API refuses empty text)."""
    if isinstance(content, str):
        return [text_block(content)] if content else []
    return content or []


def marked(body: dict[str, Any]) -> Iterator[Block]:
    """Every object of a body that may carry `cache_control`: the body itself, tools, system blocks, content blocks and
    the blocks inside tool results."""
    yield body
    yield from (tool for tool in body.get("tools") or () if isinstance(tool, dict))
    yield from as_blocks(body.get("system"))
    for message in body["messages"]:
        for block in as_blocks(message.get("content")):
            yield block
            if isinstance(block.get("content"), list):
                yield from (inner for inner in block["content"] if isinstance(inner, dict))
