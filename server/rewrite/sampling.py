"""Step: temperature, top_p and top_k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.request import ChatRequest
from server.rewrite.context import Context
from server.rewrite.persona import thinks

SAMPLERS = ("temperature", "top_p", "top_k")
VERSION_WITHOUT_SAMPLERS = "2026-10-21"  # refuses all three on every model, even at their defaults


def fit_sampling(request: ChatRequest, context: Context) -> ChatRequest:
    """Sends only the sampling parameters the model takes: newer models refuse all three, the 4.5 and 4.6 ones take
    `temperature` or `top_p`, not both, and with thinking on next to none."""
    mode = context.options.filter_sampling_params
    if mode == "false" or not any(key in request.body for key in SAMPLERS):
        return request
    if mode == "true":
        drop, why = classic_rule(request.body), "the classic rule"
    else:
        drop, why = unfit(request, context)
    drop = tuple(key for key in drop if key in request.body)
    if not drop:
        return request
    return request.without("fit_sampling", f"Left out {' and '.join(drop)}: {why}.", *drop)


def unfit(request: ChatRequest, context: Context) -> tuple[tuple[str, ...], str]:
    """Which samplers the model refuses, and why (anthropic-version and model rules as of 2026-11)."""
    body, model = request.body, context.model_of(request)
    if request.version >= VERSION_WITHOUT_SAMPLERS:
        return SAMPLERS, f"version {request.version} of the API takes none"
    if model is None or model.sampling == "both":
        return (), ""
    if model.sampling == "none":
        return SAMPLERS, f"{model.id} takes none"
    absent = tuple(key for key in SAMPLERS if key in body and body[key] is None)
    if thinks(request):
        bad = tuple(
            key
            for key, fits in (
                ("temperature", body.get("temperature") == 1),
                ("top_k", False),
                ("top_p", in_range(body.get("top_p"), 0.95, 1)),
            )
            if key in body and not fits
        )
        both = "temperature" in body and "top_p" in body and not bad
        return (("temperature",) if both else bad), "they cannot be used while the model thinks"
    if body.get("temperature") is None or body.get("top_p") is None:
        return absent, "it is empty"
    return (*classic_rule(body), *absent), f"{model.id} takes only one of the two"


def classic_rule(body: Mapping[str, Any]) -> tuple[str, ...]:
    """With both temperature and top_p: the one at its default 1.0 goes, else top_p; a lone value at 1.0 goes too."""
    temperature, top_p = body.get("temperature"), body.get("top_p")
    if temperature is not None and top_p is not None:
        return ("temperature",) if temperature == 1 and top_p != 1 else ("top_p",) if temperature != 1 else ("temperature", "top_p")
    return tuple(key for key in ("temperature", "top_p") if body.get(key) == 1)


def in_range(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and low <= value <= high
