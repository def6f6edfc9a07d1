"""Every class of odd input, as exact bytes over a bare socket: a 4xx in our shape or a closed connection, no more."""

import asyncio
import gzip
import json
import os
import zlib
from contextlib import AsyncExitStack

import psutil
import pytest

from server.http_server import Limits
from tests.fakes import ASK, KEY, fake_anthropic
from tests.fakes import plain as whole
from tests.raw_http import CHAT, PATIENCE, answer_to, connected, is_closed, one_answer, request, send
from tests.running import AS_RUN, running

pytestmark = pytest.mark.anyio
CHUNKED = "Transfer-Encoding: chunked"
WHOLE = b"%x\r\n%s\r\n" % (len(CHAT), CHAT)
MIB = 2**20


@pytest.fixture(scope="module")
def anyio_backend():
    """The loop the program runs on, one for the module: the proxy below serves all of its tests."""
    return AS_RUN


@pytest.fixture(scope="module")
async def world(tmp_path_factory, anyio_backend):
    async with fake_anthropic() as fake, running(tmp_path_factory.mktemp("raw"), fake.url) as proxy:
        yield proxy, fake


@pytest.fixture
def proxy(world):
    return world[0]


@pytest.fixture
def anthropic(world):
    fake = world[1]
    fake.seen.clear()
    return fake


def chunks(body, *headers, **kwargs):
    """A request in chunks, as `body` writes them."""
    return lambda port: request(port, CHUNKED, *headers, body=body, length=False, **kwargs)


def sized(length, **kwargs):
    """A request with this as its Content-Length."""
    return lambda port: request(port, f"Content-Length:{length}", length=False, **kwargs)


def plain(*headers, **kwargs):
    return lambda port: request(port, *headers, **kwargs)


def exactly(sent):
    return lambda port: sent


FRAMING = {
    "a length beside chunks": plain(CHUNKED),
    "two lengths": plain("Content-Length: 3"),
    "two equal lengths": plain(f"Content-Length: {len(CHAT)}"),
    "a list of equal lengths": sized(f" {len(CHAT)}, {len(CHAT)}"),
    "a negative length": sized(" -5"),
    "a signed length": sized(f" +{len(CHAT)}"),
    "a length in hex": sized(f" {len(CHAT):#x}"),
    "a length with a blank in it": sized(" 1 0"),
    "a length with an underscore": sized(" 1_0"),
    "an empty length": sized(""),
    "a length in other digits": sized(" \xb2"),
    "a length beyond 64 bits": sized(f" {2**64}"),
    "a length beyond any integer": sized(" " + "9" * 5000),
    "an unknown transfer coding": plain("Transfer-Encoding: tea", length=False),
    "chunked and then another coding": plain("Transfer-Encoding: chunked, tea", length=False),
    "another coding and then chunked": plain(
        "Transfer-Encoding: gzip, chunked", body=WHOLE + b"0\r\n\r\n", length=False
    ),
    "chunked twice in a list": plain("Transfer-Encoding: chunked, chunked", body=WHOLE + b"0\r\n\r\n", length=False),
    "chunked twice": chunks(WHOLE + b"0\r\n\r\n", CHUNKED),
    "nearly chunked": plain("Transfer-Encoding: xchunked", body=WHOLE + b"0\r\n\r\n", length=False),
    "chunks in HTTP/1.0": chunks(WHOLE + b"0\r\n\r\n", version="HTTP/1.0"),
    "a chunk size that is none": chunks(b"zz\r\n{}\r\n0\r\n\r\n"),
    "a negative chunk size": chunks(b"-2\r\n{}\r\n0\r\n\r\n"),
    "a signed chunk size": chunks(b"+2\r\n{}\r\n0\r\n\r\n"),
    "a chunk size with 0x": chunks(b"0x2\r\n{}\r\n0\r\n\r\n"),
    "a chunk size that overflows": chunks(b"f" * 17 + b"\r\n{}\r\n0\r\n\r\n"),
    "an empty chunk size": chunks(b"\r\n{}\r\n0\r\n\r\n"),
    "chunk data without its line end": chunks(b"2\r\n{}0\r\n\r\n"),
    "chunk data longer than said": chunks(b"2\r\n{{}}\r\n0\r\n\r\n"),
    "bare line feeds between chunks": chunks(b"2\n{}\n0\n\n"),
    "chunk extensions without end": chunks((b"1;" + b"a" * 6000 + b"\r\n \r\n") * 400),
    "one chunk extension without end": chunks(b"1;" + b"a" * 3 * MIB),
    "trailers without end": chunks(WHOLE + b"0\r\n" + b"a: b\r\n" * 50_000),
    "a trailer without end": chunks(WHOLE + b"0\r\na: " + b"b" * MIB),
    "bare line feeds": lambda port: request(port).replace(b"\r\n", b"\n"),
    "bare carriage returns": lambda port: request(port).replace(b"\r\n", b"\r"),
}

