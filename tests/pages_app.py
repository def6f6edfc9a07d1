"""The pages before real accounts, sign-ins and owner; and a stand-in for Claude's sign-in pages. All on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import aiohttp
from aiohttp import web

from server import guard, pages
from server.accounts import Accounts
from server.books import Books
from server.budget import Budgets
from server.claude_code import ClaudeCodeSettings
from server.clients import ClientKeys
from server.config import Config
from server.models import Models
from server.oauth import OAuthSettings
from server.owner import Owner
from server.pages import books, live, page
from server.pages import keys as key_pages
from server.presets import Personas
from server.signin import SignIn

HTML = {"Accept": "text/html"}
HOSTILE = "<img src=x onerror=alert(1)>'\"&{{ 7*7 }}"
KEY = "sk-ant-api03-a-key-of-the-tests-0001"
SHOWS_THE_CODE = "/shows-the-code"  # the redirect address at which Claude's page shows a code to copy
PERSONAS = {
    "lampwright": "Keeps the lighthouse, and every story a sailor left behind.",
    "brindle": "A badger who runs the bakery under the hill.",
}


class Claude:
    """The page that asks, and the endpoint that turns codes into tokens: each code once, with its verifier."""

    def __init__(self):
        self.url = ""
        self.who = "rowan@example.org"  # who signs in next; "" = the answer does not say
        self.answer = None  # (status, body) instead of tokens
        self.hold = None  # (reached, go_on): events around an exchange
        self.exchanges = 0
        self.codes = {}  # code → its challenge

    def code(self, challenge):
        code = secrets.token_urlsafe(16)
        self.codes[code] = challenge
        return code

    async def authorize(self, request):
        query = request.query
        code, state = self.code(query["code_challenge"]), query["state"]
        back = query["redirect_uri"]
        if back.endswith(SHOWS_THE_CODE):
            text = f"<h1>Claude</h1><p>Your code:</p><code id=code>{code}#{state}</code>"
        else:
            text = (
                f"<h1>Claude</h1><a id=allow href='{back}?code={code}&state={state}'>Allow</a> "
                f"<a id=deny href='{back}?error=access_denied&state={state}'>Deny</a>"
            )
        return web.Response(text=text, content_type="text/html")

    async def token(self, request):
        self.exchanges += 1
        body = await request.json()
        if self.hold:
            self.hold[0].set()
            await self.hold[1].wait()
        if self.answer:
            return web.Response(status=self.answer[0], text=self.answer[1], content_type="application/json")
        made = hashlib.sha256(body["code_verifier"].encode()).digest()
        challenge = self.codes.pop(body["code"], None)
        if challenge != base64.urlsafe_b64encode(made).rstrip(b"=").decode():
            return web.json_response({"error": "invalid_grant"}, status=400)
        who = {"account": {"uuid": self.who, "email_address": self.who}, "organization": {"uuid": "o"}}
        tokens = {
            "access_token": f"sk-ant-oat01-{secrets.token_hex(8)}",
            "refresh_token": f"sk-ant-ort01-{secrets.token_hex(8)}",
            "expires_in": 28800,
            "scope": "user:profile user:inference",
        }
        return web.json_response({**tokens, **(who if self.who else {})})


class Tavern:
    """A running app of the pages alone, and what a test may look at or change while it runs."""

    def __init__(self, port, claude):
        self.port = port
        self.claude = claude
        self.url = f"http://localhost:{port}"
        self.chats = []  # bodies that reached /v1/messages
        self.receipts = []
        self.on_the_road = []
        self.warnings = []
        self.password = page.Password()
        self.key_check = ("ok", "")
        self.checked = []

    @property
    def cookie(self):
        return {self.owner.cookie_name: self.owner.new_session()}

    @property
    def bearer(self):
        return {"Authorization": f"Bearer {self.owner.admin_token}"}

    def link(self):
        return f"{self.url}/auth/login?token={self.owner.new_link_token()}"

    async def check_key(self, base_url, key):
        self.checked.append((base_url, key))
        return self.key_check

    async def chat(self, request):
        self.chats.append(await request.text())
        return web.json_response({"type": "message"})

    def newest(self, limit):
        return self.receipts[:limit]

    def under_way(self, now):
        return self.on_the_road

    def find(self, request_id):
        return next((receipt for receipt in self.receipts if receipt["id"] == request_id), None)

    def show(self, receipts):
        """Let these be the receipts, and tell the open pages."""
        self.receipts = receipts
        self.news.changed()


class Browser:
    """A client with the owner's cookie, and what the tests ask of it."""

    def __init__(self, tavern, *, owner=True):
        self.tavern = tavern
        self.http = aiohttp.ClientSession(tavern.url, cookies=tavern.cookie if owner else None)
        self.cookies = self.http.cookie_jar

    async def __aenter__(self):
        return self

    async def __aexit__(self, *failed):
        await self.http.close()

    async def say(self, method, path, body=None, **options):
        """(status, JSON) of an answer."""
        async with self.http.request(method, path, json=body, allow_redirects=False, **options) as answer:
            return answer.status, await answer.json() if answer.status != 204 else None

    async def see(self, path, **options):
        """(status, text, headers) of a page."""
        async with self.http.get(path, headers=HTML, allow_redirects=False, **options) as answer:
            assert answer.content_type == "text/html"
            # the renderer writes even the harmless slash as an entity
            return answer.status, (await answer.text()).replace("&#x2f;", "/"), answer.headers

    async def start(self):
        """A new attempt: its state and its challenge, as Claude's page learns them."""
        status, attempt = await self.say("POST", "/auth/start", {"understood": True})
        assert status == 200
        query = parse_qs(urlsplit(attempt["authorize_url"]).query)
        assert query["state"] == [attempt["state"]]
        return attempt["state"], query["code_challenge"][0]

    async def sign_in(self):
        state, challenge = await self.start()
        return await self.say("POST", "/auth/submit", {"code": f"{self.tavern.claude.code(challenge)}#{state}"})


