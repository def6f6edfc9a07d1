"""Faults of the wire and of the machine, made on purpose: what must hold all the same."""

import asyncio
import gzip
import json
import random
import socket
import time
import zlib
from contextlib import ExitStack

import psutil
import pytest
from aiohttp import web

from server.errors import type_of
from server.sse import PING
from server.upstream import Patience
from tests.fakes import (
    ASK,
    KEY,
    PATIENCE,
    PLAIN,
    STREAM,
    STREAM_HEAD,
    Always,
    chunked,
    error,
    event,
    fake_anthropic,
    plain,
    raw_upstream,
    reply_events,
    stream,
)
from tests.raw_http import reset, until
from tests.running import AS_RUN, running
from tests.soak import FIRST, cut_short

pytestmark = pytest.mark.anyio
MIB = 2**20
CHAT = {**ASK, "stream": True}
SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def anyio_backend():
    return AS_RUN


# -- F1: no connection


async def test_an_upstream_that_takes_no_connection_is_told_within_the_time_to_connect(tmp_path):
    with socket.socket() as full, ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        for _ in range(4):  # until the system takes no more
            hanging = stack.enter_context(socket.socket())
            hanging.setblocking(False)
            hanging.connect_ex(full.getsockname())
        async with running(tmp_path, url, patience=Patience(connect=0.3)) as proxy:
            async with asyncio.timeout(PATIENCE):  # an answer is waited for much longer
                reply = await proxy.ask()
    assert (reply.status, reply.json["error"]["type"]) == (504, "timeout_error")


async def test_an_unknown_name_is_a_502_that_says_so(tmp_path):
    async with running(tmp_path, "https://nosuch.invalid") as proxy:
        reply = await proxy.ask()
    assert (reply.status, reply.json["error"]["type"]) == (502, "api_error")
    assert "nosuch.invalid cannot be found" in reply.message


# -- F2: no answer


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_hundred_requests_over_connections_that_die_behind_each_answer_all_succeed(tmp_path, end):
    served = set()

    async def answer_once(reader, writer):
        if writer in served:
            return reset(writer) if end == "reset" else writer.close()
        served.add(writer)
        body = json.dumps(PLAIN).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )

    async with raw_upstream(answer_once) as url, running(tmp_path, url) as proxy:
        statuses = [(await proxy.ask()).status for _ in range(50)]
        statuses += [reply.status for reply in await asyncio.gather(*(proxy.ask() for _ in range(50)))]
    assert statuses == [200] * 100


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_request_the_upstream_may_have_begun_to_answer_is_never_sent_twice(tmp_path, end):
    asked = []

    async def drop(reader, writer):
        asked.append(1)
        reset(writer) if end == "reset" else writer.close()

    async with raw_upstream(drop) as url, running(tmp_path, url) as proxy:
        reply = await proxy.ask()
    assert (reply.status, reply.json["error"]["type"], len(asked)) == (502, "api_error", 1)


# -- F3, F4: cut replies


CUTS = [pytest.param(100, id="a hundred"), pytest.param(1000, id="a thousand", marks=SLOW)]


@pytest.mark.parametrize("many", CUTS)
async def test_streams_cut_at_random_points_end_in_an_error_event_at_once(tmp_path, figure, many):
    """Closed, reset, ended properly, with a broken chunk, or packed and cut; at once, in pieces, or byte by byte."""
    luck = random.Random(7)
    asked = 0
    ends = ("close", "reset", "end", "bad chunk", "short chunk")

    async def cut_off(reader, writer):
        nonlocal asked
        asked += 1
        packed = luck.random() < 0.2
        body = gzip.compress(STREAM) if packed else STREAM
        sent = body[: luck.randrange(1, len(body) - 10)]
        head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") if packed else STREAM_HEAD
        writer.write(head)
        step = luck.choice([len(sent), 100, 7])
        for start in range(0, len(sent), step):
            writer.write(chunked(sent[start : start + step]))
            await asyncio.sleep(0)
        await writer.drain()
        match luck.choice(ends):
            case "reset":
                await asyncio.sleep(0.002)
                return reset(writer)
            case "end":
                writer.write(b"0\r\n\r\n")
            case "bad chunk":
                writer.write(b"zz\r\n")
            case "short chunk":
                writer.write(b"ff\r\n")
        writer.close()

    async with raw_upstream(cut_off) as url, running(tmp_path, url) as proxy:
        late = 0
        for number in range(many):
            began = time.monotonic()
            async with asyncio.timeout(PATIENCE):  # a silence is borne for longer
                reply = await proxy.ask(stream=True)
            late += time.monotonic() - began > 1
            whole = reply.raw.rpartition(b"event: error\ndata: ")[0]
            if reply.status == 200:
                assert cut_short(reply), (number, reply.raw[-300:])
                assert STREAM.startswith(whole)
            else:
                assert (reply.status, reply.json["error"]["type"]) == (502, "api_error"), number
    figure(f"streams cut at random points: {many} of {many} end in an error, {late} of them later than 1 s, 0 silent")
    assert asked == many  # nothing was sent twice


