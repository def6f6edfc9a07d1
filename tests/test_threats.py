"""What others may try against the proxy, beyond what the tests of each room try already."""

import asyncio
import json
import random

import pytest

from tests.fakes import (
    ASK,
    KEY,
    PLAIN,
    STREAM,
    STREAM_HEAD,
    chunked,
    error,
    fake_anthropic,
    plain,
    raw_upstream,
    stream,
)
from tests.raw_http import answer_to, request
from tests.running import AS_RUN, running

pytestmark = pytest.mark.anyio
OWN = "sk-ant-api03-the-owners-own-key-0002"


@pytest.fixture
def anyio_backend():
    return AS_RUN


async def add_account(proxy, key=OWN, **more):
    return await proxy.owner("POST", "/api/accounts", json={"kind": "api_key", "name": "mine", "api_key": key, **more})


# -- T1, T2: a page in the user's browser

SIMPLE_TYPES = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", ""]
ROUTES = ["/v1/messages", "/v1/messages/count_tokens", "/messages", "/v1/ansel/messages"]


@pytest.mark.parametrize("target", ROUTES)
async def test_what_a_page_can_send_without_asking_spends_nothing(proxy, anthropic, target):
    await add_account(proxy)
    anthropic.seen.clear()
    for kind in SIMPLE_TYPES:
        got = await answer_to(proxy.port, request(proxy.port, f"Content-Type: {kind}", target=target, json_type=False))
        assert got.status == 415
    foreign = ["Origin: null", "Origin: https://evil.example", "Origin: http://localhost:8000", "Origin: file://"]
    foreign += ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors"]
    for header in foreign:
        got = await answer_to(proxy.port, request(proxy.port, header, target=target))
        assert got.status == 403
        assert not any(name.startswith("access-control") for name in got.headers)
    assert anthropic.seen == []
    assert (await answer_to(proxy.port, request(proxy.port, "Sec-Fetch-Mode: cors", target=target))).status == 200


# -- T3: a rebound name

