"""The way to Anthropic: connections kept warm, answers read piece by piece, foreign errors translated."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from aiohttp.http import HttpProcessingError
from yarl import URL

from server import __version__
from server.errors import ProxyError
from server.wire import READ, Connections, Exchange, Likeness, exchange, head_of, likeness_of

log = logging.getLogger(__name__)

T = TypeVar("T")
USER_AGENT = f"tavern-proxy/{__version__}"
MAX_BODY = 64 * 1024 * 1024  # bytes of a plain reply
MAX_UNPACKED = 16 * 1024 * 1024  # bytes of one that came packed, although nobody asked for that
PIECE = 256 * 1024  # bytes unpacked at a time
KEEP_ALIVE = 300.0  # seconds an idle connection waits for the next turn; people think for minutes


@dataclass(frozen=True)
class Patience:
    """How long is waited for what, in seconds."""

    connect: float = 5.0
    first_byte: float = 600.0  # of an answer: thinking is slow
    idle: float = 90.0  # between two events of a reply
    ping: float = 15.0  # in such a silence, to the front end; the API's own pings come about as often
    reader: float = 120.0  # for a front end that reads nothing


class UpstreamFailed(ProxyError):
    """The upstream gave no usable answer. `unsent`: it cannot have begun to work on the request. `unanswered`: not a
    byte of an answer came."""

    def __init__(self, status: int, message: str, *, unsent: bool = False, unanswered: bool = False) -> None:
        super().__init__(status, message)
        self.unsent, self.unanswered = unsent, unsent or unanswered


class Broken(Exception):
    """A reply that had begun broke off: why, in words that end the sentence “Upstream connection lost (…)”."""


class Silence(Exception):
    """No byte came within the time a read waits; the reply may still go on."""


class Answer:
    """The upstream's answer from its headers on. Read it whole or piece by piece, then close it."""

    def __init__(self, exchange: Exchange, watch: Watch) -> None:
        self.status = exchange.message.code
        self.headers = exchange.message.headers
        self._exchange, self._watch = exchange, watch
        self._content = exchange.content
        self._packed = unpacking(self.headers)
        # After a malformed chunk aiohttp's reader waits for ever, though the connection is gone (seen with 3.14.5)
        protocol = exchange.connection.protocol
        self._closed = None if protocol is None else protocol.closed
        if self._closed is not None:
            self._closed.add_done_callback(self._lost)

    def _lost(self, closed: asyncio.Future[None]) -> None:
        error = closed.exception()
        if not self._content.is_eof() and self._content.exception() is None:
            self._content.set_exception(aiohttp.ClientPayloadError(str(error or "malformed or shortened message")))

    def interrupt(self, why: str) -> None:
        """End the reply from our side: whoever reads it gets Broken with these words."""
        if not self._content.is_eof():
            self._content.set_exception(Broken(why))

    async def read_some(self, patience: float) -> bytes:
        """The next bytes, b"" at the end. Raises Silence after `patience` seconds without one, Broken if it broke."""
        if self._packed is None:
            return await self._read(patience)
        while not (piece := self._packed.next_piece()):
            if not (chunk := await self._read(patience)):
                self._packed.end()
                return b""
            self._packed.waiting = chunk
        return piece

    async def _read(self, patience: float) -> bytes:
        try:
            if chunk := self._content.read_nowait(READ):
                return chunk
            if self._content.at_eof():
                return b""
            return await self._watch.wait(self._content.read(READ), patience)
        except TimeoutError:
            raise Silence from None
        except (aiohttp.ClientError, OSError) as error:
            if rest := self._content._read_nowait(-1):  # came before the break; aiohttp would throw it away
                return rest
            raise Broken(reason(error)) from error

    async def read_all(self, patience: float) -> bytes:
        """The whole body. Raises UpstreamFailed when it breaks off, stalls or grows beyond all measure."""
        body, most = bytearray(), MAX_BODY if self._packed is None else MAX_UNPACKED
        try:
            while chunk := await self.read_some(patience):
                body += chunk
                if len(body) > most:
                    raise UpstreamFailed(502, "The upstream's reply is far too large to be one. Try again.")
        except Silence:
            raise UpstreamFailed(
                504, f"The upstream fell silent in the middle of its reply for {patience:.0f} s. Try again."
            ) from None
        except Broken as error:
            raise UpstreamFailed(502, f"The upstream's reply broke off ({error}). Try again.") from error
        return bytes(body)

    def close(self) -> None:
        """Give the connection back for the next request if the reply was read to its end, else close it at once."""
        self._watch.stop()
        if self._closed is not None:
            self._closed.remove_done_callback(self._lost)
        self._exchange.end()