async def test_all_that_came_before_a_break_reaches_the_front_end(tmp_path):
    events = reply_events(*(f"word {i} " for i in range(50)))[:-3]

    async def all_at_once_and_gone(reader, writer):
        writer.write(STREAM_HEAD + chunked(b"".join(events)))
        await writer.drain()
        writer.close()

    async with raw_upstream(all_at_once_and_gone) as url, running(tmp_path, url) as proxy:
        for _ in range(20):
            reply = await proxy.ask(stream=True)
            assert reply.raw.startswith(b"".join(events))
            assert cut_short(reply)


@pytest.mark.parametrize("end", ["close", "cut json", "wrong length"])
async def test_half_a_plain_reply_is_a_502(tmp_path, end):
    body = json.dumps(PLAIN).encode()

    async def half(reader, writer):
        length = len(body) if end != "cut json" else len(body) - 20
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length)
        writer.write(body[:-20])
        await writer.drain()
        if end != "cut json":
            writer.close()

    async with raw_upstream(half) as url, running(tmp_path, url) as proxy:
        reply = await proxy.ask()
    assert (reply.status, reply.json["error"]["type"]) == (502, "api_error")


# -- F5: silence


HASTY = Patience(connect=PATIENCE, first_byte=0.3, idle=0.4)


async def test_silence_before_the_first_byte_is_a_504(tmp_path):
    async with fake_anthropic() as fake, running(tmp_path, fake.url, patience=HASTY) as proxy:
        gate = asyncio.Event()

        async def never(request):
            await gate.wait()

        fake.will(never, never)
        for streamed in (True, False):
            reply = await proxy.ask(stream=streamed)
            assert (reply.status, reply.json["error"]["type"]) == (504, "timeout_error")
        await until(lambda: len(fake.seen) >= 2)
        gate.set()
        assert len(fake.seen) == 2  # it may have begun to work on them: neither was sent twice


@pytest.mark.parametrize("after", [0, 10])
async def test_silence_behind_the_head_is_a_504(tmp_path, after):
    async def head_only(reader, writer):
        writer.write(STREAM_HEAD + (chunked(STREAM[:after]) if after else b""))
        await reader.read()

    async with raw_upstream(head_only) as url, running(tmp_path, url, patience=HASTY) as proxy:
        reply = await proxy.ask(stream=True)
    assert (reply.status, reply.json["error"]["type"]) == (504, "timeout_error")


async def test_silence_in_a_stream_ends_in_an_error_event(tmp_path):
    async with fake_anthropic() as fake, running(tmp_path, fake.url, patience=HASTY) as proxy:
        fake.will(stream(FIRST, gate=asyncio.Event()))
        reply = await proxy.ask(stream=True)
        await asyncio.wait_for(fake.left.wait(), PATIENCE)
    assert cut_short(reply)
    assert f"nothing came for {HASTY.idle:.0f} s" in reply.raw.decode()