REQUEST_LINE = {
    "no version": plain(version=""),
    "HTTP/0.9": exactly(b"GET /health\r\n\r\n"),
    "HTTP/0.9 by name": plain(version="HTTP/0.9"),
    "HTTP/1.2": plain(version="HTTP/1.2"),
    "HTTP/2.0": plain(version="HTTP/2.0"),
    "HTTP/9.9": plain(version="HTTP/9.9"),
    "no such protocol": plain(version="ICY/1.1"),
    "the preface of HTTP/2": exactly(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a TLS hello": exactly(bytes.fromhex("16030100ea010000e6030300") + os.urandom(200)),
    "SSH": exactly(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a method in small letters": plain(method="post"),
    "a method nobody knows": plain(method="BREW"),
    "a tunnel": plain(method="CONNECT", target="evil.example:443", host="evil.example:443"),
    "a tunnel to the chat": plain(method="CONNECT"),
    "a control character in the target": plain(target="/v1/mess\x01ages"),
    "a blank in the target": plain(target="/v1/mess ages"),
    "a raw byte in the target": plain(target="/v1/mess\xe9"),
    "no target": plain(target=""),
    "a target without a slash": plain(target="v1/messages"),
    "only a query": plain(target="?x"),
    "a target of 9 KB": plain(target="/v1/messages?a=" + "b" * 9000),
    "a port that is none": plain(target="http://127.0.0.1:99999/v1/messages"),
    "half an IPv6 address": plain(target="http://[::1/v1/messages", host="[::1"),
}

HEADERS = {
    "a line of 9 KB": plain("X-A: " + "a" * 9000),
    "130 headers": plain(*[f"X-{i}: a" for i in range(130)]),
    "a folded line": plain("X-A: a\r\n b"),
    "a folded first line": plain("\x20X-A: a"),
    "a blank before the colon": plain("X-A : a"),
    "a length with a blank before the colon": plain(f"Content-Length : {len(CHAT)}", length=False),
    "an empty name": plain(": a"),
    "no colon": plain("justtext"),
    "NUL in a value": plain("X-A: a\0b"),
    "a carriage return in a value": plain("X-A: a\rb"),
    "a line feed in a value": plain("X-A: a\nX-B: b"),
    "a name beyond ASCII": plain("X-\xc4: b"),
    "no Host": plain(host=""),
    "two Hosts": plain("Host: evil.example"),
    "two equal Hosts": lambda port: request(port, f"Host: 127.0.0.1:{port}"),
}


@pytest.mark.parametrize(
    "make", [pytest.param(make, id=name) for name, make in {**FRAMING, **REQUEST_LINE, **HEADERS}.items()]
)
async def test_what_is_no_proper_http_is_a_4xx_and_the_connection_is_closed_behind_it(proxy, anthropic, make):
    sent = make(proxy.port) + request(proxy.port)  # what stands behind it must not be executed
    async with asyncio.timeout(PATIENCE), connected(proxy.port) as (reader, writer):
        await send(writer, sent)
        got = await one_answer(reader)
        if got is not None:
            assert 400 <= got.status < 500
            assert got.error["type"] == "invalid_request_error"
            if got.status == 405:
                assert got.headers["allow"]
        assert await is_closed(reader)
    assert anthropic.seen == []


TOO_MUCH = {
    "headers of 70 KB": (431, plain(*[f"X-{i}: " + "a" * 7000 for i in range(11)])),
    "a name for an address elsewhere": (400, plain(target="http://evil.example/v1/messages")),
    "a user in the address": (400, lambda port: request(port, target=f"http://me@127.0.0.1:{port}/v1/messages")),
    "an address for another protocol": (400, plain(target="ftp://127.0.0.1/v1/messages")),
    "another host in the path": (404, plain(target="//evil.example/v1/messages")),
    "TRACE": (405, plain(method="TRACE")),
    "OPTIONS for everything": (404, plain(method="OPTIONS", target="*", body=b"")),
    "a WebSocket": (405, plain("Upgrade: websocket", "Connection: Upgrade", method="GET", body=b"", length=False)),
    "two passwords": (400, plain("x-api-key: a", "x-api-key: b")),
    "two bearers": (400, plain("Authorization: Bearer a", "authorization: Bearer b")),
    "two types": (400, plain("Content-Type: text/plain")),
    "a body of any other type": (415, plain("Content-Type: text/plain", json_type=False)),
    "a body of no type": (415, plain(json_type=False)),
    "another charset": (415, plain("Content-Type: application/json; charset=utf-16", json_type=False)),
    "broken gzip": (400, plain("Content-Encoding: gzip")),
    "a length in gzip that is cut": (400, plain("Content-Encoding: gzip", body=gzip.compress(CHAT)[:-12])),
    "Brotli": (415, plain("Content-Encoding: br")),
    "Zstandard": (415, plain("Content-Encoding: zstd")),
    "gzip twice": (415, plain("Content-Encoding: gzip, gzip")),
    "an unknown packing": (415, plain("Content-Encoding: tea")),
    "another name": (403, plain(host="evil.example")),
    "a name with a path": (403, plain(host="localhost/v1")),
    "a name with a user": (403, plain(host="me@localhost")),
    "a number for an address": (403, plain(host="2130706433")),
    "a foreign page": (403, plain("Origin: https://evil.example")),
    "no page": (403, plain("Origin: null")),
    "another tab, says the browser": (403, plain("Sec-Fetch-Site: cross-site")),
    "a length of 10 GB": (413, sized(f" {10 * 2**30}", body=b"")),
    "a length of 2**63": (413, sized(f" {2**63}", body=b"")),
    "an expectation": (417, plain("Expect: tea")),
}


@pytest.mark.parametrize(("status", "make"), [pytest.param(*case, id=name) for name, case in TOO_MUCH.items()])
async def test_what_is_http_but_not_for_us_is_its_4xx(proxy, anthropic, status, make):
    got = await answer_to(proxy.port, make(proxy.port))
    assert (got.status, got.error["message"] != "") == (status, True)
    if status == 405:
        assert got.headers["allow"]
    assert anthropic.seen == []


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(chunks(WHOLE + b"0\r\n\r\n"), id="chunks"),
        pytest.param(chunks(b"".join(b"1\r\n%c\r\n" % c for c in CHAT) + b"0\r\n\r\n"), id="a chunk for each byte"),
        pytest.param(chunks(b"%x;a=b\r\n%s\r\n0\r\n\r\n" % (len(CHAT), CHAT)), id="a chunk extension"),
        pytest.param(chunks(WHOLE + b"0\r\nX-A: b\r\n\r\n"), id="a trailer"),
        pytest.param(plain("Content-Encoding: gzip", body=gzip.compress(CHAT)), id="gzip"),
        pytest.param(plain("Content-Encoding: deflate", body=zlib.compress(CHAT)), id="deflate"),
        pytest.param(plain("Content-Encoding: identity"), id="not packed, and said so"),
        pytest.param(
            plain("Content-Type: Application/JSON; charset=UTF-8", json_type=False), id="the type in capitals"
        ),
        pytest.param(plain(version="HTTP/1.0"), id="HTTP/1.0"),
        pytest.param(plain("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMA"), id="h2c"),
        pytest.param(plain("Content_Length: 5", "Transfer_Encoding: chunked", "x_api_key: b"), id="underscores"),
        pytest.param(plain("X-A: \xff\xfe"), id="Latin-1 in a value"),
        pytest.param(plain(host="LOCALHOST"), id="a name in capitals"),
        pytest.param(
            lambda port: request(port, target=f"http://127.0.0.1:{port}/v1/messages"), id="an address in full"
        ),
        pytest.param(lambda port: b"\r\n" + request(port), id="an empty line ahead"),
    ],
)
async def test_what_is_unusual_but_right_is_served(proxy, anthropic, make):
    got = await answer_to(proxy.port, make(proxy.port))
    assert got.status == 200
    assert anthropic.seen[0].body == {**ASK, "messages": anthropic.seen[0].body["messages"]}
    assert anthropic.seen[0].headers["x-api-key"] == KEY


