"""What the prompt cache did for a request, and why not more: in words for the player.

Found by comparing digests, places and settings of this request with the ones before it in its chat; no text is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from server.cache_draft import Plan
from server.cache_memory import MARGIN
from server.cache_planner import Counts
from server.days import span
from server.prefix import Prompt
from server.rewrite.cache_plan import SECONDS, Forecast
from server.rewrite.steady_window import slid

WORTH_A_WORD = 0.1  # of the prompt sent again
TAIL = 3  # blocks at the end of a request that are replaced by nature
# Why a turn missed the cache, as far as the books tell: each kind of a cause in words.
IN_BRIEF = {
    "model": "the model was switched",
    "system": "the system prompt changed",
    "tools": "a tool definition changed",
    "messages": "an earlier part of the story changed",
    "first": "first request of this chat",
    "too_short": "too short to be cached on this model",
    "no_marks": "this upstream takes no cache marks",
    "credential": "another account or key paid, with a cache of its own",
    "setting": "a setting was changed",
    "speaker": "another character spoke (group chat)",
    "parallel": "another request with the same beginning was still waiting for its answer",
    "gone": "the upstream no longer had what it had stored",
    "pause": "the pause was longer than the cache lives",
    "short": "the chat had only just become long enough to be cached",
    "unwritten": "the request before was not stored",
}


class Cause(NamedTuple):
    kind: str
    words: str


# What `diagnostics.cache_miss_reason` says, in our kinds and words (Anthropic docs, 2026-09).
REASONS = {f"{kind}_changed": Cause(kind, IN_BRIEF[kind]) for kind in ("model", "system", "tools", "messages")}
FINER = {"system": {"speaker", "setting"}, "messages": {"setting"}}  # kinds of ours that say the same more exactly


class CacheStory(NamedTuple):
    """The `cache` part of a receipt. `again`: tokens that stood in the request before and were not read; `cause`: the
    kind of `missed_because`."""

    outcome: str = "off"
    read: int = 0
    written: int = 0
    missed_because: str | None = None
    again: int = 0
    forecast: Forecast | None = None
    cause: str = ""

    def public(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "read": self.read,
            "written": self.written,
            "missed_because": self.missed_because,
            "forecast": self.forecast and self.forecast._asdict(),
        }

    def line(self) -> str:
        """A few words for the log."""
        words = f"cache {self.outcome}, {self.read:,} read, {self.written:,} written"
        return f"{words}; {self.missed_because}" if self.missed_because else words

    def headers(self) -> dict[str, str]:
        """The same for front ends, in the ASCII that headers take."""
        headers = {"x-cache": f"{self.outcome}; read={self.read}; written={self.written}"}
        if self.missed_because:
            why = self.missed_because.replace("¢", "ct")
            headers["x-cache-missed-because"] = why.encode("ascii", "replace").decode()
        return headers


def tell(plan: Plan | None, usage: Mapping[str, Any], diagnostics: Mapping[str, Any] | None = None) -> CacheStory:
    """The story of a request whose response began with this `usage`."""
    counts = Counts.of(usage)
    if plan is None or plan.off in ("refused", "counting"):
        refused = plan is not None and plan.off == "refused"
        kind = "no_marks" if refused else ""
        outcome = "hit" if counts.read else "off"
        return CacheStory(outcome, counts.read, counts.written, IN_BRIEF.get(kind), cause=kind)
    forecast = plan.forecast
    if counts.prompt < plan.terms.minimum and not counts.read:
        why = f"{IN_BRIEF['too_short']}: {counts.prompt:,} of {plan.terms.minimum:,} tokens"
        return CacheStory("off", missed_because=why, forecast=forecast, cause="too_short")
    if plan.off:
        return CacheStory("hit" if counts.read else "off", counts.read, counts.written, forecast=forecast)
    if not plan.related:
        outcome, kind = ("hit", "") if counts.read else ("miss", "first")
        return CacheStory(outcome, counts.read, counts.written, IN_BRIEF.get(kind), forecast=forecast, cause=kind)
    last = plan.related[-1].prompt
    again = max(round(plan.prompt.likeness(last) * counts.prompt) - counts.read, 0)
    if again <= WORTH_A_WORD * counts.prompt:
        return CacheStory("hit", counts.read, counts.written, None, again, forecast)
    cause = find_cause(plan, counts, again)
    theirs = upstreams_cause(diagnostics or {}, again)
    if theirs and cause.kind not in {theirs.kind, *FINER.get(theirs.kind, ())}:
        cause = theirs
    outcome = "partial" if counts.read else "miss"
    why = in_words(plan, cause, again)
    return CacheStory(outcome, counts.read, counts.written, why, again, forecast, cause.kind)


def in_words(plan: Plan, cause: Cause, again: int) -> str:
    price = plan.model.price
    cost = f", {again * price.input / 10_000:.1f} ¢" if price else ""
    return f"{cause.words}: {again:,} tokens sent again{cost}"


def upstreams_cause(diagnostics: Mapping[str, Any], again: int) -> Cause | None:
    """What the API's own comparison says, a word or an object with the tokens it is about; None where it cannot say, or
    where that is not why most of these tokens were sent again."""
    said = diagnostics.get("cache_miss_reason")
    kind, missed = (said.get("type"), said.get("cache_missed_input_tokens")) if isinstance(said, dict) else (said, None)
    if isinstance(missed, int) and missed < again / 2:
        return None
    return REASONS.get(kind) if isinstance(kind, str) else None


def find_cause(plan: Plan, counts: Counts, again: int) -> Cause:
    """Why these tokens were not read: something changed in front of them, or they were not in the cache (any more)."""
    prompt, last = plan.prompt, plan.related[-1].prompt
    if switched := switch(prompt, last):
        return switched
    agreed = prompt.shared(last)

    def tokens(blocks: int) -> float:
        return counts.prompt * prompt.size[blocks - 1] / prompt.size[-1] if blocks else 0.0

    not_held = max(tokens(agreed) - counts.read, 0)
    ran_out = plan.lapsed is not None and tokens(plan.lapsed.block + 1) - counts.read >= again / 2
    if agreed < len(last) and (plan.parted or not_held < again / 2):
        cause = parting(prompt, [one.prompt for one in plan.related], agreed)
        if cause.kind != "speaker" or not ran_out:
            return cause
    if plan.waited_for and plan.waited_for >= agreed / 2:
        return Cause("parallel", IN_BRIEF["parallel"])
    if plan.hit >= 0 and plan.forecast.read > counts.read + again / 2:
        return Cause("gone", IN_BRIEF["gone"])
    pause = plan.at - plan.related[-1].at
    if plan.lapsed and pause > SECONDS["5m"] - MARGIN:
        return Cause("pause", f"pause of {span(pause)}")
    if plan.lapsed:
        return Cause("pause", f"last used {span(plan.at - plan.lapsed.used_at)} ago, and run out")
    if last.size[-1] * counts.prompt / prompt.size[-1] < plan.terms.minimum:
        return Cause("short", "the chat has only just become long enough to be cached")
    return Cause("unwritten", "the request before was not stored, as it did not seem likely enough to come back")


def switch(prompt: Prompt, last: Prompt) -> Cause | None:
    """A change of who pays, of the model or of a setting."""
    if prompt.payer != last.payer:
        return Cause("credential", "another account or key pays now, with a cache of its own")
    if prompt.model != last.model:
        return Cause("model", f"the model was switched from {last.model} to {prompt.model}")
    if prompt.seals["system"] != last.seals["system"]:
        return Cause("setting", "fast mode or citations were switched")
    for name, value in prompt.settings.items():
        if (before := last.settings.get(name)) != value:
            if name == "images":
                return Cause("setting", "the first image came" if value == "some" else "the last image went")
            if name == "forced tool":
                return Cause("setting", "another tool was forced")
            return Cause("setting", f"{name} was changed from {before} to {value}")
    return None


def parting(prompt: Prompt, related: Sequence[Prompt], at: int) -> Cause:
    """What stands where this request parts from the one before."""
    last = related[-1]
    if any(at < len(one) and one.places[at].part == "tools" for one in (prompt, last)):
        return Cause("tools", IN_BRIEF["tools"])
    front = prompt.head or prompt.lead
    dropped = slid(last.own[last.head :], prompt.own[prompt.head :])
    if at < front:
        if dropped:
            return Cause("system", "the context size is full: the oldest messages and other lines were dropped")
        if other_speaker(prompt, related, at):
            return Cause("speaker", "another character speaks (group chat)")
        return in_front(prompt, related, at, front)
    if dropped and at == prompt.head:
        return Cause("messages", "the context size is full: the oldest messages were dropped")
    return in_story(prompt, last, at)


def other_speaker(prompt: Prompt, related: Sequence[Prompt], at: int) -> bool:
    """Whether this request has the head of an earlier one that ended like it, or hardly anything of the last one's."""
    last = related[-1]
    if any(one.own[-1] == prompt.own[-1] != last.own[-1] and prompt.shared(one) > at for one in related[:-1]):
        return True
    before = set(last.own[: last.head])
    own = [(one, prompt.weights[one]) for one in prompt.own[: prompt.head]]
    return sum(size for one, size in own if one in before) < 0.5 * sum(size for _, size in own) and len(own) > 2


