"""Step: empty texts."""

from __future__ import annotations

from typing import Any

from server.content import (
    NOTHING_SAID,
    Block,
    as_blocks,
    inner_blocks,
    is_blank,
    text_block,
    user_message,
    with_blocks,
    with_messages,
)
from server.request import ChatRequest
from server.rewrite.context import Context


def fit_texts(request: ChatRequest, context: Context) -> ChatRequest:
    """Leaves out empty and blank texts and messages, which the API refuses; a chat
    with nothing in it gets a placeholder."""
    body = request.body
    system = as_blocks(body.get("system"))
    fine = no_blanks(system) and all(block.get("type") == "text" for block in system)
    if fine and all(m.get("content") and no_blanks(as_blocks(m["content"])) for m in body["messages"]):
        return request
    messages = with_messages(body["messages"], without_blank)
    messages = [message for message in messages if as_blocks(message.get("content"))]
    if not messages:
        messages = [user_message(text_block(NOTHING_SAID))]
    new: dict[str, Any] = {**body, "messages": messages}
    texts = with_blocks([block for block in system if block.get("type") == "text"], without_blank)
    if texts != system:
        new["system"] = texts
    if system and not texts:
        del new["system"]
    if new == body:
        return request
    return request.noted("fit_texts", "Left out empty texts, which the API refuses.", body=new)


def without_blank(block: Block) -> list[Block]:
    return [] if is_blank(block) else [block]


def no_blanks(blocks: list[Block]) -> bool:
    """Whether none of these blocks is blank, nor one inside a tool result."""
    for block in blocks:
        if is_blank(block) if block.get("type") == "text" else any(map(is_blank, inner_blocks(block))):
            return False
    return True
