"""The dashboard before the whole program, in a real Chromium: used, looked at, and attacked by names."""

import pytest
from playwright.async_api import expect

from tests.browsing import NEEDED, browsing, looks_right, picture_folder
from tests.fakes import error, fake_anthropic
from tests.running import running

pytestmark = NEEDED

HOSTILE = "<img src=x onerror=fired()><script>fired()</script>'\"></p>"
STORY = [
    {"role": "user", "content": "Evening, Tamsin! Is the kettle on?"},
    {"role": "assistant", "content": "It always is. Sit down by the window."},
    {"role": "user", "content": "Which lamp is next?"},
]


class Tavern:
    """A running program as a person's browser needs it."""

    def __init__(self, proxy, upstream):
        self.proxy, self.upstream = proxy, upstream
        self.url = f"http://localhost:{proxy.port}"

    def link(self):
        return f"{self.url}/auth/login?token={self.proxy.parts.owner.new_link_token()}"


@pytest.fixture
def settings():
    return {"keep_bodies_in_memory": 5}


@pytest.fixture
async def tavern(tmp_path, settings):
    async with fake_anthropic() as upstream, running(tmp_path, upstream.url, **settings) as proxy:
        yield Tavern(proxy, upstream)


@pytest.fixture
async def person(tavern):
    async with browsing(tavern) as person:
        yield person


@pytest.fixture
def pictures(tmp_path):
    return picture_folder(tmp_path)


async def test_a_request_is_opened_from_the_list_by_keyboard_and_looks_right(tavern, person, pictures):
    await tavern.proxy.ask(messages=STORY, temperature=1.0, top_p=0.9, system="You are Tamsin, who keeps the lamps.")
    page = await person.open("/requests")
    await page.locator(".turns a").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("A request")
    await expect(page.locator(".diff del")).to_contain_text("temperature")
    await expect(page.get_by_role("img", name="48 % read, 22 % written, 30 % plain")).to_be_visible()
    await page.get_by_text("As it was sent", exact=True).click()
    await expect(page.locator("pre").last).to_contain_text("Which lamp is next?")
    await looks_right(page, page.url, pictures, "request")
    assert person.asked == {tavern.url}


async def test_the_list_is_live_and_keeps_the_focus(tavern, person):
    await tavern.proxy.ask()
    page = await person.open("/requests")
    await page.locator(".turns a").focus()
    focused = await page.evaluate("document.activeElement.id")
    tavern.upstream.will(error(404, "not_found_error", HOSTILE))
    await tavern.proxy.ask()
    await expect(page.locator(".turns tbody tr")).to_have_count(2)
    await expect(page.locator(".turns tbody tr").first).to_contain_text("error 404")
    assert await page.evaluate("document.activeElement.id") == focused


async def test_nothing_in_a_hostile_request_is_run(tavern, person):
    fired = []
    await person.context.expose_function("fired", lambda: fired.append(1))
    tavern.upstream.will(error(400, "invalid_request_error", HOSTILE))
    await tavern.proxy.ask(model=HOSTILE, messages=[{"role": "user", "content": HOSTILE}], system=HOSTILE)
    page = await person.open("/requests")
    await expect(page.locator(".turns")).to_contain_text("<img src=x")
    await page.locator(".turns a").click()
    await page.get_by_text("As it came", exact=True).click()
    await expect(page.locator("pre").first).to_contain_text("<script>fired()")
    assert fired == []
