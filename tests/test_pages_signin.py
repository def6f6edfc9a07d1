"""Signing in on the pages and off again: an API key, the ant tool, Claude Code, a subscription, the callback."""

import asyncio
import json
import re
from html import unescape

import pytest

from server.pages.words import WORDS
from tests.pages_app import HOSTILE, KEY, Browser, ant_profile, claude_code_login, message, running

pytestmark = pytest.mark.anyio


# What is offered


async def test_the_ways_to_sign_in_stand_in_their_order(tmp_path):
    environ = claude_code_login(tmp_path / "claude") | ant_profile(tmp_path / "ant", "work")
    async with running(tmp_path, environ=environ) as tavern, Browser(tavern) as browser:
        _, text, _ = await browser.see("/auth/login")
        text = unescape(text)
        signs = ["Use this key", "Use profile “work”", "reserves subscription", "I understand", "Sign in with Claude"]
        places = [text.index(sign) for sign in [*signs, "Use Claude Code's login"]]
        assert places == sorted(places)
        assert "none is offered to other tools" in text
        assert 'href="https://platform.claude.com/settings/keys"' in text


async def test_what_is_not_on_this_machine_is_not_offered(browser):
    _, text, _ = await browser.see("/auth/login")
    assert "ant login" not in text
    assert 'id="claude-code"' not in text


async def test_claude_codes_login_is_not_offered_when_the_setting_forbids_it(tmp_path):
    environ = claude_code_login(tmp_path / "claude")
    async with (
        running(tmp_path, environ=environ, fallback_to_claude_code="false") as tavern,
        Browser(tavern) as browser,
    ):
        _, text, _ = await browser.see("/auth/login")
        assert 'id="claude-code"' not in text
        assert (await browser.say("POST", "/auth/claude-code", {"understood": True}))[0] == 400


# API keys


async def test_a_good_key_is_tried_and_saved(tavern, browser):
    status, made = await browser.say("POST", "/auth/api-key", {"api_key": f"  {KEY}\n", "name": "Mine"})
    assert status == 200
    assert tavern.checked == [("https://api.anthropic.com", KEY)]
    assert (made["account"]["name"], made["account"]["kind"], made["account"]["state"]) == ("Mine", "api_key", "ready")
    assert made["outcome"] == "added"
    assert KEY not in json.dumps(made)
    assert [a.ends_with for a in tavern.accounts.all()] == [KEY[-4:]]


async def test_the_same_key_again_is_said_to_be_there_already(tavern, browser):
    _, first = await browser.say("POST", "/auth/api-key", {"api_key": KEY})
    status, again = await browser.say("POST", "/auth/api-key", {"api_key": KEY})
    assert (status, again["outcome"]) == (200, "known")
    assert again["account"]["id"] == first["account"]["id"]
    assert (await browser.say("POST", "/api/accounts", {"kind": "api_key", "api_key": KEY}))[0] == 200
    assert len(tavern.accounts.all()) == 1
    _, text, _ = await browser.see(f"/accounts?joined={first['account']['id']}&outcome=known")
    assert "was there already" in text


async def test_a_key_that_cannot_be_saved_works_and_says_so(tavern, browser, tmp_path):
    data = tmp_path / "data"
    away = data.rename(tmp_path / "away")  # a drive that was unplugged
    data.write_text("something else")
    status, made = await browser.say("POST", "/auth/api-key", {"api_key": KEY})
    assert (status, made["outcome"], made["account"]["state"]) == (200, "unsaved", "ready")
    assert "could not be saved" in made["note"]
    status, other = await browser.say("POST", "/api/accounts", {"kind": "api_key", "api_key": KEY + "2"})
    assert status == 201
    assert "could not be saved" in other["note"]
    _, text, _ = await browser.see(f"/accounts?joined={made['account']['id']}&outcome=unsaved")
    assert "could not be saved yet" in text
    data.unlink()
    away.rename(data)


async def test_a_refused_key_is_not_saved_and_the_words_are_shown(tavern, browser):
    tavern.key_check = ("refused", "invalid x-api-key")
    got = await browser.say("POST", "/auth/api-key", {"api_key": KEY})
    assert got[0] == 400
    assert "invalid x-api-key" in message(got)
    assert KEY not in message(got)
    assert tavern.accounts.all() == ()


