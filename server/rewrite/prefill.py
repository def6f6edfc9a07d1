"""Step: the opening words of a reply, and replies to be continued."""

from __future__ import annotations

import re
from typing import Any

from server.content import THOUGHTS, Message, as_blocks, asks_to_think, is_blank, said, text_block, user_message
from server.request import ChatRequest
from server.rewrite.context import Context

LONGEST_OPENING = 300  # characters; a reply that ran into the usual length limits of 300 tokens and more is longer
SHORT = 40
# Where a sentence, a gesture in asterisks or a line of speech is over.
ENDED = re.compile(r"[.!?…。！？][\"'”’»*_)\]]*$|[*”»\")\]}>]$")
RESULT_OF_SERVER_TOOL = re.compile(r"server_tool_use|_tool_result$")


def fit_prefill(request: ChatRequest, context: Context) -> ChatRequest:
    """Keeps the meaning of a chat that ends with the assistant's words on models that refuse that: the words stay, and
    a short instruction follows. Opening words are asked for at the start of the reply; a reply that broke off is to go
    on without repeating. On models that take opening words, thinking gives way to them."""
    model = context.model_of(request)
    messages = request.body["messages"]
    if model is None or not messages or messages[-1]["role"] != "assistant" or is_paused(messages[-1]):
        return request
    if model.prefill:
        return natively(request)
    words = said(messages[-1].get("content")).strip()
    if words and is_opening(words):
        asked = (
            "[The words above are only the beginning of your reply. Write the whole reply now: start it with exactly "
            f"these words, once, and go on from there without any remark: “{words}”]"
        )
        detail = f"Asked for the opening words in an instruction: {model.display_name} takes no prefilled reply."
    else:
        asked = (
            "[Continue your last message from exactly where it stops, in the middle of the sentence if need be. "
            "Repeat nothing of it and add no remark.]"
        )
        detail = f"Asked to continue in an instruction: {model.display_name} takes no prefilled reply."
    return request.but("fit_prefill", detail, messages=[*messages, user_message(text_block(asked))])


def is_opening(words: str) -> bool:
    """Whether these are words to begin a reply with, not a reply to be continued: few, or cut in the middle."""
    return len(words) <= SHORT or (len(words) <= LONGEST_OPENING and "\n\n" not in words and not ENDED.search(words))


def is_paused(message: Message) -> bool:
    """Whether a reply stopped for a server's tool (`pause_turn`): it goes back as it is, on every model."""
    blocks = as_blocks(message.get("content"))
    return bool(blocks) and bool(RESULT_OF_SERVER_TOOL.search(str(blocks[-1].get("type"))))


def natively(request: ChatRequest) -> ChatRequest:
    """A prefill for a model that takes it: without thinking, and without blanks at its end, which are refused."""
    messages: list[Message] = request.body["messages"]
    last = messages[-1]
    content = last.get("content")
    blocks = as_blocks(content)
    if not blocks or all(is_blank(block) for block in blocks):
        return request
    end = blocks[-1]
    if end.get("type") == "text" and end["text"] != end["text"].rstrip():
        trimmed = end["text"].rstrip()
        new: Any = trimmed if isinstance(content, str) else [*blocks[:-1], {**end, "text": trimmed}]
        request = request.but(
            "fit_prefill",
            "Cut blanks off the end of the opening words, which the API refuses.",
            messages=[*messages[:-1], {**last, "content": new}],
        )
    if asks_to_think(request.body) and blocks[0].get("type") not in THOUGHTS:
        detail = "Switched thinking off: a reply with opening words cannot begin with it."
        request = request.without("fit_prefill", detail, "thinking")
    return request
