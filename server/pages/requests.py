"""The last requests: the list, and one of them told as a story."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any

import orjson
from aiohttp import web

from server.errors import ProxyError
from server.pages.books import RECEIPTS, newest, one_request
from server.pages.page import CONFIG, owner_page, route
from server.receipt import Bodies

SHOWN, MOST = 100, 1000  # rows of the list: at first, and after a click


def routes() -> list[web.RouteDef]:
    return [
        route("GET", "/requests", requests_page),
        route("GET", "/requests/{id}", request_page),
    ]


async def requests_page(request: web.Request) -> web.Response:
    """GET /requests"""
    most = MOST if request.query.get("show") == "all" else SHOWN
    found = await newest(request.app, most + 1)
    return owner_page(
        request,
        "requests.html",
        turns=[turn(receipt) for receipt in found[:most]],
        there_are_more=len(found) > most == SHOWN,
    )


async def request_page(request: web.Request) -> web.Response:
    """GET /requests/{id}"""
    request_id = request.match_info["id"]
    receipt = await one_request(request.app, request_id)
    if receipt is None:
        raise ProxyError(404, "This request is not kept any more, or there was none of this name.")
    bodies = request.app[RECEIPTS].bodies(request_id)
    return owner_page(
        request,
        "request.html",
        turn=turn(receipt),
        texts=await asyncio.to_thread(compare, bodies) if bodies else None,
        texts_kept=request.app[CONFIG].keep_bodies_in_memory,
    )


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
        "unbilled": result(receipt) == "error" and not any(tokens.values()),
        "kind": receipt.get("kind", "chat"),
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


@dataclass(frozen=True)
class Texts:
    """A request's body as it came and as it was sent, and the lines that differ: `(mark, line)`, mark one of + - @ and
    blank."""

    asked: str
    sent: str
    changed: tuple[tuple[str, str], ...]


def compare(bodies: Bodies) -> Texts:
    asked, sent = written_out(bodies.asked), written_out(bodies.sent)
    return Texts(asked, sent, tuple(differing(asked.splitlines(), sent.splitlines())))


def differing(asked: list[str], sent: list[str]) -> Iterator[tuple[str, str]]:
    head = True
    for line in unified_diff(asked, sent, lineterm="", n=2):
        if head := head and not line.startswith("@@"):
            continue
        yield (line[0], "⋯") if line[0] == "@" else (line[0], line[1:])


def written_out(body: Mapping[str, Any]) -> str:
    """JSON on many lines, pictures and other long data as their length."""
    return orjson.dumps(shortened(body), option=orjson.OPT_INDENT_2).decode()


def shortened(value: Any) -> Any:
    match value:
        case Mapping():
            return {
                key: f"… {len(part):,} characters …"
                if key == "data" and isinstance(part, str) and len(part) > 200
                else shortened(part)
                for key, part in value.items()
            }
        case list() | tuple():
            return [shortened(part) for part in value]
    return value
