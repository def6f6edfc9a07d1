"""Personas: reads presets/ into values, and again when a file changes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from server.cache_helps import NO_HELPS, CacheHelps
from server.errors import ProxyError
from server.files import Stamp, stamp, why, write_private

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
RESERVED = {"v1", "messages", "models", "count_tokens", "complete", "files", "batches", "me"}
LARGEST = 1024 * 1024  # bytes of a file; a persona's texts are a few thousand
TEXTS = ("description", "system", "suffix", "suffix_thinking", "model")


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


SETTINGS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "temperature": ("a number from 0 to 1", share),
    "top_p": ("a number from 0 to 1", share),
    "top_k": ("a whole number", lambda value: whole(value) and value >= 0),
    "max_tokens": ("a whole number from 1", lambda value: whole(value) and value >= 1),
    "thinking": ("an object {…}", lambda value: isinstance(value, dict)),
    "output_config": ("an object {…}", lambda value: isinstance(value, dict)),
    "stop_sequences": (
        "a list of texts",
        lambda value: isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value),
    ),
}


@dataclass(frozen=True)
class Persona:
    """A companion by path: /v1/<name>/messages.

    `system` stands in front of the front end's own system prompt; `suffix` (or `suffix_thinking` when the request
    thinks) behind the last user message. `model` and `settings` hold where the request names none, `helps` where its
    client key chooses none. `title` is the name a person reads.
    """

    name: str
    description: str = ""
    system: str = ""
    suffix: str = ""
    suffix_thinking: str = ""
    model: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    helps: CacheHelps = NO_HELPS
    title: str = ""


class PersonaError(ValueError):
    """A persona file that cannot be used: what is wrong, as the rest of a sentence that begins with the file's name."""


def read_persona(name: str, text: str) -> Persona:
    """The persona in a preset file's text; a text that is blank counts as absent. Raises PersonaError."""
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise PersonaError(f"is not valid JSON ({error.msg}, line {error.lineno})") from None
    if not isinstance(data, dict):
        raise PersonaError("must hold a JSON object {…}")
    if unknown := set(data) - {*TEXTS, "name", "settings", "helps"}:
        raise PersonaError(
            f"has an unknown field “{min(unknown)}”; known are name, settings, helps, {', '.join(TEXTS)}"
        )
    texts: dict[str, str] = {}
    for key in (*TEXTS, "name"):
        value = data.get(key, "")
        if not isinstance(value, str):
            raise PersonaError(f"must have text in “{key}”")
        texts[key] = value if value.strip() else ""
    if not texts["system"] and not texts["suffix"]:
        raise PersonaError("needs a “system” text (or at least a “suffix”)")
    settings = data.get("settings", {})
    if not isinstance(settings, dict) or set(settings) - set(SETTINGS):
        raise PersonaError(f"may have in “settings” only {', '.join(SETTINGS)}")
    for key, value in settings.items():
        words, fits = SETTINGS[key]
        if not fits(value):
            raise PersonaError(f"must have {words} in “{key}”")
    try:
        helps = CacheHelps.of(data.get("helps"))
    except ValueError as error:
        raise PersonaError(f"has a mistake in “helps”: {error}") from None
    return Persona(
        name=name,
        description=one_line(texts["description"]),
        system=texts["system"],
        suffix=texts["suffix"],
        suffix_thinking=texts["suffix_thinking"],
        model=texts["model"].strip(),
        settings=settings,
        helps=helps,
        title=one_line(texts["name"]) or name.capitalize(),
    )


def one_line(text: str) -> str:
    return " ".join(text.split())


def check_name(name: str) -> None:
    """Raise ProxyError 400 for a name that cannot be part of an address of ours."""
    if not NAME.fullmatch(name):
        raise ProxyError(400, "The name is part of an address: letters, digits, - and _ only, at most 64 of them.")
    if name.lower() in RESERVED:
        raise ProxyError(400, "This name is part of the API's own addresses. Choose another one.")


