"""The edge of our HTTP server: how many may connect and how slow they may be, and aiohttp's own errors in our shape."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import orjson
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError

from server.errors import ProxyError
from server.guard import PACKED
from server.receipt import new_id

log = logging.getLogger(__name__)

KEEP_ALIVE = 75.0  # seconds a front end's idle connection stays open
PARSER: dict[str, Any] = {"max_line_size": 8190, "max_field_size": 8190, "max_headers": 128}


@dataclass(frozen=True)
class Limits:
    """What a connection may take of us. aiohttp sets no such bounds (seen with 3.14.5)."""

    connections: int = 1000
    connections_per_peer: int = 100  # this computer itself is no stranger: it may use all of them
    head_seconds: float = 10.0
    head_bytes: int = 64 * 1024
    body_grace: float = 30.0  # seconds; from then on a body must keep this pace in each window
    body_window: float = 10.0
    body_bytes_per_second: int = 1024
    body_overhead: int = 2**20  # bytes of chunk sizes, extensions and trailers, and eight more for each byte of body


class Connection(web.RequestHandler):
    """A front end's connection, watched while it sends. Its framing errors get JSON; aiohttp's own answer repeats the
    client's bytes as plain text."""

    def __init__(self, server: Server, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._server, self._limits = server, server.limits
        self._refused = False
        self._watch: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # of a head that is not complete yet
        self._body: Any = None  # the body that is arriving, as aiohttp's reader
        self._body_began = 0.0
        self._body_bytes = 0  # that came on the wire
        self._body_pace = 0  # of the body itself, when the current window began
        self.peer = ""

    @property
    def idle(self) -> bool:
        """Whether it waits for a request, or for the rest of one's head."""
        return not self._request_count or (self._waiter is not None and not self._waiter.done())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.peer = peer_of(transport)
        if not self._server.has_room_for(self):
            self._refused = True
            log.debug("Too many connections at once; one more was refused.")
            newcomer = cast(asyncio.Transport, transport)
            newcomer.write(bare_answer(503, "Too many connections to the proxy at once. Try again in a moment."))
            newcomer.close()
            return
        super().connection_made(transport)
        self._watch_for(self._limits.head_seconds, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_watching()
        if not self._refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        requests = self._request_count
        super().data_received(data)
        if self._request_count != requests:
            self._head_bytes = 0
            self._stop_watching()
            body = self._messages[-1][1] if self._messages else None
            self._body = None if body is None or body.is_eof() else body
            if self._body is not None:
                self._body_began, self._body_bytes, self._body_pace = self._loop.time(), 0, 0
                self._watch_for(self._limits.body_window, self._look_at_body)
        elif self._body is not None:
            self._body_bytes += len(data)
            if self._body.is_eof():
                self._body = None
                self._stop_watching()
            elif self._body_bytes > self._limits.body_overhead + 9 * came(self._body):
                self._give_up(ProxyError(400, "The request is nearly all wrapping and no content."))
        elif data:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.head_bytes:
                self._turn_away(431, "The head of the request is too long.")
            elif self._watch is None:
                self._watch_for(self._limits.head_seconds, self._head_is_late)

    def _watch_for(self, seconds: float, then: Any) -> None:
        self._watch = self._loop.call_later(seconds, then)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _head_is_late(self) -> None:
        self._watch = None
        if self.idle and self._head_bytes:
            self._turn_away(408, "The request did not arrive in time. Try again.")
        elif self.idle:
            self.force_close()  # opened ahead by a browser, and not used

    def _look_at_body(self) -> None:
        """Whether the body kept pace in the window that ends now. While we do not read it, no sender is to blame."""
        self._watch = None
        if self._body is None or self._body.is_eof():
            return
        limits = self._limits
        arrived, self._body_pace = came(self._body) - self._body_pace, came(self._body)
        graced = self._loop.time() - self._body_began < limits.body_grace
        if graced or self._reading_paused or arrived >= limits.body_bytes_per_second * limits.body_window:
            self._watch_for(limits.body_window, self._look_at_body)
        else:
            self._give_up(ProxyError(408, "The request stopped arriving. Check your network, then try again."))

    def _give_up(self, error: ProxyError) -> None:
        """Tell whoever reads the body; aiohttp closes a connection whose request it could not read to the end."""
        self._stop_watching()
        if self._body is not None:
            self._body.set_exception(error)

    def _turn_away(self, status: int, words: str) -> None:
        """Close it; with an answer if no other is under way."""
        if self.idle and self.transport is not None:
            self.transport.write(bare_answer(status, words))
        self.force_close()

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
        elif isinstance(exc, ContentEncodingError):
            status, words = 415, PACKED
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


def came(body: Any) -> int:
    """The bytes of a body that have come, as they were packed."""
    return int(body.total_compressed_bytes or body.total_bytes)


def peer_of(transport: asyncio.BaseTransport) -> str:
    """The address at the other end; "" for this computer itself, whichever of its addresses it used."""
    name = transport.get_extra_info("peername")
    try:
        address = ipaddress.ip_address(name[0].partition("%")[0])
    except (TypeError, IndexError, ValueError):
        return ""  # no address: a socket of this computer's
    return "" if address.is_loopback else str(address)


def bare_answer(status: int, words: str) -> bytes:
    """An error in our shape as the bytes of a whole answer, for a connection on which no request was read."""
    request_id = new_id()
    body = orjson.dumps(ProxyError(status, words).body(request_id))
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nrequest-id: {request_id}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class Server(web.Server):
    """aiohttp's server, with connections of ours, and not more of them than there is room for."""

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits

    def __call__(self) -> web.RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    def has_room_for(self, newcomer: Connection) -> bool:
        """Whether one more may come in. Where it is full, an idle one must go for it: one that never asked if there is
        any, and the oldest of them."""
        limits = self.limits
        most = min(limits.connections, limits.connections_per_peer) if newcomer.peer else limits.connections
        if len(self._connections) < most:
            return True
        present = [one for one in self._connections if isinstance(one, Connection) and one.transport is not None]
        same_peer = [one for one in present if one.peer == newcomer.peer]
        if len(present) >= self.limits.connections:
            crowd = present
        elif newcomer.peer and len(same_peer) >= self.limits.connections_per_peer:
            crowd = same_peer
        else:
            return True
        idle = sorted((one for one in crowd if one.idle), key=lambda one: one._request_count > 0)
        if idle:
            idle[0].force_close()
        return bool(idle)


class Runner(web.AppRunner):
    """aiohttp's application runner, with a server of ours. A handler is cancelled at once when its client leaves."""

    def __init__(self, app: web.Application, *, limits: Limits | None = None, **kwargs: Any) -> None:
        super().__init__(
            app, access_log=None, handler_cancellation=True, keepalive_timeout=KEEP_ALIVE, **PARSER, **kwargs
        )
        self._limits = limits or Limits()

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=True,
            limits=self._limits,
            **made._kwargs,
        )
