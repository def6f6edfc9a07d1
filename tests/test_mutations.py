"""Good requests and good replies, spoilt at random: nothing crashes, nothing hangs, nothing is a 500 of ours.

A few hundred of each kind by default; a hundred thousand of them with `-m slow`. Each is named by its number, so that a
failure can be had again.
"""

import asyncio
import copy
import io
import json
import logging
from collections import Counter, deque
from itertools import count
from random import Random

import orjson
import pytest

from server.http_server import Limits
from server.models import Models
from tests.fakes import (
    KEY,
    PATIENCE,
    PLAIN,
    STREAM,
    STREAM_HEAD,
    Always,
    chunked,
    fake_anthropic,
    plain,
    raw_upstream,
    stream,
)
from tests.raw_http import CHAT, answer_to, connected, one_answer, request, send
from tests.running import AS_RUN, running
from tests.shapes import shapes

pytestmark = pytest.mark.anyio
QUICK = Limits(head_seconds=1, body_grace=1, body_window=1)
AT_ONCE = 40
MANY = pytest.param(range(1_000, 101_000), marks=[pytest.mark.slow, pytest.mark.timeout(3600)], id="a hundred thousand")
FEW = pytest.param(range(300), id="three hundred")
SHAPES = list(shapes().values())
MODELS = [model.id for model in Models.load().all]
ODD = [
    *(None, True, False, 0, -1, 1.5, 10**30, "", " ", "\ud83d\ude00", "a\0b", "x" * 500, [], {}, [None], [[]], [{}]),
    *({"type": None}, {"type": "text"}, {"type": "text", "text": None}, {"role": "user"}, {"": ""}, "user", "text"),
    *({"type": "image", "source": None}, {"type": "tool_use", "id": 7}, {"type": "tool_result", "content": 7}),
    *({"type": "ephemeral", "ttl": 5}, {"type": "thinking", "thinking": None}, "ephemeral", "1h", 2**63),
]


@pytest.fixture(scope="module")
def anyio_backend():
    return AS_RUN


@pytest.fixture(scope="module")
async def world(tmp_path_factory, anyio_backend):
    async with fake_anthropic() as fake, running(tmp_path_factory.mktemp("mutations"), fake.url) as proxy:
        yield proxy, fake


def spoilt_bytes(data, luck):
    """Some bytes changed, cut out, doubled or put in."""
    made = bytearray(data)
    for _ in range(luck.randint(1, 4)):
        at, many = luck.randrange(len(made) or 1), luck.randint(1, 40)
        match luck.choice(["flip", "flip", "cut", "double", "insert", "end"]):
            case "flip":
                made[at : at + 1] = bytes([luck.randrange(256)])
            case "cut":
                del made[at : at + many]
            case "double":
                made[at:at] = made[at : at + many]
            case "insert":
                made[at:at] = luck.choice([b"\r\n", b"\0", b"\n", b":", b" ", b"{", b"\xff", b"Content-Length: 3\r\n"])
            case "end":
                del made[at:]
    return bytes(made)


def spoilt_value(value, luck):
    """Some places in a JSON value replaced, taken out or doubled."""
    made = copy.deepcopy(value)
    for _ in range(luck.randint(1, 3)):
        held, key = luck.choice(list(places(made)))
        match luck.choice(["other", "other", "other", "gone", "twice"]):
            case "gone":
                del held[key]
            case "twice" if isinstance(held, list):
                held.insert(key, copy.deepcopy(held[key]))
            case _:
                held[key] = copy.deepcopy(luck.choice(ODD))
        if not made:
            break
    return made


def places(value):
    """Each place in a JSON value, as what holds it and the key there."""
    for key, child in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(child, (dict, list)):
            yield from places(child)


async def at_once(numbers, one, many=AT_ONCE):
    """`one(number)` for each, so many at a time."""
    waiting = iter(numbers)

    async def work():
        for number in waiting:
            try:
                async with asyncio.timeout(PATIENCE):
                    await one(number)
            except Exception as error:
                error.add_note(f"number {number}")
                raise

    async with asyncio.TaskGroup() as group:
        for _ in range(many):
            group.create_task(work())


def told(counts):
    return ", ".join(f"{count} × {kind or 'closed'}" for kind, count in counts.most_common())


def nothing_went_wrong(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("numbers", [FEW, MANY])
async def test_spoilt_bytes_of_a_request(tmp_path, anthropic, caplog, figure, numbers):
    anthropic.replies = Always(plain())
    counts = Counter()
    async with running(tmp_path, anthropic.url, limits=QUICK) as proxy:

        async def one(number):
            luck = Random(number)
            if luck.random() < 0.7:
                made = request(proxy.port)
            else:
                body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(CHAT), CHAT)
                made = request(proxy.port, "Transfer-Encoding: chunked", body=body, length=False)
            async with connected(proxy.port) as (reader, writer):
                await send(writer, spoilt_bytes(made, luck))
                got = await one_answer(reader)
            assert got is None or got.status < 500, got
            assert got is None or got.status == 200 or got.error["message"]
            counts[got and got.status] += 1
            anthropic.seen.clear()

        await at_once(numbers, one, many=200)  # a fifth of them only wait to be told that their rest is late
        figure(f"{len(numbers)} requests with spoilt bytes: {told(counts)}; 0 × 500, 0 hangs")
        assert counts[400] > len(numbers) / 4
        assert counts[200] > len(numbers) / 100
        assert nothing_went_wrong(caplog)
        assert (await answer_to(proxy.port, request(proxy.port))).status == 200