def message(answer):
    """The words of an error that `Browser.say` got."""
    return answer[1]["error"]["message"]


async def serve(app, bound):
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.SockSite(runner, bound).start()
    return runner


@asynccontextmanager
async def running(data_dir, *, port=0, lands_here=False, environ=None, claude=None, **config):
    """The pages on a port of their own; `lands_here`: Claude's page sends the browser back, and shows no code."""
    data_dir.mkdir(mode=0o700, exist_ok=True)
    claude = claude or Claude()
    other = socket.create_server(("127.0.0.1", 0))
    claude.url = f"http://127.0.0.1:{other.getsockname()[1]}"
    theirs = web.Application()
    theirs.add_routes([web.get("/authorize", claude.authorize), web.post("/token", claude.token)])

    bound = socket.create_server(("127.0.0.1", port))
    port = bound.getsockname()[1]
    tavern = Tavern(port, claude)
    redirect = f"{tavern.url}/auth/callback" if lands_here else claude.url + SHOWS_THE_CODE
    settings = OAuthSettings(
        f"{claude.url}/authorize", f"{claude.url}/token", redirect, "test-client", "user:inference"
    )
    config = replace(Config(data_dir=data_dir, oauth_redirect_uri=redirect), **config)
    environ = {"HOME": str(data_dir), "CLAUDE_CONFIG_DIR": str(data_dir / "no-claude-code"), **(environ or {})}
    environ.setdefault("ANTHROPIC_CONFIG_DIR", str(data_dir / "no-ant"))
    tavern.accounts = Accounts(
        data_dir,
        base_url="http://127.0.0.1:9",
        oauth=settings,
        claude_code=ClaudeCodeSettings(config.fallback_to_claude_code),
        environ=environ,
    )
    tavern.owner = Owner.at(data_dir, port)
    app = web.Application()
    guard.attach(app, guard.Rules.of(port), tavern.owner, page.refusal_page, lambda error: "req_turned_away")
    app[page.CONFIG] = config
    app[page.PORT] = port
    app[page.OWNER] = tavern.owner
    app[page.ACCOUNTS] = tavern.accounts
    app[page.SIGNIN] = tavern.signin = SignIn(data_dir, settings)
    app[page.CHECK_KEY] = tavern.check_key
    app[page.PASSWORD] = lambda: tavern.password
    (data_dir / "presets").mkdir(exist_ok=True)
    app[page.PERSONAS] = tavern.personas = Personas(data_dir / "presets")
    for name, description in PERSONAS.items():
        tavern.personas.save(name, json.dumps({"description": description, "system": f"You are {name}."}))
    app[page.PLACES] = (data_dir / "config.txt", data_dir / ".env", {})
    app[page.EXAMINE] = list
    app[page.WARNINGS] = lambda: tavern.warnings
    app[key_pages.KEYS] = tavern.keys = ClientKeys(data_dir)
    app[books.RECEIPTS] = tavern
    app[key_pages.BUDGETS] = tavern.budgets = Budgets(Models.load())
    app[books.BOOKS] = tavern.books = Books(data_dir / "state.sqlite", Models.load(), days=90)
    pages.attach(app)
    app.add_routes([web.post("/v1/messages", tavern.chat)])
    tavern.news = app[live.NEWS]

    tavern.finishing = app[page.FINISHING]
    await tavern.accounts.start()
    runners = [await serve(theirs, other), await serve(app, bound)]
    try:
        yield tavern
    finally:
        for runner in runners:
            await runner.cleanup()
        await tavern.accounts.close()
        tavern.keys.close()
        tavern.books.close()


def claude_code_login(folder):
    """Claude Code's stored login, as it lies on a machine."""
    folder.mkdir()
    login = {"accessToken": "sk-ant-oat01-theirs", "refreshToken": "sk-ant-ort01-theirs", "expiresAt": 4102444800000}
    scopes = {"scopes": ["user:inference"], "subscriptionType": "pro"}
    (folder / ".credentials.json").write_text(json.dumps({"claudeAiOauth": {**login, **scopes}}))
    return {"CLAUDE_CONFIG_DIR": str(folder)}


def ant_profile(folder, name="default"):
    """A profile of the `ant` command, signed in."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "credentials").mkdir(exist_ok=True)
    config = {"authentication": {"type": "user_oauth", "client_id": "c"}, "organization_id": "o", "workspace_id": "w"}
    (folder / "configs" / f"{name}.json").write_text(json.dumps(config))
    token = {"version": "1.0", "type": "oauth_token", "access_token": "sk-ant-oat01-ant", "refresh_token": "r"}
    (folder / "credentials" / f"{name}.json").write_text(json.dumps({**token, "expires_at": 4102444800}))
    (folder / "active_config").write_text(name)
    return {"ANTHROPIC_CONFIG_DIR": str(folder)}


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