def in_front(prompt: Prompt, related: Sequence[Prompt], at: int, front: int) -> Cause:
    last = related[-1]
    tools = sum(place.part == "tools" for place in prompt.places)
    where = f"block {at - tools + 1} of {front - tools}"
    what = "the system prompt" if prompt.head else "the prompts in the first message"
    chain = [*related[-3:], prompt]
    partings = [later.shared(earlier) for earlier, later in pairwise(chain)]
    came = at < len(last) and last.own[at] in prompt.own[at + 1 : front]
    went = prompt.own[at] in last.own[at + 1 :]
    if len(partings) == 3 and set(partings) == {at} and not came and not went:
        return Cause("system", f"{what} changes with every request ({where}), as a time, date or random macro does")
    if came != went:
        verb = "came into" if came else "left"
        return Cause("system", f"World Info entry {verb} {what} ({where})")
    return Cause("system", f"World Info entry in {what} changed ({where}), or another text there")


def in_story(prompt: Prompt, last: Prompt, at: int) -> Cause:
    new = prompt.own[at] if at < len(prompt) else b""
    old, after = last.own[at], last.own[at + 1] if at + 1 < len(last) else b""
    stays = old in prompt.own[at + 1 :]
    if stays and new == after:
        return Cause("messages", "an author's note or World Info entry at a depth moved on")
    if stays:
        return Cause("messages", "a text was put into the story: an author's note or World Info entry at a depth")
    if new == after and len(last) - at > TAIL:
        return Cause("messages", "a World Info entry at a depth, or an author's note, left the story")
    if len(last) - at <= TAIL:
        return Cause("messages", "the end of the request before was not kept")
    number = prompt.places[at].message + 1 if at < len(prompt) else last.places[at].message + 1
    count = prompt.places[-1].message + 1
    return Cause("messages", f"an earlier message was edited, deleted or hidden (message {number} of {count})")
