"""Step: system messages inside the chat."""

from __future__ import annotations

from server.request import ChatRequest
from server.rewrite.content import Block, Message, as_blocks, is_blank, text_block, user_message
from server.rewrite.context import Context

START = "[Start of the chat]"


def fit_roles(request: ChatRequest, context: Context) -> ChatRequest:
    """Puts system messages where the model takes them: those at the very beginning into `system`, those in the middle
    stay where the model knows such, and become user text marked as “System note” elsewhere. Pictures and documents in
    the assistant's messages move into the user's next one."""
    model = context.model_of(request)
    messages = request.body["messages"]
    if model is None:
        return request
    lead = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    if lead:
        head = [block for m in messages[:lead] for block in as_blocks(m.get("content")) if block.get("type") == "text"]
        system = [*as_blocks(request.body.get("system")), *(block for block in head if not is_blank(block))]
        more = {"system": system} if system else {}
        request = request.but(
            "fit_roles",
            "Moved the system messages at the beginning into the system prompt.",
            messages=messages[lead:],
            **more,
        )
        messages = messages[lead:]
    placed = place_system(messages, allowed=model.system_messages)
    if placed != messages:
        request = request.but("fit_roles", "Sent system messages inside the chat as marked user text.", messages=placed)
    moved = move_pictures(placed)
    if moved != placed:
        request = request.but("fit_roles", "Moved pictures out of the assistant's messages.", messages=moved)
    if context.learned(request, "alternate"):
        request = joined(request)
    if context.learned(request, "user_first") and moved[0]["role"] != "user":
        first = user_message(text_block(START))
        request = request.but(
            "fit_roles", "Put a short user message in front.", messages=[first, *request.body["messages"]]
        )
    return request


def place_system(messages: list[Message], *, allowed: bool) -> list[Message]:
    """The messages with system ones only where they may stand: behind a user turn, before an assistant turn or at the
    end, holding text alone."""
    new: list[Message] = []
    for i, message in enumerate(messages):
        if message["role"] != "system":
            new.append(message)
            continue
        following = next((m["role"] for m in messages[i + 1 :] if m["role"] != "system"), "assistant")
        behind_user = bool(new) and new[-1]["role"] in ("user", "system")
        only_text = all(block.get("type") == "text" for block in as_blocks(message.get("content")))
        if allowed and behind_user and following == "assistant" and only_text:
            new.append(message)
        elif notes := [as_note(block) for block in as_blocks(message.get("content")) if not is_blank(block)]:
            new.append(user_message(*notes))
    return new


def as_note(block: Block) -> Block:
    return {**block, "text": f"[System note: {block['text']}]"} if block.get("type") == "text" else block


def move_pictures(messages: list[Message]) -> list[Message]:
    """No image or document in an assistant's message: the API takes them from users alone."""
    new: list[Message] = []
    waiting: list[Block] = []
    for message in messages:
        if message["role"] == "assistant":
            blocks = as_blocks(message.get("content"))
            found = [block for block in blocks if block.get("type") in ("image", "document")]
            if found:
                waiting += found
                message = {**message, "content": [b for b in blocks if b.get("type") not in ("image", "document")]}
                if not message["content"]:
                    continue
        elif waiting and message["role"] == "user":
            message = {**message, "content": [*waiting, *as_blocks(message.get("content"))]}
            waiting = []
        new.append(message)
    return [*new, user_message(*waiting)] if waiting else new


def joined(request: ChatRequest) -> ChatRequest:
    new: list[Message] = []
    for message in request.body["messages"]:
        if new and new[-1]["role"] == message["role"]:
            both = [*as_blocks(new[-1].get("content")), *as_blocks(message.get("content"))]
            new[-1] = {**new[-1], "content": both}
        else:
            new.append(message)
    if len(new) == len(request.body["messages"]):
        return request
    return request.but("fit_roles", "Joined neighbouring messages of one side.", messages=new)
