"""The dashboard before the whole program, in a real Chromium: used, looked at, and attacked by names."""

import time
from random import Random

import pytest
from playwright.async_api import expect

from server.cache_helps import CacheHelps
from server.cache_why import CacheStory
from server.chats import Chat
from server.config import Config
from server.pages import books as book_pages
from server.pages import page as page_room
from server.receipt import Receipt
from tests.browsing import HARD_TO_HEAR, NEEDED, TOO_PALE, browsing, looks_right, tab_to
from tests.fakes import error, fake_anthropic, plain
from tests.running import running

pytestmark = NEEDED

HOSTILE = "<img src=x onerror=fired()><script>fired()</script>'\"></p>"
STORY = [
    {"role": "user", "content": "Evening, Tamsin! Is the kettle on?"},
    {"role": "assistant", "content": "It always is. Sit down by the window."},
    {"role": "user", "content": "Which lamp is next?"},
]


def meaning_of(setting):
    return Config.__dataclass_fields__[setting].metadata["meaning"]


class Tavern:
    """A running program as a person's browser needs it."""

    def __init__(self, proxy, upstream):
        self.proxy, self.upstream = proxy, upstream
        self.url = f"http://localhost:{proxy.port}"

    @property
    def presets(self):
        return self.proxy.parts.app[page_room.PERSONAS]

    @property
    def config_txt(self):
        return self.proxy.parts.app[page_room.PLACES][0]

    def link(self):
        return f"{self.url}/auth/login?token={self.proxy.parts.owner.new_link_token()}"


@pytest.fixture
def settings():
    return {"keep_bodies_in_memory": 5}


@pytest.fixture
async def tavern(tmp_path, settings):
    async with fake_anthropic() as upstream, running(tmp_path, upstream.url, **settings) as proxy:
        yield Tavern(proxy, upstream)


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


async def test_a_persona_is_written_by_keyboard_changed_and_deleted(tavern, person, pictures):
    page = await person.open("/personas")
    await expect(page.get_by_text("There is no persona yet.")).to_be_visible()
    await tab_to(page, "a[href='/new-persona']")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/new-persona")
    await tab_to(page, "#file")
    await page.keyboard.type("tamsin")
    await page.keyboard.press("Enter")
    await expect(page.locator("#result")).to_contain_text("needs a “system” text")
    await page.get_by_label("Name", exact=True).fill("Tamsin")
    await page.get_by_label("Description, for this page").fill("Keeps the lamps of the harbour.")
    await page.get_by_label("Who it is").fill("You are Tamsin.\n\nYou keep the lamps.")
    await page.get_by_text("More", exact=True).last.click()
    await page.get_by_label("Settings, where the front end sends none (JSON)").fill('{"temperature": ')
    await page.get_by_role("button", name="Save").click()
    await expect(page.locator("#result")).to_contain_text("The settings are not JSON")
    await page.get_by_label("Settings, where the front end sends none (JSON)").fill('{"temperature": 0.9}')
    await page.get_by_text("Prompt cache", exact=True).click()
    await page.get_by_label("Late lore").select_option("on")
    await page.get_by_label("Keep-alive pings").fill("3")
    await page.get_by_role("button", name="Save").click()
    await page.wait_for_url("**/personas/tamsin")
    await expect(page.get_by_label("Late lore")).to_have_value("true")
    await expect(page.get_by_label("Late lore")).to_have_accessible_description(meaning_of("cache_late_lore"))
    await expect(page.get_by_label("Steady window")).to_have_value("")
    await expect(page.get_by_label("Who it is")).to_have_value("You are Tamsin.\n\nYou keep the lamps.")
    await looks_right(page, page.url, pictures, "persona")
    await page.get_by_label("Name", exact=True).fill("Tamsin of the lamps")
    await page.get_by_role("button", name="Save").click()
    await expect(page.locator("#result")).to_contain_text("Saved: Tamsin of the lamps.")
    (persona,) = tavern.presets.all()
    assert (persona.title, persona.settings) == ("Tamsin of the lamps", {"temperature": 0.9})
    assert persona.helps == CacheHelps(cache_late_lore=True, cache_keepalive_pings=3)
    (tavern.presets.path("brindle")).write_text('{"system": ')
    await looks_right(page, f"{tavern.url}/personas", pictures, "personas")
    await page.get_by_role("link", name="Mend presets/brindle.json").click()
    await page.get_by_label("The file's text").fill('{"system": "A badger."}')
    await page.get_by_role("button", name="Save").click()
    await page.get_by_role("button", name="Delete").click()
    await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await page.wait_for_url("**/personas")
    assert [persona.name for persona in tavern.presets.all()] == ["tamsin"]


