"""The reply as events: bytes in, whole events out, and what they say about the message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

MAX_EVENT = 16 * 1024 * 1024  # bytes; a larger one is no event of this API
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
ENDINGS = (b"\n\n", b"\r\n\r\n", b"\r\r")
TELLING = (b"message_start", b"message_delta", b"message_stop", b"error")


class EventTooLarge(Exception):
    """An event grew beyond MAX_EVENT without ending."""


class WholeEvents:
    """Passes whole events on, as they came, and holds back the beginning of an unfinished one.

    A reply that breaks off in the middle of an event can so still end in a readable `error` event.
    """

    def __init__(self) -> None:
        self._tail = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        """The whole events complete with this chunk, byte for byte; b"" while there is none."""
        if not self._tail and chunk.endswith(b"\n\n"):
            return chunk
        start = max(len(self._tail) - 3, 0)
        self._tail += chunk
        end = max((at + len(mark) for mark in ENDINGS if (at := self._tail.rfind(mark, start)) >= 0), default=0)
        whole = bytes(self._tail[:end])
        del self._tail[:end]
        if len(self._tail) > MAX_EVENT:
            raise EventTooLarge
        return whole

    @property
    def rest(self) -> bytes:
        """What was held back: anything but blanks at the end of a stream is half an event."""
        return bytes(self._tail)


def telling_events(whole: bytes) -> Iterator[dict[str, Any]]:
    """The events that say something about the message: its start, its deltas of usage and stop reason, its end, errors.

    Text deltas are passed over unparsed.
    """
    if not any(word in whole for word in TELLING):
        return
    for line in whole.replace(b"\r", b"\n").split(b"\n"):
        if line.startswith(b"data:") and any(word in line for word in TELLING):
            try:
                event = orjson.loads(line[5:])
            except orjson.JSONDecodeError:
                continue  # not ours to mend; it is passed on as it came
            if isinstance(event, dict):
                yield event


class Meter:
    """What a reply says of itself, read while it passes: usage, model, stop reason, whether it is whole."""

    def __init__(self) -> None:
        self.usage: dict[str, Any] = {}
        self.model = ""
        self.stop_reason: str | None = None
        self.whole = False
        self.error: dict[str, Any] | None = None
        self.events = 0

    def feed(self, whole: bytes) -> None:
        """Read whole events of a stream."""
        self.events += whole.count(b"data:")
        for event in telling_events(whole):
            match event.get("type"):
                case "message_start":
                    self.message(event.get("message"))
                    self.stop_reason = None
                case "message_delta":
                    self._take_usage(event.get("usage"))
                    delta = event.get("delta")
                    if isinstance(delta, dict):
                        self.stop_reason = delta.get("stop_reason") or self.stop_reason
                case "message_stop":
                    self.whole = True
                case "error":
                    error = event.get("error")
                    self.error = error if isinstance(error, dict) else {}

    def message(self, message: Any) -> None:
        """Read a message object: the body of a plain reply, or the beginning of a streamed one."""
        if not isinstance(message, dict):
            return
        self.model = str(message.get("model") or "")
        self.stop_reason = message.get("stop_reason")
        self._take_usage(message.get("usage"))

    def _take_usage(self, usage: Any) -> None:
        # message_delta repeats counters cumulatively and may leave some out (API reference, read 2026-11)
        if isinstance(usage, dict):
            self.usage |= {key: value for key, value in usage.items() if value is not None}
