"""What it cost: receipts, one for each request; the last ones are kept in memory with their texts."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from server.days import day_of, rfc3339
from server.models import Models, cost, fees_of, whole
from server.request import Change

if TYPE_CHECKING:
    from server.books import Books
    from server.cache_why import CacheStory
    from server.chats import Chat
    from server.metrics import Metrics

KEPT = 1000  # receipts
Kind = Literal["chat", "count", "ping"]
# Why a turn missed the cache, as far as the books tell: the kinds of cache_why.py in words.
IN_BRIEF = {
    "model": "the model was switched",
    "system": "the system prompt changed",
    "tools": "a tool definition changed",
    "messages": "an earlier part of the story changed",
    "first": "first request of this chat",
    "too_short": "too short to be cached on this model",
    "no_marks": "this upstream takes no cache marks",
    "credential": "another account or key paid, with a cache of its own",
    "setting": "a setting was changed",
    "speaker": "another character spoke (group chat)",
    "parallel": "another request with the same beginning was still waiting for its answer",
    "gone": "the upstream no longer had what it had stored",
    "pause": "the pause was longer than the cache lives",
    "short": "the chat had only just become long enough to be cached",
    "unwritten": "the request before was not stored",
}


def new_id() -> str:
    """The id of a request of ours, in the form of the API's own. Ids grow, so that the books grow at their end."""
    return f"req_{time.time_ns():016x}{random.getrandbits(32):08x}"


@dataclass(frozen=True)
class Bodies:
    """A request as it came and as it was sent, for the owner's eyes. repr hides the text."""

    asked: Mapping[str, Any] = field(repr=False)
    sent: Mapping[str, Any] = field(repr=False)


@dataclass
class Receipt:
    """The story of one request in numbers and names; never its text. Times are unix seconds and milliseconds."""

    at: float
    id: str = field(default_factory=new_id)
    kind: Kind = "chat"
    model: str = ""
    persona: str = ""
    account_id: str = ""
    account: str = ""
    key_id: str = ""
    key: str = ""
    chat: str = ""
    status: int = 0
    stop_reason: str | None = None
    ended: str = ""  # whole · cut · error · client_left
    ttft_ms: int | None = None
    duration_ms: int | None = None
    events: int = 0  # of a streamed reply, so far
    attempts: int = 0
    changes: tuple[Change, ...] = ()
    usage: Mapping[str, Any] = field(default_factory=dict)
    cache: CacheStory | None = None
    charged_usd: float = 0.0  # to the client key; more than it cost where the upstream did not say the end
    charged_tokens: int = 0
    notice: str = ""  # for the end of the reply
    bodies: Bodies | None = field(default=None, repr=False)  # never in a log

    def line(self) -> str:
        """A few words for the log."""
        words = f"{self.model or 'no model'}{f' as {self.persona}' if self.persona else ''}: {self.status}"
        words += f" {self.stop_reason or self.ended}, {(self.duration_ms or 0) / 1000:.1f} s"
        return f"{words}; {self.cache.line()}" if self.cache else words

    def public(self, models: Models) -> dict[str, Any]:
        """The row of GET /api/requests."""
        tokens = token_counts(self.usage)
        priced = price(models, self.model, self.usage) if self.usage else None
        read = tokens["cache_read_tokens"]
        written = tokens["cache_write_5m_tokens"] + tokens["cache_write_1h_tokens"]
        return {
            **told(self),
            "tokens": tokens,
            "usd": round(priced[0], 8) if priced else None,
            "usd_without_cache": round(priced[1], 8) if priced else None,
            "fees": [fee._asdict() for fee in fees_of(models.like(self.model), self.usage)],
            "changes": [{"name": change.name, "detail": change.detail} for change in self.changes],
            "changes_count": len(self.changes),
            "cache": self.cache.public() if self.cache else unplanned(read, written),
        }


