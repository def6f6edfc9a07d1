"""The reply as events: bytes in, whole events out, and what they say about the message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

MAX_EVENT = 16 * 1024 * 1024  # bytes; a larger one is no event of this API
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
ENDINGS = (b"\n\n", b"\r\n\r\n", b"\r\r")
BLOCK_START = b"event: content_block_start"
LAST_WORDS = b"event: message_delta"
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


def lines_that_begin(whole: bytes, start: bytes) -> int:
    """How many lines of whole events begin so. JSON holds no bare newline, so no story can."""
    return whole.count(b"\n" + start) + whole.startswith(start)


def speaks(whole: bytes) -> bool:
    """Whether these events bring a word of text or a call of a tool."""
    if b"input_json_delta" in whole or b'"tool_use"' in whole:
        return True
    if b"text_delta" not in whole:
        return False
    for line in whole.replace(b"\r", b"\n").split(b"\n"):
        if line.startswith(b"data:") and b"text_delta" in line:
            try:
                delta = orjson.loads(line[5:]).get("delta")
            except (orjson.JSONDecodeError, AttributeError):
                continue
            if isinstance(delta, dict) and str(delta.get("text", "")).strip():
                return True
    return False


def is_word(block: Any) -> bool:
    """Whether a content block of a reply says something to the reader."""
    if not isinstance(block, dict) or block.get("type") in ("thinking", "redacted_thinking"):
        return False
    return block.get("type") != "text" or bool(str(block.get("text", "")).strip())


def text_events(index: int, text: str) -> bytes:
    """A text block of our own, as the events of a stream."""
    events: list[tuple[str, dict[str, Any]]] = [
        ("content_block_start", {"content_block": {"type": "text", "text": ""}}),
        ("content_block_delta", {"delta": {"type": "text_delta", "text": text}}),
        ("content_block_stop", {}),
    ]
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps({"type": name, "index": index, **data}))
        for name, data in events
    )


def before_last_words(whole: bytes, added: bytes) -> bytes:
    """Whole events with `added` put before the first `message_delta`; behind them where there is none."""
    at = 0 if whole.startswith(LAST_WORDS) else whole.find(b"\n" + LAST_WORDS) + 1
    if at == 0 and not whole.startswith(LAST_WORDS):
        return whole + added
    return whole[:at] + added + whole[at:]


class Meter:
    """What a reply says of itself, read while it passes: usage, model, stop reason, whether it is whole."""

    def __init__(self) -> None:
        self.id = ""  # of the message
        self.usage: dict[str, Any] = {}
        self.model = ""
        self.stop_reason: str | None = None
        self.stop_details: dict[str, Any] = {}
        self.diagnostics: dict[str, Any] = {}
        self.spoke = False  # a word, or a call of a tool
        self.blocks = 0
        self.whole = False
        self.error: dict[str, Any] | None = None
        self.events = 0

    def feed(self, whole: bytes) -> None:
        """Read whole events of a stream."""
        self.events += lines_that_begin(whole, b"data:")
        if self.spoke and b"message_" not in whole and b"error" not in whole and BLOCK_START not in whole:
            return  # more of the text, as nearly always
        self.blocks += lines_that_begin(whole, BLOCK_START)
        self.spoke = self.spoke or speaks(whole)
        for event in telling_events(whole):
            match event.get("type"):
                case "message_start":
                    self.message(event.get("message"))
                    self.stop_reason = None
                case "message_delta":
                    self._take_usage(event.get("usage"))
                    delta = event.get("delta")
                    if isinstance(delta, dict):
                        self._take_end(delta)
                case "message_stop":
                    self.whole = True
                case "error":
                    error = event.get("error")
                    self.error = error if isinstance(error, dict) else {}

    def message(self, message: Any) -> None:
        """Read a message object: the body of a plain reply, or the beginning of a streamed one."""
        if not isinstance(message, dict):
            return
        self.id, self.model = str(message.get("id") or ""), str(message.get("model") or "")
        self._take_end(message)
        self._take_usage(message.get("usage"))
        diagnostics = message.get("diagnostics")
        self.diagnostics = diagnostics if isinstance(diagnostics, dict) else {}
        content = message.get("content")
        self.spoke = self.spoke or (isinstance(content, list) and any(map(is_word, content)))

    def _take_end(self, said: dict[str, Any]) -> None:
        self.stop_reason = said.get("stop_reason") or self.stop_reason
        details = said.get("stop_details")
        self.stop_details = details if isinstance(details, dict) else self.stop_details

    def _take_usage(self, usage: Any) -> None:
        # message_delta repeats counters cumulatively and may leave some out (API reference, read 2026-11)
        if isinstance(usage, dict):
            self.usage |= {key: value for key, value in usage.items() if value is not None}
