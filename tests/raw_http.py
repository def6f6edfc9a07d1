"""HTTP by hand: exact bytes out, what came back in. Libraries repair what a test wants to break."""

import asyncio
import json
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.fakes import ASK, KEY, PATIENCE

CHAT = json.dumps(ASK).encode()


def request(
    port,
    *headers,
    body=CHAT,
    method="POST",
    target="/v1/messages",
    version="HTTP/1.1",
    host=None,
    length=True,
    json_type=True,
):
    """The bytes of a chat request in good order, but for what is asked for."""
    lines = [f"{method} {target} {version}".encode("latin-1").rstrip()]
    lines += [f"Host: {host or f'127.0.0.1:{port}'}".encode()] if host != "" else []
    lines += [f"x-api-key: {KEY}".encode()] if not any(h.lower().startswith("x-api-key") for h in headers) else []
    lines += [b"Content-Type: application/json"] if json_type else []
    lines += [header.encode("latin-1") for header in headers]
    lines += [b"Content-Length: %d" % len(body)] if length else []
    return b"\r\n".join([*lines, b"", body])


@dataclass(frozen=True)
class Got:
    """An answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def error(self):
        """The error in it, after a look at its shape."""
        assert self.headers["content-type"].startswith("application/json")
        body = json.loads(self.raw)
        assert body.keys() == {"type", "error", "request_id"}
        assert body["type"] == "error"
        assert body["error"].keys() == {"type", "message"}
        assert body["request_id"] == self.headers["request-id"]
        assert not any(name.startswith("access-control") for name in self.headers)
        return body["error"]


@asynccontextmanager
async def connected(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    try:
        yield reader, writer
    finally:
        writer.close()


async def one_answer(reader):
    """The next answer on a connection; None when it was closed instead."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except ConnectionError:
        return None
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *rest = head.decode("latin-1").strip().split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    status = int(first.split(" ")[1])
    if status < 200 or status in (204, 304):
        return Got(status, headers, b"")
    if "content-length" in headers:
        return Got(status, headers, await reader.readexactly(int(headers["content-length"])))
    assert headers.get("transfer-encoding") == "chunked", head
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return Got(status, headers, body)


async def is_closed(reader):
    """Wait for the other side to close; what it still sends is an answer nobody asked for."""
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


async def answer_to(port, sent):
    """The answer to these bytes, None when the connection was closed without one."""
    async with asyncio.timeout(PATIENCE), connected(port) as (reader, writer):
        await send(writer, sent)
        return await one_answer(reader)


async def send(writer, sent):
    """Write, also when the other side has already refused and closed."""
    try:
        writer.write(sent)
        await writer.drain()
    except ConnectionError:
        pass


def reset(writer):
    """Drop a connection with RST, as a router does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def until(true):
    """Wait for this to be so."""
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.005)
