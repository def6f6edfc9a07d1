"""Signing in: the page, its links and callback, and the JSON it works with."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from server.addresses import is_loopback
from server.errors import ProxyError
from server.owner import SESSION_SECONDS, cookies_named, cookies_of
from server.pages.accounts import add_api_key, joined
from server.pages.page import (
    ACCOUNTS,
    CONFIG,
    OWNER,
    PORT,
    SIGNIN,
    answer,
    moving_page,
    owner_page,
    page,
    read_object,
    to_the_end,
)
from server.pages.words import WORDS
from server.payers import Account
from server.signin import split_code

ATTEMPT_SECONDS = 600


def attempt_cookie(port: int) -> str:
    return f"tavern_signin_{port}"


# The pages.


async def login(request: web.Request) -> web.Response:
    """GET /auth/login: with a one-time link's token the way in, for the owner the sign-in page."""
    owner = request.app[OWNER]
    cookies = cookies_of(request.headers)
    if "token" in request.query:
        return enter(request, bool(owner.session(cookies)))
    if refusal := owner.refusal(cookies, request.headers.get(hdrs.AUTHORIZATION, "")):
        raise refusal
    accounts, now = request.app[ACCOUNTS], time.time()
    rows = [account.public(now) for account in accounts.all()]
    return owner_page(
        request,
        "signin.html",
        accounts=rows,
        subscriptions=", ".join(
            row["name"] for row in rows if row["kind"] == "subscription" and row["source"] == "own"
        ),
        ant_profiles=[profile for profile in await asyncio.to_thread(accounts.ant_profiles) if not profile.used],
        claude_code=claude_code_offered(request.app, rows),
        lands_here=lands_here(request.app[CONFIG].oauth_redirect_uri),
    )


def enter(request: web.Request, has_session: bool) -> web.Response:
    """Redeem the link: a fresh session, and on to the page that is needed first."""
    owner, words = request.app[OWNER], WORDS["moving"]
    try:
        outcome = owner.redeem_link(request.query["token"])
    except ProxyError:
        if not has_session:
            raise
        outcome = "spent"
    if outcome == "spent" and not has_session:
        raise ProxyError(401, WORDS["refusal"]["link_spent"])
    response = moving_page(
        request, words["welcome"], words["opening"], "/" if request.app[ACCOUNTS].all() else "/auth/login"
    )
    if outcome == "good":
        response.set_cookie(
            owner.cookie_name,
            owner.new_session(),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="Strict",
        )
    return response


async def callback(request: web.Request) -> web.Response:
    """GET /auth/callback: the authorize page sends the browser back here. It comes from another site, so without the
    session cookie: the attempt's own cookie stands for the browser, and nothing but the attempt is touched."""
    signin, query, words = request.app[SIGNIN], request.query, WORDS["moving"]
    browser = next(cookies_named(attempt_cookie(request.app[PORT]), cookies_of(request.headers)), "")
    try:
        if "error" in query:
            raise signin.deny(query["error"], query.get("state", ""))
        code, state = query.get("code", ""), query.get("state", "")
        account, outcome = await to_the_end(request.app, join(request.app, code, state, browser))
    except ProxyError as error:
        return page(request, "callback_failed.html", status=error.status, message=error.message)
    message = words[outcome].format(name=account.name)
    response = moving_page(request, words["signed_in"], message, f"/accounts?joined={account.id}&outcome={outcome}")
    response.del_cookie(attempt_cookie(request.app[PORT]), path="/auth/callback")
    return response


async def join(app: web.Application, code: str, state: str, browser: str | None) -> tuple[Account, str]:
    """The account a code belongs to, and whether it was `added` or `renewed`. Raises SignInFailed."""
    tokens = await app[SIGNIN].finish(code, state, browser)
    outcome = "renewed" if app[ACCOUNTS].replaced_by(tokens) else "added"
    return await app[ACCOUNTS].add_oauth(tokens), outcome


def claude_code_offered(app: web.Application, rows: Iterable[dict[str, Any]]) -> bool:
    if app[CONFIG].fallback_to_claude_code == "false" or any(row["source"] == "claude_code" for row in rows):
        return False
    return app[ACCOUNTS].claude_code_found()


