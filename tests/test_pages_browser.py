"""The pages in a real Chromium: every state, by keyboard, on a phone, in the dark; and what foreign pages try."""

import json
import re
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import pytest
from aiohttp import web
from playwright.async_api import expect

from server.pages import page as page_room
from server.presets import Persona
from tests.browsing import NEEDED, browsing, looks_right, picture_folder, tab_to
from tests.pages_app import KEY, ant_profile, claude_code_login, running, serve

HOSTILE = "<img src=x onerror=fired()><script>fired()</script>'\"></p>"
FAR = time.time() + 300 * 86400

pytestmark = NEEDED


@pytest.fixture
def pictures(tmp_path):
    return picture_folder(tmp_path)


@pytest.fixture
async def tavern(tmp_path):
    async with running(tmp_path / "data") as tavern:
        yield tavern


@pytest.fixture(autouse=True)
def data_dir(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
async def person(tavern):
    async with browsing(tavern) as person:
        yield person


def turn(i=0, **other):
    """A row of GET /api/requests."""
    tokens = {"input_tokens": 820, "cache_write_5m_tokens": 400, "cache_write_1h_tokens": 0}
    return {
        "id": f"req_{i}",
        "at": datetime.fromtimestamp(time.time() - 130 * i, UTC).isoformat(),
        "model": "claude-sonnet-5",
        "persona": None,
        "status": 200,
        "ended": "whole",
        "tokens": {**tokens, "cache_read_tokens": 18230, "output_tokens": 412},
        "usd": 0.0131,
        "usd_without_cache": 0.062,
        "cache": {"outcome": "partial"},
        **other,
    }


def replace_id(row, i):
    return {**row, "id": f"req_{i}"}


TURNS = [
    turn(0),
    turn(1, model="claude-opus-4-8", persona="lampwright", cache={"outcome": "hit"}),
    turn(2, status=529, ended="error", usd=None, usd_without_cache=None, cache={"outcome": "off"}),
    turn(
        3, model="claude-haiku-4-5-20251001", ended="client_left", cache={"outcome": "miss"}, usd_without_cache=0.0131
    ),
]


# Ways in


async def test_an_api_key_is_added_by_keyboard_alone(tavern, person):
    page = await person.context.new_page()
    await page.goto(tavern.link())
    await page.wait_for_url("**/auth/login")
    await tab_to(page, "#key")
    await page.keyboard.type(KEY)
    await page.keyboard.press("Tab")
    await page.keyboard.type("My key")
    await page.keyboard.press("Enter")
    joined = page.get_by_role("status").filter(has_text="Signed in: My key.")
    await expect(joined).to_be_focused()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="The tavern is open")).to_be_visible()
    await expect(page.get_by_text("My key")).to_be_visible()
    assert [account.name for account in tavern.accounts.all()] == ["My key"]


async def test_a_subscription_is_added_by_keyboard_alone(tavern, person):
    page = await person.open("/auth/login")
    await tab_to(page, "#understood")
    await page.keyboard.press("Space")
    await page.keyboard.press("Tab")
    async with person.context.expect_page() as opened:
        await page.keyboard.press("Enter")
    code = await (await opened.value).locator("#code").inner_text()
    await expect(page.get_by_label("Code", exact=True)).to_be_focused()
    await page.keyboard.type(code)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status").filter(has_text="rowan@example.org")).to_be_focused()
    assert await page.evaluate("sessionStorage.length") == 0


async def test_the_callback_moves_both_tabs_on(tmp_path):
    async with running(tmp_path / "data", lands_here=True) as tavern, browsing(tavern) as person:
        page = await person.open("/auth/login")
        await page.get_by_label("I understand").check()
        async with person.context.expect_page() as opened:
            await page.get_by_role("button", name="Sign in with Claude").click()
        theirs = await opened.value
        await theirs.locator("#allow").click()
        await theirs.wait_for_url("**/accounts?joined=*")
        await expect(theirs.get_by_role("status").filter(has_text="rowan@example.org")).to_be_focused()
        await expect(page.get_by_role("heading", name="Claude subscription (rowan@example.org)")).to_be_visible()


