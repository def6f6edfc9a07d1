"""Where the prompt-cache marks go: from what may come back, how soon, and what is alive already.

A mark pays when the prefix it ends comes back while it is alive. So the plan asks three things: how far did later
requests of this chat agree with earlier ones, how long are the pauses between them, and what does the cache hold now.
Values in, values out: no clock, no memory of its own. Costs are multiples of the price of a plain input token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from typing import Literal, NamedTuple

from server.prefix import Prompt

Lifetime = Literal["5m", "1h"]
SECONDS: Mapping[Lifetime, float] = {"5m": 300.0, "1h": 3600.0}
MARKS = 4  # at most, in one request
LOOKBACK = 20  # positions at which a mark finds an entry, its own included
LOOKAHEAD = 8  # later requests of the chat in which a prefix may come back

NEW, OLD = 7, 3  # blocks thought about: ends of new entries, of living ones
FADING = 0.95  # what a request says about the chat's next step, against the one after it
UNLIKE = 0.15  # and if it came into the chat in another way than the one that is planned
CAUTION = 1.15  # extra costs are certain, gains are not: where they balance, nothing is written
DOUBT = 0.3  # standard deviations by which a chance is taken for less than it was in the turns seen
SHIFTED, SHIFT = 0.15, 3  # the part of each guess that parts so many blocks earlier: texts injected vary in number
# How a chat goes on that nobody knows yet: weight, blocks before the end; and the weight of the end of the system part.
PRIOR_RETURNS = ((0.25, 0), (0.06, 5), (0.05, 9))
PRIOR_HEAD = 0.08
PRIOR_FADING = 0.9  # and how much of that is left by each request of the chat
PRIOR_PAUSES, PRIOR_5M, PRIOR_1H = 6.0, 0.7, 0.85  # weight; the share of pauses under five minutes, under an hour
PRIOR_NEXT_5M, PRIOR_NEXT_1H = 0.85, 0.95  # and how much of it is left by each further pause in the same span
CHECKPOINT_SHARE, CHECKPOINT_MOST = 0.35, 2.5  # of a prompt is new; times what the next pause says


class LiveEntry(NamedTuple):
    """An entry of the cache that can be read now, as believed, and until when (unix seconds)."""

    lifetime: Lifetime
    until: float


@dataclass(frozen=True)
class Seen:
    """An earlier request of the chat and what became of it.

    `steps`: after how many requests one agreed with it further than any before, and on how many blocks. `pause`: the
    seconds since the request before it; None where that says nothing about the player. `alike`: it came into the chat
    like the request that is planned: with prompts in front that are usual there or passing, and going on where an
    earlier one ended or not.
    """

    length: int
    head: int
    lead: int
    pause: float | None
    steps: tuple[tuple[int, int], ...]
    followers: int
    alike: bool = True


@dataclass(frozen=True)
class Terms:
    """What this upstream takes and charges. `lifetimes` is what marks may say; none: no marks at all."""

    minimum: int
    tokens_per_byte: float
    read: float = 0.1
    write_5m: float = 1.25
    write_1h: float = 2.0
    lifetimes: tuple[Lifetime, ...] = ("5m", "1h")


class Return(NamedTuple):
    """The chance that blocks `low` to `high` come back for the first time after this many requests, and how much was
    seen to say so: in requests, those that count less in part."""

    chance: float
    seen: float
    after: int
    low: int
    high: int


class Forecast(NamedTuple):
    """Tokens, by what the upstream is expected to charge for them."""

    read: int = 0
    write_1h: int = 0
    write_5m: int = 0
    plain: int = 0


def plan_marks(
    prompt: Prompt, live: Mapping[int, LiveEntry], seen: Iterable[Seen], terms: Terms
) -> dict[int, Lifetime]:
    """The blocks to mark and the lifetime on each mark, in order. `live`: the blocks that end a believed entry."""
    if not terms.lifetimes or (not live and tokens_at(prompt, len(prompt) - 1, terms) < terms.minimum):
        return {}  # nothing is to be found or kept: a short prompt needs no thought
    seen = tuple(seen)
    returns = list(expected_returns(prompt, seen))
    pauses = [one.pause for one in seen if one.pause is not None]
    tokens = [tokens_at(prompt, i, terms) for i in range(len(prompt))]
    worth = Worth(tokens, live, returns, [chances(pauses, k) for k in range(LOOKAHEAD + 1)], terms)
    return labelled(worth.best(candidates(prompt, live, returns, worth)), live, terms)


def tokens_at(prompt: Prompt, i: int, terms: Terms) -> int:
    """The tokens up to the end of block `i`, by our measure."""
    return round(prompt.size[i] * terms.tokens_per_byte) if i >= 0 else 0


# ------------------------------------------------------------------------------------- what may come back, and how soon


def expected_returns(prompt: Prompt, seen: Sequence[Seen]) -> Iterator[Return]:
    """How the chat went on after each earlier request, laid over this one."""
    samples, weight = [], 1.0
    for one in reversed(seen):
        counts, followers = weight if one.alike else weight * UNLIKE, min(one.followers, LOOKAHEAD)
        steps = [(k, laid_over(prompt, one, agreed)) for k, agreed in one.steps]
        samples.append((counts * (1 - SHIFTED), followers, steps))
        samples.append((counts * SHIFTED, followers, [(k, high - SHIFT) for k, high in steps]))
        weight *= FADING
    if seen or prompt.streams:  # a lone request that does not stream is hardly ever a chat: a caption, a test
        ends = [(weight, len(prompt) - back) for weight, back in PRIOR_RETURNS] + [(PRIOR_HEAD, prompt.head)]
        fresh = PRIOR_FADING ** len(seen)
        samples += [(weight * fresh, LOOKAHEAD, [(1, end)]) for weight, end in ends]
    known = [sum(weight for weight, followers, _ in samples if followers >= k) for k in range(LOOKAHEAD + 1)]
    for weight, _, steps in samples:
        low = 0
        for k, high in steps:
            if high > low:
                yield Return(weight / known[k], known[k], k, low, high)
                low = high


def certainty(found: Sequence[Return]) -> float:
    """How far these chances are to be believed: a few lucky turns promise more than holds."""
    chance = min(sum(one.chance for one in found), 1.0)
    if not chance:
        return 0.0
    deviation = sqrt(chance * (1 - chance) / (1 + found[0].seen))  # of a beta distribution
    return max(1 - DOUBT * deviation / chance, 0.0)


def laid_over(prompt: Prompt, one: Seen, agreed: int) -> int:
    """Where this prompt parts if it parts as that one did: counted from the start in the part that never moves, from
    the end where the chat grows."""
    if agreed < one.length and agreed <= one.lead:
        return min(agreed if agreed < one.head else agreed - one.head + prompt.head, len(prompt))
    return len(prompt) - (one.length - agreed)


def chances(pauses: Sequence[float], k: int) -> dict[Lifetime, float]:
    """How likely `k` pauses in a row leave an entry of five minutes alive; and only one of an hour."""
    spans = [sum(pauses[i : i + k]) for i in range(len(pauses) - k + 1)]
    total = len(spans) + PRIOR_PAUSES
    soon = (sum(span < SECONDS["5m"] for span in spans) + PRIOR_PAUSES * PRIOR_5M * PRIOR_NEXT_5M ** (k - 1)) / total
    late = (sum(span < SECONDS["1h"] for span in spans) + PRIOR_PAUSES * PRIOR_1H * PRIOR_NEXT_1H ** (k - 1)) / total
    return {"5m": soon, "1h": late - soon}


# ----------------------------------------------------------------------------------------------- what a choice is worth


class Worth:
    """What marks are worth: tokens read later, less what writing them costs more than sending them plain."""

    def __init__(
        self,
        tokens: Sequence[int],
        live: Mapping[int, LiveEntry],
        returns: Sequence[Return],
        chances: Sequence[Mapping[Lifetime, float]],
        terms: Terms,
    ) -> None:
        self.hit = max(live, default=-1)
        self._tokens, self._live, self._returns, self._chances, self._terms = tokens, live, returns, chances, terms
        self._known: dict[int, tuple[float, float]] = {}
        self._checkpoint = self.checkpoint_factor()

    def upto(self, i: int) -> int:
        """The tokens up to the end of block `i`."""
        return self._tokens[i] if i >= 0 else 0

    def long_enough(self, i: int) -> bool:
        return self.upto(i) >= self._terms.minimum

    def checkpoint_factor(self) -> float:
        """How much more an entry of an hour is worth than the next pause says, when little is new.

        A checkpoint on a few new tokens carries the whole chat over this pause and later ones. Writing one in each k
        turns costs (w1 - w5)·n/k a turn and loses p·(w5 - r)·n·k/2 to pauses; the best k is √(2(w1 - w5) / p(w5 - r)).
        """
        terms, total = self._terms, self.upto(len(self._tokens) - 1)
        late = self._chances[1]["1h"]
        if late <= 0 or total - self.upto(self.hit) >= CHECKPOINT_SHARE * total:
            return 1.0
        factor = sqrt((terms.write_1h - terms.write_5m) / (2 * late * (terms.write_5m - terms.read)))
        return min(max(factor, 1.0), CHECKPOINT_MOST)

    def gain(self, i: int, lifetime: Lifetime) -> float:
        """What a token up to block `i` saves later by being alive; "1h": by being alive after more than five minutes.

        A read saves 1 - r. It also finds the entry alive, and that is worth the least of: what its further reads bring,
        what writing it anew would cost until it is as far again, and what writing it anew for an hour would.
        """
        if i not in self._known:
            terms = self._terms
            found = [one for one in self._returns if one.low <= i < one.high]
            soon = sum(one.chance * self._chances[one.after]["5m"] for one in found)
            late = sum(one.chance * self._chances[one.after]["1h"] for one in found) if "1h" in terms.lifetimes else 0.0
            once = 1 - terms.read
            further = once * (soon + late) / max(1 - soon - late, 0.01)
            anew = (once * late + terms.write_5m - 1) / max(1 - late, 0.01)
            saved = once + min(further, anew, terms.write_1h - 1)
            saved *= certainty(found)
            self._known[i] = soon * saved, late * saved
        return self._known[i][lifetime == "1h"]

    def best(self, places: Sequence[int]) -> dict[int, Lifetime]:
        """The best choice among these blocks, each with its entry's lifetime; the hit is always in it."""
        others = [i for i in places if i != self.hit]
        choices = (
            choice
            for count in range(MARKS + 1 - (self.hit >= 0))
            for chosen in combinations(others, count)
            for choice in self.lifetimes(chosen)
        )
        return max(choices, key=self.value)  # of equals the first, which has the fewest marks

    def lifetimes(self, chosen: tuple[int, ...]) -> Iterator[dict[int, Lifetime]]:
        """Every way to give new entries a lifetime, hours first; what is alive keeps its own, and so does the hit."""
        kept = {i: held.lifetime for i, held in self._live.items() if i in chosen or i == self.hit}
        new = [i for i in chosen if i not in kept]
        first, *rest = self._terms.lifetimes
        for hours in range(len(new) + 1 if rest else 1):
            yield kept | {i: "1h" if n < hours else first for n, i in enumerate(new)}

    def value(self, choice: Mapping[int, Lifetime]) -> float:
        """What is read later is alive, at the latest, by the first mark behind it."""
        gained = self.read_later(sorted(choice), "5m")
        gained += self._checkpoint * self.read_later(sorted(i for i in choice if choice[i] == "1h"), "1h")
        read = self.upto(self.hit)
        hour = max([read, *(self.upto(i) for i, lifetime in choice.items() if lifetime == "1h")])
        end = max([hour, *(self.upto(i) for i in choice)])
        extra = (self._terms.write_1h - 1) * (hour - read) + (self._terms.write_5m - 1) * (end - hour)
        return gained - CAUTION * extra

    def read_later(self, places: Iterable[int], lifetime: Lifetime) -> float:
        value, low = 0.0, 0
        for i in places:
            value += (self.upto(i) - low) * self.gain(i, lifetime)
            low = self.upto(i)
        return value


