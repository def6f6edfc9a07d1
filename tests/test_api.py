"""The doors for front ends: every way to write an address, and who may ask."""

import asyncio
import time

import aiohttp
import pytest

from server.oauth import Tokens
from tests.fakes import (
    KEY,
    PATIENCE,
    chunked,
    error,
    plain,
    raw_upstream,
)
from tests.pools import login
from tests.running import running

pytestmark = pytest.mark.anyio


# -- addresses


@pytest.mark.parametrize(
    "path",
    [
        "/v1/messages",
        "/v1//messages",
        "//messages",
        "/messages",
        "/v1/messages/messages",
        "/v1/v1/messages",
        "/v1/messages?beta=true",
        "/v1/messages/",
    ],
)
async def test_every_way_to_write_the_address_leads_to_the_chat(proxy, anthropic, path):
    assert (await proxy.ask(path)).status == 200
    assert anthropic.seen[0].path == "/v1/messages"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/messages/count_tokens",
        "/v1//messages/count_tokens",
        "/messages/count_tokens",
        "/v1/messages/messages/count_tokens",
    ],
)
async def test_tokens_are_counted_without_the_fields_for_a_reply(proxy, anthropic, path):
    anthropic.will(plain({"input_tokens": 42}))
    reply = await proxy.ask(path, temperature=0.5, stream=False)
    assert reply.json == {"input_tokens": 42}
    assert anthropic.seen[0].path == "/v1/messages/count_tokens"
    assert set(anthropic.seen[0].body) == {"model", "messages"}


async def test_the_wrong_method_is_a_405_that_names_the_right_one(proxy):
    reply = await proxy.send("GET", "/v1/messages")
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    assert reply.json["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "path", ["/v1/%2e%2e/messages", "/v1/..%2fx/messages", "/v1/a%00b/messages", "/nowhere", "/v1"]
)
async def test_odd_addresses_are_a_404(proxy, anthropic, path):
    assert (await proxy.ask(path)).status == 404
    assert anthropic.seen == []


async def test_the_wrong_method_on_a_page_is_a_405_too(proxy):
    reply = await proxy.send("GET", "/auth/start")
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")
    assert (await proxy.send("PUT", "/api/accounts/acc_1")).headers["Allow"] == "DELETE, PATCH"
    assert (await proxy.send("GET", "/auth/nothing")).status == 404


async def test_a_refused_key_is_not_saved_and_the_upstreams_words_are_shown(proxy, anthropic):
    anthropic.will(error(401, "authentication_error", "invalid x-api-key"))
    reply = await proxy.owner("POST", "/api/accounts", json={"kind": "api_key", "name": "x", "api_key": KEY})
    assert reply.status == 400
    assert "invalid x-api-key" in reply.message
    assert (await proxy.owner("GET", "/api/accounts")).json["accounts"] == []


@pytest.mark.parametrize("name", ["..%2f..%2ffiles", "%2e%2e%2ffiles", "a%00b", "a%2Fb"])
async def test_a_models_name_leads_nowhere_else(proxy, anthropic, name):
    assert (await proxy.send("GET", f"/v1/models/{name}", headers={"x-api-key": KEY})).status == 404
    assert anthropic.seen == []


async def test_a_refused_key_of_the_request_itself_points_to_the_password_field(proxy, anthropic):
    anthropic.will(error(401, "authentication_error", "invalid x-api-key"))
    assert "password field" in (await proxy.ask()).message


async def test_other_addresses_pass_through_as_they_are(proxy, anthropic):
    anthropic.will(plain(b"one\ntwo", content_type="application/x-jsonl"))
    reply = await proxy.send("GET", "/v1/messages/batches/b_1/results?x=1", headers={"x-api-key": KEY})
    assert reply.raw == b"one\ntwo"
    assert (anthropic.seen[0].method, anthropic.seen[0].path) == ("GET", "/v1/messages/batches/b_1/results?x=1")


