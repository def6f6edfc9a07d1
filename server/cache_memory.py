"""What is known of the prompt caches: what they hold, how chats went on, what each upstream takes.

Kept in data_dir/state.sqlite over restarts: digests keyed with a local secret, counts and times, never text.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from server.models import Model
from server.prefix import DIGEST, Digests, Entry, Prompt, chained, keyed, placed
from server.rewrite.cache_plan import LOOKAHEAD, Held, Lifetime, Seen, Terms
from server.rewrite.late_lore import Head
from server.rewrite.steady_window import Window

log = logging.getLogger(__name__)

SAME_CHAT = 0.35  # of a prompt's bytes stand in another one
REQUESTS = 96  # remembered in all
RELATED = 24  # looked at for one plan
MARGIN = 5.0  # seconds before an entry's end from which it is not counted on
PROGRAM = 5.0  # pauses under this are a program's, and say nothing about the player's
FORGET_ENTRY = 86_400.0  # an entry that died is remembered for a day, to say why a turn missed
WEEK = 7 * 86_400.0
ENTRIES = 20_000
GATHERED = 1.0  # seconds of changes that are written together; a crash loses no more
CHATS = 32  # whose system lines and windows are remembered
BYTES_PER_TOKEN, BYTES_PER_TOKEN_NEW = 4.0, 3.1  # until usage says better; the newer from Opus 4.7 on


class Scope(NamedTuple):
    """Who shares a cache. The credential may be any name that tells credentials apart; only its digest is kept."""

    upstream: str
    credential: str
    workspace: str = ""


class Kept(NamedTuple):
    """An entry of an upstream's cache, as believed. `tokens`: as the upstream counted them, 0 where it did not say."""

    lifetime: Lifetime
    until: float
    since: float
    tokens: int = 0


@dataclass(eq=False)
class Request:
    """An earlier request: what it consisted of, in digests, and how far later ones of its chat agreed with it."""

    prompt: Prompt
    at: float
    pause: float | None
    steps: list[tuple[int, int]] = field(default_factory=list)
    followers: int = 0
    row: int = 0
    reply: str = ""  # the id of the reply to it; like the rest in memory alone
    extra: float = 0.0  # what the chat cost up to here beyond no caching, in plain tokens; below 0 it saved
    tokens: int = 0  # of the chat's prompts up to here

    @property
    def over(self) -> float:
        """The share by which the chat cost more than without caching."""
        return max(self.extra, 0.0) / max(self.tokens, 1)

    def followed(self, later: Prompt) -> tuple[list[tuple[int, int]], int]:
        """Its steps and the number of its followers, with this one."""
        followers, agreed = self.followers + 1, self.prompt.shared(later)
        further = followers <= LOOKAHEAD and agreed > (self.steps[-1][1] if self.steps else 0)
        return [*self.steps, (followers, agreed)] if further else self.steps, followers


def seen(related: Sequence[Request], prompt: Prompt) -> list[Seen]:
    """What the earlier requests of a chat say about the next one, which counts as a follower of the last ones already:
    in a young chat nothing else is known."""
    fronts: set[bytes] = set()
    again = []  # whether the prompts in front had been sent before
    for front in [*(one.prompt.front for one in related), prompt.front]:
        again.append(front in fronts)
        fronts.add(front)
    told = []
    for number, one in enumerate(related):
        recent = number >= len(related) - LOOKAHEAD
        steps, followers = one.followed(prompt) if recent else (one.steps, one.followers)
        size, head, lead = len(one.prompt), one.prompt.head, one.prompt.lead
        told.append(Seen(size, head, lead, one.pause, tuple(steps), followers, again[number] == again[-1]))
    return told


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


def alive(known: Mapping[int, Kept], now: float) -> dict[int, Held]:
    """Those of the entries that can be read now, with a margin."""
    return {i: Held(one.lifetime, one.until) for i, one in known.items() if one.since <= now < one.until - MARGIN}


