"""The messages routes: a chat, or the count of its tokens, from the body that comes to the reply that goes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from aiohttp import web

from server.attempt import COUNT_TOKENS, MESSAGES, Asked
from server.budget import Budgets
from server.clients import ClientKeys
from server.errors import ProxyError
from server.guard import REQUEST_ID, wrong_type
from server.paths import Door
from server.relay import Relay
from server.request import LARGE, ChatRequest
from server.traffic import Traffic
from server.transfer import read_body, send, whole
from server.turns import Turn, Turns


class Messages:
    """Translates between HTTP on one side and the road on the other."""

    def __init__(
        self,
        keys: ClientKeys,
        budgets: Budgets,
        relay: Relay,
        turns: Turns,
        traffic: Traffic,
        *,
        warm: Callable[[], None],
        skip_steps: tuple[str, ...],
        reader_patience: float,
    ) -> None:
        self._keys, self._budgets, self._relay, self._turns, self._traffic = keys, budgets, relay, turns, traffic
        self._warm = warm  # the connection to the upstream, while the request still arrives
        self._skip_steps = skip_steps
        self._reader_patience = reader_patience  # seconds for a front end that reads nothing

    async def answer(self, request: web.Request, door: Door) -> web.StreamResponse:
        """Raises ProxyError, with the receipt's id in its headers."""
        turn = self._turns.begin(request.path, counting=door.counting)
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
            self._turns.end(turn)

    async def _converse(self, request: web.Request, door: Door, turn: Turn) -> web.StreamResponse:
        if wrong := wrong_type(request.headers):
            raise wrong
        receipt, client = turn.receipt, self._keys.authenticate(request.headers)
        receipt.key_id, receipt.key = client.key_id, client.name
        turn.hold = hold = self._budgets.open(client.key_id, client.limits)
        client.check_persona(door.persona)
        self._warm()
        asked = await self._read(request, door)
        self._turns.note(turn, asked)
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
                if not await send(request, response, reply.stream.chunks(), self._reader_patience):
                    receipt.ended = "client_left"
        finally:
            reply.stream.close()
        return response

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
        await asyncio.to_thread(self._turns.read_ahead, asked)
        return asked
