"""Step: temperature, top_p and top_k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.content import asks_to_think
from server.models import SAMPLERS
from server.request import ChatRequest
from server.rewrite.context import Context

VERSION_WITHOUT_SAMPLERS = "2026-10-21"  # refuses all three on every model, even at their defaults


def fit_sampling(request: ChatRequest, context: Context) -> ChatRequest:
    """Sends only the sampling parameters the model takes: newer models refuse all three, the 4.5 and 4.6 ones take
    `temperature` or `top_p`, not both, and with thinking on next to none. Values out of range become the nearest
    allowed one, as a temperature of 1.3, which other services take."""
    mode = context.options.filter_sampling_params
    if mode == "false" or not any(key in request.body for key in SAMPLERS):
        return request
    if mode == "auto":
        request = in_range(request, context)
    drop, why = (classic_rule(request.body), "the classic rule") if mode == "true" else unfit(request, context)
    drop = tuple(key for key in drop if key in request.body)
    if not drop:
        return request
    return request.without("fit_sampling", f"Left out {' and '.join(drop)}: {why}.", *drop)


def in_range(request: ChatRequest, context: Context) -> ChatRequest:
    """The request with each sampler a number within its range (0 to 1, `top_k` whole from -1), or left out."""
    if context.model_of(request) is None:
        return request
    given = {key: request.body[key] for key in SAMPLERS if key in request.body}
    fitted = {key: number(key, value) for key, value in given.items()}
    empty = tuple(key for key, value in fitted.items() if value is None)
    if empty:
        request = request.without("fit_sampling", f"Left out {' and '.join(empty)}: it is no number.", *empty)
    moved = {key: value for key, value in fitted.items() if value is not None and not same(value, given[key])}
    if moved:
        listed = " and ".join(f"{key} to {value:g}" for key, value in moved.items())
        request = request.but("fit_sampling", f"Set {listed}, the nearest the API takes.", **moved)
    return request


def number(key: str, value: Any) -> float | int | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    if key == "top_k":
        return value if isinstance(value, int) and value >= -1 else int(max(-1, min(value, 1_000_000)))
    return value if 0 <= value <= 1 else 0 if value < 0 else 1


def same(a: float | int, b: Any) -> bool:
    return type(a) is type(b) and a == b


def unfit(request: ChatRequest, context: Context) -> tuple[tuple[str, ...], str]:
    """Which samplers the model refuses, and why (anthropic-version and model rules as of 2026-11)."""
    body, model = request.body, context.model_of(request)
    if request.version >= VERSION_WITHOUT_SAMPLERS:
        return SAMPLERS, f"version {request.version} of the API takes none"
    if model is None:
        return (), ""
    if model.sampling == "none":
        return SAMPLERS, f"{model.display_name} takes none"
    off = "thinking" in body and not asks_to_think(body)
    if asks_to_think(body) or (not off and (model.thinks_by_default or context.learned(request, "thinking_samplers"))):
        clash = [key for key in SAMPLERS if key in body and not fits_thinking(key, body[key])]
        if model.sampling == "one" and "top_p" in body and not {"temperature", "top_p"} & set(clash):
            clash.append("temperature")  # which is 1, its default
        return tuple(clash), "it cannot be used while the model thinks"
    if model.sampling == "both" or "temperature" not in body or "top_p" not in body:
        return (), ""
    return classic_rule(body), f"{model.display_name} takes only one of the two"


def fits_thinking(key: str, value: Any) -> bool:
    return (key == "temperature" and bool(value == 1)) or (key == "top_p" and bool(value >= 0.95))


def classic_rule(body: Mapping[str, Any]) -> tuple[str, ...]:
    """With both temperature and top_p: the one at its default 1.0 goes, else top_p; a lone value at 1.0 goes too."""
    temperature, top_p = body.get("temperature"), body.get("top_p")
    if temperature is not None and top_p is not None:
        if temperature == 1 and top_p == 1:
            return "temperature", "top_p"
        return ("temperature",) if temperature == 1 else ("top_p",)
    return tuple(key for key in ("temperature", "top_p") if body.get(key) == 1)