async def test_silence_in_a_stream_brings_pings_and_what_comes_after_it_comes_whole(tmp_path):
    gate = asyncio.Event()
    async with fake_anthropic() as fake, running(tmp_path, fake.url, patience=Patience(ping=0.05)) as proxy:
        fake.will(stream(STREAM[:-70], gate=gate, last=STREAM[-70:]))
        url, headers = f"{proxy.url}/v1/messages", {"x-api-key": KEY}
        async with asyncio.timeout(PATIENCE), proxy.session.post(url, json=CHAT, headers=headers) as reply:
            came = b""
            while came.count(PING) < 3:
                came += await reply.content.readany()
            gate.set()
            came += await reply.read()
    assert came.replace(PING, b"") == STREAM


# -- F7, F8: limits and overload


async def own_account(proxy, key="sk-ant-api03-the-owners-own-key-0002"):
    added = await proxy.owner("POST", "/api/accounts", json={"kind": "api_key", "name": key[-4:], "api_key": key})
    assert added.status == 201
    return added.json["id"]


NOW = 1_795_176_000.0  # 2026-11-20 12:00 UTC


@pytest.mark.parametrize(
    ("header", "value", "least", "most"),
    [
        ("retry-after", "30", 30, 30),
        ("retry-after", "0", 1, 1),
        ("retry-after", "-5", 1, 1),
        ("retry-after", "999999", 3600, 3600),
        ("retry-after", "Fri, 20 Nov 2026 12:02:00 GMT", 120, 120),
        ("retry-after", "Fri, 20 Nov 2020 12:02:00 GMT", 1, 1),
        ("retry-after", "soon", 60, 60),
        ("retry-after", "", 60, 60),
        ("retry-after", "nan", 60, 60),
        ("retry-after", "inf", 60, 3600),
        ("x-nothing", "", 60, 60),
        ("anthropic-ratelimit-unified-reset", str(int(NOW) + 7200), 7200, 7200),
        ("anthropic-ratelimit-requests-reset", "2026-11-20T12:05:00Z", 60, 300),
    ],
)
async def test_a_limit_lasts_as_long_as_its_header_says_within_reason(tmp_path, header, value, least, most):
    clock = [NOW]
    async with fake_anthropic() as fake, running(tmp_path, fake.url, clock=lambda: clock[0]) as proxy:
        await own_account(proxy)
        fake.will(error(429, "rate_limit_error", "Too fast.", **{header.replace("-", "_"): value}))
        assert (await proxy.ask(headers={})).status == 429
        fake.seen.clear()
        clock[0] = NOW + least - 0.5
        resting = await proxy.ask(headers={})
        assert (resting.status, resting.json["error"]["type"]) == (429, "rate_limit_error")
        assert 0 < int(resting.headers["retry-after"]) <= most
        assert fake.seen == []
        clock[0] = NOW + most + 1
        assert (await proxy.ask(headers={})).status == 200


DEAD, GOOD = "sk-ant-api03-this-one-is-dead-00000001", "sk-ant-api03-this-one-is-good-00000002"


