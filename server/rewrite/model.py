"""Step: which model is asked."""

from __future__ import annotations

from server.errors import ProxyError
from server.request import ChatRequest
from server.rewrite.context import Context


def choose_model(request: ChatRequest, context: Context) -> ChatRequest:
    """Fills in the model where the request names none: the persona's, else the setting `default_model`."""
    if request.model:
        return request
    named = (context.persona.model if context.persona else "") or context.options.default_model
    if not named:
        raise ProxyError(400, "model: the request names no model. Choose one in your front end, or set default_model.")
    return request.but("choose_model", f"No model was named; used {named}.", model=named)
