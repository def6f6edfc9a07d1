"""Step: thinking blocks sent back."""

from __future__ import annotations

from server.content import (
    NOTHING_SAID,
    THOUGHTS,
    Block,
    Message,
    as_blocks,
    is_thought,
    loop_start,
    plural,
    text_block,
    thought_digest,
    user_message,
)
from server.request import ChatRequest
from server.rewrite.context import Context

# Steps that put something behind a chat, as a persona's reminder, which is not there any more when the thinking that
# followed it comes back. What others change they change alike in every turn.
PASSING_CHANGES = {"add_persona", "fit_tools"}


def fit_thoughts(request: ChatRequest, context: Context) -> ChatRequest:
    """Takes earlier thinking out of the chat where it would be refused: without its signature, at the end of a message,
    or, on models that bind it to everything before it, when a persona's reminder stood there or calls were mended.
    Thinking in the middle of tool calls stays."""
    model = context.model_of(request)
    messages: list[Message] = request.body["messages"]
    if model is None or not request.has(*THOUGHTS):
        return request
    changed = any(change.name in PASSING_CHANGES for change in request.changes)
    refused = set(context.learned(request, "thoughts"))
    unbound = (model.binds_thinking and changed) or (bool(refused) and holds(messages, refused))
    keep_from = len(messages) if context.learned(request, "all_thoughts") else loop_start(messages) if unbound else 0
    new: list[Message] = []
    systems = any(message["role"] == "system" for message in messages)
    count = 0
    for i, message in enumerate(messages):
        blocks = as_blocks(message.get("content"))
        kept = [block for block in blocks if not is_thought(block) or (i >= keep_from and is_whole(block, message))]
        while kept and is_thought(kept[-1]):
            kept.pop()
        count += len(blocks) - len(kept)
        if len(kept) == len(blocks):
            new.append(message)
        elif kept:
            new.append({**message, "content": kept})
        elif systems and message is not messages[-1]:  # system messages need their neighbours
            new.append({**message, "content": [text_block(NOTHING_SAID)]})
    if not count:
        return request
    detail = f"Took {plural(count, 'block')} of earlier thinking out of the chat: {model.display_name} would refuse it."
    return request.but("fit_thoughts", detail, messages=new or [user_message(text_block(NOTHING_SAID))])


def holds(messages: list[Message], refused: set[str]) -> bool:
    """Whether one of these thinking blocks stands in the chat."""
    blocks = (block for message in messages for block in as_blocks(message.get("content")))
    return any(thought_digest(block) in refused for block in blocks if is_thought(block))


def is_whole(block: Block, message: Message) -> bool:
    """Whether a thinking block can be what the API once sent: signed, and the assistant's."""
    if message["role"] != "assistant":
        return False
    if block["type"] == "redacted_thinking":
        return isinstance(block.get("data"), str) and bool(block["data"])
    return (
        isinstance(block.get("thinking"), str) and isinstance(block.get("signature"), str) and bool(block["signature"])
    )
