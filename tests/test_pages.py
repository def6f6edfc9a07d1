"""The link, every page's safety, the accounts and the start page, over real connections."""

import json
import re
import time
from html import unescape
from pathlib import Path

import aiohttp
import pytest

from server.days import rfc3339
from server.guard import Audience, audience_of
from server.oauth import Tokens
from server.owner import Owner
from server.pages import page, routes
from server.pages.words import WORDS
from tests.pages_app import HOSTILE, HTML, KEY, Browser, message, running

pytestmark = pytest.mark.anyio

FAR = int(time.time()) + 300 * 86400


# The link, the session


async def test_the_link_lets_the_owner_in_and_moves_on_by_itself(tavern, stranger):
    status, text, headers = await stranger.see(tavern.link().removeprefix(tavern.url))
    assert status == 200
    assert '<meta http-equiv="refresh" content="0; url=/auth/login">' in text
    cookie = headers["Set-Cookie"]
    assert cookie.startswith(f"tavern_{tavern.port}=")
    assert {part.strip() for part in cookie.split(";")[1:]} == {
        "HttpOnly",
        "SameSite=Strict",
        "Path=/",
        "Max-Age=2592000",
    } | {part.strip() for part in cookie.split(";") if "expires" in part.lower()}
    assert (await stranger.see("/auth/login"))[0] == 200


async def test_somebody_who_is_signed_in_is_led_to_the_start_page(tavern, stranger):
    await tavern.accounts.add_api_key(KEY)
    _, text, _ = await stranger.see(tavern.link().removeprefix(tavern.url))
    assert 'content="0; url=/"' in text


async def test_a_used_link_says_so_and_how_to_get_in(tavern, stranger):
    link = tavern.link().removeprefix(tavern.url)
    await stranger.see(link)
    stranger.cookies.clear()
    status, text, headers = await stranger.see(link)
    assert status == 401
    assert "used already" in text
    assert "run.bat open" in text
    assert "Set-Cookie" not in headers


async def test_an_unknown_link_is_refused_with_the_remedy(stranger):
    status, text, headers = await stranger.see("/auth/login?token=from-yesterday")
    assert status == 401
    assert "./run.sh open" in text
    assert "Set-Cookie" not in headers


async def test_a_used_link_lets_its_own_browser_pass(tavern, browser):
    link = tavern.link().removeprefix(tavern.url)
    await browser.see(link)
    for old in (link, "/auth/login?token=from-yesterday"):
        status, text, headers = await browser.see(old)
        assert status == 200
        assert "http-equiv" in text
        assert "Set-Cookie" not in headers


async def test_each_sign_in_gets_a_new_session_and_a_planted_one_is_worth_nothing(tavern, stranger):
    stranger.cookies.update_cookies({tavern.owner.cookie_name: "planted"})
    seen = set()
    for _ in range(3):
        _, _, headers = await stranger.see(tavern.link().removeprefix(tavern.url))
        seen.add(headers["Set-Cookie"].split(";")[0])
    assert len(seen) == 3
    assert "planted" not in str(seen)


async def test_looking_at_a_link_with_head_does_not_use_it_up(tavern, stranger):
    link = tavern.link().removeprefix(tavern.url)
    async with stranger.http.head(link) as answer:
        assert answer.status == 405
    assert (await stranger.see(link))[0] == 200


async def test_a_program_makes_a_link_with_the_admin_token(tavern, stranger):
    status, made = await stranger.say("POST", "/api/login-link", headers=tavern.bearer)
    assert status == 200
    assert (await stranger.see(made["path"]))[0] == 200
    assert (await stranger.see("/auth/login"))[0] == 200


async def test_after_many_guesses_a_person_is_told_to_wait_and_the_right_link_still_works(tavern, stranger):
    for i in range(6):
        status, text, headers = await stranger.see(f"/auth/login?token=guess{i}")
    assert status == 429
    assert int(headers["retry-after"]) > 0
    assert "Too many" in text
    assert (await stranger.see(tavern.link().removeprefix(tavern.url)))[0] == 200


