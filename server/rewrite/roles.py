"""Step: system messages inside the chat."""

from __future__ import annotations

from server.content import NOTHING_SAID, Block, Message, as_blocks, is_blank, text_block, user_message
from server.request import ChatRequest
from server.rewrite.context import Context

START = "[Start of the chat]"


def fit_roles(request: ChatRequest, context: Context) -> ChatRequest:
    """Puts system messages where the model takes them: those at the very beginning into `system`, those in the middle
    stay where the model knows such, and become user text marked as “System note” elsewhere. Pictures in the assistant's
    messages move into the user's next one, and so do documents under version 2026-10-21."""
    model = context.model_of(request)
    messages = request.body["messages"]
    if model is None:
        return request
    lead = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    if lead:
        head = [block for m in messages[:lead] for block in as_blocks(m.get("content")) if not is_blank(block)]
        system = [*as_blocks(request.body.get("system")), *(block for block in head if block.get("type") == "text")]
        others = [block for block in head if block.get("type") != "text"]
        messages = [*([user_message(*others)] if others else []), *messages[lead:]]
        request = request.but(
            "fit_roles",
            "Moved the system messages at the beginning into the system prompt.",
            messages=messages or [user_message(text_block(NOTHING_SAID))],
            **({"system": system} if system else {}),
        )
        messages = request.body["messages"]
    kinds = ("image",) if request.version == ChatRequest.version else ("image", "document")
    moved = move_pictures(messages, kinds) if request.has(*kinds) else messages
    if moved != messages:
        request = request.but("fit_roles", "Moved pictures out of the assistant's messages.", messages=moved)
    inside = any(message["role"] == "system" for message in moved)
    placed = place_system(moved, allowed=model.system_messages) if inside else moved
    if placed != moved:
        request = request.but("fit_roles", "Sent system messages inside the chat as marked user text.", messages=placed)
    if context.learned(request, "user_first") and placed[0]["role"] != "user":
        first = user_message(text_block(START))
        request = request.but(
            "fit_roles", "Put a short user message in front.", messages=[first, *request.body["messages"]]
        )
    return request


def place_system(messages: list[Message], *, allowed: bool) -> list[Message]:
    """The messages with system ones only where they may stand: behind a user turn, before an assistant turn or at the
    end, holding text alone. Neighbouring ones count as one."""
    new: list[Message] = []
    following = "assistant"
    for i in range(len(messages) - 1, -1, -1):
        message = messages[i]
        blocks = as_blocks(message.get("content"))
        if message["role"] != "system" or (
            allowed
            and all(block.get("type") == "text" for block in blocks)
            and following in ("assistant", "system")
            and i > 0
            and messages[i - 1]["role"] in ("user", "system")
        ):
            new.append(message)
        elif notes := [as_note(block) for block in blocks if not is_blank(block)]:
            new.append(user_message(*notes))
        following = new[-1]["role"] if new else following
    return new[::-1]


def as_note(block: Block) -> Block:
    if block.get("type") != "text":
        return block
    kept = {key: value for key, value in block.items() if key != "citations"}
    return {**kept, "text": f"[System note: {block['text']}]"}


def move_pictures(messages: list[Message], kinds: tuple[str, ...]) -> list[Message]:
    """No block of these kinds in an assistant's message: the API takes them from users alone."""
    new: list[Message] = []
    waiting: list[Block] = []
    for message in messages:
        if message["role"] == "assistant":
            blocks = as_blocks(message.get("content"))
            found = [block for block in blocks if block.get("type") in kinds]
            if found:
                waiting += found
                message = {**message, "content": [b for b in blocks if b.get("type") not in kinds]}
                if not message["content"]:
                    continue
        elif waiting and message["role"] == "user":
            message = {**message, "content": [*waiting, *as_blocks(message.get("content"))]}
            waiting = []
        new.append(message)
    return [*new, user_message(*waiting)] if waiting else new
