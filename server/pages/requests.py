"""The last requests: the list, and one of them told as a story."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from server.errors import ProxyError
from server.guard import expect
from server.pages.books import RECEIPTS
from server.pages.page import all_warnings, page

SHOWN, MOST = 100, 1000  # rows of the list: at first, and after a click


def routes() -> list[web.RouteDef]:
    return [
        web.get("/requests", requests_page, allow_head=False, expect_handler=expect),
        web.get("/requests/{id}", request_page, allow_head=False, expect_handler=expect),
    ]


async def requests_page(request: web.Request) -> web.Response:
    """GET /requests"""
    most = MOST if request.query.get("show") == "all" else SHOWN
    found = request.app[RECEIPTS].newest(most + 1)
    return page(
        request,
        "requests.html",
        turns=[turn(receipt) for receipt in found[:most]],
        there_are_more=len(found) > most == SHOWN,
        warnings=all_warnings(request.app),
        nav=True,
    )


async def request_page(request: web.Request) -> web.Response:
    """GET /requests/{id}"""
    receipt = request.app[RECEIPTS].find(request.match_info["id"])
    if receipt is None:
        raise ProxyError(404, "This request is not kept any more, or there was none of this name.")
    return page(request, "request.html", turn=turn(receipt), warnings=all_warnings(request.app), nav=True)


def turn(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt's row with what the pages count from it: the prompt's parts, the money saved, how it went."""
    tokens, usd, without = receipt["tokens"], receipt["usd"], receipt["usd_without_cache"]
    read, plain = tokens["cache_read_tokens"], tokens["input_tokens"]
    written = tokens["cache_write_5m_tokens"] + tokens["cache_write_1h_tokens"]
    return {
        **receipt,
        "read": read,
        "written": written,
        "plain": plain,
        "prompt": read + written + plain,
        "saved": None if usd is None or without is None else without - usd,
        "result": result(receipt),
    }


def result(receipt: Mapping[str, Any]) -> str:
    """How it went: left · error · cut · ok."""
    if receipt["ended"] == "client_left":
        return "left"
    if receipt["status"] != 200:
        return "error"
    return "cut" if receipt["ended"] in ("cut", "error") else "ok"
