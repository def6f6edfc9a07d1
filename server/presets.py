"""Personas: reads presets/ into values, and again when a file changes."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.errors import ProxyError

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
RESERVED = {"messages", "models", "count_tokens", "complete", "files", "batches", "me"}
TEXTS = ("description", "system", "suffix", "suffix_thinking", "model")
SETTINGS = ("temperature", "top_p", "top_k", "max_tokens", "thinking", "output_config", "stop_sequences")


@dataclass(frozen=True)
class Persona:
    """A companion by path: /v1/<name>/messages.

    `system` stands in front of the front end's own system prompt; `suffix` (or `suffix_thinking` when the request
    thinks) behind the last user message. `model` and `settings` hold where the request names none.
    """

    name: str
    description: str = ""
    system: str = ""
    suffix: str = ""
    suffix_thinking: str = ""
    model: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


class PersonaError(ValueError):
    """A persona file that cannot be used: what is wrong, in one sentence."""


def read_persona(name: str, text: str) -> Persona:
    """The persona in a preset file's text. Raises PersonaError."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PersonaError(f"is not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise PersonaError("must hold a JSON object {…}")
    if unknown := set(data) - {*TEXTS, "name", "settings"}:
        raise PersonaError(f"has an unknown field “{min(unknown)}”; known are name, settings, {', '.join(TEXTS)}")
    for key in (*TEXTS, "name"):
        if not isinstance(data.get(key, ""), str):
            raise PersonaError(f"must have text in “{key}”")
    if not data.get("system", "").strip() and not data.get("suffix", "").strip():
        raise PersonaError("needs a “system” text (or at least a “suffix”)")
    settings = data.get("settings", {})
    if not isinstance(settings, dict) or set(settings) - set(SETTINGS):
        raise PersonaError(f"may have in “settings” only {', '.join(SETTINGS)}")
    return Persona(name=name, settings=settings, **{key: data.get(key, "") for key in TEXTS})


class Personas:
    """The personas in a folder, by name. `get` looks at the folder again when something in it has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[int, int]] = {}
        self._personas: dict[str, Persona] = {}
        self.problems: dict[str, str] = {}
        self.look_again()

    def all(self) -> list[Persona]:
        self.look_again()
        return sorted(self._personas.values(), key=lambda persona: persona.name)

    def get(self, name: str) -> Persona | None:
        """The persona of that name; None for "". Raises ProxyError 404 naming the ones there are."""
        if not name:
            return None
        self.look_again()
        if persona := self._personas.get(name.lower()):
            return persona
        if problem := self.problems.get(name.lower()):
            raise ProxyError(404, f"The persona “{name}” is switched off: its file {problem}. Mend presets/{name}.json.")
        known = ", ".join(sorted(self._personas)) or "none"
        shown = name if NAME.fullmatch(name) else "that"
        raise ProxyError(404, f"There is no persona “{shown}”. Known personas: {known}. Correct the end of the proxy URL.")

    def look_again(self) -> None:
        """Read what is new or changed; forget what is gone. A damaged file disables its own persona alone."""
        try:
            found = {
                path: (stat.st_mtime_ns, stat.st_size)
                for path in self._folder.glob("*.json")
                if (stat := path.stat()) and NAME.fullmatch(path.stem)
            }
        except OSError as error:
            log.warning("The presets folder cannot be read (%s); the personas read before stay.", error.strerror)
            return
        if found == self._seen:
            return
        for path in self._seen.keys() - found.keys():
            self._personas.pop(path.stem.lower(), None)
            self.problems.pop(path.stem.lower(), None)
        for path in (path for path, stamp in found.items() if self._seen.get(path) != stamp):
            self._read(path)
        self._seen = found

    def _read(self, path: Path) -> None:
        name = path.stem.lower()
        self._personas.pop(name, None)
        self.problems.pop(name, None)
        try:
            if name in RESERVED:
                raise PersonaError("has a name that is part of the API's own addresses; rename the file")
            self._personas[name] = read_persona(name, path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, PersonaError) as error:
            why = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
            self.problems[name] = why
            log.warning("presets/%s %s. That persona is switched off; the others work.", path.name, why)