def lands_here(redirect_uri: str) -> bool:
    """Whether the authorize page sends the browser back to us, or shows a code to copy."""
    address = urlsplit(redirect_uri)
    return is_loopback(address.hostname or "") and address.path == "/auth/callback"


# The JSON.


async def start(request: web.Request) -> web.Response:
    """POST /auth/start"""
    body = await read_object(request, "understood")
    require_understanding(body)
    # The same for all attempts of one session, so that two of them, in two tabs, do not spoil each other.
    session = request.app[OWNER].session(cookies_of(request.headers)) or secrets.token_urlsafe(32)
    browser = hashlib.sha256(f"browser of {session}".encode()).hexdigest()
    attempt = request.app[SIGNIN].start(browser)
    response = answer({"authorize_url": attempt.authorize_url, "state": attempt.state})
    response.set_cookie(
        attempt_cookie(request.app[PORT]),
        browser,
        max_age=ATTEMPT_SECONDS,
        path="/auth/callback",
        httponly=True,
        samesite="Lax",
    )
    return response


def require_understanding(body: dict[str, Any]) -> None:
    if body.get("understood") is not True:
        words = WORDS["signin"]
        raise ProxyError(400, f"{words['terms_1']} {words['terms_2']} {WORDS['signin_script']['tick_first']}")


async def submit(request: web.Request) -> web.Response:
    """POST /auth/submit"""
    body = await read_object(request, "code")
    pasted = body.get("code")
    if not isinstance(pasted, str) or not pasted.strip():
        raise ProxyError(400, WORDS["signin_script"]["code_missing"])
    code, state = split_code(pasted)
    account, outcome = await to_the_end(request.app, join(request.app, code, state, None))
    return answer(joined(request.app, account, outcome))


async def api_key(request: web.Request) -> web.Response:
    """POST /auth/api-key"""
    body = await read_object(request, "api_key", "name")
    return answer(await add_api_key(request.app, body))


async def ant_profile(request: web.Request) -> web.Response:
    """POST /auth/ant"""
    body = await read_object(request, "profile")
    if not isinstance(body.get("profile"), str):
        raise ProxyError(400, "profile: must be the name of a profile.")
    account = await request.app[ACCOUNTS].use_ant_profile(body["profile"])
    return answer(joined(request.app, account, "added"))


async def claude_code(request: web.Request) -> web.Response:
    """POST /auth/claude-code"""
    require_understanding(await read_object(request, "understood"))
    account = await request.app[ACCOUNTS].use_claude_code(agreed=True)
    if account is None:
        raise ProxyError(404, WORDS["signin"]["claude_code_gone"])
    return answer(joined(request.app, account, "added"))


async def status(request: web.Request) -> web.Response:
    """GET /auth/status, for everybody: kinds and numbers only."""
    now = time.time()
    rows = [account.public(now) for account in request.app[ACCOUNTS].all()]
    working = [row for row in rows if row["state"] in ("ready", "resting")]
    first = min(working or rows, key=lambda row: (row["state"] != "ready", row["priority"]), default=None)
    return answer(
        {
            "signed_in": bool(working),
            "state": first and first["state"],
            "kind": first and first["kind"],
            "accounts": len(rows),
            "expires_at": first and first["expires_at"],
        }
    )


async def refresh(request: web.Request) -> web.Response:
    """POST /auth/refresh: one account, or every one whose token can be renewed."""
    body = await read_object(request, "id")
    accounts = request.app[ACCOUNTS]
    if "id" in body:
        chosen = [accounts.get(str(body["id"]))]
    else:
        chosen = [account for account in accounts.all() if account.kind != "api_key"]
    renewed, failed = [], None
    for account in chosen:
        try:
            renewed.append(await accounts.refresh(account.id))
        except ProxyError as error:
            failed = error
    if failed is not None and not renewed:
        raise failed
    now = time.time()
    return answer({"accounts": [account.public(now) for account in renewed], "error": failed and failed.message})


async def logout(request: web.Request) -> web.Response:
    """POST /auth/logout"""
    await read_object(request)
    await request.app[ACCOUNTS].sign_out()
    return answer({"signed_in": False})