def candidates(prompt: Prompt, live: Mapping[int, LiveEntry], returns: Sequence[Return], worth: Worth) -> list[int]:
    """The blocks worth thinking about: where the chat may part and the end of the head, as ends of new entries; and the
    living entries that would serve there, with the last one of an hour."""
    new: dict[int, float] = defaultdict(float)
    old: dict[int, float] = defaultdict(float)
    for chance, end in [(one.chance, one.high) for one in returns] + [(1.0, prompt.head)]:
        i = end - 1
        while i > worth.hit and not prompt.markable[i]:
            i -= 1
        if i > worth.hit and worth.long_enough(i):
            new[i] += chance
        if (i := max((i for i in live if i < end), default=-1)) >= 0:
            old[i] += chance
    old[max((i for i, held in live.items() if held.lifetime == "1h"), default=worth.hit)] += 1.0
    best = [*sorted(new, key=lambda i: -new[i])[:NEW], *sorted(old, key=lambda i: -old[i])[:OLD]]
    return sorted(i for i in best if i >= 0)


# --------------------------------------------------------------------------------------------------------- what is sent


def labelled(choice: Mapping[int, Lifetime], live: Mapping[int, LiveEntry], terms: Terms) -> dict[int, Lifetime]:
    """The marks as they are sent: in order, and "1h" on every one up to the last new entry of an hour.

    The API refuses an hour behind five minutes. A mark on a living entry only reads it, whatever it says.
    """
    hours = max((i for i, lifetime in choice.items() if lifetime == "1h" and i not in live), default=-1)
    return {i: "1h" if i <= hours else terms.lifetimes[0] for i in sorted(choice)}


def forecast(prompt: Prompt, marks: Mapping[int, Lifetime], live: Mapping[int, LiveEntry], terms: Terms) -> Forecast:
    """What the upstream will count if it holds what we believe."""
    tokens = {i: tokens_at(prompt, i, terms) for i in {*marks, *live, len(prompt) - 1}}
    works = {i: lifetime for i, lifetime in marks.items() if tokens[i] >= terms.minimum}
    hit = max((i for i in live if any(i <= mark < i + LOOKBACK for mark in works)), default=-1)
    read = tokens[hit] if hit >= 0 else 0
    hour = max([read, *(tokens[i] for i, lifetime in works.items() if lifetime == "1h")])
    end = max([hour, *(tokens[i] for i in works)])
    return Forecast(read, hour - read, end - hour, tokens[len(prompt) - 1] - end)
