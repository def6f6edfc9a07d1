"""What a reply's `usage` counts, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from server.models import Model, Models, whole

BATCH_FACTOR = 0.5
US_FACTOR = 1.1  # inference_geo "us"


def token_counts(usage: Mapping[str, Any]) -> dict[str, int]:
    """The five counters of a `usage` object. Cache writes without a lifetime count as 5 minutes, the API's default."""
    split = usage.get("cache_creation")
    split = split if isinstance(split, dict) else {}
    hour = whole(split.get("ephemeral_1h_input_tokens"))
    minutes = max(whole(usage.get("cache_creation_input_tokens")) - hour, whole(split.get("ephemeral_5m_input_tokens")))
    return {
        "input_tokens": whole(usage.get("input_tokens")),
        "cache_write_5m_tokens": minutes,
        "cache_write_1h_tokens": hour,
        "cache_read_tokens": whole(usage.get("cache_read_input_tokens")),
        "output_tokens": whole(usage.get("output_tokens")),
    }


class Fee(NamedTuple):
    """What a tool at Claude's side cost in one reply."""

    name: str  # its counter in usage.server_tool_use
    uses: int
    usd: float | None  # None: no known price


def fees_of(model: Model, usage: Mapping[str, Any]) -> list[Fee]:
    """The fees of a reply, besides its tokens."""
    used = usage.get("server_tool_use")
    counts = {name: whole(count) for name, count in used.items()} if isinstance(used, dict) else {}
    return [Fee(name, n, n * model.fees[name] if name in model.fees else None) for name, n in counts.items() if n]


def cost(model: Model, usage: Mapping[str, Any]) -> tuple[float, float] | None:
    """Dollars for a reply's `usage`, and what the same would have cost uncached; None where the price is not known."""
    unread, write_5m, write_1h, read, output_tokens = token_counts(usage).values()
    prompt = unread + read + write_5m + write_1h
    price = model.price_of(prompt)
    fees = [fee.usd for fee in fees_of(model, usage)]
    if price is None or None in fees:
        return None
    extra = sum(filter(None, fees))
    factor = 1e-6
    if usage.get("speed") == "fast":
        factor *= model.fast_factor or 1.0
    if usage.get("service_tier") == "batch":
        factor *= BATCH_FACTOR
    if usage.get("inference_geo") == "us":
        factor *= US_FACTOR
    output = output_tokens * price.output
    cached = unread * price.input + read * price.read + write_5m * price.write_5m + write_1h * price.write_1h
    return factor * (cached + output) + extra, factor * (prompt * price.input + output) + extra


def price(models: Models, model: str, usage: Mapping[str, Any]) -> tuple[float, float] | None:
    """Dollars for a reply's `usage`, and what it would have cost uncached; None for a model without a known price."""
    found = models.find(model)
    return cost(found, usage) if found else None
