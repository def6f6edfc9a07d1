"""A request as the row of blocks that Anthropic reads, caches and counts: tools, then system, then messages."""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from server.practice.pictures import MAX_TOKENS, picture

THOUGHTS = ("thinking", "redacted_thinking")


@dataclass(frozen=True, slots=True)
class Block:
    """One tool, system block or content block, as it was sent. `path` is how Anthropic's error texts name its place."""

    place: str  # tools, system or messages
    role: str  # of the message it stands in
    path: str
    content: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return self.content.get("type") or "custom"

    @property
    def mark(self) -> Mapping[str, Any] | None:
        return self.content.get("cache_control")

    @property
    def markable(self) -> bool:
        """Whether it may carry a cache mark: neither thinking nor an empty text."""
        return self.kind not in THOUGHTS and (self.kind != "text" or bool(self.content["text"]))


def row(body: Mapping[str, Any]) -> list[Block]:
    """Every block of a well-formed body, in the order Anthropic processes them."""
    blocks = [Block("tools", "", f"tools.{i}", tool) for i, tool in enumerate(body.get("tools") or ())]
    blocks += [Block("system", "", f"system.{i}", part) for i, part in enumerate(parts(body.get("system") or []))]
    for i, message in enumerate(body["messages"]):
        role = message["role"]
        for j, part in enumerate(parts(message["content"])):
            blocks.append(Block("messages", role, f"messages.{i}.content.{j}", part))
    return blocks


def parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks of a content. A plain string is one text block, an empty one none."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content


def inner(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The blocks inside a tool result."""
    content = block.get("content") if block.get("type") == "tool_result" else None
    return content if isinstance(content, list) else []


def images_in(blocks: list[Block]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every image with its path, those inside tool results too."""
    for block in blocks:
        if block.kind == "image":
            yield block.path, block.content
        for i, part in enumerate(inner(block.content)):
            if part.get("type") == "image":
                yield f"{block.path}.tool_result.content.{i}", part


def as_bytes(content: Mapping[str, Any]) -> bytes:
    """What of a block Anthropic's cache compares: all of it, key order included, but the mark."""
    if content.get("type") == "text" and len(content) == 2 + ("cache_control" in content):
        return content["text"].encode()  # type: ignore[no-any-return]
    return orjson.dumps({key: value for key, value in content.items() if key != "cache_control"})


def tokens(content: Mapping[str, Any], size: int) -> int:
    """The practice upstream's measure: a quarter of a block's bytes, rounded up; images by their size in pixels."""
    if content.get("type") == "image":
        return picture_tokens(content)
    if inside := inner(content):
        return sum(tokens(part, len(as_bytes(part))) for part in inside)
    return -(-size // 4)


def picture_tokens(content: Mapping[str, Any]) -> int:
    source = content["source"]
    if source["type"] != "base64":
        return MAX_TOKENS
    found = picture(binascii.a2b_base64(source["data"]))
    return found.tokens if found else MAX_TOKENS