async def test_saying_no_leads_back_to_the_sign_in_page(tmp_path, pictures):
    async with running(tmp_path / "data", lands_here=True) as tavern, browsing(tavern) as person:
        page = await person.open("/auth/login")
        await page.get_by_label("I understand").check()
        async with person.context.expect_page() as opened:
            await page.get_by_role("button", name="Sign in with Claude").click()
        theirs = await opened.value
        await theirs.locator("#deny").click()
        await expect(theirs.get_by_role("heading", name="The sign-in did not work out")).to_be_visible()
        await expect(theirs.get_by_text("You did not allow the sign-in")).to_be_visible()
        await theirs.screenshot(path=pictures / "denied.png")
        await theirs.get_by_role("link", name="Back to the sign-in page").click()
        await expect(theirs.get_by_role("heading", name="Who pays for the chats?")).to_be_visible()


async def test_ant_and_claude_code_are_used_with_a_click_each(tmp_path):
    environ = claude_code_login(tmp_path / "claude") | ant_profile(tmp_path / "ant", "work")
    async with running(tmp_path / "data", environ=environ) as tavern, browsing(tavern) as person:
        page = await person.open("/auth/login")
        await page.get_by_role("button", name="Use profile “work”").click()
        await expect(page.get_by_role("heading", name="ant profile work")).to_be_visible()
        await page.get_by_role("link", name="Sign in or add a key").click()
        await page.get_by_role("button", name="Use Claude Code's login").click()
        await expect(page.locator("#sub-result")).to_have_text("Tick “I understand” first.")
        await expect(page.get_by_label("I understand")).to_be_focused()
        await page.get_by_label("I understand").check()
        await page.get_by_role("button", name="Use Claude Code's login").click()
        await expect(page.get_by_role("heading", name="Claude Code", exact=True)).to_be_visible()
        assert [account.kind for account in tavern.accounts.all()] == ["platform", "subscription"]


# What can go wrong


async def test_a_refused_key_is_said_beside_the_field_and_stays_in_it(tavern, person):
    page = await person.open("/auth/login")
    await page.get_by_role("button", name="Use this key").click()
    await expect(page.locator("#key-result")).to_have_text("Paste a key first.")
    await expect(page.get_by_label("API key", exact=True)).to_be_focused()
    tavern.key_check = ("refused", "invalid x-api-key")
    await page.get_by_label("API key", exact=True).fill(KEY)
    await page.get_by_role("button", name="Use this key").click()
    await expect(page.locator("#key-result")).to_contain_text("invalid x-api-key")
    await expect(page.get_by_label("API key", exact=True)).to_have_value(KEY)
    await expect(page.get_by_role("button", name="Use this key")).to_be_enabled()
    tavern.key_check = ("unknown", "no answer within 8 s")
    await page.get_by_role("button", name="Use this key").click()
    await expect(page.get_by_role("status").filter(has_text="could not be tried out")).to_be_visible()


async def begin(person, page):
    """Start a subscription sign-in; the code Claude's page shows."""
    await page.get_by_label("I understand").check()
    async with person.context.expect_page() as opened:
        await page.get_by_role("button", name="Sign in with Claude").click()
    theirs = await opened.value
    code = await theirs.locator("#code").inner_text()
    await theirs.close()
    return code


async def test_a_wrong_code_can_be_followed_by_the_right_one_of_a_new_start(tavern, person):
    page = await person.open("/auth/login")
    code = await begin(person, page)
    await page.get_by_role("button", name="Finish").click()
    await expect(page.locator("#sub-result")).to_have_text("The code is missing. Paste what Claude's page shows.")
    await page.get_by_label("Code", exact=True).fill(f"wrong#{code.partition('#')[2]}")
    await page.get_by_role("button", name="Finish").click()
    await expect(page.locator("#sub-result")).to_contain_text("Start the sign-in again")
    await page.get_by_role("button", name="Start over").click()
    await expect(page.get_by_label("Code", exact=True)).to_be_hidden()
    await expect(page.get_by_role("button", name="Sign in with Claude")).to_be_focused()
    code = await begin(person, page)
    await page.get_by_label("Code", exact=True).fill(code)
    await page.get_by_role("button", name="Finish").click()
    await expect(page.get_by_role("status").filter(has_text="rowan@example.org")).to_be_visible()


async def test_a_bare_code_is_enough_in_the_page_that_began(tavern, person):
    page = await person.open("/auth/login")
    code = await begin(person, page)
    await page.get_by_label("Code", exact=True).fill(code.partition("#")[0])
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status").filter(has_text="rowan@example.org")).to_be_visible()


