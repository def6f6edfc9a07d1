"""Lessons kept over restarts: what each upstream's models have refused."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path

from server.database import opened
from server.files import private_folder
from server.lesson import Lesson, with_lessons
from server.models import Models

log = logging.getLogger(__name__)

TABLE = (
    "lessons (upstream TEXT, model TEXT, rule TEXT, value TEXT NOT NULL, refused TEXT NOT NULL, did TEXT NOT NULL,"
    " version TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (upstream, model, rule))"
)
MOST_KEPT = 500  # in all: far more than there are models and rules


class Lessons:
    """The lessons in a database of the data folder, by upstream and model.

    They are forgotten when the table of models changes: it may know better by then. Without a usable database they last
    until the next start.
    """

    def __init__(self, path: Path, models: Models, *, clock: Callable[[], float] = time.time) -> None:
        self._version, self._clock = models.version, clock
        self._known: dict[str, Mapping[str, tuple[Lesson, ...]]] = {}
        self._db: sqlite3.Connection | None = None
        try:
            private_folder(path.parent)
            self._db = opened(path, TABLE)
            self._read(self._db)
        except (sqlite3.Error, OSError) as error:
            log.warning("What models refuse cannot be kept over restarts: %s", error)
            self.close()

    def of(self, upstream: str) -> Mapping[str, tuple[Lesson, ...]]:
        """What is known of an upstream's models, by model; the value to give to the steps."""
        return self._known.get(upstream, {})

    def add(self, upstream: str, model: str, learned: Lesson) -> None:
        """Remember a lesson, in place of an older one about the same rule."""
        if not learned.lasting:
            return
        # A new mapping, so that steps under way keep the one they began with.
        self._known[upstream] = with_lessons(self.of(upstream), model, [learned])
        log.info("%s refused %s; %s, and so from now on.", model, learned.refused, learned.did)
        if self._db is None:
            return
        rule, value, refused, did, _ = astuple(learned)
        try:
            self._db.execute(
                "INSERT OR REPLACE INTO lessons VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (upstream, model, rule, value, refused, did, self._version, self._clock()),
            )
        except sqlite3.Error as error:
            log.warning("What %s refuses could not be written down: %s", model, error)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _read(self, database: sqlite3.Connection) -> None:
        database.execute("DELETE FROM lessons WHERE version != ?", (self._version,))
        database.execute(
            "DELETE FROM lessons WHERE rowid NOT IN (SELECT rowid FROM lessons ORDER BY at DESC LIMIT ?)", (MOST_KEPT,)
        )
        rows = database.execute("SELECT upstream, model, rule, value, refused, did FROM lessons ORDER BY at").fetchall()
        for upstream, model, *lesson_ in rows:
            self._known[upstream] = with_lessons(self.of(upstream), model, [Lesson(*lesson_)])
