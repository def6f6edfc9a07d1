"""A token endpoint on loopback: strict, for refresh tokens and codes work once; countable; and it can misbehave."""

import asyncio
import base64
import hashlib
import json
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from aiohttp import web

SUBSCRIPTION = {
    "organization": {"uuid": "org-1", "name": "The Prancing Pony"},
    "account": {"uuid": "person-1", "email_address": "barliman@inn.example"},
}


@dataclass
class FakeOAuth:
    """A real aiohttp server. `seen` is what was asked, `refreshes` and `reuses` count what was done."""

    lifetime: float = 28800
    told: dict = field(default_factory=lambda: dict(SUBSCRIPTION))  # what answers say besides the tokens
    delay: float = 0.0
    grace: bool = False  # whether a spent refresh token gets its successor once more
    drop_answers: int = 0  # so many answers are lost after the tokens have rotated
    odd: deque = field(default_factory=deque)  # answers to give instead of the usual ones: (status, body, headers)
    always: tuple | None = None  # the same, every time
    hang: int = 0  # so many calls get no answer at all, and change nothing

    def __post_init__(self):
        self.url = ""
        self.seen = []
        self.refreshes = self.exchanges = self.reuses = 0
        self.access = set()  # what the upstream would take now
        self.refresh = {}  # refresh token → "live", or the answer that was given for it
        self.codes = {}  # code → challenge
        self.numbers = count(1)
        self.entered = asyncio.Event()  # a call has come in
        self.gate = None  # an Event calls wait for, so that a test can hold them

    def issue(self) -> dict:
        """A fresh pair, as a sign-in gives it."""
        n = next(self.numbers)
        pair = {"access_token": f"sk-ant-oat01-{n:05d}-access", "refresh_token": f"sk-ant-ort01-{n:05d}-refresh"}
        self.access.add(pair["access_token"])
        self.refresh[pair["refresh_token"]] = "live"
        return pair

    def issue_code(self, challenge: str) -> str:
        code = f"code-{next(self.numbers):05d}"
        self.codes[code] = challenge
        return code

    def kill(self, access_token: str) -> None:
        self.access.discard(access_token)

    async def token(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        asked = json.loads(body)
        self.seen.append((asked, dict(request.headers), request.path))
        self.entered.set()
        if self.hang:
            self.hang -= 1
            await asyncio.Event().wait()
        if self.gate:
            await self.gate.wait()
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.odd or self.always:
            status, text, headers = self.odd.popleft() if self.odd else self.always
            return web.Response(status=status, text=text, headers=headers)
        if asked.get("grant_type") == "refresh_token":
            answer = self.rotate(asked.get("refresh_token"))
        else:
            answer = self.redeem(asked)
        if answer is None:
            return web.json_response({"error": "invalid_grant", "error_description": "Not found or used"}, status=400)
        if self.drop_answers:
            self.drop_answers -= 1
            request.transport.abort()
        return web.json_response(answer)

    def rotate(self, refresh_token: str) -> dict | None:
        held = self.refresh.get(refresh_token)
        if held == "live":
            self.refreshes += 1
            answer = {**self.issue(), "expires_in": self.lifetime, **self.told}
            self.refresh[refresh_token] = answer
            return answer
        self.reuses += 1
        return held if self.grace and held else None

    def redeem(self, asked: dict) -> dict | None:
        challenge = self.codes.pop(asked.get("code"), None)
        digest = hashlib.sha256(asked.get("code_verifier", "").encode()).digest()
        if challenge is None or challenge != base64.urlsafe_b64encode(digest).rstrip(b"=").decode():
            return None
        self.exchanges += 1
        return {**self.issue(), "expires_in": self.lifetime, "scope": "user:profile user:inference", **self.told}

    @asynccontextmanager
    async def serving(self):
        app = web.Application()
        app.router.add_post("/v1/oauth/token", self.token)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1/oauth/token"
        try:
            yield self
        finally:
            await runner.cleanup()
