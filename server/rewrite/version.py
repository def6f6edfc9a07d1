"""Step: the header `anthropic-version`, and what its newest value refuses."""

from __future__ import annotations

import re
from dataclasses import replace

from server.content import Block, untouched, with_messages
from server.request import ChatRequest
from server.rewrite.context import Context

CLASSIC, NEWEST = "2023-06-01", "2026-10-21"


def fit_version(request: ChatRequest, context: Context) -> ChatRequest:
    """Speaks version 2023-06-01 of the API where the front end asks for one that never was. Under 2026-10-21 it takes
    citations out of the user's texts, which that version refuses."""
    version = request.version
    taught = context.learned(request, "version")
    wrong = not re.fullmatch(r"20\d\d-\d\d-\d\d", version) or (version < NEWEST and version != CLASSIC)
    if context.anthropic_upstream and (wrong or (taught and version != taught[-1])):
        version = taught[-1] if taught else CLASSIC
        request = replace(request.noted("fit_version", f"Spoke version {version} of the API."), version=version)
    if version < NEWEST:
        return request
    messages = with_messages(request.body["messages"], without_citations, roles=("user",))
    if untouched(messages, request.body["messages"]):
        return request
    return request.but(
        "fit_version", f"Took citations out of the user's texts: version {version} refuses them.", messages=messages
    )


def without_citations(block: Block) -> list[Block]:
    if block.get("type") != "text" or not block.get("citations"):
        return [block]
    return [{key: value for key, value in block.items() if key != "citations"}]
