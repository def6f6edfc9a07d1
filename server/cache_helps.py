"""The opt-in helps of the prompt cache, and which of them a request gets: by client key, persona, settings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

MOST_PINGS = 100  # in one pause: some eight hours


@dataclass(frozen=True)
class CacheHelps:
    """Under the names of their settings. None: not chosen here, so that whoever comes next decides."""

    cache_late_lore: bool | None = None
    cache_steady_window: bool | None = None
    cache_keepalive_pings: int | None = None

    @property
    def rearrange(self) -> bool:
        """Whether one of those that move or leave out text is chosen."""
        return bool(self.cache_late_lore or self.cache_steady_window)

    def over(self, others: CacheHelps) -> CacheHelps:
        """These, and the others where nothing is chosen."""
        if self == NO_HELPS:
            return others
        mine, theirs = self.public(), others.public()
        return CacheHelps(**{name: theirs[name] if value is None else value for name, value in mine.items()})

    def public(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @classmethod
    def of(cls, given: object) -> CacheHelps:
        """The helps in a JSON object; null: not chosen. Raises ValueError with a sentence without its full stop."""
        if given is None:
            return NO_HELPS
        names = [one.name for one in fields(cls)]
        if not isinstance(given, dict) or given.keys() - set(names):
            raise ValueError(f"it must be an object {{…}} with {', '.join(names)} at most")
        for name, value in given.items():
            if value is None:
                continue
            if name != "cache_keepalive_pings" and not isinstance(value, bool):
                raise ValueError(f"{name} must be true, false or null")
            if name == "cache_keepalive_pings" and (type(value) is not int or not 0 <= value <= MOST_PINGS):
                raise ValueError(f"{name} must be a whole number from 0 to {MOST_PINGS}, or null")
        return cls(**given)


NO_HELPS = CacheHelps()