class Row(NamedTuple):
    """A request in the books. `usd` is None where tokens were used and the model's price is not known.

    `charged_…` is what its client key was charged with, more than it cost where the upstream did not say the end.
    """

    id: str
    at: float
    kind: str
    account_id: str
    account: str
    key_id: str
    key: str
    persona: str
    chat: str
    model: str
    status: int
    stop_reason: str | None
    ended: str
    attempts: int
    ttft_ms: int | None
    duration_ms: int | None
    charged_usd: float
    charged_tokens: int
    day: str
    input_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    cache_read_tokens: int
    output_tokens: int
    usd: float | None
    usd_without_cache: float | None
    cache: str
    changes: int
    cause: str | None  # of a miss: a kind of cache_why.py's

    @classmethod
    def of(cls, receipt: Receipt, models: Models) -> Row:
        """Of a request that has ended."""
        tokens = token_counts(receipt.usage)
        priced = price(models, receipt.model, receipt.usage) if any(tokens.values()) else (0.0, 0.0)
        usd, without = priced or (None, None)
        written = tokens["cache_write_5m_tokens"] + tokens["cache_write_1h_tokens"]
        cache = receipt.cache.outcome if receipt.cache else unplanned(tokens["cache_read_tokens"], written)["outcome"]
        cause = receipt.cache.cause if receipt.cache else ""
        day, changes = day_of(receipt.at).isoformat(), len(receipt.changes)
        return cls._make((*AS_IT_STANDS(receipt), day, *tokens.values(), usd, without, cache, changes, cause))

    def public(self) -> dict[str, Any]:
        """The row of GET /api/requests, as far as the books hold it: changes are counted, not told."""
        return {
            **told(self),
            "tokens": {name: getattr(self, name) for name in COUNTERS},
            "usd": rounded(self.usd),
            "usd_without_cache": rounded(self.usd_without_cache),
            "fees": [],
            "changes": [],
            "changes_count": self.changes,
            "cache": {
                "outcome": self.cache,
                "read": self.cache_read_tokens,
                "written": self.cache_write_5m_tokens + self.cache_write_1h_tokens,
                "missed_because": IN_BRIEF.get(self.cause or ""),
            },
        }


AS_IT_STANDS = attrgetter(*Row._fields[: Row._fields.index("day")])  # of a receipt
COUNTERS = Row._fields[Row._fields.index("input_tokens") : Row._fields.index("usd")]


def rounded(usd: float | None) -> float | None:
    return None if usd is None else round(usd, 8)


def price(models: Models, model: str, usage: Mapping[str, Any]) -> tuple[float, float] | None:
    """Dollars for a reply's `usage`, and what it would have cost uncached; None for a model without a known price."""
    found = models.find(model)
    return cost(found, usage) if found else None


def told(turn: Receipt | Row) -> dict[str, Any]:
    """What a turn's row in GET /api/requests says alike, whether its receipt is still there or only the books'."""
    return {
        "id": turn.id,
        "at": rfc3339(turn.at, "milliseconds"),
        "kind": turn.kind,
        "model": turn.model,
        "persona": turn.persona or None,
        "account": turn.account or None,
        "key": turn.key or None,
        "chat": turn.chat or None,
        "status": turn.status,
        "stop_reason": turn.stop_reason,
        "ended": turn.ended,
        "attempts": turn.attempts,
        "ttft_ms": turn.ttft_ms,
        "duration_ms": turn.duration_ms,
    }


def token_counts(usage: Mapping[str, Any]) -> dict[str, int]:
    """The five counters of a `usage` object; writes without a lifetime count as 5 minutes."""
    split = usage.get("cache_creation")
    hour = whole(split.get("ephemeral_1h_input_tokens")) if isinstance(split, dict) else 0
    return {
        "input_tokens": whole(usage.get("input_tokens")),
        "cache_write_5m_tokens": max(whole(usage.get("cache_creation_input_tokens")) - hour, 0),
        "cache_write_1h_tokens": hour,
        "cache_read_tokens": whole(usage.get("cache_read_input_tokens")),
        "output_tokens": whole(usage.get("output_tokens")),
    }


def unplanned(read: int, written: int) -> dict[str, Any]:
    """The cache's part of a receipt where the planner had none."""
    outcome = "hit" if read and not written else "partial" if read else "miss" if written else "off"
    return {"outcome": outcome, "read": read, "written": written, "missed_because": None}


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
