"""The start page: is it working, who pays, and what to type where."""

from __future__ import annotations

import time

from aiohttp import hdrs, web

from server.accounts import Account, choose
from server.errors import ProxyError
from server.pages.books import RECEIPTS, newest
from server.pages.live import progress
from server.pages.page import ACCOUNTS, PASSWORD, PERSONAS, all_warnings, page
from server.pages.requests import turn


async def start_page(request: web.Request) -> web.Response:
    """GET /"""
    now = time.time()
    accounts, under_way = request.app[ACCOUNTS].all(), request.app[RECEIPTS].under_way(now)
    payer, problem = who_pays(accounts, now)
    return page(
        request,
        "now.html",
        payer=payer.public(now) if payer else None,
        problem=problem,
        anybody=bool(accounts),
        address=f"http://{request.headers[hdrs.HOST]}/v1",
        password=request.app[PASSWORD](),
        under_way=under_way,
        progress=progress(under_way),
        turns=[turn(receipt) for receipt in await newest(request.app, 10)],
        personas=list(request.app[PERSONAS]()),
        warnings=all_warnings(request.app),
        nav=True,
    )


def who_pays(accounts: tuple[Account, ...], now: float) -> tuple[Account | None, str]:
    """The account the next message is paid by, or why there is none."""
    try:
        return choose(accounts, now), ""
    except ProxyError as error:
        return None, error.message
