"""What is refused in system and messages: roles, empty texts, prefill, edited thinking, misplaced cache marks."""

from __future__ import annotations

from server.practice.asked import Asked
from server.practice.blocks import THOUGHTS, inner
from server.practice.headers import VERSIONS
from server.practice.shape import SERVER_BLOCKS
from server.practice.signatures import befores, digest, read_signature

MOST_MESSAGES = 100_000
MOST_MARKS = 4


def required_system_line(asked: Asked) -> str | None:
    """A subscription's token serves Claude Code alone, which its system prompt begins with saying."""
    first = next((b.content["text"] for b in asked.blocks if b.place == "system"), "")
    if asked.kind == "subscription" and not first.startswith(asked.required_line):
        return "This credential is only authorized for use with Claude Code and cannot be used for other API requests."
    return None


def number_of_messages(asked: Asked) -> str | None:
    if not asked.messages:
        return "messages: at least one message is required"
    if len(asked.messages) > MOST_MESSAGES:
        return f"messages: List should have at most {MOST_MESSAGES} items"
    return None


def empty_messages(asked: Asked) -> str | None:
    """Only a prefill may be empty."""
    for i, message in enumerate(asked.messages):
        is_prefill = 0 < i == len(asked.messages) - 1 and message["role"] == "assistant"
        if not message["content"] and not is_prefill:
            only = "except for the optional final assistant message"
            return f"messages.{i}: all messages must have non-empty content {only}"
    return None


def system_messages(asked: Asked) -> str | None:
    """A system message follows a user turn, and precedes an assistant turn or ends the conversation."""
    roles = [message["role"] for message in asked.messages]
    if "system" not in roles:
        return None
    if not asked.model.system_messages:
        return "role 'system' is not supported on this model"
    if roles[0] == "system":
        return "messages.0: use the top-level 'system' parameter for the initial system prompt"
    for i, turn in enumerate(asked.turns):
        if turn.role != "system":
            continue
        if any(block.kind != "text" for block in turn.blocks):
            return f"{turn.at}: a 'system' message may only contain text"
        if asked.turns[i - 1].role != "user":
            return f"{turn.at}: a 'system' message must follow a 'user' message"
        if i + 1 < len(asked.turns) and asked.turns[i + 1].role != "assistant":
            return f"{turn.at}: a 'system' message must precede an 'assistant' message or end the array"
    return None


def prefill(asked: Asked) -> str | None:
    """A reply broken off for a server's tool (`pause_turn`) is sent back as the last message on every model."""
    if asked.messages[-1]["role"] != "assistant":
        return None
    blocks = asked.turns[-1].blocks if asked.messages[-1]["content"] else []
    if blocks and (blocks[-1].kind in SERVER_BLOCKS):
        return None
    if not asked.model.prefill:
        return "This model does not support assistant message prefill. The conversation must end with a user message."
    if not blocks:
        return None
    first, last = blocks[0], blocks[-1]
    if asked.thinks and first.kind not in THOUGHTS:
        return (
            f"{first.path}.type: Expected `thinking` or `redacted_thinking`, but found `{first.kind}`. When `thinking` "
            "is enabled, a final `assistant` message must start with a thinking block."
        )
    if last.kind == "text" and last.content["text"] != last.content["text"].rstrip():
        return "messages: final assistant content cannot end with trailing whitespace"
    return None


def empty_texts(asked: Asked) -> str | None:
    for block in asked.blocks:
        if block.kind != "text" or block.content["text"].strip():
            continue
        if block.mark and not block.content["text"]:
            return f"{block.path}.text: cache_control cannot be set for empty text blocks"
        lacking = "contain non-whitespace text" if block.content["text"] else "be non-empty"
        return f"{block.place}: text content blocks must {lacking}"
    return None


def newest_version(asked: Asked) -> str | None:
    """What version 2026-10-21 refuses beside the samplers, which its body does not have."""
    if asked.version == VERSIONS[0]:
        return None
    for block in asked.blocks:
        if block.role == "assistant" and block.kind == "document":
            return f"{block.path}: `document` blocks are not permitted in `assistant` messages"
        if block.role == "user" and block.kind == "text" and block.content.get("citations"):
            return f"{block.path}.text.citations: citations are not permitted on `text` blocks in `user` messages"
    return None


def thinking_blocks(asked: Asked) -> str | None:
    """A thinking block sent back must be as it was; on newer models everything before it, too.

    Blocks of another model are dropped silently. The text may be missing: that is how it arrives when it is omitted.
    """
    if not any(block.kind == "thinking" for block in asked.blocks):
        return None
    last_turn = next((turn.blocks for turn in reversed(asked.turns) if turn.role == "assistant"), [])
    binding = asked.thinking.get("block_binding") or {}
    bound = asked.model.binds_thinking and binding.get("prefix_mismatch_behavior") != "drop_block"
    for block, before in zip(asked.blocks, befores(asked.blocks), strict=False):
        if block.kind != "thinking":
            continue
        signature = read_signature(block.content["signature"])
        if signature is None:
            return f"{block.path}: Invalid `signature` in `thinking` block"
        if signature.model != asked.model.id:
            continue
        if block.content["thinking"] and digest(block.content["thinking"]) != signature.thought:
            if block in last_turn:
                return (
                    f"{block.path}: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be "
                    "modified. These blocks must remain as they were in the original response."
                )
            return f"{block.path}: Invalid `signature` in `thinking` block"
        if bound and before != signature.before:
            return (
                f"{block.path}: Invalid `signature` in `thinking` block. The block is bound to a different "
                "conversation. Remove the block, or set `thinking.block_binding.prefix_mismatch_behavior` to "
                '"drop_block".'
            )
    return None


def cache_marks(asked: Asked) -> str | None:
    """At most four, a top-level one and those inside tool results included, and none for an hour behind one for five
    minutes."""
    marked = [
        (block.path, mark.get("ttl", "5m"))
        for block in asked.blocks
        for mark in (*(part.get("cache_control") for part in inner(block.content)), block.mark)
        if mark
    ]
    if automatic := asked.body.get("cache_control"):
        lifetime = automatic.get("ttl", "5m")
        last = next((block for block in reversed(asked.blocks) if block.markable), None)
        if last and last.mark and last.mark.get("ttl", "5m") != lifetime:
            return f"cache_control.ttl: the last block already has another ttl: '{last.mark.get('ttl', '5m')}'"
        marked.append(("", lifetime))
    if len(marked) > MOST_MARKS:
        return f"A maximum of {MOST_MARKS} blocks with cache_control may be provided. Found {len(marked)}."
    five_minutes = False
    for path, lifetime in marked:
        if lifetime == "1h" and five_minutes:
            return (
                f"{path}.cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' "
                "cache_control block. Note that blocks are processed in the following order: `tools`, `system`, "
                "`messages`."
            ).lstrip(".")
        five_minutes |= lifetime == "5m"
    return None
