"""What a person sees: sign-in and the start page, and the JSON they work with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler

from server.guard import expect
from server.pages import accounts, books, keys, live, me, now, personas, requests, settings, signin, spending
from server.pages.page import FINISHING, static


def routes() -> list[web.RouteDef]:
    """Every page and every owner's route of this folder."""

    def get(path: str, handler: Handler) -> web.RouteDef:
        return web.get(path, handler, allow_head=False, expect_handler=expect)

    def post(path: str, handler: Handler) -> web.RouteDef:
        return web.post(path, handler, expect_handler=expect)

    return [
        get("/", now.start_page),
        get("/auth/login", signin.login),
        get("/auth/callback", signin.callback),
        get("/auth/status", signin.status),
        post("/auth/start", signin.start),
        post("/auth/submit", signin.submit),
        post("/auth/api-key", signin.api_key),
        post("/auth/ant", signin.ant_profile),
        post("/auth/claude-code", signin.claude_code),
        post("/auth/refresh", signin.refresh),
        post("/auth/logout", signin.logout),
        get("/accounts", accounts.accounts_page),
        get("/api/accounts", accounts.listing),
        post("/api/accounts", accounts.add),
        web.patch("/api/accounts/{id}", accounts.change, expect_handler=expect),
        web.delete("/api/accounts/{id}", accounts.remove, expect_handler=expect),
        post("/api/accounts/{id}/wake", accounts.wake),
        post("/api/login-link", accounts.login_link),
        get("/static/{name}", static),
        get("/favicon.ico", static),
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