@pytest.mark.parametrize("path", ["/", "/auth/login"])
async def test_a_stranger_gets_a_friendly_page_that_gives_nothing_away(tavern, stranger, path):
    await tavern.accounts.add_api_key(KEY, "My secret name")
    status, text, _ = await stranger.see(path)
    assert status == 401
    assert "run.bat open" in text
    assert "My secret name" not in text


# What every page has


@pytest.mark.parametrize("path", ["/", "/auth/login", "/auth/callback?state=x", "/auth/login?token=x"])
async def test_every_page_carries_its_safety_headers(browser, path):
    _, text, headers = await browser.see(path)
    assert headers["Content-Security-Policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", text)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//(?!platform\.claude\.com/settings/keys)""", text)


async def test_static_files_are_the_ones_there_are_and_nothing_else(stranger):
    _, text, _ = await stranger.see("/")
    addresses = re.findall(r'(?:src|href)="(/static/[^"]+)"', text)
    assert len(addresses) >= 2
    for address in addresses:
        async with stranger.http.get(unescape(address)) as answer:
            assert answer.status == 200
            assert "immutable" in answer.headers["Cache-Control"]
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for name in ("page.py", "..%2Fwords.py", "%2e%2e%2fwords.py", "..%5Cwords.py", "tavern.css%00", "nothing.css"):
        async with stranger.http.get(f"/static/{name}") as answer:
            assert answer.status == 404
    async with stranger.http.get("/favicon.ico") as answer:
        assert answer.content_type == "image/svg+xml"


def test_every_route_of_the_pages_is_the_owners_but_for_the_open_ones():
    audiences = {route.path: audience_of(route.path) for route in routes()}
    opened = {path for path, audience in audiences.items() if audience is Audience.OPEN}
    assert opened == {"/auth/login", "/auth/callback", "/auth/status", "/static/{name}", "/favicon.ico", "/me"}
    assert {path for path, audience in audiences.items() if audience is Audience.FRONT} == {"/api/me"}


PAGES = Path(page.__file__).parent
SOURCES = {
    path: path.read_text(encoding="utf-8") for path in PAGES.rglob("*") if path.suffix in (".html", ".js", ".py")
}


def words_used(path, text):
    """The words a file names, as "page.word"; what it puts together from parts ends in *."""
    if path.suffix == ".html":
        yield from (f"{a}.{b}" for a, b in re.findall(r"\bw\.(\w+)\.(\w+)", text))
        yield from (f"{a}.{b}" for a, b in re.findall(r'\bw\.(\w+)\["(\w+)"\]', text))
        yield from (f"{a}.{b}*" for a, b in re.findall(r'\bw\.(\w+)\["(\w+_)" ~', text))

    if path.suffix == ".py":
        yield from (f"{a}.{b}" for a, b in re.findall(r"""WORDS\[["'](\w+)["']\]\[["'](\w+)["']\]""", text))
        for part in re.split(r"\n(?=(?:async )?def )", text):  # a function calls one page's words just `words`
            for page_name in re.findall(r'\bwords = .*?WORDS\["(\w+)"\]', part):
                yield from (f"{page_name}.{word}" for word in re.findall(r"""\bwords\[["'](\w+)["']\]""", part))
                yield from ("moving.added", "moving.renewed") if "words[outcome]" in part else ()
    if path.suffix == ".js":
        own = f"{path.stem}_script"
        yield from (f"{own}.{word}" for word in re.findall(r"\bwords\.(\w+)", text))
        yield from (f"{own}.{word}*" for word in re.findall(r"\bwords\[`(\w+_)\$", text))


