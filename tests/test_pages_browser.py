"""The pages in a real Chromium: every way through them, by keyboard, and what can go wrong on it."""

import re
import time
from contextlib import AsyncExitStack

from playwright.async_api import expect

from tests.browsing import NEEDED, begin_sign_in, browsing, tab_to
from tests.pages_app import KEY, TURNS, ant_profile, claude_code_login, running

HOSTILE = "<img src=x onerror=fired()><script>fired()</script>'\"></p>"

pytestmark = NEEDED


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


async def test_a_wrong_code_can_be_followed_by_the_right_one_of_a_new_start(tavern, person):
    page = await person.open("/auth/login")
    code = await begin_sign_in(person, page)
    await page.get_by_role("button", name="Finish").click()
    await expect(page.locator("#sub-result")).to_have_text("The code is missing. Paste what Claude's page shows.")
    await page.get_by_label("Code", exact=True).fill(f"wrong#{code.partition('#')[2]}")
    await page.get_by_role("button", name="Finish").click()
    await expect(page.locator("#sub-result")).to_contain_text("Start the sign-in again")
    await page.get_by_role("button", name="Start over").click()
    await expect(page.get_by_label("Code", exact=True)).to_be_hidden()
    await expect(page.get_by_role("button", name="Sign in with Claude")).to_be_focused()
    code = await begin_sign_in(person, page)
    await page.get_by_label("Code", exact=True).fill(code)
    await page.get_by_role("button", name="Finish").click()
    await expect(page.get_by_role("status").filter(has_text="rowan@example.org")).to_be_visible()


async def test_a_bare_code_is_enough_in_the_page_that_began(tavern, person):
    page = await person.open("/auth/login")
    code = await begin_sign_in(person, page)
    await page.get_by_label("Code", exact=True).fill(code.partition("#")[0])
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status").filter(has_text="rowan@example.org")).to_be_visible()


async def test_a_restart_and_a_reload_in_the_middle_lose_nothing(tmp_path):
    async with AsyncExitStack() as first:
        tavern = await first.enter_async_context(running(tmp_path / "data"))
        async with browsing(tavern) as person:
            page = await person.open("/auth/login")
            code = await begin_sign_in(person, page)
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
    code = await begin_sign_in(person, page)
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
    code = await begin_sign_in(person, page)
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