async def test_a_setting_is_changed_by_keyboard_and_asks_for_a_restart(tavern, person, pictures):
    page = await person.open("/settings")
    await page.locator("#cache_planner").focus()
    await page.keyboard.type("false")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Save")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("Start the proxy again")).to_be_visible()
    await expect(page.locator("#cache_planner")).to_be_focused()
    await expect(page.get_by_text("Saved.")).to_be_visible()
    assert tavern.config_txt.read_text() == "cache_planner=false\n"
    await page.locator("#keep_bodies_in_memory").fill("1000")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_text("must be between 0 and 100")).to_be_visible()
    await looks_right(page, f"{tavern.url}/settings", pictures, "settings")
    await page.get_by_role("button", name="Back to true").click()
    await expect(page.get_by_role("button", name="Back to true")).to_have_count(0)
    assert tavern.config_txt.read_text() == "cache_planner=true\n"


async def test_the_doctor_says_what_it_finds(tavern, person, pictures):
    page = await person.open("/doctor")
    await expect(page.locator("#findings")).to_contain_text("Nobody is signed in yet")
    await expect(page.locator("#result")).not_to_have_text("One moment…")
    await looks_right(page, f"{tavern.url}/doctor", pictures, "doctor", until="#findings li")


async def test_a_screen_reader_finds_its_way_on_every_page(tavern, person):
    accounts = tavern.proxy.parts.accounts
    for name in ("First", "Second"):
        account = await accounts.add_api_key(f"sk-ant-api03-an-account-of-the-tests-{name}", name)
        accounts.rest(account.id, time.time() + 3600, "The limit is reached.")
        await tavern.proxy.owner("POST", "/api/keys", json={"name": name, "own": True, "limits": LIMITS})
    await a_month(tavern)
    await tavern.proxy.ask(messages=STORY, temperature=1.0)
    for name in ("tamsin", "brindle"):
        tavern.presets.path(name).write_text('{"system": "You are somebody."}')
    tavern.config_txt.write_text("cache_planner=false\nlog_level=DEBUG\n")
    rooms = ["/", "/requests", "/spending", "/chats", "/accounts", "/keys", "/personas", "/settings", "/doctor"]
    request = (await tavern.proxy.receipts())[0]["id"]
    found, page = {}, None
    for path in (
        *rooms,
        f"/requests/{request}",
        "/requests/gone",
        "/personas/tamsin",
        "/new-persona",
        "/auth/login",
        "/me",
    ):
        page = await person.open(path, page)
        await page.evaluate("document.querySelectorAll('main details').forEach(part => (part.open = true))")
        found[path] = await page.evaluate(HARD_TO_HEAR) + await page.evaluate(TOO_PALE)
    assert {path: problems for path, problems in found.items() if problems} == {}


async def test_more_opens_by_keyboard_and_closes_with_escape_and_outside(tavern, person):
    page = await person.open("/")
    await tab_to(page, "summary")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("link", name="Doctor")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("link", name="Doctor")).to_be_hidden()
    assert await page.evaluate("document.activeElement.matches('summary')")
    await page.keyboard.press("Enter")
    await page.get_by_role("heading", level=1).click()
    await expect(page.get_by_role("link", name="Doctor")).to_be_hidden()
    await page.get_by_text("More", exact=True).click()
    await page.get_by_role("link", name="Settings").click()
    await expect(page.locator("summary[aria-current]")).to_have_text("Settings")


async def a_month(tavern):
    """A month of play in the books."""
    now, random = time.time(), Random(7)
    books = tavern.proxy.parts.app[book_pages.BOOKS]
    accounts = [("acc_1", "My Console key"), ("acc_2", "Other tavern")]
    for day in range(28):
        for turn in range(random.randint(0, 12)):
            new = random.random() < 0.2
            receipt = Receipt(
                at=now - day * 86400 - turn * 300,
                model=random.choice(["claude-sonnet-5", "claude-sonnet-5", "claude-haiku-4-5"]),
                persona=random.choice(["", "", "tamsin"]),
                key=random.choice(["", "Robin's tablet"]),
                status=200,
                ended="whole",
            )
            receipt.account_id, receipt.account = random.choice(accounts)
            receipt.key_id = "key_1" if receipt.key else ""
            receipt.usage = {
                "input_tokens": 400,
                "cache_creation_input_tokens": 21_000 if new else 900,
                "cache_read_input_tokens": 0 if new else 20_000,
                "output_tokens": 420,
            }
            receipt.cache = CacheStory("miss" if new else "hit")
            receipt.chat = f"chat_{day % 4}"
            books.add(receipt, Chat(receipt.chat, "", now - 28 * 86400 - 60 * (day % 4), receipt.at, ()))
    await books.usage(0, 1e11, "day")  # everything added before is in this answer


