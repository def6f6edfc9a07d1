"""How an account is doing: when a refusal makes it rest, and what rate-limit headers announce before one comes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from math import inf, isfinite, isnan
from typing import Any, Literal, NamedTuple

from server.days import moment
from server.explain import Refusal, rests_until

REST_SECONDS = 60.0  # for a 429 that does not say
REST_LEAST, REST_MOST = 1.0, 3600.0  # for per-minute limits
LONGEST_REST = 366 * 86400.0
GENTLE_SECONDS = 900.0  # after so long one request may try an account whose quota seemed used up for hours
STRAINED_SECONDS = 60.0  # for which others go before an account that failed
NEARLY_EMPTY = 0.95  # of a limit is used

Strain = Literal["", "failing", "nearly_empty"]
PER_MINUTE = ("requests", "tokens", "input-tokens", "output-tokens")
UNIFIED = "anthropic-ratelimit-unified-"
REGAIN = re.compile(r"regain access on (\d{4}-\d{2}-\d{2})(?: at (\d{2}:\d{2}) UTC)?")


class Rest(NamedTuple):
    """An account's pause. It ends at `until`, or when the clock has been set back before its beginning."""

    since: float
    until: float  # unix seconds; inf = until the owner wakes it
    reason: str
    tried_at: float = 0.0  # when a request was last let through in spite of it

    def holds(self, now: float) -> bool:
        return self.since - 60 <= now < self.until

    def may_be_over(self, now: float) -> bool:
        """Whether one request may see if the quota is back early: once in a quarter of an hour, not shortly before the
        end, and never where only the owner can end it."""
        return now - max(self.since, self.tried_at) >= GENTLE_SECONDS and GENTLE_SECONDS <= self.until - now < inf


def longer_rest(old: Rest | None, until: float, reason: str, now: float) -> Rest:
    """The rest that follows from a new refusal: at least a second, and never shorter than the one that holds. An end
    beyond a year is none."""
    end = now + 60 if isnan(until) else inf if until > now + LONGEST_REST else max(until, now + 1)
    return old if old and old.holds(now) and old.until >= end else Rest(now, end, reason)


def rest_after(refusal: Refusal, now: float) -> float | None:
    """Until when a refusal lets its account rest; None: it is not about the account's limits.

    Per-minute limits end when `retry-after` or their reset says, within the hour; a plan's quota (5 hours, 7 days) at
    its reset, however far. A spend cap or missing credit ends when the owner wakes the account, or on the day named.
    """
    if refusal.says("specified api usage limits"):
        return named_day(refusal.message) or inf
    if refusal.is_unpaid or refusal.code.endswith("spend_limit_reached"):
        return inf
    if refusal.status != 429:
        return None
    quota = moment(refusal.headers.get(f"{UNIFIED}reset", ""), now)
    if quota is not None:
        return max(quota, now + REST_LEAST)
    until = rests_until(refusal.headers, now)
    return now + (REST_SECONDS if until is None else min(max(until - now, REST_LEAST), REST_MOST))


def named_day(message: str) -> float | None:
    """“You will regain access on 2026-12-01 at 00:00 UTC.”"""
    if not (found := REGAIN.search(message)):
        return None
    try:
        return datetime.fromisoformat(f"{found[1]}T{found[2] or '00:00'}").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


class Gauge(NamedTuple):
    """How much of a limit is used, from 0 to 1, and when it starts anew."""

    name: str
    used: float
    resets_at: float | None


def gauges_of(headers: Mapping[str, str], now: float) -> tuple[Gauge, ...]:
    """What an answer's headers tell: the limits per minute of API keys, the quotas of plans (`5h`, `7d`, …)."""
    low = {name.lower(): value for name, value in headers.items()}
    found = []
    for name in PER_MINUTE:
        limit, left = (number(low.get(f"anthropic-ratelimit-{name}-{what}")) for what in ("limit", "remaining"))
        if limit and left is not None:
            found.append(gauge(name, 1 - left / limit, low.get(f"anthropic-ratelimit-{name}-reset"), now))
    for header, value in low.items():
        if header.startswith(UNIFIED) and header.endswith("-utilization") and (used := number(value)) is not None:
            name = header[len(UNIFIED) : -len("-utilization")]
            found.append(gauge(name, used, low.get(f"{UNIFIED}{name}-reset"), now))
    return tuple(found)


def gauge(name: str, used: float, reset: str | None, now: float) -> Gauge:
    return Gauge(name, min(max(used, 0.0), 1.0), moment(reset or "", now))


def number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if isfinite(value) and value >= 0 else None


def nearly_empty(gauges: tuple[Gauge, ...], now: float) -> bool:
    return any(one.used >= NEARLY_EMPTY and one.resets_at is not None and one.resets_at > now for one in gauges)


def public_gauge(one: Gauge, resets_at: str | None) -> dict[str, Any]:
    return {"name": one.name, "used": round(one.used, 4), "resets_at": resets_at}