async def test_trailers_never_count_as_headers(proxy, anthropic):
    evil = b"Host: evil.example\r\nx-api-key: sk-ant-api03-evil\r\nContent-Length: 3\r\nanthropic-version: 1\r\n"
    for trailers in (evil, b"anthropic-version: 1\r\n"):
        got = await answer_to(proxy.port, chunks(WHOLE + b"0\r\n" + trailers + b"\r\n")(proxy.port))
        assert got is None or got.status in (200, 400)
    for seen in anthropic.seen:
        assert seen.headers["x-api-key"] == KEY
        assert seen.headers["anthropic-version"] == "2023-06-01"


async def test_one_rule_says_which_of_two_credentials_counts(proxy, anthropic):
    for order in ((0, 1), (1, 0)):
        headers = [f"x-api-key: {KEY}", "Authorization: Bearer sk-ant-api03-the-other-one-00001"]
        got = await answer_to(proxy.port, request(proxy.port, *(headers[i] for i in order)))
        assert got.status == 200
    assert [(seen.headers["x-api-key"], "Authorization" in seen.headers) for seen in anthropic.seen] == [
        (KEY, False)
    ] * 2


async def test_pipelined_requests_are_answered_in_their_order_and_never_mixed(proxy, anthropic):
    bodies = [json.dumps({**ASK, "messages": [{"role": "user", "content": f"number {i}"}]}).encode() for i in range(40)]
    sent = b"".join(
        request(proxy.port, body=body) if i % 2 else chunked_request(proxy.port, body) for i, body in enumerate(bodies)
    )
    async with asyncio.timeout(PATIENCE), connected(proxy.port) as (reader, writer):
        await send(writer, sent)
        for _ in bodies:
            assert (await one_answer(reader)).status == 200
    said = [seen.body["messages"][0]["content"] for seen in anthropic.seen]
    assert [one if isinstance(one, str) else one[0]["text"] for one in said] == [f"number {i}" for i in range(40)]


