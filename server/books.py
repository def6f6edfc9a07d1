"""The books: one row for each request, numbers and names only; old rows become sums of days, which stay."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from server.budget import NOTICE
from server.chats import DIGEST, KEPT, Chat
from server.database import opened, set_database_aside
from server.days import begins, day_of, rfc3339
from server.errors import ProxyError
from server.models import Models
from server.receipt import COUNTERS, Receipt, Row, rounded

log = logging.getLogger(__name__)

T = TypeVar("T")
MOST_WAITING = 10_000  # rows held in memory while the disk takes none
TOGETHER = 32  # rows in a statement: with each, the two threads take the interpreter's lock from each other
GATHERED = 0.2  # seconds of rows that are written together
# What rows may be grouped by: the column that tells groups apart, and the one a person reads.
GROUPS = {
    "day": ("day", "day"),
    "model": ("model", "model"),
    "key": ("key_id", "key"),
    "account": ("account_id", "account"),
    "persona": ("persona", "persona"),
    "chat": ("chat", "chat"),
}


class Charge(NamedTuple):
    """What a client key was charged with on a day."""

    key_id: str
    day: str
    usd: float
    tokens: int


class Entry(NamedTuple):
    """What is entered for a request; `warned`: its reply ended with a warning of the key's limits."""

    row: Row
    chat: Chat | None
    warned: bool


SUMMED = ("requests", "unpriced", *COUNTERS, "usd", "usd_without_cache", "hits", "charged_usd", "charged_tokens")
SPLIT = ("day", "model", "key_id", "account_id", "persona", "chat")
AS_SUMS = (
    "day, model, key_id, key, account_id, account, persona, chat, 1 AS requests, usd IS NULL AS unpriced,"
    f" {', '.join(COUNTERS)}, coalesce(usd, 0) AS usd, coalesce(usd_without_cache, 0) AS usd_without_cache,"
    " cache = 'hit' AS hits, charged_usd, charged_tokens"
)
TABLES = (
    f"book_requests ({', '.join(Row._fields)}, PRIMARY KEY (id)) WITHOUT ROWID",
    f"book_days (begins, {', '.join(SPLIT)}, key, account, {', '.join(SUMMED)}, PRIMARY KEY ({', '.join(SPLIT)}))"
    " WITHOUT ROWID",
    "book_chats (id PRIMARY KEY, key_id, name, began_at, last_at, lines) WITHOUT ROWID",
    "book_notices (key_id PRIMARY KEY, day) WITHOUT ROWID",
)
INSERT = f"INSERT OR IGNORE INTO book_requests ({', '.join(Row._fields)}) VALUES "  # noqa: S608
HOLES = f"({', '.join('?' * len(Row._fields))})"
INDEXES = ("book_requests_at ON book_requests (at)", "book_chats_last ON book_chats (last_at)")


