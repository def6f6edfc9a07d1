"""The gate before a small app, over raw sockets: what reaches it, and how every error looks."""

import asyncio
import json
import logging
import socket
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from server import guard
from server.errors import ProxyError
from server.guard import Rules
from server.owner import Owner

pytestmark = pytest.mark.anyio

ADMIN = "a" * 43


LISTED = "https://risuai.xyz"


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


@pytest.mark.parametrize("target", ["/", "/health", "/v1/models", "/auth/login", "/auth/status", "/static/x.css"])
async def test_a_rebound_name_is_refused_everywhere(world, target):
    got = await world.ask("GET", target, OWNER, host=f"rebound.example:{world.port}")
    assert got[0] == 403
    assert "allowed_hosts" in error_of(got)["message"]
    assert world.reached == []


async def test_an_absolute_target_cannot_carry_another_name_past_the_host(world):
    for target in ("http://evil.example/v1/models", f"http://evil.example:{world.port}/"):
        got = await world.ask("GET", target)
        assert got[0] == 400
        error_of(got)
    assert (await world.ask("GET", f"http://{world.host}/v1/models"))[0] == 200
    assert len(world.reached) == 1


async def test_no_x_forwarded_header_changes_an_answer(world):
    said = ["127.0.0.1", "localhost", f"http://{world.host}"]
    names = ["X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Forwarded", "X-Original-URL"]
    for name in names:
        for value in said:
            assert (await world.ask("GET", "/api/accounts", f"{name}: {value}"))[0] == 401
            assert (await world.ask("GET", "/health", f"{name}: {value}", host="evil.example"))[0] == 403
    assert world.reached == []


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


async def test_the_open_routes_need_nobody(world):
    for target in ("/health", "/auth/status", "/static/x.css", "/auth/callback?code=1", "/auth/login?token=1"):
        assert (await world.ask("GET", target))[0] == 200


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


async def test_a_route_without_a_body_needs_no_type(world):
    assert (await world.ask("POST", "/auth/logout", OWNER))[0] == 200


async def test_a_file_may_be_passed_through_but_not_from_a_plain_form(world):
    boundary = "Content-Type: multipart/form-data; boundary=x"
    assert (await world.ask("POST", "/v1/files", boundary, body=b"--x--"))[0] == 200
    assert (await world.ask("POST", "/v1/files", "Content-Type: text/plain", body=b"{}"))[0] == 415
    assert (await world.ask("POST", "/v1/files", body=b"{}"))[0] == 415


async def test_a_person_gets_a_page_and_a_program_gets_json(world):
    got = await world.ask("GET", "/", "Accept: text/html,*/*")
    assert got[0] == 401
    assert got[1]["content-type"].startswith("text/html")
    got = await world.ask("GET", "/", "Accept: */*")
    assert got[0] == 401
    assert error_of(got)["type"] == "authentication_error"
    got = await world.ask("GET", "/api/accounts", "Accept: text/html,*/*")
    assert error_of(got)["type"] == "authentication_error"


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


async def test_an_unforeseen_error_is_logged_without_its_words(world, caplog):
    with caplog.at_level(logging.DEBUG):
        got = await world.ask("POST", "/v1/breaks", JSON, body=b"{}")
    error = error_of(got)
    assert (got[0], error["type"]) == (500, "api_error")
    assert got[1]["request-id"] in error["message"]
    logged = "\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records)
    assert got[1]["request-id"] in logged
    assert "ValueError" in logged
    assert "test_guard_app.py" in logged
    assert SECRET_WORDS not in logged + got[2].decode()


async def test_an_error_after_the_first_byte_closes_the_connection(world, caplog):
    with caplog.at_level(logging.DEBUG):
        code, _, body = await world.ask("GET", "/v1/breaks_late")
    assert code == 200
    assert b"data: 1" in body
    assert b"HTTP/1.1" not in body
    assert not body.endswith(b"0\r\n\r\n")
    assert SECRET_WORDS not in "\n".join(record.getMessage() + str(record.exc_info) for record in caplog.records)


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


async def test_by_default_no_answer_opens_cors(world):
    for origin in (LISTED, "null", f"http://{world.host}"):
        for ask in (("GET", "/v1/models"), ("GET", "/health"), ("GET", "/nowhere"), ("GET", "/")):
            _, head, _ = await world.ask(*ask, f"Origin: {origin}")
            assert not any(name.startswith("access-control") for name in head)
    preflight = ["Access-Control-Request-Method: POST", "Access-Control-Request-Private-Network: true"]
    got = await world.ask("OPTIONS", "/v1/messages", f"Origin: {LISTED}", *preflight)
    assert got[0] == 403
    error_of(got)


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


async def test_an_error_reaches_the_listed_page_too(open_world):
    _, head, body = await open_world.ask("POST", "/v1/messages", f"Origin: {LISTED}", body=b"{}")
    assert head["access-control-allow-origin"] == LISTED
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


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


async def test_a_wrong_admin_token_is_slowed_down_and_the_right_one_is_not(world):
    answers = [(await world.ask("GET", "/api/accounts", f"Authorization: Bearer guess{i}"))[0] for i in range(30)]
    assert answers == [401] * 5 + [429] * 25
    assert (await world.ask("GET", "/api/accounts", OWNER))[0] == 200


def test_an_error_keeps_the_request_id_it_has():
    error = ProxyError(529, "Overloaded", headers={"request-id": "req_theirs"})
    response = guard.error_response(error, "req_theirs")
    assert response.headers["request-id"] == "req_theirs"
    assert json.loads(response.body)["request_id"] == "req_theirs"
