"""The real program on a local port, in this process, for tests of the road."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from server.app import Parts, build
from server.config import TOP, Config
from server.http_server import Limits, Runner
from server.keepalive import Sleep
from server.pages import page
from server.presets import Personas
from server.serve import fastest_loop
from server.start import listen
from server.upstream import Patience
from tests.fakes import ASK, KEY

AS_RUN = "asyncio", {"use_uvloop": fastest_loop() is not None}  # the loop the program runs on, as anyio's backend


@dataclass
class Proxy:
    """A running proxy, and a client like SillyTavern's server: no cookies, no Origin."""

    url: str
    port: int
    parts: Parts
    session: aiohttp.ClientSession

    async def ask(self, path: str = "/v1/messages", headers: Mapping[str, str] | None = None, **changes: Any) -> Answer:
        """POST a chat request; the password is an Anthropic key unless `headers` say otherwise."""
        body = {key: value for key, value in {**ASK, **changes}.items() if value is not ...}
        return await self.send("POST", path, headers={"x-api-key": KEY} if headers is None else headers, json=body)

    async def send(self, method: str, path: str, **kwargs: Any) -> Answer:
        async with self.session.request(method, URL(self.url + path, encoded=True), **kwargs) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def owner(self, method: str, path: str, **kwargs: Any) -> Answer:
        headers = {"Authorization": f"Bearer {self.parts.owner.admin_token}"}
        return await self.send(method, path, headers=headers, **kwargs)

    async def sign_in(self, key: str = "sk-ant-api03-the-owners-own-key-0002") -> str:
        """Add an API key of the owner's. The key."""
        added = await self.owner("POST", "/api/accounts", json={"kind": "api_key", "name": "mine", "api_key": key})
        assert added.status == 201
        return key

    async def receipts(self) -> list[dict[str, Any]]:
        return (await self.owner("GET", "/api/requests?limit=1000")).json["requests"]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def message(self) -> str:
        """What SillyTavern would show."""
        assert self.json["type"] == "error"
        return self.json["error"]["message"]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line[5:]) for line in self.raw.split(b"\n") if line.startswith(b"data:")]


@asynccontextmanager
async def running(
    data_dir: Path,
    api_base_url: str,
    *,
    limits: Limits | None = None,
    sleep: Sleep = asyncio.sleep,
    patience: Patience | None = None,
    clock: Callable[[], float] = time.time,
    presets: Path | None = None,
    **settings: Any,
) -> AsyncIterator[Proxy]:
    """The program with these settings; nothing of the person's own home is looked at. Without `presets` the personas
    that ship are on the road, and the pages write others."""
    home = data_dir / "home"
    settings = {"claude_config_dir": str(home / "claude"), "auto_open_browser": False, **settings}
    config = Config(data_dir=data_dir / "data", api_base_url=api_base_url, **settings)
    sockets = listen(config.host, 0)
    port = sockets[0].getsockname()[1]
    parts = build(config, port, patience=patience, clock=clock, sleep=sleep, presets=presets or TOP / "presets")
    own = data_dir / "own"  # what the pages may write: never the files of this very folder
    (own / "presets").mkdir(parents=True, exist_ok=True)
    parts.app[page.PLACES] = (own / "config.txt", own / ".env", {})
    parts.app[page.PERSONAS] = Personas(presets or own / "presets")
    runner = Runner(parts.app, limits=limits, shutdown_timeout=1.0)
    await runner.setup()
    for made in sockets:
        await web.SockSite(runner, made).start()
    async with aiohttp.ClientSession(auto_decompress=True) as session:
        try:
            yield Proxy(f"http://127.0.0.1:{port}", port, parts, session)
        finally:
            await runner.cleanup()
