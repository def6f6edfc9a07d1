"""One request and the head of its answer on a connection: all that is used of aiohttp's client, its pool and parser."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage
from yarl import URL

AT_ONCE = 2**20  # bytes of a body that is handed over at once; of a larger one, a PIECE at a time
PIECE = 256 * 1024
READ = 16 * 1024  # bytes read at a time; a front end that reads slowly leaves no more than some of them waiting


Likeness = aiohttp.ClientRequest


def likeness_of(base_url: str) -> Likeness:
    """A request that is never sent: by it aiohttp knows which connection is asked for, and how to open one."""
    return aiohttp.ClientRequest("HEAD", URL(base_url), loop=asyncio.get_running_loop())


class Connections(aiohttp.TCPConnector):
    """The connections of one kind, and which of them have carried a request before: only such a one may have died in
    silence. One opened ahead has not."""

    def __init__(self, connect: float, **kept: Any) -> None:
        super().__init__(limit=0, ttl_dns_cache=300, socket_factory=watchful_socket, **kept)
        self._used: WeakSet[Any] = WeakSet()
        self._patience = aiohttp.ClientTimeout(total=None, connect=connect)

    async def take(self, likeness: Likeness) -> tuple[Connection, bool]:
        """A connection, and whether it has been used. Raises TimeoutError when nobody takes it in time."""
        connection = await self.connect(likeness, [], self._patience)
        protocol = connection.protocol
        used = protocol in self._used
        if not used and protocol is not None and protocol.closed is not None:
            self._used.add(protocol)
            protocol.closed.add_done_callback(seen)
        return connection, used

    async def open_ahead(self, likeness: Likeness) -> None:
        """Have a connection for a request like this one wait for it."""
        connection = await self.connect(likeness, [], self._patience)
        connection.release()

    def any_idle(self, likeness: Likeness) -> bool:
        """Whether a connection waits for a request like this one."""
        return any(protocol.is_connected() for protocol, _ in self._conns.get(likeness.connection_key, ()))


class Exchange(NamedTuple):
    """One request on a connection, and the answer's head; its body comes into `content`. `sending`: what is still on
    its way of a large request."""

    connection: Connection
    sending: asyncio.Task[None] | None
    message: RawResponseMessage
    content: aiohttp.StreamReader

    def end(self) -> None:
        """Give the connection back for the next request if both sides said all they had to say, else close it."""
        if self.sending is not None and not self.sending.done():
            self.sending.cancel()
            self.connection.close()
        elif self.content.is_eof():
            self.connection.release()
        else:
            self.connection.close()


def seen(closed: asyncio.Future[None]) -> None:
    """Keep asyncio from reporting that nobody asked how a connection ended."""
    if not closed.cancelled():
        closed.exception()


async def exchange(connection: Connection, head: bytes, body: bytes) -> Exchange:
    """Send a request and read the head of its answer. Raises aiohttp's errors.

    HttpProcessingError: what came is no HTTP.
    """
    protocol = connection.protocol
    if protocol is None or protocol.transport is None:
        connection.close()
        raise aiohttp.ServerDisconnectedError
    protocol.set_response_params(
        skip_payload=head.startswith(b"HEAD "), read_until_eof=True, auto_decompress=False, read_bufsize=READ
    )
    sending = None
    try:
        if len(body) <= AT_ONCE:
            # an empty piece at the end keeps asyncio's own loop busy for good (Python 3.12.1)
            protocol.transport.writelines((head, body) if body else (head,))
        else:
            sending = asyncio.create_task(send_in_pieces(protocol, head, body))
        while True:
            message, content = await protocol.read()
            if not 100 <= message.code < 200:
                return Exchange(connection, sending, message, content)
    except BaseException:
        if sending is not None:
            sending.cancel()
        connection.close()
        raise


async def send_in_pieces(protocol: ResponseHandler, head: bytes, body: bytes) -> None:
    """Send a large request as fast as it is taken. Who reads the answer hears of a connection that breaks."""
    rest = memoryview(body)
    pieces: list[bytes | memoryview] = [head, *(rest[i : i + PIECE] for i in range(0, len(body), PIECE))]
    with suppress(ConnectionError):
        for piece in pieces:
            if protocol.transport is None:
                break
            protocol.transport.write(piece)
            await protocol._drain_helper()


def head_of(method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """A request's head. Raises ValueError for a line break inside it."""
    lines = [f"{method} {target} HTTP/1.1", *map(": ".join, headers.items())]
    if body is not None or method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(body or b'')}")
    head = "\r\n".join([*lines, "", ""])
    if not head.count("\n") == head.count("\r") == len(lines) + 1:
        raise ValueError("a header with a line break")
    return head.encode(errors="surrogateescape")  # odd bytes as the front end sent them


def watchful_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that notices within half a minute when nobody is at the other end any more: after a laptop's sleep, or
    behind a router that has forgotten the connection, nothing else would."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 30_000),
    ):
        if (number := getattr(socket, option, None)) is not None:  # each system has some of them
            made.setsockopt(socket.IPPROTO_TCP, number, value)
    return made
