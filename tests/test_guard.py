"""The gate before every route: tables of what may come in, then the middleware before a small app, over raw sockets."""

import asyncio
import json
import logging
import socket
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from server import guard
from server.errors import ProxyError
from server.guard import Audience, Rules, audience_of
from server.owner import Owner

PORT = 42069
ADMIN = "a" * 43
HOME = {"host": f"localhost:{PORT}"}
LISTED = "https://risuai.xyz"


def headers(*pairs, **named):
    """As aiohttp hands them over; pairs for names that come twice."""
    return CIMultiDictProxy(CIMultiDict([*pairs, *((k.replace("_", "-"), v) for k, v in named.items())]))


def status(error):
    return error and error.status


# Host


@pytest.fixture
def rules():
    return Rules.of(PORT, "192.168.7.5", ["my-pc.local", "Tavern.example:8080"], [LISTED, "http://localhost:8000"])


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost",
        "127.0.0.1",
        "[::1]",
        "192.168.7.5",
        "my-pc.local",
        "MY-PC.local",
        *(f"{name}:{PORT}" for name in ("localhost", "LOCALHOST", "127.0.0.1", "[::1]", "192.168.7.5", "my-pc.local")),
        "tavern.example:8080",
    ],
)
def test_names_of_this_server_are_answered(rules, host):
    assert guard.wrong_host(rules, headers(host=host), "/v1/messages") is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil-localhost",
        "localhost.",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "127.0.0.2",
        "0.0.0.0",
        f"0.0.0.0:{PORT}",
        "[::]",
        "[::ffff:127.0.0.1]",
        "::1",
        "other.local",
        "192.168.7.6",
        "localhost:80",
        "localhost:",
        f"localhost:{PORT}0",
        f"user@localhost:{PORT}",
        f"localhost:{PORT}/",
        f"localhost:{PORT} ",
        f" localhost:{PORT}",
        "tavern.example",
        f"tavern.example:{PORT}",
        "",
        "localhost\udce4",
    ],
)
def test_any_other_name_is_refused_naming_the_setting_and_the_address_that_is_ours(rules, host):
    error = guard.wrong_host(rules, headers(host=host), "/v1/messages")
    assert (error.status, error.type) == (403, "permission_error")
    assert "allowed_hosts" in error.message
    assert f"Use http://localhost:{PORT}," in error.message


def test_a_request_has_exactly_one_host(rules):
    assert status(guard.wrong_host(rules, headers(), "/")) == 400
    assert status(guard.wrong_host(rules, headers(("Host", "localhost"), ("Host", "localhost")), "/")) == 400


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        (f"http://localhost:{PORT}/v1/messages", f"localhost:{PORT}", None),
        (f"http://LOCALHOST:{PORT}/v1/messages", f"localhost:{PORT}", None),
        (f"http://localhost:{PORT}?x", f"localhost:{PORT}", None),
        ("http://evil.example/v1/messages", "evil.example", 403),
        ("http://evil.example/v1/messages", f"localhost:{PORT}", 400),
        (f"http://user@localhost:{PORT}/", f"localhost:{PORT}", 400),
        (f"localhost:{PORT}", f"localhost:{PORT}", 400),
        ("", f"localhost:{PORT}", 400),
        ("//evil.example/v1/messages", f"localhost:{PORT}", None),
    ],
)
def test_a_target_in_absolute_form_must_name_the_host_it_came_to(rules, target, host, expected):
    assert status(guard.wrong_host(rules, headers(host=host), target)) == expected


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_listening_everywhere_adds_no_name(host):
    assert Rules.of(PORT, host).hosts == Rules.of(PORT).hosts
    assert len(Rules.of(PORT).hosts) == 6


def test_an_ipv6_address_is_answered_in_brackets():
    rules = Rules.of(PORT, "fd12::7", ["fd12::8"])
    for name in ("[fd12::7]", "[fd12::8]"):
        assert guard.wrong_host(rules, headers(host=name), "/") is None
        assert guard.wrong_host(rules, headers(host=f"{name}:{PORT}"), "/") is None
    assert status(guard.wrong_host(rules, headers(host="fd12::7"), "/")) == 403