async def test_a_restart_and_a_reload_in_the_middle_lose_nothing(tmp_path):
    async with AsyncExitStack() as first:
        tavern = await first.enter_async_context(running(tmp_path / "data"))
        async with browsing(tavern) as person:
            page = await person.open("/auth/login")
            code = await begin(person, page)
            await first.aclose()
            async with running(tmp_path / "data", port=tavern.port, claude=tavern.claude) as again:
                await page.reload()
                await expect(page.get_by_label("Code", exact=True)).to_be_visible()
                link = page.get_by_role("link", name="Open Claude's page")
                await expect(link).to_have_attribute("href", re.compile("state="))
                await page.get_by_label("Code", exact=True).fill(code)
                await page.get_by_role("button", name="Finish").click()
                await expect(page.get_by_role("status").filter(has_text="rowan@example.org")).to_be_visible()
                assert len(again.accounts.all()) == 1
                await page.go_back()
                await page.reload()
                await expect(page.get_by_label("Code", exact=True)).to_be_hidden()


async def test_a_proxy_that_has_stopped_is_said(tmp_path):
    async with running(tmp_path / "data") as tavern, browsing(tavern) as person:
        page = await person.open("/auth/login")
        await page.route("**/auth/api-key", lambda route: route.abort("connectionrefused"))
        await page.get_by_label("API key", exact=True).fill(KEY)
        await page.get_by_role("button", name="Use this key").click()
        await expect(page.locator("#key-result")).to_have_text("The proxy does not answer. Is it still running?")
        person.troubles = [t for t in person.troubles if "ERR_CONNECTION_REFUSED" not in t]


async def test_a_second_sign_in_asks_first_and_replaces_its_own_account_only(tavern, person):
    page = await person.open("/auth/login")
    code = await begin(person, page)
    await page.get_by_label("Code", exact=True).fill(code)
    await page.get_by_role("button", name="Finish").click()
    await expect(page.get_by_role("status").filter(has_text="Signed in")).to_be_visible()

    await page.get_by_role("link", name="Sign in or add a key").click()
    await page.get_by_label("I understand").check()
    await page.get_by_role("button", name="Sign in with Claude").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("rowan@example.org")
    await expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    assert await page.get_by_label("Code", exact=True).is_hidden()

    await page.get_by_role("button", name="Sign in with Claude").click()
    async with person.context.expect_page() as opened:
        await dialog.get_by_role("button", name="Go on").click()
    await page.get_by_label("Code", exact=True).fill(await (await opened.value).locator("#code").inner_text())
    await page.get_by_role("button", name="Finish").click()
    await expect(page.get_by_role("status").filter(has_text="was replaced")).to_be_visible()
    assert len(tavern.accounts.all()) == 1


async def test_accounts_are_woken_switched_renamed_and_removed(tavern, person):
    first = await tavern.accounts.add_api_key(KEY, "First")
    second = await tavern.accounts.add_api_key(KEY + "x", "Second")
    tavern.accounts.rest(first.id, time.time() + 3000, "The limit is reached.")
    await tavern.accounts.update(second.id, enabled=False)
    page = await person.open("/accounts")
    card = page.locator(".account").filter(has_text="…0001")
    await expect(card).to_contain_text("resting")
    await expect(card).to_contain_text("in 50 min")
    await card.get_by_role("button", name="Try again now").click()
    await expect(card).to_contain_text("ready")
    await expect(page.locator("#result")).to_have_text("Saved.")
    await page.get_by_label("In use").nth(1).check()
    await expect(page.locator(".account.ready")).to_have_count(2)
    await expect(page.get_by_label("In use").nth(1)).to_be_focused()
    await page.get_by_label("Also pays for client keys").first.uncheck()
    await expect(page.get_by_label("Also pays for client keys").first).not_to_be_checked()
    assert [account.shared for account in tavern.accounts.all()] == [False, True]

    await page.get_by_label("Order").first.fill("3")
    await page.keyboard.press("Tab")
    await expect(page.locator(".account h2")).to_have_text(["Second", "First"])

    await card.get_by_role("button", name="Rename").click()
    await expect(page.get_by_role("dialog").get_by_role("textbox")).to_be_focused()
    await page.keyboard.type("Other name")
    await page.keyboard.press("Enter")
    await expect(card).to_contain_text("Other name")

    await card.get_by_role("button", name="Remove").click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert len(tavern.accounts.all()) == 2
    await card.get_by_role("button", name="Remove").click()
    await expect(page.get_by_role("dialog")).to_contain_text("Remove “Other name”")
    await page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    await expect(page.locator(".account")).to_have_count(1)

    await tavern.accounts.add_api_key(KEY, "Third")
    await page.reload()
    await page.get_by_role("button", name="Sign out everywhere").click()
    await page.get_by_role("dialog").get_by_role("button", name="Sign out everywhere").click()
    await expect(page.get_by_role("heading", name="Who pays for the chats?")).to_be_visible()
    assert tavern.accounts.all() == ()


