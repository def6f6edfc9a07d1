"""Numbers as a player reads them: cents, seconds and minutes, per cent."""

from __future__ import annotations


def money(usd: float | None) -> str:
    """Cents below a dollar; "unknown" where there is no price, which is never shown as nothing."""
    if usd is None:
        return "unknown"
    cents = abs(usd) * 100
    if cents == 0:
        return "0 ¢"
    if cents < 0.05:
        return "under 0.1 ¢"
    sign = "−" if usd < 0 else ""
    if cents < 99.5:
        return f"{sign}{cents:.1f} ¢" if cents < 9.95 else f"{sign}{cents:.0f} ¢"
    return f"{sign}${cents / 100:,.2f}"


def number(count: float) -> str:
    return f"{count:,.0f}"


def share(part: float, whole: float) -> str:
    """Per cent, whole ones; nothing is rounded to none or to all."""
    if whole <= 0 or part <= 0:
        return "0 %"
    if part < whole:
        return f"{min(max(round(100 * part / whole), 1), 99)} %"
    return "100 %"


def part(amount: float, most: float) -> float:
    """How much of `most` it is, from 0 to 1; of nothing, all."""
    return min(max(amount / most, 0.0), 1.0) if most > 0 else 1.0


def span(milliseconds: float | None) -> str:
    """How long something took."""
    if milliseconds is None:
        return "–"
    seconds = milliseconds / 1000
    if seconds < 0.05:
        return "under 0.1 s"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
