"""A request with the marks that pay, and the plan they follow: drafted from what is known, changing nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from server.cache_helps import NO_HELPS, CacheHelps
from server.cache_journal import CacheEntry, PastRequest
from server.cache_memory import CacheMemory, Scope, alive, seen
from server.content import THOUGHTS, as_blocks, plural
from server.models import Model
from server.prefix import UNREAD, Prompt, read_prompt, text_size
from server.request import ChatRequest
from server.rewrite import late_lore, steady_window
from server.rewrite.cache_marks import marks_in, with_marks, without_marks
from server.rewrite.cache_plan import (
    LOOKBACK,
    SECONDS,
    Forecast,
    Lifetime,
    LiveEntry,
    Terms,
    forecast,
    plan_marks,
)

LEAST_BYTES = 2  # of text in a token; hardly any language has less


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
class HelpsLearned:
    """What the helps learned of a chat: with the number it has in the memory, 0 for a new one."""

    head: tuple[int, late_lore.Head] | None = None
    window: tuple[int, steady_window.Window] | None = None


class Lapsed(NamedTuple):
    """The longest entry of a prompt that is alive no more, and when it was last used."""

    block: int
    used_at: float


NOTHING_LEARNED = HelpsLearned()


@dataclass(frozen=True, eq=False)
class Plan:
    """One request's marks and everything that was believed when they were placed. `off`: why there are none."""

    scope: Scope
    model: Model
    prompt: Prompt
    terms: Terms
    at: float
    marks: Mapping[int, Lifetime] = field(default_factory=dict)
    live: Mapping[int, LiveEntry] = field(default_factory=dict)
    forecast: Forecast = NOTHING
    related: tuple[PastRequest, ...] = ()
    learned: HelpsLearned = NOTHING_LEARNED
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

    def read(helped: ChatRequest) -> tuple[Prompt, dict[int, CacheEntry], dict[int, LiveEntry]]:
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
) -> tuple[ChatRequest, HelpsLearned]:
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
