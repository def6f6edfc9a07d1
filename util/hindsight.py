"""What the prompt cache could have saved in a chat that is over, for `replay_trace.py --hindsight` and tests.

Two yardsticks, in plain tokens: the bound nobody can be below, and what one pays who knows each later request. A chat
is a tree of prefixes. Blocks that stand in the same requests form a stretch of it, and all that matters of a stretch is
when it comes back.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations, takewhile
from typing import Any

from server.models import Model
from server.practice import accounting
from server.practice.accounting import LIFETIMES, Bill, Entry, Prompt
from server.practice.blocks import row

FIRST_BYTE = 1.0  # seconds from a request to the beginning of its response
WRITE = {"5m": 1.25, "1h": 2.0}  # times the price of a plain token
MARKS = 4  # at most, in one request
NEW, OLD = 8, 3  # ends of stretches, and of living entries, thought about for each request
WIDTH = 8  # ways through the chat that are followed side by side

Marks = Mapping[int, str]  # block → "5m" or "1h"


@dataclass(frozen=True)
class Asked:
    """A request of the chat: its prompt without marks, the blocks that may carry one, and its model's terms."""

    at: float
    prompt: Prompt
    markable: frozenset[int]
    minimum: int
    read: float  # price of a token read

    @classmethod
    def of(cls, at: float, body: Mapping[str, Any], model: Model) -> Asked:
        """`body` carries no marks."""
        prompt = accounting.read_prompt(body, model)
        can = {block.path for block in row(body) if block.markable}
        read = model.price.read / model.price.input if model.price and model.price.input else 0.1
        markable = frozenset(i for i, path in enumerate(prompt.paths) if path in can)
        return cls(at, prompt, markable, model.min_cacheable, read)

    def cost(self, bill: Bill) -> float:
        return bill.plain + self.read * bill.read + WRITE["5m"] * bill.write_5m + WRITE["1h"] * bill.write_1h


@dataclass(frozen=True)
class Stretch:
    """Blocks that stand in the requests `within` and in no other; the last of them is at `end`."""

    within: tuple[int, ...]
    end: int
    tokens: int


@dataclass(frozen=True)
class Road:
    """One way to mark all requests so far: what it cost, what the cache holds, and what each stretch will cost yet."""

    marks: tuple[Marks, ...]
    spent: float
    entries: Mapping[bytes, Entry]
    owed: Mapping[tuple[int, ...], float]

    @cached_property
    def promise(self) -> float:
        return self.spent + sum(self.owed.values())

    @cached_property
    def holds(self) -> frozenset[tuple[bytes, str, float]]:
        return frozenset((digest, entry.lifetime, entry.alive_until) for digest, entry in self.entries.items())


