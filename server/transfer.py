"""Bodies over a front end's connection: read within bounds, and sent as they come."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web

from server import guard
from server.errors import ProxyError
from server.reply import Reply
from server.upstream import Broken, Silence

MAX_BODY = 32 * 1024 * 1024  # bytes, as the API itself
STALLED_BYTES = 32 * 1024  # waiting to be sent: so many say that it reads slowly (asyncio waits from 64 KiB on)


async def read_body(request: web.Request) -> bytes:
    """The body, refused by its declared length before a byte of it is read. Raises ProxyError 413."""
    too_large = ProxyError(413, guard.TOO_LARGE)
    if request.content_length is not None and request.content_length > MAX_BODY:
        raise too_large
    try:
        # aiohttp's read() would unpack without a bound between two looks at the size, and keep the body as long as the
        # request (seen with 3.14.5)
        body = io.BytesIO()
        while not request.content.at_eof():
            body.write((await request.content.readchunk())[0])
            if body.tell() > MAX_BODY:
                request.content.set_exception(too_large)  # nor unpack the rest while it waits for the end
                raise too_large
        return body.getvalue()
    except web.RequestPayloadError:
        raise ProxyError(400, guard.DAMAGED) from None


def whole(reply: Reply) -> web.Response:
    return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


async def send(
    request: web.Request, response: web.StreamResponse, chunks: AsyncGenerator[bytes], patience: float
) -> bool:
    """Send these as they come, waiting so many seconds for a front end that reads nothing. Whether all were sent; else
    the connection is cut, so that nobody takes them for whole."""
    try:
        await response.prepare(request)
        transport = request.transport
        async with aclosing(chunks):
            async for chunk in chunks:
                if slow(transport) or len(chunk) > STALLED_BYTES:
                    async with asyncio.timeout(patience):
                        await response.write(chunk)
                else:
                    await response.write(chunk)
        await response.write_eof()
    except (Broken, Silence, ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()
        return False
    return True


def slow(transport: asyncio.Transport | None) -> bool:
    """Whether the front end has left much unread, so that the next write may wait for it."""
    return transport is not None and transport.get_write_buffer_size() > STALLED_BYTES
