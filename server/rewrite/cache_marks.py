"""The cache marks of a body: taken off, counted, put on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.content import Block, marked, text_block, untouched
from server.prefix import Place


def marks_in(body: Mapping[str, Any]) -> int:
    """How many marks a body carries, a top-level one included."""
    return sum("cache_control" in thing for thing in marked(dict(body)))


def without_marks(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body with no `cache_control` anywhere; what carries none stays the same object."""

    def bare(thing: Any) -> Any:
        if not isinstance(thing, dict):
            return thing
        if "cache_control" in thing:
            thing = {key: value for key, value in thing.items() if key != "cache_control"}
        inner = thing.get("content")
        if isinstance(inner, list):
            clean = [bare(block) for block in inner]
            if not untouched(clean, inner):
                thing = {**thing, "content": clean}
        return thing

    bared: dict[str, Any] = dict(bare(dict(body)))
    for key in ("tools", "system", "messages"):
        if isinstance(bared.get(key), list):
            bared[key] = [bare(thing) for thing in bared[key]]
    return bared


def with_marks(body: Mapping[str, Any], marks: Mapping[Place, Mapping[str, str]]) -> dict[str, Any]:
    """The body with these marks; content that is a plain string becomes one text block where it is marked."""
    body = dict(body)
    for place, mark in marks.items():
        if place.part != "messages":
            key = "tools" if place.tool else "system"
            body[key] = with_mark(body[key], place.block, mark)
        else:
            messages = list(body["messages"])
            message = messages[place.message]
            messages[place.message] = {**message, "content": with_mark(message["content"], place.block, mark)}
            body["messages"] = messages
    return body


def with_mark(content: str | list[Block], at: int, mark: Mapping[str, str]) -> list[Block]:
    blocks = [text_block(content)] if isinstance(content, str) else list(content)
    blocks[at] = {**blocks[at], "cache_control": dict(mark)}
    return blocks