def chunked_request(port, body):
    return chunks(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))(port)


# -- JSON


NOT_JSON = {
    "nothing": b"",
    "blanks": b" \n ",
    "something behind it": CHAT + b"x",
    "two documents": CHAT + CHAT,
    "single quotes": b"{'model': 'x'}",
    "a comment": b'{"a": 1 /* b */}',
    "a comma too many": b'{"a": 1,}',
    "a bare key": b"{a: 1}",
    "a raw line end in a string": b'{"a": "b\nc"}',
    "NaN": CHAT[:-1] + b', "temperature": NaN}',
    "Infinity": CHAT[:-1] + b', "temperature": Infinity}',
    "minus Infinity": CHAT[:-1] + b', "temperature": -Infinity}',
    "a number beyond all bounds": CHAT[:-1] + b', "temperature": 1e999999}',
    "an integer of 5,000 digits": CHAT[:-1] + b', "n": ' + b"1" * 5000 + b"}",
    "101 brackets": CHAT[:-1] + b', "n": ' + b"[" * 101 + b"]" * 101 + b"}",
    "100,000 brackets": b"[" * 100_000,
    "100,000 objects": b'{"a":' * 100_000,
    "a list": b"[]",
    "text": b'"messages"',
    "null": b"null",
    "UTF-16": CHAT.decode().encode("utf-16"),
    "UTF-16 without its mark": CHAT.decode().encode("utf-16-le"),
    "UTF-32": CHAT.decode().encode("utf-32"),
    "Latin-1": '{"a": "ä"}'.encode("latin-1"),
    "an overlong slash": b'{"a": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"a": "\xed\xa0\x80"}',
    "beyond Unicode": b'{"a": "\xf5\x80\x80\x80"}',
    "NUL": b"\0" * 20,
}


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in NOT_JSON.items()])
async def test_what_is_no_json_object_is_a_400_that_says_so(proxy, anthropic, body):
    got = await answer_to(proxy.port, request(proxy.port, body=body))
    assert got.status == 400
    assert "request body" in got.error["message"]
    assert anthropic.seen == []


