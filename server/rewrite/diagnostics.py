"""Step (opt-in, `cache_diagnostics`): Anthropic's API is asked to say itself why the cache is missed."""

from __future__ import annotations

from server.request import ChatRequest
from server.rewrite.context import Context


def ask_why(request: ChatRequest, context: Context, reply_before: str) -> ChatRequest:
    """The request with the id of its chat's last reply, with which the API compares it (Anthropic docs, 2026-09)."""
    options = context.options
    wanted = options.cache_diagnostics and context.anthropic_upstream and "ask_why" not in options.skip_steps
    refused = any(field.startswith("diagnostics") for field in context.learned(request, "field"))
    if not (wanted and reply_before) or refused or request.counting or "diagnostics" in request.body:
        return request
    detail = "Asked Anthropic to say why the cache is missed, if it is."
    return request.but("ask_why", detail, diagnostics={"previous_message_id": reply_before})
