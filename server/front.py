"""The edge of our HTTP server: what aiohttp would answer by itself, in our own error shape."""

from __future__ import annotations

import logging
from typing import Any

import orjson
from aiohttp import web

from server.errors import ProxyError
from server.usage import new_id

log = logging.getLogger(__name__)

KEEP_ALIVE = 75.0  # seconds a front end's idle connection stays open
LIMITS: dict[str, Any] = {"max_line_size": 8190, "max_field_size": 8190, "max_headers": 128}


class Connection(web.RequestHandler):
    """A connection whose framing errors get JSON; aiohttp's own answer repeats the client's bytes as plain text."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("The answer has begun; no other can be sent on this connection.")
        log.info("Answered %d to a request that could not be read (%s).", status, type(exc).__name__)
        if status >= 500:
            words = "The proxy itself failed; its log says where. Try again."
        else:
            words = (
                "This is not a request the proxy can read. Check what is typed as proxy URL: it begins with http://."
            )
        request_id = new_id()
        response = web.Response(
            status=status,
            body=orjson.dumps(ProxyError(status, words).body(request_id)),
            content_type="application/json",
            headers={"request-id": request_id},
        )
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """aiohttp's own lines may carry a client's bytes; `handle_error` and the guard write ours."""


class Server(web.Server):
    """aiohttp's server, with connections of ours."""

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """aiohttp's application runner, with a server of ours. A handler is cancelled at once when its client leaves."""

    def __init__(self, app: web.Application, **kwargs: Any) -> None:
        super().__init__(
            app, access_log=None, handler_cancellation=True, keepalive_timeout=KEEP_ALIVE, **LIMITS, **kwargs
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(
            made.request_handler, request_factory=made.request_factory, handler_cancellation=True, **made._kwargs
        )
