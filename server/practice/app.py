"""The practice upstream as a web application: Anthropic's routes for messages, token counts and models."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web

from server.errors import ProxyError
from server.logs import frames
from server.models import Model, Models
from server.practice.accounting import Entry, Prompt, missed_because, read_prompt, remember, settle, usage
from server.practice.asked import Kind
from server.practice.blocks import row
from server.practice.headers import Refusal, credential
from server.practice.messages import events, message
from server.practice.replies import reply_to
from server.practice.rules import REQUIRED_SYSTEM_LINE, refusal
from server.practice.signatures import sign
from server.request import read_json

log = logging.getLogger(__name__)

MOST_BYTES = 32 * 1024 * 1024
REMEMBERED = 10_000  # cache entries and prompts asked; the oldest are forgotten
COMPARED = 100  # earlier prompts that the cache diagnostics know
REQUESTS_PER_MINUTE = 1_000  # what the headers say; nothing is refused for it


def wall_clock() -> float:
    return time.time()


class Practice:
    """The stand-in: it holds the cache entries of its callers and how often each prompt was asked, nothing else.

    `pace` is the seconds between two words, `first_byte` those until a reply begins.
    """

    def __init__(
        self, models: Models, clock: Callable[[], float], pace: float, first_byte: float, required_line: str
    ) -> None:
        self.clock = clock
        self.pace = pace
        self.first_byte = first_byte
        self.required_line = required_line
        self.models = models
        self.by_id = {name: model for model in models.all for name in (model.id, *model.aliases)}
        self.entries: dict[bytes, Entry] = {}
        self.times_asked: OrderedDict[bytes, int] = OrderedDict()
        self.prompts: OrderedDict[str, tuple[str, Prompt]] = OrderedDict()
        self.open_streams = 0

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/messages."""
        body, model, kind, token = await self.read(request, counting=False)
        now = self.clock()
        workspace = request.headers.get("anthropic-workspace-id", "")
        scope = hashlib.sha256(f"{token}\0{workspace}".encode(errors="surrogateescape")).digest()
        prompt = read_prompt(body, model, scope)
        bill, changed = settle(self.entries, prompt, model.min_cacheable, now)
        nth = self.count(prompt.chain[-1])
        reply = reply_to(body, model, bill, nth, start=prompt.chain[-1][0])
        id = f"msg_practice{secrets.token_hex(12)}"
        whole = message(
            id,
            model.id,
            reply,
            sign(model.id, reply.thinking, row(body)) if reply.thinking is not None else "",
            ((body.get("thinking") or {}).get("display") or model.display_default) != "omitted",
            usage(
                bill,
                reply.tokens if body["max_tokens"] else 0,
                reply.thinking_tokens,
                speed=body.get("speed"),
                searches=int(reply.searched),
            ),
            diagnostics=self.diagnostics(body, model, prompt),
        )
        self.keep_prompt(id, model, prompt)
        await asyncio.sleep(self.first_byte)
        if request.transport is None:  # the client has left before anything began
            return web.Response()
        begun = self.clock()
        remember(self.entries, changed, begun)
        self.forget_dead_entries(begun)
        headers = rate_limits(begun) if kind == "api_key" else {}
        if not body.get("stream"):
            return web.json_response(whole, headers=headers)
        return await self.stream(request, whole, headers)

    async def stream(self, request: web.Request, whole: dict[str, Any], headers: dict[str, str]) -> web.StreamResponse:
        """The message word by word, until its end or until the client has left."""
        response = web.StreamResponse(headers={**headers, "cache-control": "no-cache"})
        response.content_type, response.charset = "text/event-stream", "utf-8"
        await response.prepare(request)
        self.open_streams += 1
        try:
            for name, event in events(whole):
                if name == "content_block_delta":
                    await asyncio.sleep(self.pace)
                await response.write(event)
            await response.write_eof()
        except ConnectionResetError:
            pass  # the client has left; there is nobody to tell
        finally:
            self.open_streams -= 1
        return response

    async def count_tokens(self, request: web.Request) -> web.Response:
        """POST /v1/messages/count_tokens."""
        body, model, _, _ = await self.read(request, counting=True)
        return web.json_response({"input_tokens": read_prompt(body, model).tokens})

    async def list_models(self, request: web.Request) -> web.Response:
        """GET /v1/models."""
        accepted(credential(request.headers))
        try:
            limit = int(request.query.get("limit", 20))
        except ValueError:
            limit = 0
        if not 1 <= limit <= 1_000:
            raise ProxyError(400, "limit: Input should be a whole number from 1 to 1000")
        page = {name: request.query.get(name, "") for name in ("after_id", "before_id")}
        return web.json_response(self.models.offline_list(self.clock(), limit, **page))

    async def get_model(self, request: web.Request) -> web.Response:
        """GET /v1/models/{id}."""
        accepted(credential(request.headers))
        name = request.match_info["id"]
        model = self.by_id.get(name)
        listed = self.models.offline_list(self.clock())["data"]
        item = next((item for item in listed if model and item["id"] == model.id), None)
        if item is None:
            raise ProxyError(404, f"model: {name}")
        return web.json_response(item)

    async def read(self, request: web.Request, *, counting: bool) -> tuple[dict[str, Any], Model, Kind, str]:
        """The body, its model and who pays, once nothing is against the request. Raises ProxyError."""
        kind, token = accepted(credential(request.headers))
        body, _ = read_json(await request.read())
        name = body.get("model")
        model = self.by_id.get(name) if isinstance(name, str) else None
        headers, now = {key.lower(): value for key, value in request.headers.items()}, self.clock()
        reason = refusal(body, headers, model, kind, now, counting=counting, required_line=self.required_line)
        if reason or model is None:
            raise ProxyError(reason.status if reason else 404, reason.message if reason else f"model: {name}")
        return body, model, kind, token

    def count(self, digest: bytes) -> int:
        """The how-manieth time this very prompt is asked."""
        nth = self.times_asked.pop(digest, 0) + 1
        self.times_asked[digest] = nth
        if len(self.times_asked) > REMEMBERED:
            self.times_asked.popitem(last=False)
        return nth

    def diagnostics(self, body: dict[str, Any], model: Model, prompt: Prompt) -> dict[str, Any] | None:
        """Why this prompt parts from that of an earlier reply, where the request asks."""
        if not (earlier := (body.get("diagnostics") or {}).get("previous_message_id")):
            return None
        if earlier not in self.prompts:
            return {"cache_miss_reason": {"type": "previous_message_not_found"}}
        reason = missed_because(*self.prompts[earlier], model.id, prompt)
        return {"cache_miss_reason": reason} if reason else None

    def keep_prompt(self, id: str, model: Model, prompt: Prompt) -> None:
        self.prompts[id] = (model.id, prompt)
        if len(self.prompts) > COMPARED:
            self.prompts.popitem(last=False)

    def forget_dead_entries(self, now: float) -> None:
        if len(self.entries) > REMEMBERED:
            self.entries = {digest: entry for digest, entry in self.entries.items() if now < entry.alive_until}