def read_file(path: Path) -> Persona:
    """The persona a file holds, named after the file. Raises PersonaError."""
    if not NAME.fullmatch(path.stem):
        raise PersonaError(
            "has a name that cannot be part of an address; rename it, with letters, digits, - and _ only"
        )
    if path.stem.lower() in RESERVED:
        raise PersonaError("has a name that is part of the API's own addresses; rename it")
    try:
        if not path.is_file():  # to open a pipe would wait for ever
            raise PersonaError("is not a file")
        if path.stat().st_size > LARGEST:
            raise PersonaError("is larger than 1 MB")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise PersonaError("is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise PersonaError(f"cannot be read ({error.strerror})") from None
    return read_persona(path.stem.lower(), text)


def shown(path: Path) -> str:
    """The file's name without .json; as question marks what is not UTF-8 in it: a log or a page cannot show that."""
    return path.stem.encode(errors="replace").decode()


def read_or_problem(path: Path) -> Persona | PersonaError:
    try:
        return read_file(path)
    except PersonaError as error:
        return error


class Personas:
    """The personas in a folder, by name. Each look at them looks at the folder too, and reads what has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamps: dict[Path, Stamp | None] = {}  # None: a link that leads nowhere
        self._read: dict[Path, Persona | PersonaError] = {}
        self._personas: dict[str, Persona] = {}
        self._folder_failed = False
        self.problems: dict[str, str] = {}  # by file name without .json: why its persona is switched off
        self.look_again()

    @property
    def warnings(self) -> list[str]:
        """What the owner should know now."""
        found = sorted(self.problems.items())
        return [f"presets/{stem}.json {problem}. That persona is switched off." for stem, problem in found]

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
        for stem, problem in self.problems.items():
            if stem.lower() == name.lower():
                raise ProxyError(
                    404, f"The persona “{stem}” is switched off: its file {problem}. Mend presets/{stem}.json."
                )
        known = ", ".join(sorted(self._personas)) or "none"
        which = f"There is no persona “{name}”." if NAME.fullmatch(name) else "There is no such persona."
        raise ProxyError(404, f"{which} Known personas: {known}. Correct the end of the proxy URL.")

    def text(self, name: str) -> str:
        """A persona file's text, as far as it can be read; "" when there is none. Raises ProxyError as `path` does."""
        try:
            return self.path(name).read_text(encoding="utf-8-sig", errors="replace")
        except OSError:
            return ""

    def path(self, name: str) -> Path:
        """The file of this name in whatever capitals it has; where it would be, if there is none. Never one outside the
        folder: raises ProxyError 400 for a name that could be a path."""
        same = [path for path in sorted(self._stamps) if path.stem.lower() == name.lower()]
        if not same:
            check_name(name)
        return same[0] if same else self._folder / f"{name.lower()}.json"

    def save(self, name: str, text: str) -> Persona:
        """Write a persona's file in one step. Raises ProxyError 400 for a text that would not work, 409 where
        the folder cannot be written. Blocks: call it in a thread."""
        check_name(name)
        try:
            persona = read_persona(name.lower(), text)
        except PersonaError as error:
            raise ProxyError(400, f"The persona would not work: it {error}.") from None
        path = self.path(name)
        try:
            write_private(path, text.encode(), like=path.stat() if path.exists() else None)
        except OSError as error:
            raise ProxyError(409, f"{path} cannot be written ({why(error)}). Give it to the proxy's user.") from None
        return persona

    def remove(self, name: str) -> None:
        """Delete a persona's file. Raises ProxyError 404, 409."""
        path = self.path(name)
        try:
            path.unlink()
        except FileNotFoundError:
            raise ProxyError(404, "There is no such persona. Reload the page.") from None
        except OSError as error:
            raise ProxyError(409, f"{path} cannot be deleted ({why(error)}).") from None

    def look_again(self) -> None:
        """Read what is new or changed, forget what is gone. A damaged file switches its own persona off, no other."""
        try:
            files = [path for path in self._folder.iterdir() if path.suffix.lower() == ".json" and path.name[0] != "."]
        except OSError as error:
            if not self._folder_failed:
                log.warning("%s cannot be read (%s); the personas read before stay.", self._folder, error.strerror)
            self._folder_failed = True
            return
        self._folder_failed = False
        stamps = {path: stamp(path) for path in files}
        if stamps == self._stamps:
            return
        same = {path for path in self._read.keys() & stamps.keys() if self._stamps[path] == stamps[path]}
        self._read = {path: self._read[path] if path in same else read_or_problem(path) for path in files}
        self._stamps = stamps
        self._sort_out()

    def _sort_out(self) -> None:
        """Of two files whose names differ in capitals only, the first holds."""
        before = self.problems
        self._personas, self.problems = {}, {}
        for path, found in sorted(self._read.items()):
            if isinstance(found, PersonaError):
                self.problems[shown(path)] = str(found)
            elif found.name in self._personas:
                self.problems[shown(path)] = "has the name of another file, but for capitals; rename one of them"
            else:
                self._personas[found.name] = found
        for stem, problem in self.problems.items() - before.items():
            log.warning("presets/%s.json %s. That persona is switched off; the others work.", stem, problem)
