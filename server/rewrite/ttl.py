"""Step: the lifetime of the front end's cache marks."""

from __future__ import annotations

from typing import Any

from server.content import Block, marked
from server.request import ChatRequest
from server.rewrite.context import Context


def strip_ttl(request: ChatRequest, context: Context) -> ChatRequest:
    """Takes `ttl` out of the front end's cache marks where it is not allowed (setting `strip_cache_ttl`), so that they
    count as 5 minutes."""
    if not ttl_is_stripped(context):
        return request
    body = dict(request.body)
    count = sum(isinstance(mark := thing.get("cache_control"), dict) and "ttl" in mark for thing in marked(body))
    if not count:
        return request
    changed = without_ttl(body)
    return request.but("strip_ttl", f"Took ttl out of {count} cache mark{'s' if count > 1 else ''}.", **changed)


def ttl_is_stripped(context: Context) -> bool:
    """Whether the setting rules `ttl` out for who pays."""
    mode = context.options.strip_cache_ttl
    return mode == "true" or (mode == "auto" and context.kind == "subscription")


def without_ttl(body: dict[str, Any]) -> dict[str, Any]:
    """The body with no `ttl` in any `cache_control`; what carries none stays the same object."""

    def plain(thing: Block) -> Block:
        mark, inner = thing.get("cache_control"), thing.get("content")
        if isinstance(mark, dict) and "ttl" in mark:
            thing = {**thing, "cache_control": {key: value for key, value in mark.items() if key != "ttl"}}
        if isinstance(inner, list) and any(isinstance(b, dict) for b in inner):
            thing = {**thing, "content": [plain(b) if isinstance(b, dict) else b for b in inner]}
        return thing

    body = plain(body)
    for key in ("tools", "system", "messages"):
        if isinstance(body.get(key), list):
            body = {**body, key: [plain(thing) for thing in body[key]]}
    return body
