"""The memory of the prompt caches on the disk: its rows as values, and their tables in data_dir/state.sqlite."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from server.database import opened
from server.prefix import DIGEST, CacheKey, Prompt, chained, keyed, placed
from server.rewrite.cache_plan import LOOKAHEAD, Lifetime

log = logging.getLogger(__name__)

FORGET_ENTRY = 86_400.0  # an entry that died is remembered for a day, to say why a turn missed
GATHERED = 1.0  # seconds of changes that are written together; a crash loses no more


class CacheEntry(NamedTuple):
    """An entry of an upstream's cache, as believed: it can be read from `since` to `until` (unix seconds). `tokens`: as
    the upstream counted them, 0 where it did not say."""

    lifetime: Lifetime
    until: float
    since: float
    tokens: int = 0


@dataclass(eq=False)
class PastRequest:
    """An earlier request: what it consisted of, in digests, and how far later ones of its chat agreed with it. `at` is
    in unix seconds, `pause` in seconds since the request before it; `steps` and `followers` as in `Seen`."""

    prompt: Prompt
    at: float
    pause: float | None
    steps: list[tuple[int, int]] = field(default_factory=list)
    followers: int = 0
    row: int = 0
    reply: str = ""  # the id of the reply to it; like the rest in memory alone

    def followed(self, later: Prompt) -> tuple[list[tuple[int, int]], int]:
        """Its steps and the number of its followers, with this one."""
        followers, agreed = self.followers + 1, self.prompt.shared(later)
        further = followers <= LOOKAHEAD and agreed > (self.steps[-1][1] if self.steps else 0)
        return [*self.steps, (followers, agreed)] if further else self.steps, followers


@dataclass
class Changed:
    """What is to be written: the last word on each entry, request and fact. `gone`: the last request forgotten."""

    entries: dict[CacheKey, CacheEntry | None] = field(default_factory=dict)
    requests: dict[int, tuple[PastRequest, bool]] = field(default_factory=dict)  # by row; whether it is a new one
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

    def load(self, secret: bytes) -> tuple[dict[CacheKey, CacheEntry], list[PastRequest], dict[str, Any]]:
        """What was kept: entries, requests (oldest first), facts. Nothing, with a line in the log, if unreadable."""
        return self._writer.submit(self._read, secret).result()

    def save(
        self,
        *,
        entries: Iterable[tuple[CacheKey, CacheEntry | None]] = (),
        requests: Iterable[PastRequest] = (),
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
            self._db = opened(self._path, *self.TABLES, durable=False)
        return self._db

    def _read(self, secret: bytes) -> tuple[dict[CacheKey, CacheEntry], list[PastRequest], dict[str, Any]]:
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

    def _rows(self, db: sqlite3.Connection) -> tuple[dict[CacheKey, CacheEntry], list[PastRequest]]:
        db.execute("DELETE FROM cache_entries WHERE until < ?", (self._now - FORGET_ENTRY,))
        entries = {
            (seal, chain): CacheEntry(*kept)
            for seal, chain, *kept in db.execute("SELECT * FROM cache_entries ORDER BY until")
        }
        requests = [
            PastRequest(unpacked(prompt), at, pause, [(k, n) for k, n in orjson.loads(steps)], followers, row)
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
