"""The models: what each takes, holds and costs. The facts stand in models.toml; here they are read and looked up."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, Literal

MODELS_FILE = Path(__file__).with_name("models.toml")
LINES = ("fable", "mythos", "opus", "sonnet", "haiku")
THINKING_TYPES = ("adaptive", "enabled", "disabled", "between_tools")
EFFORTS = ("low", "medium", "high", "xhigh", "max")
SAMPLERS = ("temperature", "top_p", "top_k")
CHOICES = {
    "line": LINES,
    "sampling": ("none", "one", "both"),
    "thinking": THINKING_TYPES,
    "thinking_off": ("omit", "disabled", "between_tools", "never"),
    "efforts": EFFORTS,
    "off_efforts": EFFORTS,
    "default_effort": EFFORTS,
    "display_default": ("omitted", "summarized"),
}


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    input: float
    output: float
    write_5m: float
    write_1h: float
    read: float


@dataclass(frozen=True)
class Model:
    """One row of models.toml, which says what the fields mean. `known` is false for a row that was guessed."""

    id: str
    line: str
    released: date
    context: int
    max_output: int
    min_cacheable: int
    sampling: Literal["none", "one", "both"]
    prefill: bool
    thinking: frozenset[str]
    thinking_off: Literal["omit", "disabled", "between_tools", "never"]
    forced_tools: bool
    system_messages: bool
    display_default: Literal["omitted", "summarized"]
    aliases: tuple[str, ...] = ()
    price: Price | None = None
    long_price: Price | None = None
    long_above: int = 0
    fast_factor: float | None = None
    off_efforts: tuple[str, ...] = ()
    efforts: tuple[str, ...] = ()
    default_effort: str = ""
    binds_thinking: bool = False
    strips_old_thinking: bool = False
    deprecated: date | None = None
    retires: date | None = None
    retired: date | None = None
    successor: str = ""
    listed: bool = True
    known: bool = True
    as_of: date | None = None
    fees: Mapping[str, float] = field(default_factory=dict, hash=False)  # dollars a use, by counter of server_tool_use

    @property
    def thinks_by_default(self) -> bool:
        """Whether it thinks when the request does not say."""
        return self.thinking_off != "omit"

    @property
    def display_name(self) -> str:
        """`claude-opus-4-5-20251101` is “Claude Opus 4.5”."""
        words = re.sub(r"-20\d{6}$", "", self.id).replace(".", "-").split("-")
        numbers = ".".join(word for word in words if word.isdigit())
        return " ".join([*(word.capitalize() for word in words if not word.isdigit()), *filter(None, [numbers])])

    def gone(self, now: float) -> bool:
        """Whether it has left the API, as far as the table knows."""
        if self.retired is not None or self.retires is None:
            return self.retired is not None
        return self.retires <= datetime.fromtimestamp(now, UTC).date()

    def price_of(self, prompt_tokens: int) -> Price | None:
        """The price band of a request: by its whole prompt, cache reads and writes included."""
        return self.long_price if self.long_price and prompt_tokens > self.long_above else self.price


class Models:
    """The table, looked up by any name a front end may send."""

    def __init__(self, models: Iterable[Model], version: str = "") -> None:
        self.all = tuple(sorted(models, key=lambda model: model.released, reverse=True))
        self.version = version
        self._by_name = {plain(line): self.newest(line) for line in LINES if any(m.line == line for m in self.all)}
        for model in self.all:
            self._by_name |= {plain(name): model for name in (model.id, *model.aliases)}

    @classmethod
    def load(cls, path: Path = MODELS_FILE) -> Models:
        """The table as it stands in `path`. `version` changes with every change of the file. Raises ValueError."""
        raw = path.read_bytes()
        rows = tomllib.loads(raw.decode())
        common: dict[str, Any] = {name: rows.pop(name) for name in ("as_of", "fees") if name in rows}
        complete: dict[str, dict[str, Any]] = {}
        for name, row in rows.items():
            complete[name] = completed(name, row, complete)
        models = cls(model_of(name, row, common) for name, row in complete.items())
        named = (replace(m, successor=m.successor or models.newest(m.line).id) for m in models.all)
        settled = (replace(m, successor="") if m.successor == m.id else m for m in named)
        return cls(settled, version=hashlib.sha256(raw).hexdigest()[:16])

    def newest(self, line: str) -> Model:
        return max((model for model in self.all if model.line == line), key=lambda model: model.released)

    def find(self, name: str) -> Model | None:
        """The model of that name, however it is spelt: `anthropic/claude-opus-4.5:thinking`, `claude-sonnet-latest`.

        Other providers put their own name before the model's, Bedrock a region and a version around it, Vertex an @
        before the date; front ends write `-latest`, `[1m]` or a variant after a colon.
        """
        if found := self._by_name.get(name):
            return found
        return next((found for spelling in spellings(name) if (found := self._by_name.get(spelling))), None)

    def like(self, name: str) -> Model:
        """That model or, under the name as given, the newest of its line: the best guess about one not in the table.

        A name without a line counts as a Sonnet whose price nobody knows.
        """
        if found := self.find(name):
            return found
        line = next((line for line in LINES if "claude" in name.lower() and line in name.lower()), "")
        guess = replace(self.newest(line or "sonnet"), id=name, aliases=(), successor="", listed=True, known=False)
        return guess if line else replace(guess, price=None, long_price=None, fast_factor=None)

    def offline_list(self, now: float, limit: int = 1000, after_id: str = "", before_id: str = "") -> dict[str, Any]:
        """What GET /v1/models would answer, newest first, without the models that are gone."""
        models = [model for model in self.all if model.listed and not model.gone(now)]
        ids = [model.id for model in models]
        start = ids.index(after_id) + 1 if after_id in ids else 0
        stop = ids.index(before_id) if before_id in ids else len(ids)
        if before_id in ids and not after_id:
            start = max(start, stop - limit)
        page = models[start : min(stop, start + limit)]
        return {
            "data": [listing(model) for model in page],
            "has_more": bool(page) and (start > 0 if before_id and not after_id else start + len(page) < stop),
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }


def completed(name: str, row: dict[str, Any], above: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The row with what it takes over from the row it names in `same_as`."""
    if not isinstance(row, dict):
        raise ValueError(f'models.toml: {name} is not a table. A model begins with a line ["{name}"].')
    relative = row.pop("same_as", None)
    if relative is None:
        return row
    if relative not in above:
        raise ValueError(f"models.toml, {name}: same_as names {relative}, which does not stand further up.")
    own = {"aliases", "released", "deprecated", "retires", "retired", "successor", "listed", "as_of"}
    return {key: value for key, value in above[relative].items() if key not in own} | row