async def test_a_rest_that_ends_is_seen_without_a_reload(tavern, person):
    account = await tavern.accounts.add_api_key(KEY, "First")
    tavern.accounts.rest(account.id, time.time() + 2, "The limit is reached.")
    page = await person.open("/accounts")
    await expect(page.locator(".account.ready")).to_be_visible()
    await expect(page.get_by_text("The limit is reached.")).to_have_count(0)


async def test_an_account_that_comes_to_rest_is_seen_without_a_reload_and_disturbs_nobody_who_types(tavern, person):
    account = await tavern.accounts.add_api_key(KEY, "First")
    page = await person.open("/accounts")
    order = page.get_by_label("Order")
    await order.fill("7")
    tavern.accounts.rest(account.id, time.time() + 3600, "The limit is reached.")
    tavern.news.changed()
    await page.wait_for_timeout(1000)  # in which the page would show it, if nobody typed
    await expect(order).to_have_value("7")
    await page.keyboard.press("Enter")
    await expect(page.locator(".account")).to_contain_text("The limit is reached.")
    assert tavern.accounts.get(account.id).priority == 7
    await page.get_by_role("heading", level=1).click()
    tavern.accounts.wake(account.id)
    await expect(page.locator(".account.ready")).to_be_visible()


async def test_a_change_that_is_refused_is_taken_back_on_the_page_and_says_why(tavern, person):
    await tavern.accounts.add_api_key(KEY, "First")
    page = await person.open("/accounts")
    await page.get_by_label("Order").fill("5000")
    await page.keyboard.press("Tab")
    await expect(page.locator("#result")).to_contain_text("between -1000 and 1000")
    await expect(page.get_by_label("Order")).to_have_value("0")


async def test_another_provider_is_added_with_its_address_by_keyboard_alone(tavern, person):
    page = await person.open("/accounts")
    await tab_to(page, "#other-address")
    await page.keyboard.type("https://provider.example/api")
    await page.keyboard.press("Tab")
    await page.keyboard.type("Other tavern")
    await page.keyboard.press("Tab")
    await page.keyboard.type("provider-key-0001")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status").filter(has_text="Added: Other tavern.")).to_be_visible()
    await expect(page.locator(".account")).to_contain_text("https://provider.example/api")
    assert tavern.checked == [("https://provider.example/api", "provider-key-0001")]
    await expect(page.get_by_label("Key", exact=True)).to_have_value("")


async def test_a_renewal_that_fails_tells_why(tavern, person):
    page = await person.open("/auth/login")
    code = await begin(person, page)
    await page.get_by_label("Code", exact=True).fill(code)
    await page.get_by_role("button", name="Finish").click()
    await expect(page.locator(".account.ready")).to_be_visible()
    tavern.claude.answer = (503, "{}")
    await page.get_by_role("button", name="Renew now").click()
    await expect(page.locator("#result")).to_contain_text("could not be renewed")
    await expect(page.locator(".account")).to_contain_text("Last renewal failed:")
    await expect(page.get_by_text("Pays for your own chats alone")).to_be_visible()
    await expect(page.get_by_label("Also pays for client keys")).to_have_count(0)


# The keys


async def test_a_key_is_made_by_keyboard_alone_and_shown_once(tavern):
    async with browsing(tavern, permissions=["clipboard-read", "clipboard-write"]) as person:
        page = await person.open("/keys")
        await tab_to(page, "#name")
        await page.keyboard.press("Enter")
        await expect(page.locator("#make-result")).to_have_text("Say first who or what the key is for.")
        await page.keyboard.type("Robin's tablet")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="Copy", exact=True)).to_be_focused()
        await expect(page.locator("#made-key")).to_contain_text("tavern-")
        key = await page.locator("#made-key").inner_text()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="Copied", exact=True)).to_be_visible()
        assert await page.evaluate("navigator.clipboard.readText()") == key
        assert tavern.keys.find(key).name == "Robin's tablet"
        assert not tavern.keys.find(key).own
        await expect(page.locator(".key")).to_contain_text("Robin's tablet")
        await page.get_by_role("button", name="I have copied it").click()
        assert key not in await page.content()
        await page.reload()
        assert key not in await page.content()


