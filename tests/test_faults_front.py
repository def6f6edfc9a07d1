"""Front ends that leave, read slowly or send slowly; the end of the proxy with replies under way; and a soak."""

import asyncio
import json
import socket
import time
from contextlib import AsyncExitStack

import psutil
import pytest

from server.upstream import Patience
from tests.fakes import (
    ASK,
    KEY,
    PATIENCE,
    STREAM_HEAD,
    Always,
    chunked,
    event,
    fake_anthropic,
    raw_upstream,
    reply_events,
    stream,
)
from tests.raw_http import answer_to, connected, request, reset, send, until
from tests.running import AS_RUN, running
from tests.soak import AT_ONCE, FIRST, cut_short, echo, play

pytestmark = pytest.mark.anyio
MIB = 2**20
CHAT = {**ASK, "stream": True}
SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def anyio_backend():
    return AS_RUN


# -- F22: the front end leaves

HANGUPS = [pytest.param(30, id="thirty"), pytest.param(1000, id="a thousand", marks=SLOW)]


@pytest.mark.parametrize("many", HANGUPS)
async def test_when_front_ends_leave_the_upstream_is_left_at_once(tmp_path, figure, many):
    """Before the first byte, in the middle of a stream, and in a plain request, in turns."""
    took = []
    begun, left = asyncio.Event(), asyncio.Event()
    stage = ""

    async def answer_without_end(reader, writer):
        if stage == "stream":
            writer.write(STREAM_HEAD + chunked(FIRST))
        begun.set()
        assert await reader.read() == b""
        left.set()

    async with raw_upstream(answer_without_end) as url, running(tmp_path, url) as proxy:
        tasks = len(asyncio.all_tasks())
        for number in range(many):
            stage = ("first byte", "stream", "plain")[number % 3]
            begun.clear(), left.clear()
            async with asyncio.timeout(PATIENCE), connected(proxy.port) as (reader, writer):
                body = json.dumps({**ASK, "stream": stage != "plain"}).encode()
                await send(writer, request(proxy.port, body=body))
                await begun.wait()
                if stage == "stream":
                    await reader.readuntil(b"content_block_delta")
                gone = time.monotonic()
                if number % 2:
                    reset(writer)
                else:
                    writer.close()
                await left.wait()
                took.append(time.monotonic() - gone)
        await until(lambda: len(asyncio.all_tasks()) <= tasks + 2)
        receipts = await proxy.receipts()
    took.sort()
    half, most, last = (took[int(len(took) * share)] * 1e3 for share in (0.5, 0.99, 0.999))
    figure(f"front end gone, upstream left ({many}): p50 {half:.1f} ms, p99 {most:.1f} ms, last {last:.1f} ms")
    assert {receipt["ended"] for receipt in receipts} == {"client_left"}
    assert len(receipts) == min(many, 1000)


# -- F23: slow readers


async def test_a_front_end_that_reads_nothing_is_given_up_and_holds_little(tmp_path):
    written = 0
    stopped = asyncio.Event()
    block = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * 8000})

    async def talk_without_end(reader, writer):
        nonlocal written
        writer.write(STREAM_HEAD + chunked(FIRST))
        try:
            while True:
                writer.write(chunked(block))
                await writer.drain()
                written += len(block)
        except ConnectionError:
            stopped.set()

    async with raw_upstream(talk_without_end) as url, running(tmp_path, url, patience=Patience(reader=0.5)) as proxy:
        before = psutil.Process().memory_info().rss
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", proxy.port))
            deaf.sendall(request(proxy.port, body=json.dumps(CHAT).encode()))
            await asyncio.wait_for(stopped.wait(), PATIENCE)
            assert psutil.Process().memory_info().rss - before < 48 * MIB
        receipt = (await proxy.receipts())[0]
    assert receipt["ended"] == "client_left"
    assert written < 64 * MIB  # nearly all of it in the system's own buffers


# -- F24: slow senders and good clients beside them