@pytest.mark.parametrize("many", [pytest.param(50, id="fifty"), pytest.param(1000, id="a thousand", marks=SLOW)])
@pytest.mark.parametrize("fault", ["429", "529", "500", "401", "402", "403", "reset", "close"])
async def test_with_one_of_two_accounts_dead_every_request_is_served(tmp_path, figure, fault, many):
    async def judge(request):
        if request.headers["x-api-key"] == GOOD:
            return await plain()(request)
        if not fault.isdigit():
            request.transport.abort() if fault == "reset" else request.transport.close()
            return web.Response()
        return await error(int(fault), type_of(int(fault)), "no")(request)

    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy:
        await own_account(proxy, DEAD)
        await own_account(proxy, GOOD)
        fake.replies = Always(judge)
        statuses = [(await proxy.ask(headers={})).status for _ in range(many // 2)]
        for _ in range(many // 20):
            statuses += [reply.status for reply in await asyncio.gather(*(proxy.ask(headers={}) for _ in range(10)))]
    figure(f"one of two accounts dead by {fault}: {statuses.count(200)} of {len(statuses)} served")
    assert statuses == [200] * len(statuses)


async def test_an_account_whose_endpoint_is_away_leaves_its_requests_to_the_next(tmp_path):
    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy:
        away = {"kind": "api_key", "name": "away", "api_key": DEAD, "base_url": "http://127.0.0.1:9"}
        await proxy.owner("POST", "/api/accounts", json=away)
        await own_account(proxy, GOOD)
        assert [(await proxy.ask(headers={})).status for _ in range(20)] == [200] * 20


async def test_a_400_is_never_tried_elsewhere(tmp_path):
    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy:
        await own_account(proxy, DEAD)
        await own_account(proxy, GOOD)
        fake.seen.clear()
        words = "Your credit balance is too low to access the Anthropic API."
        fake.will(error(400, "invalid_request_error", words))
        reply = await proxy.ask(headers={})
    assert (reply.status, reply.message.startswith(words), len(fake.seen)) == (400, True, 1)


async def test_in_a_storm_of_overloads_the_upstream_sees_few_retries(tmp_path, figure):
    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy:
        fake.will(*[error(529, "overloaded_error", "Overloaded")] * 500)
        replies = await asyncio.gather(*(proxy.ask() for _ in range(100)))
        fake.replies.clear()
    figure(f"100 requests in a storm of overloads: the upstream sees {len(fake.seen)}")
    assert {reply.status for reply in replies} == {529}
    assert 100 <= len(fake.seen) <= 120


@pytest.mark.parametrize("asked", [{"retry_after": "30"}, {"x_should_retry": "false"}])
async def test_an_upstream_that_asks_for_no_retry_gets_none(tmp_path, asked):
    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy:
        fake.will(error(529, "overloaded_error", "Overloaded", **asked))
        reply = await proxy.ask()
        assert (reply.status, len(fake.seen)) == (529, 1)


# -- F28: wrong answers


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"<html><h1>Welcome to hotel wifi</h1>", "text/html", "text/html: “<html><h1>Welcome to hotel wifi</h1>”"),
        (b"", "application/json", "application/json and nothing in it"),
        (b'{"content": [', "application/json", 'application/json: “{"content": [”'),
        (b"[1, 2]", "application/json", "application/json"),
        (b"null", "application/json", "application/json"),
        (b"\xff\xfe\0\x1b[31m", "application/octet-stream", "application/octet-stream"),
        (b"x" * 5000, "text/plain", "text/plain: “" + "x" * 80 + "”"),
        (STREAM, "text/plain", "text/plain: “event: message_start"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_wrong_answer_is_a_502_that_says_what_came(tmp_path, body, kind, words, streamed):
    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy:
        account = await own_account(proxy)
        fake.will(plain(body, content_type=kind))
        reply = await proxy.ask(headers={}, stream=streamed)
        accounts = (await proxy.owner("GET", "/api/accounts")).json["accounts"]
        assert len(fake.seen) == 2  # one of them asked whether the key is good
    assert (reply.status, reply.json["error"]["type"]) == (502, "api_error")
    assert words in reply.message
    assert [(one["id"], one["state"]) for one in accounts] == [(account, "ready")]


@pytest.mark.parametrize("end", [b"", b"\n\n", b": a comment\n\n"])
async def test_a_stream_without_an_event_is_a_502(tmp_path, end):
    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy:
        fake.will(stream(end or b" "))
        reply = await proxy.ask(stream=True)
    assert reply.status == 502 or cut_short(reply)


async def test_an_error_that_comes_with_a_200_is_an_error(tmp_path):
    said = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy:
        fake.will(*[plain(said)] * 3)
        reply = await proxy.ask()
    assert (reply.status, reply.json["error"]["type"]) == (529, "overloaded_error")


# -- F29: too much


async def test_an_event_beyond_16_mib_ends_the_stream_with_an_error_event(tmp_path):
    async def endless_event(reader, writer):
        writer.write(STREAM_HEAD + chunked(FIRST) + chunked(b"data: "))
        for _ in range(40):
            writer.write(chunked(b"x" * MIB))
            await writer.drain()
        await reader.read()

    async with raw_upstream(endless_event) as url, running(tmp_path, url) as proxy:
        reply = await proxy.ask(stream=True)
    assert cut_short(reply)
    assert "16 MiB" in reply.raw.decode()
    assert reply.raw.startswith(FIRST)


def bomb(size, fill):
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(fill * (4 * MIB)) for _ in range(size // (4 * MIB))) + packer.flush()


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_packed_gigabyte_from_upstream_is_an_error_and_takes_no_memory(tmp_path, figure, streamed):
    packed = bomb(1024 * MIB, b" ")
    kind = b"text/event-stream" if streamed else b"application/json"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"

    async def explode(reader, writer):
        writer.write(head % (kind, len(packed)) + packed)
        await reader.read()

    async with raw_upstream(explode) as url, running(tmp_path, url) as proxy:
        await proxy.send("GET", "/health")
        before = psutil.Process().memory_info().rss
        reply = await proxy.ask(stream=streamed)
        grown = psutil.Process().memory_info().rss - before
    assert (reply.status, reply.json["error"]["type"]) == (502, "api_error")
    figure(f"a packed gigabyte from upstream: RSS + {grown / MIB:.0f} MiB")
    assert grown < 64 * MIB


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
async def test_a_packed_reply_is_unpacked_although_nobody_asked_for_it(tmp_path, packing):
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}[packing]

    async def packed(reader, writer):
        for kind, body in (("text/event-stream", STREAM), ("application/json", json.dumps(PLAIN).encode())):
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Encoding: {packing}\r\nContent-Length: "
            writer.write(head.encode() + b"%d\r\n\r\n" % len(pack(body)) + pack(body))
            await reader.readuntil(b"\r\n\r\n")

    async with raw_upstream(packed) as url, running(tmp_path, url) as proxy:
        reply = await proxy.ask(stream=True)
        assert reply.raw == STREAM
        assert "Content-Encoding" not in reply.headers


async def test_a_packing_nobody_can_read_is_a_502(tmp_path):
    async with fake_anthropic() as fake, running(tmp_path, fake.url) as proxy:
        fake.will(plain(b"xyz", content_encoding="br"))
        reply = await proxy.ask()
    assert reply.status == 502
    assert "packed" in reply.message


@pytest.mark.parametrize("flood", ["one long header", "many headers", "endless head"])
async def test_a_flood_of_headers_from_upstream_is_a_502(tmp_path, flood):
    async def drown(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n")
        match flood:
            case "one long header":
                writer.write(b"X-A: " + b"a" * 100_000 + b"\r\n\r\n")
            case "many headers":
                writer.write(b"X-A: b\r\n" * 5000 + b"\r\n")
            case _:
                try:
                    for _ in range(5000):
                        writer.write(b"X-A: " + b"b" * 4000 + b"\r\n")
                        await writer.drain()
                except ConnectionError:
                    return
        await reader.read()

    async with raw_upstream(drown) as url, running(tmp_path, url) as proxy:
        reply = await proxy.ask(stream=True)
    assert (reply.status, reply.json["error"]["type"]) == (502, "api_error")


# -- F30: odd but right


@pytest.mark.parametrize("step", [1, 3, 10_000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
async def test_odd_streams_pass_byte_for_byte_and_are_metered_right(tmp_path, step, line_end):
    events = reply_events("Grüße, ", "旅人 🏮")
    events[3:3] = [
        event("sparkle", new={"field": "ü"}),
        b": a comment\n\n",
        b"id: 7\nretry: 5\nevent: ping\ndata: {}\n\n",
    ]
    whole = b"".join(events).decode().encode().replace(b"\\u00fc", "ü".encode()).replace(b"\n", line_end)

    async def drip(reader, writer):
        writer.write(STREAM_HEAD)
        for start in range(0, len(whole), step):
            writer.write(chunked(whole[start : start + step]))
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    async with raw_upstream(drip) as url, running(tmp_path, url) as proxy:
        reply = await proxy.ask(stream=True)
        receipt = (await proxy.receipts())[0]
    assert reply.raw == whole
    assert (receipt["ended"], receipt["tokens"]["output_tokens"], receipt["tokens"]["cache_read_tokens"]) == (
        "whole",
        3,
        11,
    )
