"""Requests of all sorts, as many as asked for, and an upstream that answers each with what it said."""

import asyncio
import json
import random
from collections import Counter

from tests.fakes import ASK, PLAIN, plain, reply_events, stream
from tests.raw_http import connected, request, send

AT_ONCE = 16
FIRST = b"".join(reply_events("Good ")[:3])  # a beginning of whole events


def cut_short(reply):
    """Whether a streamed reply ends in an `error` event behind whole events, and says nowhere that it is complete."""
    whole, _, last = reply.raw.rpartition(b"event: error\ndata: ")
    said = json.loads(last)
    return (
        reply.status == 200
        and (not whole or whole.endswith(b"\n\n"))
        and last.endswith(b"\n\n")
        and said["type"] == "error"
        and said["error"]["message"].startswith("Upstream connection lost after")
        and said["request_id"] == reply.headers["x-receipt"]
        and b"message_stop" not in reply.raw
    )


async def play(proxy, numbers):
    """Requests of all sorts, some at a time; each reply is looked at word by word. How many there were of each."""
    counts = Counter()
    waiting = iter(numbers)

    async def work():
        for number in waiting:
            luck = random.Random(number)
            kind = luck.choices(("stream", "plain", "hang up", "fault"), (68, 20, 10, 2))[0]
            counts[kind] += 1
            said = {"messages": [{"role": "user", "content": f"number {number} {kind}"}]}
            if kind == "hang up":
                async with connected(proxy.port) as (reader, writer):
                    body = json.dumps({**ASK, **said, "stream": True}).encode()
                    await send(writer, request(proxy.port, body=body))
                    if luck.random() < 0.5:
                        await reader.readuntil(b"message_start")
                continue
            reply = await proxy.ask(stream=kind != "plain", **said)
            if kind == "fault":
                assert reply.status == 502 or cut_short(reply), number
            else:
                assert f"number {number} {kind}" in reply.raw.decode(), number
                assert (b"message_stop" in reply.raw) == (kind == "stream"), number

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return counts


async def echo(request):
    """A reply that says what was asked; every request may ask for a fault of its own."""
    body = await request.json()
    text = body["messages"][0]["content"]
    words = text if isinstance(text, str) else text[0]["text"]
    if "fault" in words:
        broken = stream(FIRST) if len(words) % 2 else stream(b" ")
        return await broken(request)
    if not body.get("stream"):
        return await plain({**PLAIN, "content": [{"type": "text", "text": words}]})(request)
    return await stream(*reply_events(words, " and on"))(request)
