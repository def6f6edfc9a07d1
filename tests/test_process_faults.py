"""Faults that only a process can meet: signals, stuck pipes, full disks, sleep; and what it says meanwhile."""

import asyncio
import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter

import aiohttp
import httpx2
import pytest

from tests.fakes import (
    ASK,
    KEY,
    PATIENCE,
    PLAIN,
    STREAM,
    Always,
    error,
    event,
    fake_anthropic,
    plain,
    raw_upstream,
    stream,
)
from tests.pools import login, make_pool, started, stored
from tests.process import free_port, program
from tests.raw_http import answer_to, connected, one_answer, request, send
from tests.running import Proxy
from tests.soak import AT_ONCE, FIRST, echo, play

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name == "nt", reason="only on Linux and macOS: signals and limits of processes"),
]
MIB = 2**20
CHAT = json.dumps({**ASK, "stream": True}).encode()


async def test_fifty_streams_that_are_open_at_the_signal_come_whole(tmp_path, figure):
    gate = asyncio.Event()
    async with fake_anthropic() as fake, program(tmp_path, fake.url) as running:
        async with connected(running.port) as (reader, writer):
            await send(writer, request(running.port))
            assert (await one_answer(reader)).status == 200
            fake.will(*[stream(STREAM[:-70], gate=gate, last=STREAM[-70:]) for _ in range(50)])
            asked = [asyncio.create_task(answer_to(running.port, request(running.port, body=CHAT))) for _ in range(50)]
            while len(fake.seen) < 51:
                await asyncio.sleep(0.01)
            running.signal(signal.SIGTERM)
            await running.says("Stopping when 50 open replies have ended")
            await send(writer, request(running.port))
            late = await one_answer(reader)
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", running.port)
        gate.set()
        replies = await asyncio.gather(*asked)
        assert await running.ended() == 0
    assert (late.status, late.headers["connection"], late.error["type"]) == (503, "close", "api_error")
    assert [reply.raw for reply in replies] == [STREAM] * 50
    assert running.said.rstrip().endswith("Stopped.")
    figure("SIGTERM with 50 open streams: 50 come whole, a late request is a 503, no connection is taken any more")


async def test_two_starts_at_once_on_one_port_end_in_one_proxy_and_one_sentence(tmp_path):
    port, logs = free_port(), [tmp_path / "one.log", tmp_path / "two.log"]
    with logs[0].open("w") as one, logs[1].open("w") as two:
        async with (
            program(tmp_path, stdout=one, port=port) as (first, _),
            program(tmp_path, stdout=two, port=port) as (second, _),
            asyncio.timeout(PATIENCE),
        ):
            while (first.returncode is None) == (second.returncode is None):
                await asyncio.sleep(0.01)
            health = await answer_to(port, request(port, method="GET", target="/health", body=b""))
            statuses = [first.returncode, second.returncode]
    assert health.status == 200
    assert sorted(statuses, key=str) == [1, None]
    (sentence,) = logs[statuses.index(1)].read_text().splitlines()
    assert f"Port {port} at 127.0.0.1 is taken by" in sentence


async def test_four_first_starts_at_once_on_one_folder_all_run(tmp_path):
    async def start():
        async with program(tmp_path) as running:
            return (await answer_to(running.port, request(running.port))).status

    assert await asyncio.gather(*(start() for _ in range(4))) == [200] * 4


async def test_a_log_that_nobody_reads_holds_up_nothing_not_even_the_end(tmp_path):
    reading, writing = os.pipe()
    try:
        async with fake_anthropic() as fake, program(tmp_path, fake.url, stdout=writing) as (process, port):
            said = b""
            while b"To stop:" not in said:
                said += await asyncio.to_thread(os.read, reading, 65536)
            async with asyncio.timeout(PATIENCE), connected(port) as (reader, writer):
                for _ in range(1500):  # each is a line in the log, and a pipe holds 64 KiB
                    await send(writer, request(port))
                    assert (await one_answer(reader)).status == 200
                    fake.seen.clear()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
    finally:
        os.close(reading)
        os.close(writing)


