"""The log: plain lines without secrets or chat text."""

from __future__ import annotations

import logging
import re
import sys
from typing import TextIO

SECRET = re.compile(
    r"(?:sk-ant-|tavern-)[A-Za-z0-9_-]{4,}"
    r"|(?i:bearer|x-api-key|refresh_token|access_token|token|code)[\"']?\s*[:= ]\s*[\"']?[A-Za-z0-9._~+/#-]{16,}"
)


class Redacting(logging.Formatter):
    """Writes a record with whatever looks like a secret struck out, and tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        return SECRET.sub(lambda match: f"…{match[0][-4:]}", super().format(record))


def set_up(level: str, stream: TextIO = sys.stderr) -> None:
    """All loggers write through one handler, from `level` on; aiohttp's own are kept down: they show clients' bytes."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Redacting("%(asctime)s  %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("aiohttp", "asyncio", "filelock", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("aiohttp.access", "aiohttp.server", "aiohttp.web"):
        logging.getLogger(name).disabled = True