# Origin


@pytest.mark.parametrize("audience", Audience)
def test_no_origin_and_our_own_are_served(rules, audience):
    assert guard.foreign_origin(rules, audience, headers(**HOME)) is None
    assert guard.foreign_origin(rules, audience, headers(**HOME, origin=f"http://localhost:{PORT}")) is None


@pytest.mark.parametrize("audience", Audience)
@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        f"https://localhost:{PORT}",
        "http://localhost",
        "http://localhost:8001",
        f"http://127.0.0.1:{PORT}",
        f"http://localhost:{PORT}0",
        f"http://localhost:{PORT}/",
        f"http://localhost.evil.example:{PORT}",
        f"http://evil-localhost:{PORT}",
        f"http://user@localhost:{PORT}",
        f"HTTP://localhost:{PORT}",
        "file://",
        "chrome-extension://abcdefghijklmnop",
        "https://risuai.xyz.evil.example",
        "http://risuai.xyz",
        "https://risuai.xyz:443",
        f"{LISTED}, {LISTED}",
    ],
)
def test_any_other_origin_is_refused(rules, audience, origin):
    error = guard.foreign_origin(rules, audience, headers(**HOME, origin=origin))
    assert (error.status, error.type) == (403, "permission_error")


def test_two_origins_are_refused_even_if_both_are_fine(rules):
    own = ("Origin", f"http://localhost:{PORT}")
    assert status(guard.foreign_origin(rules, Audience.FRONT, headers(own, own, **HOME))) == 403


@pytest.mark.parametrize("origin", [LISTED, "http://localhost:8000"])
def test_a_listed_page_may_chat_but_not_touch_what_is_the_owners(rules, origin):
    given = headers(**HOME, origin=origin)
    assert guard.foreign_origin(rules, Audience.FRONT, given) is None
    assert status(guard.foreign_origin(rules, Audience.OWNER, given)) == 403
    assert status(guard.foreign_origin(rules, Audience.PAGE, given)) == 403


def test_our_own_page_behind_tls_is_served_when_both_its_names_are_listed():
    rules = Rules.of(PORT, "", ["tavern.example"], ["https://tavern.example"])
    given = headers(host="tavern.example", origin="https://tavern.example")
    assert guard.foreign_origin(rules, Audience.OWNER, given) is None
    without = Rules.of(PORT, "", ["tavern.example"])
    assert status(guard.foreign_origin(without, Audience.OWNER, given)) == 403


# Sec-Fetch


def fetch(site=None, mode=None, dest=None, **more):
    named = {"sec_fetch_site": site, "sec_fetch_mode": mode, "sec_fetch_dest": dest}
    return headers(**HOME, **{k: v for k, v in named.items() if v is not None}, **more)


@pytest.mark.parametrize("audience", Audience)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("site", "mode"),
    [
        (None, None),  # curl, node-fetch
        (None, "cors"),  # Node's own fetch
        ("same-origin", "cors"),
        ("same-origin", "navigate"),
        ("none", "navigate"),
        ("none", "cors"),
    ],
)
def test_what_our_pages_and_programs_send_is_served(rules, audience, method, site, mode):
    assert guard.foreign_fetch(rules, audience, method, fetch(site, mode)) is None


@pytest.mark.parametrize("audience", [Audience.FRONT, Audience.OWNER])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    ("site", "mode"),
    [
        ("cross-site", None),
        ("same-site", None),
        ("cross-site", "cors"),
        ("same-site", "cors"),
        ("cross-site", "navigate"),
        (None, "no-cors"),
        ("none", "no-cors"),
        ("same-origin", "no-cors"),
        ("cross-site", "no-cors"),
    ],
)
def test_a_page_from_elsewhere_is_refused_on_the_api(rules, audience, method, site, mode):
    assert status(guard.foreign_fetch(rules, audience, method, fetch(site, mode, "empty"))) == 403


