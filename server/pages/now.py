"""The start page: is it working, who pays, and what to type where."""

from __future__ import annotations

import time

from aiohttp import hdrs, web

from server.errors import ProxyError
from server.pages.books import RECEIPTS, newest
from server.pages.live import progress
from server.pages.page import ACCOUNTS, CONFIG, PASSWORD, PERSONAS, owner_page
from server.pages.requests import turn
from server.payers import OPEN_PAGE, Account, Choice, choose, rank, settle


async def start_page(request: web.Request) -> web.Response:
    """GET /"""
    now = time.time()
    accounts, under_way = request.app[ACCOUNTS].all(), request.app[RECEIPTS].under_way(now)
    payers, problem = who_pays(accounts, now, request.app[CONFIG].account_choice)
    return owner_page(
        request,
        "now.html",
        payers=[payer.public(now) for payer in payers],
        problem=problem,
        anybody=bool(accounts),
        address=f"http://{request.headers[hdrs.HOST]}/v1",
        password=request.app[PASSWORD](),
        under_way=under_way,
        progress=progress(under_way),
        turns=[turn(receipt) for receipt in await newest(request.app, 10)],
        personas=request.app[PERSONAS].all(),
    )


def who_pays(accounts: tuple[Account, ...], now: float, choice: Choice) -> tuple[list[Account], str]:
    """The accounts that the next chats are paid by, or why there is none."""
    try:
        first = choose(accounts, now)
    except ProxyError as error:
        return [], error.message.partition(f" {OPEN_PAGE}")[0]  # which is open
    ready = [account for account in accounts if settle(account, now).state == "ready"]
    equal = [account for account in ready if rank(account) == rank(first)]
    return equal if choice != "priority" and first in equal else [first], ""
