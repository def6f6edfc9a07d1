"""One request in numbers and names: its receipt while it is fresh, and its row in the books."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from server.cache_why import IN_BRIEF, CacheStory
from server.days import day_of, rfc3339
from server.models import Models
from server.prices import fees_of, price, token_counts
from server.request import Change

Kind = Literal["chat", "count", "ping"]


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


def unplanned(read: int, written: int) -> dict[str, Any]:
    """The cache's part of a receipt where the planner had none."""
    outcome = "hit" if read and not written else "partial" if read else "miss" if written else "off"
    return {"outcome": outcome, "read": read, "written": written, "missed_because": None}
