"""The client keys: their page, the owner's API for them, and what a key's holder may ask about it."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import hdrs, web

from server.budget import Budgets, Limits
from server.cache_helps import NO_HELPS, CacheHelps
from server.clients import Client, ClientKeys
from server.days import begins, day_of, next_day, next_month, rfc3339
from server.errors import ProxyError
from server.pages.books import BOOKS, NEVER
from server.pages.cache_helps import help_rows
from server.pages.page import CONFIG, PASSWORD, answer, owner_page, read_name, read_object, route
from server.presets import NAME

KEYS = web.AppKey("keys", ClientKeys)
BUDGETS = web.AppKey("budgets", Budgets)
FIELDS = ("name", "own", "limits", "models", "personas", "helps")
MOST_NAMES = 100  # of models or personas
DAYS_TOLD = 31


def routes() -> list[web.RouteDef]:
    return [
        route("GET", "/keys", keys_page),
        route("GET", "/api/keys", listing),
        route("POST", "/api/keys", make),
        route("PATCH", "/api/keys/{id}", change),
        route("DELETE", "/api/keys/{id}", revoke),
        route("GET", "/api/me", me),
    ]


async def keys_page(request: web.Request) -> web.Response:
    """GET /keys"""
    return owner_page(
        request,
        "keys.html",
        keys=rows_with_use(request.app),
        me=f"http://{request.headers[hdrs.HOST]}/me",
        needed=request.app[PASSWORD]().needed,
        helps=list(help_rows(request.app[CONFIG])),
        none_chosen=NO_HELPS.public(),
    )


async def listing(request: web.Request) -> web.Response:
    """GET /api/keys"""
    return answer({"keys": rows_with_use(request.app)})


def rows_with_use(app: web.Application) -> list[dict[str, Any]]:
    return [{**row, "used": app[BUDGETS].used(row["id"])} for row in app[KEYS].rows()]


async def make(request: web.Request) -> web.Response:
    """POST /api/keys: the key itself is shown this once."""
    body = await read_object(request, *FIELDS)
    row, key = request.app[KEYS].make(key_name(body), **may_use(body))
    return answer({**row, "key": key}, status=201)


async def change(request: web.Request) -> web.Response:
    """PATCH /api/keys/{id}: name, own, limits and helps (those that are named; null ends one), models, personas."""
    keys, key_id = request.app[KEYS], request.match_info["id"]
    body = await read_object(request, *FIELDS)
    old = keys.row(key_id)
    for field in ("limits", "helps"):
        if isinstance(body.get(field), dict):
            body[field] = {**old[field], **body[field]}
    changes = may_use(body)
    if "name" in body:
        changes["name"] = key_name(body)
    if not changes:
        raise ProxyError(400, f"Nothing to change: send {', '.join(FIELDS[:-1])} or {FIELDS[-1]}.")
    return answer(keys.update(key_id, **changes))


async def revoke(request: web.Request) -> web.Response:
    """DELETE /api/keys/{id}"""
    key_id = request.match_info["id"]
    if not request.app[KEYS].revoke(key_id):
        raise ProxyError(404, "There is no such key. It may have been revoked already.")
    request.app[BUDGETS].revoke(key_id)
    return web.Response(status=204)


async def me(request: web.Request) -> web.Response:
    """GET /api/me, with a client key: what it may use, what it has used, what is left."""
    return answer(await about(request.app, holder(request)))


async def about(app: web.Application, client: Client) -> dict[str, Any]:
    """What the holder of a key may know of it."""
    limits, used, now = client.limits, app[BUDGETS].used(client.key_id), time.time()
    left = {
        "usd_today": what_is_left(limits.usd_per_day, used["usd_today"]),
        "usd_this_month": what_is_left(limits.usd_per_month, used["usd_this_month"]),
        "tokens_today": what_is_left(limits.tokens_per_day, used["tokens_today"]),
    }
    month = begins(day_of(now)) - (DAYS_TOLD - 1) * 86_400
    days = await app[BOOKS].usage(month, NEVER, "day", key_id=client.key_id)
    return {
        "name": client.name,
        "limits": limits.public(),
        "models": list(client.models),
        "personas": list(client.personas),
        "helps": client.helps.public(),
        "used": used,
        "left": left,
        "resets": {"day": rfc3339(next_day(now)), "month": rfc3339(next_month(now))},
        "days": days,
    }


def holder(request: web.Request) -> Client:
    """Whose key a request brings. Raises ProxyError 401."""
    if client := request.app[KEYS].holder(request.headers):
        return client
    raise ProxyError(401, "This address is for the holder of a client key: send it as “Authorization: Bearer …”.")


def what_is_left(most: float | None, used: float) -> float | None:
    return None if most is None else round(max(most - used, 0), 8)


def may_use(body: dict[str, Any]) -> dict[str, Any]:
    """Whose a key is to be, its limits, models, personas and helps, as far as a body names them. Raises ProxyError
    400."""
    found: dict[str, Any] = {}
    if "own" in body:
        if not isinstance(body["own"], bool):
            raise ProxyError(400, "own: must be true (for the owner's own front ends) or false (for somebody else).")
        found["own"] = body["own"]
    if "limits" in body:
        found["limits"] = Limits.of(body["limits"])
    for field in ("models", "personas"):
        if field in body:
            found[field] = names(body[field] or [], field)
    if "helps" in body:
        try:
            found["helps"] = CacheHelps.of(body["helps"])
        except ValueError as error:
            raise ProxyError(400, f"helps: {error}.") from None
    return found


def names(given: object, field: str) -> tuple[str, ...]:
    if not isinstance(given, list) or len(given) > MOST_NAMES or not all(isinstance(one, str) for one in given):
        raise ProxyError(400, f"{field}: must be a list of at most {MOST_NAMES} names; an empty one allows all.")
    for one in given:
        if not (NAME.fullmatch(one) if field == "personas" else one and len(one) <= 256 and one.isprintable()):
            raise ProxyError(400, f"{field}: “{one[:80] if one.isprintable() else '…'}” is no name of one.")
    return tuple(dict.fromkeys(given))


def key_name(body: dict[str, Any]) -> str:
    name = read_name(body.get("name"))
    if not name:
        raise ProxyError(400, "name: must not be empty. Name the key after who or what uses it.")
    return name
