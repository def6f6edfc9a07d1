"""The table of models with what the live list says laid over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from server.models import Model, Models, day, overlay


class LiveModels:
    """`models` is the table alone until somebody has read the live list."""

    def __init__(self, models: Models, *, clock: Callable[[], float] = time.time) -> None:
        self._table, self._clock = models, clock
        self.models = models

    def saw(self, items: Iterable[Any]) -> None:
        """Take over what an answer of GET /v1/models says; models it has and the table has not are added."""
        rows = {model.id: model for model in self._table.all}
        for item in items:
            name = item.get("id") if isinstance(item, Mapping) else None
            if isinstance(name, str) and "claude" in name.lower():
                row = laid_over(self._table, name, item, self._clock())
                rows[row.id] = row
        self.models = Models(rows.values(), version=self._table.version)


def laid_over(table: Models, name: str, item: Mapping[str, Any], now: float) -> Model:
    """The row of a model in the live list. One that is alive there is not gone, whatever date was set for that."""
    found = table.find(name)
    if found is None or name not in (found.id, *found.aliases):
        like = table.like(name)
        found = replace(like, id=name, aliases=(), known=False, retired=None, retires=None, successor="")
        found = replace(found, released=day(item.get("created_at")) or like.released)
    row = overlay(found, item)
    alive = item.get("lifecycle") in ("active", "deprecated")
    return replace(row, retired=None, retires=None) if alive and row.gone(now) else row