def test_every_word_is_used_and_every_used_word_is_there():
    known = {f"{name}.{word}" for name, words in WORDS.items() for word in words}
    used = {word for path, text in SOURCES.items() for word in words_used(path, text)}
    used |= {f"page.{name}" for name in [*page.ROOMS.values(), *page.MORE_ROOMS.values()]}
    exact = {word for word in used if not word.endswith("*")}
    starts = tuple(word[:-1] for word in used if word.endswith("*"))
    assert exact <= known
    assert {word for word in known - exact if not word.startswith(starts)} == set()


# What is shown, and what goes wrong


async def test_a_page_without_javascript_says_so(browser):
    for path in ("/", "/auth/login"):
        _, text, _ = await browser.see(path)
        assert f'<noscript><p class="note">{WORDS["page"]["no_script"]}' in text


async def test_a_refused_key_is_not_called_a_sign_in(tavern, browser):
    await tavern.accounts.add_api_key(KEY, "My key")
    assert await tavern.accounts.after_401(await tavern.accounts.credential()) is None
    _, text, _ = await browser.see("/accounts")
    assert "key refused</span>" in text
    assert "Add a valid key</a>" in text
    assert "ign in again<" not in text
    _, text, _ = await browser.see("/")
    assert '<p class="strong">The saved API key is no longer accepted.</p>' in text, "the page need not be opened"


async def test_each_account_is_shown_with_its_state_and_what_went_wrong(tavern, browser):
    first = await tavern.accounts.add_api_key(KEY, "My key")
    tavern.accounts.rest(first.id, FAR, "The spend limit is reached.")
    _, text, _ = await browser.see("/accounts")
    for sign in ("My key", "resting", "The spend limit is reached.", "0001", rfc3339(FAR)[:10], "Try again now"):
        assert sign in text
    assert KEY not in text


async def test_the_warnings_stand_on_top_of_the_pages(tavern, browser):
    tavern.warnings = [f"The disk is full {HOSTILE}"]
    tavern.owner.warnings.append("The folder is open to others.")
    for path in ("/", "/auth/login"):
        _, text, _ = await browser.see(path)
        assert "The disk is full" in text
        assert "The folder is open to others." in text
        assert "<img src=x" not in text


async def test_a_sign_in_about_to_end_is_told_on_every_page_and_on_its_card(tavern, browser):
    end = time.time() + 3.2 * 86400
    tokens = Tokens("sk-ant-oat01-a", "sk-ant-ort01-b", expires_at=end, ends_at=end)
    account = await tavern.accounts.add_oauth(tokens, f"My plan {HOSTILE}")
    for path in ("/", "/accounts", "/auth/login"):
        _, text, _ = await browser.see(path)
        assert "ends in 3 days" in text
        assert "<img src=x" not in text
    _, text, _ = await browser.see("/accounts")
    assert re.search(rf"Sign in again before</dt><dd><time datetime=\"{rfc3339(end)}\">", text)
    (row,) = (await browser.say("GET", "/api/accounts"))[1]["accounts"]
    assert (row["id"], row["ends_at"], row["ends_soon"]) == (account.id, rfc3339(end), True)
    assert '<a class="button" href="/auth/login">Sign in again</a>' in text


async def test_a_hostile_name_is_text_everywhere(tavern, browser):
    account = await tavern.accounts.add_api_key(KEY, HOSTILE)
    tavern.accounts.rest(account.id, FAR, HOSTILE)
    tavern.claude.who = HOSTILE
    assert (await browser.sign_in())[0] == 200
    for path in (
        "/",
        "/auth/login",
        f"/accounts?joined={account.id}&outcome={HOSTILE}",
        f"/accounts?joined={HOSTILE}",
    ):
        _, text, _ = await browser.see(path)
        assert "<img src=x" not in text
        assert "alert(1)&gt;" in text
        assert "49" not in re.sub(r"v=\w+|acc_\w+|:\d+|joined=\w+", "", text)


# The accounts


