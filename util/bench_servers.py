"""The servers between which the measuring goes on: python util/bench_servers.py upstream|naive|probed PORT …"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent
WORDS = "The lantern swung over the wet planks while the river went on talking in its sleep about the hills. "


def event(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


USAGE = {"input_tokens": 500, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1}
PLAIN = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "stop_reason": "end_turn",
        "content": [{"type": "text", "text": WORDS * 3}],
        "usage": USAGE,
    }
).encode()
HEAD = event(
    "message_start", message={"id": "msg_1", "model": "claude-sonnet-4-6", "usage": USAGE, "content": []}
) + event("content_block_start", index=0, content_block={"type": "text", "text": ""})
DELTA = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "and then "})
TAIL = (
    event("content_block_stop", index=0)
    + event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 300})
    + event("message_stop")
)


async def serve_upstream(port: int) -> None:
    """A server that does as little as possible, so that what is measured is what stands before it."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(length_of(head))
                events, pause = asked_of(head)
                if not events:
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                        % (len(PLAIN), PLAIN)
                    )
                    continue
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                    + chunk(HEAD)
                )
                for _ in range(events):
                    writer.write(chunk(DELTA))
                    if pause:
                        await asyncio.sleep(pause)
                writer.write(chunk(TAIL) + b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port, limit=2**20, backlog=2048)
    await server.serve_forever()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def length_of(head: bytes) -> int:
    lines = head.lower().split(b"\r\n")
    return next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)


def asked_of(head: bytes) -> tuple[int, float]:
    """How many events a request asks for, and how far apart: anthropic-user-profile-id passes every proxy unchanged."""
    for line in head.split(b"\r\n"):
        if line.startswith(b"anthropic-user-profile-id:"):
            events, pause = line.partition(b":")[2].split(b"/")
            return int(events), float(pause)
    return 0, 0.0


async def serve_naive(port: int, upstream: str) -> None:
    """What a weekend's proxy looks like: parse, dump, forward with httpx2, re-frame each line."""
    import httpx2
    from aiohttp import web

    client = httpx2.AsyncClient(timeout=60, limits=httpx2.Limits(max_connections=2000))

    async def messages(request: web.Request) -> web.StreamResponse:
        body = json.dumps(await request.json())
        headers = {
            "content-type": "application/json",
            "anthropic-user-profile-id": request.headers.get("anthropic-user-profile-id", "0/0"),
        }
        async with client.stream("POST", f"{upstream}/v1/messages", content=body, headers=headers) as answer:
            response = web.StreamResponse(headers={"Content-Type": answer.headers["content-type"]})
            await response.prepare(request)
            async for line in answer.aiter_lines():
                await response.write(line.encode() + b"\n")
            return response

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/messages", messages)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def serve_probed(port: int, upstream: int, folder: str) -> None:
    """The product in this process, with a task that notes how late its timers are."""
    from aiohttp import web

    from server.app import build
    from server.config import Config
    from server.http_server import Runner
    from server.start import listen

    config = Config(data_dir=Path(folder) / "probed", api_base_url=f"http://127.0.0.1:{upstream}")
    runner = Runner(build(config, port).app)
    await runner.setup()
    for made in listen("", port):
        await web.SockSite(runner, made).start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    late = []
    while not stop.is_set():
        begun = loop.time()
        await asyncio.sleep(0.005)
        late.append(loop.time() - begun - 0.005)
    (Path(folder) / "lag.json").write_text(json.dumps(late))
    await runner.cleanup()


def main() -> None:
    which, port, *more = sys.argv[1:]
    if which == "upstream":
        asyncio.run(serve_upstream(int(port)))
    elif which == "naive":
        asyncio.run(serve_naive(int(port), *more))
    else:
        upstream, folder, loop = more
        sys.path.insert(0, str(TOP))
        from server.serve import fastest_loop

        with asyncio.Runner(loop_factory=None if loop == "plain" else fastest_loop()) as runner:
            runner.run(serve_probed(int(port), int(upstream), folder))


if __name__ == "__main__":
    main()