async def test_spending_is_seen_by_day_and_by_who(tavern, person, pictures):
    await a_month(tavern)
    page = await person.open("/spending")
    await expect(page.locator(".plot:visible")).to_have_count(1)
    await expect(page.get_by_role("heading", name="By model")).to_be_visible()
    await page.get_by_text("The same as a table").click()
    assert await page.locator(".rows tbody tr").count() > 10
    await page.get_by_role("link", name="7 days").click()
    await expect(page.locator(".periods [aria-current]")).to_have_text("7 days")
    await looks_right(page, f"{tavern.url}/spending", pictures, "spending")
    await expect(page.locator(".plot:visible")).to_have_count(1)
    async with page.expect_download() as download:
        await page.get_by_role("link", name="CSV").click()
    assert (await download.value).suggested_filename == "usage.csv"


async def test_a_chat_is_named_by_keyboard_and_its_name_is_text(tavern, person, pictures):
    await a_month(tavern)
    page = await person.open("/chats")
    await expect(page.locator(".chat")).to_have_count(4)
    await tab_to(page, "button[data-do=name]")
    await page.keyboard.press("Enter")
    await page.keyboard.type("The third window")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="The third window")).to_be_visible()
    assert await page.evaluate("document.activeElement.matches('button[data-do=name]')")
    await expect(page.locator("[aria-labelledby=by-persona] li")).to_have_count(2)
    await expect(page.get_by_role("list", name="By persona")).to_have_count(4)
    await looks_right(page, f"{tavern.url}/chats", pictures, "chats")
    await page.get_by_role("button", name="Name it: The third window").click()
    await page.get_by_role("dialog").get_by_role("textbox").fill(HOSTILE[:80])
    await page.keyboard.press("Enter")
    await expect(page.locator(".chat h2").filter(has_text="<img src=x")).to_be_visible()
    assert await page.evaluate("document.images.length") == await page.locator("img[src^='/static/']").count()


LIMITS = {"usd_per_day": 2.0, "usd_per_month": 20.0, "tokens_per_day": 200_000, "requests_per_minute": 30}


async def test_a_key_gets_limits_when_it_is_made_and_later_others(tavern, person, pictures):
    page = await person.open("/keys")
    await page.get_by_label("Who or what is it for?").fill("Robin's tablet")
    form = page.locator("#make")
    await form.get_by_text("Limits", exact=True).click()
    await form.get_by_label("Dollars a day").fill("1.50")
    await form.get_by_label("Models, separated by commas").fill("claude-sonnet-5, claude-haiku-4-5")
    await page.get_by_role("button", name="Make the key").click()
    await expect(page.locator("#made-key")).to_contain_text("tavern-")
    card = page.locator(".key")
    await expect(card).to_contain_text("of $1.50")
    await expect(card).to_contain_text("claude-sonnet-5, claude-haiku-4-5")
    await card.get_by_text("Limits", exact=True).click()
    await card.get_by_label("Dollars a day").fill("")
    await card.get_by_label("Tokens a day").fill("1.5")
    await card.get_by_label("Tokens a day").evaluate(
        "field => (field.step = 'any')"
    )  # as no browser of ours would send
    await card.get_by_role("button", name="Save").click()
    await expect(page.locator("#result")).to_contain_text("must be a whole number")
    await card.get_by_label("Tokens a day").fill("200000")
    await card.get_by_role("button", name="Save").click()
    await expect(page.locator("#result")).to_have_text("Saved.")
    await expect(card).to_contain_text("of 200,000")
    (row,) = (await tavern.proxy.owner("GET", "/api/keys")).json["keys"]
    assert row["limits"] == {**dict.fromkeys(LIMITS), "tokens_per_day": 200_000}
    assert row["models"] == ["claude-sonnet-5", "claude-haiku-4-5"]
    await tavern.proxy.owner("PATCH", f"/api/keys/{row['id']}", json={"limits": LIMITS})
    await looks_right(page, f"{tavern.url}/keys", pictures, "keys-with-limits")