@pytest.mark.parametrize("audience", [Audience.PAGE, Audience.OPEN])
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_may_be_opened_from_elsewhere_but_not_framed_or_fetched(rules, audience, site):
    def refused(method, mode, dest):
        return status(guard.foreign_fetch(rules, audience, method, fetch(site, mode, dest)))

    assert refused("GET", "navigate", "document") is None
    assert refused("POST", "navigate", "document") == 403
    assert refused("GET", "navigate", "iframe") == 403
    assert refused("GET", "no-cors", "script") == 403
    assert refused("GET", "cors", "empty") == 403


def test_our_pages_load_their_own_style_and_pictures(rules):
    assert guard.foreign_fetch(rules, Audience.OPEN, "GET", fetch("same-origin", "no-cors", "style")) is None


def test_a_listed_page_is_served_although_it_is_cross_site(rules):
    given = fetch("cross-site", "cors", origin=LISTED)
    assert guard.foreign_fetch(rules, Audience.FRONT, "POST", given) is None
    assert (
        status(guard.foreign_fetch(rules, Audience.FRONT, "POST", fetch("cross-site", "no-cors", origin=LISTED))) == 403
    )


# Content type, doubled headers


@pytest.mark.parametrize(
    "given",
    [
        "application/json",
        "Application/JSON; charset=UTF-8",
        "application/json;charset=utf-8",
        'application/json; charset="utf-8"',
        "application/json; charset=utf8",
        "application/json ; odd=1",
    ],
)
def test_json_in_utf_8_is_taken(given):
    assert guard.wrong_type(headers(content_type=given)) is None


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/ json",
        "aplication/json",
        "application/json, text/plain",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "application/json; charset=utf-8; charset=latin-1",
    ],
)
def test_any_other_type_is_a_415(given):
    error = guard.wrong_type(headers() if given is None else headers(content_type=given))
    assert (error.status, error.type) == (415, "invalid_request_error")
    assert "application/json" in error.message


@pytest.mark.parametrize("name", ["x-api-key", "X-API-Key", "Authorization", "content-type"])
def test_a_header_that_comes_twice_is_refused(name):
    assert status(guard.doubled(headers((name, "a"), (name.upper(), "a")))) == 400
    assert guard.doubled(headers((name, "a"))) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/messages", True),
        ("//messages", True),
        ("/v1//messages/", True),
        ("/v1/maren/messages", True),
        ("/v1/messages/count_tokens", True),
        ("/v1/messages/batches", False),
        ("/v1/files", False),
        ("/v1/models", False),
    ],
)
def test_chat_routes_are_known_in_all_their_spellings(path, expected):
    assert guard.is_chat(path) is expected


@pytest.mark.parametrize(
    ("canonical", "audience"),
    [
        ("/", Audience.PAGE),
        ("/auth/login", Audience.OPEN),
        ("/auth/callback", Audience.OPEN),
        ("/auth/status", Audience.OPEN),
        ("/health", Audience.OPEN),
        ("/static/{name}", Audience.OPEN),
        ("/auth/start", Audience.OWNER),
        ("/auth/logout", Audience.OWNER),
        ("/api/accounts/{id}", Audience.OWNER),
        ("/api/requests", Audience.OWNER),
        ("/api/keys", Audience.OWNER),
        ("/api/me", Audience.FRONT),
        ("/metrics", Audience.OPEN),
        ("/v1/messages", Audience.FRONT),
        ("/{path}", Audience.FRONT),
        ("", Audience.FRONT),
    ],
)
def test_each_route_has_its_audience(canonical, audience):
    assert audience_of(canonical) is audience


# The middleware, before an app of its own


