"""What can go wrong, as the person at the chat window reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Anthropic's error types by status (API reference, read 2026-11); the framework's own statuses borrow the nearest one.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def type_of(status: int) -> str:
    """The `error.type` that goes with a status: 405, 415, 417, 431 count as invalid requests, 5xx as `api_error`."""
    return TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


class ProxyError(Exception):
    """An error of ours, in Anthropic's own shape.

    SillyTavern shows `error.message` alone, for four seconds: it says what happened and what to do.
    """

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        return type_of(self.status)

    def body(self, request_id: str = "") -> dict[str, Any]:
        """The JSON body; `request_id` is that of the receipt, or the upstream's own."""
        error = {"type": self.type, "message": self.message}
        return {"type": "error", "error": error, "request_id": request_id or None}

    def event(self, request_id: str = "") -> bytes:
        """The same error for a reply that has begun to stream: one event, on one data line."""
        return b"event: error\ndata: " + json.dumps(self.body(request_id)).encode() + b"\n\n"