async def test_a_key_that_cannot_be_tried_is_saved_with_a_note(tavern, browser):
    tavern.key_check = ("unknown", "no answer within 8 s")
    status, made = await browser.say("POST", "/auth/api-key", {"api_key": KEY})
    assert (status, made["outcome"]) == (200, "untried")
    assert "no answer within 8 s" in made["note"]
    assert len(tavern.accounts.all()) == 1
    _, text, _ = await browser.see(f"/accounts?joined={made['account']['id']}&outcome=untried")
    assert "could not be tried out" in text


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (None, "missing"),
        ("", "missing"),
        ("   ", "missing"),
        (7, "missing"),
        ("sk-ant-oat01-abc", "sign-in token"),
        ("sk-ant-ort01-abc", "sign-in token"),
        ("sk-ant-api03 abc", "blanks"),
        ("sk-ant-\x00api", "odd"),
        ("sk-ant-\r\nx: y", "odd"),
        ("sk-ant-äöü", "odd"),
        ("s" * 2000, "odd"),
    ],
)
async def test_what_cannot_be_an_api_key_is_refused_in_the_right_words(tavern, browser, key, words):
    got = await browser.say("POST", "/auth/api-key", {"api_key": key})
    assert got[0] == 400
    assert words in message(got)
    assert tavern.checked == []
    assert tavern.accounts.all() == ()


# The ant tool, Claude Code


async def test_an_ant_profile_is_used_by_its_name(tmp_path):
    environ = ant_profile(tmp_path / "ant", "work")
    async with running(tmp_path, environ=environ) as tavern, Browser(tavern) as browser:
        assert (await browser.say("POST", "/auth/ant", {"profile": "other"}))[0] == 404
        assert (await browser.say("POST", "/auth/ant", {"profile": "../work"}))[0] == 404
        assert (await browser.say("POST", "/auth/ant", {}))[0] == 400
        status, made = await browser.say("POST", "/auth/ant", {"profile": "work"})
        assert status == 200
        assert (made["account"]["kind"], made["account"]["state"]) == ("platform", "ready")
        _, text, _ = await browser.see("/auth/login")
        assert "Use profile" not in text


async def test_claude_codes_login_is_used_only_after_the_owner_understood(tmp_path):
    environ = claude_code_login(tmp_path / "claude")
    async with running(tmp_path, environ=environ) as tavern, Browser(tavern) as browser:
        for body in ({}, {"understood": False}, {"understood": "yes"}, {"understood": 1}):
            got = await browser.say("POST", "/auth/claude-code", body)
            assert got[0] == 400
            assert "reserves subscription sign-in" in message(got)
        assert tavern.accounts.all() == ()
        status, made = await browser.say("POST", "/auth/claude-code", {"understood": True})
        assert (status, made["account"]["source"]) == (200, "claude_code")
        _, text, _ = await browser.see("/auth/login")
        assert 'id="claude-code"' not in text


async def test_claude_codes_login_that_is_gone_is_said(browser):
    got = await browser.say("POST", "/auth/claude-code", {"understood": True})
    assert got[0] == 404


# The subscription


@pytest.mark.parametrize("body", [None, {}, {"understood": False}, {"understood": "true"}, {"understood": None}])
async def test_without_understanding_the_answer_is_the_terms(tavern, browser, body):
    got = await browser.say("POST", "/auth/start", body)
    assert got[0] == 400
    assert WORDS["signin"]["terms_1"] in message(got)
    assert WORDS["signin"]["terms_2"] in message(got)


async def test_a_pasted_code_signs_in(tavern, browser):
    status, made = await browser.sign_in()
    assert status == 200
    assert made["outcome"] == "added"
    assert (made["account"]["kind"], made["account"]["shared"]) == ("subscription", False)
    assert "rowan@example.org" in made["account"]["name"]
    assert "sk-ant-o" not in json.dumps(made)
    _, text, _ = await browser.see(f"/accounts?joined={made['account']['id']}&outcome=added")
    assert "Signed in: Claude subscription (rowan@example.org)." in unescape(text)


async def test_the_same_account_is_renewed_and_another_one_added(tavern, browser):
    await browser.sign_in()
    _, again = await browser.sign_in()
    assert again["outcome"] == "renewed"
    assert len(tavern.accounts.all()) == 1
    tavern.claude.who = "wren@example.org"
    _, other = await browser.sign_in()
    assert other["outcome"] == "added"
    assert len(tavern.accounts.all()) == 2


async def test_the_whole_address_may_be_pasted_too(tavern, browser):
    state, challenge = await browser.start()
    pasted = f"http://localhost:1/auth/callback?code={tavern.claude.code(challenge)}&state={state}"
    assert (await browser.say("POST", "/auth/submit", {"code": pasted}))[0] == 200


@pytest.mark.parametrize("code", [None, "", "  ", 7, {}])
async def test_an_empty_field_is_no_code(tavern, browser, code):
    assert (await browser.say("POST", "/auth/submit", {"code": code}))[0] == 400
    assert tavern.claude.exchanges == 0


