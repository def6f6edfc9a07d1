"""The owner's API for what was spent: receipts, sums, chats; and their export."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from aiohttp import hdrs, web

from server.books import GROUPS, Books
from server.days import read_moment
from server.errors import ProxyError
from server.pages.page import SAFE, answer, read_name, read_object, route
from server.receipts import Receipts

BOOKS = web.AppKey("books", Books)
RECEIPTS = web.AppKey("receipts", Receipts)
EVER, NEVER = 0.0, 1e11  # unix seconds
OF_CHAT = {"group", "id", "name", "began_at", "last_at"}  # what a row tells of its chat, besides sums
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is a command to spreadsheets


def routes() -> list[web.RouteDef]:
    return [
        route("GET", "/api/requests", requests),
        route("GET", "/api/usage", usage),
        route("GET", "/api/usage.csv", usage_csv),
        route("GET", "/api/chats", chats),
        route("PATCH", "/api/chats/{id}", name_chat),
    ]


async def requests(request: web.Request) -> web.Response:
    """GET /api/requests?limit=: from memory, and from the books where memory does not reach."""
    text = request.query.get("limit", "100")
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= 1000):
        raise ProxyError(400, "limit: must be a whole number from 1 to 1000.")
    return answer({"requests": await newest(request.app, int(text))})


async def newest(app: web.Application, limit: int) -> list[dict[str, Any]]:
    """The rows of the last requests: from memory, and from the books where memory does not reach."""
    reaches = len(app[RECEIPTS].newest(limit)) == limit
    booked = [] if reaches else await app[BOOKS].requests(limit)
    rows = app[RECEIPTS].newest(limit)  # looked at last: what ended meanwhile is told from here, in full
    known = {row["id"] for row in rows}
    return [*rows, *(row.public() for row in booked if row.id not in known)][:limit]


async def one_request(app: web.Application, request_id: str) -> dict[str, Any] | None:
    """The row of one request, from memory or else from the books."""
    if row := app[RECEIPTS].find(request_id):
        return row
    booked = await app[BOOKS].request(request_id)
    return booked and booked.public()


async def usage(request: web.Request) -> web.Response:
    """GET /api/usage?from=&to=&by="""
    return answer({"rows": await usage_rows(request)})


async def usage_csv(request: web.Request) -> web.Response:
    """GET /api/usage.csv?from=&to=&by=: the same as a table."""
    rows = await usage_rows(request)
    written = io.StringIO()
    if rows:
        table = csv.DictWriter(written, rows[0].keys())
        table.writeheader()
        table.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    named = {hdrs.CONTENT_DISPOSITION: 'attachment; filename="usage.csv"'}
    return web.Response(text=written.getvalue(), content_type="text/csv", charset="utf-8", headers={**SAFE, **named})


async def chats(request: web.Request) -> web.Response:
    """GET /api/chats?from=&to=: each with its sums, the one used last first."""
    return answer({"chats": await chats_between(request.app, *period(request.query))})


async def chats_between(app: web.Application, since: float, until: float) -> list[dict[str, Any]]:
    """The chats of that time, the one used last first; `personas`: the same sums for each it was played with."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in await app[BOOKS].usage(since, until, "chat", split_by="persona"):
        sums = {name: value for name, value in row.items() if name not in OF_CHAT}
        parts.setdefault(row["id"], []).append(sums)
    rows = await app[BOOKS].usage(since, until, "chat")
    told = [{**row, "personas": parts.get(row["id"], [])} for row in rows if row["id"]]
    return sorted(told, key=lambda row: row.get("last_at") or "", reverse=True)


async def name_chat(request: web.Request) -> web.Response:
    """PATCH /api/chats/{id}: its name; an empty one takes the name away."""
    body = await read_object(request, "name")
    if "name" not in body:
        raise ProxyError(400, "name: is missing.")
    name = read_name(body["name"])
    return answer(await request.app[BOOKS].name_chat(request.match_info["id"], name))


async def usage_rows(request: web.Request) -> list[dict[str, Any]]:
    """The rows a query asks for. Raises ProxyError 400."""
    by = request.query.get("by", "day")
    if by not in GROUPS:
        raise ProxyError(400, f"by: must be one of {', '.join(GROUPS)}.")
    return await request.app[BOOKS].usage(*period(request.query), by)


def period(query: Mapping[str, str]) -> tuple[float, float]:
    """The time a query asks for, in unix seconds. Raises ProxyError 400."""
    since = read_moment("from", query["from"]) if query.get("from") else EVER
    until = read_moment("to", query["to"], end=True) if query.get("to") else NEVER
    if since > until:
        raise ProxyError(400, "from: must not be later than to.")
    return since, until


def cell(value: Any) -> Any:
    """A value as it may stand in a spreadsheet."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
