"""The calendar: days and months begin at midnight by this computer's clock; times as the API and people tell them."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from email.utils import parsedate_to_datetime
from math import isfinite

from server.errors import ProxyError

DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})")


def day_of(at: float) -> date:
    return date.fromtimestamp(at)  # noqa: DTZ012  # by this computer's clock


def begins(day: date) -> float:
    """The first moment of a day, in unix seconds."""
    return datetime.combine(day, time()).timestamp()


def next_day(at: float) -> float:
    """When the day of this moment ends."""
    return begins(day_of(at) + timedelta(days=1))


def month_of(at: float) -> date:
    """The first day of the month."""
    return day_of(at).replace(day=1)


def next_month(at: float) -> float:
    """When the month of this moment ends."""
    return begins((month_of(at) + timedelta(days=31)).replace(day=1))


def time_of_day(at: float, now: float) -> str:
    """A time as the player's own clock shows it; with the day when that is not today."""
    local = datetime.fromtimestamp(at).astimezone()
    return f"{local:%H:%M}" if local.date() == day_of(now) else f"{local:%H:%M on %A, %d %B}"


def span(seconds: float) -> str:
    """How long something takes, in the largest unit that says it well."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.0f} h" if hours >= 9.95 else f"{hours:.1f} h".replace(".0", "")


def rfc3339(at: float | None, timespec: str = "seconds") -> str | None:
    """A time for JSON, as 2026-11-20T18:30:00Z; null also for one that no calendar holds."""
    if at is None or not isfinite(at):
        return None
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return None


def moment(text: str, now: float) -> float | None:
    """A point in time given as seconds from now, unix seconds, RFC 3339 or HTTP date; None for anything else."""
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        if number != number or number in (float("inf"), float("-inf")):
            return None
        return number if number > 1e9 else now + number
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return read(text).timestamp()
        except (ValueError, OverflowError):
            continue
    return None


def read_moment(name: str, text: str, *, end: bool = False) -> float:
    """A query's date (YYYY-MM-DD, the whole day) or time (RFC 3339) in unix seconds. Raises ProxyError 400.

    As an `end` a date means the end of that day.
    """
    try:
        if DATE.fullmatch(text):
            day = date.fromisoformat(text)
            return begins(day + timedelta(days=1)) if end else begins(day)
        if MOMENT.fullmatch(told := text.replace(" ", "+")):  # what becomes of a bare + in a query
            return datetime.fromisoformat(told.upper()).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    raise ProxyError(400, f"{name}: must be a date like 2026-11-20 or a time like 2026-11-20T18:30:00Z.")