PRACTICE = web.AppKey("practice", Practice)
REQUEST_ID = web.RequestKey("request_id", str)


def accepted(found: tuple[Kind, str] | Refusal) -> tuple[Kind, str]:
    if isinstance(found, Refusal):
        raise ProxyError(found.status, found.message)
    return found


def rate_limits(now: float) -> dict[str, str]:
    """The headers that go with an API key: of a limit nobody reaches here."""
    reset = (datetime.fromtimestamp(now, UTC) + timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    limits = {"requests": REQUESTS_PER_MINUTE, "input-tokens": 2_000_000, "output-tokens": 400_000}
    return {
        f"anthropic-ratelimit-{name}-{what}": str(value)
        for name, limit in limits.items()
        for what, value in (("limit", limit), ("remaining", limit - 1), ("reset", reset))
    }


@web.middleware
async def errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every error in Anthropic's shape."""
    request[REQUEST_ID] = f"req_practice{secrets.token_hex(12)}"
    try:
        return await handler(request)
    except ProxyError as error:
        refused = error
    except web.HTTPRequestEntityTooLarge:
        refused = ProxyError(413, "Request exceeds the maximum size")
    except web.HTTPException as left:
        refused = ProxyError(left.status, "Not found" if left.status == 404 else left.reason)
    except Exception as error:
        log.error("The practice upstream failed: %s", frames(error))
        refused = ProxyError(500, "Internal server error")
    return web.json_response(refused.body(request[REQUEST_ID]), status=refused.status)


async def name_request(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["request-id"] = request[REQUEST_ID]


def create_practice(
    models: Models,
    *,
    clock: Callable[[], float] = wall_clock,
    pace: float = 0.03,
    first_byte: float = 0.2,
    required_line: str = REQUIRED_SYSTEM_LINE,
) -> web.Application:
    """The practice upstream. Run it with `handler_cancellation=True` to stop a reply the moment its client leaves."""
    practice = Practice(models, clock, pace, first_byte, required_line)
    app = web.Application(middlewares=[errors], client_max_size=MOST_BYTES)
    app[PRACTICE] = practice
    app.on_response_prepare.append(name_request)
    app.add_routes(
        [
            web.post("/v1/messages", practice.messages),
            web.post("/v1/messages/count_tokens", practice.count_tokens),
            web.get("/v1/models", practice.list_models),
            web.get("/v1/models/{id}", practice.get_model),
        ]
    )
    return app


class LocalPractice:
    """The practice upstream, run inside this process on a port of its own."""

    def __init__(self, models: Models, clock: Callable[[], float]) -> None:
        self._runner = web.AppRunner(create_practice(models, clock=clock), access_log=None, handler_cancellation=True)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    async def start(self) -> None:
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def stop(self) -> None:
        await self._runner.cleanup()