FOREIGN_NAMES = [
    *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost", "localhost@evil.example"),
    *("2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
    *("tavern.local", "192.168.1.5", "127.0.0.1:1", "localhost:80", "localhost..", "local\thost", "%6cocalhost", "*"),
]


@pytest.mark.parametrize("name", FOREIGN_NAMES)
async def test_a_foreign_name_in_host_opens_no_door(proxy, anthropic, name):
    for method, target in (("POST", "/v1/messages"), ("GET", "/"), ("GET", "/health"), ("POST", "/auth/start")):
        for host in {name, f"{name}:{proxy.port}"} - {f"{name}:{proxy.port}" if ":" in name.rpartition("]")[2] else ""}:
            got = await answer_to(proxy.port, request(proxy.port, method=method, target=target, host=host))
            assert got is None or got.status in (400, 403), host
    assert anthropic.seen == []


# -- T10: no rights from an address that somebody writes down

HEADERS = {
    "X-Forwarded-For": ["127.0.0.1", "::1", "localhost"],
    "X-Forwarded-Host": ["localhost", "127.0.0.1"],
    "X-Forwarded-Proto": ["https"],
    "X-Forwarded-Uri": ["/health", "/auth/status"],
    "X-Original-URL": ["/health"],
    "X-Rewrite-URL": ["/health"],
    "X-Real-IP": ["127.0.0.1"],
    "X-HTTP-Method-Override": ["GET"],
    "Forwarded": ["for=127.0.0.1;host=localhost;proto=https"],
    "Via": ["1.1 localhost"],
    "User-Agent": ["Go-http-client/1.1", "kube-probe/1.30", "Mozilla/5.0"],
    "Authorization": ["Basic YWRtaW46YWRtaW4="],
}


async def test_no_header_that_proxies_write_changes_any_answer(proxy, anthropic):
    await proxy.owner("POST", "/api/keys", json={"name": "tablet"})  # from now on a key is asked for
    asked = [
        ("GET", "/"),
        ("GET", "/health"),
        ("GET", "/api/accounts"),
        ("POST", "/auth/logout"),
        ("POST", "/v1/messages"),
    ]
    for method, target in asked:
        for host in (None, "evil.example"):
            usual = await answer_to(proxy.port, request(proxy.port, method=method, target=target, host=host))
            assert usual.status in (200, 401, 403)
            for name, values in HEADERS.items():
                for value in values:
                    sent = request(proxy.port, f"{name}: {value}", method=method, target=target, host=host)
                    got = await answer_to(proxy.port, sent)
                    assert (got.status, got.headers.keys()) == (usual.status, usual.headers.keys()), (target, name)
    assert anthropic.seen == []


# -- T14: what a client key may not learn


async def test_a_client_key_learns_nothing_of_the_owners(proxy, anthropic):
    await add_account(proxy, name="barlimans-private-account")
    key = (await proxy.owner("POST", "/api/keys", json={"name": "guest"})).json["key"]
    headers = {"x-api-key": key, "Authorization": f"Bearer {key}"}
    anthropic.seen.clear()
    private = [
        "/v1/oauth/token",
        "/v1/organizations/me",
        "/v1/me",
        "/api/oauth/profile",
        "/v1/files",
        "/v1/oauth/../files",
    ]
    owners = ["/api/accounts", "/api/keys", "/api/requests", "/api/usage", "/auth/refresh", "/auth/logout", "/"]
    for path in private + owners:
        for method in ("GET", "POST", "DELETE", "PATCH"):
            reply = await proxy.send(method, path, headers=headers, json={} if method != "GET" else None)
            assert reply.status in (401, 403, 404, 405, 429), (method, path)
    assert anthropic.seen == []
    for status in (400, 401, 402, 403, 404, 429, 500, 529):
        anthropic.will(*[error(status, "api_error", "no")] * 4)
        reply = await proxy.ask(headers=headers)
        anthropic.replies.clear()
        assert "barlimans" not in reply.raw.decode() + str(dict(reply.headers))
        assert OWN not in reply.raw.decode()


@pytest.mark.parametrize(
    "answer",
    [
        error(403, "permission_error", f"The key {OWN} may not do that"),
        plain(f"<p>No such key: {OWN}</p>".encode(), 404, "text/html"),
        stream(b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"%s?"}}\n\n' % OWN.encode()),
        plain({"type": "error", "error": {"type": "not_found_error", "message": f"{OWN}?"}}),
        plain(f"No such key: {OWN}".encode(), 200, "text/plain"),
    ],
    ids=["an error", "a page", "a first event", "an error with a 200", "no JSON with a 200"],
)
async def test_an_upstream_that_repeats_the_key_shows_a_guest_its_end_alone(proxy, anthropic, answer):
    await add_account(proxy)
    key = (await proxy.owner("POST", "/api/keys", json={"name": "guest"})).json["key"]
    anthropic.will(*[answer] * 3)
    reply = await proxy.ask(headers={"x-api-key": key}, stream=True)
    assert reply.status >= 400
    assert OWN not in reply.raw.decode()
    assert "…0002" in reply.message


# -- T15: whose credential pays


async def test_a_thousand_requests_at_once_are_each_paid_by_their_own(proxy, anthropic, figure):
    await add_account(proxy)
    anthropic.seen.clear()
    luck = random.Random(3)
    guests = [f"sk-ant-api03-guest-{i:04d}-0123456789" for i in range(20)]
    payers = [luck.choice([*guests, OWN, OWN, OWN]) for _ in range(1000)]

    async def ask(number, payer):
        own = {"x-api-key": "anything"} if number % 2 else {}
        guest = {"x-api-key": payer} if number % 2 else {"Authorization": f"Bearer {payer}"}
        said = [{"role": "user", "content": f"number {number}"}]
        reply = await proxy.ask(headers=own if payer == OWN else guest, messages=said, stream=bool(number % 3))
        return reply.status

    statuses = await asyncio.gather(*(ask(number, payer) for number, payer in enumerate(payers)))
    assert statuses == [200] * 1000
    for seen in anthropic.seen:
        content = seen.body["messages"][0]["content"]
        number = int((content if isinstance(content, str) else content[0]["text"]).removeprefix("number "))
        assert seen.headers["x-api-key"] == payers[number]
    assert len(anthropic.seen) == 1000
    figure("1000 requests at once of the owner and of 20 guests: each paid by its own")


