"""The prompt-cache planner at work: plans a request's marks, and learns from what the upstream says of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from server.cache_helps import NO_HELPS, CacheHelps
from server.cache_journal import Kept, Request
from server.cache_memory import PROGRAM, WEEK, CacheMemory, Scope, alive, seen
from server.content import THOUGHTS, as_blocks, plural
from server.logs import frames
from server.models import Model
from server.prefix import UNREAD, Prompt, blocks, read_prompt, text_size
from server.request import ChatRequest
from server.rewrite import late_lore, steady_window
from server.rewrite.cache_marks import marks_in, with_marks, without_marks
from server.rewrite.cache_plan import (
    LOOKBACK,
    SECONDS,
    Forecast,
    Held,
    Lifetime,
    Terms,
    forecast,
    plan_marks,
    tokens_at,
)
from server.usage import token_counts

log = logging.getLogger(__name__)

WAITING = 900.0  # seconds after which a request that never began is forgotten
DOUBTS = 2  # misses in a row of marks on entries of the other lifetime, until lifetimes are believed to be separate
LEAST_BYTES = 2  # of text in a token; hardly any language has less
CLOSE = 0.03  # how far a count of tokens may be off ours and still mean the same block


@dataclass(frozen=True)
class Bounds:
    """What the planner may do to a request: whether marks may say an hour, which helps are wanted, and the line that
    keeps its place in front."""

    ttl_allowed: bool = True
    helps: CacheHelps = NO_HELPS
    required_line: str = ""


NO_BOUNDS = Bounds()
NOTHING = Forecast()


@dataclass(frozen=True)
class Learned:
    """What the helps learned of a chat: with the number it has in the memory, 0 for a new one."""

    head: tuple[int, late_lore.Head] | None = None
    window: tuple[int, steady_window.Window] | None = None


class Lapsed(NamedTuple):
    """The longest entry of a prompt that is alive no more, and when it was last used."""

    block: int
    used_at: float


NOTHING_LEARNED = Learned()


@dataclass(frozen=True, eq=False)
class Plan:
    """One request's marks and everything that was believed when they were placed. `off`: why there are none."""

    scope: Scope
    model: Model
    prompt: Prompt
    terms: Terms
    at: float
    marks: Mapping[int, Lifetime] = field(default_factory=dict)
    live: Mapping[int, Held] = field(default_factory=dict)
    forecast: Forecast = NOTHING
    related: tuple[Request, ...] = ()
    learned: Learned = NOTHING_LEARNED
    lapsed: Lapsed | None = None
    parted: bool = False  # the request before it left a living entry that goes further than they agree
    waited_for: int = 0  # blocks it shares with a request whose answer had not begun when it was made
    off: str = ""

    @property
    def reply_before(self) -> str:
        """The id of the chat's last reply; "" where another paid for it, or it is not known (any more)."""
        last = self.related[-1] if self.related else None
        return last.reply if last and last.prompt.payer == self.prompt.payer else ""

    @property
    def within_reach(self) -> list[int]:
        """The believed entries that the marks find."""
        return sorted(i for i in self.live if any(i <= mark < i + LOOKBACK for mark in self.marks))

    @property
    def hit(self) -> int:
        """The block that ends the longest of them, -1 if there is none."""
        return max(self.within_reach, default=-1)


def draft(
    request: ChatRequest,
    model: Model,
    scope: Scope,
    memory: CacheMemory,
    now: float,
    bounds: Bounds = NO_BOUNDS,
) -> tuple[ChatRequest, Plan]:
    """The request with the marks that pay, and the plan they follow. Changes nothing: also the dry run.

    A prompt far too short to be cached is not even read.
    """
    removed = marks_in(request.body) if request.is_marked else 0
    terms = memory.terms(scope, model, bounds.ttl_allowed, now)
    if not (removed or request.counting or bounds.helps.rearrange):
        short = terms.minimum * LEAST_BYTES
        if request.size < 2 * short and (size := text_size(request.body)) < short:
            few = Forecast(plain=round(size * terms.tokens_per_byte))
            return request, Plan(scope, model, UNREAD, terms, now, forecast=few, off="short")
    bare = replace(request, body=without_marks(request.body)) if removed else request

    def read(helped: ChatRequest) -> tuple[Prompt, dict[int, Kept], dict[int, Held]]:
        prompt = read_prompt(helped.body, model, "\n".join(scope), memory.digests)
        known = memory.known(prompt)
        return prompt, known, alive(known, now)

    helped, learned = help_out(bare, model, memory, bounds, cold=False)
    prompt, known, live = read(helped)
    if not live and learned.head:
        helped, learned = help_out(bare, model, memory, bounds, cold=True)
        prompt, known, live = read(helped)
    related = memory.related(prompt)
    off = "counting" if request.counting else "" if terms.lifetimes else "refused"
    marks = {} if off else plan_marks(prompt, live, seen(related, prompt), terms)
    dead = [
        Lapsed(i, one.until - SECONDS[one.lifetime]) for i, one in known.items() if i not in live and one.since <= now
    ]
    last = related[-1].prompt if related else prompt
    agreed = prompt.shared(last)
    plan = Plan(
        scope=scope,
        model=model,
        prompt=prompt,
        terms=terms,
        at=now,
        marks=marks,
        live=live,
        forecast=forecast(prompt, marks, live, terms),
        related=related,
        learned=learned,
        lapsed=max(dead, default=None),
        parted=agreed < len(last) and any(i >= agreed for i in alive(memory.known(last), now)),
        waited_for=max((i + 1 for i, one in known.items() if one.since > now), default=0),
        off=off,
    )
    body = with_marks(helped.body, {prompt.places[i]: mark_of(lifetime) for i, lifetime in marks.items()})
    if body == request.body:
        return request, plan
    if not removed and not marks:
        return helped, plan
    return helped.noted("plan_cache", in_words(removed, marks), body=body), plan


