"""The last receipts, kept in memory with their texts; each is counted, and goes into the books."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from server.books import Books
from server.chats import Chat
from server.metrics import Metrics
from server.models import Models
from server.receipt import Bodies, Receipt, Row

KEPT = 1000


class Receipts:
    """The last receipts, newest first; each is counted, and goes into the books."""

    def __init__(self, models: Models, books: Books, metrics: Metrics, *, keep_bodies: int = 0) -> None:
        self._models, self._books, self._metrics, self._keep_bodies = models, books, metrics, keep_bodies
        self._kept: deque[Receipt] = deque(maxlen=KEPT)
        self._under_way: dict[str, Receipt] = {}
        self._tell: list[Callable[[], None]] = []

    def when_changed(self, tell: Callable[[], None]) -> None:
        """Call `tell` after each request that has begun or ended."""
        self._tell.append(tell)

    def begin(self, receipt: Receipt) -> None:
        """A request is on its way; `add` or `add_unbooked` ends it."""
        self._under_way[receipt.id] = receipt
        self._changed()

    def under_way(self, now: float) -> list[dict[str, Any]]:
        """Requests that have begun and not ended, the oldest first: names and numbers, never their text."""
        return [
            {
                "id": receipt.id,
                "model": receipt.model,
                "persona": receipt.persona or None,
                "key": receipt.key or None,
                "seconds": max(now - receipt.at, 0.0),
                "events": receipt.events,
            }
            for receipt in self._under_way.values()
        ]

    def add(self, receipt: Receipt, chat: Chat | None = None) -> None:
        self._keep(receipt, self._books.add(receipt, chat))

    def add_unbooked(self, receipt: Receipt) -> None:
        """The receipt of one who was turned away at the door: leaves no trace on the disk."""
        self._keep(receipt, Row.of(receipt, self._models))

    def _keep(self, receipt: Receipt, row: Row) -> None:
        self._under_way.pop(receipt.id, None)
        self._kept.appendleft(receipt)
        self._metrics.count(receipt, row)
        if len(self._kept) > self._keep_bodies:
            self._kept[self._keep_bodies].bodies = None
        self._changed()

    def _changed(self) -> None:
        for tell in self._tell:
            tell()

    def find(self, request_id: str) -> dict[str, Any] | None:
        """The row of one request; None if it is not kept (any more)."""
        return next((receipt.public(self._models) for receipt in self._kept if receipt.id == request_id), None)

    def bodies(self, request_id: str) -> Bodies | None:
        """The text of one of the last requests, where the owner's setting keeps it."""
        return next((receipt.bodies for receipt in self._kept if receipt.id == request_id), None)

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """The rows of GET /api/requests, `limit` at most."""
        return [receipt.public(self._models) for receipt, _ in zip(self._kept, range(limit), strict=False)]
