"""The log's lines: made by a thread of their own, which nothing may end."""

import logging

from server.logs import LinesHandler, Redacting


def record(message, *arguments):
    return logging.LogRecord("server", logging.INFO, "room.py", 7, message, arguments, None)


def test_a_line_that_cannot_be_made_is_told_without_its_words_and_the_next_ones_come(tmp_path):
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as stream:
        handler = LinesHandler(stream, Redacting("%(message)s"))
        handler.emit(record("%d turns", "Once upon a time"))
        handler.emit(record("Signed in with %s", "sk-ant-api03-a-key-of-the-tests-0001"))
        handler.flush(60.0)
    first, *_, last = log.read_text(encoding="utf-8").splitlines()
    assert first == "A line of room.py:7 could not be made: builtins.TypeError"
    assert last == "Signed in with …0001"
    assert "Once upon" not in log.read_text(encoding="utf-8")