@pytest.mark.parametrize("status", [401, 402, 403, 429, 529])
async def test_a_guests_failure_is_the_guests_alone(proxy, anthropic, status):
    await add_account(proxy)
    anthropic.seen.clear()
    anthropic.will(*[error(status, "api_error", "no")] * 3)
    assert (await proxy.ask()).status == status
    anthropic.replies.clear()
    assert {seen.headers["x-api-key"] for seen in anthropic.seen} == {KEY}
    assert (await proxy.ask(headers={})).status == 200
    assert anthropic.seen[-1].headers["x-api-key"] == OWN


# -- T17: where a credential may go


@pytest.mark.parametrize(
    "url",
    [
        "http://api.anthropic.com",
        "https://api.anthropic.com@evil.example",
        "https://api.anthropic.com:443@evil.example",
        "https://169.254.169.254",
        "https://[::ffff:169.254.169.254]",
        "https://2852039166",
        "http://metadata.google.internal",
        "http://localhost.evil.example",
        "file:///etc/passwd",
        "gopher://127.0.0.1",
        "//evil.example",
        "https://evil.example?x=",
        "https://evil.example#",
        "https://evil.example/\r\nx-a: b",
        "javascript:alert(1)",
    ],
)
async def test_an_account_cannot_be_sent_to_an_address_like(proxy, url):
    reply = await add_account(proxy, base_url=url)
    assert reply.status == 400
    assert (await proxy.owner("GET", "/api/accounts")).json["accounts"] == []


async def test_nothing_in_a_request_chooses_where_it_goes(proxy, anthropic):
    async with fake_anthropic() as thief:
        tricks = {
            "base_url": thief.url,
            "api_base": thief.url,
            "api_base_url": thief.url,
            "metadata": {"user_id": thief.url},
        }
        await proxy.ask(**tricks)
        for name in ("X-Base-Url", "X-Api-Base", "X-Upstream", "X-Forwarded-Host", "Forwarded", "anthropic-base-url"):
            assert (await proxy.ask(headers={"x-api-key": KEY, name: thief.url})).status == 200
        for query in (f"?base_url={thief.url}", f"?url={thief.url}", "?reverse_proxy=" + thief.url):
            assert (await proxy.ask("/v1/messages" + query)).status == 200
        await proxy.send("GET", f"/v1/{thief.url}", headers={"x-api-key": KEY})
        await proxy.send("GET", f"/v1//{thief.url.removeprefix('http://')}/x", headers={"x-api-key": KEY})
        assert thief.seen == []
    assert len(anthropic.seen) >= 10


# -- T19: headers in both directions


