"""The list of models for front ends: the live one, or the table's, as far as the asker's key goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from server.clients import Client
from server.errors import ProxyError
from server.live_models import LiveModels
from server.relay import Relay
from server.reply import Passing, Reply

PATIENCE = 5.0  # seconds for the live list


class ModelList:
    """GET /v1/models and /v1/models/{id}."""

    def __init__(self, relay: Relay, live: LiveModels, clock: Callable[[], float]) -> None:
        self._relay, self._live, self._clock = relay, live, clock

    async def answer(self, model: str, query: str, headers: Mapping[str, str], client: Client) -> Reply:
        """What an account can read within a few seconds, else the table. Raises ProxyError 403, 404."""
        if model:
            client.check_model(model, self._live.models)
        target = f"/v1/models{f'/{model}' if model else ''}{f'?{query}' if query else ''}"
        try:
            async with asyncio.timeout(PATIENCE):
                reply = await self._relay.pass_through("GET", target, headers, client)
            if isinstance(reply, Passing):
                reply.close()
                raise ProxyError(502, "The upstream answered with no list of models.")
        except (ProxyError, TimeoutError) as error:
            if model and isinstance(error, ProxyError) and error.status == 404:
                raise
            return as_json(self._offline(model, client))
        told = as_object(reply.body)
        self._live.saw(rows_in(told))
        return reply if model or not client.models else as_json(self._for_client(told, client))

    def _offline(self, model: str, client: Client) -> Mapping[str, Any]:
        listed = self._live.models.offline_list(self._clock())
        if not model:
            return self._for_client(listed, client)
        named = self._live.models.find(model)
        for row in listed["data"]:
            if named is not None and row["id"] == named.id:
                return dict(row)
        known = ", ".join(row["id"] for row in listed["data"])
        raise ProxyError(404, f"There is no such model. Known models: {known}.")

    def _for_client(self, listed: Mapping[str, Any], client: Client) -> Mapping[str, Any]:
        """A list without the models that its reader's key is not for. The ids to ask for the next page by stay."""
        rows = [row for row in rows_in(listed) if isinstance(row, dict)]
        return {**listed, "data": [row for row in rows if client.may_use(str(row.get("id")), self._live.models)]}


def as_json(value: Mapping[str, Any]) -> Reply:
    return Reply(200, {"Content-Type": "application/json"}, orjson.dumps(value))


def as_object(body: bytes | None) -> dict[str, Any]:
    """The JSON object in an answer; an empty one for anything else."""
    try:
        answer = orjson.loads(body or b"")
    except orjson.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def rows_in(answer: Mapping[str, Any]) -> list[Any]:
    """The rows in an answer of GET /v1/models, or of one model."""
    rows = answer.get("data", [answer] if answer else [])
    return rows if isinstance(rows, list) else []
