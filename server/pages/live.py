"""Tells the pages that are open when something has changed, by server-sent events; they fetch what they show anew."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from aiohttp import hdrs, web

from server.pages.books import RECEIPTS
from server.pages.figures import number, span
from server.pages.page import ACCOUNTS, SAFE, route
from server.pages.words import WORDS

LOOK_SECONDS = 2.0  # accounts change by themselves, as when a rest ends
PROGRESS_SECONDS = 0.5  # while a reply is being written
QUIET_SECONDS = 20.0  # the longest silence, so that a dead connection is noticed
CHANGED, STILL_HERE = b"event: changed\ndata: {}\n\n", b": still here\n\n"


class News:
    """Wakes every open page's stream when `changed` is called."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Event] = set()
        self.over = False

    def changed(self) -> None:
        for listener in self._listeners:
            listener.set()

    @contextmanager
    def listener(self) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._listeners.add(event)
        try:
            yield event
        finally:
            self._listeners.discard(event)


NEWS = web.AppKey("news", News)


def routes() -> list[web.RouteDef]:
    return [route("GET", "/api/live", live)]


def progress(under_way: list[dict[str, Any]]) -> dict[str, str]:
    """How far each request under way has come, in words, by its id."""
    words = WORDS["turns"]
    return {
        row["id"]: (words["way_writing"] if row["events"] else words["way_waiting"]).format(
            span=span(row["seconds"] * 1000), events=number(row["events"])
        )
        for row in under_way
    }


async def live(request: web.Request) -> web.StreamResponse:
    """GET /api/live: an event `changed` whenever a request has begun or ended or an account stands differently, and
    `progress` while requests are under way."""
    news, accounts, receipts = request.app[NEWS], request.app[ACCOUNTS], request.app[RECEIPTS]
    response = web.StreamResponse(headers={**SAFE, hdrs.CONTENT_TYPE: "text/event-stream"})
    with news.listener() as event:
        seen, quiet = [account.public(time.time()) for account in accounts.all()], 0.0
        await response.prepare(request)
        await response.write(STILL_HERE)
        while True:
            wait = PROGRESS_SECONDS if receipts.under_way(time.time()) else LOOK_SECONDS
            try:
                async with asyncio.timeout(wait):
                    await event.wait()
            except TimeoutError:
                quiet += wait
            if news.over:
                break
            if under_way := receipts.under_way(time.time()):
                quiet = 0.0
                await response.write(b"event: progress\ndata: %s\n\n" % orjson.dumps(progress(under_way)))
            now = [account.public(time.time()) for account in accounts.all()]
            if event.is_set() or now != seen:
                event.clear()
                seen, quiet = now, 0.0
                await response.write(CHANGED)
            elif quiet >= QUIET_SECONDS:
                quiet = 0.0
                await response.write(STILL_HERE)
    return response


async def end_with_the_app(app: web.Application) -> None:
    """Streams have no end of their own: without this the stop would wait for them."""
    app[NEWS].over = True
    app[NEWS].changed()
