"""The pages in a real Chromium: every state, by keyboard, on a phone, in the dark; and what foreign pages try."""

import json
import os
import re
import shutil
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from playwright.async_api import async_playwright, expect

from server.pages import page as page_room
from server.presets import Persona
from tests.pages_app import KEY, ant_profile, claude_code_login, running, serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP rebound.example 127.0.0.1"]
HOSTILE = "<img src=x onerror=fired()><script>fired()</script>'\"></p>"
FAR = 4102444800  # 2100-01-01

expect.set_options(timeout=15_000)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture
def pictures(tmp_path):
    """Where the screenshots go: $TAVERN_PICTURES, or the test's own folder."""
    folder = Path(os.environ.get("TAVERN_PICTURES") or tmp_path / "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Person:
    """Somebody in front of a browser: opens pages, presses keys. What goes wrong in a page is kept in `troubles`."""

    def __init__(self, context, tavern):
        self.context = context
        self.tavern = tavern
        self.troubles = []
        self.asked = set()  # origins
        context.on("page", self.watch)
        context.on("request", lambda request: self.asked.add(re.sub(r"(://[^/]+).*", r"\1", request.url)))

    def watch(self, page):
        page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        page.on("console", self.heard)
        page.on("dialog", lambda dialog: self.troubles.append(f"dialog: {dialog.message}"))

    def heard(self, message):
        refused_on_purpose = message.text.startswith("Failed to load resource: the server responded with a status of")
        if message.type in ("error", "warning") and not refused_on_purpose:
            self.troubles.append(f"{message.type}: {message.text}")

    async def open(self, path="", page=None):
        """The page at a path of ours, as the owner."""
        page = page or await self.context.new_page()
        if not await self.context.cookies(self.tavern.url):
            await page.goto(self.tavern.link())
            await page.wait_for_url(re.compile(r"/(auth/login)?$"))
        await page.goto(self.tavern.url + path)
        return page


@asynccontextmanager
async def browsing(tavern, **options):
    """A person with a fresh browser; whatever went wrong in a page fails the test at the end."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        context = await browser.new_context(**{"viewport": {"width": 1000, "height": 800}, **options})
        context.set_default_timeout(10_000)
        person = Person(context, tavern)
        try:
            yield person
        finally:
            await browser.close()
    assert person.troubles == []


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


async def tab_to(page, selector, presses=30):
    """Press Tab until the focus is there."""
    for _ in range(presses):
        await page.keyboard.press("Tab")
        if await page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached with the Tab key")


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
    tavern.key_check = "refused: invalid x-api-key"
    await page.get_by_label("API key", exact=True).fill(KEY)
    await page.get_by_role("button", name="Use this key").click()
    await expect(page.locator("#key-result")).to_contain_text("invalid x-api-key")
    await expect(page.get_by_label("API key", exact=True)).to_have_value(KEY)
    await expect(page.get_by_role("button", name="Use this key")).to_be_enabled()
    tavern.key_check = "unknown: no answer within 8 s"
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


async def test_accounts_are_renewed_woken_switched_on_and_removed(tavern, person):
    first = await tavern.accounts.add_api_key(KEY, "First")
    second = await tavern.accounts.add_api_key(KEY + "x", "Second")
    tavern.accounts.rest(first.id, FAR, "The spend limit is reached.")
    await tavern.accounts.update(second.id, enabled=False)
    page = await person.open("/auth/login")
    card = page.locator(".account").filter(has_text="First")
    await expect(card).to_contain_text("resting")
    await expect(card.locator("time")).to_contain_text("2100")
    await card.get_by_role("button", name="Try again now").click()
    await expect(card).to_contain_text("ready")
    await page.get_by_role("button", name="Switch on").click()
    await expect(page.locator(".account.ready")).to_have_count(2)

    await card.get_by_role("button", name="Remove").click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert len(tavern.accounts.all()) == 2
    await card.get_by_role("button", name="Remove").click()
    await expect(page.get_by_role("dialog")).to_contain_text("Remove “First”")
    await page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    await expect(page.locator(".account")).to_have_count(1)

    await tavern.accounts.add_api_key(KEY, "Third")
    await page.reload()
    await page.get_by_role("button", name="Sign out everywhere").click()
    await page.get_by_role("dialog").get_by_role("button", name="Sign out everywhere").click()
    await expect(page.get_by_role("heading", name="Who pays for the chats?")).to_be_visible()
    assert tavern.accounts.all() == ()


async def test_a_renewal_that_fails_tells_why(tavern, person):
    page = await person.open("/auth/login")
    code = await begin(person, page)
    await page.get_by_label("Code", exact=True).fill(code)
    await page.get_by_role("button", name="Finish").click()
    await expect(page.locator(".account.ready")).to_be_visible()
    tavern.claude.answer = (503, "{}")
    await page.get_by_role("button", name="Renew now").click()
    await expect(page.locator(".account .result")).to_contain_text("could not be renewed")
    await page.reload()
    await expect(page.locator(".account")).to_contain_text("Last renewal failed:")


# The start page


async def test_the_start_page_is_live(tavern, person):
    await tavern.accounts.add_api_key(KEY, "First")
    page = await person.open("/")
    await expect(page.get_by_text("No turn yet.")).to_be_visible()
    tavern.receipts = TURNS[:1]
    row = page.locator("#turn-rows tr")
    await expect(row).to_contain_text("claude-sonnet-5")
    await expect(row).to_contain_text("19,450 in")
    await expect(row).to_contain_text("1.3 ¢")
    await expect(row).to_contain_text("4.9 ¢ saved")
    tavern.receipts = TURNS
    await expect(row).to_have_count(4)
    await expect(row.nth(1)).to_contain_text("lampwright")
    await expect(row.nth(2)).to_contain_text("error 529")
    await expect(row.nth(2)).to_contain_text("unknown")
    await expect(row.nth(3)).to_contain_text("stopped")
    await tavern.accounts.remove(tavern.accounts.all()[0].id)
    await expect(page.get_by_role("heading", name="Almost open")).to_be_visible()


async def test_what_to_type_is_copied_with_a_click(tavern):
    async with browsing(tavern, permissions=["clipboard-read", "clipboard-write"]) as person:
        page = await person.open("/")
        address = f"{tavern.url}/v1"
        await page.get_by_role("button", name=f"Copy: {address}", exact=True).click()
        await expect(page.get_by_role("button", name=f"Copy: {address}", exact=True)).to_have_text("Copied")
        assert await page.evaluate("navigator.clipboard.readText()") == address
        await page.get_by_role("button", name=f"Copy: {address}/brindle").click()
        assert await page.evaluate("navigator.clipboard.readText()") == f"{address}/brindle"


# How it looks


async def scene_first_visit(tavern):
    return "/auth/login"


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


SCENES = [scene_first_visit, scene_accounts, scene_ready, scene_nobody, scene_resting]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__.removeprefix("scene_"))
async def test_every_page_fits_a_phone_and_a_desk_by_day_and_by_night(tmp_path, pictures, scene):
    environ = claude_code_login(tmp_path / "claude") | ant_profile(tmp_path / "ant", "default")
    async with running(tmp_path / "data", environ=environ) as tavern, browsing(tavern) as person:
        path = await scene(tavern)
        page = await person.open(path)
        for width in (375, 1000):
            await page.set_viewport_size({"width": width, "height": 800})
            for scheme in ("light", "dark"):
                await page.emulate_media(color_scheme=scheme)
                await page.goto(tavern.url + path)
                if tavern.receipts:
                    await expect(page.locator("#turn-rows tr")).to_have_count(len(tavern.receipts))
                assert await page.evaluate("document.documentElement.scrollWidth") <= width
                assert await page.evaluate(TOO_PALE) == []
                name = f"{scene.__name__.removeprefix('scene_')}-{scheme}-{width}.png"
                await page.screenshot(path=pictures / name, full_page=True)
        assert person.asked == {tavern.url}


# Every text's contrast with what is behind it, by WCAG 2.2 (1.4.3): those under 4.5, or under 3 when large.
TOO_PALE = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = parts(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const pale = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest("[data-words][hidden]")) continue;
    const style = getComputedStyle(node), a = light(parts(style.color)), b = light(behind(node));
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5)) pale.push(`${node.textContent.trim()}: ${contrast.toFixed(2)}`);
  }
  return pale;
}"""


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
    for path in ("/", "/auth/login"):
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
    await expect(page.locator("#turn-rows tr")).to_contain_text("<img src=x")
    await page.get_by_role("button", name=f"Copy: {HOSTILE}").click()

    page = await person.open("/auth/login", page)
    await begin(person, page)
    tavern.key_check = f"refused: {HOSTILE}"
    await page.get_by_label("API key", exact=True).fill(KEY)
    await page.get_by_role("button", name="Use this key").click()
    await expect(page.locator("#key-result")).to_contain_text("<script>fired()")
    await page.locator(".account").get_by_role("button", name="Remove").click()
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