def no_file_beyond(size):
    """A limit that makes the disk look full to the process."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


async def test_a_first_start_on_a_full_disk_is_refused_with_the_remedy(tmp_path):
    reading, writing = os.pipe()
    async with program(tmp_path, stdout=writing, limit=no_file_beyond(1000)) as (process, _):
        status = await asyncio.wait_for(process.wait(), PATIENCE)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        said = pipe.read()
    assert status == 1
    assert len(said.splitlines()) == 1
    assert "state.sqlite cannot be used" in said
    assert "Make room on the disk" in said


async def test_a_disk_that_is_full_fails_no_request(tmp_path):
    async with fake_anthropic() as fake, program(tmp_path, fake.url, limit=no_file_beyond(300_000)) as running:
        async with asyncio.timeout(PATIENCE), connected(running.port) as (reader, writer):
            for number in range(60):
                turns = [
                    {"role": ("user", "assistant")[i % 2], "content": f"{number} {i} " + "word " * 500}
                    for i in range(41)
                ]
                await send(writer, request(running.port, body=json.dumps({**ASK, "messages": turns}).encode()))
                assert (await one_answer(reader)).status == 200
                fake.seen.clear()
                await asyncio.sleep(0.05)
            await running.says("could not be kept: disk I/O error")
            health = await answer_to(running.port, request(running.port, method="GET", target="/health", body=b""))
            assert health.status == 200
        running.signal(signal.SIGTERM)
        assert await running.ended() == 0
    assert "Traceback" not in running.said


async def test_a_database_somebody_else_has_locked_fails_no_request(tmp_path):
    async with fake_anthropic() as fake, program(tmp_path, fake.url) as running:
        owner = {"Authorization": f"Bearer {(tmp_path / 'data' / 'admin_token').read_text().strip()}"}
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", headers=owner) as client:
            key = (await client.post("/api/keys", json={"name": "tablet", "own": True})).json()["key"]
        locked = sqlite3.connect(tmp_path / "data" / "state.sqlite", isolation_level=None)
        locked.execute("BEGIN EXCLUSIVE")
        try:
            sent = request(running.port, f"x-api-key: {key}", f"Authorization: Bearer {KEY}")
            for _ in range(12):
                assert (await answer_to(running.port, sent)).status == 200
            async with httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{running.port}", headers=owner, timeout=PATIENCE
            ) as client:
                refused = await client.post("/api/keys", json={"name": "phone"})
            assert refused.status_code == 503
            assert "keys cannot be changed just now (database is locked)" in refused.json()["error"]["message"]
        finally:
            locked.execute("ROLLBACK")
            locked.close()
        assert fake.seen


async def test_after_sleep_the_first_request_works_although_every_kept_connection_is_gone(tmp_path):
    async with fake_anthropic() as fake, program(tmp_path, fake.url) as running:
        for _ in range(3):
            together = [answer_to(running.port, request(running.port)) for _ in range(5)]
            assert [reply.status for reply in await asyncio.gather(*together)] == [200] * 5
        running.signal(signal.SIGSTOP)
        for transport in list(fake.transports):
            transport.abort()
        await asyncio.sleep(0.2)
        running.signal(signal.SIGCONT)
        together = [answer_to(running.port, request(running.port)) for _ in range(5)]
        assert [reply.status for reply in await asyncio.gather(*together)] == [200] * 5


@pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
async def test_a_proxy_killed_while_it_renews_loses_no_sign_in(tmp_path, oauth, figure, rounds):
    """kill -9 at random moments. Killed between the endpoint's answer and our writing, it has only the old refresh
    token; this endpoint, like some real ones, then gives its successor once more."""
    luck, oauth.grace = random.Random(19), True

    def answer(seen):
        known = seen.headers["Authorization"].removeprefix("Bearer ") in oauth.access
        return plain() if known else error(401, "authentication_error", "OAuth token has expired.")

    async with started(make_pool(tmp_path, oauth.url)) as pool:
        await pool.add_oauth(login(oauth, time.time))
    async with fake_anthropic() as fake:
        fake.answer = answer
        settings = {"oauth_token_url": oauth.url, "dev": False}
        for _ in range(rounds):
            oauth.kill(stored(tmp_path)["accounts"][0]["access_token"])
            oauth.entered.clear()
            async with program(tmp_path, fake.url, **settings) as running, connected(running.port) as (_, writer):
                await send(writer, request(running.port, "x-api-key: anything"))
                await asyncio.wait_for(oauth.entered.wait(), PATIENCE)
                await asyncio.sleep(luck.uniform(0, 0.03))
        oauth.kill(stored(tmp_path)["accounts"][0]["access_token"])
        async with program(tmp_path, fake.url, **settings) as running:
            assert (await answer_to(running.port, request(running.port, "x-api-key: anything"))).status == 200
    figure(
        f"proxies killed while they renew a sign-in: {rounds}; {oauth.reuses} of them before they had written what "
        "came; 0 sign-ins lost"
    )


async def test_proxy_variables_and_redirects_lead_no_secret_elsewhere(tmp_path):
    reached = []

    async def thief(reader, writer):
        reached.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(thief, "127.0.0.1", 0)
    there = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, fake_anthropic() as fake:
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        async with program(tmp_path, fake.url, environ=dict.fromkeys(names, there)) as running:
            for status in (301, 302, 303, 307, 308):
                fake.will(plain(status=status, location=f"{there}/v1/messages"))
                got = await answer_to(running.port, request(running.port))
                assert (got.status, got.error["type"]) == (502, "api_error")
            assert (await answer_to(running.port, request(running.port))).status == 200
        assert len(fake.seen) == 6
    assert reached == []


SECRETS = {
    "api key": "sk-ant-api03-the-owners-secret-key-0123456789",
    "guest key": "sk-ant-api03-a-guests-secret-key-9876543210",
    "subscription": "sk-ant-oat01-somebodys-login-55555555555555",
    "chat": "the heron flies at midnight over Merrow Bridge",
    "system": "you are Ansel the lamplighter of the drowned quarter",
    "tool": "look_up_the_lamplighters_ledger",
    "upstream's words": "quoting your prompt about the copper weathervane",
    "password": "my grandmother's maiden name",
}


async def test_no_secret_and_no_word_of_a_chat_reaches_the_log_a_page_or_a_file(tmp_path):
    """At DEBUG, over good and bad requests, refusals, breaks, hang-ups and every page of the owner's."""
    marker = SECRETS["chat"]
    told = ""
    body = {
        **ASK,
        "system": SECRETS["system"],
        "tools": [{"name": SECRETS["tool"], "input_schema": {"type": "object"}}],
        "messages": [{"role": "user", "content": marker + " word" * 3000}],
    }
    async with fake_anthropic() as fake, program(tmp_path, fake.url, log_level="DEBUG") as running:
        admin = (tmp_path / "data" / "admin_token").read_text().strip()
        base = f"http://127.0.0.1:{running.port}"
        async with httpx2.AsyncClient(base_url=base, timeout=PATIENCE) as client:
            owner = {"Authorization": f"Bearer {admin}"}
            account = {"kind": "api_key", "name": "mine", "api_key": SECRETS["api key"]}
            told += (await client.post("/api/accounts", json=account, headers=owner)).text
            client_key = (await client.post("/api/keys", json={"name": "sister"}, headers=owner)).json()["key"]
            words = SECRETS["upstream's words"]
            answers = [
                plain(),
                stream(),
                stream(FIRST),
                stream(FIRST + event("error", error={"type": "overloaded_error", "message": words})),
                *(error(status, "api_error", words) for status in (400, 403, 404, 413, 422)),
                error(401, "authentication_error", words),
                plain(words.encode(), content_type="text/html"),
                plain(b'{"content": [' + words.encode()),
                plain(status=307, location="http://127.0.0.1:9/" + words.replace(" ", "-")),
            ]
            for password in (SECRETS["guest key"], SECRETS["subscription"], SECRETS["password"], client_key):
                for streamed in (True, False):
                    for answer in answers:
                        fake.replies.clear()
                        fake.will(*[answer] * 3)
                        headers = {"x-api-key": password}
                        if password == client_key:
                            headers["Authorization"] = f"Bearer {SECRETS['guest key']}"
                        await client.post("/v1/messages", json={**body, "stream": streamed}, headers=headers)
            fake.replies.clear()
            for spoilt in (
                b'{"' + marker.encode(),
                json.dumps({**body, "messages": marker}).encode(),
                b"\xff" + marker.encode(),
            ):
                headers = {"x-api-key": client_key, "Content-Type": "application/json"}
                told += (await client.post("/v1/messages", content=spoilt, headers=headers)).text
            for odd in (
                b"GET /" + marker.replace(" ", "/").encode() + b" HTTP/9\r\n\r\n",
                b"\x16\x03" + marker.encode() + b"\r\n\r\n",
            ):
                if (got := await answer_to(running.port, odd)) is not None:
                    told += got.raw.decode()
            async with connected(running.port) as (_, writer):
                await send(writer, request(running.port, body=json.dumps(body).encode())[:-50])
            for path in (
                "/",
                "/api/accounts",
                "/api/keys",
                "/api/requests?limit=1000",
                "/api/usage",
                "/api/chats",
                "/metrics",
                "/requests",
                "/accounts",
                "/keys",
                "/spending",
                "/chats",
                "/personas",
                "/settings",
                "/doctor",
                "/auth/login",
                "/auth/status",
                "/health",
            ):
                told += (await client.get(path, headers=owner)).text
            await asyncio.sleep(1.5)  # what is written down once a second
        running.signal(signal.SIGTERM)
        assert await running.ended() == 0
    hidden = [*SECRETS.values(), admin, client_key]
    assert [secret for secret in hidden if secret in running.said] == []
    assert [secret for secret in hidden if secret in told] == []
    files = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    for path, data in files.items():
        allowed = {"tokens.json": [SECRETS["api key"]], "tokens.json.bak": [SECRETS["api key"]], "admin_token": [admin]}
        found = [secret for secret in hidden if secret.encode() in data]
        assert [secret for secret in found if secret not in allowed.get(path.name, [])] == [], path
    assert "Traceback" not in running.said
    assert "Warning" not in running.said


