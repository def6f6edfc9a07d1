"""The accounts: their page and the owner's API for them; and the link that opens the pages."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from server.accounts import checked_api_key, checked_base_url
from server.days import rfc3339
from server.errors import ProxyError
from server.pages.page import ACCOUNTS, CHECK_KEY, CONFIG, OWNER, answer, owner_page, read_name, read_object
from server.pages.words import WORDS
from server.payers import Account, rank


async def accounts_page(request: web.Request) -> web.Response:
    """GET /accounts"""
    now = time.time()
    rows = [account.public(now) for account in sorted(request.app[ACCOUNTS].all(), key=rank)]
    for row in rows:  # a limit that has begun anew since says nothing
        row["limits"] = [one for one in row["limits"] if (one["resets_at"] or "") > (rfc3339(now) or "")]
    return owner_page(
        request,
        "accounts.html",
        accounts=rows,
        joined=next((row for row in rows if row["id"] == request.query.get("joined")), None),
        outcome=request.query.get("outcome", ""),
    )


async def listing(request: web.Request) -> web.Response:
    """GET /api/accounts"""
    now = time.time()
    return answer({"accounts": [account.public(now) for account in request.app[ACCOUNTS].all()]})


async def add(request: web.Request) -> web.Response:
    """POST /api/accounts"""
    body = await read_object(request, "kind", "name", "api_key", "base_url")
    if body.get("kind", "api_key") != "api_key":
        raise ProxyError(400, "kind: only api_key accounts are added here; the sign-in page adds the others.")
    added = await add_api_key(request.app, body)
    note = {"note": added["note"]} if added["note"] else {}
    return answer(added["account"] | note, status=200 if added["outcome"] == "known" else 201)


async def change(request: web.Request) -> web.Response:
    """PATCH /api/accounts/{id}"""
    changes = account_changes(await read_object(request, "name", "enabled", "priority", "shared"))
    account = await request.app[ACCOUNTS].update(request.match_info["id"], **changes)
    return answer(account.public(time.time()))


async def remove(request: web.Request) -> web.Response:
    """DELETE /api/accounts/{id}"""
    await request.app[ACCOUNTS].remove(request.match_info["id"])
    return web.Response(status=204)


async def wake(request: web.Request) -> web.Response:
    """POST /api/accounts/{id}/wake"""
    account = request.app[ACCOUNTS].wake(request.match_info["id"])
    return answer(account.public(time.time()))


async def login_link(request: web.Request) -> web.Response:
    """POST /api/login-link"""
    return answer({"path": f"/auth/login?token={request.app[OWNER].new_link_token()}"})


def account_changes(body: dict[str, Any]) -> dict[str, Any]:
    """The changes of a PATCH, each of its type. Raises ProxyError 400."""
    if not body:
        raise ProxyError(400, "Nothing to change: send name, enabled, priority or shared.")
    if "name" in body:
        body = {**body, "name": read_name(body["name"])}
        if not body["name"]:
            raise ProxyError(400, "name: must not be empty.")
    for key in ("enabled", "shared"):
        if not isinstance(body.get(key, False), bool):
            raise ProxyError(400, f"{key}: must be true or false.")
    priority = body.get("priority", 0)
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > 1000:
        raise ProxyError(400, "priority: must be a whole number between -1000 and 1000; the lowest goes first.")
    return body


async def add_api_key(app: web.Application, body: dict[str, Any]) -> dict[str, Any]:
    """The account of a pasted API key, as `joined` tells it.

    Raises ProxyError 400 in the upstream's words when it refuses the key: then nothing is saved.
    """
    key, base_url = checked_api_key(body.get("api_key")), checked_base_url(body.get("base_url"))
    name = read_name(body.get("name", ""))
    outcome, why = await app[CHECK_KEY](base_url or app[CONFIG].api_base_url, key)
    if outcome == "refused":
        raise ProxyError(400, f"The key was refused: {why.rstrip('.')}. Copy it once more, or make a new one.")
    known = {account.id for account in app[ACCOUNTS].all()}
    account = await app[ACCOUNTS].add_api_key(key, name, base_url)
    if outcome == "unknown":
        return joined(app, account, "untried", WORDS["signin"]["untried"].format(why=why))
    return joined(app, account, "known" if account.id in known else "added")


def joined(app: web.Application, account: Account, outcome: str, note: str = "") -> dict[str, Any]:
    """An account that has joined: added · renewed · known · untried; or unsaved, when it is in memory only."""
    if why := app[ACCOUNTS].unsaved:
        outcome, note = "unsaved", WORDS["signin"]["unsaved"].format(why=why)
    return {"account": account.public(time.time()), "outcome": outcome, "note": note or None}
