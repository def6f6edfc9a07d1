"""Hostile names and hostile pages, in the owner's own Chromium."""

import json
import socket
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from playwright.async_api import expect

from server.pages import page as page_room
from tests.browsing import NEEDED, begin_sign_in, browsing
from tests.pages_app import KEY, running, serve, turn

pytestmark = NEEDED

HOSTILE = "<img src=x onerror=fired()><script>fired()</script>'\"></p>"
FAR = time.time() + 300 * 86400


async def test_nothing_in_a_hostile_name_is_run(tavern, person):
    account = await tavern.accounts.add_api_key(KEY, HOSTILE)
    tavern.accounts.rest(account.id, FAR, HOSTILE)
    tavern.claude.who = HOSTILE
    tavern.warnings = [HOSTILE]
    tavern.personas.save("lampwright", json.dumps({"name": HOSTILE, "description": HOSTILE, "system": HOSTILE}))
    tavern.password = page_room.Password(needed=True, key=HOSTILE)
    tavern.receipts = [turn(model=HOSTILE, persona=HOSTILE, status=HOSTILE, cache={"outcome": HOSTILE}, ended=HOSTILE)]
    fired = []
    await person.context.expose_function("fired", lambda: fired.append(1))
    page = await person.open("/")
    await expect(page.locator(".turns tbody tr")).to_contain_text("<img src=x")
    await page.get_by_role("button", name=f"Copy: {HOSTILE}").click()

    page = await person.open("/auth/login", page)
    await begin_sign_in(person, page)
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
async def test_a_foreign_page_in_the_owners_browser_reads_and_changes_nothing(tavern, person, tmp_path, name):
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
    assert not (tmp_path / "data" / "signin.json").exists()
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
