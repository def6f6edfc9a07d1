"""The address that a Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import hdrs, web

from server.metrics import Metrics
from server.owner import cookies_of
from server.pages.page import ACCOUNTS, CONFIG, OWNER, SAFE, route
from server.secret import bearer, same

METRICS = web.AppKey("metrics", Metrics)
BUSY = web.AppKey[Callable[[], int]]("busy")


def routes() -> list[web.RouteDef]:
    return [route("GET", "/metrics", metrics)]


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics, for the owner or with the token of the setting metrics_token. Raises ProxyError 401."""
    authorization = request.headers.get(hdrs.AUTHORIZATION, "")
    token, owner = request.app[CONFIG].metrics_token, request.app[OWNER]
    is_prometheus = bool(token) and same(bearer(authorization), token)
    if not is_prometheus and (refusal := owner.refusal(cookies_of(request.headers), authorization)):
        raise refusal
    states = [account.state for account in request.app[ACCOUNTS].all()]
    text, kind = request.app[METRICS].text(states, request.app[BUSY]())
    return web.Response(body=text, headers={**SAFE, hdrs.CONTENT_TYPE: kind})