async def test_accounts_are_listed_added_changed_and_removed(tavern, browser):
    body = {"kind": "api_key", "name": "Mine", "api_key": KEY, "base_url": "https://example.org/anthropic/"}
    status, made = await browser.say("POST", "/api/accounts", body)
    assert status == 201
    assert tavern.checked == [("https://example.org/anthropic", KEY)]  # where it will be used
    _, listed = await browser.say("GET", "/api/accounts")
    assert listed == {"accounts": [made]}
    wanted = {"id", "name", "kind", "state", "reason", "rests_until", "expires_at", "last_refresh_at"}
    assert made.keys() >= wanted | {"last_refresh_error", "priority", "shared"}
    assert KEY not in json.dumps(listed)

    changes = {"name": "Ours", "priority": 3, "shared": True, "enabled": False}
    status, changed = await browser.say("PATCH", f"/api/accounts/{made['id']}", changes)
    assert status == 200
    assert changed == {**made, **changes, "state": "off", "reason": changed["reason"]}

    assert await browser.say("DELETE", f"/api/accounts/{made['id']}") == (204, None)
    assert (await browser.say("DELETE", f"/api/accounts/{made['id']}"))[0] == 404
    assert (await browser.say("GET", "/api/accounts"))[1] == {"accounts": []}


async def test_a_resting_account_is_woken(tavern, browser):
    account = await tavern.accounts.add_api_key(KEY)
    tavern.accounts.rest(account.id, FAR, "The limit is reached.")
    assert (await browser.say("GET", "/api/accounts"))[1]["accounts"][0]["rests_until"] == rfc3339(FAR)
    status, woken = await browser.say("POST", f"/api/accounts/{account.id}/wake")
    assert (status, woken["state"], woken["rests_until"]) == (200, "ready", None)
    assert (await browser.say("POST", "/api/accounts/acc_none/wake"))[0] == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": 7},
        {"name": "a\nb"},
        {"name": "x" * 81},
        {"enabled": "yes"},
        {"shared": 1},
        {"priority": "1"},
        {"priority": True},
        {"priority": 1.5},
        {"priority": 10**9},
        {"state": "ready"},
        {"base_url": "https://evil.example"},
        {"api_key": KEY},
    ],
)
async def test_a_change_that_makes_no_sense_is_refused(tavern, browser, body):
    account = await tavern.accounts.add_api_key(KEY)
    got = await browser.say("PATCH", f"/api/accounts/{account.id}", body)
    assert got[0] == 400
    assert tavern.accounts.all() == (account,)


@pytest.mark.parametrize(
    "base_url",
    [
        "http://example.org",
        "https://user@example.org",
        "https://example.org/?x=1",
        "ftp://example.org",
        "https://169.254.169.254/",
        "javascript:alert(1)",
        "example.org",
        7,
    ],
)
async def test_a_key_goes_to_a_plain_https_address_only(tavern, browser, base_url):
    got = await browser.say("POST", "/api/accounts", {"kind": "api_key", "api_key": KEY, "base_url": base_url})
    assert got[0] == 400
    assert tavern.checked == []


async def test_a_subscription_is_never_shared(tavern, browser):
    _, made = await browser.sign_in()
    got = await browser.say("PATCH", f"/api/accounts/{made['account']['id']}", {"shared": True})
    assert got[0] == 400
    assert "owner alone" in message(got)


async def test_another_kind_is_not_added_by_the_api(browser):
    got = await browser.say("POST", "/api/accounts", {"kind": "subscription", "api_key": KEY})
    assert got[0] == 400


# The start page


async def test_the_start_page_says_who_pays_and_what_to_type(tavern, browser):
    _, text, _ = await browser.see("/")
    assert "Nobody is signed in yet" in text
    await tavern.accounts.add_api_key(KEY, "My key")
    _, text, _ = await browser.see("/")
    for sign in ("The tavern is open", "My key", "Chat Completion", f"{tavern.url}/v1", "anything", "Test Message"):
        assert sign in text
    assert f"{tavern.url}/v1/lampwright" in text
    assert KEY not in text


