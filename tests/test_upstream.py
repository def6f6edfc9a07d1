import asyncio
import socket
import struct
from contextlib import suppress

import pytest

from server.upstream import Broken, Patience, Silence, Upstream, UpstreamFailed, Watch
from tests.fakes import (
    PATIENCE,
    STREAM,
    STREAM_HEAD,
    chunked,
    fake_anthropic,
    plain,
    raw_upstream,
    reply_events,
    stream,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def upstream():
    made = Upstream(Patience(connect=PATIENCE, first_byte=PATIENCE))
    await made.open()
    yield made
    await made.close()


async def post(upstream, url, body=b"{}", headers=None):
    return await upstream.send("POST", url, "/v1/messages", headers or {}, body)


async def read_until_the_end(answer):
    got = b""
    while chunk := await answer.read_some(PATIENCE):
        got += chunk
    return got


async def test_a_stream_comes_through_byte_for_byte(upstream):
    async with fake_anthropic() as fake:
        fake.will(stream(STREAM))
        answer = await post(upstream, fake.url)
        assert await read_until_the_end(answer) == STREAM
        answer.close()


async def test_the_next_turn_uses_the_same_connection(upstream):
    async with fake_anthropic() as fake:
        for _ in range(3):
            answer = await post(upstream, fake.url)
            await answer.read_all(PATIENCE)
            answer.close()
        assert len(fake.connections) == 1


async def test_a_connection_opened_ahead_is_the_one_that_is_used(upstream):
    opened = []

    async def answer_plainly(reader, writer):
        opened.append(writer.get_extra_info("peername"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with raw_upstream(answer_plainly) as url:
        upstream.warm(url)
        upstream.warm(url)
        answer = await post(upstream, url)
        assert await answer.read_all(PATIENCE) == b"{}"
        answer.close()
        assert len(upstream._kept._conns) == 1
        assert sum(map(len, upstream._kept._conns.values())) == 1
    assert len(opened) == 1


async def test_a_dead_kept_connection_costs_no_request(upstream):
    async def answer_and_keep(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async def close(reader, writer):
        writer.close()

    async with raw_upstream(answer_and_keep, close, answer_and_keep) as url:
        for _ in range(2):
            answer = await post(upstream, url)
            assert await answer.read_all(PATIENCE) == b"{}"
            answer.close()


async def test_many_dead_kept_connections_cost_no_request(upstream):
    served = set()
    together = asyncio.Barrier(5)

    async def answer_once(reader, writer):
        if writer in served:
            return writer.close()
        served.add(writer)
        if len(served) <= 5:
            await together.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async def ask(url):
        answer = await post(upstream, url)
        assert await answer.read_all(PATIENCE) == b"{}"
        answer.close()

    async with raw_upstream(answer_once) as url:
        await asyncio.gather(*(ask(url) for _ in range(5)))
        for _ in range(5):
            await ask(url)


async def test_a_fresh_connection_closed_without_an_answer_is_not_tried_again(upstream):
    tries = []

    async def close(reader, writer):
        tries.append(1)
        writer.close()

    async with raw_upstream(close) as url:
        with pytest.raises(UpstreamFailed) as caught:
            await post(upstream, url)
    assert (caught.value.status, caught.value.unsent, len(tries)) == (502, False, 1)


async def test_nobody_listening_is_a_502_that_was_not_sent(upstream):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UpstreamFailed) as caught:
        await post(upstream, f"http://127.0.0.1:{port}")
    assert (caught.value.status, caught.value.unsent) == (502, True)
    assert "cannot be reached" in caught.value.message


async def test_an_unknown_name_is_a_502_that_was_not_sent(upstream):
    with pytest.raises(UpstreamFailed) as caught:
        await post(upstream, "http://no-such-host.invalid")
    assert (caught.value.status, caught.value.unsent) == (502, True)


async def test_silence_before_the_first_byte_is_a_504(upstream):
    impatient = Upstream(Patience(first_byte=0.05))
    await impatient.open()

    async def say_nothing(reader, writer):
        await reader.read()

    async with raw_upstream(say_nothing) as url:
        with pytest.raises(UpstreamFailed) as caught:
            await post(impatient, url)
    await impatient.close()
    assert caught.value.status == 504


@pytest.mark.parametrize(
    "end",
    ["close", "reset", "bad chunk", "bad chunk size", "short chunk"],
)
async def test_a_break_in_a_reply_is_noticed_at_once_and_after_every_byte_before_it(upstream, end):
    first = b"".join(reply_events("Good ")[:3])
    arrived = asyncio.Event()

    async def break_off(reader, writer):
        writer.write(STREAM_HEAD + chunked(first))
        await arrived.wait()
        match end:
            case "reset":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                return
            case "bad chunk":
                writer.write(b"5\r\nabcdefgh\r\n")
            case "bad chunk size":
                writer.write(b"zz\r\nabc\r\n")
            case "short chunk":
                writer.write(b"ff\r\nabc")
        if end.startswith("bad"):
            await writer.drain()
            await reader.read()  # the connection itself stays open on this side
        writer.close()

    async with raw_upstream(break_off) as url:
        answer = await post(upstream, url)
        got = await answer.read_some(PATIENCE)
        arrived.set()
        try:
            while chunk := await answer.read_some(PATIENCE):
                got += chunk
        except Broken:
            broken = True
        else:
            broken = False
        answer.close()
    assert broken
    assert got[: len(first)] == first


async def test_a_stall_is_told_and_the_reply_may_go_on(upstream):
    gate = asyncio.Event()
    async with fake_anthropic() as fake:
        fake.will(stream(STREAM[:50], gate=gate, last=STREAM[50:]))
        answer = await post(upstream, fake.url)
        assert await answer.read_some(PATIENCE) == STREAM[:50]
        with pytest.raises(Silence):
            await answer.read_some(0.01)
        gate.set()
        assert await read_until_the_end(answer) == STREAM[50:]
        answer.close()


async def test_letting_go_in_the_middle_closes_the_connection(upstream):
    async with fake_anthropic() as fake:
        fake.will(stream(STREAM[:50], gate=asyncio.Event()))
        answer = await post(upstream, fake.url)
        await answer.read_some(PATIENCE)
        answer.close()
        async with asyncio.timeout(PATIENCE):
            await fake.left.wait()


async def test_a_redirect_is_not_followed(upstream):
    async with fake_anthropic() as thief, fake_anthropic() as fake:
        fake.will(plain(status=307, location=f"{thief.url}/v1/messages"))
        answer = await post(upstream, fake.url, headers={"x-api-key": "secret"})
        await answer.read_all(PATIENCE)
        answer.close()
        assert answer.status == 307
        assert thief.seen == []


async def test_bodies_of_many_megabytes_arrive_whole(upstream):
    body = b'"' + b"x" * (5 * 2**20) + b'"'
    async with fake_anthropic() as fake:
        answer = await post(upstream, fake.url, body)
        await answer.read_all(PATIENCE)
        answer.close()
        assert fake.seen[0].raw == body


async def test_an_answer_that_comes_before_a_large_request_was_sent_ends_the_sending(upstream):
    left = asyncio.Event()

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 2\r\n\r\n{}")
        with suppress(ConnectionError):
            while await reader.read(2**20):
                await asyncio.sleep(0)
        writer.close()
        left.set()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        answer = await post(upstream, url, b"x" * 2**25)
        assert answer.status == 413
        assert await answer.read_all(PATIENCE) == b"{}"
        answer.close()
        async with asyncio.timeout(PATIENCE):
            await left.wait()
        assert sum(map(len, upstream._kept._conns.values())) == 0


async def test_a_header_with_a_line_break_is_not_sent(upstream):
    async with fake_anthropic() as fake:
        with pytest.raises(ValueError, match="line break"):
            await post(upstream, fake.url, headers={"anthropic-beta": "a\r\nx-api-key: another"})
        assert fake.seen == []


async def test_many_waits_in_a_row_share_a_timer_and_each_has_its_own_end():
    watch = Watch()

    async def bring(seconds):
        await asyncio.sleep(seconds)
        return b"brought"

    for _ in range(3):
        assert await watch.wait(bring(0), 60) == b"brought"
        with pytest.raises(TimeoutError):
            await watch.wait(bring(60), 0.01)
        assert await watch.wait(bring(0.02), 60) == b"brought"
    watch.stop()


async def test_a_wait_that_is_cancelled_from_outside_is_no_timeout():
    watch = Watch()
    waiting = asyncio.create_task(watch.wait(asyncio.sleep(60), 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    watch.stop()


async def test_no_connection_is_opened_ahead_while_one_waits(upstream):
    async with fake_anthropic() as fake:
        for _ in range(3):
            upstream.warm(fake.url)
            answer = await post(upstream, fake.url)
            await answer.read_all(PATIENCE)
            answer.close()
        upstream.warm(fake.url)
        assert len(fake.connections) == 1
