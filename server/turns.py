"""Turns: each request for a chat from its beginning to its end, in its receipt, its chat and what is recorded of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from server.budget import Hold
from server.chats import Chat, Chats
from server.errors import ProxyError
from server.receipt import Receipt
from server.receipts import Receipts
from server.request import ChatRequest
from server.trace import TraceRecorder

log = logging.getLogger(__name__)


@dataclass
class Turn:
    """A request for a chat or the count of its tokens, as far as it has come."""

    receipt: Receipt
    began: float  # monotonic seconds
    path: str  # as it was asked
    hold: Hold | None = None  # None: no key, or too many requests of one
    chat: Chat | None = None
    asked: ChatRequest | None = None  # to be recorded

    @property
    def milliseconds(self) -> int:
        return round((time.monotonic() - self.began) * 1000)


class Turns:
    """Begins turns and ends them. However one ends, its receipt says how."""

    def __init__(
        self, receipts: Receipts, chats: Chats, recorder: TraceRecorder | None, clock: Callable[[], float]
    ) -> None:
        self._receipts, self._chats, self._recorder, self._clock = receipts, chats, recorder, clock

    def begin(self, path: str, *, counting: bool) -> Turn:
        return Turn(Receipt(at=self._clock(), kind="count" if counting else "chat"), time.monotonic(), path)

    def read_ahead(self, asked: ChatRequest) -> None:
        """Read a large request before it is noted; a thread may do this."""
        self._chats.read_ahead(asked.body)

    def note(self, turn: Turn, asked: ChatRequest) -> None:
        """What it asks is known: which chat it belongs to, and that it is under way. A count belongs to none."""
        receipt = turn.receipt
        receipt.model = asked.model
        if asked.counting:
            return
        self._receipts.begin(receipt)
        if chat := self._chats.recognise(asked.body, receipt.key_id, receipt.at):
            turn.chat, receipt.chat = chat, chat.id
        if self._recorder is not None:
            turn.asked = asked

    def end(self, turn: Turn) -> None:
        """What it cost, its receipt, its line in the log."""
        receipt = turn.receipt
        receipt.status, receipt.ended = receipt.status or 500, receipt.ended or "error"
        receipt.duration_ms = turn.milliseconds
        if turn.hold is None:
            self._receipts.add_unbooked(receipt)
        else:
            turn.hold.settle(receipt)
            self._receipts.add(receipt, turn.chat)
        if self._recorder is not None and turn.asked is not None:
            self._recorder.record(receipt.at, turn.path, turn.asked, receipt.usage)
        log.info("%s", receipt.line())

    def turned_away(self, error: ProxyError) -> str:
        """Note a chat that came no further than the gate. The id of its receipt."""
        receipt = Receipt(at=self._clock(), status=error.status, ended="error")
        self._receipts.add_unbooked(receipt)
        log.info("%s", receipt.line())
        return receipt.id
