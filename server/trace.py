"""Recordings of chats, with their text: only where the owner asked for them (`record_trace`), to replay and compare."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from server.files import PRIVATE_FILE, private_folder
from server.request import ChatRequest

log = logging.getLogger(__name__)

WARNING = "record_trace is on: your chats are being written to {}, with their whole text. Set it to false to stop."


class TraceRecorder:
    """Writes each chat request to a file a day, one JSON object a line, readable by the owner alone.

    A thread of its own does it, so no request waits for a disk. Credentials are not written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer = ThreadPoolExecutor(1, "trace")
        self._broken = False

    @property
    def warning(self) -> str:
        return WARNING.format(self.folder)

    def record(self, at: float, path: str, request: ChatRequest, usage: Mapping[str, Any]) -> None:
        """`request` as the front end sent it, and the `usage` its reply reported ({} for none)."""
        headers = {"anthropic-version": request.version, "anthropic-beta": ",".join(request.betas)}
        row = {"t": at, "method": "POST", "path": path, "headers": headers, "body": request.body, "reply_usage": usage}
        self._writer.submit(self._write, f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}.jsonl", row)

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        try:
            private_folder(self.folder)
            handle = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, PRIVATE_FILE)
            with os.fdopen(handle, "ab") as file:
                file.write(orjson.dumps(row) + b"\n")
        except OSError as error:
            if not self._broken:
                log.warning("The recording cannot be written: %s", error.strerror)
            self._broken = True
        else:
            self._broken = False

    def close(self) -> None:
        """Write what is still waiting."""
        self._writer.shutdown()
