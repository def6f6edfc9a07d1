"""Step: what the model is known to have refused before."""

from __future__ import annotations

from typing import Any

from server.content import Block, Message, as_blocks, text_block, turns_of, untouched, with_messages
from server.request import ChatRequest
from server.rewrite.context import Context


def leave_out_refused(request: ChatRequest, context: Context) -> ChatRequest:
    """Leaves out what this model refused earlier, by the words of its refusals: fields that no other step knows of, and
    kinds of content, for which a short note stands in; and joins messages of one side where it wants turns. All this is
    forgotten when the table of models changes."""
    fields = [field for value in context.learned(request, "field") for field in value.split()]
    body: Any = request.body
    gone = [
        field
        for field in dict.fromkeys(fields)
        if (less := without(body, field.split("."))) is not body and (body := less)
    ]
    if gone:
        named = ", ".join(field.replace(".*", "") for field in gone)
        request = request.noted("leave_out_refused", f"Left out {named}: {request.model} refused it before.", body=body)
    if kinds := set(context.learned(request, "block")):

        def noted(block: Block) -> list[Block]:
            return [text_block(f"[A {block['type']} was left out here.]")] if block.get("type") in kinds else [block]

        messages = with_messages(request.body["messages"], noted)
        if messages != request.body["messages"]:
            listed = ", ".join(sorted(kinds))
            detail = f"Put a note in place of {listed}: {request.model} refused that before."
            request = request.but("leave_out_refused", detail, messages=messages)
    if context.learned(request, "alternate"):
        turns = joined(request.body["messages"])
        if len(turns) < len(request.body["messages"]):
            request = request.but("leave_out_refused", "Joined neighbouring messages of one side.", messages=turns)
    return request


def joined(messages: list[Message]) -> list[Message]:
    """The messages with neighbours of one role as one."""
    return [
        turn[0] if len(turn) == 1 else {**turn[0], "content": [b for m in turn for b in as_blocks(m.get("content"))]}
        for turn in turns_of(messages)
    ]


def without(value: Any, path: list[str]) -> Any:
    """`value` without what stands at the path, `*` being every item of a list; the same object where nothing does."""
    step, *rest = path
    if step == "*" and isinstance(value, list):
        items = [without(item, rest) for item in value]
        return value if untouched(items, value) else items
    if not isinstance(value, dict) or step not in value:
        return value
    if not rest:
        return {key: item for key, item in value.items() if key != step}
    inner = without(value[step], rest)
    if inner is value[step]:
        return value
    if inner == {}:
        return {key: item for key, item in value.items() if key != step}
    return {**value, step: inner}