def model_of(name: str, row: dict[str, Any], common: Mapping[str, Any]) -> Model:
    """A row as a value; `common` holds for all rows. Raises ValueError naming the row and the field."""
    known = {one.name for one in fields(Model)} - {"id", "known", "fees"}
    if unknown := row.keys() - known:
        raise ValueError(f"models.toml, {name}: no such field: {', '.join(sorted(unknown))}.")
    for key, choices in CHOICES.items():
        given = row.get(key, [])
        if odd := set(given if isinstance(given, list) else [given]) - set(choices):
            raise ValueError(f"models.toml, {name}: {key} cannot be {odd.pop()!r}. Choose from {', '.join(choices)}.")
    values = {
        **common,
        "off_efforts": () if row.get("thinking_off") == "never" else row.get("efforts", ()),
        **row,
    }
    if not values.get("efforts"):
        values["default_effort"] = ""
    try:
        for key in ("price", "long_price"):
            values[key] = Price(**values[key]) if values.get(key) else None
        for key in ("aliases", "off_efforts", "efforts"):
            values[key] = tuple(values.get(key, ()))
        values["thinking"] = frozenset(values.get("thinking", ()))
        return Model(id=name, **values)
    except TypeError as error:
        raise ValueError(f"models.toml, {name}: {error}.") from error


def plain(name: str) -> str:
    """A name without what providers and front ends put around it, in lower case, with hyphens for dots."""
    name = name.strip().lower().rsplit("/", 1)[-1]
    name = re.sub(r"^(?:[a-z-]+\.)?anthropic[.:]", "", name)
    name = re.sub(r"@(?=20\d{6})", "-", name)
    name = re.sub(r"(?:\[[^\]]*\]|[:@][\w.-]*|-v\d+|-latest|-thinking)+$", "", name)
    name = re.sub(r"(?<=\d)\.(?=\d)", "-", name)
    return name if name.startswith("claude-") else f"claude-{name}"


