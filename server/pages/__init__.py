"""What a person sees: sign-in and the start page, and the JSON they work with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from server.pages import accounts, books, keys, live, me, now, personas, requests, settings, signin, spending
from server.pages.page import FINISHING, route, static


def routes() -> list[web.RouteDef]:
    """Every page and every owner's route of this folder."""
    return [
        route("GET", "/", now.start_page),
        route("GET", "/auth/login", signin.login),
        route("GET", "/auth/callback", signin.callback),
        route("GET", "/auth/status", signin.status),
        route("POST", "/auth/start", signin.start),
        route("POST", "/auth/submit", signin.submit),
        route("POST", "/auth/api-key", signin.api_key),
        route("POST", "/auth/ant", signin.ant_profile),
        route("POST", "/auth/claude-code", signin.claude_code),
        route("POST", "/auth/refresh", signin.refresh),
        route("POST", "/auth/logout", signin.logout),
        route("GET", "/accounts", accounts.accounts_page),
        route("GET", "/api/accounts", accounts.listing),
        route("POST", "/api/accounts", accounts.add),
        route("PATCH", "/api/accounts/{id}", accounts.change),
        route("DELETE", "/api/accounts/{id}", accounts.remove),
        route("POST", "/api/accounts/{id}/wake", accounts.wake),
        route("POST", "/api/login-link", accounts.login_link),
        route("GET", "/static/{name}", static),
        route("GET", "/favicon.ico", static),
        *books.routes(),
        *keys.routes(),
        *live.routes(),
        *me.routes(),
        *personas.routes(),
        *requests.routes(),
        *settings.routes(),
        *spending.routes(),
    ]


def attach(app: web.Application) -> None:
    """Add the pages to `app`. What they need is set there under the keys of page.py."""
    app[FINISHING] = set()
    app[live.NEWS] = live.News()
    app.add_routes(routes())
    app.on_shutdown.append(live.end_with_the_app)
    app.cleanup_ctx.append(finish_sign_ins)


async def finish_sign_ins(app: web.Application) -> AsyncIterator[None]:
    yield
    finishing = app[FINISHING]
    if finishing:
        await asyncio.wait(finishing)
