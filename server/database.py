"""SQLite databases for their owner alone: opened in one way, and set aside when damaged."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from server.files import PRIVATE_FILE, set_aside


def opened(path: Path, *tables: str, patience: float = 5.0, durable: bool = True) -> sqlite3.Connection:
    """A database, made where there is none, with these tables (what stands behind CREATE TABLE IF NOT EXISTS).

    Each statement commits by itself. If it is not `durable`, a power cut may take the last ones, never the file.
    `patience`: seconds to wait for whoever else writes. Raises sqlite3.Error, OSError.
    """
    path.touch(mode=PRIVATE_FILE)
    db = sqlite3.connect(path, timeout=patience, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        db.execute("BEGIN IMMEDIATE")  # two first starts at once: one after the other
        for table in tables:
            db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
        db.execute("COMMIT")
    except sqlite3.Error:
        db.close()
        raise
    return db


def set_database_aside(path: Path, now: float) -> Path:
    """Give a damaged database another name, with its write-ahead log, which would else be played into the next one."""
    aside = set_aside(path, now)
    for end in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.rename(path.with_name(path.name + end), aside.with_name(aside.name + end))
    return aside