async def test_a_stream_at_another_address_passes_as_it_comes_and_a_break_in_it_shows(tmp_path):
    reached = asyncio.Event()

    async def drip(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-jsonl\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(chunked(b"one\n"))
        await reached.wait()
        writer.write(chunked(b"two\n"))
        writer.close()

    async with raw_upstream(drip) as url, running(tmp_path, url) as proxy, asyncio.timeout(PATIENCE):
        address = f"{proxy.url}/v1/messages/batches/b_1/results"
        async with proxy.session.get(address, headers={"x-api-key": KEY}) as reply:
            assert await reply.content.readany() == b"one\n"
            reached.set()
            with pytest.raises(aiohttp.ClientError):
                await reply.read()


async def test_a_redirect_from_another_address_is_not_handed_on(proxy, anthropic):
    anthropic.will(plain(status=307, location="https://elsewhere.example/v1/files"))
    reply = await proxy.send("GET", "/v1/files", headers={"x-api-key": KEY}, allow_redirects=False)
    assert (reply.status, reply.json["error"]["type"]) == (502, "api_error")
    assert "elsewhere" not in reply.raw.decode() + str(reply.headers)


@pytest.fixture
async def signed_in(tmp_path, anthropic, oauth):
    """The program with a login that the upstream refuses, though it should be valid."""
    async with running(tmp_path, anthropic.url, oauth_token_url=oauth.url) as proxy:
        tokens = login(oauth, time.time)
        await proxy.parts.accounts.add_oauth(tokens)
        oauth.kill(tokens.access_token)

        def answer(seen):
            known = seen.headers["Authorization"].removeprefix("Bearer ") in oauth.access
            return plain() if known else error(401, "authentication_error", "OAuth token has expired.")

        anthropic.answer = answer
        yield proxy


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/files"])
async def test_a_refused_sign_in_is_renewed_for_every_address(signed_in, oauth, path):
    reply = await (signed_in.ask(headers={}) if path == "/v1/messages" else signed_in.send("GET", path))
    assert (reply.status, oauth.refreshes) == (200, 1)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/files"])
async def test_a_refused_sign_in_that_cannot_be_renewed_just_now_is_a_503_for_later(signed_in, oauth, path):
    oauth.always = (503, "", {})
    for _ in range(2):
        reply = await (signed_in.ask(headers={}) if path == "/v1/messages" else signed_in.send("GET", path))
        assert reply.status == 503
        assert "It is kept; try again in" in reply.message
        assert int(reply.headers["retry-after"]) >= 1
    assert signed_in.parts.accounts.all()[0].state == "ready"


async def test_an_address_that_takes_no_sign_in_ends_none(signed_in, anthropic, oauth):
    words = "OAuth authentication is currently not supported."
    anthropic.answer = lambda seen: error(401, "authentication_error", words)
    for _ in range(3):
        assert (await signed_in.send("GET", "/v1/files")).status == 401
    assert (signed_in.parts.accounts.all()[0].state, oauth.refreshes) == ("ready", 0)


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/oauth/token", "/v1/organizations/me", "/v1/me", "/v1/account/settings"),
        *("/v1/./oauth/token", "/v1/x/../me", "/v1/OAuth/token", "/v1/oauth;x/token", "/v1/.;/me", "/v1/%6fauth/token"),
    ],
)
async def test_what_speaks_of_the_account_is_never_asked_for_a_front_end(proxy, anthropic, path):
    await proxy.sign_in()
    anthropic.seen.clear()
    assert (await proxy.send("GET", path)).status == 404
    assert anthropic.seen == []


async def test_the_list_of_models_is_live_or_the_tables(proxy, anthropic):
    offline = await proxy.send("GET", "/v1/models")
    assert any(row["id"] == "claude-fable-5-2" for row in offline.json["data"])
    anthropic.will(plain({"data": [{"id": "claude-live-1"}], "has_more": False}))
    live = await proxy.send("GET", "/v1/models?limit=5", headers={"x-api-key": KEY})
    assert live.json["data"] == [{"id": "claude-live-1"}]
    assert anthropic.seen[0].path == "/v1/models?limit=5"
    assert (await proxy.send("GET", "/v1/models/claude-opus-4-8")).json["id"] == "claude-opus-4-8"


async def test_health_answers_anybody(proxy):
    health = (await proxy.send("GET", "/health")).json
    assert health["status"] == "ok"
    assert health["ready"] is False
    await proxy.sign_in()
    health = (await proxy.send("GET", "/health")).json
    assert (health["ready"], health["warnings"]) == (True, 0)
    end = time.time() + 28800
    await proxy.parts.accounts.add_oauth(Tokens("sk-ant-oat01-a", expires_at=end, ends_at=end))
    assert (await proxy.send("GET", "/health")).json["warnings"] == 1


# -- who may ask


async def test_nobody_signed_in_is_a_401_that_says_what_to_do(proxy, anthropic):
    reply = await proxy.ask(headers={"x-api-key": "anything"})
    assert (reply.status, reply.json["error"]["type"]) == (401, "authentication_error")
    assert "sign in" in reply.message
    assert anthropic.seen == []


async def test_once_a_key_exists_it_is_asked_for(proxy, anthropic):
    made = await proxy.owner("POST", "/api/keys", json={"name": "sister's laptop"})
    key = made.json["key"]
    assert (await proxy.ask()).status == 401
    assert (await proxy.ask(headers={"x-api-key": key[:-1] + "x"})).status == 401
    both = {"x-api-key": key, "Authorization": f"Bearer {KEY}"}
    assert (await proxy.ask(headers=both)).status == 200
    assert (await proxy.receipts())[0]["key"] == "sister's laptop"
    assert (await proxy.owner("DELETE", f"/api/keys/{made.json['id']}")).status == 204
    assert (await proxy.ask(headers={"x-api-key": key, "Authorization": f"Bearer {KEY}"})).status == 200  # none left


async def test_a_client_key_uses_shared_accounts_alone(proxy, anthropic):
    own = await proxy.sign_in()
    account = (await proxy.owner("GET", "/api/accounts")).json["accounts"][0]
    key = (await proxy.owner("POST", "/api/keys", json={"name": "guest"})).json["key"]
    mine = (await proxy.owner("POST", "/api/keys", json={"name": "my tablet", "own": True})).json["key"]
    anthropic.seen.clear()
    assert (await proxy.ask(headers={"x-api-key": key})).status == 200
    await proxy.owner("PATCH", f"/api/accounts/{account['id']}", json={"shared": False})
    assert (await proxy.ask(headers={"x-api-key": key})).status == 403
    assert (await proxy.ask(headers={"x-api-key": mine})).status == 200
    assert [seen.headers["x-api-key"] for seen in anthropic.seen] == [own, own]


async def test_a_client_key_opens_none_of_the_owners_doors(proxy):
    key = (await proxy.owner("POST", "/api/keys", json={"name": "guest"})).json["key"]
    for path in ("/api/accounts", "/api/keys", "/api/requests", "/"):
        assert (
            await proxy.send("GET", path, headers={"x-api-key": key, "Authorization": f"Bearer {key}"})
        ).status == 401
