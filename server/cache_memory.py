"""What is known of the prompt caches: what they hold, how chats went on, what each upstream takes.

Kept in data_dir/state.sqlite over restarts: digests keyed with a local secret, counts and times, never text.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from server.cache_journal import CacheEntry, Journal, PastRequest
from server.models import Model
from server.prefix import CacheKey, Digests, Prompt, keyed
from server.rewrite.cache_plan import LOOKAHEAD, Lifetime, LiveEntry, Seen, Terms
from server.rewrite.late_lore import Head
from server.rewrite.steady_window import Window

SAME_CHAT = 0.35  # of a prompt's bytes stand in another one
REQUESTS = 96  # remembered in all
RELATED = 24  # looked at for one plan
COMMON = 0.25  # of a chat's requests: prompts in front that more of them have are usual there, others passing
MARGIN = 5.0  # seconds before an entry's end from which it is not counted on
PROGRAM = 5.0  # pauses under this are a program's, and say nothing about the player's
WEEK = 7 * 86_400.0
ENTRIES = 20_000
CHATS = 32  # whose system lines and windows are remembered
BYTES_PER_TOKEN, BYTES_PER_TOKEN_NEW = 4.0, 3.1  # until usage says better; the newer from Opus 4.7 on


class Scope(NamedTuple):
    """Who shares a cache. The credential may be any name that tells credentials apart; only its digest is kept."""

    upstream: str
    credential: str
    workspace: str = ""


def seen(related: Sequence[PastRequest], prompt: Prompt) -> list[Seen]:
    """What the earlier requests of a chat say about the next one, which counts as a follower of the last ones already:
    in a young chat nothing else is known."""
    ways = [
        one.followed(prompt) if number >= len(related) - LOOKAHEAD else (one.steps, one.followers)
        for number, one in enumerate(related)
    ]
    fronts = [one.prompt.front for one in related] + [prompt.front]
    common = {front for front, times in Counter(fronts).items() if times > COMMON * len(fronts)}
    grown = {  # of those that went on where an earlier one ended
        number + k
        for number, (one, (steps, _)) in enumerate(zip(related, ways, strict=True))
        for k, agreed in steps
        if agreed == len(one.prompt)
    }
    kinds = [(front in common, number in grown) for number, front in enumerate(fronts)]
    return [
        Seen(
            length=len(one.prompt),
            head=one.prompt.head,
            lead=one.prompt.lead,
            pause=one.pause,
            steps=tuple(steps),
            followers=followers,
            alike=kinds[number] == kinds[-1],
        )
        for number, (one, (steps, followers)) in enumerate(zip(related, ways, strict=True))
    ]


@dataclass(frozen=True)
class Upstream:
    """What an upstream was seen to do; what it does not take is believed for a week."""

    reports: bool = False  # cache figures in `usage`
    no_marks_until: float = 0.0
    no_hours_until: float = 0.0
    mixed: bool = False  # a mark of one lifetime found an entry of the other
    doubts: int = 0  # misses in a row where it should have
    separate_until: float = 0.0

    def lifetimes(self, ttl_allowed: bool, now: float) -> tuple[Lifetime, ...]:
        """What marks may say. Where lifetimes are separate: hours alone, so that one turn finds the other's entries."""
        if now < self.no_marks_until:
            return ()
        if not ttl_allowed or now < self.no_hours_until:
            return ("5m",)
        return ("1h",) if now < self.separate_until else ("5m", "1h")


def alive(known: Mapping[int, CacheEntry], now: float) -> dict[int, LiveEntry]:
    """Those of the entries that can be read now, with a margin."""
    return {i: LiveEntry(one.lifetime, one.until) for i, one in known.items() if one.since <= now < one.until - MARGIN}


