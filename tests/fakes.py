"""A real local upstream whose replies a test queues, and one that writes exact bytes."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

PATIENCE = 60.0  # seconds, far more than any machine needs: where they pass, something hangs
KEY = "sk-ant-api03-a-key-of-the-tests-0001"
ASK = {"model": "claude-sonnet-4-6", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}
USAGE = {
    "input_tokens": 7,
    "cache_creation_input_tokens": 5,
    "cache_read_input_tokens": 11,
    "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 3},
    "output_tokens": 1,
}


def event(type_: str, **data: Any) -> bytes:
    return f"event: {type_}\ndata: {json.dumps({'type': type_, **data})}\n\n".encode()


def reply_events(
    *words: str,
    stop_reason: str = "end_turn",
    model: str = "claude-sonnet-4-6",
    usage: Mapping[str, Any] = USAGE,
    output: int = 3,
) -> list[bytes]:
    """A whole streamed reply, event by event; `output` is what its end says of its tokens."""
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [], "usage": usage}
    return [
        event("message_start", message={**message, "stop_reason": None}),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *(event("content_block_delta", index=0, delta={"type": "text_delta", "text": word}) for word in words),
        event("content_block_stop", index=0),
        event(
            "message_delta", delta={"stop_reason": stop_reason, "stop_sequence": None}, usage={"output_tokens": output}
        ),
        event("message_stop"),
    ]


STREAM = b"".join(reply_events("Good ", "evening."))
PLAIN = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-6",
    "content": [{"type": "text", "text": "Good evening."}],
    "stop_reason": "end_turn",
    "usage": {**USAGE, "output_tokens": 3},
}

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    """A request as it reached the upstream."""

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


@dataclass
class FakeAnthropic:
    """Queue replies, then read what reached it. With the queue empty it answers in the way asked for."""

    replies: deque[Reply] | Always = field(default_factory=deque)
    answer: Callable[[Seen], Reply] | None = None
    seen: list[Seen] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)
    transports: set[asyncio.Transport] = field(default_factory=set)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.method, request.path_qs, dict(request.headers), await request.read())
        self.seen.append(seen)
        self.connections.add(id(request.transport))
        if request.transport is not None:
            self.transports.add(request.transport)
        try:
            if self.replies:
                return await self.replies.popleft()(request)
            if self.answer:
                return await self.answer(seen)(request)
            return await (stream() if self.seen[-1].raw and self.seen[-1].body.get("stream") else plain())(request)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise

    def will(self, *replies: Reply) -> None:
        self.replies.extend(replies)


def plain(body: Any = PLAIN, status: int = 200, content_type: str = "application/json", **headers: str) -> Reply:
    """A whole answer; bytes go out as they are."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def reply(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=raw, content_type=content_type, headers=named)

    return reply


def error(status: int, type_: str, message: str, code: str = "", **headers: str) -> Reply:
    details = {"details": {"error_code": code}} if code else {}
    body = {"type": "error", "error": {"type": type_, "message": message, **details}, "request_id": "req_upstream"}
    return plain(body, status, request_id="req_upstream", **headers)


def stream(*chunks: bytes, gate: asyncio.Event | None = None, last: bytes = b"") -> Reply:
    """A streamed answer in these writes; with a gate it waits there, then sends `last`."""

    async def reply(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "request-id": "req_upstream"})
        await response.prepare(request)
        for chunk in chunks or (STREAM,):
            await response.write(chunk)
        if gate is not None:
            await gate.wait()
            await response.write(last)
        await response.write_eof()
        return response

    return reply


class Always:
    """The same reply for ever, in the place of a queue of them."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply

    def __bool__(self) -> bool:
        return True

    def popleft(self) -> Reply:
        return self.reply


@asynccontextmanager
async def fake_anthropic() -> AsyncIterator[FakeAnthropic]:
    fake = FakeAnthropic()
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_route("*", "/{path:.*}", fake.handle)
    server = TestServer(app)
    await server.start_server()
    fake.url = f"http://127.0.0.1:{server.port}"
    try:
        yield fake
    finally:
        await server.close()


@asynccontextmanager
async def raw_upstream(
    *answers: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """An upstream that reads one request on each connection, then does what the test says with the bare socket."""
    waiting = deque(answers)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await read_request(reader)
                await (waiting.popleft() if len(waiting) > 1 else waiting[0])(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        server.close_clients() if hasattr(server, "close_clients") else None


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    return head + await reader.readexactly(length)


def chunked(data: bytes) -> bytes:
    """One chunk of a chunked message."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
