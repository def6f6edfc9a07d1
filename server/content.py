"""Content as blocks: the one shape everything works on, and what stands in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from server.models import Model

Block = dict[str, Any]
Message = dict[str, Any]

THOUGHTS = ("thinking", "redacted_thinking")
THINKING_OFF = ("disabled", "between_tools", "off", "none")
NOTHING_SAID = "[No text]"  # stands in where nothing is left of a chat


def text_block(text: str) -> Block:
    return {"type": "text", "text": text}


def as_blocks(content: str | list[Block] | None) -> list[Block]:
    """`system` or a message's `content` as a list of blocks; none for null, absent and "", which the API refuses."""
    if isinstance(content, str):
        return [text_block(content)] if content else []
    return content or []


def user_message(*blocks: Block) -> Message:
    return {"role": "user", "content": list(blocks)}


def is_blank(block: Mapping[str, Any]) -> bool:
    """A text without a letter in it, which the API refuses."""
    if block.get("type") != "text":
        return False
    text = str(block.get("text") or "")
    return not text or text.isspace()


def said(content: str | list[Block] | None) -> str:
    """The text of some content, block after block."""
    return "".join(str(block.get("text") or "") for block in as_blocks(content) if block.get("type") == "text")


def inner_blocks(block: Block) -> list[Block]:
    """The blocks inside a tool result."""
    content = block.get("content") if block.get("type") == "tool_result" else None
    return [inner for inner in content if isinstance(inner, dict)] if isinstance(content, list) else []


def is_thought(block: Mapping[str, Any]) -> bool:
    return block.get("type") in THOUGHTS


def answers_tools(message: Mapping[str, Any]) -> bool:
    """Whether a user message brings results of tool calls."""
    return any(block.get("type") == "tool_result" for block in as_blocks(message.get("content")))


def loop_start(messages: list[Message]) -> int:
    """Where the open tool loop at the end begins: behind the last message in which a person speaks. There is none where
    the assistant's words stand at the end."""
    ending = as_blocks(messages[-1].get("content")) if messages and messages[-1].get("role") == "assistant" else []
    if ending and "tool" not in str(ending[-1].get("type")):  # neither a call nor what a server's tool brought
        return len(messages)
    for i in range(len(messages) - 1, -1, -1):
        if messages[i].get("role") == "user" and not answers_tools(messages[i]):
            return i + 1
    return 0


def turns_of(messages: Iterable[Message]) -> list[list[Message]]:
    """The messages, neighbours of one role together."""
    turns: list[list[Message]] = []
    for message in messages:
        if turns and turns[-1][0]["role"] == message["role"]:
            turns[-1].append(message)
        else:
            turns.append([message])
    return turns


def images_of(messages: Iterable[Message]) -> Iterator[Block]:
    """Every image block of the messages, those inside tool results too."""
    for message in messages:
        for block in as_blocks(message.get("content")):
            yield from (one for one in (block, *inner_blocks(block)) if one.get("type") == "image")


def image_digest(image: Mapping[str, Any]) -> str:
    """A picture's name among what models refused: a hash of its data, or of its address."""
    source = image.get("source")
    source = source if isinstance(source, dict) else {}
    return short_digest(source.get("data") or source.get("url") or source.get("file_id"))


def thought_digest(thought: Mapping[str, Any]) -> str:
    """A thinking block's name among what models refused: a hash of its signature."""
    return short_digest(thought.get("signature") or thought.get("data"))


def short_digest(what: object) -> str:
    return hashlib.blake2b(str(what or "").encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def asks_to_think(body: Mapping[str, Any]) -> bool:
    """Whether the request itself asks for thinking."""
    thinking = body.get("thinking")
    return bool(thinking) and isinstance(thinking, dict) and thinking.get("type") not in THINKING_OFF


def by_budget(thinking: Mapping[str, Any] | None, model: Model) -> bool:
    """Whether thinking that is asked for becomes, or stays, `enabled` with a budget on this model."""
    if not thinking or thinking.get("type") in THINKING_OFF or "enabled" not in model.thinking:
        return False
    kind = thinking.get("type")
    return (
        "adaptive" not in model.thinking
        or kind == "enabled"
        or (kind != "adaptive" and bool(thinking.get("budget_tokens")))
    )


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def untouched(new: Iterable[Any], old: Iterable[Any]) -> bool:
    """Whether these are the very same objects."""
    return all(a is b for a, b in zip(new, old, strict=True))


def with_blocks(blocks: list[Block], change: Callable[[Block], list[Block]]) -> list[Block]:
    """The blocks, each as what `change` makes of it: none, itself or others; first those inside tool results.

    What does not change stays the same object, the list included.
    """
    new: list[Block] | None = None
    for i, block in enumerate(blocks):
        inner = block.get("content") if block.get("type") == "tool_result" else None
        if isinstance(inner, list) and all(isinstance(part, dict) for part in inner):
            changed = with_blocks(inner, change)
            block = block if changed is inner else {**block, "content": changed}
        made = change(block)
        if new is None and not (len(made) == 1 and made[0] is blocks[i]):
            new = blocks[:i]
        if new is not None:
            new += made
    return blocks if new is None else new


def with_messages(
    messages: list[Message],
    change: Callable[[Block], list[Block]],
    roles: tuple[str, ...] = ("user", "assistant", "system"),
) -> list[Message]:
    """The messages of these roles with their blocks changed. One without blocks left is left out: the API joins its
    neighbours, and refuses empty ones."""
    new: list[Message] = []
    for message in messages:
        blocks = as_blocks(message.get("content")) if message.get("role") in roles else []
        changed = with_blocks(blocks, change)
        if changed is blocks:
            new.append(message)
        elif changed:
            new.append({**message, "content": changed})
    return new


def marked(body: dict[str, Any]) -> Iterator[Block]:
    """Every object of a body that may carry `cache_control`: the body itself, tools, system blocks, content blocks and
    the blocks inside tool results."""
    yield body
    yield from (tool for tool in body.get("tools") or () if isinstance(tool, dict))
    yield from as_blocks(body.get("system"))
    for message in body["messages"]:
        for block in as_blocks(message.get("content")):
            yield block
            yield from inner_blocks(block)