def probe(port, enough):
    """How long `/health` takes, again and again, as seen from a thread that has nothing else to do."""
    took = []
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    while not enough.is_set():
        began = time.monotonic()
        client.request("GET", "/health")
        assert client.getresponse().read()
        took.append(time.monotonic() - began)
        time.sleep(0.01)
    client.close()
    return took


HUGE = {
    "one text": {"messages": [{"role": "user", "content": "word " * (31 * MIB // 5)}]},
    "two million lines": {"messages": [{"role": "user", "content": "A line of it.\n" * 2_000_000}]},
    "no chat": {"metadata": {"user_id": "x" * 31 * MIB}},
    "100,000 messages": {"messages": [{"role": role, "content": "x" * 280} for role in ("user", "assistant")] * 50_000},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HUGE)
async def test_bodies_of_32_mib_hold_up_nobody_else(tmp_path, figure, kind):
    """The aim: a `/health` beside them is answered within 50 ms, 99 times of a hundred."""
    body = json.dumps({**ASK, **HUGE[kind]}).encode()
    assert 28 * MIB < len(body) <= 32 * MIB
    enough = threading.Event()

    async def answer_at_once(reader, writer):
        body = json.dumps(PLAIN).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )

    async with raw_upstream(answer_at_once) as url, program(tmp_path, url, dev=False) as running:
        probing = asyncio.create_task(asyncio.to_thread(probe, running.port, enough))
        for _ in range(40):
            assert (await answer_to(running.port, request(running.port, body=body))).status == 200
        enough.set()
        took = sorted(await probing)
    half, most = took[len(took) // 2] * 1e3, took[int(len(took) * 0.99)] * 1e3
    figure(f"beside bodies of {len(body) / MIB:.0f} MiB, {kind}: /health p50 {half:.0f} ms, p99 {most:.0f} ms")
    assert len(took) > 40  # at least one while each body was dealt with


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_ten_thousand_requests_leave_the_process_as_it_was(tmp_path, figure):
    """Its memory is that of the proxy alone, as people run it; a warning would be an error."""
    counts = Counter()
    async with (
        fake_anthropic() as fake,
        program(tmp_path, fake.url, dev=False) as running,
        aiohttp.ClientSession() as session,
    ):
        fake.replies = Always(echo)
        proxy = Proxy(f"http://127.0.0.1:{running.port}", running.port, None, session)
        await play(proxy, range(1000))
        memory, descriptors = running.about.memory_info().rss, running.about.num_fds()
        for start in range(1000, 11_000, 500):
            counts += await play(proxy, range(start, start + 500))
            fake.seen.clear()
        after, at_the_end = running.about.memory_info().rss, running.about.num_fds()
        running.signal(signal.SIGTERM)
        assert await running.ended() == 0
    sorts = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    figure(
        f"soak of {counts.total()} ({sorts}): 0 wrong; RSS {memory / MIB:.0f} → {after / MIB:.0f} MiB "
        f"({after / memory - 1:+.0%}), descriptors {descriptors} → {at_the_end}"
    )
    assert after <= memory * 1.2  # the aim is 1.1; what the allocator keeps differs from run to run
    assert at_the_end <= descriptors + 2 * AT_ONCE  # open connections of either side
    assert "Traceback" not in running.said
    assert "Warning" not in running.said


@pytest.mark.slow
async def test_two_hundred_streams_take_less_than_150_mib(tmp_path, figure):
    gate = asyncio.Event()
    async with fake_anthropic() as fake, program(tmp_path, fake.url, dev=False) as running:
        fake.will(*[stream(FIRST, gate=gate, last=STREAM[len(FIRST) :]) for _ in range(200)])
        asked = [asyncio.create_task(answer_to(running.port, request(running.port, body=CHAT))) for _ in range(200)]
        while len(fake.seen) < 200:
            await asyncio.sleep(0.01)
        memory = running.about.memory_info().rss
        gate.set()
        assert {reply.status for reply in await asyncio.gather(*asked)} == {200}
    figure(f"200 streams: RSS {memory / MIB:.0f} MiB")
    assert memory <= 150 * MIB


@pytest.mark.slow
async def test_a_hundred_slow_readers_take_less_than_a_mebibyte_each(tmp_path, figure):
    block = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "x" * 8000})

    async def talk_without_end(request):
        return await stream(FIRST, *[block] * 100_000)(request)

    deaf = [socket.socket() for _ in range(100)]
    async with fake_anthropic() as fake, program(tmp_path, fake.url, dev=False) as running:
        fake.will(*[talk_without_end] * 100)
        before = running.about.memory_info().rss
        for one in deaf:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", running.port))
            one.sendall(request(running.port, body=CHAT))
        await asyncio.sleep(5)
        grown = running.about.memory_info().rss - before
        for one in deaf:
            one.close()
    figure(f"100 slow readers: RSS + {grown / MIB:.0f} MiB")
    assert grown < 100 * MIB