def help_out(
    request: ChatRequest, model: Model, memory: CacheMemory, bounds: Bounds, *, cold: bool
) -> tuple[ChatRequest, Learned]:
    """The request after the opt-in helps, and what they learned of the chat."""
    helps, learned = bounds.helps, NOTHING_LEARNED
    if not helps.rearrange:
        return request, learned
    thinks_back = request.body.get("tools") or request.has(*THOUGHTS)
    if model.binds_thinking and thinks_back:
        return request, learned  # thinking that is sent back, as between calls, is bound to everything before it
    story = steady_window.Story.of(request.body, memory.secret)
    if helps.cache_steady_window:
        known = list(memory.windows.items())
        at = steady_window.choose_window(story, [window for _, window in known])
        number, before = known[at] if at >= 0 else (0, None)
        window = steady_window.after(before, story, head_bytes(request.body))
        learned = replace(learned, window=(number, window))
        body, cut = steady_window.steady_window(request.body, story, window)
        if cut:
            detail = (
                f"Left out the oldest {plural(cut, 'message')} at once, so that the rest can stay cached for a while."
            )
            request = request.noted("cache_steady_window", detail, body=body)
    if helps.cache_late_lore:
        lines = late_lore.Lines.of(request.body, memory.secret, bounds.required_line)
        heads = list(memory.heads.items())
        told = frozenset(story.digests)
        at = late_lore.choose_head(lines, told, [head for _, head in heads])
        number, old = heads[at] if at >= 0 else (0, None)
        head = late_lore.after(old, lines, told, cold)
        learned = replace(learned, head=(number, head))
        body, moved = late_lore.late_lore(request.body, lines, head, model)
        if moved:
            detail = f"Moved {plural(moved, 'changing line')} in front behind the story, which stays cached so."
            request = request.noted("cache_late_lore", detail, body=body)
    return request, learned


def head_bytes(body: Mapping[str, Any]) -> int:
    return sum(len(str(block.get("text", ""))) for block in as_blocks(body.get("system")))


def mark_of(lifetime: Lifetime) -> dict[str, str]:
    """Without `ttl` it means five minutes, also where no `ttl` is taken."""
    return {"type": "ephemeral", "ttl": "1h"} if lifetime == "1h" else {"type": "ephemeral"}


def in_words(removed: int, marks: Mapping[int, Lifetime]) -> str:
    hours = sum(lifetime == "1h" for lifetime in marks.values())
    placed = f"Placed {plural(len(marks), 'cache mark')}" if marks else "Placed no cache mark"
    placed += f" ({hours} for an hour)" if hours else ""
    return placed + (f", took out the front end's {removed}." if removed else ".")


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
        self._memory.write(plan.prompt, {last: Kept("5m", at + SECONDS["5m"], at)})

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


# --------------------------------------------------------------------------------- what the upstream says, against ours


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


def believed(plan: Plan, started_at: float, began_at: float) -> dict[int, Kept | None]:
    """What a request does to the entries if everything is as we believe: for upstreams that report nothing."""
    changed: dict[int, Kept | None] = {}
    for i, lifetime in plan.marks.items():
        if i > plan.hit and tokens_at(plan.prompt, i, plan.terms) >= plan.terms.minimum:
            changed[i] = Kept(lifetime, started_at + SECONDS[lifetime], began_at)
    return changed | renewed(plan, plan.hit, started_at)


def renewed(plan: Plan, hit: int, started_at: float, stored: Mapping[int, Kept] = {}) -> dict[int, Kept | None]:
    """The living entries it read or marked: alive anew, each for its own lifetime."""
    again: dict[int, Kept | None] = {}
    for i in {*plan.marks, hit} & plan.live.keys():
        if i <= hit:
            lifetime = plan.live[i].lifetime
            tokens = stored[i].tokens if i in stored else 0
            again[i] = Kept(lifetime, started_at + SECONDS[lifetime], started_at, tokens)
    return again


def found(plan: Plan, counts: Counts, stored: Mapping[int, Kept]) -> int:
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
    plan: Plan, counts: Counts, stored: Mapping[int, Kept], hit: int, started_at: float, began_at: float
) -> dict[int, Kept | None]:
    """What the request did to the entries, by what the upstream counted."""
    changed: dict[int, Kept | None] = {i: None for i in plan.within_reach if i > hit}
    if hit >= 0 and hit not in plan.live:
        changed[hit] = Kept("5m", started_at + SECONDS["5m"], started_at, counts.read)  # written by others, or long ago
    changed |= renewed(plan, hit, started_at, stored)
    if not counts.written:
        return changed
    scale = counts.prompt / max(plan.prompt.size[-1], 1)
    new = [i for i in plan.marks if i > hit and plan.prompt.size[i] * scale >= (1 - CLOSE) * plan.terms.minimum]
    for i in new:
        lifetime = plan.marks[i] if counts.write_1h else "5m"
        exact = counts.read + counts.written if i == new[-1] else 0
        changed[i] = Kept(lifetime, started_at + SECONDS[lifetime], began_at, exact)
    return changed
