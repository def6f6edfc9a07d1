"""What we send, and what comes of it: the request fitted to who pays, its cache marks, the lessons of refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from server.addresses import is_loopback
from server.attempt import Asked
from server.cache_draft import Bounds, Plan
from server.cache_helps import CacheHelps
from server.cache_memory import Scope
from server.cache_planner import CachePlanner
from server.cache_why import tell
from server.explain import Refusal, is_policy
from server.keepalive import KeepAlive
from server.lesson import MOST_LESSONS, Lesson, with_lessons
from server.lesson_store import Lessons
from server.live_models import LiveModels
from server.models import Models
from server.payers import Credential
from server.presets import Persona
from server.refusals import lesson_of
from server.request import LARGE, Change, ChatRequest
from server.rewrite import Context, Options, rewrite
from server.rewrite.diagnostics import ask_why
from server.rewrite.ttl import ttl_is_stripped
from server.sse import Meter

MOST_PLANNED = 10_000  # blocks: no chat has more, and planning would keep everybody else waiting


@dataclass(frozen=True)
class Refused:
    """A request as it was sent, and the 400 it got."""

    sent: ChatRequest
    refusal: Refusal

    def says_the_same(self, again: ChatRequest) -> bool:
        sent = self.sent
        return (sent.body, sent.betas, sent.version) == (again.body, again.betas, again.version)


class UpstreamLesson(NamedTuple):
    """A lesson with the upstream and the model that taught it."""

    upstream: str
    model: str
    lesson: Lesson


@dataclass
class Case:
    """What one request is to be like, and what its refusals have taught so far."""

    persona: Persona | None
    helps: CacheHelps
    lessons: list[UpstreamLesson] = field(default_factory=list)
    refused: Refused | None = None  # what the last lesson is about

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(learned.lesson.change(learned.model) for learned in self.lessons)


class Fitting:
    """Fits requests to models, credentials and caches, and learns from what the upstream says."""

    def __init__(
        self,
        live: LiveModels,
        lessons: Lessons,
        planner: CachePlanner | None,
        keep_alive: KeepAlive | None,
        options: Options,
        *,
        base_url: str,
        clock: Callable[[], float],
    ) -> None:
        self._live, self._lessons, self._planner, self._keep_alive = live, lessons, planner, keep_alive
        self._options, self._clock = options, clock
        self._base_url = base_url  # where Anthropic's API is; an account elsewhere is another provider's
        self._anthropics: dict[str, bool] = {}  # by base URL

    async def close(self) -> None:
        if self._keep_alive is not None:
            await self._keep_alive.close()

    @property
    def models(self) -> Models:
        return self._live.models

    async def prepare(
        self, request: ChatRequest, credential: Credential, case: Case
    ) -> tuple[ChatRequest, Plan | None]:
        """The request as it goes upstream with this credential, and the plan of its cache marks."""
        lessons = self._lessons.of(credential.base_url)
        for upstream, model, learned in case.lessons:
            if upstream == credential.base_url:
                lessons = with_lessons(lessons, model, [learned])
        context = Context(
            credential.kind,
            self._live.models,
            case.persona,
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
            Bounds(not ttl_is_stripped(context), case.helps, self._options.required_system_line.strip()),
        )
        return ask_why(planned, context, plan.reply_before if plan else ""), plan

    def learns(
        self, refusal: Refusal, sent: ChatRequest, credential: Credential, plan: Plan | None, case: Case
    ) -> bool:
        """Whether a 400 taught something that mends the request. One try per model and rule."""
        if refusal.status != 400 or is_policy(refusal) or len(case.lessons) >= MOST_LESSONS:
            return False
        if "learn" in self._options.skip_steps or (found := lesson_of(refusal.message, sent)) is None:
            return False
        learned = UpstreamLesson(credential.base_url, sent.model, found)
        if any((*learned[:2], found.rule) == (*one[:2], one.lesson.rule) for one in case.lessons):
            return False
        if self._planner is not None:
            self._planner.refused(plan, refusal.message, self._clock())
        case.lessons.append(learned)
        case.refused = Refused(sent, refusal)
        return True

    def begun(self, plan: Plan | None, sent: ChatRequest, asked: Asked, case: Case) -> Callable[[Meter], None]:
        """What to do when the reply to a planned request begins: the planner learns, the receipt tells the story."""
        started, receipt = self._clock(), asked.receipt

        def begun(meter: Meter) -> None:
            if self._planner is not None:
                self._planner.began(plan, meter.usage, started, self._clock(), meter.id)
                receipt.cache = tell(plan, meter.usage, meter.diagnostics)
            if self._keep_alive is not None:
                self._keep_alive.watch(plan, sent, asked, case.helps.cache_keepalive_pings or 0)

        return begun

    def failed(self, plan: Plan | None) -> None:
        """It was refused or broke off before its reply began."""
        if self._planner is not None:
            self._planner.failed(plan)

    def proved(self, case: Case) -> None:
        """The request went through: its lessons are remembered."""
        for learned in case.lessons:
            self._lessons.add(*learned)

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
