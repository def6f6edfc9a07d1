"""Step: the system line that subscription credentials need."""

from __future__ import annotations

from server.content import Block, as_blocks, text_block
from server.request import ChatRequest
from server.rewrite.context import Context


def add_system_line(request: ChatRequest, context: Context) -> ChatRequest:
    """Puts the setting `required_system_line` first in `system`, exactly once; only when a subscription sign-in pays,
    because its endpoint asks for it."""
    line = context.options.required_system_line.strip()
    if context.kind != "subscription" or not line:
        return request
    blocks = as_blocks(request.body.get("system"))
    first = next((block for block in blocks if is_line(block, line)), text_block(line))
    wanted = [first, *(block for block in blocks if not is_line(block, line))]
    if wanted == blocks:
        return request
    return request.but(
        "add_system_line", f"Put the required line in front of the system prompt: “{line}”.", system=wanted
    )


def is_line(block: Block, line: str) -> bool:
    text = block.get("text")
    return isinstance(text, str) and text.strip() == line
