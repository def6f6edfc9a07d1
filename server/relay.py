"""The road itself: who pays, what we send, one attempt after another until a reply begins."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from urllib.parse import urlsplit

from server.accounts import Accounts
from server.addresses import is_loopback
from server.attempt import Asked, Attempts, passed_back
from server.budget import OverBudget
from server.cache_memory import Scope
from server.cache_planner import Bounds, CachePlanner, Plan
from server.cache_why import tell
from server.clients import Client
from server.errors import ProxyError
from server.explain import Refusal, is_policy, remedy
from server.health import rest_after
from server.helps import NO_HELPS, Helps
from server.keepalive import KeepAlive
from server.learned import Lessons, Live
from server.lesson import MOST_LESSONS, Lesson, lesson, with_lessons
from server.oauth import Unavailable
from server.payers import Credential, renew_later
from server.presets import Persona, Personas
from server.reply import Passing, Reply
from server.request import LARGE, Change, ChatRequest
from server.retry import RETRIES, STATUSES, Budget, delay
from server.rewrite import Context, Options, rewrite
from server.rewrite.counting import GENERATION
from server.rewrite.diagnostics import ask_why
from server.rewrite.ttl import ttl_is_stripped
from server.sse import Meter
from server.upstream import UpstreamFailed
from server.usage import Bodies, Receipt

log = logging.getLogger(__name__)

MOST_PLANNED = 10_000  # blocks: no chat has more, and planning would keep everybody else waiting


@dataclass(frozen=True)
class Refused:
    """A request as it was sent, and the 400 it got."""

    sent: ChatRequest
    refusal: Refusal

    def says_the_same(self, again: ChatRequest) -> bool:
        sent = self.sent
        return (sent.body, sent.betas, sent.version) == (again.body, again.betas, again.version)


class Learned(NamedTuple):
    """A lesson with the upstream and the model that taught it."""

    upstream: str
    model: str
    lesson: Lesson


@dataclass
class Journey:
    """What one request has met so far on its way: accounts tried, retries made, lessons learned."""

    persona: Persona | None
    guest: Credential | None
    helps: Helps
    tried: set[str] = field(default_factory=set)
    retries: int = 0
    lessons: list[Learned] = field(default_factory=list)
    refused: Refused | None = None  # what the last lesson is about

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(learned.lesson.change(learned.model) for learned in self.lessons)


class Relay:
    """Takes a request down the road. Tries again only while nothing has reached the front end."""

    def __init__(
        self,
        accounts: Accounts,
        attempts: Attempts,
        live: Live,
        lessons: Lessons,
        planner: CachePlanner | None,
        personas: Personas,
        options: Options,
        helps: Helps,
        *,
        base_url: str,
        keep_alive: KeepAlive | None,
        keep_bodies: bool,
        practice: Credential | None = None,
        clock: Callable[[], float] = time.time,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._accounts, self._attempts, self._live, self._lessons = accounts, attempts, live, lessons
        self._planner, self._personas, self._options, self._helps = planner, personas, options, helps
        self._anthropics: dict[str, bool] = {}  # by base URL
        self._base_url = base_url  # where Anthropic's API is; an account elsewhere is another provider's
        self._practice = practice  # pays for everything in practice mode, so that no real credential goes there
        self._clock, self._luck = clock, luck
        self._keep_alive, self._keep_bodies = keep_alive, keep_bodies
        self._budget = Budget()

    async def close(self) -> None:
        if self._keep_alive is not None:
            await self._keep_alive.close()

    async def exchange(self, asked: Asked) -> Reply:
        """The reply to one request, from its beginning on. Raises ProxyError."""
        persona = self._personas.get(asked.request.persona)
        asked.receipt.persona = persona.name if persona else ""
        helps = asked.client.helps.over(persona.helps if persona else NO_HELPS).over(self._helps)
        journey = Journey(persona, self._practice or self._accounts.guest(asked.headers), helps)
        self._budget.note_request(self._clock())
        credential = journey.guest or await self._choose(asked, journey)
        while True:
            sent, plan = await self._prepare(asked.request, credential, journey)
            if journey.refused is not None and journey.refused.says_the_same(sent):
                raise PassedOn(journey.refused.refusal, self._clock())  # what it taught changes nothing here
            journey.refused = None
            self._note(asked.receipt, asked.request, sent, credential, journey)
            try:
                await self._reserve(asked, sent, credential)
            except ProxyError:
                self._failed(plan)
                raise
            try:
                outcome = await self._attempts.make(
                    asked, sent, credential, self._begun(plan, sent, asked, journey.helps)
                )
            except UpstreamFailed as error:
                self._failed(plan)
                asked.hold.free()
                if error.unanswered:
                    self._accounts.failed(credential.account_id)
                    if other := await self._instead(asked, credential, journey):
                        credential = other
                        continue
                if not error.unsent or not await self._wait(journey, {}):
                    raise
                continue
            self._accounts.heard(credential.account_id, outcome.headers, served=isinstance(outcome, Reply))
            if isinstance(outcome, Reply):
                for learned in journey.lessons:  # now that they have proved right
                    self._lessons.add(*learned)
                return outcome
            self._failed(plan)
            asked.hold.free()
            if self._learns(outcome, sent, credential, plan, journey):
                continue
            if other := await self._other(asked, outcome, credential, journey):
                credential = other
                continue
            if outcome.status not in STATUSES or not await self._wait(journey, outcome.headers):
                raise PassedOn(replace(outcome, guest=journey.guest is not None), self._clock())

    async def _reserve(self, asked: Asked, sent: ChatRequest, credential: Credential) -> None:
        """Hold what the attempt may cost on the limits of the client's key. Raises ProxyError.

        Where the surest bound, a token for each byte, does not fit any more, the upstream is asked for the exact count.
        """
        models = self._live.models
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

    async def _prepare(
        self, request: ChatRequest, credential: Credential, journey: Journey
    ) -> tuple[ChatRequest, Plan | None]:
        """The request as it goes upstream with this credential, and the plan of its cache marks."""
        lessons = self._lessons.of(credential.base_url)
        for upstream, model, learned in journey.lessons:
            if upstream == credential.base_url:
                lessons = with_lessons(lessons, model, [learned])
        context = Context(
            credential.kind,
            self._live.models,
            journey.persona,
            self._options,
            lessons,
            anthropic_upstream=self._is_anthropic(credential.base_url),
            now=self._clock(),
        )
        if request.size > LARGE or request.has("image"):  # pictures may have to be saved anew
            sent = await asyncio.to_thread(self._rewrite_ahead, request, context)
        else:
            sent = rewrite(request, context)
        if self._planner is None or sent.length > MOST_PLANNED:
            return sent, None
        planned, plan = self._planner.plan(
            sent,
            context.model_of(sent) or self._live.models.like(sent.model),
            Scope(credential.base_url, credential.account_id or credential.secret, credential.workspace_id),
            context.now,
            Bounds(not ttl_is_stripped(context), journey.helps, self._options.required_system_line.strip()),
        )
        return ask_why(planned, context, plan.reply_before if plan else ""), plan

    def _learns(
        self, refusal: Refusal, sent: ChatRequest, credential: Credential, plan: Plan | None, journey: Journey
    ) -> bool:
        """Whether a 400 taught something that mends the request. One try per model and rule."""
        if refusal.status != 400 or is_policy(refusal) or len(journey.lessons) >= MOST_LESSONS:
            return False
        if "learn" in self._options.skip_steps or (found := lesson(refusal.message, sent)) is None:
            return False
        learned = Learned(credential.base_url, sent.model, found)
        if any((*learned[:2], found.rule) == (*one[:2], one.lesson.rule) for one in journey.lessons):
            return False
        if self._planner is not None:
            self._planner.refused(plan, refusal.message, self._clock())
        journey.lessons.append(learned)
        journey.refused = Refused(sent, refusal)
        return True

    def _is_anthropic(self, base_url: str) -> bool:
        """Whether Anthropic's own API is there; on this computer, what api_base_url names stands for it."""
        known = self._anthropics.get(base_url)
        if known is None:
            host = urlsplit(base_url).hostname or ""
            known = host.endswith(".anthropic.com") or (is_loopback(host) and base_url == self._base_url)
            self._anthropics[base_url] = known
        return known

    def _rewrite_ahead(self, request: ChatRequest, context: Context) -> ChatRequest:
        """The same in a thread, where the planner may read it too: what is left for the loop is quick."""
        sent = rewrite(request, context)
        if self._planner is not None and sent.length <= MOST_PLANNED:
            self._planner.read_ahead(sent)
        return sent

    def _begun(self, plan: Plan | None, sent: ChatRequest, asked: Asked, helps: Helps) -> Callable[[Meter], None]:
        """What to do when the reply to a planned request begins: the planner learns, the receipt tells the story."""
        started, receipt = self._clock(), asked.receipt

        def begun(meter: Meter) -> None:
            if self._planner is not None:
                self._planner.began(plan, meter.usage, started, self._clock(), meter.id)
                receipt.cache = tell(plan, meter.usage, meter.diagnostics)
            if self._keep_alive is not None:
                self._keep_alive.watch(plan, sent, asked, helps.cache_keepalive_pings or 0)

        return begun

    def _failed(self, plan: Plan | None) -> None:
        if self._planner is not None:
            self._planner.failed(plan)

    async def _choose(self, asked: Asked, journey: Journey) -> Credential:
        return await self._accounts.credential(
            tried=journey.tried, shared_only=not asked.client.own, conversation=asked.receipt.chat
        )

    async def _other(self, asked: Asked, refusal: Refusal, refused: Credential, journey: Journey) -> Credential | None:
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
                if other := await self._next(asked, refused, journey):
                    return other
                raise renew_later(error.retry_after) from error
        if (until := rest_after(refusal, self._clock())) is not None:
            self._accounts.rest(refused.account_id, until, refusal.message)
        if refusal.status in STATUSES:
            self._accounts.failed(refused.account_id)
            return await self._instead(asked, refused, journey)
        if refusal.status == 403:
            self._accounts.failed(refused.account_id)
        return await self._next(asked, refused, journey) if refusal.status in (401, 402, 403, 429) else None

    async def _instead(self, asked: Asked, failed: Credential, journey: Journey) -> Credential | None:
        """Another credential after a failure that may be everybody's: counts as a retry, and none that failed too."""
        if journey.guest or journey.retries >= RETRIES:
            return None
        other = await self._next(asked, failed, journey)
        if other is None or self._accounts.get(other.account_id).strain == "failing":
            return None
        journey.retries += 1
        return other

    async def _next(self, asked: Asked, before: Credential, journey: Journey) -> Credential | None:
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

    def _note(
        self, receipt: Receipt, asked: ChatRequest, sent: ChatRequest, credential: Credential, journey: Journey
    ) -> None:
        receipt.attempts += 1
        receipt.model = sent.model
        receipt.changes = (*sent.changes, *journey.changes)
        receipt.account_id, receipt.account = credential.account_id, self._accounts.payer(credential)
        if self._keep_bodies:
            receipt.bodies = Bodies(asked.body, sent.body)

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
