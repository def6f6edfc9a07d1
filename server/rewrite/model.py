"""Step: which model is asked."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from server.errors import ProxyError
from server.models import Model, plain
from server.request import ChatRequest
from server.rewrite.context import Context


def choose_model(request: ChatRequest, context: Context) -> ChatRequest:
    """Fills in the model where the request names none (the persona's, else the setting `default_model`), and puts names
    as other services write them (`anthropic/claude-…`, `-latest`, `claude-opus-4.5`) into Anthropic's own spelling. For
    a retired model it names the successor, or asks that one (setting `replace_retired_models`)."""
    if not request.model:
        named = (context.persona.model if context.persona else "") or context.options.default_model
        if not named:
            raise ProxyError(
                400, "model: the request names no model. Choose one in your front end, or set default_model."
            )
        request = request.but("choose_model", f"No model was named; used {named}.", model=named)
    if not context.anthropic_upstream:
        return request
    name, model = request.model, context.models.find(request.model)
    if model is not None and model.gone(context.now):
        return replaced(request, model, context)
    right = name if model is not None and name in (model.id, *model.aliases) else model.id if model else own_name(name)
    if right == name:
        return request
    return request.but("choose_model", f"Wrote the model's name as Anthropic does: {right}.", model=right)


def replaced(request: ChatRequest, gone: Model, context: Context) -> ChatRequest:
    successor, seen = gone, {gone.id}
    while successor.gone(context.now) and successor.successor not in seen | {""}:
        seen.add(successor.successor)
        successor = context.models.like(successor.successor)
    when = gone.retired or gone.retires
    since = f" on {datetime(when.year, when.month, when.day, tzinfo=UTC):%d %B %Y}" if when else ""
    if not context.options.replace_retired_models:
        raise ProxyError(
            404,
            f"{gone.display_name} was retired{since}. Choose {successor.display_name} ({successor.id}) in your front "
            "end instead, or set replace_retired_models=true to have it used by itself.",
        )
    detail = f"{gone.display_name} was retired{since}; asked its successor {successor.display_name}."
    return request.but("choose_model", detail, model=successor.id)


def own_name(name: str) -> str:
    """A Claude model's name that is not in the table, without what other providers put around it."""
    return plain(name) if re.search(r"(?:^|[/.:])claude-", name.strip().lower()) else name
