"""Doors for front ends: /v1/messages, /v1/{persona}/messages, /v1/models, /health, and the rest of /v1/ as it is."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from aiohttp import web

from server import __version__, guard
from server.accounts import Accounts
from server.attempt import COUNT_TOKENS, MESSAGES, Asked
from server.budget import Budgets, Hold
from server.chats import Chat, Chats
from server.clients import ClientKeys
from server.errors import ProxyError
from server.guard import REQUEST_ID, expect, wrong_type
from server.model_list import ModelList
from server.presets import NAME, Personas
from server.relay import Relay
from server.reply import Reply
from server.request import LARGE, ChatRequest
from server.trace import TraceRecorder
from server.traffic import Traffic
from server.upstream import Broken, Patience, Silence
from server.usage import Receipt, Receipts

MAX_BODY = 32 * 1024 * 1024  # bytes, as the API itself
STALLED_BYTES = 32 * 1024  # waiting to be sent: so many say that it reads slowly (asyncio waits from 64 KiB on)
ANY_PATH = "/{path}"  # as aiohttp names the route that takes what no other took
MODEL_ID = re.compile(r"[A-Za-z0-9._:@-]{1,200}")
# What a stored credential is never used for: these speak of the account, not of a chat.
PRIVATE = re.compile(r"/v1/(oauth|organizations|account|accounts|me|api_keys|profile|users)(/|$)", re.I)
ODD = re.compile(r"//|/\.|\.\.|[%\\;]")  # spellings of a path that the upstream may read as another one

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Door:
    """What a path asks for: a chat (or only its token count), the list of models, or anything else under /v1/."""

    kind: str  # messages · models · other
    persona: str = ""
    counting: bool = False
    model: str = ""


CHAT = Door("messages")


def find_door(path: str, query: str = "") -> Door | None:
    """The door a request's raw path and query string lead to; None for no address of ours.

    Front ends append /messages to whatever their user typed (seen with SillyTavern 1.19.0), so a missing or doubled
    part is forgiven, and so is `?persona=NAME/messages`. A name with dots or % is no persona's.
    """
    parts = [part for part in path.split("/") if part]
    if parts == ["v1"] and (
        swallowed := re.fullmatch(r"persona=([A-Za-z0-9_-]{1,64})/(messages(?:/count_tokens)?)", query)
    ):
        parts = ["v1", swallowed[1], *swallowed[2].split("/")]
    versioned = "v1" in parts[:2]
    parts = [part for i, part in enumerate(parts) if part != "v1" or i > 2]  # clients that add /v1 by themselves
    rest = list(parts)
    counting = rest[-1:] == ["count_tokens"]
    if counting:
        rest.pop()
    named = len(rest)
    while rest[-1:] == ["messages"]:
        rest.pop()
    if named > len(rest) and len(rest) <= 1:
        return Door("messages", persona="".join(rest), counting=counting)
    if parts == ["models"] or (len(parts) == 2 and parts[1] == "models" and NAME.fullmatch(parts[0])):
        return Door("models", persona=parts[0] if len(parts) == 2 else "")
    if len(parts) == 2 and parts[0] == "models":
        return Door("models", model=parts[1]) if MODEL_ID.fullmatch(parts[1]) else None
    return Door("other") if versioned and parts else None


@dataclass
class Turn:
    """A request for a chat, as far as it has come."""

    receipt: Receipt
    began: float  # monotonic seconds
    hold: Hold | None = None  # None: no key, or too many requests of one
    chat: Chat | None = None
    asked: ChatRequest | None = None  # to be recorded

    @property
    def milliseconds(self) -> int:
        return round((time.monotonic() - self.began) * 1000)


class Doors:
    """The handlers, and what they translate between: HTTP on one side, the road on the other."""

    def __init__(
        self,
        keys: ClientKeys,
        accounts: Accounts,
        personas: Personas,
        receipts: Receipts,
        budgets: Budgets,
        chats: Chats,
        relay: Relay,
        listing: ModelList,
        traffic: Traffic,
        recorder: TraceRecorder | None,
        *,
        warm: Callable[[], None],
        practice: bool,
        skip_steps: tuple[str, ...],
        patience: Patience,
        clock: Callable[[], float],
    ) -> None:
        self._keys, self._accounts, self._personas = keys, accounts, personas
        self._receipts, self._budgets, self._chats = receipts, budgets, chats
        self._relay, self._listing, self._traffic, self._recorder = relay, listing, traffic, recorder
        self._warm = warm  # the connection to the upstream, while the request still arrives
        self._practice, self._skip_steps, self._patience, self._clock = practice, skip_steps, patience, clock

    def routes(self) -> list[web.RouteDef]:
        """/v1/messages by the short way; every other spelling and path through `any_path`."""
        return [
            web.post("/v1/messages", self.plain_messages, expect_handler=expect),
            web.get("/health", self.health, expect_handler=expect),
            web.route("*", "/{path:.*}", self.any_path, expect_handler=expect),
        ]

    async def plain_messages(self, request: web.Request) -> web.StreamResponse:
        return await self._messages(request, CHAT)

    async def any_path(self, request: web.Request) -> web.StreamResponse:
        door = find_door(request.rel_url.raw_path, request.rel_url.raw_query_string)
        if door is None:
            if allowed := await other_methods(request):
                raise web.HTTPMethodNotAllowed(request.method, allowed)
            raise ProxyError(404, "There is nothing at this address. In your front end, let the proxy URL end in /v1.")
        if door.kind == "messages":
            if request.method != "POST":
                raise web.HTTPMethodNotAllowed(request.method, ["POST"])
            return await self._messages(request, door)
        if door.kind == "models":
            if request.method not in ("GET", "HEAD"):
                raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])
            return await self._list_models(request, door)
        with self._traffic.request():
            return await self._anything_else(request)

    def turned_away(self, error: ProxyError) -> str:
        """Note a chat that came no further than the gate. The id of its receipt."""
        receipt = Receipt(at=self._clock(), status=error.status, ended="error")
        self._receipts.add_stranger(receipt)
        log.info("%s", receipt.line())
        return receipt.id

    async def _messages(self, request: web.Request, door: Door) -> web.StreamResponse:
        """A chat, or the count of its tokens: however it ends, its receipt says how."""
        turn = Turn(Receipt(at=self._clock(), kind="count" if door.counting else "chat"), time.monotonic())
        receipt = turn.receipt
        request[REQUEST_ID] = receipt.id
        try:
            with self._traffic.request():
                return await self._converse(request, door, turn)
        except ProxyError as error:
            receipt.status, receipt.ended = error.status, "error"
            error.headers["x-receipt"] = receipt.id
            raise
        except asyncio.CancelledError:
            receipt.status = receipt.status or 499  # as nginx writes it: the front end left before an answer began
            receipt.ended = receipt.ended or "client_left"
            raise
        finally:
            self._enter(turn, request.path)

    async def _converse(self, request: web.Request, door: Door, turn: Turn) -> web.StreamResponse:
        if wrong := wrong_type(request.headers):
            raise wrong
        receipt, client = turn.receipt, self._keys.authenticate(request.headers)
        receipt.key_id, receipt.key = client.key_id, client.name
        turn.hold = hold = self._budgets.open(client.key_id, client.limits)
        client.check_persona(door.persona)
        self._warm()
        asked = await self._read(request, door)
        receipt.model = asked.model
        if not door.counting:
            self._receipts.begin(receipt)
            if chat := self._chats.recognise(asked.body, client.key_id, receipt.at):
                turn.chat, receipt.chat = chat, chat.id
            if self._recorder is not None:
                turn.asked = asked
        path = COUNT_TOKENS if door.counting else MESSAGES
        reply = await self._relay.exchange(Asked(client, asked, request.headers, path, receipt, hold))
        del asked  # nobody needs it while the reply comes
        receipt.status, receipt.ttft_ms = reply.status, turn.milliseconds
        reply.headers["x-receipt"] = receipt.id
        if receipt.cache:
            reply.headers |= receipt.cache.headers()
        if reply.stream is None:
            return whole(reply)
        headers = {**reply.headers, "Cache-Control": "no-store"}
        response = web.StreamResponse(status=reply.status, headers=headers)
        try:
            with self._traffic.streaming(reply.stream):
                if not await self._send(request, response, reply.stream.chunks()):
                    receipt.ended = "client_left"
        finally:
            reply.stream.close()
        return response

    def _enter(self, turn: Turn, path: str) -> None:
        """A turn has ended: what it cost, its receipt, its line in the log."""
        receipt = turn.receipt
        receipt.status, receipt.ended = receipt.status or 500, receipt.ended or "error"
        receipt.duration_ms = turn.milliseconds
        if turn.hold is None:
            self._receipts.add_stranger(receipt)
        else:
            turn.hold.settle(receipt)
            self._receipts.add(receipt, turn.chat)
        if self._recorder is not None and turn.asked is not None:
            self._recorder.record(receipt.at, path, turn.asked, receipt.usage)
        log.info("%s", receipt.line())

    async def _read(self, request: web.Request, door: Door) -> ChatRequest:
        parse = partial(
            ChatRequest.parse,
            await read_body(request),
            persona=door.persona,
            version=request.headers.get("anthropic-version", ""),
            betas=",".join(request.headers.getall("anthropic-beta", ())),
            counting=door.counting,
            skip=self._skip_steps,
        )
        if len(parse.args[0]) <= LARGE:
            return parse()
        asked = await asyncio.to_thread(parse)
        await asyncio.to_thread(self._chats.read_ahead, asked.body)
        return asked

    async def _send(self, request: web.Request, response: web.StreamResponse, chunks: AsyncGenerator[bytes]) -> bool:
        """Send these as they come. Whether all were sent; else the connection is cut, so that nobody takes them for
        whole."""
        try:
            await response.prepare(request)
            transport = request.transport
            async with aclosing(chunks):
                async for chunk in chunks:
                    if slow(transport) or len(chunk) > STALLED_BYTES:
                        async with asyncio.timeout(self._patience.reader):
                            await response.write(chunk)
                    else:
                        await response.write(chunk)
            await response.write_eof()
        except (Broken, Silence, ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
            return False
        return True

    async def _list_models(self, request: web.Request, door: Door) -> web.StreamResponse:
        client = self._keys.authenticate(request.headers)
        self._budgets.open(client.key_id, client.limits)
        self._personas.get(door.persona)
        query = request.rel_url.raw_query_string
        return whole(await self._listing.answer(door.model, query, request.headers, client))

    async def _anything_else(self, request: web.Request) -> web.StreamResponse:
        client = self._keys.authenticate(request.headers)
        path = request.rel_url.raw_path
        if not client.own or client.is_limited or PRIVATE.match(path) or ODD.search(path):
            raise ProxyError(404, "This address is not offered by the proxy. Chats go to /v1/messages.")
        body = await read_body(request) if request.can_read_body else b""
        query = request.rel_url.raw_query_string
        reply = await self._relay.pass_through(
            request.method, f"{path}?{query}" if query else path, request.headers, client, body
        )
        if isinstance(reply, Reply):
            return whole(reply)
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        try:
            await self._send(request, response, reply.chunks())
        finally:
            reply.close()
        return response

    async def health(self, request: web.Request) -> web.Response:
        """Whether it works, for anybody who asks; no secret, no name. `warnings` counts those about accounts."""
        ready = self._practice or any(account.state == "ready" for account in self._accounts.all())
        return json_response(
            {
                "status": "ok",
                "version": __version__,
                "ready": ready,
                "practice": self._practice,
                "warnings": len(self._accounts.warnings),
            }
        )


def whole(reply: Reply) -> web.Response:
    return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


async def other_methods(request: web.Request) -> set[str]:
    """The methods that a route of the pages takes at this very address, where this one is none of them."""
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        if resource.canonical != ANY_PATH:
            _, methods = await resource.resolve(request)
            allowed |= methods
    return allowed


def slow(transport: asyncio.Transport | None) -> bool:
    """Whether the front end has left much unread, so that the next write may wait for it."""
    return transport is not None and transport.get_write_buffer_size() > STALLED_BYTES


async def read_body(request: web.Request) -> bytes:
    """The body, refused by its declared length before a byte of it is read. Raises ProxyError 413."""
    too_large = ProxyError(413, guard.TOO_LARGE)
    if request.content_length is not None and request.content_length > MAX_BODY:
        raise too_large
    try:
        # aiohttp's read() would unpack without a bound between two looks at the size, and keep the body as long as the
        # request (seen with 3.14.5)
        body = io.BytesIO()
        while not request.content.at_eof():
            body.write((await request.content.readchunk())[0])
            if body.tell() > MAX_BODY:
                request.content.set_exception(too_large)  # nor unpack the rest while it waits for the end
                raise too_large
        return body.getvalue()
    except web.RequestPayloadError:
        raise ProxyError(400, guard.DAMAGED) from None


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")
