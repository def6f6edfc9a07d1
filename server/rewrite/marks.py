"""Step: cache marks that would be refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from server.content import THOUGHTS, Block, as_blocks, inner_blocks, is_blank, untouched
from server.request import ChatRequest
from server.rewrite.context import Context

MOST = 4

Mark = dict[str, Any]


def fit_marks(request: ChatRequest, context: Context) -> ChatRequest:
    """Mends the front end's own cache marks: at most four, none on thinking or empty texts, none for an hour behind one
    for five minutes."""
    if not request.is_marked:
        return request
    things = list(markable(request.body))
    most = min([MOST, *(int(value) for value in context.learned(request, "marks") if value)])
    given = [thing.get("cache_control") for thing in things]
    if not any(given):
        return request
    fitted = fit(things, most, keep_ttl=not context.learned(request, "ttl"))
    if fitted == given:
        return request
    body = with_marks(request.body, iter(fitted))
    return request.noted("fit_marks", "Mended the front end's cache marks, which would have been refused.", body=body)


def markable(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What may carry a mark, in the order the API reads it; at last the body, whose mark counts on the last block."""
    yield from body.get("tools") or ()
    yield from as_blocks(body.get("system"))
    for message in body["messages"]:
        for block in as_blocks(message.get("content")):
            yield from inner_blocks(block)
            yield block
    yield body


def fit(things: list[Mapping[str, Any]], most: int, *, keep_ttl: bool) -> list[Mark | None]:
    """A mark, or none, for each thing; of too many the first and the last ones stay."""
    can = [thing.get("type") not in THOUGHTS and not is_blank(thing) for thing in things]
    marks = [
        well_formed(thing.get("cache_control"), keep_ttl) if ok else None for thing, ok in zip(things, can, strict=True)
    ]
    set_ = [i for i, mark in enumerate(marks) if mark]
    if len(set_) > most:
        first = set_[: 1 if most > 1 else 0]
        kept = {*first, *set_[len(set_) - most + len(first) :]}
        marks = [mark if i in kept else None for i, mark in enumerate(marks)]
    short = False
    for i, mark in enumerate(marks):
        if mark and short and lifetime(mark) == "1h":
            marks[i] = {"type": "ephemeral"}
        short = short or (mark is not None and lifetime(mark) == "5m")
    last = max((i for i, ok in enumerate(can[:-1]) if ok), default=-1)
    on_last, on_all = marks[last] if last >= 0 else None, marks[-1]
    if on_last and on_all and lifetime(on_last) != lifetime(on_all):
        marks[-1] = None
    return marks


def well_formed(mark: Any, keep_ttl: bool) -> Mark | None:
    if not isinstance(mark, dict) or mark.get("type") != "ephemeral":
        return None
    ttl = {"ttl": mark["ttl"]} if mark.get("ttl") in ("5m", "1h") and keep_ttl else {}
    return {"type": "ephemeral", **ttl}


def lifetime(mark: Mark) -> str:
    return str(mark.get("ttl", "5m"))


def with_marks(body: Mapping[str, Any], marks: Iterator[Mark | None]) -> dict[str, Any]:
    """The body with these marks, in the order of `markable`; what keeps its mark stays the same object."""

    def with_mark(thing: Mapping[str, Any]) -> Any:
        mark = next(marks)
        if mark == thing.get("cache_control"):
            return thing
        bare = {key: value for key, value in thing.items() if key != "cache_control"}
        return {**bare, "cache_control": mark} if mark else bare

    def with_inner(block: Block) -> Block:
        if not inner_blocks(block):
            return block
        inner = [with_mark(part) if isinstance(part, dict) else part for part in block["content"]]
        return block if untouched(inner, block["content"]) else {**block, "content": inner}

    def with_all(content: Any) -> Any:
        blocks = as_blocks(content)
        changed: list[Block] = [with_mark(with_inner(block)) for block in blocks]
        return content if untouched(changed, blocks) else changed

    new = dict(body)
    if body.get("tools"):
        new["tools"] = [with_mark(tool) for tool in body["tools"]]
    if body.get("system"):
        new["system"] = with_all(body["system"])
    new["messages"] = [
        message
        if (content := with_all(message.get("content"))) is message.get("content")
        else {**message, "content": content}
        for message in body["messages"]
    ]
    return dict(with_mark(new))
