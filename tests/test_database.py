import sqlite3
import stat
from contextlib import closing

import pytest

from server.database import opened, set_database_aside
from tests.pools import needs_posix

NOTES = "notes (said TEXT NOT NULL)"


def test_its_tables_are_made_once_and_what_stands_in_them_stays(tmp_path):
    for said in ("one", "two"):
        with closing(opened(tmp_path / "state.sqlite", NOTES)) as db:
            db.execute("INSERT INTO notes VALUES (?)", (said,))
            rows = db.execute("SELECT said FROM notes").fetchall()
    assert rows == [("one",), ("two",)]


def test_two_have_it_open_at_once(tmp_path):
    with closing(opened(tmp_path / "state.sqlite", NOTES)) as one, closing(opened(tmp_path / "state.sqlite")) as other:
        one.execute("INSERT INTO notes VALUES ('hello')")
        assert other.execute("SELECT said FROM notes").fetchall() == [("hello",)]


@needs_posix
def test_it_is_its_owners_alone(tmp_path):
    opened(tmp_path / "state.sqlite", NOTES).close()
    assert stat.S_IMODE((tmp_path / "state.sqlite").stat().st_mode) == 0o600


def test_what_is_no_database_is_told_and_left_as_it_is(tmp_path):
    (tmp_path / "state.sqlite").write_bytes(b"no database at all" * 500)
    with pytest.raises(sqlite3.DatabaseError):
        opened(tmp_path / "state.sqlite", NOTES)
    assert (tmp_path / "state.sqlite").read_bytes().startswith(b"no database")


def test_one_is_set_aside_with_its_log(tmp_path):
    for end in ("", "-wal", "-shm"):
        (tmp_path / f"state.sqlite{end}").write_bytes(b"x")
    aside = set_database_aside(tmp_path / "state.sqlite", 0.0)
    assert {path.name for path in tmp_path.iterdir()} == {f"{aside.name}{end}" for end in ("", "-wal", "-shm")}