async def test_good_clients_are_served_beside_500_half_open_connections(tmp_path, figure):
    async def asked(proxy):
        began = time.monotonic()
        assert (await answer_to(proxy.port, request(proxy.port))).status == 200
        return time.monotonic() - began

    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy, AsyncExitStack() as stack:
        alone = sorted([await asked(proxy) for _ in range(100)])
        for _ in range(500):
            _, writer = await stack.enter_async_context(connected(proxy.port))
            await send(writer, b"POST /v1/messages HTTP/1.1\r\nHost: ")
        crowded = sorted([await asked(proxy) for _ in range(100)])
    figure(
        f"a request alone: p50 {alone[50] * 1e3:.1f} ms, p99 {alone[99] * 1e3:.1f} ms; "
        f"beside 500 half-open connections: p50 {crowded[50] * 1e3:.1f} ms, p99 {crowded[99] * 1e3:.1f} ms"
    )


# -- F31: the end


async def test_at_the_end_open_streams_get_a_word_and_who_waits_an_answer(tmp_path):
    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy:
        gate = asyncio.Event()

        async def never(request):
            await gate.wait()

        fake.will(stream(FIRST, gate=asyncio.Event()), never)
        streamed = asyncio.create_task(proxy.ask(stream=True))
        await until(lambda: proxy.parts.traffic.busy == 1 and len(fake.seen) == 1)
        waiting = asyncio.create_task(proxy.ask())
        await until(lambda: len(fake.seen) == 2)
        draining = asyncio.create_task(proxy.parts.traffic.drain(0.2))
        await asyncio.sleep(0.05)
        late = await proxy.ask()
        await draining
        cut, told = await streamed, await waiting
        gate.set()
    assert (late.status, late.headers["Connection"]) == (503, "close")
    assert cut_short(cut)
    assert "the proxy was stopped" in cut.raw.decode()
    assert (told.status, told.json["error"]["type"]) == (503, "api_error")
    assert len(fake.seen) == 2


async def test_at_the_end_streams_at_other_addresses_are_waited_for_too(tmp_path):
    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy:
        gate = asyncio.Event()
        fake.will(stream(b"one\n", gate=gate, last=b"two\n"))
        asked = {"headers": {"x-api-key": KEY}}
        async with proxy.session.get(f"{proxy.url}/v1/files/file_1/content", **asked) as reply:
            assert await reply.content.readany() == b"one\n"
            draining = asyncio.create_task(proxy.parts.traffic.drain(PATIENCE))
            await asyncio.sleep(0)
            late = await proxy.send("GET", "/v1/files/file_2/content", **asked)
            assert (late.status, draining.done()) == (503, False)
            gate.set()
            assert await reply.read() == b"two\n"
        await draining


async def play_all_at_once(proxy, fake):
    """As many streams open at one moment as there ever are, so that later ones find a connection of theirs kept."""
    gate = asyncio.Event()
    fake.will(*[stream(FIRST, gate=gate, last=b"".join(reply_events("Good ")[3:])) for _ in range(AT_ONCE)])
    asked = [asyncio.create_task(proxy.ask(stream=True)) for _ in range(AT_ONCE)]
    await until(lambda: not fake.replies)
    gate.set()
    assert all(reply.raw.endswith(b"\n\n") and b"message_stop" in reply.raw for reply in await asyncio.gather(*asked))


def handles():
    return psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else psutil.Process().num_handles()


# -- F37: a soak


async def test_a_soak_leaves_descriptors_and_tasks_as_they_were(tmp_path):
    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy:
        kept, fake.replies = fake.replies, Always(echo)
        await play(proxy, range(200))
        fake.replies = kept
        await play_all_at_once(proxy, fake)
        fake.replies = Always(echo)
        tasks, descriptors = len(asyncio.all_tasks()), handles()
        counts = await play(proxy, range(200, 600))
        await until(lambda: len(asyncio.all_tasks()) <= tasks + 5 and handles() <= descriptors + 5)
        assert counts.total() == 400