async def test_only_listed_headers_pass_in_both_directions_and_bodies_stay_whole(tmp_path):
    raw = json.dumps(PLAIN).encode()
    odd = [
        "Set-Cookie: a=b; Path=/",
        "Access-Control-Allow-Origin: *",
        "Server: evil",
        "Keep-Alive: timeout=1",
        "Proxy-Authenticate: Basic",
        "Trailer: X-A",
        "Upgrade: h2c",
        "Strict-Transport-Security: max-age=1",
        "Location: http://evil.example/",
        "Content-Security-Policy: x",
        "X-Accel-Redirect: /etc/passwd",
        "Refresh: 0; url=http://evil.example/",
        "retry-after: 7",
        "anthropic-ratelimit-requests-remaining: 3",
        "request-id: req_theirs",
    ]
    head = "\r\n".join(["HTTP/1.1 200 OK", *odd, ""]).encode()

    async def answer(reader, writer):
        writer.write(head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)

    async def stream_it(reader, writer):
        more = STREAM_HEAD.split(b"\r\n", 1)[1]
        writer.write(head + more + chunked(STREAM) + b"0\r\nSet-Cookie: c=d\r\n\r\n")

    async with raw_upstream(answer, stream_it) as url, running(tmp_path, url) as proxy:
        for streamed, body in ((False, raw), (True, STREAM)):
            reply = await proxy.ask(stream=streamed)
            names = {name.lower() for name in reply.headers}
            ours = {
                "content-type",
                "content-length",
                "transfer-encoding",
                "date",
                "server",
                "cache-control",
                "x-receipt",
            }
            ours |= {"x-cache"}
            passed = {"retry-after", "anthropic-ratelimit-requests-remaining", "request-id"}
            assert {name for name in names - ours if not name.startswith("x-cache")} == passed
            assert "evil" not in str(dict(reply.headers))
            assert reply.raw == body if streamed else reply.json == PLAIN


async def test_a_front_ends_values_cannot_break_out_of_their_header(proxy, anthropic):
    for name in ("anthropic-beta", "anthropic-version", "anthropic-user-profile-id", "anthropic-workspace-id"):
        for value in ("a\r\nx-evil: 1", "a\nx-evil: 1", "a\rx-evil: 1", "a\0b"):
            got = await answer_to(proxy.port, request(proxy.port, f"{name}: {value}"))
            assert got is None or got.status in (200, 400)
    body = json.dumps({**ASK, "model": "claude-sonnet-4-6\r\nx-evil: 1"}).encode()
    assert (await answer_to(proxy.port, request(proxy.port, body=body))).status == 400
    for seen in anthropic.seen:
        assert not {"x-evil"} & {name.lower() for name in seen.headers}


@pytest.mark.parametrize("name", ["anthropic-beta", "anthropic-version", "anthropic-workspace-id", "Content-Type"])
async def test_odd_bytes_in_a_header_break_nothing(proxy, anthropic, name):
    path = "/v1/files" if name == "Content-Type" else "/v1/messages"
    anthropic.will(plain())
    sent = request(proxy.port, f"{name}: caf\xe9", target=path, json_type=name != "Content-Type")
    assert (await answer_to(proxy.port, sent)).status == 200
    if name == "Content-Type":
        assert anthropic.seen[0].headers[name].encode(errors="surrogateescape") == b"caf\xe9"


async def test_an_upstreams_error_text_is_data_wherever_it_is_shown(proxy, anthropic):
    nasty = "<img src=x onerror=alert(1)>\r\nSet-Cookie: a=b\x1b[31m"
    anthropic.will(error(400, "invalid_request_error", nasty))
    anthropic.will(*[plain(b"<script>alert(1)</script>", 502, "text/html")] * 3)
    for _ in range(2):
        reply = await proxy.ask()
        assert reply.headers["Content-Type"].startswith("application/json")
        assert "Set-Cookie" not in reply.headers
        assert reply.message


# -- T22: the provider's terms


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_policy_refusal_costs_one_request_and_moves_no_other_account(proxy, anthropic, streamed):
    words = "This credential is only authorized for use with Claude Code and cannot be used for other API requests."
    await add_account(proxy)
    await add_account(proxy, key="sk-ant-api03-another-one-000000003")
    anthropic.seen.clear()
    anthropic.will(error(400, "invalid_request_error", words))
    reply = await proxy.ask(headers={}, stream=streamed)
    assert (reply.status, len(anthropic.seen)) == (400, 1)
    assert reply.message.startswith(words)
    assert len(reply.message) > len(words) + 20
    anthropic.will(stream())
    assert (await proxy.ask(headers={}, stream=True)).status == 200