class CacheMemory:
    """All of it, in memory; what changes is handed to a `Journal`."""

    def __init__(self, secret: bytes, journal: Journal | None = None) -> None:
        self.secret = hashlib.blake2b(secret, digest_size=32, person=b"prompt cache").digest()
        self.digests = Digests(self.secret)
        self._names: dict[str, str] = {}
        self._journal = journal
        self._entries: dict[Entry, Kept] = {}
        self._requests: deque[Request] = deque(maxlen=REQUESTS)
        self._upstreams: dict[str, Upstream] = {}
        self._tokens_per_byte: dict[str, float] = {}
        self.heads: dict[int, Head] = {}
        self.windows: dict[int, Window] = {}
        if journal:
            self._load(journal)

    # ----------------------------------------------------------------------------------------------------------- asking

    def known(self, prompt: Prompt) -> dict[int, Kept]:
        """The blocks of a prompt that end an entry, dead ones too."""
        entries = self._entries
        return {i: entries[entry] for i, entry in enumerate(prompt.entries()) if entry in entries}

    def related(self, prompt: Prompt) -> tuple[Request, ...]:
        """The last requests of the same chat, oldest first; whoever paid, whatever the model."""
        found: list[Request] = []
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

    def write(self, prompt: Prompt, changed: Mapping[int, Kept | None]) -> None:
        """Take over what a request did to the entries at these blocks; None: it was not there after all."""
        rows: list[tuple[Entry, Kept | None]] = []
        for i, kept in changed.items():
            entry = prompt.entry(i)
            old = self._entries.get(entry)
            if kept is None:
                self._entries.pop(entry, None)
            else:
                if old and old.lifetime == kept.lifetime and old.until > kept.until:
                    kept = kept._replace(until=old.until)  # of two requests that overlapped, the later one counts
                self._entries.pop(entry, None)  # so that the oldest stand in front
                self._entries[entry] = kept
            rows.append((entry, kept))
        for entry in list(islice(self._entries, max(len(self._entries) - ENTRIES, 0))):
            del self._entries[entry]
            rows.append((entry, None))
        self._save(entries=rows)

    def remember(
        self,
        prompt: Prompt,
        related: Iterable[Request],
        at: float,
        reply: str = "",
        extra: float = 0.0,
        tokens: int = 0,
    ) -> Request:
        """Keep a request that began, and let the ones before it know how far it agreed with them. `extra`: what it cost
        beyond no caching, in plain tokens."""
        before = list(related)
        for one in before[-LOOKAHEAD:]:
            one.steps, one.followers = one.followed(prompt)
        pause = at - before[-1].at if before else None
        request = Request(prompt, at, pause if pause is not None and pause >= PROGRAM else None, reply=reply)
        request.extra, request.tokens = extra, tokens
        if before:
            request.extra += before[-1].extra
            request.tokens += before[-1].tokens
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


@dataclass
class Changed:
    """What is to be written: the last word on each entry, request and fact. `gone`: the last request forgotten."""

    entries: dict[Entry, Kept | None] = field(default_factory=dict)
    requests: dict[int, tuple[Request, bool]] = field(default_factory=dict)  # by row; whether it is a new one
    facts: dict[str, Any] = field(default_factory=dict)
    gone: int = 0

    def __bool__(self) -> bool:
        return bool(self.entries or self.requests or self.facts or self.gone)


