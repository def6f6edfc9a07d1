"""The owner's API for client keys."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from server.clients import ClientKeys
from server.errors import ProxyError
from server.guard import expect
from server.pages.accounts import account_name
from server.pages.page import answer, read_object

KEYS = web.AppKey("keys", ClientKeys)


def routes() -> list[web.RouteDef]:
    return [
        web.get("/api/keys", listing, expect_handler=expect),
        web.post("/api/keys", make, expect_handler=expect),
        web.patch("/api/keys/{id}", rename, expect_handler=expect),
        web.delete("/api/keys/{id}", revoke, expect_handler=expect),
    ]


async def listing(request: web.Request) -> web.Response:
    """GET /api/keys"""
    return answer({"keys": request.app[KEYS].rows()})


async def make(request: web.Request) -> web.Response:
    """POST /api/keys: the key itself is shown this once."""
    body = await read_object(request, "name", "own")
    if not isinstance(body.get("own", False), bool):
        raise ProxyError(400, "own: must be true (for the owner's own front ends) or false (for somebody else).")
    row, key = request.app[KEYS].make(key_name(body), own=body.get("own", False))
    return answer({**row, "key": key}, status=201)


async def rename(request: web.Request) -> web.Response:
    """PATCH /api/keys/{id}"""
    name = key_name(await read_object(request, "name"))
    key_id = request.match_info["id"]
    if not request.app[KEYS].rename(key_id, name):
        raise no_such_key()
    return answer(next(row for row in request.app[KEYS].rows() if row["id"] == key_id))


async def revoke(request: web.Request) -> web.Response:
    """DELETE /api/keys/{id}"""
    if not request.app[KEYS].revoke(request.match_info["id"]):
        raise no_such_key()
    return web.Response(status=204)


def key_name(body: dict[str, Any]) -> str:
    name = account_name(body.get("name"), "name")
    if not name:
        raise ProxyError(400, "name: must not be empty. Name the key after who or what uses it.")
    return name


def no_such_key() -> ProxyError:
    return ProxyError(404, "There is no such key. It may have been revoked already.")
