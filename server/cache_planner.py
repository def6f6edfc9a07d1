"""The prompt-cache planner at work: plans a request's marks, and learns from what the upstream says of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from server.cache_draft import NO_BOUNDS, Bounds, Plan, draft, in_words
from server.cache_journal import CacheEntry
from server.cache_memory import PROGRAM, WEEK, CacheMemory, Scope
from server.logs import frames
from server.models import Model
from server.prefix import blocks
from server.prices import token_counts
from server.request import ChatRequest
from server.rewrite.cache_marks import marks_in, without_marks
from server.rewrite.cache_plan import LOOKBACK, SECONDS, tokens_at

log = logging.getLogger(__name__)

WAITING = 900.0  # seconds after which a request that never began is forgotten
DOUBTS = 2  # misses in a row of marks on entries of the other lifetime, until lifetimes are believed to be separate
CLOSE = 0.03  # how far a count of tokens may be off ours and still mean the same block


@dataclass(frozen=True)
class Counts:
    """The tokens of a prompt, as a reply's `usage` has them."""

    read: int
    write_5m: int
    write_1h: int
    plain: int

    @classmethod
    def of(cls, usage: Mapping[str, Any]) -> Counts:
        counts = token_counts(usage)
        return cls(
            counts["cache_read_tokens"],
            counts["cache_write_5m_tokens"],
            counts["cache_write_1h_tokens"],
            counts["input_tokens"],
        )

    @property
    def written(self) -> int:
        return self.write_5m + self.write_1h

    @property
    def prompt(self) -> int:
        return self.read + self.written + self.plain


def believed(plan: Plan, started_at: float, began_at: float) -> dict[int, CacheEntry | None]:
    """What a request does to the entries if everything is as we believe: for upstreams that report nothing."""
    changed: dict[int, CacheEntry | None] = {}
    for i, lifetime in plan.marks.items():
        if i > plan.hit and tokens_at(plan.prompt, i, plan.terms) >= plan.terms.minimum:
            changed[i] = CacheEntry(lifetime, started_at + SECONDS[lifetime], began_at)
    return changed | renewed(plan, plan.hit, started_at)


def renewed(
    plan: Plan, hit: int, started_at: float, stored: Mapping[int, CacheEntry] = {}
) -> dict[int, CacheEntry | None]:
    """The living entries it read or marked: alive anew, each for its own lifetime."""
    again: dict[int, CacheEntry | None] = {}
    for i in {*plan.marks, hit} & plan.live.keys():
        if i <= hit:
            lifetime = plan.live[i].lifetime
            tokens = stored[i].tokens if i in stored else 0
            again[i] = CacheEntry(lifetime, started_at + SECONDS[lifetime], started_at, tokens)
    return again


def found(plan: Plan, counts: Counts, stored: Mapping[int, CacheEntry]) -> int:
    """The block up to which the upstream read: of the entries we know, or else of any the marks could find."""
    if not counts.read:
        return -1
    scale = counts.prompt / max(plan.prompt.size[-1], 1)
    tokens = {i: stored[i].tokens or plan.prompt.size[i] * scale for i in stored}
    near = min(tokens, key=lambda i: abs(tokens[i] - counts.read), default=-1)
    if near >= 0 and abs(tokens[near] - counts.read) <= max(CLOSE * counts.read, 32):
        return near
    reach = {j for mark in plan.marks for j in range(max(0, mark - LOOKBACK + 1), mark + 1)}
    return min(reach, key=lambda i: abs(plan.prompt.size[i] * scale - counts.read), default=-1)


def settled(
    plan: Plan, counts: Counts, stored: Mapping[int, CacheEntry], hit: int, started_at: float, began_at: float
) -> dict[int, CacheEntry | None]:
    """What the request did to the entries, by what the upstream counted."""
    changed: dict[int, CacheEntry | None] = {i: None for i in plan.within_reach if i > hit}
    if hit >= 0 and hit not in plan.live:
        until = started_at + SECONDS["5m"]
        changed[hit] = CacheEntry("5m", until, started_at, counts.read)  # written by others, or long ago
    changed |= renewed(plan, hit, started_at, stored)
    if not counts.written:
        return changed
    scale = counts.prompt / max(plan.prompt.size[-1], 1)
    new = [i for i in plan.marks if i > hit and plan.prompt.size[i] * scale >= (1 - CLOSE) * plan.terms.minimum]
    for i in new:
        lifetime = plan.marks[i] if counts.write_1h else "5m"
        exact = counts.read + counts.written if i == new[-1] else 0
        changed[i] = CacheEntry(lifetime, started_at + SECONDS[lifetime], began_at, exact)
    return changed