@pytest.mark.parametrize("numbers", [FEW, MANY])
async def test_spoilt_places_in_a_chat(world, caplog, figure, numbers):
    proxy, anthropic = world
    anthropic.replies = deque()
    counts = Counter()

    async def one(number):
        luck = Random(number)
        body = spoilt_value({**luck.choice(SHAPES), "model": luck.choice(MODELS)}, luck)
        path = luck.choice(["/v1/messages"] * 4 + ["/v1/messages/count_tokens"])
        sent = io.BytesIO(json.dumps(body).encode())
        async with proxy.session.post(
            proxy.url + path, data=sent, headers={"x-api-key": KEY, "Content-Type": "application/json"}
        ) as answer:
            raw = await answer.read()
        assert answer.status in (200, 400, 404), (answer.status, raw[:300])
        assert answer.status == 200 or orjson.loads(raw)["error"]["message"]
        counts[answer.status] += 1
        anthropic.seen.clear()

    await at_once(numbers, one)
    figure(f"{len(numbers)} chats with spoilt places: {told(counts)}; 0 × 500, 0 hangs")
    assert min(counts[200], counts[400]) > len(numbers) / 20
    assert nothing_went_wrong(caplog)


@pytest.mark.parametrize("numbers", [FEW, MANY])
async def test_spoilt_places_in_a_reply(world, caplog, figure, numbers):
    """Streamed or not, it comes through as it is, or is an error of its own; books, receipts and metrics bear it."""
    proxy, anthropic = world
    events = [orjson.loads(line[5:]) for line in STREAM.split(b"\n") if line.startswith(b"data:")]
    counts = Counter()

    async def spoilt(request):
        asked = (await request.json())["messages"][0]["content"]
        luck = Random(int(asked if isinstance(asked, str) else asked[0]["text"]))
        if luck.random() < 0.5:
            return await plain(spoilt_value({**PLAIN, "model": luck.choice(MODELS)}, luck))(request)
        made = spoilt_value(events, luck)
        lines = (f"event: {e.get('type') if isinstance(e, dict) else 'odd'}\ndata: {json.dumps(e)}\n\n" for e in made)
        return await stream("".join(lines).encode(errors="replace"))(request)

    anthropic.replies = Always(spoilt)

    async def one(number):
        reply = await proxy.ask(messages=[{"role": "user", "content": str(number)}], stream=bool(number % 2))
        assert "inside the proxy" not in reply.raw.decode()
        counts[reply.status] += 1
        anthropic.seen.clear()

    await at_once(numbers, one)
    figure(f"{len(numbers)} replies with spoilt places: {told(counts)}; 0 × 500 of ours, 0 hangs")
    assert counts[200] > len(numbers) / 4
    assert nothing_went_wrong(caplog)
    for path in ("/api/requests?limit=1000", "/api/usage", "/metrics", "/"):
        assert (await proxy.owner("GET", path)).status == 200


@pytest.mark.parametrize("numbers", [FEW, MANY])
async def test_spoilt_bytes_of_a_streamed_reply(tmp_path, caplog, figure, numbers):
    waiting = count(numbers.start)  # a request may get several
    good = STREAM_HEAD + b"".join(chunked(part + b"\n\n") for part in STREAM.split(b"\n\n")[:-1]) + b"0\r\n\r\n"
    counts = Counter()

    async def answer_spoilt(reader, writer):
        luck = Random(next(waiting))
        made = spoilt_bytes(good, luck)
        if not made.startswith(good[:17]):
            made = good[:17] + made[17:]  # the status stays: what it says is another matter
        step = luck.choice([1, *[50] * 15, *[len(made)] * 15])
        for start in range(0, len(made), step):
            if writer.is_closing():
                break
            writer.write(made[start : start + step])
            await asyncio.sleep(0)
        writer.close()

    async with raw_upstream(answer_spoilt) as url, running(tmp_path, url) as proxy:

        async def one(number):
            reply = await proxy.ask(stream=True)
            assert "inside the proxy" not in reply.raw.decode(errors="replace")
            if reply.status == 200 and reply.headers["Content-Type"].startswith("text/event-stream"):
                whole = b'"type": "message_stop"' in reply.raw
                counts["whole" if whole else "cut"] += 1
                assert whole or b"event: error\ndata: {" in reply.raw, reply.raw[-300:]
            else:
                counts[reply.status] += 1
                assert reply.status == 200 or reply.message

        await at_once(numbers, one)
    figure(f"{len(numbers)} streams with spoilt bytes: {told(counts)}; 0 silent, 0 hangs")
    assert min(counts["whole"], counts["cut"], counts[502]) > len(numbers) / 50
    assert nothing_went_wrong(caplog)