async def test_a_chat_cut_at_any_byte_is_a_400(proxy, anthropic):
    async with asyncio.timeout(PATIENCE), connected(proxy.port) as (reader, writer):
        for end in range(len(CHAT)):
            await send(writer, request(proxy.port, body=CHAT[:end]))
            got = await one_answer(reader)
            assert (got.status, got.error["type"]) == (400, "invalid_request_error")
    assert anthropic.seen == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("model", bad) for bad in (7, None, ["x"], "a\nb", "x" * 10_000)),
        *(("messages", bad) for bad in (None, {}, [], "hi", ["hi"], [{"role": "robot", "content": "x"}])),
        *(("messages", [{"role": "user", "content": bad}]) for bad in (None, 7, [7], [{"type": "text", "text": 1}])),
        *(("max_tokens", bad) for bad in ("many", -1, 1.5, True, [])),
        *(("stream", bad) for bad in ("true", 1)),
        *(("system", bad) for bad in (7, [7], {})),
        *(("thinking", bad) for bad in (True, "on", [])),
        *(("tools", bad) for bad in ({}, "all")),
    ],
)
async def test_a_field_that_cannot_be_read_is_a_400_that_names_it(proxy, anthropic, field, value):
    got = await answer_to(proxy.port, request(proxy.port, body=json.dumps({**ASK, field: value}).encode()))
    assert got.status == 400
    assert got.error["message"].startswith(field)
    assert anthropic.seen == []


async def test_of_duplicate_keys_both_sides_see_the_last(proxy, anthropic):
    body = CHAT[:-1] + b', "max_tokens": 5, "max_tokens": 6, "max_tokens": 7, "temperature": 1.0, "top_k": 10}'
    assert (await answer_to(proxy.port, request(proxy.port, body=body))).status == 200
    assert anthropic.seen[0].raw.count(b"max_tokens") == 1
    assert anthropic.seen[0].body["max_tokens"] == 7


# -- addresses


