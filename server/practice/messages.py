"""A reply in the shape of the API: as a message, and as the events it streams in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from server.practice.replies import Reply, pieces


def message(
    id: str, model: str, reply: Reply, signature: str, shows_thinking: bool, usage: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """The whole message. Omitted thinking is an empty text with a signature."""
    content: list[dict[str, Any]] = []
    if reply.thinking is not None:
        shown = reply.thinking if shows_thinking else ""
        content.append({"type": "thinking", "thinking": shown, "signature": signature})
    if reply.searched:
        content += search(id.replace("msg_", "srvtoolu_"))
    if reply.text:
        content.append({"type": "text", "text": reply.text})
    if reply.call:
        name, given = reply.call
        content.append({"type": "tool_use", "id": id.replace("msg_", "toolu_"), "name": name, "input": given})
    return {
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reply.stop_reason,
        "stop_sequence": reply.stop_sequence,
        "stop_details": None,
        "container": None,
        **more,
        "usage": usage,
    }


def search(id: str) -> list[dict[str, Any]]:
    """A search of the web and what it found: nothing, for nobody has left this computer."""
    called = {"type": "server_tool_use", "id": id, "name": "web_search", "input": {"query": "a practice search"}}
    return [called, {"type": "web_search_tool_result", "tool_use_id": id, "content": []}]


def events(whole: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The events of a streamed message, each with its name: the blocks word by word, the usage at start and end."""
    usage = whole["usage"]
    counted = {key: value for key, value in usage.items() if key != "output_tokens_details"} | {"output_tokens": 1}
    yield event(
        "message_start", message={**whole, "content": [], "stop_reason": None, "stop_sequence": None, "usage": counted}
    )
    yield event("ping")
    for i, block in enumerate(whole["content"]):
        yield event("content_block_start", index=i, content_block=emptied(block))
        for delta in deltas(block):
            yield event("content_block_delta", index=i, delta=delta)
        yield event("content_block_stop", index=i)
    end = {key: whole[key] for key in ("stop_reason", "stop_sequence", "stop_details", "container")}
    totals = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    final = {key: usage[key] for key in (*totals, "cache_creation", "output_tokens_details", "server_tool_use")}
    yield event("message_delta", delta=end, usage=final)
    yield event("message_stop")


def event(name: str, **data: Any) -> tuple[str, bytes]:
    return name, b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps({"type": name, **data}))


def emptied(block: Mapping[str, Any]) -> dict[str, Any]:
    """A content block as it starts, before its deltas."""
    empty = {"text": "", "thinking": "", "signature": "", "input": {}}
    return {key: empty.get(key, value) if key != "type" else value for key, value in block.items()}


def deltas(block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    match block["type"]:
        case "text":
            yield from ({"type": "text_delta", "text": piece} for piece in pieces(block["text"]))
        case "thinking":
            yield from ({"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"]))
            yield {"type": "signature_delta", "signature": block["signature"]}
        case "tool_use" | "server_tool_use":
            yield {"type": "input_json_delta", "partial_json": ""}
            for piece in pieces(orjson.dumps(block["input"]).decode()):
                yield {"type": "input_json_delta", "partial_json": piece}
