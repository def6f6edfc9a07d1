"""The road itself: who pays, what we send, one attempt after another until a reply begins."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from server.accounts import Accounts
from server.attempt import Asked, Attempts, passed_back
from server.budget import OverBudget
from server.cache_helps import NO_HELPS, CacheHelps
from server.clients import Client
from server.errors import ProxyError
from server.explain import Refusal, is_policy, remedy
from server.fitting import Case, Fitting
from server.health import rest_after
from server.oauth import Unavailable
from server.payers import Credential, renew_later
from server.presets import Personas
from server.receipt import Bodies
from server.reply import Passing, Reply
from server.request import ChatRequest
from server.retry import RETRIES, STATUSES, RetryBudget, delay
from server.rewrite.counting import GENERATION
from server.upstream import UpstreamFailed

log = logging.getLogger(__name__)


@dataclass
class Journey:
    """What one request has met so far on its way: accounts tried, retries made."""

    guest: Credential | None
    tried: set[str] = field(default_factory=set)
    retries: int = 0


class Relay:
    """Takes a request down the road. Tries again only while nothing has reached the front end."""

    def __init__(
        self,
        accounts: Accounts,
        attempts: Attempts,
        fitting: Fitting,
        personas: Personas,
        helps: CacheHelps,
        *,
        keep_bodies: bool,
        practice: Credential | None = None,
        clock: Callable[[], float] = time.time,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._accounts, self._attempts, self._fitting = accounts, attempts, fitting
        self._personas, self._helps, self._keep_bodies = personas, helps, keep_bodies
        self._practice = practice  # pays for everything in practice mode, so that no real credential goes there
        self._clock, self._luck = clock, luck
        self._budget = RetryBudget()

    async def exchange(self, asked: Asked) -> Reply:
        """The reply to one request, from its beginning on. Raises ProxyError."""
        persona = self._personas.get(asked.request.persona)
        asked.receipt.persona = persona.name if persona else ""
        helps = asked.client.helps.over(persona.helps if persona else NO_HELPS).over(self._helps)
        case, journey = Case(persona, helps), Journey(self._practice or self._accounts.guest(asked.headers))
        self._budget.note_request(self._clock())
        credential = journey.guest or await self._choose(asked, journey)
        while True:
            sent, plan = await self._fitting.prepare(asked.request, credential, case)
            if case.refused is not None and case.refused.says_the_same(sent):
                raise PassedOn(case.refused.refusal, self._clock())  # what it taught changes nothing here
            case.refused = None
            self._note(asked, sent, credential, case)
            try:
                await self._reserve(asked, sent, credential)
            except ProxyError:
                self._fitting.failed(plan)
                raise
            try:
                begun = self._fitting.begun(plan, sent, asked, case)
                outcome = await self._attempts.make(asked, sent, credential, begun)
            except UpstreamFailed as error:
                self._fitting.failed(plan)
                asked.hold.free()
                if error.unanswered:
                    self._accounts.failed(credential.account_id)
                    if other := await self._after_failure(asked, credential, journey):
                        credential = other
                        continue
                if not error.unsent or not await self._wait(journey, {}):
                    raise
                continue
            self._accounts.heard(credential.account_id, outcome.headers, served=isinstance(outcome, Reply))
            if isinstance(outcome, Reply):
                self._fitting.proved(case)
                return outcome
            self._fitting.failed(plan)
            asked.hold.free()
            if self._fitting.learns(outcome, sent, credential, plan, case):
                continue
            if other := await self._after_refusal(asked, outcome, credential, journey):
                credential = other
                continue
            if outcome.status not in STATUSES or not await self._wait(journey, outcome.headers):
                raise PassedOn(replace(outcome, guest=journey.guest is not None), self._clock())

    async def _reserve(self, asked: Asked, sent: ChatRequest, credential: Credential) -> None:
        """Hold what the attempt may cost on the limits of the client's key. Raises ProxyError.

        Where the surest bound, a token for each byte, does not fit any more, the upstream is asked for the exact count.
        """
        models = self._fitting.models
        asked.client.check_models(sent.body, models)
        if sent.counting:
            return  # costs nothing
        model = models.find(sent.model)
        try:
            asked.hold.reserve(sent.body, model)
        except OverBudget as over:
            if over.is_empty:
                raise
            counted = await self._attempts.count(asked, for_counting(sent), credential)
            if counted is None:
                raise
            asked.hold.reserve(sent.body, model, counted)
        asked.receipt.notice = asked.hold.notice()

    async def _choose(self, asked: Asked, journey: Journey) -> Credential:
        return await self._accounts.credential(
            tried=journey.tried, shared_only=not asked.client.own, conversation=asked.receipt.chat
        )

    async def _after_refusal(
        self, asked: Asked, refusal: Refusal, refused: Credential, journey: Journey
    ) -> Credential | None:
        """Another credential to try at once after a refusal that is about the account; None when it is the last word.

        A limit, missing credit or a refused credential puts the account aside; an overload or a 403 lets others go
        first for a while. A 400 and a policy refusal are never tried elsewhere.
        """
        if journey.guest or is_policy(refusal):
            return None
        if refusal.status == 401:
            try:
                if renewed := await self._accounts.after_401(refused):
                    return renewed
            except Unavailable as error:
                if other := await self._another(asked, refused, journey):
                    return other
                raise renew_later(error.retry_after) from error
        if (until := rest_after(refusal, self._clock())) is not None:
            self._accounts.rest(refused.account_id, until, refusal.message)
        if refusal.status in STATUSES:
            self._accounts.failed(refused.account_id)
            return await self._after_failure(asked, refused, journey)
        if refusal.status == 403:
            self._accounts.failed(refused.account_id)
        return await self._another(asked, refused, journey) if refusal.status in (401, 402, 403, 429) else None

    async def _after_failure(self, asked: Asked, failed: Credential, journey: Journey) -> Credential | None:
        """Another credential after a failure that may be everybody's: counts as a retry, and none that failed too."""
        if journey.guest or journey.retries >= RETRIES:
            return None
        other = await self._another(asked, failed, journey)
        if other is None or self._accounts.get(other.account_id).strain == "failing":
            return None
        journey.retries += 1
        return other

    async def _another(self, asked: Asked, before: Credential, journey: Journey) -> Credential | None:
        journey.tried.add(before.account_id)
        try:
            return await self._choose(asked, journey)
        except ProxyError as error:
            log.info("No other account: %s", error)
            return None

    async def _wait(self, journey: Journey, headers: Mapping[str, str]) -> bool:
        """Wait before a retry; False when there is none."""
        wait = delay(journey.retries, headers, self._luck())
        if wait is None or not self._budget.take(self._clock()):
            return False
        journey.retries += 1
        await asyncio.sleep(wait)
        return True

    def _note(self, asked: Asked, sent: ChatRequest, credential: Credential, case: Case) -> None:
        receipt = asked.receipt
        receipt.attempts += 1
        receipt.model = sent.model
        receipt.changes = (*sent.changes, *case.changes)
        receipt.account_id, receipt.account = credential.account_id, self._accounts.payer(credential)
        if self._keep_bodies:
            receipt.bodies = Bodies(asked.request.body, sent.body)

    async def pass_through(
        self, method: str, target: str, given: Mapping[str, str], client: Client, body: bytes = b""
    ) -> Reply | Passing:
        """Any other /v1/ request, as it is, with the credential that would pay for a chat; a login that is refused is
        renewed once. Not every address takes every credential, so none is set aside here. Raises ProxyError."""
        guest = self._practice or self._accounts.guest(given)
        credential = guest or await self._accounts.credential(shared_only=not client.own)
        request = ChatRequest.bare(given.get("anthropic-version", ""), given.get("anthropic-beta", ""))
        request = replace(request, betas=tuple(dict.fromkeys((*request.betas, *credential.betas))))
        outcome = await self._attempts.plain(method, target, request, credential, given, body)
        if isinstance(outcome, Refusal) and outcome.status == 401 and not guest and credential.kind != "api_key":
            try:
                renewed = None if outcome.says("not supported") else await self._accounts.after_401(credential)
            except Unavailable as error:
                raise renew_later(error.retry_after) from error
            if renewed:
                outcome = await self._attempts.plain(method, target, request, renewed, given, body)
        if isinstance(outcome, Refusal):
            raise PassedOn(replace(outcome, guest=guest is not None), self._clock())
        return outcome


def for_counting(sent: ChatRequest) -> ChatRequest:
    """The request as `/count_tokens` takes it."""
    return replace(sent, body={key: value for key, value in sent.body.items() if key not in GENERATION}, counting=True)


class PassedOn(ProxyError):
    """An error of the upstream's, with a sentence of ours behind its words."""

    def __init__(self, refusal: Refusal, now: float) -> None:
        words = refusal.message.strip()
        if words and words[-1] not in ".!?…":
            words += "."
        words = f"{words} {remedy(refusal, now)}".strip()
        super().__init__(refusal.status, words, headers=passed_back(refusal.headers))
        self._type = refusal.type

    @property
    def type(self) -> str:
        return self._type