async def test_a_keys_cache_helps_are_chosen_by_keyboard_when_it_is_made_and_later(tavern, person, pictures):
    page = await person.open("/keys")
    await page.get_by_label("Who or what is it for?").fill("Robin's tablet")
    form = page.locator("#make")
    await form.get_by_text("Prompt cache", exact=True).focus()
    await page.keyboard.press("Enter")
    await expect(form.get_by_text(meaning_of("cache_steady_window"))).to_be_visible()
    await tab_to(page, "#new-cache_steady_window", presses=2)
    await page.keyboard.type("on")
    await looks_right(page, page.url, pictures, "keys-empty")
    await page.get_by_label("Who or what is it for?").fill("Robin's tablet")
    await form.get_by_text("Prompt cache", exact=True).click()
    await form.get_by_label("Steady window").select_option("on")
    await page.get_by_role("button", name="Make the key").click()
    card = page.locator(".key")
    await card.get_by_text("Prompt cache", exact=True).click()
    await expect(card.get_by_label("Steady window")).to_have_value("true")
    await expect(card.get_by_label("Late lore")).to_have_value("")
    await card.get_by_label("Steady window").select_option("")
    await card.get_by_label("Keep-alive pings").fill("0")
    await card.get_by_role("button", name="Save").last.click()
    await expect(page.locator("#result")).to_have_text("Saved.")
    assert await page.evaluate("document.activeElement.matches('summary')")
    (row,) = (await tavern.proxy.owner("GET", "/api/keys")).json["keys"]
    assert row["helps"] == {"cache_late_lore": None, "cache_steady_window": None, "cache_keepalive_pings": 0}


async def test_a_holder_opens_their_page_with_the_key_alone(tavern, pictures):
    await tavern.proxy.parts.accounts.add_api_key("sk-ant-api03-an-account-of-the-tests", "Shared")
    made = await tavern.proxy.owner("POST", "/api/keys", json={"name": HOSTILE[:80], "limits": LIMITS})
    key = made.json["key"]
    await tavern.proxy.ask(headers={"x-api-key": key})
    async with browsing(tavern) as holder:  # no cookie of the owner's
        page = await holder.context.new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{tavern.url}/me")
        await looks_right(page, f"{tavern.url}/me", pictures, "me-before")
        await tab_to(page, "#key")
        await page.keyboard.type("tavern-wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("#result")).to_contain_text("no key of this proxy")
        await page.get_by_label("Client key").fill(key)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE[:80])
        await expect(page.get_by_role("list", name="Limits")).to_contain_text("of $2.00")
        assert await page.evaluate("document.activeElement.id") == "me"
        assert await page.evaluate("document.documentElement.scrollWidth") <= 1000
        for width in (375, 1000):
            await page.set_viewport_size({"width": width, "height": 800})
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            assert await page.evaluate(TOO_PALE) == []
            await page.screenshot(path=pictures / f"me-dark-{width}.png", full_page=True)
        assert not any(key in url for url in asked)
        assert key not in await page.content()
        assert await page.evaluate("localStorage.length + sessionStorage.length") == 0
        await page.goto(f"{tavern.url}/keys")
        await expect(page.get_by_role("heading", name="This room is for the owner")).to_be_visible()


async def test_the_limits_an_account_tells_are_drawn(tavern, person, pictures):
    await tavern.proxy.parts.accounts.add_api_key("sk-ant-api03-an-account-of-the-tests", "My plan")
    reset = str(int(time.time()) + 3600)
    told = {"unified-5h-utilization": "0.42", "unified-5h-reset": reset, "unified-7d-utilization": "0.97"}
    told |= {"unified-7d-reset": reset}
    tavern.upstream.will(plain(**{f"anthropic-ratelimit-{name}": value for name, value in told.items()}))
    await tavern.proxy.ask(headers={})
    page = await person.open("/accounts")
    await expect(page.locator(".gauges li")).to_have_count(2)
    await expect(page.locator(".gauges")).to_contain_text("5-hour limit")
    await expect(page.locator(".gauges")).to_contain_text("42 % used")
    await expect(page.get_by_text("nearly used up")).to_be_visible()
    await looks_right(page, f"{tavern.url}/accounts", pictures, "accounts-with-limits")