async def test_the_address_shown_is_the_one_the_page_was_opened_with(tavern):
    address = f"http://127.0.0.1:{tavern.port}"
    async with aiohttp.ClientSession() as program, program.get(address, headers=HTML | tavern.bearer) as answer:
        assert f"{address}/v1" in (await answer.text()).replace("&#x2f;", "/")


async def test_a_tavern_without_an_account_that_can_pay_says_why(tavern, browser):
    account = await tavern.accounts.add_api_key(KEY)
    tavern.accounts.rest(account.id, FAR, "The limit is reached.")
    _, text, _ = await browser.see("/")
    assert "closed for the moment" in text
    assert 'href="/auth/login"' in text


async def test_the_password_to_type_is_the_key_when_one_is_needed(tavern, browser):
    tavern.password = page.Password(needed=True, key="tavern-first-key")
    _, text, _ = await browser.see("/")
    assert "tavern-first-key" in text
    assert ">anything<" not in text
    tavern.password = page.Password(needed=True)
    _, text, _ = await browser.see("/")
    assert "one of your client keys" in text


async def test_practice_mode_is_clearly_labelled(tmp_path):
    async with running(tmp_path, practice=True) as tavern, Browser(tavern) as browser:
        for path in ("/", "/auth/login"):
            _, text, _ = await browser.see(path)
            assert WORDS["page"]["practice"] in text


# Nobody else's hands


OWNERS_ROUTES = [
    (route.method, route.path.replace("{id}", "acc_none").replace("{name}", "nobody"))
    for route in routes()
    if audience_of(route.path) is not Audience.OPEN
]


@pytest.mark.parametrize(("method", "path"), OWNERS_ROUTES)
async def test_the_owners_routes_change_nothing_for_a_foreign_page_or_a_stranger(tavern, method, path):
    account = await tavern.accounts.add_api_key(KEY)
    path = path.replace("acc_none", account.id)
    state = (tavern.accounts.all(), repr(vars(tavern.owner)))
    foreign = [
        {"Origin": "https://evil.example"},
        {"Origin": f"http://localhost:{tavern.port + 1}"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ]
    async with Browser(tavern) as browser, Browser(tavern, owner=False) as stranger:
        for headers in foreign:
            assert (await browser.say(method, path, {}, headers=headers))[0] == 403
        for cookie in ("", "other", Owner("o" * 43, tavern.port).new_session()):
            stranger.cookies.update_cookies({tavern.owner.cookie_name: cookie})
            assert (await stranger.say(method, path, {}))[0] == 401
        assert (await stranger.say(method, path, {}, headers={"x-api-key": "tavern-client-key"}))[0] == 401
        if method != "GET":
            async with browser.http.request(method, path, data="{}", headers={"Content-Type": "text/plain"}) as answer:
                assert answer.status == 415
            async with browser.http.get(path) as answer:
                assert answer.status in (200, 405)
    assert (tavern.accounts.all(), repr(vars(tavern.owner))) == state
    assert tavern.claude.exchanges == 0


async def test_no_secret_and_no_token_stands_in_any_page_or_answer(tmp_path, tavern, browser, caplog):
    caplog.set_level("DEBUG")
    await browser.say("POST", "/auth/api-key", {"api_key": KEY})
    await browser.sign_in()
    link = tavern.link()
    texts = [(await browser.see(path))[1] for path in ("/", "/auth/login", link.removeprefix(tavern.url))]
    texts += [json.dumps((await browser.say("GET", path))[1]) for path in ("/api/accounts", "/auth/status")]
    texts += [record.getMessage() for record in caplog.records if not record.name.startswith("asyncio")]
    stored = (tmp_path / "data" / "tokens.json").read_text()
    secrets = {*re.findall(r"sk-ant-[\w-]+", stored), tavern.owner.admin_token, link.partition("=")[2]}
    assert len(secrets) == 5
    for secret in secrets:
        assert not [text for text in texts if secret in text]
