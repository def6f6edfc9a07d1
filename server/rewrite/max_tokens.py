"""Step: the length of the reply."""

from __future__ import annotations

from typing import Any

from server.models import Model
from server.request import ChatRequest
from server.rewrite.context import Context

LEAST_BUDGET = 1_024  # the API's own
USUAL = 4_096  # where the front end says nothing
# Room for thinking that sets its own length, by effort: `max_tokens` counts it too, and a reply may come out empty.
ROOM = {"low": 2_048, "medium": 4_096, "high": 8_192, "xhigh": 16_384, "max": 32_768}


def fit_max_tokens(request: ChatRequest, context: Context) -> ChatRequest:
    """Fills in a missing reply length, cuts one above the model's limit, and adds room for thinking to a short one, so
    that thinking cannot eat up the reply."""
    model = context.model_of(request)
    if request.counting or model is None:
        return request
    given = request.body.get("max_tokens")
    least, most = 1, model.max_output
    if room := context.learned(request, "room"):
        most = min(most, int(room[-1]))
    wanted = given if isinstance(given, int) and not isinstance(given, bool) and given >= 0 else USUAL
    if wanted == 0 and not may_be_zero(request.body):
        wanted = USUAL
    if wanted == 0:
        return request
    thinking = request.body.get("thinking") or {}
    budget = thinking.get("budget_tokens") if thinking.get("type") == "enabled" else None
    tokens = with_room(wanted, budget, effort_of(request, model), thinks(thinking, model))
    tokens = max(least, min(tokens, most))
    if isinstance(budget, int) and budget >= tokens:
        smaller = max(tokens // 2, LEAST_BUDGET)
        new: dict[str, Any] = {**request.body, "thinking": {**thinking, "budget_tokens": smaller}}
        if smaller >= tokens:
            del new["thinking"]
        request = request.noted("fit_max_tokens", "Cut thinking to what fits into the reply.", body=new)
    if tokens == given:
        return request
    return request.but("fit_max_tokens", told(given, wanted, tokens, most, model), max_tokens=tokens)


def with_room(wanted: int, budget: Any, effort: str, thinks_freely: bool) -> int:
    if isinstance(budget, int):
        return wanted + budget if wanted <= budget else wanted
    room = ROOM.get(effort, ROOM["high"])
    return wanted + room if thinks_freely and wanted < room else wanted


def thinks(thinking: dict[str, Any], model: Model) -> bool:
    """Whether it thinks without a budget."""
    return thinking.get("type") == "adaptive" or (not thinking and model.thinks_by_default)


def effort_of(request: ChatRequest, model: Model) -> str:
    return str((request.body.get("output_config") or {}).get("effort") or model.default_effort)


def may_be_zero(body: Any) -> bool:
    """Whether 0 is meant as it is documented: fill the cache and write nothing."""
    thinking, config, choice = (body.get(key) or {} for key in ("thinking", "output_config", "tool_choice"))
    return not (
        body.get("stream")
        or thinking.get("type") == "enabled"
        or config.get("format")
        or choice.get("type") in ("any", "tool")
    )


def told(given: Any, wanted: int, tokens: int, most: int, model: Model) -> str:
    if tokens == most and wanted > most:
        return f"Cut the reply length to {tokens:,} tokens, the most there is room for on {model.display_name}."
    if tokens > wanted:
        return f"Raised max_tokens from {wanted:,} to {tokens:,}: it counts thinking too, which could eat up the reply."
    return (
        f"No reply length was set; used {tokens:,} tokens."
        if not given
        else f"Set the reply length to {tokens:,} tokens."
    )