async def test_a_wrong_code_changes_nothing_and_says_what_to_do(tavern, browser):
    await browser.sign_in()
    before = tavern.accounts.all()
    state, _ = await browser.start()
    got = await browser.say("POST", "/auth/submit", {"code": f"wrong#{state}"})
    assert got[0] == 400
    assert "again" in message(got)
    assert tavern.accounts.all() == before


async def test_a_code_used_twice_a_foreign_state_and_none_reach_nobody(tavern, browser):
    state, challenge = await browser.start()
    code = tavern.claude.code(challenge)
    assert (await browser.say("POST", "/auth/submit", {"code": f"{code}#{state}"}))[0] == 200
    for pasted in (f"{code}#{state}", f"{code}#{'x' * 43}", code, f"#{state}", f"{code}#", "#"):
        assert (await browser.say("POST", "/auth/submit", {"code": pasted}))[0] == 400
    assert tavern.claude.exchanges == 1
    assert len(tavern.accounts.all()) == 1


async def test_a_refusal_of_the_token_endpoint_is_told_and_keeps_what_there_was(tavern, browser):
    await browser.sign_in()
    for answer in ((500, "<html>"), (429, "{}"), (400, '{"error": "invalid_request"}'), (200, "{}")):
        tavern.claude.answer = answer
        status, got = await browser.sign_in()
        assert 400 <= status < 600
        assert got["error"]["message"]
    assert len(tavern.accounts.all()) == 1
    assert tavern.accounts.all()[0].state == "ready"


async def test_a_restart_in_the_middle_loses_nothing(tmp_path):
    async with running(tmp_path) as tavern, Browser(tavern) as browser:
        claude = tavern.claude
        state, challenge = await browser.start()
    async with running(tmp_path, port=tavern.port, claude=claude) as tavern, Browser(tavern) as browser:
        code = claude.code(challenge)
        assert (await browser.say("POST", "/auth/submit", {"code": f"{code}#{state}"}))[0] == 200


async def test_a_browser_that_leaves_does_not_lose_the_account(tavern, browser):
    """The exchange has spent the code: it must end in an account, whoever still listens."""
    state, challenge = await browser.start()
    reached, go_on = asyncio.Event(), asyncio.Event()
    tavern.claude.hold = (reached, go_on)
    code = tavern.claude.code(challenge)
    asked = asyncio.ensure_future(browser.say("POST", "/auth/submit", {"code": f"{code}#{state}"}))
    await reached.wait()
    asked.cancel()
    await asyncio.wait([asked])
    await browser.say("GET", "/auth/status")  # by now the server has seen it leave
    go_on.set()
    await asyncio.wait(tavern.finishing)
    assert [account.state for account in tavern.accounts.all()] == ["ready"]


# The callback


@pytest.fixture
async def landing(tmp_path):
    async with running(tmp_path, lands_here=True) as tavern:
        yield tavern


def callback(query):
    return "/auth/callback?" + "&".join(f"{key}={value}" for key, value in query.items())


async def test_the_callback_signs_in_without_the_session_and_moves_on(landing):
    async with Browser(landing) as browser:
        state, challenge = await browser.start()
        browser.cookies.clear(lambda cookie: cookie.key == landing.owner.cookie_name)
        code = landing.claude.code(challenge)
        status, text, headers = await browser.see(callback({"code": code, "state": state}))
        assert status == 200
        account = landing.accounts.all()[0]
        assert f'content="0; url=/accounts?joined={account.id}&amp;outcome=added"' in text
        assert "rowan@example.org" in text
        assert landing.owner.cookie_name + "=" not in headers["Set-Cookie"]


async def test_the_attempts_cookie_is_short_and_for_the_callback_alone(landing):
    async with Browser(landing) as browser, browser.http.post("/auth/start", json={"understood": True}) as answer:
        cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith(f"tavern_signin_{landing.port}=")
        for part in ("HttpOnly", "SameSite=Lax", "Path=/auth/callback", "Max-Age=600"):
            assert part in cookie


async def test_two_tabs_of_one_browser_do_not_spoil_each_other(landing):
    async with Browser(landing) as browser:
        first, challenge = await browser.start()
        await browser.start()
        status, _, _ = await browser.see(callback({"code": landing.claude.code(challenge), "state": first}))
        assert status == 200


async def test_another_browser_cannot_redeem_the_attempt(landing):
    async with Browser(landing) as browser, Browser(landing) as other:
        state, challenge = await browser.start()
        code = landing.claude.code(challenge)
        await other.start()
        other.cookies.update_cookies({f"tavern_signin_{landing.port}": "guess"})
        assert (await other.see(callback({"code": code, "state": state})))[0] == 403
        async with Browser(landing, owner=False) as stranger:
            assert (await stranger.see(callback({"code": code, "state": state})))[0] == 403
        assert landing.claude.exchanges == 0
        assert (await browser.see(callback({"code": code, "state": state})))[0] == 200