async def test_a_key_of_the_owners_own_is_renamed_and_taken_back(tavern, person):
    page = await person.open("/keys")
    await page.get_by_label("Who or what is it for?").fill("My phone")
    await page.get_by_label("My own").check()
    await page.get_by_role("button", name="Make the key").click()
    await expect(page.locator("#made-key")).to_contain_text("tavern-")
    key = await page.locator("#made-key").inner_text()
    assert tavern.keys.find(key).own
    await expect(page.locator(".key")).to_contain_text("your own")
    await page.get_by_role("button", name="Rename: My phone").click()
    await page.get_by_role("dialog").get_by_role("textbox").fill("My tablet")
    await page.keyboard.press("Enter")
    await expect(page.locator(".key")).to_contain_text("My tablet")
    await page.get_by_role("button", name="Take back: My tablet").click()
    await expect(page.get_by_role("dialog")).to_contain_text("stops working at once")
    await page.keyboard.press("Escape")
    assert tavern.keys.find(key)
    await page.get_by_role("button", name="Take back: My tablet").click()
    await page.get_by_role("dialog").get_by_role("button", name="Take back").click()
    await expect(page.locator(".key")).to_have_count(0)
    assert tavern.keys.find(key) is None


# The start page


async def test_the_start_page_is_live(tavern, person):
    await tavern.accounts.add_api_key(KEY, "First")
    page = await person.open("/")
    await expect(page.get_by_text("No turn yet.")).to_be_visible()
    tavern.show(TURNS[:1])
    row = page.locator(".turns tbody tr")
    await expect(row).to_contain_text("claude-sonnet-5")
    await expect(row).to_contain_text("19,450 in")
    await expect(row).to_contain_text("1.3 ¢")
    await expect(row).to_contain_text("4.9 ¢ saved")
    tavern.show(TURNS)
    await expect(row).to_have_count(4)
    await expect(row.nth(1)).to_contain_text("lampwright")
    await expect(row.nth(2)).to_contain_text("error 529")
    await expect(row.nth(2)).to_contain_text("unknown")
    await expect(row.nth(3)).to_contain_text("stopped")
    await tavern.accounts.remove(tavern.accounts.all()[0].id)
    await expect(page.get_by_role("heading", name="Almost open")).to_be_visible()


async def test_a_reply_is_seen_while_it_is_written(tavern, person):
    page = await person.open("/")
    way = {"id": "req_w", "model": HOSTILE, "persona": "brindle", "key": HOSTILE, "seconds": 4.2, "events": 0}
    tavern.on_the_road = [way]
    tavern.show([])
    row = page.get_by_role("list", name="Being written now").get_by_role("listitem")
    await expect(row).to_contain_text("for 4.2 s, no word yet")
    await expect(row).to_contain_text(HOSTILE)
    tavern.on_the_road = [{**way, "seconds": 61, "events": 1234}]
    await expect(row).to_contain_text("for 61 s, 1,234 events so far")
    tavern.on_the_road = []
    tavern.show(TURNS)
    await expect(row).to_have_count(0)
    await expect(page.locator(".turns tbody tr")).to_have_count(4)


async def test_what_to_type_is_copied_with_a_click(tavern):
    async with browsing(tavern, permissions=["clipboard-read", "clipboard-write"]) as person:
        page = await person.open("/")
        address = f"{tavern.url}/v1"
        await page.get_by_role("button", name=f"Copy: {address}", exact=True).click()
        await expect(page.get_by_role("button", name=f"Copy: {address}", exact=True)).to_have_text("Copied")
        assert await page.evaluate("navigator.clipboard.readText()") == address
        await page.get_by_role("button", name=f"Copy: {address}/brindle").click()
        assert await page.evaluate("navigator.clipboard.readText()") == f"{address}/brindle"


async def test_on_a_phone_an_address_to_copy_breaks_between_its_words_alone(tavern):
    async with browsing(tavern, viewport={"width": 375, "height": 800}) as person:
        page = await person.open("/")
        broken = await page.evaluate(
            """() => [...document.querySelectorAll(".copyable code")].flatMap(code => [...code.childNodes])
            .filter(part => {
                const range = document.createRange();
                range.selectNodeContents(part);
                return part.nodeType === 3 && range.getClientRects().length > 1;
            }).map(part => part.data)"""
        )
        assert broken == []


# How it looks


async def scene_first_visit(tavern):
    return "/auth/login"