class Watch:
    """What `asyncio.timeout` does, for many waits in a row: one timer, set anew only when it rings too early."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = self._until = 0.0
        self._waiting: asyncio.Task[Any] | None = None
        self._rang = False

    async def wait(self, reading: Coroutine[Any, Any, T], patience: float) -> T:
        """What `reading` brings. Raises TimeoutError after so many seconds."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can wait")
        cancelled = task.cancelling()
        self._waiting, self._rang = task, False
        self._until = self._loop.time() + patience
        if self._timer is None or self._until < self._rings_at:
            self._set()
        try:
            return await reading
        except asyncio.CancelledError:
            if self._rang and task.uncancel() <= cancelled:
                raise TimeoutError from None
            raise
        finally:
            self._waiting = None

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self) -> None:
        self.stop()
        self._rings_at = self._until
        self._timer = self._loop.call_at(self._until, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiting is None:
            return
        if self._loop.time() < self._until:
            self._set()
        elif not self._rang:
            self._rang = True
            self._waiting.cancel()


class Packed:
    """A packed body, unpacked a piece at a time: however much is in it, no more than a piece is held."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, as its first bytes say
        self.waiting = b""

    def next_piece(self) -> bytes:
        """What comes next; b"" when more must be read first. Raises Broken."""
        try:
            piece = self._zlib.decompress(self.waiting, PIECE)
        except zlib.error:
            raise Broken("it could not be unpacked") from None
        self.waiting = self._zlib.unconsumed_tail
        return piece

    def end(self) -> None:
        """Raises Broken unless this is where the packed body ends."""
        if not self._zlib.eof:
            raise Broken("it ended too early")


def unpacking(headers: Mapping[str, str]) -> Packed | None:
    """How to unpack a body with these headers; None where it is not packed. Raises UpstreamFailed if we cannot."""
    packing = headers.get("Content-Encoding", "").strip().lower()
    if packing in ("", "identity"):
        return None
    if packing in ("gzip", "x-gzip", "deflate"):
        return Packed()
    raise UpstreamFailed(502, "The upstream's answer is packed in a way nobody asked for. Check api_base_url.")


class Upstream:
    """The connections to Anthropic-schema endpoints, kept warm for minutes."""

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
        self._warming: dict[str, asyncio.Task[bool]] = {}
        self._likenesses: dict[str, Likeness] = {}
        self._kept: Connections | None = None
        self._fresh: Connections | None = None  # opens a connection for each request, and keeps none

    async def open(self) -> None:
        self._kept = Connections(self._patience.connect, keepalive_timeout=KEEP_ALIVE)
        self._fresh = Connections(self._patience.connect, force_close=True)

    async def close(self) -> None:
        for task in self._warming.values():
            task.cancel()
        for connections in (self._kept, self._fresh):
            if connections is not None:
                await connections.close()

    def warm(self, base_url: str) -> None:
        """Have a connection to this upstream open by the time the request's body has arrived."""
        likeness = self._likeness(base_url)
        task = self._warming.get(base_url)
        if (task is None or task.done()) and not opened(self._kept).any_idle(likeness):
            self._warming[base_url] = asyncio.create_task(self._warm(likeness))

    def _likeness(self, base_url: str) -> Likeness:
        known = self._likenesses.get(base_url)
        if known is None:
            known = self._likenesses[base_url] = likeness_of(base_url)
        return known

    async def _warm(self, likeness: Likeness) -> bool:
        """Whether the time to connect did suffice."""
        try:
            await opened(self._kept).open_ahead(likeness)
        except TimeoutError:
            return False
        except (aiohttp.ClientError, OSError) as error:
            log.debug("No connection ahead of the request: %s", reason(error))
        return True

    async def send(
        self, method: str, base_url: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        """One attempt, answered from its headers on. Sends again once, on a new connection, when one kept from an
        earlier turn turns out to be dead before a byte came back. Raises UpstreamFailed."""
        if (warming := self._warming.get(base_url)) is not None and not warming.done():
            await asyncio.wait([warming])
            if not warming.cancelled() and not warming.result():
                raise connect_timeout(URL(base_url))
        try:
            return await self._attempt(opened(self._kept), method, base_url, target, headers, body)
        except _StaleConnection:
            return await self._attempt(opened(self._fresh), method, base_url, target, headers, body)

    async def _attempt(
        self,
        connections: Connections,
        method: str,
        base_url: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> Answer:
        likeness = self._likeness(base_url)
        headers = {"Host": likeness.headers["Host"], **headers}
        if connections.force_close:
            headers["Connection"] = "close"
        url = URL(base_url + target, encoded=True)
        head = head_of(method, url.raw_path_qs, headers, body)
        watch, used = Watch(), False

        async def sent() -> Exchange:
            nonlocal used
            try:
                connection, used = await connections.take(likeness)
            except TimeoutError as error:
                raise connect_timeout(url) from error
            return await exchange(connection, head, body or b"")

        try:
            begun = await watch.wait(sent(), self._patience.first_byte)
        except TimeoutError as error:
            raise UpstreamFailed(
                504, f"The upstream gave no answer within {self._patience.first_byte:.0f} s. Try again."
            ) from error
        except aiohttp.ClientConnectorError as error:
            raise refused(url, error) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, OSError) as error:
            if used:
                raise _StaleConnection from error
            raise UpstreamFailed(
                502,
                f"The upstream closed the connection without an answer ({reason(error)}). Try again.",
                unanswered=True,
            ) from error
        except (aiohttp.ClientError, HttpProcessingError) as error:
            raise UpstreamFailed(
                502, f"The upstream's answer could not be read ({reason(error)}). Try again."
            ) from error
        finally:
            watch.stop()
        try:
            return Answer(begun, watch)
        except UpstreamFailed:
            begun.connection.close()
            raise


def opened(connections: Connections | None) -> Connections:
    if connections is None:
        raise RuntimeError("Upstream is used before open()")
    return connections


class _StaleConnection(Exception):
    """A connection kept from an earlier turn was dead; nothing came back on it."""


def connect_timeout(url: URL) -> UpstreamFailed:
    """Nobody took the connection. Not `unsent`: the front end has waited long enough to be told."""
    return UpstreamFailed(504, f"{url.host} did not take the connection in time. Check your internet connection.")


def refused(url: URL, error: aiohttp.ClientConnectorError) -> UpstreamFailed:
    """No connection was made: the name is unknown, nobody listens, or TLS failed."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        what = f"The address {url.host} cannot be found."
    elif isinstance(error, aiohttp.ClientSSLError):
        what = f"No secure connection to {url.host} ({reason(error)})."
    else:
        what = f"{url.host}:{url.port} cannot be reached ({reason(error)})."
    return UpstreamFailed(502, f"{what} Check your internet connection, then send again.", unsent=True)


def reason(error: BaseException) -> str:
    """A short, harmless cause: no addresses' contents, no bytes of the message."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted"
    os_error = getattr(error, "os_error", error)
    if words := getattr(os_error, "strerror", None):
        return str(words).split(" (")[0].lower()
    match error:
        case ConnectionResetError() | BrokenPipeError():
            return "connection reset"
        case aiohttp.ServerDisconnectedError():
            return "connection closed"
        case aiohttp.ClientPayloadError():
            return "the message was cut short or garbled"
        case HttpProcessingError():
            return "not a proper HTTP answer"
    return type(error).__name__