def spellings(name: str) -> list[str]:
    """The names to look up for `name`: as it is, without its date, and with number and line swapped."""
    name = plain(name)
    undated = re.sub(r"-20\d{6}$", "", name)
    swapped = re.sub(r"^claude-([\d-]+)-([a-z]+)$|^claude-([a-z]+)-([\d-]+)$", r"claude-\2\4-\1\3", undated)
    return [name, undated, swapped]


def listing(model: Model) -> dict[str, Any]:
    """A model as an item of GET /v1/models.

    The capabilities that models.toml does not hold are what every model since 4.5 has; code execution that calls the
    request's own tools is not among them.
    """

    def at(day: date | None) -> str | None:
        return datetime.combine(day, time(), UTC).isoformat().replace("+00:00", "Z") if day else None

    def supported(is_supported: bool, **parts: Any) -> dict[str, Any]:
        return {"supported": is_supported, **parts}

    types = {kind: supported(kind in model.thinking) for kind in THINKING_TYPES}
    levels = {effort: supported(effort in model.efforts) for effort in EFFORTS}
    always = ("batch", "citations", "image_input", "pdf_input", "structured_outputs")
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.display_name,
        "created_at": at(model.released),
        "lifecycle": "deprecated" if model.deprecated else "active",
        "deprecated_at": at(model.deprecated),
        "retires_at": at(model.retires),
        "line": model.line,
        "max_input_tokens": model.context,
        "max_tokens": model.max_output,
        "capabilities": {
            **{capability: supported(True) for capability in always},
            "code_execution": supported(False),
            "context_management": supported(
                True, **dict.fromkeys(("clear_thinking_20251015", "clear_tool_uses_20250919"), supported(True))
            ),
            "server_tools": supported(True, web_search=supported(True), code_execution=supported(True)),
            "effort": supported(bool(model.efforts), **levels),
            "thinking": supported(bool(model.thinking - {"disabled"}), types=types),
        },
    }


def overlay(model: Model, item: Mapping[str, Any]) -> Model:
    """The model as an item of the live GET /v1/models describes it; what the item does not say stays as it was.

    A retirement date there may be overdue: `lifecycle` says whether the model is gone, so a live one is not `retired`.
    """

    def says(*path: str) -> bool | None:
        value: Any = item.get("capabilities")
        for key in (*path, "supported"):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, bool) else None

    def laid_over(names: tuple[str, ...], old: Iterable[str], *path: str) -> tuple[str, ...]:
        return tuple(name for name in names if (name in old if (live := says(*path, name)) is None else live))

    thinking = frozenset(laid_over(THINKING_TYPES, model.thinking, "thinking", "types"))
    efforts = laid_over(EFFORTS, model.efforts, "effort")
    off = model.thinking_off
    if off != "omit" and off not in thinking:
        off = "disabled" if "disabled" in thinking else "between_tools" if "between_tools" in thinking else "never"
    off_efforts = (
        model.off_efforts if model.thinking_off == off else tuple(e for e in efforts if e not in ("xhigh", "max"))
    )
    retires = day(item.get("retires_at"))
    lifecycle = item.get("lifecycle")
    return replace(
        model,
        context=whole(item.get("max_input_tokens")) or model.context,
        max_output=whole(item.get("max_tokens")) or model.max_output,
        thinking=thinking,
        thinking_off=off,
        efforts=efforts,
        off_efforts=tuple(effort for effort in off_efforts if effort in efforts),
        default_effort=model.default_effort if model.default_effort in efforts else "high" if "high" in efforts else "",
        deprecated=day(item.get("deprecated_at")) or model.deprecated,
        retires=retires if "retires_at" in item else model.retires,
        retired=(retires or model.retired or model.released)
        if lifecycle == "retired"
        else None
        if lifecycle
        else model.retired,
    )


def whole(value: Any) -> int:
    """A count as JSON brings it; 0 for what is none."""
    return value if type(value) is int and value > 0 else 0


def day(value: Any) -> date | None:
    try:
        return datetime.fromisoformat(value).date() if isinstance(value, str) else None
    except ValueError:
        return None
