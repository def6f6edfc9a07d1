"""The opt-in cache helps as a form shows them: what the settings say of each, and mean by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from server.cache_helps import MOST_PINGS, CacheHelps
from server.config import Config
from server.pages.words import WORDS


def help_rows(config: Config) -> Iterator[dict[str, Any]]:
    """Each help: its setting, the setting's meaning, its value in words; `most`, where it is a number."""
    meanings, words = {field.name: field.metadata["meaning"] for field in fields(Config)}, WORDS["helps"]
    for field in fields(CacheHelps):
        value, is_switch = getattr(config, field.name), field.name != "cache_keepalive_pings"
        yield {
            "key": field.name,
            "meaning": meanings[field.name],
            "words": (words["on"] if value else words["off"]) if is_switch else str(value),
            "most": None if is_switch else MOST_PINGS,
        }
