"""How the pages look: on a phone and at a desk, by day and by night; with names for whoever cannot see them."""

import time

import pytest
from playwright.async_api import expect

from server.pages import page as page_room
from tests.browsing import NEEDED, begin_sign_in, browsing, looks_right
from tests.pages_app import KEY, TURNS, ant_profile, claude_code_login, running

pytestmark = NEEDED


async def scene_first_visit(tavern):
    return "/auth/login"


async def scene_keys(tavern):
    tavern.keys.make("Robin's tablet")
    tavern.keys.make("A key with quite a long name, as people give them at times", own=True)
    return "/keys"


async def scene_requests(tavern):
    tavern.receipts = [{**row, "id": f"req_{i}"} for i, row in enumerate(TURNS * 4)]
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
    await begin_sign_in(person, page)
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