async def test_saying_no_shows_a_plain_page_and_ends_the_attempt(landing):
    async with Browser(landing) as browser:
        state, challenge = await browser.start()
        status, text, _ = await browser.see(callback({"error": "access_denied", "state": state}))
        assert status == 400
        assert "You did not allow the sign-in" in text
        assert 'href="/auth/login"' in text
        again = callback({"code": landing.claude.code(challenge), "state": state})
        assert (await browser.see(again))[0] == 400
        assert landing.claude.exchanges == 0


async def test_odd_callbacks_show_a_plain_page_and_exchange_nothing(landing):
    async with Browser(landing) as browser:
        state, _ = await browser.start()
        odd = [{}, {"code": "x"}, {"state": state}, {"code": "x", "state": "y"}, {"code": "", "state": state}]
        odd += [{"error": HOSTILE.replace("&", ""), "state": "%0d%0aSet-Cookie:%20a=b"}, {"error": "server_error"}]
        for query in odd:
            status, text, headers = await browser.see(callback(query))
            assert 400 <= status < 500
            assert "did not work out" in text
            assert "<img src=x" not in text
            assert "a=b" not in headers.get("Set-Cookie", "")
        assert landing.claude.exchanges == 0


async def test_the_back_button_after_a_sign_in_does_no_harm(landing):
    async with Browser(landing) as browser:
        state, challenge = await browser.start()
        address = callback({"code": landing.claude.code(challenge), "state": state})
        assert (await browser.see(address))[0] == 200
        before = landing.accounts.all()
        assert (await browser.see(address))[0] in (400, 403)
        assert landing.accounts.all() == before
        assert landing.claude.exchanges == 1


@pytest.mark.parametrize(
    "trick",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "%0d%0aLocation:%20https://evil.example",
    ],
)
async def test_nothing_in_an_address_leads_off_the_site(tavern, browser, trick):
    for name in ("next", "to", "url", "redirect_uri", "joined", "outcome", "return_to"):
        for path in ("/", "/auth/login", "/auth/callback", tavern.link().removeprefix(tavern.url).split("?")[0]):
            _, text, headers = await browser.see(f"{path}?{name}={trick}")
            assert "Location" not in headers
            assert "Refresh" not in headers
            assert "evil.example" not in re.sub(r"data-words=.*", "", text)


# Status, refresh, logout


async def test_the_status_is_for_everybody_and_says_kinds_and_numbers_only(tavern, browser, stranger):
    nothing = {"signed_in": False, "state": None, "kind": None, "accounts": 0, "expires_at": None}
    assert await stranger.say("GET", "/auth/status") == (200, nothing)
    await browser.sign_in()
    status, got = await stranger.say("GET", "/auth/status")
    assert status == 200
    assert got.keys() == nothing.keys()
    assert (got["signed_in"], got["state"], got["kind"], got["accounts"]) == (True, "ready", "subscription", 1)
    assert got["expires_at"].endswith("Z")


async def test_the_status_speaks_of_the_account_that_works(tavern, stranger):
    first = await tavern.accounts.add_api_key(KEY)
    await tavern.accounts.update(first.id, enabled=False)
    assert (await stranger.say("GET", "/auth/status"))[1]["signed_in"] is False
    await tavern.accounts.add_api_key(KEY + "x")
    got = (await stranger.say("GET", "/auth/status"))[1]
    assert (got["signed_in"], got["state"], got["accounts"]) == (True, "ready", 2)


async def test_refresh_tells_why_it_failed(tavern, browser):
    await browser.sign_in()
    tavern.claude.answer = (400, '{"error": "invalid_grant"}')
    account = tavern.accounts.all()[0]
    for body in ({"id": account.id}, {}, None):
        status, got = await browser.say("POST", "/auth/refresh", body)
        assert status in (401, 503)
        assert got["error"]["message"]
    assert len(tavern.accounts.all()) == 1
    assert (await browser.say("POST", "/auth/refresh", {"id": "acc_none"}))[0] == 404


async def test_refresh_leaves_api_keys_alone(tavern, browser):
    await tavern.accounts.add_api_key(KEY)
    assert await browser.say("POST", "/auth/refresh") == (200, {"accounts": [], "error": None})


async def test_logout_forgets_every_account_but_not_the_owner(tavern, browser):
    await tavern.accounts.add_api_key(KEY)
    await browser.sign_in()
    async with browser.http.get("/auth/logout") as answer:
        assert answer.status == 405
    assert len(tavern.accounts.all()) == 2
    assert await browser.say("POST", "/auth/logout") == (200, {"signed_in": False})
    assert tavern.accounts.all() == ()
    assert (await browser.see("/auth/login"))[0] == 200