class CachePlanner:
    """Plans, and is told what became of each plan: `began`, `refused` or `failed`. None of these ever raises."""

    def __init__(self, memory: CacheMemory) -> None:
        self._memory = memory
        self._waiting: dict[Plan, None] = {}  # those with marks whose response has not begun, oldest first

    def plan(
        self,
        request: ChatRequest,
        model: Model,
        scope: Scope,
        now: float,
        bounds: Bounds = NO_BOUNDS,
    ) -> tuple[ChatRequest, Plan | None]:
        """The request as it should be sent. If anything fails here, it goes without marks, and there is no plan."""
        try:
            planned, plan = draft(request, model, scope, self._memory, now, bounds)
            for other in list(self._waiting):
                if now - other.at >= WAITING:
                    self._done(other)
                elif other.prompt.seals == plan.prompt.seals:
                    shared = min(plan.prompt.shared(other.prompt), max(other.marks) + 1)
                    plan = replace(plan, waited_for=max(plan.waited_for, shared))
            if plan.marks:
                self._waiting[plan] = None
            return planned, plan
        except Exception as error:
            log.error("Planning the prompt cache failed; the request goes without marks: %s", frames(error))
            return self._bare(request), None

    def read_ahead(self, request: ChatRequest) -> None:
        """Read the blocks of a large request before it is planned; a thread may do this."""
        try:
            for place, role, block in blocks(without_marks(request.body) if request.is_marked else request.body):
                self._memory.digests.of(place.part, role, block.get("type", "custom"), block)
        except Exception:
            log.exception("Reading ahead for the prompt cache failed.")

    def _bare(self, request: ChatRequest) -> ChatRequest:
        try:
            removed = marks_in(request.body)
            if not removed:
                return request
            return request.noted("plan_cache", in_words(removed, {}), body=without_marks(request.body))
        except Exception as error:
            log.error("The front end's cache marks could not be taken out: %s", frames(error))
            return request

    def began(
        self, plan: Plan | None, usage: Mapping[str, Any], started_at: float, began_at: float, reply: str = ""
    ) -> None:
        """Its response began: what it wrote can be read from now on. `usage` as in message_start or a plain reply, and
        `reply` its id."""
        if plan is None or plan.off:
            return
        try:
            self._done(plan)
            self._learn(plan, usage, started_at, began_at, reply)
        except Exception as error:
            log.error("Learning from a reply's cache figures failed: %s", frames(error))

    def pinged(self, plan: Plan, at: float) -> None:
        """A ping read the prefix up to the plan's last mark."""
        last = max(plan.marks)
        self._memory.write(plan.prompt, {last: CacheEntry("5m", at + SECONDS["5m"], at)})

    def failed(self, plan: Plan | None) -> None:
        """It was refused or broke off before its response began: it wrote nothing."""
        if plan is not None:
            self._done(plan)

    def refused(self, plan: Plan | None, message: str, now: float) -> bool:
        """A 400 came. Whether it was about the marks, so that trying again without what it names makes sense."""
        self.failed(plan)
        low = message.lower()
        if plan is None or not plan.marks or not any(word in low for word in ("cache_control", "ttl", "cache control")):
            return False
        hours = "1h" in plan.marks.values()
        if hours and "ttl" in low:
            self._memory.learn(plan.scope.upstream, no_hours_until=now + WEEK)
            log.warning("This upstream refuses cache marks of an hour; five minutes from now on.")
        else:
            self._memory.learn(plan.scope.upstream, no_marks_until=now + WEEK)
            log.warning("This upstream refuses cache marks; none from now on.")
        return True

    def _done(self, plan: Plan) -> None:
        self._waiting.pop(plan, None)

    def _learn(self, plan: Plan, usage: Mapping[str, Any], started_at: float, began_at: float, reply: str) -> None:
        prompt, memory, name = plan.prompt, self._memory, plan.scope.upstream
        counts = Counts.of(usage)
        if counts.prompt:
            memory.learn_tokens(plan.model, counts.prompt, prompt.size[-1])
        known = memory.upstream(name)
        if (counts.read or counts.written) and not known.reports:
            memory.learn(name, reports=True)
            known = memory.upstream(name)
        if not known.reports or not counts.prompt:
            memory.write(prompt, believed(plan, started_at, began_at))
        else:
            stored = memory.known(prompt)
            hit = found(plan, counts, stored)
            self._judge_lifetimes(plan, hit, started_at)
            memory.write(prompt, settled(plan, counts, stored, hit, started_at, began_at))
        memory.remember(prompt, plan.related, started_at, reply)
        if plan.learned.head:
            memory.keep_head(*plan.learned.head)
        if plan.learned.window:
            memory.keep_window(*plan.learned.window)

    def _judge_lifetimes(self, plan: Plan, hit: int, now: float) -> None:
        """Whether a mark of one lifetime finds entries of the other: the documentation implies it, no more."""
        known = self._memory.upstream(plan.scope.upstream)
        if known.mixed or plan.hit < 0:
            return
        said = {lifetime for mark, lifetime in plan.marks.items() if plan.hit <= mark < plan.hit + LOOKBACK}
        entry = plan.live[plan.hit]
        if entry.lifetime in said:
            return
        if hit >= plan.hit:
            self._memory.learn(plan.scope.upstream, mixed=True, doubts=0)
        elif entry.until - now < 30 or not plan.related or now - plan.related[-1].at < PROGRAM:
            return  # it may have died: of age, or in a pause that this clock did not see
        elif known.doubts + 1 < DOUBTS:
            self._memory.learn(plan.scope.upstream, doubts=known.doubts + 1)
        else:
            self._memory.learn(plan.scope.upstream, doubts=0, separate_until=now + WEEK)
            log.warning("This upstream keeps cache entries of five minutes and of an hour apart; one kind from now on.")
