"""The token endpoint's answers, usual and odd, and the one call that asks it."""

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf

import pytest
from aiohttp import web

from server.oauth import (
    Answer,
    InvalidGrant,
    Tokens,
    Unavailable,
    error_words,
    life,
    post,
    read_answer,
    refresh,
    seconds,
)
from tests.fake_oauth import SUBSCRIPTION, FakeOAuth
from tests.pools import NOW, settings

pytestmark = pytest.mark.anyio

OLD = Tokens("sk-ant-oat01-old", "sk-ant-ort01-old", NOW, ("user:inference",), {"plan": "max"})
GOOD = {"access_token": "sk-ant-oat01-new", "refresh_token": "sk-ant-ort01-new", "expires_in": 28800}


def answer(status=200, retry_after="", **told):
    return Answer(status, json.dumps(told).encode(), retry_after)


# ---- answers


def test_a_good_answer_becomes_tokens_with_an_absolute_end():
    tokens = read_answer(answer(**GOOD, scope="user:profile user:inference", **SUBSCRIPTION), NOW)
    assert tokens.access_token == "sk-ant-oat01-new"
    assert tokens.refresh_token == "sk-ant-ort01-new"
    assert tokens.expires_at == NOW + 28800
    assert tokens.scopes == ("user:profile", "user:inference")
    assert tokens.identity == "org-1/person-1"
    assert tokens.label == "barliman@inn.example"


@pytest.mark.parametrize(
    ("told", "ends_at"),
    [
        ({}, inf),
        ({"refresh_token_expires_in": 86_400}, NOW + 86_400),
        ({"refresh_token_expires_in": "86400"}, NOW + 86_400),
        *(({"refresh_token_expires_in": odd}, inf) for odd in (None, "soon", [], 0, -5, float("nan"), 10**400)),
        ({"refresh_token": "sk-ant-ort01-old"}, NOW + 5),
        ({"refresh_token": None}, NOW + 5),
        ({"refresh_token": None, "refresh_token_expires_in": 60}, NOW + 60),
    ],
    ids=str,
)
def test_the_end_of_a_login_is_what_was_last_said_of_its_refresh_token(told, ends_at):
    tokens = read_answer(answer(**{**GOOD, **told}), NOW, replace(OLD, ends_at=NOW + 5))
    assert tokens.ends_at == ends_at
    assert "refresh_token_expires_in" not in tokens.details


def test_a_login_without_a_refresh_token_ends_with_its_access_token():
    tokens = read_answer(answer(access_token="sk-ant-oat01-new", expires_in=28800), NOW)
    assert tokens.ends_at == tokens.expires_at == NOW + 28800


@pytest.mark.parametrize("missing", [{}, {"refresh_token": None}, {"refresh_token": ""}, {"refresh_token": 7}])
def test_a_missing_refresh_token_keeps_the_old_one(missing):
    tokens = read_answer(answer(access_token="sk-ant-oat01-new", **missing), NOW, OLD)
    assert (tokens.access_token, tokens.refresh_token) == ("sk-ant-oat01-new", "sk-ant-ort01-old")


def test_what_an_answer_leaves_out_is_kept_and_what_is_new_in_it_too():
    tokens = read_answer(answer(**GOOD, colour="green"), NOW, OLD)
    assert tokens.scopes == ("user:inference",)
    assert tokens.details == {"plan": "max", "colour": "green"}


@pytest.mark.parametrize(
    ("expires_in", "seconds_of_life"),
    [
        (28800, 28800),
        (28800.5, 28800.5),
        ("28800", 28800),
        (None, 3600),
        ("soon", 3600),
        ("", 3600),
        ([], 3600),
        ({}, 3600),
        (True, 3600),
        (float("nan"), 3600),
        (0, 60),
        (-5, 60),
        ("-5", 60),
        (1, 60),
        (float("-inf"), 60),
        (10**9, 366 * 86400),
        (float("inf"), 366 * 86400),
        (10**400, 366 * 86400),
        ("1e999", 366 * 86400),
    ],
    ids=repr,
)
def test_odd_lifetimes_are_read_without_harm(expires_in, seconds_of_life):
    """A minute at least, so that nothing is renewed twice a minute; a year at most."""
    assert life(expires_in) == seconds_of_life


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"access_token": ""},
        {"access_token": None},
        {"access_token": 7},
        {"access_token": ["sk-ant-oat01-new"]},
        {"access_token": "sk-ant oat01"},
        {"access_token": "sk-ant-oat01\r\nx: y"},
        {"access_token": "sk-ant-oat01-ü"},
        {"access_token": "x" * 20000},
        {**GOOD, "error": "server_error"},
        {**GOOD, "error": {"type": "overloaded_error"}},
        {"error": "invalid_grant"},
    ],
    ids=str,
)
def test_a_200_without_usable_tokens_is_rejected_and_not_final(odd):
    with pytest.raises(Unavailable):
        read_answer(answer(**odd), NOW, OLD)


