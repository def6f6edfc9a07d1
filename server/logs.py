"""The log: plain lines without secrets or chat text."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

SECRET = re.compile(
    r"(?=[bcstxBCSTX])"  # what none of them begins with is passed over at once
    r"(?:(?:sk-ant-|tavern-)[A-Za-z0-9_-]{4,}"
    r"|(?i:bearer|x-api-key|token|code)[\"']?\s*[:= ]\s*[\"']?[A-Za-z0-9._~+/#-]{16,})"
)


def frames(error: BaseException) -> str:
    """What went wrong inside, and where: kind, files, lines, functions. Its words stay out: they may quote a chat."""
    steps = traceback.extract_tb(error.__traceback__)
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    return kind + "".join(f"\n  {step.filename}:{step.lineno} in {step.name}" for step in steps)


class Redacting(logging.Formatter):
    """Writes a record with whatever looks like a secret struck out, and tracebacks too."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  # the name is logging's
        """Where it happened and what kind of error it was; its message stays out, since it may quote a chat."""
        return frames(ei[1]) if ei[1] else ""

    def format(self, record: logging.LogRecord) -> str:
        try:
            line = super().format(record)
        except Exception as error:  # the thread that writes must live on
            line = f"A line of {record.name} could not be made: {frames(error)}"
        return SECRET.sub(lambda match: f"…{match[0][-4:]}", line)


class Lines:
    """Lines on their way to a window, a pipe or a file. A thread of their own makes and writes them, so that a stuck
    pipe or a slow disk holds up nobody; more than KEPT are lost.

    They are gathered for a moment: waking the thread costs more than all else about a line. `as_text` makes a line of
    what is added.
    """

    KEPT = 10_000
    GATHERED = 0.1  # seconds

    def __init__(self, stream: TextIO, as_text: Callable[[Any], str] = str) -> None:
        self._stream, self._as_text = stream, as_text
        self._waiting: deque[Any] = deque()
        self._some, self._hurry = threading.Event(), threading.Event()
        threading.Thread(target=self._write, name="lines", daemon=True).start()

    def add(self, line: Any = "") -> None:
        if len(self._waiting) < self.KEPT:  # who should read does not; there is nobody to tell
            self._waiting.append(line)
        if not self._some.is_set():
            self._some.set()

    def flush(self, patience: float = 1.0) -> None:
        """Wait until all is written, but not for ever."""
        written = threading.Event()
        self._waiting.append(written)
        self._some.set()
        self._hurry.set()
        written.wait(patience)

    def _write(self) -> None:
        while True:
            self._some.wait()
            self._hurry.wait(self.GATHERED)
            self._some.clear()
            self._hurry.clear()
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if lines := [self._as_text(line) for line in batch if not isinstance(line, threading.Event)]:
                write_line(self._stream, "\n".join(lines))
            for written in batch:
                if isinstance(written, threading.Event):
                    written.set()


class LinesHandler(logging.Handler):
    """Hands records to `Lines`, whose thread formats them."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self._lines = Lines(stream, formatter.format)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.add(record)

    def flush(self, patience: float = 1.0) -> None:
        self._lines.flush(patience)


def write_line(stream: TextIO, line: str) -> None:
    """Write a line at once. No lock of Python's is held meanwhile, so that a program with a stuck reader can end."""
    with suppress(OSError, ValueError):  # the reader is gone
        if os.name == "posix":
            os.write(stream.fileno(), f"{line}\n".encode(stream.encoding, "replace"))
        else:
            stream.write(f"{line}\n")  # a console of Windows has an encoding of its own
            stream.flush()


def set_up(level: str, stream: TextIO = sys.stderr) -> None:
    """All loggers write through one handler: ours from `level` on, others' warnings only. At DEBUG those quote what
    they work on: aiohttp a client's bytes, Pillow what is written inside a picture."""
    handler = LinesHandler(stream, Redacting("%(asctime)s  %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # our lines do not name them,
    logging._srcfile = None  # nor the place they come from
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logging.getLogger("server").setLevel(level)
    root.setLevel(logging.WARNING)
    for name in ("aiohttp.access", "aiohttp.server", "aiohttp.web"):
        logging.getLogger(name).disabled = True