class Hindsight:
    """All requests of a chat."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self.asked = asked
        self.paths = self.stretches()
        self.known = self.known_before()
        self.least = cache(self._least)
        self.likely = cache(self._likely)
        self.agreed = cache(self._agreed)

    def stretches(self) -> list[list[Stretch]]:
        """The stretches of each request, in order; none where it is too short for the cache."""
        within: dict[bytes, list[int]] = defaultdict(list)
        long_enough = [one.prompt.tokens >= one.minimum for one in self.asked]
        for number, one in enumerate(self.asked):
            for digest in one.prompt.chain if long_enough[number] else ():
                within[digest].append(number)
        paths = []
        for number, one in enumerate(self.asked):
            ends = {tuple(within[d]): i for i, d in enumerate(one.prompt.chain)} if long_enough[number] else {}
            upto = [0, *(one.prompt.upto[end] for end in ends.values())]
            paths.append([Stretch(w, end, upto[n + 1] - upto[n]) for n, (w, end) in enumerate(ends.items())])
        return paths

    def known_before(self) -> list[int]:
        """How many blocks of each request had been sent before."""
        sent: set[bytes] = set()
        known = []
        for one in self.asked:
            known.append(sum(digest in sent for digest in one.prompt.chain))
            sent.update(one.prompt.chain)
        return known

    def _agreed(self, one: int, other: int) -> int:
        """How many blocks, from the start, are the same in two requests."""
        chains = zip(self.asked[one].prompt.chain, self.asked[other].prompt.chain, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], chains))

    def lives(self, lifetime: str, since: int, until: int) -> bool:
        return bool(lifetime) and self.asked[until].at - self.asked[since].at < LIFETIMES[lifetime]

    # ------------------------------------------------------------------------------------------------------- the bound

    def bound(self) -> float:
        """Each stretch for itself; as if marks were without number, and what is behind it could keep it for an hour."""
        short = sum(one.prompt.tokens for one, path in zip(self.asked, self.paths, strict=True) if not path)
        return short + sum(s.tokens * self.least(s.within, 0, "") for s in {s for path in self.paths for s in path})

    def _least(self, within: tuple[int, ...], k: int, alive: str) -> float:
        """What a token in these requests costs from the `k`th of them on. `alive`: the lifetime of what that reads."""
        if k == len(within):
            return 0.0

        def after(lifetime: str) -> float:
            left = k + 1 < len(within) and self.lives(lifetime, within[k], within[k + 1])
            return self.least(within, k + 1, lifetime if left else "")

        if alive:
            return self.asked[within[k]].read + after("1h")
        return min(1 + after(""), *(price + after(lifetime) for lifetime, price in WRITE.items()))

    # ---------------------------------------------------------------------------------------------- knowing what comes

    def clairvoyant(self) -> tuple[Marks, ...]:
        """The marks of each request, all by the rules. The most promising ways to place them are followed."""
        roads = [Road((), 0.0, {}, {})]
        for number in range(len(self.asked)):
            best: dict[frozenset[tuple[bytes, str, float]], Road] = {}
            for onward in (onward for road in roads for onward in self.onward(number, road)):
                if onward.holds not in best or onward.spent < best[onward.holds].spent:
                    best[onward.holds] = onward
            roads = sorted(best.values(), key=lambda road: road.promise)[:WIDTH]
        return min(roads, key=lambda road: road.spent).marks

    def onward(self, number: int, road: Road) -> Iterator[Road]:
        """The road behind this request, for each choice of marks that is worth a thought."""
        one, path = self.asked[number], self.paths[number]
        entries = {digest: entry for digest, entry in road.entries.items() if one.at < entry.alive_until}
        nexts = [next((j for j in stretch.within if j > number), -1) for stretch in path]
        held = {j: self.held(j, entries) for j in {number, *nexts} if j >= 0}
        for marks in self.choices(number, sorted(held[number])):
            prompt = replace(one.prompt, marks=marks)
            bill, changed = accounting.settle(entries, prompt, one.minimum, one.at, FIRST_BYTE)
            new = {i: changed[digest] for i, digest in enumerate(one.prompt.chain) if digest in changed}
            owed = dict(road.owed)
            for stretch, j in zip(path, nexts, strict=True):
                owed.pop(stretch.within, None)
                if j >= 0:
                    known = held[j] | {i: entry for i, entry in new.items() if i < self.agreed(number, j)}
                    owed[stretch.within] = stretch.tokens * self.to_come(stretch, j, known)
            after = dict(entries)
            accounting.remember(after, changed, one.at)
            yield Road((*road.marks, marks), road.spent + one.cost(bill), after, owed)

    def held(self, number: int, entries: Mapping[bytes, Entry]) -> dict[int, Entry]:
        """The blocks of a request that end an entry."""
        return {i: entries[digest] for i, digest in enumerate(self.asked[number].prompt.chain) if digest in entries}

    def choices(self, number: int, held: Sequence[int]) -> Iterator[Marks]:
        """Marks at the ends of stretches that come back and of living entries; on the last of those always."""
        one = self.asked[number]
        *lower, hit = held or [-1]
        ends = {}
        for stretch in self.paths[number]:
            end = max((i for i in range(stretch.end + 1) if i in one.markable), default=-1)
            if end > hit and one.prompt.upto[end] >= one.minimum and stretch.within[-1] > number:
                ends[end] = stretch.tokens
        places = sorted([*lower[-OLD:], *sorted(ends, key=lambda i: -ends[i])[:NEW]])
        always = held[-1:]
        for count in range(MARKS + 1 - len(always)):
            for chosen in combinations(places, count):
                new = bisect_right(chosen, hit)
                for hours in range(new, len(chosen) + 1):
                    marks = sorted([*always, *chosen])
                    yield {i: "1h" if hours > new and i <= chosen[hours - 1] else "5m" for i in marks}

    def to_come(self, stretch: Stretch, j: int, known: Mapping[int, Entry]) -> float:
        """What a token of the stretch will cost from request `j` on, which could find these entries."""
        alive = {i: entry.lifetime for i, entry in known.items() if self.asked[j].at < entry.alive_until}
        deep = max((lifetime for i, lifetime in alive.items() if i > stretch.end), default="")
        return self.likely(stretch, stretch.within.index(j), alive.get(stretch.end, ""), deep)

    def _likely(self, stretch: Stretch, k: int, own: str, deep: str) -> float:
        """What a token costs from the `k`th of its requests on. `own`, `deep`: the lifetimes of the entries it finds,
        right at the end of the stretch and behind that. Below what is read, no entry can be made anew."""
        within = stretch.within
        if k == len(within):
            return 0.0
        shared = self.agreed(within[k], within[k + 1]) if k + 1 < len(within) else 0
        parts = shared == stretch.end + 1
        grows = shared > self.known[within[k]]

        def after(own: str, deep: str) -> float:
            lives = [k + 1 < len(within) and self.lives(one, within[k], within[k + 1]) for one in (own, deep)]
            return self.likely(stretch, k + 1, own if lives[0] else "", deep if lives[1] and not parts else "")

        if own or deep:
            return self.asked[within[k]].read + after(own, "1h" if grows else deep or own)
        return min(1 + after("", ""), *(price + after(lifetime, lifetime) for lifetime, price in WRITE.items()))
