"""Spending: what was paid and what the cache saved, by day, model, account, key and persona; and the chats."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from typing import Any

from aiohttp import web

from server.days import begins, day_of
from server.pages import figures, plot
from server.pages.books import BOOKS, EVER, NEVER, chats_between
from server.pages.page import PERSONAS, owner_page, route
from server.pages.words import WORDS

PERIODS = {"7": 7, "30": 30, "90": 90, "all": 0}
USUAL = "30"
GROUPS = ("model", "account", "key", "persona")
CHATS_SHOWN = 100
MOST_DAYS = 366  # columns of a plot


def routes() -> list[web.RouteDef]:
    return [
        route("GET", "/spending", spending_page),
        route("GET", "/chats", chats_page),
    ]


async def spending_page(request: web.Request) -> web.Response:
    """GET /spending"""
    books, now = request.app[BOOKS], time.time()
    period, since = chosen_period(request, now)
    by_day = await books.usage(since, NEVER, "day")
    groups = [(name, await rows_by(request.app, since, name)) for name in GROUPS]
    return owner_page(
        request,
        "spending.html",
        period=period,
        periods=list(PERIODS),
        since=day_of(since).isoformat() if since else "",
        whole=told(summed(by_day)),
        days=[told(row) for row in reversed(by_day)],
        plots=plots(by_day, since, now) if by_day else (),
        groups=[(name, rows, max((row["usd"] or 0 for row in rows), default=0)) for name, rows in groups if rows],
    )


async def chats_page(request: web.Request) -> web.Response:
    """GET /chats"""
    period, since = chosen_period(request, time.time())
    found = await chats_between(request.app, since, NEVER)
    rows = [{**told(row), "personas": [told(part) for part in row["personas"]]} for row in found if "last_at" in row]
    shown = rows if request.query.get("show") == "all" else rows[:CHATS_SHOWN]
    personas = [row for row in await rows_by(request.app, since, "persona") if row["prompt"]]
    return owner_page(
        request,
        "chats.html",
        period=period,
        periods=list(PERIODS),
        chats=shown,
        titles=persona_titles(request.app),
        personas=personas if any(row["group"] for row in personas) else (),
        most=max((row["usd"] or 0 for row in personas), default=0),
        there_are_more=len(shown) < len(rows),
    )


async def rows_by(app: web.Application, since: float, name: str) -> list[dict[str, Any]]:
    """The rows of the books by `name`; personas under the names that people read."""
    titles = persona_titles(app) if name == "persona" else {}
    rows = [told(row) for row in await app[BOOKS].usage(since, NEVER, name)]
    return [{**row, "group": titles.get(row["group"], row["group"])} for row in rows]


def persona_titles(app: web.Application) -> dict[str, str]:
    return {persona.name: persona.title for persona in app[PERSONAS].all()}


def chosen_period(request: web.Request, now: float) -> tuple[str, float]:
    """The period a query asks for, and when it begins."""
    period = request.query.get("days", USUAL)
    period = period if period in PERIODS else USUAL
    days = PERIODS[period]
    return period, begins(day_of(now) - timedelta(days=days - 1)) if days else EVER


def told(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the books with what a player wants to know of it."""
    usd, without = row["usd"], row["usd_without_cache"]
    read = row["cache_read_tokens"]
    prompt = read + row["input_tokens"] + row["cache_write_5m_tokens"] + row["cache_write_1h_tokens"]
    saved = None if usd is None else without - usd
    return {**row, "saved": saved, "prompt": prompt, "read": read}


def summed(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Several rows as one. What has no price is not added as nothing: with no priced row there is no sum."""
    whole: dict[str, Any] = {"usd": None, "usd_without_cache": None}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float):
                whole[name] = (whole.get(name) or 0) + value
    counted = ("requests", "unpriced_requests", "cache_hits", "input_tokens", "cache_read_tokens", "output_tokens")
    return dict.fromkeys((*counted, "cache_write_5m_tokens", "cache_write_1h_tokens"), 0) | whole


def plots(by_day: Iterable[Mapping[str, Any]], since: float, now: float) -> tuple[str, str]:
    """What each day cost before what it would have cost: for a desk and for a phone."""
    rows = {row["group"]: row for row in by_day}
    end = day_of(now)
    begin = day_of(since) if since else max(date.fromisoformat(min(rows)), end - timedelta(days=MOST_DAYS - 1))
    days = [(begin + timedelta(days=i)).isoformat() for i in range((end - begin).days + 1)]
    words = WORDS["spending"]
    series = [
        (
            words["without"],
            [float((rows.get(day) or {}).get("usd_without_cache") or 0) for day in days],
            "var(--plain)",
        ),
        (words["paid"], [float((rows.get(day) or {}).get("usd") or 0) for day in days], "var(--written)"),
    ]

    def label(day: str) -> str:
        one = date.fromisoformat(day)
        return f"{one.day} {one:%b}"

    wide, narrow = (
        plot.columns(days, series, size=size, label=label, value=figures.money) for size in (plot.WIDE, plot.NARROW)
    )
    return wide, narrow
