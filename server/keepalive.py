"""Keep-alive pings (opt-in, `cache_keepalive_pings`): a prefix is read again shortly before it dies, while that pays.

For upstreams and credentials that take five minutes only; where an hour is allowed, an hour is cheaper. A ping repeats
the marked beginning of the last request with `max_tokens: 0`: it costs a read of that prefix, and may be for nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.accounts import Accounts
from server.attempt import MESSAGES, Asked, Attempts
from server.budget import Budgets
from server.cache_draft import Plan, mark_of
from server.cache_memory import SAME_CHAT
from server.cache_planner import CachePlanner, Counts
from server.content import as_blocks, user_message
from server.errors import ProxyError
from server.explain import Refusal
from server.live_models import LiveModels
from server.payers import Credential
from server.receipt import Receipt
from server.receipts import Receipts
from server.reply import Reply
from server.request import Change, ChatRequest
from server.rewrite.cache_marks import with_marks, without_marks
from server.rewrite.cache_plan import SECONDS

log = logging.getLogger(__name__)

BEFORE_END = 20.0  # seconds before the entry's end at which a ping is sent
PRIOR_WEIGHT, PRIOR_RETURNS = 3.0, 0.3  # how many pauses what is expected of a player nobody knows counts for
DOT = {"type": "text", "text": "."}
CHANGE = Change("cache_keepalive_pings", "Kept the cache of a chat alive during a pause.")
LEFT_OUT = ("stream", "stop_sequences", "temperature", "top_p", "top_k", "metadata", "diagnostics")

# A ping after a request with this plan: its `usage`, or None when it was not sent.
Send = Callable[[Asked, Plan, ChatRequest], Awaitable[Mapping[str, Any] | None]]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class Ping:
    """A ping to be sent at a time."""

    at: float
    request: ChatRequest


def next_ping(plan: Plan, request: ChatRequest, *, used_at: float, sent: int, most: int) -> Ping | None:
    """The next ping for a request that began; None when it would not pay. `used_at`: when its prefix was last read."""
    terms = plan.terms
    if sent >= most or terms.lifetimes != ("5m",) or not plan.marks or (warm := warming(plan, request)) is None:
        return None
    pauses = [one.pause for one in plan.related if one.pause is not None]
    if chance_of_return(pauses, used_at - plan.at) * (terms.write_5m - terms.read) <= terms.read:
        return None
    return Ping(used_at + SECONDS["5m"] - BEFORE_END, warm)


def chance_of_return(pauses: Sequence[float], idle: float) -> float:
    """How likely the player comes back while a ping at the entry's end keeps it alive, having been away until then."""
    start = idle + SECONDS["5m"] - BEFORE_END
    longer = [pause for pause in pauses if pause >= start]
    back = sum(pause < start + SECONDS["5m"] for pause in longer)
    return (back + PRIOR_WEIGHT * PRIOR_RETURNS) / (len(longer) + PRIOR_WEIGHT)


def warming(plan: Plan, request: ChatRequest) -> ChatRequest | None:
    """The request up to its last mark, asking for no output; None where the API takes no `max_tokens: 0`."""
    body = request.body
    forced = (body.get("tool_choice") or {}).get("type") in ("any", "tool")
    budget = (body.get("thinking") or {}).get("type") == "enabled"
    if forced or budget or (body.get("output_config") or {}).get("format"):
        return None
    last = max(plan.marks)
    place = plan.prompt.places[last]
    if place.part != "messages":
        messages = []
    else:
        whole = body["messages"][place.message]
        until = {**whole, "content": as_blocks(whole["content"])[: place.block + 1]}
        messages = [*body["messages"][: place.message], until]
    if messages and any(block.get("type") == "tool_use" for block in as_blocks(messages[-1]["content"])):
        return None  # its result would have to follow
    if plan.prompt.settings["images"] == "some" and not any(has_image(message) for message in messages):
        return None
    short = without_marks({**body, "messages": messages})
    short = with_marks(short, {place: mark_of("5m")})
    short = {key: value for key, value in short.items() if key not in LEFT_OUT}
    # Behind the mark stands a placeholder: a user must have the last word.
    return replace(request, body={**short, "messages": [*short["messages"], user_message(DOT)], "max_tokens": 0})