@pytest.mark.parametrize(
    "target",
    [
        "/v1/../messages",
        "/v1/%2e%2e/messages",
        "/v1/..%2f..%2fetc%2fpasswd/messages",
        "/v1/%252e%252e/messages",
        "/v1/..%5c/messages",
        "/v1/..\\messages",
        "/v1/a%00b/messages",
        "/v1/a%0d%0aX-A:b/messages",
        "/v1/a;b/messages",
        "/v1/%c0%ae%c0%ae/messages",
        "/v1/C:/messages",
        "/v1/C%3a%5cWindows/messages",
        "/v1/CON/messages",
        "/v1/nul.json/messages",
        "/v1/" + "a" * 65 + "/messages",
        "/v1/nobody-here/messages",
        "/v1/%zz/messages",
        "/static/..%2f..%2fserver%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/....//app.py",
        "/nowhere",
        "/v1",
    ],
)
async def test_no_address_leads_to_a_file_or_off_the_road(proxy, anthropic, target):
    for method in ("POST", "GET"):
        got = await answer_to(proxy.port, request(proxy.port, target=target, method=method))
        assert got.status in (400, 404, 405)
        assert got.error["type"] in ("invalid_request_error", "not_found_error")
        assert b"import" not in got.raw
    assert anthropic.seen == []


# -- sizes


def rss():
    return psutil.Process().memory_info().rss