class World:
    """An app behind the guard on a real port, and what reached its handlers."""

    def __init__(self, port):
        self.port = port
        self.host = f"127.0.0.1:{port}"
        self.reached = []

    async def ask(self, method, target, *extra, host=None, body=b""):
        """Status, headers and body of one exact request."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host or self.host}", *extra, "Connection: close"]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return await self.raw("\r\n".join([*lines, "", ""]).encode() + body)

    async def raw(self, sent):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(sent)
            first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            found = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in rest)}
            length = found.get("content-length")
            body = await reader.read() if length is None else await reader.readexactly(int(length))
            return int(first.split(" ")[1]), found, body
        finally:
            writer.close()
            await writer.wait_closed()


JSON = "Content-Type: application/json"
OWNER = f"Authorization: Bearer {ADMIN}"
SECRET_WORDS = "and then the dragon said"


@asynccontextmanager
async def running(**options):
    bound = socket.create_server(("127.0.0.1", 0))
    world = World(bound.getsockname()[1])

    async def reached(request):
        world.reached.append((request.method, request.path, await request.text()))
        return web.json_response({"ok": True})

    async def breaks(request):
        raise ValueError(SECRET_WORDS)

    async def breaks_late(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        raise ValueError(SECRET_WORDS)

    async def streams(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write_eof(b"data: 1\n\n")
        return response

    def refusal_page(request, error):
        return web.Response(status=error.status, text=f"<p>{error.message}", content_type="text/html")

    app = web.Application(client_max_size=1000)
    rules = Rules.of(world.port, "", (), options.get("allowed_origins", ()))
    guard.attach(app, rules, Owner(ADMIN, world.port), refusal_page, lambda error: "req_turned_away")
    app.add_routes(
        [
            web.post("/v1/messages", reached, expect_handler=guard.expect),
            web.post("/v1/files", reached),
            web.get("/v1/models", reached),
            web.get("/v1/stream", streams),
            web.post("/v1/breaks", breaks),
            web.get("/v1/breaks_late", breaks_late),
            web.get("/", reached),
            web.get("/auth/login", reached),
            web.get("/auth/callback", reached),
            web.get("/auth/status", reached),
            web.post("/auth/logout", reached),
            web.get("/api/accounts", reached),
            web.post("/api/accounts", reached, expect_handler=guard.expect),
            web.delete("/api/accounts/{id}", reached),
            web.get("/health", reached),
            web.get("/static/{name}", reached),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, bound).start()
    try:
        yield world
    finally:
        await runner.cleanup()


@pytest.fixture
async def world():
    async with running() as world:
        yield world


@pytest.fixture
async def open_world():
    async with running(allowed_origins=[LISTED]) as world:
        yield world


def error_of(got):
    """The error in an answer, after looking at its shape."""
    _, head, body = got
    assert head["content-type"].startswith("application/json")
    data = json.loads(body)
    assert data.keys() == {"type", "error", "request_id"}
    assert data["type"] == "error"
    assert data["error"].keys() == {"type", "message"}
    assert data["request_id"] == head["request-id"]
    assert data["request_id"].startswith("req_")
    assert not any(name.startswith("access-control") for name in head)
    return data["error"]


@pytest.mark.anyio
async def test_what_sillytavern_and_curl_send_reaches_the_handler(world):
    sillytavern = [
        "anthropic-version: 2023-06-01",
        "x-api-key: anything",
        "user-agent: node-fetch",
        "accept: */*",
        JSON,
    ]
    assert (await world.ask("POST", "/v1/messages", *sillytavern, body=b"{}"))[0] == 200
    assert (await world.ask("GET", "/v1/models"))[0] == 200
    assert (await world.ask("GET", "/health", "Sec-Fetch-Mode: cors"))[0] == 200
    assert world.reached == [("POST", "/v1/messages", "{}"), ("GET", "/v1/models", ""), ("GET", "/health", "")]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("spoilt", "expected"),
    [
        (["Content-Type: text/plain"], 415),
        (["Content-Type: application/x-www-form-urlencoded"], 415),
        (["Content-Type: multipart/form-data; boundary=x"], 415),
        ([], 415),
        ([JSON, "Origin: null"], 403),
        ([JSON, "Origin: http://localhost:8000"], 403),
        ([JSON, "Origin: https://evil.example"], 403),
        ([JSON, "Sec-Fetch-Site: cross-site"], 403),
        ([JSON, "Sec-Fetch-Site: same-site"], 403),
        ([JSON, "Sec-Fetch-Mode: no-cors"], 403),
        ([JSON, "x-api-key: a", "x-api-key: b"], 400),
        ([JSON, "Authorization: a", "authorization: b"], 400),
    ],
)
async def test_each_check_stops_a_page_alone(world, spoilt, expected):
    """Everything else about the request is in order: the one check named here is what refuses it."""
    got = await world.ask("POST", "/v1/messages", *spoilt, body=b"{}")
    assert got[0] == expected
    error_of(got)
    assert world.reached == []


@pytest.mark.anyio
@pytest.mark.parametrize("target", ["/", "/health", "/v1/models", "/auth/login", "/auth/status", "/static/x.css"])
async def test_a_rebound_name_is_refused_everywhere(world, target):
    got = await world.ask("GET", target, OWNER, host=f"rebound.example:{world.port}")
    assert got[0] == 403
    assert "allowed_hosts" in error_of(got)["message"]
    assert world.reached == []


@pytest.mark.anyio
async def test_an_absolute_target_cannot_carry_another_name_past_the_host(world):
    for target in ("http://evil.example/v1/models", f"http://evil.example:{world.port}/"):
        got = await world.ask("GET", target)
        assert got[0] == 400
        error_of(got)
    assert (await world.ask("GET", f"http://{world.host}/v1/models"))[0] == 200
    assert len(world.reached) == 1


@pytest.mark.anyio
async def test_no_x_forwarded_header_changes_an_answer(world):
    said = ["127.0.0.1", "localhost", f"http://{world.host}"]
    names = ["X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Forwarded", "X-Original-URL"]
    for name in names:
        for value in said:
            assert (await world.ask("GET", "/api/accounts", f"{name}: {value}"))[0] == 401
            assert (await world.ask("GET", "/health", f"{name}: {value}", host="evil.example"))[0] == 403
    assert world.reached == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", "/api/accounts"),
        ("POST", "/api/accounts"),
        ("DELETE", "/api/accounts/1"),
        ("POST", "/auth/logout"),
    ],
)
async def test_the_owners_routes_need_the_owner(world, method, target):
    body = [JSON] if method == "POST" else []
    assert (await world.ask(method, target, *body))[0] == 401
    assert (await world.ask(method, target, *body, "x-api-key: tavern-key"))[0] == 401
    assert (await world.ask(method, target, *body, "Authorization: Bearer tavern-key"))[0] == 401
    assert (await world.ask(method, target, *body, "Cookie: tavern_1=x"))[0] == 401
    assert world.reached == []
    assert (await world.ask(method, target, *body, OWNER))[0] == 200


@pytest.mark.anyio
async def test_no_spelling_of_a_path_walks_around_the_owner(world):
    spellings = ["//api/accounts", "/%61pi/accounts", "/api%2Faccounts", "/./api/accounts", "/v1/../api/accounts"]
    spellings += [
        "/api//accounts",
        "/API/accounts",
        "/api/accounts/",
        "/api/accounts;x",
        "/api\\accounts",
        "/api/%2e/accounts",
    ]
    for target in spellings:
        assert (await world.ask("GET", target))[0] in (400, 401, 404), target
    assert world.reached == []


@pytest.mark.anyio
async def test_the_open_routes_need_nobody(world):
    for target in ("/health", "/auth/status", "/static/x.css", "/auth/callback?code=1", "/auth/login?token=1"):
        assert (await world.ask("GET", target))[0] == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    "spoilt",
    [
        ["Origin: http://localhost:8000"],
        ["Origin: null"],
        ["Sec-Fetch-Site: same-site"],
        ["Sec-Fetch-Site: cross-site"],
        ["Content-Type: text/plain"],
    ],
)
async def test_the_owners_session_does_not_help_a_foreign_page(world, spoilt):
    typed = spoilt if "Content-Type" in spoilt[0] else [JSON, *spoilt]
    cookie = f"Cookie: tavern_{world.port}={Owner(ADMIN, world.port).new_session()}"
    assert (await world.ask("POST", "/api/accounts", cookie, *typed, body=b"{}"))[0] in (403, 415)
    assert world.reached == []
    assert (await world.ask("POST", "/api/accounts", cookie, JSON, body=b"{}"))[0] == 200


@pytest.mark.anyio
async def test_a_route_without_a_body_needs_no_type(world):
    assert (await world.ask("POST", "/auth/logout", OWNER))[0] == 200


@pytest.mark.anyio
async def test_a_file_may_be_passed_through_but_not_from_a_plain_form(world):
    boundary = "Content-Type: multipart/form-data; boundary=x"
    assert (await world.ask("POST", "/v1/files", boundary, body=b"--x--"))[0] == 200
    assert (await world.ask("POST", "/v1/files", "Content-Type: text/plain", body=b"{}"))[0] == 415
    assert (await world.ask("POST", "/v1/files", body=b"{}"))[0] == 415


@pytest.mark.anyio
async def test_a_person_gets_a_page_and_a_program_gets_json(world):
    got = await world.ask("GET", "/", "Accept: text/html,*/*")
    assert got[0] == 401
    assert got[1]["content-type"].startswith("text/html")
    got = await world.ask("GET", "/", "Accept: */*")
    assert got[0] == 401
    assert error_of(got)["type"] == "authentication_error"
    got = await world.ask("GET", "/api/accounts", "Accept: text/html,*/*")
    assert error_of(got)["type"] == "authentication_error"


@pytest.mark.anyio
async def test_the_frameworks_own_errors_have_our_shape(world):
    got = await world.ask("GET", "/nowhere")
    assert (got[0], error_of(got)["type"]) == (404, "not_found_error")
    got = await world.ask("GET", "/v1/messages")
    assert (got[0], error_of(got)["type"], got[1]["allow"]) == (405, "invalid_request_error", "POST")
    got = await world.ask("POST", "/v1/messages", JSON, body=b" " * 1001)
    assert (got[0], error_of(got)["type"]) == (413, "request_too_large")
    got = await world.ask("POST", "/v1/messages", JSON, "Content-Encoding: gzip", body=b"not gzip")
    assert (got[0], error_of(got)["type"]) == (400, "invalid_request_error")
    assert world.reached == []


@pytest.mark.anyio
async def test_an_unforeseen_error_is_logged_without_its_words(world, caplog):
    with caplog.at_level(logging.DEBUG):
        got = await world.ask("POST", "/v1/breaks", JSON, body=b"{}")
    error = error_of(got)
    assert (got[0], error["type"]) == (500, "api_error")
    assert got[1]["request-id"] in error["message"]
    logged = "\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records)
    assert got[1]["request-id"] in logged
    assert "ValueError" in logged
    assert "test_guard.py" in logged
    assert SECRET_WORDS not in logged + got[2].decode()


@pytest.mark.anyio
async def test_an_error_after_the_first_byte_closes_the_connection(world, caplog):
    with caplog.at_level(logging.DEBUG):
        code, _, body = await world.ask("GET", "/v1/breaks_late")
    assert code == 200
    assert b"data: 1" in body
    assert b"HTTP/1.1" not in body
    assert not body.endswith(b"0\r\n\r\n")
    assert SECRET_WORDS not in "\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records)


@pytest.mark.anyio
async def test_expect_is_answered_after_the_checks(world):
    ask = f"POST /v1/messages HTTP/1.1\r\nHost: {world.host}\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(f"{ask}{JSON}\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n".encode())
    assert await reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert world.reached == []
    writer.write(b"{}")
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()
    for spoilt, expected in ((f"{JSON}\r\nExpect: tea", 417), ("Expect: 100-continue", 415)):
        got = await world.raw(f"{ask}{spoilt}\r\nContent-Length: 2\r\n\r\n".encode())
        assert got[0] == expected
        error_of(got)
    assert len(world.reached) == 1


@pytest.mark.anyio
async def test_by_default_no_answer_opens_cors(world):
    for origin in (LISTED, "null", f"http://{world.host}"):
        for ask in (("GET", "/v1/models"), ("GET", "/health"), ("GET", "/nowhere"), ("GET", "/")):
            _, head, _ = await world.ask(*ask, f"Origin: {origin}")
            assert not any(name.startswith("access-control") for name in head)
    preflight = ["Access-Control-Request-Method: POST", "Access-Control-Request-Private-Network: true"]
    got = await world.ask("OPTIONS", "/v1/messages", f"Origin: {LISTED}", *preflight)
    assert got[0] == 403
    error_of(got)


@pytest.mark.anyio
async def test_a_listed_page_gets_leave_for_itself_alone(open_world):
    asked = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors", JSON]
    _, head, _ = got = await open_world.ask("POST", "/v1/messages", f"Origin: {LISTED}", *asked, body=b"{}")
    assert got[0] == 200
    assert (head["access-control-allow-origin"], head["vary"]) == (LISTED, "Origin")
    assert "access-control-allow-credentials" not in head
    _, head, _ = got = await open_world.ask("POST", "/v1/messages", "Origin: https://evil.example", *asked, body=b"{}")
    assert got[0] == 403
    assert "access-control-allow-origin" not in head
    _, head, _ = await open_world.ask("GET", "/v1/stream", f"Origin: {LISTED}")
    assert (head["access-control-allow-origin"], head["vary"]) == (LISTED, "Origin")
    _, head, _ = await open_world.ask("GET", "/v1/models")
    assert head["vary"] == "Origin"
    assert "access-control-allow-origin" not in head


@pytest.mark.anyio
async def test_an_error_reaches_the_listed_page_too(open_world):
    _, head, body = await open_world.ask("POST", "/v1/messages", f"Origin: {LISTED}", body=b"{}")
    assert head["access-control-allow-origin"] == LISTED
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.anyio
async def test_preflights_are_answered_for_listed_pages_and_chat_routes_only(open_world):
    asked = [
        f"Origin: {LISTED}",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: content-type, X-Api-Key, bad header, a:b",
        "Access-Control-Request-Private-Network: true",
    ]
    code, head, _ = await open_world.ask("OPTIONS", "/v1/messages", *asked)
    assert code == 204
    assert head["access-control-allow-origin"] == LISTED
    assert head["access-control-allow-headers"] == "content-type, x-api-key"
    assert head["access-control-allow-private-network"] == "true"
    assert (await open_world.ask("OPTIONS", "/api/accounts", *asked))[0] == 403
    assert (await open_world.ask("OPTIONS", "/v1/messages", "Origin: https://evil.example", asked[1]))[0] == 403
    assert (await open_world.ask("OPTIONS", "/v1/messages", *asked, host="evil.example"))[0] == 403
    assert open_world.reached == []


@pytest.mark.anyio
async def test_a_wrong_admin_token_is_slowed_down_and_the_right_one_is_not(world):
    answers = [(await world.ask("GET", "/api/accounts", f"Authorization: Bearer guess{i}"))[0] for i in range(30)]
    assert answers == [401] * 5 + [429] * 25
    assert (await world.ask("GET", "/api/accounts", OWNER))[0] == 200


def test_an_error_keeps_the_request_id_it_has():
    error = ProxyError(529, "Overloaded", headers={"request-id": "req_theirs"})
    response = guard.error_response(error, "req_theirs")
    assert response.headers["request-id"] == "req_theirs"
    assert json.loads(response.body)["request_id"] == "req_theirs"
