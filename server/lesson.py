"""What a refusal taught, as a value, and the row of a model with such lessons laid over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from server.models import EFFORTS, Model
from server.request import Change

MOST_LESSONS = 8  # of one request: whoever refuses more than that is not to be pleased


@dataclass(frozen=True)
class Lesson:
    """One thing a model refused. `rule` says which kind, `value` the particulars, `did` what is done about it from now
    on. What is not `lasting` holds for the request in hand alone."""

    rule: str
    value: str
    refused: str
    did: str
    lasting: bool = True

    def change(self, model: str) -> Change:
        """How the receipt of the request that learned it names it."""
        return Change("learn", f"{model} refused {self.refused}; {self.did}{' and remembered that' * self.lasting}.")


def with_lessons(
    known: Mapping[str, tuple[Lesson, ...]], model: str, more: Iterable[Lesson]
) -> Mapping[str, tuple[Lesson, ...]]:
    """What is known, and what a model has taught since, in place of what it taught about the same rules."""
    new = tuple(more)
    rules = {one.rule for one in new}
    old = tuple(one for one in known.get(model, ()) if one.rule not in rules)
    return {**known, model: (*old, *new)} if new else known


def taught(model: Model, lessons: Iterable[Lesson]) -> Model:
    """The model's row with what its refusals taught laid over it."""
    for one in lessons:
        kind, _, rest = one.rule.partition(" ")
        match kind:
            case "sampling":
                model = replace(model, sampling="none" if one.value == "none" or model.sampling == "none" else "one")
            case "prefill":
                model = replace(model, prefill=False)
            case "thinking":
                model = without_thinking_type(model, rest, one.value)
            case "efforts":
                model = with_efforts(model, tuple(level for level in EFFORTS if level in one.value.split()))
            case "effort":
                model = with_efforts(model, tuple(level for level in model.efforts if level != one.value))
            case "off_effort":
                model = replace(model, off_efforts=tuple(e for e in model.off_efforts if e != one.value))
            case "forced_tools":
                model = replace(model, forced_tools=False)
            case "system_messages":
                model = replace(model, system_messages=False)
            case "max_tokens":
                model = replace(model, max_output=min(model.max_output, int(one.value)))
    return model


def without_thinking_type(model: Model, refused: str, instead: str) -> Model:
    kinds = model.thinking - {refused}
    if instead and not kinds & {"adaptive", "enabled"}:
        kinds |= {instead}
    off = model.thinking_off
    if off == refused:
        off = next((kind for kind in ("disabled", "between_tools") if kind in kinds), "never")
    return replace(model, thinking=kinds, thinking_off=off)


def with_efforts(model: Model, efforts: tuple[str, ...]) -> Model:
    default = model.default_effort if model.default_effort in efforts else "high" if "high" in efforts else ""
    return replace(
        model, efforts=efforts, default_effort=default, off_efforts=tuple(e for e in model.off_efforts if e in efforts)
    )