def has_image(message: Mapping[str, Any]) -> bool:
    return any(block.get("type") == "image" for block in as_blocks(message.get("content")))


class Pings:
    """Sends pings, each with the account that holds the cache, and paid by the client whose request it comes after."""

    def __init__(
        self,
        accounts: Accounts,
        attempts: Attempts,
        live: LiveModels,
        receipts: Receipts,
        budgets: Budgets,
        *,
        practice: Credential | None,
        clock: Callable[[], float],
    ) -> None:
        self._accounts, self._attempts, self._live = accounts, attempts, live
        self._receipts, self._budgets, self._practice, self._clock = receipts, budgets, practice, clock

    async def send(self, after: Asked, plan: Plan, warm: ChatRequest) -> Mapping[str, Any] | None:
        """Not for a key that was revoked, nor with an account that rests. A guest's own key pays for its own requests
        alone."""
        client = after.client
        try:
            hold = self._budgets.open(client.key_id, client.limits, ping=True)
        except ProxyError:
            return None
        credential = self._practice or await self._accounts.fresh_if_ready(plan.scope.credential)
        if credential is None:
            return None
        receipt = Receipt(
            at=self._clock(),
            kind="ping",
            model=warm.model,
            key_id=client.key_id,
            key=client.name,
            chat=after.receipt.chat,
            persona=after.receipt.persona,
            account_id=credential.account_id,
            account=self._accounts.payer(credential),
            changes=(CHANGE,),
        )
        try:
            hold.reserve(warm.body, self._live.models.find(warm.model))
            asked = Asked(client, warm, {}, MESSAGES, receipt, hold)
            outcome = await self._attempts.make(asked, warm, credential, lambda meter: None)
            if isinstance(outcome, Refusal):
                hold.free()
        except ProxyError as error:
            receipt.status, receipt.ended = error.status, "error"
            hold.free()
            return None
        else:
            receipt.status = outcome.status
            return receipt.usage if isinstance(outcome, Reply) else None
        finally:
            hold.settle(receipt)
            self._receipts.add(receipt)


class KeepAlive:
    """The pings of all chats, each in a task of its own. The text they need is held in memory until they end."""

    def __init__(self, planner: CachePlanner, send: Send, *, clock: Callable[[], float], sleep: Sleep) -> None:
        self._planner, self._send, self._clock, self._sleep = planner, send, clock, sleep
        self._chats: list[tuple[Plan, asyncio.Task[None]]] = []

    def watch(self, plan: Plan | None, request: ChatRequest, asked: Asked, most: int) -> None:
        """A request of a chat began, as `request` was sent: ping from now on for this one, and no longer for those
        before it."""
        if plan is None or plan.off:
            return
        kept = []
        for other, task in self._chats:
            if plan.prompt.resembles(other.prompt, SAME_CHAT):
                task.cancel()
            elif not task.done():
                kept.append((other, task))
        self._chats = kept
        if most > 0 and next_ping(plan, request, used_at=plan.at, sent=0, most=most):
            self._chats.append((plan, asyncio.create_task(self._keep(plan, request, asked, most))))

    async def _keep(self, plan: Plan, request: ChatRequest, asked: Asked, most: int) -> None:
        used_at, sent = plan.at, 0
        while ping := next_ping(plan, request, used_at=used_at, sent=sent, most=most):
            await self._sleep(max(ping.at - self._clock(), 0.0))
            used_at = self._clock()
            usage = await self._send(asked, plan, ping.request)
            if usage is None or not Counts.of(usage).read:
                log.info("A keep-alive ping found nothing to keep alive; no more for this pause.")
                return
            sent += 1
            self._planner.pinged(plan, used_at)

    async def close(self) -> None:
        tasks = [task for _, task in self._chats]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._chats = []
