"""For the holder of a client key: what is left, what was used. The key is typed into a field, never an address."""

from __future__ import annotations

from aiohttp import web

from server.errors import ProxyError
from server.pages.keys import KEYS, about
from server.pages.page import page, read_object, route
from server.pages.spending import summed, told


def routes() -> list[web.RouteDef]:
    return [
        route("GET", "/me", me_page),
        route("POST", "/me", my_page),
    ]


async def me_page(request: web.Request) -> web.Response:
    """GET /me: the field for the key."""
    return page(request, "me.html", mine=None)


async def my_page(request: web.Request) -> web.Response:
    """POST /me {"key"}: the same page with what the key's holder may know."""
    given = (await read_object(request, "key")).get("key")
    client = request.app[KEYS].find(given.strip()) if isinstance(given, str) else None
    if client is None:
        raise ProxyError(
            401, "This is no key of this proxy, or it was taken back. Copy it once more, or ask its owner."
        )
    mine = await about(request.app, client)
    return page(
        request, "me.html", mine=mine, whole=told(summed(mine["days"])), days=[*map(told, reversed(mine["days"]))]
    )
