"""Step: the values of the `anthropic-beta` header."""

from __future__ import annotations

import re
from dataclasses import replace

from server.request import ChatRequest
from server.rewrite.context import Context

OAUTH = "oauth-2025-04-20"  # asked for with every sign-in token, never with a key
# SillyTavern sends the first two with every model; longer output and context need no header on any model of today,
# and are refused on accounts without that beta. The others are obsolete (Anthropic SDK types, 2026-11).
DROPPED = {"output-128k-2025-02-19", "context-1m-2025-08-07", "tools-2024-05-16"}


def fit_betas(request: ChatRequest, context: Context) -> ChatRequest:
    """Leaves out beta values of the past that some accounts refuse, and adds the one that sign-in tokens need."""
    refused = {beta for value in context.learned(request, "beta") for beta in value.split()}
    dropped = tuple(
        b for b in request.betas if b in DROPPED | refused or not re.fullmatch(r"[\w.-]{1,100}", b, re.ASCII)
    )
    kept = tuple(beta for beta in request.betas if beta not in dropped)
    added = (OAUTH,) if context.kind != "api_key" and OAUTH not in kept else ()
    if not dropped and not added:
        return request
    named = ", ".join(beta if beta.isascii() and beta.isprintable() else "an unreadable one" for beta in dropped)
    parts = [f"left out {named[:300]}" if dropped else "", f"added {', '.join(added)}" if added else ""]
    detail = " and ".join(part for part in parts if part)
    return replace(request.noted("fit_betas", f"{detail[0].upper()}{detail[1:]}."), betas=(*kept, *added))
