"""Doors for front ends: /v1/messages, /v1/{persona}/messages, /v1/models, /health, and the rest of /v1/ as it is."""

from __future__ import annotations

import orjson
from aiohttp import web

from server import __version__
from server.accounts import Accounts
from server.budget import Budgets
from server.clients import ClientKeys
from server.errors import ProxyError
from server.guard import expect
from server.messages import Messages
from server.model_list import ModelList
from server.paths import ODD, PRIVATE, Door, find_door
from server.presets import Personas
from server.relay import Relay
from server.reply import Reply
from server.traffic import Traffic
from server.transfer import read_body, send, whole

ANY_PATH = "/{path}"  # as aiohttp names the route that takes what no other took
CHAT = Door("messages")


class Doors:
    """The routes for front ends."""

    def __init__(
        self,
        messages: Messages,
        models: ModelList,
        keys: ClientKeys,
        budgets: Budgets,
        personas: Personas,
        accounts: Accounts,
        relay: Relay,
        traffic: Traffic,
        *,
        practice: bool,
        reader_patience: float,
    ) -> None:
        self._messages, self._models, self._keys, self._budgets = messages, models, keys, budgets
        self._personas, self._accounts, self._relay, self._traffic = personas, accounts, relay, traffic
        self._practice, self._reader_patience = practice, reader_patience

    def routes(self) -> list[web.RouteDef]:
        """/v1/messages by the short way; every other spelling and path through `any_path`."""
        return [
            web.post("/v1/messages", self.plain_messages, expect_handler=expect),
            web.get("/health", self.health, expect_handler=expect),
            web.route("*", "/{path:.*}", self.any_path, expect_handler=expect),
        ]

    async def plain_messages(self, request: web.Request) -> web.StreamResponse:
        return await self._messages.answer(request, CHAT)

    async def any_path(self, request: web.Request) -> web.StreamResponse:
        door = find_door(request.rel_url.raw_path, request.rel_url.raw_query_string)
        if door is None:
            if allowed := await other_methods(request):
                raise web.HTTPMethodNotAllowed(request.method, allowed)
            raise ProxyError(404, "There is nothing at this address. In your front end, let the proxy URL end in /v1.")
        if door.kind == "messages":
            if request.method != "POST":
                raise web.HTTPMethodNotAllowed(request.method, ["POST"])
            return await self._messages.answer(request, door)
        if door.kind == "models":
            if request.method not in ("GET", "HEAD"):
                raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"])
            return await self._list_models(request, door)
        with self._traffic.request():
            return await self._anything_else(request)

    async def _list_models(self, request: web.Request, door: Door) -> web.StreamResponse:
        client = self._keys.authenticate(request.headers)
        self._budgets.open(client.key_id, client.limits)
        self._personas.get(door.persona)
        query = request.rel_url.raw_query_string
        return whole(await self._models.answer(door.model, query, request.headers, client))

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
            await send(request, response, reply.chunks(), self._reader_patience)
        finally:
            reply.close()
        return response

    async def health(self, request: web.Request) -> web.Response:
        """Whether it works, for anybody who asks; no secret, no name. `warnings` counts those about accounts."""
        ready = self._practice or any(account.state == "ready" for account in self._accounts.all())
        told = {
            "status": "ok",
            "version": __version__,
            "ready": ready,
            "practice": self._practice,
            "warnings": len(self._accounts.warnings),
        }
        return web.Response(body=orjson.dumps(told), content_type="application/json")


async def other_methods(request: web.Request) -> set[str]:
    """The methods that a route of the pages takes at this very address, where this one is none of them."""
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        if resource.canonical != ANY_PATH:
            _, methods = await resource.resolve(request)
            allowed |= methods
    return allowed
