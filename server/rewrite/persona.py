"""Step: the persona named in the path."""

from __future__ import annotations

from typing import Any

from server.content import answers_tools, as_blocks, asks_to_think, text_block
from server.request import ChatRequest
from server.rewrite.context import Context


def add_persona(request: ChatRequest, context: Context) -> ChatRequest:
    """Adds the persona of the URL: its system text in front, its suffix behind the last user message, its settings
    where the request has none."""
    persona = context.persona
    if persona is None:
        return request
    body = dict(request.body)
    if persona.system:
        body["system"] = [text_block(persona.system), *as_blocks(body.get("system"))]
    suffix = persona.suffix_thinking if asks_to_think(request.body) and persona.suffix_thinking else persona.suffix
    if suffix:
        body["messages"] = with_suffix(body["messages"], suffix)
    settings = {key: value for key, value in persona.settings.items() if key not in body}
    if request.counting:
        settings = {}
    return request.but("add_persona", f"Added the persona “{persona.name}”.", **{**body, **settings})


def with_suffix(messages: list[dict[str, Any]], suffix: str) -> list[dict[str, Any]]:
    """The messages with `suffix` as last text of the last message in which the user speaks, so that it keeps its place
    while tools are called; as a message of its own where there is none."""
    for i in range(len(messages) - 1, -1, -1):
        if messages[i]["role"] == "user" and not answers_tools(messages[i]):
            message = {**messages[i], "content": [*as_blocks(messages[i].get("content")), text_block(suffix)]}
            return [*messages[:i], message, *messages[i + 1 :]]
    return [*messages, {"role": "user", "content": [text_block(suffix)]}]