class CacheMemory:
    """All of it, in memory; what changes is handed to a `Journal`."""

    def __init__(self, secret: bytes, journal: Journal | None = None) -> None:
        self.secret = hashlib.blake2b(secret, digest_size=32, person=b"prompt cache").digest()
        self.digests = Digests(self.secret)
        self._names: dict[str, str] = {}
        self._journal = journal
        self._entries: dict[CacheKey, CacheEntry] = {}
        self._requests: deque[PastRequest] = deque(maxlen=REQUESTS)
        self._upstreams: dict[str, Upstream] = {}
        self._tokens_per_byte: dict[str, float] = {}
        self.heads: dict[int, Head] = {}
        self.windows: dict[int, Window] = {}
        if journal:
            self._load(journal)

    # ----------------------------------------------------------------------------------------------------------- asking

    def known(self, prompt: Prompt) -> dict[int, CacheEntry]:
        """The blocks of a prompt that end an entry, dead ones too."""
        entries = self._entries
        return {i: entries[key] for i, key in enumerate(prompt.keys()) if key in entries}

    def related(self, prompt: Prompt) -> tuple[PastRequest, ...]:
        """The last requests of the same chat, oldest first; whoever paid, whatever the model."""
        found: list[PastRequest] = []
        for request in reversed(self._requests):
            if prompt.resembles(request.prompt, SAME_CHAT):
                found.append(request)
                if len(found) == RELATED:
                    break
        return tuple(reversed(found))

    def upstream(self, name: str) -> Upstream:
        return self._upstreams.get(self._name(name), Upstream())

    def terms(self, scope: Scope, model: Model, ttl_allowed: bool, now: float) -> Terms:
        price = model.price
        plain = price.input if price else 0.0
        guess = 1 / (BYTES_PER_TOKEN_NEW if model.display_default == "omitted" else BYTES_PER_TOKEN)
        per_byte = self._tokens_per_byte.get(model.id, guess)
        lifetimes = self.upstream(scope.upstream).lifetimes(ttl_allowed, now)
        if not price or not plain:
            return Terms(model.min_cacheable, per_byte, lifetimes=lifetimes)
        read, write_5m, write_1h = price.read / plain, price.write_5m / plain, price.write_1h / plain
        return Terms(model.min_cacheable, per_byte, read, write_5m, write_1h, lifetimes)

    # --------------------------------------------------------------------------------------------------------- learning

    def write(self, prompt: Prompt, changed: Mapping[int, CacheEntry | None]) -> None:
        """Take over what a request did to the entries at these blocks; None: it was not there after all."""
        rows: list[tuple[CacheKey, CacheEntry | None]] = []
        for i, kept in changed.items():
            key = prompt.key(i)
            old = self._entries.get(key)
            if kept is None:
                self._entries.pop(key, None)
            else:
                if old and old.lifetime == kept.lifetime and old.until > kept.until:
                    kept = kept._replace(until=old.until)  # of two requests that overlapped, the later one counts
                self._entries.pop(key, None)  # so that the oldest stand in front
                self._entries[key] = kept
            rows.append((key, kept))
        for key in list(islice(self._entries, max(len(self._entries) - ENTRIES, 0))):
            del self._entries[key]
            rows.append((key, None))
        self._save(entries=rows)

    def remember(self, prompt: Prompt, related: Iterable[PastRequest], at: float, reply: str = "") -> PastRequest:
        """Keep a request that began, and let the ones before it know how far it agreed with them."""
        before = list(related)
        for one in before[-LOOKAHEAD:]:
            one.steps, one.followers = one.followed(prompt)
        pause = at - before[-1].at if before else None
        request = PastRequest(prompt, at, pause if pause is not None and pause >= PROGRAM else None, reply=reply)
        gone = self._requests[0].row if len(self._requests) == REQUESTS else 0
        request.row = self._requests[-1].row + 1 if self._requests else 1
        self._requests.append(request)
        self._save(requests=[*before[-LOOKAHEAD:], request], gone=gone)
        return request

    def learn(self, name: str, **facts: Any) -> None:
        """Keep facts about an upstream."""
        self._upstreams[self._name(name)] = known = replace(self.upstream(name), **facts)
        self._save(facts={f"upstream {self._name(name)}": asdict(known)})

    def learn_tokens(self, model: Model, tokens: int, size: int) -> None:
        """Keep how many tokens a byte of text is on this model; the last prompt says most about the next."""
        if size < 1_000:
            return
        share = tokens / size
        old = self._tokens_per_byte.get(model.id, share)
        self._tokens_per_byte[model.id] = share = (old + 3 * share) / 4
        self._save(facts={f"tokens {model.id}": share})

    def keep_head(self, number: int, head: Head) -> None:
        """Keep what is known of a chat's system lines; `number` 0: of a new one."""
        self._keep("head", self.heads, number, head)

    def keep_window(self, number: int, window: Window) -> None:
        """Keep what is known of a chat's window; `number` 0: of a new one."""
        self._keep("window", self.windows, number, window)

    def _keep(self, kind: str, chats: dict[int, Any], number: int, value: Head | Window) -> None:
        number = number or max(chats, default=0) + 1
        chats.pop(number, None)  # so that the one unused for longest stands in front
        chats[number] = value
        oldest = next(iter(chats)) if len(chats) > CHATS else None
        if oldest is not None:
            del chats[oldest]
            self._save(facts={f"{kind} {oldest}": None})
        self._save(facts={f"{kind} {number}": asdict(value)})

    def _name(self, upstream: str) -> str:
        if upstream not in self._names:
            self._names[upstream] = keyed(self.secret, upstream.encode()).hex()
        return self._names[upstream]

    # ---------------------------------------------------------------------------------------------------------- keeping

    def _save(self, **changes: Any) -> None:
        if self._journal:
            self._journal.save(**changes)

    def _load(self, journal: Journal) -> None:
        entries, requests, facts = journal.load(self.secret)
        self._entries |= entries
        self._requests.extend(requests)
        for name, value in facts.items():
            kind, _, what = name.partition(" ")
            if kind == "upstream":
                self._upstreams[what] = Upstream(**value)
            elif kind == "tokens":
                self._tokens_per_byte[what] = float(value)
            elif kind == "head":
                sets = {key: frozenset(value[key]) for key in ("left", "story")}
                self.heads[int(what)] = Head(tuple(value["stable"]), value["streaks"], **sets)
            elif kind == "window":
                lists = {key: tuple(value[key]) for key in ("blocks", "begins", "prompts")}
                self.windows[int(what)] = Window(**{**value, **lists})

    def close(self) -> None:
        if self._journal:
            self._journal.close()