async def scene_keys(tavern):
    tavern.keys.make("Robin's tablet")
    tavern.keys.make("A key with quite a long name, as people give them at times", own=True)
    return "/keys"


async def scene_requests(tavern):
    tavern.receipts = [replace_id(row, i) for i, row in enumerate(TURNS * 4)]
    return "/requests"


async def scene_accounts(tavern):
    first = await tavern.accounts.add_api_key(KEY, "My Console key")
    second = await tavern.accounts.add_api_key(KEY + "x", "A key with quite a long name, as people give them at times")
    tavern.accounts.rest(second.id, time.time() + 3600, "The spend limit of this month is reached.")
    return f"/accounts?joined={first.id}&outcome=added"


async def scene_ready(tavern):
    await tavern.accounts.add_api_key(KEY, "My Console key")
    tavern.receipts = TURNS
    return "/"


async def scene_nobody(tavern):
    tavern.warnings = ["tokens.json could not be saved: the disk is full. Nothing is lost until the proxy stops."]
    return "/"


async def scene_resting(tavern):
    account = await tavern.accounts.add_api_key(KEY)
    tavern.accounts.rest(account.id, time.time() + 3600, "The limit is reached.")
    tavern.password = page_room.Password(needed=True, key="tavern-" + "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789abcdefg")
    return "/"


SCENES = [scene_first_visit, scene_accounts, scene_keys, scene_requests, scene_ready, scene_nobody, scene_resting]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__.removeprefix("scene_"))
async def test_every_page_fits_a_phone_and_a_desk_by_day_and_by_night(tmp_path, pictures, scene):
    environ = claude_code_login(tmp_path / "claude") | ant_profile(tmp_path / "ant", "default")
    async with running(tmp_path / "data", environ=environ) as tavern, browsing(tavern) as person:
        path = await scene(tavern)
        page = await person.open(path)
        await looks_right(page, tavern.url + path, pictures, scene.__name__.removeprefix("scene_"))
        assert person.asked == {tavern.url}


async def test_the_sign_in_in_progress_and_the_refusals_fit_a_phone(tavern, person, pictures):
    page = await person.open("/auth/login")
    await page.set_viewport_size({"width": 375, "height": 800})
    await begin(person, page)
    await page.get_by_role("button", name="Finish").click()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 375
    await page.screenshot(path=pictures / "code-light-375.png", full_page=True)
    await person.context.clear_cookies()
    for name, path in (
        ("stranger", "/"),
        ("old-link", "/auth/login?token=old"),
        ("callback", "/auth/callback?state=x"),
    ):
        await page.goto(tavern.url + path)
        await expect(page.get_by_role("heading", level=1)).to_have_count(1)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 375
        await page.screenshot(path=pictures / f"{name}-light-375.png")


async def test_the_readmes_picture_of_the_sign_in_page(tmp_path, pictures):
    environ = ant_profile(tmp_path / "ant", "default")
    desk = {"viewport": {"width": 860, "height": 900}, "device_scale_factor": 1.25}
    async with running(tmp_path / "data", environ=environ) as tavern, browsing(tavern, **desk) as person:
        page = await person.open("/auth/login")
        footer = await page.locator("footer").bounding_box()
        clip = {"x": 0, "y": 0, "width": 860, "height": footer["y"]}
        await page.screenshot(path=pictures / "sign-in.png", clip=clip, full_page=True)
    assert (pictures / "sign-in.png").stat().st_size < 150_000


async def test_every_field_and_button_has_a_name_and_every_page_one_heading(tavern, person):
    await tavern.accounts.add_api_key(KEY)
    tavern.receipts = TURNS
    for path in ("/", "/auth/login", "/accounts", "/keys", "/requests"):
        page = await person.open(path)
        nameless = await page.evaluate(
            """() => [...document.querySelectorAll("button, a, input")].filter(node => !node.closest("dialog")).filter(
                node => !(node.textContent.trim() || node.labels?.length || node.getAttribute("aria-label"))
            ).map(node => node.outerHTML)"""
        )
        assert nameless == []
        await expect(page.get_by_role("heading", level=1)).to_have_count(1)
        assert await page.locator("html").get_attribute("lang") == "en"
        assert await page.locator("img:not([alt])").count() == 0
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("main")).to_be_focused()


# Hostile names, hostile pages