class Journal:
    """The memory's tables in data_dir/state.sqlite. A thread of its own writes them, so no request waits for a disk.

    What changes is gathered for a moment and written in one transaction: handing each request's changes to the thread
    cost more than all the rest of the request.
    """

    VERSION = 2
    TABLES = (
        "cache_entries (seal BLOB, chain BLOB, lifetime TEXT, until REAL, since REAL, tokens INTEGER,"
        " PRIMARY KEY (seal, chain)) WITHOUT ROWID",
        "cache_requests (row INTEGER PRIMARY KEY, at REAL, pause REAL, steps TEXT, followers INTEGER, prompt BLOB)",
        "cache_facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
    )

    EMPTY = "DELETE FROM cache_entries; DELETE FROM cache_requests; DELETE FROM cache_facts"

    def __init__(self, path: Path, *, now: float) -> None:
        self._path, self._now = path, now
        self._writer = ThreadPoolExecutor(1, "cache-memory")
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._changed = Changed()  # waiting to be written
        self._db: sqlite3.Connection | None = None
        self._broken = False  # unreadable: left alone
        self._failing = False  # said once in the log, until it works again

    def load(self, secret: bytes) -> tuple[dict[Entry, Kept], list[Request], dict[str, Any]]:
        """What was kept: entries, requests (oldest first), facts. Nothing, with a line in the log, if unreadable."""
        return self._writer.submit(self._read, secret).result()

    def save(
        self,
        *,
        entries: Iterable[tuple[Entry, Kept | None]] = (),
        requests: Iterable[Request] = (),
        gone: int = 0,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        with self._lock:
            changed, waiting = self._changed, bool(self._changed)
            changed.entries.update(entries)
            for request in requests:
                new = request.followers == 0 or changed.requests.get(request.row, (request, False))[1]
                changed.requests[request.row] = request, new
            changed.facts.update(facts or {})
            changed.gone = max(changed.gone, gone)
            changed.requests.pop(gone, None)  # forgotten before it was written
        if not waiting and changed:
            self._writer.submit(self._write_soon)

    def close(self) -> None:
        """Write what is still waiting, and let go of the file."""
        self._closing.set()
        self._writer.submit(self._disconnect)
        self._writer.shutdown()

    # ------------------------------------------------------------------------------------------- in the writer's thread

    def _connect(self) -> sqlite3.Connection:
        if self._db is None:
            self._path.touch(mode=0o600)
            self._db = sqlite3.connect(self._path, timeout=5, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            for table in self.TABLES:
                self._db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        return self._db

    def _read(self, secret: bytes) -> tuple[dict[Entry, Kept], list[Request], dict[str, Any]]:
        """Rows of another secret or version, or that make no sense, are deleted."""
        ours = {"version": self.VERSION, "key": keyed(secret, b"cache memory").hex()[:16]}
        try:
            db = self._connect()
            try:
                facts = {name: orjson.loads(value) for name, value in db.execute("SELECT name, value FROM cache_facts")}
                kept_by = facts.pop("kept by", None)
                if kept_by == ours:
                    return *self._rows(db), facts
                if kept_by:
                    log.info("What was known of the prompt caches belongs to another version or key; starting empty.")
            except (ValueError, TypeError, KeyError) as error:
                log.warning("What was known of the prompt caches makes no sense (%s); starting empty.", error)
            db.executescript(self.EMPTY)
            db.execute("INSERT INTO cache_facts VALUES (?, ?)", ("kept by", orjson.dumps(ours).decode()))
        except (sqlite3.Error, OSError) as error:
            log.warning(
                "What was known of the prompt caches cannot be read (%s); starting empty, keeping nothing.", error
            )
            self._broken = True
        return {}, [], {}

    def _rows(self, db: sqlite3.Connection) -> tuple[dict[Entry, Kept], list[Request]]:
        db.execute("DELETE FROM cache_entries WHERE until < ?", (self._now - FORGET_ENTRY,))
        entries = {
            (seal, chain): Kept(*kept)
            for seal, chain, *kept in db.execute("SELECT * FROM cache_entries ORDER BY until")
        }
        requests = [
            Request(unpacked(prompt), at, pause, [(k, n) for k, n in orjson.loads(steps)], followers, row)
            for row, at, pause, steps, followers, prompt in db.execute("SELECT * FROM cache_requests ORDER BY row")
        ]
        return entries, requests

    def _write_soon(self) -> None:
        self._closing.wait(GATHERED)
        with self._lock:
            changed, self._changed = self._changed, Changed()
        if not self._broken:
            self._write(changed)

    def _write(self, changed: Changed) -> None:
        requests = [
            (row, request.at, request.pause, orjson.dumps(request.steps).decode(), request.followers, request, new)
            for row, (request, new) in changed.requests.items()
        ]
        try:
            db = self._connect()
            db.execute("BEGIN")
            db.executemany(
                "DELETE FROM cache_entries WHERE seal = ? AND chain = ?",
                [entry for entry, kept in changed.entries.items() if not kept],
            )
            db.executemany(
                "INSERT OR REPLACE INTO cache_entries VALUES (?, ?, ?, ?, ?, ?)",
                [(*entry, *kept) for entry, kept in changed.entries.items() if kept],
            )
            db.executemany(
                "INSERT OR REPLACE INTO cache_requests VALUES (?, ?, ?, ?, ?, ?)",
                [(*row, packed(request.prompt)) for *row, request, new in requests if new],
            )
            db.executemany(
                "UPDATE cache_requests SET steps = ?, followers = ? WHERE row = ?",
                [(steps, followers, row) for row, _, _, steps, followers, _, new in requests if not new],
            )
            db.execute("DELETE FROM cache_requests WHERE row <= ?", (changed.gone,))
            db.executemany(
                "INSERT OR REPLACE INTO cache_facts VALUES (?, ?)",
                [(name, orjson.dumps(value, default=sorted).decode()) for name, value in changed.facts.items()],
            )
            db.execute("DELETE FROM cache_facts WHERE value = 'null'")
            db.execute("COMMIT")
            self._failing = False
        except (sqlite3.Error, OSError) as error:
            if not self._failing:
                log.warning("What was learned of the prompt caches could not be kept: %s", error)
            self._failing = True
            if self._db and self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _disconnect(self) -> None:
        if self._db:
            self._db.close()


# ------------------------------------------------------------------------------------------ a prompt as bytes, and back


def packed(prompt: Prompt) -> bytes:
    return orjson.dumps(
        {
            "payer": prompt.payer.hex(),
            "model": prompt.model,
            "settings": prompt.settings,
            "places": [[place.part[0], place.message, place.block, place.tool] for place in prompt.places],
            "roles": "".join(role[:1] or "-" for role in prompt.roles),
            "markable": "".join("01"[can] for can in prompt.markable),
            "own": b"".join(prompt.own).hex(),
            "size": prompt.size,
            "seals": {part: seal.hex() for part, seal in prompt.seals.items()},
            "streams": prompt.streams,
        }
    )


PARTS = {"t": "tools", "s": "system", "m": "messages"}
ROLES = {"-": "", "u": "user", "a": "assistant", "s": "system"}


def unpacked(raw: bytes) -> Prompt:
    value = orjson.loads(raw)
    all_own = bytes.fromhex(value["own"])
    own = tuple(all_own[i : i + DIGEST] for i in range(0, len(all_own), DIGEST))
    return Prompt(
        payer=bytes.fromhex(value["payer"]),
        model=value["model"],
        settings=value["settings"],
        places=tuple(placed(PARTS[part], message, block, tool) for part, message, block, tool in value["places"]),
        roles=tuple(ROLES[role] for role in value["roles"]),
        markable=tuple(can == "1" for can in value["markable"]),
        own=own,
        chain=tuple(chained(own)),
        size=tuple(value["size"]),
        seals={part: bytes.fromhex(seal) for part, seal in value["seals"].items()},
        streams=value["streams"],
    )