@pytest.mark.parametrize("body", [b"", b"<html>Bad gateway</html>", b"null", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_rejected_and_not_final(body):
    for status in (200, 400, 502):
        with pytest.raises(Unavailable):
            read_answer(Answer(status, body), NOW, OLD)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
@pytest.mark.parametrize("error", ["invalid_grant", {"type": "invalid_grant", "message": "gone"}])
def test_invalid_grant_is_final_with_any_4xx(status, error):
    with pytest.raises(InvalidGrant):
        read_answer(answer(status, error=error), NOW, OLD)


@pytest.mark.parametrize("status", [400, 401, 404, 408, 429, 500, 502, 503, 529, 302, 204])
@pytest.mark.parametrize("error", [None, "invalid_request", "invalid_client", 7, {"type": "rate_limit_error"}])
def test_nothing_else_is_final(status, error):
    with pytest.raises(Unavailable) as raised:
        read_answer(answer(status, error=error), NOW, OLD)
    assert raised.value.status == status


def test_invalid_grant_with_a_5xx_is_not_final():
    with pytest.raises(Unavailable):
        read_answer(answer(503, error="invalid_grant"), NOW, OLD)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("", 0),
        ("7", 7),
        ("0.5", 0.5),
        ("-7", 0),
        ("nan", 0),
        ("inf", 0),
        ("soon", 0),
        ("86400", 3600),
        ("Wed, 18 Nov 2026 11:07:40 GMT", 60),
        ("Wed, 18 Nov 2026 10:00:00 GMT", 0),
    ],
)
def test_retry_after_is_read_in_each_form(header, wait):
    assert seconds(header, NOW) == wait


def test_the_endpoints_words_are_kept_without_anything_like_a_token():
    told = {"error_description": f"Token {OLD.refresh_token} or {'A' * 40}\n was used\u202e twice"}
    assert error_words(told) == "Token … or … was used twice"
    assert error_words({"error": {"message": "x" * 10 + " y" * 500}})[:12] == "xxxxxxxxxx y"
    assert len(error_words({"error": {"message": "y " * 500}})) <= 200
    assert error_words({"error": "invalid_scope"}) == "invalid_scope"
    assert error_words({"error": 7}) == ""


def test_neither_token_stands_in_a_repr():
    assert "sk-ant" not in repr(OLD)
    assert "max" not in repr(OLD)


# ---- the call


@asynccontextmanager
async def serving(handler):
    """A server of this one handler; yields its address and the requests that came."""
    seen = []

    async def noted(request):
        seen.append(request.path)
        return await handler(request)

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", noted)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await (site := web.TCPSite(runner, "127.0.0.1", 0)).start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}", seen
    finally:
        await runner.cleanup()


def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


async def test_a_refresh_is_one_json_post_with_our_own_user_agent():
    async with FakeOAuth().serving() as oauth:
        old = Tokens(**oauth.issue())
        tokens = await refresh(settings(oauth.url), old, clock=lambda: NOW, repeat_lost=True)
    ((asked, headers, _),) = oauth.seen
    assert asked == {"grant_type": "refresh_token", "refresh_token": old.refresh_token, "client_id": "the-client"}
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"].startswith("tavern-proxy/")
    assert "anthropic-beta" not in headers
    assert tokens.expires_at == NOW + oauth.lifetime


async def test_where_nobody_listens_nothing_was_sent():
    with pytest.raises(Unavailable) as raised:
        await post(f"http://127.0.0.1:{closed_port()}/v1/oauth/token", {}, deadline=30)
    assert not raised.value.sent


async def test_a_lost_answer_is_told_apart_from_one_that_was_never_asked_for():
    async def hang_up(request):
        request.transport.abort()
        return web.Response()

    async with serving(hang_up) as (url, seen):
        with pytest.raises(Unavailable) as raised:
            await post(f"{url}/v1/oauth/token", {}, deadline=30)
    assert raised.value.sent
    assert seen == ["/v1/oauth/token"]


async def test_a_call_ends_at_its_deadline_however_slowly_the_answer_drips():
    async def drip(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)

    async with serving(drip) as (url, _):
        async with asyncio.timeout(30):
            with pytest.raises(Unavailable) as raised:
                await post(url, {}, deadline=2)
    assert raised.value.sent


async def test_a_redirect_is_not_followed():
    async def elsewhere(request):
        return web.Response(body=json.dumps(GOOD).encode())

    async with serving(elsewhere) as (other, reached):

        async def redirect(request):
            return web.Response(status=307, headers={"Location": f"{other}/v1/oauth/token"})

        async with serving(redirect) as (url, seen):
            found = await post(f"{url}/v1/oauth/token", {}, deadline=30)
    assert (found.status, len(seen), reached) == (307, 1, [])


async def test_an_endless_answer_is_cut_off():
    async def flood(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)

    async with serving(flood) as (url, _):
        with pytest.raises(Unavailable, match="far too long"):
            await post(url, {}, deadline=60)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.anthropic.com/v1/oauth/token",
        "https://user@console.anthropic.com/v1/oauth/token",
        "http://169.254.169.254/token",
        "ftp://127.0.0.1/token",
        "nonsense",
    ],
)
async def test_tokens_go_over_tls_or_stay_on_this_computer(url):
    with pytest.raises(Unavailable):
        await post(url, {"refresh_token": "secret"}, deadline=30)