async def test_nothing_in_a_hostile_name_is_run(tavern, person):
    account = await tavern.accounts.add_api_key(KEY, HOSTILE)
    tavern.accounts.rest(account.id, FAR, HOSTILE)
    tavern.claude.who = HOSTILE
    tavern.warnings = [HOSTILE]
    tavern.personas = [Persona("lampwright", HOSTILE)]
    tavern.password = page_room.Password(needed=True, key=HOSTILE)
    tavern.receipts = [turn(model=HOSTILE, persona=HOSTILE, status=HOSTILE, cache={"outcome": HOSTILE}, ended=HOSTILE)]
    fired = []
    await person.context.expose_function("fired", lambda: fired.append(1))
    page = await person.open("/")
    await expect(page.locator(".turns tbody tr")).to_contain_text("<img src=x")
    await page.get_by_role("button", name=f"Copy: {HOSTILE}").click()

    page = await person.open("/auth/login", page)
    await begin(person, page)
    tavern.key_check = ("refused", HOSTILE)
    await page.get_by_label("API key", exact=True).fill(KEY)
    await page.get_by_role("button", name="Use this key").click()
    await expect(page.locator("#key-result")).to_contain_text("<script>fired()")
    tavern.keys.make(HOSTILE)
    for path, button in (("/accounts", "Remove"), ("/keys", "Take back")):
        await person.open(path, page)
        await page.get_by_role("button", name=button).click()
        await expect(page.get_by_role("dialog")).to_contain_text("<img src=x")
        await page.keyboard.press("Escape")
    for address in (f"/accounts?joined={account.id}&outcome={HOSTILE}", f"/auth/callback?error={HOSTILE}"):
        await page.goto(tavern.url + address)
    assert await page.evaluate("document.images.length") == await page.locator("img[src^='/static/']").count()
    assert fired == []


ATTACK = """async ({ target, account }) => {
  const seen = [];
  const tried = async (name, ask) => {
    try {
      const answer = await ask();
      seen.push([name, answer.type, answer.type === "opaque" ? 0 : answer.status]);
    } catch {
      seen.push([name, "failed", 0]);
    }
  };
  const json = { "content-type": "application/json" };
  const chat = JSON.stringify({ model: "m", max_tokens: 1, messages: [{ role: "user", content: "hi" }] });
  const posts = {
    "/v1/messages": chat, "/auth/logout": "{}", "/auth/start": '{"understood":true}', "/api/login-link": "{}",
    "/auth/api-key": '{"api_key":"sk-ant-api03-theirs"}', "/auth/submit": '{"code":"a#b"}',
    "/api/accounts": '{"kind":"api_key","api_key":"sk-ant-api03-theirs"}', "/auth/refresh": "{}",
    [`/api/accounts/${account}/wake`]: "{}",
  };
  for (const [path, body] of Object.entries(posts)) {
    const url = target + path, credentials = "include";
    await tried(`simple ${path}`, () => fetch(url, { method: "POST", body, credentials }));
    await tried(`json ${path}`, () => fetch(url, { method: "POST", body, credentials, headers: json }));
    await tried(`no-cors ${path}`, () => fetch(url, { method: "POST", body, credentials, mode: "no-cors" }));
    const blob = { method: "POST", body: new Blob([body]), credentials, mode: "no-cors" };
    await tried(`blob ${path}`, () => fetch(url, blob));
    navigator.sendBeacon(url, body);
    navigator.sendBeacon(url, new Blob([body], { type: "text/plain" }));
  }
  const one = `${target}/api/accounts/${account}`;
  await tried("delete", () => fetch(one, { method: "DELETE", credentials: "include" }));
  const rename = { method: "PATCH", headers: json, body: '{"name":"theirs"}', credentials: "include" };
  await tried("patch", () => fetch(one, rename));
  const gets = ["/", "/auth/login", "/api/accounts", "/api/requests", "/auth/status", "/health", "/auth/logout"];
  for (const path of gets) {
    await tried(`get ${path}`, () => fetch(target + path, { credentials: "include" }));
    await tried(`get no-cors ${path}`, () => fetch(target + path, { credentials: "include", mode: "no-cors" }));
    await new Promise((done) => {
      const image = Object.assign(new Image(), { onload: done, onerror: done });
      image.src = target + path;
    });
  }
  return seen;
}"""

FORM = """({ target, path }) => {
  const form = Object.assign(document.createElement("form"), {
    method: "POST", action: target + path, enctype: "text/plain", target: "_blank",
  });
  form.append(Object.assign(document.createElement("input"), { name: '{"understood":true,"x":"', value: '"}' }));
  document.body.append(form);
  form.submit();
}"""


