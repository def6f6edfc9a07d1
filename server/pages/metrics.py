"""The address that a Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import hdrs, web

from server.guard import expect
from server.metrics import Metrics
from server.pages.page import ACCOUNTS, CONFIG, OWNER, SAFE
from server.secret import bearer, same

METRICS = web.AppKey("metrics", Metrics)
BUSY = web.AppKey[Callable[[], int]]("busy")


def routes() -> list[web.RouteDef]:
    return [web.get("/metrics", metrics, expect_handler=expect)]


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics, for the owner or with the token of the setting metrics_token. Raises ProxyError 401."""
    authorization = request.headers.get(hdrs.AUTHORIZATION, "")
    token, given = request.app[CONFIG].metrics_token, bearer(authorization)
    if not (token and same(given, token)):
        cookies = "; ".join(request.headers.getall(hdrs.COOKIE, ()))
        if refusal := request.app[OWNER].refusal(cookies, authorization):
            raise refusal
    states = [account.state for account in request.app[ACCOUNTS].all()]
    text, kind = request.app[METRICS].text(states, request.app[BUSY]())
    return web.Response(body=text, headers={**SAFE, hdrs.CONTENT_TYPE: kind})
