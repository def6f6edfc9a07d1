"""When to try again: before the first byte only, few times, spaced, within a budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

RETRIES = 2
STATUSES = frozenset({500, 502, 503, 504, 529})
LONGEST = 8.0  # seconds; whoever asks for more patience gets the error passed on instead


def delay(tries: int, headers: Mapping[str, str], luck: float) -> float | None:
    """Seconds to wait before retry number `tries` (from 0): 0.5, 1, 2 … 8, jittered by `luck` (0 to 1), longer if
    `retry-after` says so. None: do not retry."""
    if tries >= RETRIES or headers.get("x-should-retry") == "false":
        return None
    wait: float = min(0.5 * 2**tries, LONGEST) * (0.5 + luck / 2)
    try:
        asked = float(headers.get("retry-after-ms", "")) / 1000
    except ValueError:
        try:
            asked = float(headers.get("retry-after", ""))
        except ValueError:
            return wait
    return None if asked > LONGEST else max(wait, asked)


class RetryBudget:
    """Retries of the last minute: at most a fifth of its requests, and always a few."""

    SHARE, FEW, WINDOW = 0.2, 3, 60.0

    def __init__(self) -> None:
        self._requests: deque[float] = deque()
        self._retries: deque[float] = deque()

    def note_request(self, now: float) -> None:
        self._requests.append(now)
        self._forget_before(now - self.WINDOW)

    def _forget_before(self, moment: float) -> None:
        for times in (self._requests, self._retries):
            while times and times[0] < moment:
                times.popleft()

    def take(self, now: float) -> bool:
        """Whether one more retry fits; if so it is counted."""
        self._forget_before(now - self.WINDOW)
        if len(self._retries) >= max(self.FEW, self.SHARE * len(self._requests)):
            return False
        self._retries.append(now)
        return True