class Books:
    """The tables in data_dir/state.sqlite. A thread of its own reads and writes them, so no request waits for a disk.

    `days` is how long rows are kept before only their sums are. Nothing here ever fails a request: what cannot be
    written waits, and `warnings` says so. Rows are gathered for a moment: waking the thread costs more than the row.
    """

    def __init__(self, path: Path, models: Models, *, days: int, clock: Callable[[], float] = time.time) -> None:
        self._path, self._models, self._days, self._clock = path, models, days, clock
        self._thread = ThreadPoolExecutor(1, "books")
        self._db: sqlite3.Connection | None = None
        self._added: deque[Entry] = deque(maxlen=MOST_WAITING)  # not in the thread's hands yet
        self._waiting: deque[Entry] = deque(maxlen=MOST_WAITING)
        self._gathering = False
        self._hurry = threading.Event()
        self._pruned = ""  # the day of the last look for old rows
        self._damage = ""
        self._trouble = ""
        self._thread.submit(self._open).result()

    @property
    def warnings(self) -> list[str]:
        """What the owner should know now."""
        return [words for words in (self._damage, self._trouble) if words]

    def close(self) -> None:
        """Write what is still waiting, and let go of the file."""
        self._hurry.set()
        self._thread.submit(self._close)
        self._thread.shutdown()

    # -- what the road gives

    def add(self, receipt: Receipt, chat: Chat | None = None) -> Row:
        """Enter a request that has ended."""
        row = Row.of(receipt, self._models)
        self._added.append(Entry(row, chat, any(change.name == NOTICE for change in receipt.changes)))
        if not self._gathering:
            self._gathering = True
            self._thread.submit(self._write_soon)
        return row

    # -- what is asked of them; everything added before is in the answer

    def charges(self, since: float) -> list[Charge]:
        """What each client key was charged with on each day since; for the start. None, where nothing can be read."""
        days = (day_of(since).isoformat(),)
        sums = "SELECT key_id, day, sum(charged_usd), sum(charged_tokens) FROM"
        which = "WHERE day >= ? AND key_id != '' GROUP BY key_id, day"

        def read(db: sqlite3.Connection) -> list[Charge]:
            return [Charge(*row) for table in DATED for row in db.execute(f"{sums} {table} {which}", days)]

        try:
            return self._ask(read).result()
        except ProxyError:
            return []

    def warned(self) -> dict[str, str]:
        """The day on which each client key was last warned of its limits; for the start."""
        try:
            return self._ask(lambda db: dict(db.execute("SELECT key_id, day FROM book_notices"))).result()
        except ProxyError:
            return {}

    def chats(self) -> list[Chat]:
        """The chats used last, to be recognised again; for the start."""

        def read(db: sqlite3.Connection) -> list[Chat]:
            rows = db.execute(
                "SELECT id, key_id, began_at, last_at, lines FROM book_chats ORDER BY last_at DESC LIMIT ?", (KEPT,)
            ).fetchall()
            return [Chat(name, key, began, last, cut(lines)) for name, key, began, last, lines in reversed(rows)]

        try:
            return self._ask(read).result()
        except ProxyError:
            return []

    async def usage(
        self, since: float, until: float, by: str, *, split_by: str = "", key_id: str | None = None
    ) -> list[dict[str, Any]]:
        """The rows of GET /api/usage: days in order, other groups by what they cost. Old days count whole, by their
        beginning. `split_by`: a row for each of these in a group. Raises ProxyError 503 when the books cannot be
        read."""
        _, label = GROUPS[by]
        groups = ", ".join(GROUPS[name][0] for name in (by, split_by) if name)
        one_key = "" if key_id is None else "AND key_id = ?"
        mine = () if key_id is None else (key_id,)
        sums = ", ".join(f"sum({name}) AS {name}" for name in SUMMED)
        query = f"""
            SELECT {groups}, {label} AS label, max(day) AS last_day, {sums} FROM (
                SELECT {AS_SUMS} FROM book_requests WHERE at >= ? AND at < ? {one_key}
                UNION ALL SELECT day, model, key_id, key, account_id, account, persona, chat, {", ".join(SUMMED)}
                FROM book_days WHERE begins >= ? AND begins < ? {one_key}
            ) GROUP BY {groups}
        """  # noqa: S608 (names of columns, from the tables above)

        def read(db: sqlite3.Connection) -> list[dict[str, Any]]:
            cursor = db.execute(query, (since, until, *mine, since, until, *mine))
            names = [column[0] for column in cursor.description]
            found = [dict(zip(names, row, strict=True)) for row in cursor]
            chats = {row["id"]: row for row in self._chats(db)} if by == "chat" else {}
            return [usage_row(row, by, split_by, chats) for row in found]

        rows = await asyncio.wrap_future(self._ask(read))
        return sorted(rows, key=lambda row: row["group"] if by == "day" else -(row["usd"] or 0))

    async def requests(self, limit: int) -> list[Row]:
        """The newest rows. Raises ProxyError 503 when the books cannot be read."""

        def read(db: sqlite3.Connection) -> list[Row]:
            fields = ", ".join(Row._fields)
            found = db.execute(f"SELECT {fields} FROM book_requests ORDER BY at DESC LIMIT ?", (limit,))  # noqa: S608
            return [Row(*row) for row in found]

        return await asyncio.wrap_future(self._ask(read))

    async def request(self, request_id: str) -> Row | None:
        """One row. Raises ProxyError 503 when the books cannot be read."""

        def read(db: sqlite3.Connection) -> Row | None:
            fields = ", ".join(Row._fields)
            found = db.execute(f"SELECT {fields} FROM book_requests WHERE id = ?", (request_id,)).fetchone()  # noqa: S608
            return Row(*found) if found else None

        return await asyncio.wrap_future(self._ask(read))

    async def name_chat(self, chat_id: str, name: str) -> dict[str, Any]:
        """Give a chat its owner's name; "" takes it away. Raises ProxyError 404."""

        def change(db: sqlite3.Connection) -> dict[str, Any]:
            db.execute("UPDATE book_chats SET name = ? WHERE id = ?", (name, chat_id))
            found = [row for row in self._chats(db) if row["id"] == chat_id]
            if not found:
                raise ProxyError(404, "There is no such chat in the books.")
            return found[0]

        return await asyncio.wrap_future(self._ask(change))

    # -- in the thread

    def _ask(self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        def answer() -> T:
            try:
                return work(self._connected())
            except (sqlite3.Error, OSError) as error:
                log.warning("The books cannot be read: %s", error)
                raise ProxyError(503, f"The books cannot be read just now ({error}). Chats go on; try later.") from None

        self._hurry.set()
        return self._thread.submit(answer)

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            db = opened(self._path, *TABLES, durable=False)
            try:
                there = {name for _, name, *_ in db.execute("PRAGMA table_info(book_requests)")}
                for name in Row._fields:
                    if name not in there:  # books of an earlier version
                        db.execute(f"ALTER TABLE book_requests ADD COLUMN {name}")
                for index in INDEXES:
                    db.execute(f"CREATE INDEX IF NOT EXISTS {index}")
                for table in ("book_requests", "book_days", "book_chats", "book_notices"):
                    db.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()  # noqa: S608
            except sqlite3.Error:
                db.close()
                raise
            self._db = db
        return self._db

    def _open(self) -> None:
        """Open the file; a damaged one is set aside under another name."""
        try:
            try:
                self._connected()
            except sqlite3.OperationalError:
                raise  # locked, or the disk is full: it is not the file that is bad
            except sqlite3.DatabaseError as error:
                aside = set_database_aside(self._path, self._clock())
                self._damage = f"{self._path.name} was damaged ({error}) and is now {aside.name}. The books begin anew."
                log.warning("%s", self._damage)
                self._connected()
        except (sqlite3.Error, OSError) as error:
            self._note_trouble(error)

    def _write_soon(self) -> None:
        self._hurry.wait(GATHERED)
        self._hurry.clear()
        self._gathering = False
        self._write()

    def _write(self) -> None:
        while self._added:
            self._waiting.append(self._added.popleft())
        if not self._waiting:
            return
        today = self._waiting[-1].row.day
        try:
            db = self._connected()
            db.execute("BEGIN")
            self._enter(db)
            if today != self._pruned:
                self._prune(db)
            db.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            self._note_trouble(error)
            return
        self._waiting.clear()
        self._pruned = today
        self._trouble = ""

    def _enter(self, db: sqlite3.Connection) -> None:
        rows = [entry.row for entry in self._waiting]
        whole = len(rows) - len(rows) % TOGETHER
        batches = [[*chain.from_iterable(rows[i : i + TOGETHER])] for i in range(0, whole, TOGETHER)]
        db.executemany(INSERT + ", ".join([HOLES] * TOGETHER), batches)
        db.executemany(INSERT + HOLES, rows[whole:])
        chats = {entry.chat.id: entry.chat for entry in self._waiting if entry.chat}
        db.executemany(
            "INSERT INTO book_chats VALUES (?, ?, '', ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET last_at = excluded.last_at, lines = excluded.lines",
            [(chat.id, chat.key_id, chat.began_at, chat.last_at, b"".join(chat.lines)) for chat in chats.values()],
        )

        db.executemany(
            "INSERT INTO book_notices VALUES (?, ?) ON CONFLICT (key_id) DO UPDATE SET day = excluded.day",
            [(entry.row.key_id, entry.row.day) for entry in self._waiting if entry.warned],
        )

    def _prune(self, db: sqlite3.Connection) -> None:
        """Turn rows older than `days` into sums."""
        end = begins(day_of(self._clock()) - timedelta(days=self._days))
        old = db.execute("SELECT DISTINCT day FROM book_requests WHERE at < ?", (end,)).fetchall()
        more = ", ".join(f"{name} = {name} + excluded.{name}" for name in SUMMED)
        columns = ", ".join((*SPLIT, "key", "account", *SUMMED))
        for (day,) in old:
            sums = ", ".join(f"sum({name})" for name in SUMMED)
            db.execute(
                f"INSERT INTO book_days (begins, {columns})"  # noqa: S608
                f" SELECT ?, {', '.join(SPLIT)}, max(key), max(account), {sums} FROM"
                f" (SELECT {AS_SUMS} FROM book_requests WHERE day = ? AND at < ?) GROUP BY {', '.join(SPLIT)}"
                f" ON CONFLICT ({', '.join(SPLIT)}) DO UPDATE SET {more}",
                (begins(datetime.fromisoformat(day).date()), day, end),
            )
        db.execute("DELETE FROM book_requests WHERE at < ?", (end,))
        db.execute(
            "UPDATE book_chats SET lines = x'' WHERE id NOT IN"
            " (SELECT id FROM book_chats ORDER BY last_at DESC LIMIT ?)",
            (KEPT,),
        )

    def _chats(self, db: sqlite3.Connection) -> Iterable[dict[str, Any]]:
        for chat_id, name, began_at, last_at in db.execute("SELECT id, name, began_at, last_at FROM book_chats"):
            yield {
                "id": chat_id,
                "name": name or None,
                "began_at": rfc3339(began_at),
                "last_at": rfc3339(last_at),
                "title": name or f"{datetime.fromtimestamp(began_at).astimezone():%d %b %Y, %H:%M}",
            }

    def _note_trouble(self, error: Exception) -> None:
        if self._db and self._db.in_transaction:
            self._db.rollback()
        words = f"The books cannot be written ({error}). Rows wait in memory until it works again; chats go on."
        if words != self._trouble:
            log.warning("%s", words)
        self._trouble = words

    def _close(self) -> None:
        if self._db:
            self._db.close()


DATED = ("book_requests", "book_days")


def cut(lines: bytes) -> tuple[bytes, ...]:
    return tuple(lines[i : i + DIGEST] for i in range(0, len(lines), DIGEST))


def usage_row(row: Mapping[str, Any], by: str, split_by: str, chats: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A row of GET /api/usage. Where no request had a known price there is no sum, rather than 0."""
    column, label = GROUPS[by]
    chat = chats.get(row[column]) if by == "chat" else None
    priced = row["requests"] > row["unpriced"]
    shown = {"group": chat["title"] if chat else row["label"] or None, "requests": row["requests"]}
    shown |= {name: row[name] for name in COUNTERS}
    shown |= {name: rounded(row[name]) if priced else None for name in ("usd", "usd_without_cache")}
    shown |= {"unpriced_requests": row["unpriced"], "cache_hits": row["hits"]}
    if column != label or by == "chat":
        shown["id"] = row[column] or None
    if split_by:
        shown[split_by] = row[GROUPS[split_by][1]] or None
    return shown | ({name: chat[name] for name in ("name", "began_at", "last_at")} if chat else {})