@asynccontextmanager
async def foreign_site():
    """Somebody else's page on this very machine: another port of localhost, so of the same site as ours."""
    app = web.Application()

    async def blank(request):
        return web.Response(text="<body><h1>Cute cats</h1>", content_type="text/html")

    app.router.add_get("/", blank)
    bound = socket.create_server(("127.0.0.1", 0))
    runner = await serve(app, bound)
    try:
        yield bound.getsockname()[1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "rebound.example"])
async def test_a_foreign_page_in_the_owners_browser_reads_and_changes_nothing(tavern, person, data_dir, name):
    account = await tavern.accounts.add_api_key(KEY, "Mine")
    await person.open("/auth/login")  # the owner is signed in in this very browser
    before = (tavern.accounts.all(), repr(vars(tavern.owner)))
    async with foreign_site() as port:
        page = await person.context.new_page()
        await page.goto(f"http://{name}:{port}/")
        seen = await page.evaluate(ATTACK, {"target": tavern.url, "account": account.id})
        assert len(seen) == 9 * 4 + 2 + 7 * 2
        assert {kind for _, kind, _ in seen} <= {"failed", "opaque"}
        for path in ("/v1/messages", "/auth/start", "/auth/logout", "/api/login-link", "/auth/api-key"):
            async with person.context.expect_page() as opened:
                await page.evaluate(FORM, {"target": tavern.url, "path": path})
            answer = await opened.value
            await answer.wait_for_load_state()
            assert json.loads(await answer.locator("body").inner_text())["error"]["type"] == "permission_error"
    assert (tavern.accounts.all(), repr(vars(tavern.owner))) == before
    assert not (data_dir / "signin.json").exists()
    assert tavern.chats == []
    assert tavern.checked == []
    assert tavern.claude.exchanges == 0
    person.troubles = []  # a browser tells of every refusal it enforces


async def test_a_foreign_page_cannot_frame_ours(tavern, person):
    await person.open("/auth/login")
    async with foreign_site() as port:
        page = await person.context.new_page()
        await page.goto(f"http://localhost:{port}/")
        await page.evaluate(
            """url => new Promise(done => {
                const frame = Object.assign(document.createElement("iframe"), { src: url, onload: done });
                document.body.append(frame);
            })""",
            f"{tavern.url}/auth/login",
        )
        assert "Who pays" not in await page.frames[1].evaluate("document.body.innerText")
    person.troubles = []


async def test_a_rebound_name_reaches_nothing(tavern, person):
    page = await person.context.new_page()
    answer = await page.goto(f"http://rebound.example:{tavern.port}/")
    assert answer.status == 403
    await expect(page.get_by_text("allowed_hosts")).to_be_visible()
    statuses = await page.evaluate(
        """async () => {
            const chat = { method: "POST", headers: { "content-type": "application/json" }, body: "{}" };
            const asks = [["/v1/messages", chat], ["/auth/status", {}], ["/health", {}], ["/api/accounts", {}]];
            return Promise.all(asks.map(async ([path, options]) => (await fetch(path, options)).status));
        }"""
    )
    assert statuses == [403, 403, 403, 403]
    assert tavern.chats == []


async def test_a_code_of_somebody_else_does_not_land_in_the_owners_callback(tmp_path):
    """Login CSRF: the attacker began a sign-in of their own, and sends the owner's browser to its end."""
    async with (
        running(tmp_path / "data", lands_here=True) as tavern,
        browsing(tavern) as person,
        foreign_site() as port,
    ):
        await person.open("/auth/login")
        theirs = tavern.claude.code("their challenge")
        attempt = tavern.signin.start("their browser")
        for state in (attempt.state, "made-up"):
            page = await person.context.new_page()
            await page.goto(f"http://localhost:{port}/")
            await page.evaluate("url => { location = url }", f"{tavern.url}/auth/callback?code={theirs}&state={state}")
            await expect(page.get_by_role("heading", name="The sign-in did not work out")).to_be_visible()
        assert tavern.claude.exchanges == 0
        assert tavern.accounts.all() == ()


async def test_the_link_works_when_it_is_followed_from_another_site(tavern, person):
    """The browser withholds a strict cookie on whatever another site leads to; the page moves on by itself instead."""
    async with foreign_site() as port:
        page = await person.context.new_page()
        await page.goto(f"http://127.0.0.1:{port}/")
        await page.evaluate("url => { location = url }", tavern.link())
        await page.wait_for_url("**/auth/login")
        await expect(page.get_by_role("heading", name="Who pays for the chats?")).to_be_visible()