def bomb(size):
    packer = zlib.compressobj(9, wbits=31)
    zeros = b" " * (4 * MIB)
    return b"".join(packer.compress(zeros) for _ in range(size // len(zeros))) + packer.flush()


async def test_a_bomb_of_a_gigabyte_is_a_413_and_takes_no_memory(proxy, anthropic, figure):
    packed = bomb(1024 * MIB)
    before = rss()
    got = await answer_to(proxy.port, request(proxy.port, "Content-Encoding: gzip", body=packed))
    assert (got.status, got.error["type"]) == (413, "request_too_large")
    grown = rss() - before
    figure(f"a packed gigabyte from a front end: RSS + {grown / MIB:.0f} MiB")
    assert grown < 64 * MIB
    assert anthropic.seen == []


async def test_more_than_32_mib_in_chunks_is_a_413_by_count(proxy, anthropic):
    chunk = b"100000\r\n" + b" " * MIB + b"\r\n"
    async with asyncio.timeout(PATIENCE), connected(proxy.port) as (reader, writer):
        writer.write(request(proxy.port, CHUNKED, body=b"", length=False))
        for _ in range(34):
            await send(writer, chunk)
        got = await one_answer(reader)
    assert (got.status, got.error["type"]) == (413, "request_too_large")
    assert anthropic.seen == []


async def test_32_mib_are_taken(proxy, anthropic):
    body = json.dumps({**ASK, "metadata": {"user_id": "x" * (32 * MIB - 400)}}).encode()
    assert 32 * MIB - 1000 < len(body) <= 32 * MIB
    assert (await answer_to(proxy.port, request(proxy.port, body=body))).status == 200


# -- slow, half and vanishing senders


QUICK = Limits(head_seconds=0.2, body_grace=0.3, body_window=0.1)
STEADY = Limits(head_seconds=1.5, body_grace=1, body_window=1.5)  # where a good one must come in time on any machine


@pytest.fixture
async def impatient(tmp_path):
    async with fake_anthropic() as fake, running(tmp_path, fake.url, limits=QUICK) as made:
        yield made


@pytest.fixture
async def steady(tmp_path):
    async with fake_anthropic() as fake, running(tmp_path, fake.url, limits=STEADY) as made:
        yield made


async def test_a_connection_that_says_nothing_is_closed(impatient):
    async with asyncio.timeout(PATIENCE), connected(impatient.port) as (reader, _):
        assert await is_closed(reader)


async def test_half_a_head_is_a_408(impatient):
    async with asyncio.timeout(PATIENCE), connected(impatient.port) as (reader, writer):
        await send(writer, request(impatient.port)[:60])
        got = await one_answer(reader)
        assert (got.status, got.headers["connection"]) == (408, "close")
        assert got.error["type"] == "invalid_request_error"
        assert await is_closed(reader)


async def test_a_head_that_drips_has_no_more_time_than_another(impatient):
    async with asyncio.timeout(PATIENCE), connected(impatient.port) as (reader, writer):
        async with asyncio.TaskGroup() as group:
            dripping = group.create_task(drip(writer, b"GET / HTTP/1.1\r\nX-A: " + b"a" * 5000, 0.01))
            got = await one_answer(reader)
            assert not dripping.done()
            dripping.cancel()
        assert got is None or got.status == 408


async def test_a_second_head_on_a_kept_connection_has_the_same_time(steady):
    async with asyncio.timeout(PATIENCE), connected(steady.port) as (reader, writer):
        for _ in range(2):
            await send(writer, request(steady.port))
            assert (await one_answer(reader)).status == 200
            await asyncio.sleep(STEADY.head_seconds * 1.2)  # silent between requests: that is what keep-alive is for
        await send(writer, b"POST /v1/mess")
        assert (await one_answer(reader)).status == 408


@pytest.mark.parametrize("rate", ["nothing", "a byte now and then", "chunk extensions only"])
async def test_half_a_body_is_a_408_after_the_grace(impatient, rate):
    head = request(
        impatient.port, *([CHUNKED] if "chunk" in rate else ["Content-Length: 9999"]), body=b"", length=False
    )
    more = {"nothing": b"", "a byte now and then": CHAT, "chunk extensions only": b"1;" + b"a" * 2000}[rate]
    async with asyncio.timeout(PATIENCE), connected(impatient.port) as (reader, writer):
        await send(writer, head)
        async with asyncio.TaskGroup() as group:
            dripping = group.create_task(drip(writer, more, 0.01))
            got = await one_answer(reader)
            dripping.cancel()
        assert got.status == 408
        assert "stopped arriving" in got.error["message"]
        assert await is_closed(reader)


async def drip(writer, data, pause):
    for i in range(len(data)):
        await send(writer, data[i : i + 1])
        await asyncio.sleep(pause)


async def test_a_slow_but_steady_body_is_served(steady):
    body = json.dumps({**ASK, "metadata": {"user_id": "x" * 40_000}}).encode()
    async with asyncio.timeout(PATIENCE), connected(steady.port) as (reader, writer):
        await send(writer, request(steady.port, f"Content-Length: {len(body)}", body=b"", length=False))
        for start in range(0, len(body), 1000):
            await send(writer, body[start : start + 1000])
            await asyncio.sleep(0.1)
        assert (await one_answer(reader)).status == 200


@pytest.mark.parametrize("end", [5, 60, -40])
async def test_a_client_that_vanishes_in_the_middle_leaves_nothing_behind(impatient, end):
    before = len(asyncio.all_tasks())
    for how in ("close", "half close", "reset"):
        async with asyncio.timeout(PATIENCE), connected(impatient.port) as (reader, writer):
            await send(writer, request(impatient.port)[:end])
            if how == "half close":
                writer.write_eof()
                assert await is_closed(reader)
            elif how == "reset":
                writer.transport.abort()
    async with asyncio.timeout(PATIENCE):
        while len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0.01)


async def test_many_half_open_connections_do_not_keep_good_ones_out(tmp_path):
    limits = Limits(connections=30)
    async with fake_anthropic() as fake, running(tmp_path, fake.url, limits=limits) as proxy, AsyncExitStack() as stack:
        for _ in range(60):
            _, writer = await stack.enter_async_context(connected(proxy.port))
            await send(writer, b"POST /v1/messages HTTP/1.1\r\n")
        for _ in range(20):
            assert (await answer_to(proxy.port, request(proxy.port))).status == 200


async def test_where_every_connection_is_busy_one_more_gets_a_503(tmp_path):
    gate = asyncio.Event()

    async def wait(request):
        await gate.wait()
        return await whole()(request)

    async with fake_anthropic() as fake, running(tmp_path, fake.url, limits=Limits(connections=3)) as proxy:
        fake.will(wait, wait, wait)
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(answer_to(proxy.port, request(proxy.port))) for _ in range(3)]
            while len(fake.seen) < 3:
                await asyncio.sleep(0.01)
            refused = await answer_to(proxy.port, b"")
            gate.set()
        assert (refused.status, refused.error["type"]) == (503, "api_error")
        assert [task.result().status for task in asked] == [200] * 3
