"""Counts since the start, as Prometheus reads them. Labels are from closed lists: no name, key, model or address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from server import __version__
from server.receipt import COUNTERS, Receipt, Row

if TYPE_CHECKING:
    from prometheus_client import Metric

OUTCOMES = ("whole", "cut", "client_left", "refused", "failed")
KINDS = ("chat", "count", "ping")
CACHE = ("hit", "partial", "miss", "off")
STATES = ("ready", "resting", "sign_in_again", "off")


def outcome_of(receipt: Receipt) -> str:
    """How a request ended, as one of OUTCOMES."""
    if receipt.ended in ("cut", "client_left"):
        return receipt.ended
    if receipt.ended == "whole" and receipt.status < 400:
        return "whole"
    return "refused" if 400 <= receipt.status < 500 else "failed"


class Metrics:
    """Told of each receipt; asked for everything at once. The library is imported at the first question."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str]] = Counter()
        self._cache: Counter[str] = Counter()
        self._tokens = [0] * len(COUNTERS)
        self._money = {"usd": 0.0, "usd_without_cache": 0.0, "unpriced": 0.0, "retries": 0.0}
        self._times = {"duration": [0, 0.0], "first_byte": [0, 0.0]}  # how many, and their seconds

    def count(self, receipt: Receipt, row: Row) -> None:
        """Count a request that has ended; `row` as in the books."""
        self._requests[receipt.kind, outcome_of(receipt)] += 1
        self._tokens = [so_far + getattr(row, name) for so_far, name in zip(self._tokens, COUNTERS, strict=True)]
        self._money["retries"] += max(receipt.attempts - 1, 0)
        self._money["usd"] += row.usd or 0.0
        self._money["usd_without_cache"] += row.usd_without_cache or 0.0
        self._money["unpriced"] += row.usd is None
        if receipt.cache is not None:
            self._cache[receipt.cache.outcome] += 1
        for name, milliseconds in (("duration", receipt.duration_ms), ("first_byte", receipt.ttft_ms)):
            if milliseconds is not None:
                self._times[name][0] += 1
                self._times[name][1] += milliseconds / 1000

    def text(self, states: Iterable[str], busy: int) -> tuple[bytes, str]:
        """What GET /metrics answers, and its content type. `states` are those of the accounts."""
        from prometheus_client import CollectorRegistry, ProcessCollector, exposition

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(Families(lambda: self._families(Counter(states), busy)))
        return exposition.generate_latest(registry), exposition.CONTENT_TYPE_LATEST

    def _families(self, states: Counter[str], busy: int) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

        requests = CounterMetricFamily("tavern_requests", "Requests by kind and end.", labels=["kind", "outcome"])
        for kind in KINDS:
            for outcome in OUTCOMES:
                requests.add_metric([kind, outcome], self._requests[kind, outcome])
        yield requests
        tokens = CounterMetricFamily("tavern_tokens", "Tokens as the upstream counted them.", labels=["type"])
        for name, so_far in zip(COUNTERS, self._tokens, strict=True):
            tokens.add_metric([name.removesuffix("_tokens")], so_far)
        yield tokens
        cache = CounterMetricFamily(
            "tavern_cache", "What the prompt cache did for planned requests.", labels=["outcome"]
        )
        for outcome in CACHE:
            cache.add_metric([outcome], self._cache[outcome])
        yield cache
        for name, words in (
            ("usd", "What requests cost, in US dollars by the price list."),
            ("usd_without_cache", "What they would have cost without caching."),
            ("unpriced", "Requests to models without a known price; their cost is not in the sums."),
            ("retries", "Attempts beyond the first."),
        ):
            yield CounterMetricFamily(f"tavern_{name}", words, value=self._money[name])
        for name, words in (("duration", "Whole requests."), ("first_byte", "Time to the first byte of a reply.")):
            count, seconds = self._times[name]
            yield SummaryMetricFamily(f"tavern_{name}_seconds", words, count_value=int(count), sum_value=seconds)
        accounts = GaugeMetricFamily("tavern_accounts", "Accounts by state.", labels=["state"])
        for state in STATES:
            accounts.add_metric([state], states[state])
        yield accounts
        yield GaugeMetricFamily("tavern_requests_in_progress", "Requests on the road.", value=busy)
        info = GaugeMetricFamily("tavern_info", "The running version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info


class Families:
    """What the library calls a collector."""

    def __init__(self, families: Callable[[], Iterator[Any]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Any]:
        return self._families()
