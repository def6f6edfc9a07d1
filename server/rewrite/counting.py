"""Step: requests that only count tokens."""

from __future__ import annotations

from server.request import ChatRequest
from server.rewrite.context import Context

GENERATION = (
    *("max_tokens", "stream", "stop_sequences", "metadata", "service_tier", "temperature", "top_p", "top_k"),
    *("container", "diagnostics", "inference_geo"),
)


def fit_counting(request: ChatRequest, context: Context) -> ChatRequest:
    """Takes the fields for writing a reply (max_tokens, stream, samplers …) out of requests that only count tokens:
    `/count_tokens` refuses them."""
    extra = tuple(key for key in GENERATION if key in request.body) if request.counting else ()
    if not extra:
        return request
    return request.without("fit_counting", f"Left out {', '.join(extra)}: counting takes none.", *extra)
