"""Step: thinking and effort."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from server.content import THINKING_OFF, THOUGHTS, Message, answers_tools, as_blocks, by_budget, loop_start
from server.models import EFFORTS, THINKING_TYPES, Model
from server.request import ChatRequest
from server.rewrite.context import Context

# How many tokens of thinking an effort stands for, where the one has to be said as the other.
BUDGETS = {"low": 1_024, "medium": 4_096, "high": 10_000, "xhigh": 24_000, "max": 48_000}
LEAST_BUDGET = 1_024  # the API's own
LACKING = "Switched thinking off for this request: the tool call it answers was sent back without its thinking."
OTHER_NAMES = {"min": "low", "minimal": "low", "minimum": "low", "none": "low", "mid": "medium", "maximum": "max"}


class Settled(NamedTuple):
    thinking: dict[str, Any] | None
    effort: str


def fit_thinking(request: ChatRequest, context: Context) -> ChatRequest:
    """Says in the model's own way how much it is to think: a budget becomes an effort or an effort a budget, an effort
    the model lacks the nearest one it has, and “no thinking” the least it can do."""
    model = context.model_of(request)
    if model is None:
        return request
    given = request.body.get("thinking")
    asked = given if isinstance(given, dict) else None
    config = request.body.get("output_config")
    config = config if isinstance(config, dict) else {}
    wanted = config.get("effort")
    lacking = by_budget(asked, model) and lacks_thoughts(request.body["messages"])
    if asked and (lacking or context.learned(request, "no_thinking")):
        asked = {"type": "disabled"}
    settled = settle(asked, wanted, model, request.betas)
    new_config = {key: value for key, value in config.items() if key != "effort" or value is None}
    if settled.effort:
        new_config = {**config, "effort": settled.effort}
    new = {key: value for key, value in request.body.items() if key not in ("thinking", "output_config")}
    if settled.thinking:
        new["thinking"] = settled.thinking
    if new_config or config == {} == request.body.get("output_config"):
        new["output_config"] = new_config
    if new == request.body:
        return request
    detail = LACKING if lacking else told(given, wanted, settled, model)
    return request.noted("fit_thinking", detail, body=new)


def settle(asked: Mapping[str, Any] | None, wanted: Any, model: Model, betas: tuple[str, ...] = ()) -> Settled:
    """`thinking` and effort as this model takes them, meaning what was asked as nearly as it can."""
    effort = nearest(wanted, model.efforts)
    if not asked:
        return Settled(None, effort)
    kind, budget = asked.get("type"), whole(asked.get("budget_tokens"))
    if kind in THINKING_OFF or (kind != "adaptive" and budget == 0):
        kind = kind if kind in THINKING_OFF else "disabled"
        off = kind if kind in model.thinking else model.thinking_off
        if model.efforts and not model.off_efforts:  # at none of its efforts
            off = "never" if model.thinks_by_default else "omit"
        if off == "never":
            return Settled(None, model.efforts[0] if model.efforts else "")
        if off == "omit":
            return Settled(None, effort)
        if (effort or model.default_effort) not in ("", *model.off_efforts):
            effort = nearest(effort or model.default_effort, model.off_efforts)
        return Settled({"type": off}, effort)
    shown = {key: asked[key] for key in shown_keys(asked, betas)}
    if by_budget(asked, model):
        size = budget or BUDGETS[nearest(wanted, EFFORTS) or model.default_effort or "high"]
        return Settled({"type": "enabled", "budget_tokens": max(size, LEAST_BUDGET), **shown}, effort)
    if "adaptive" in model.thinking:
        had_budget = kind == "enabled" or (kind != "adaptive" and budget is not None)
        if had_budget and model.display_default == "omitted":
            shown.setdefault("display", "summarized")  # as it was where budgets come from
        if had_budget and not effort and budget:
            effort = nearest(effort_for(budget), model.efforts)
        return Settled({"type": "adaptive", **shown}, effort)
    return Settled(None, effort)


def whole(budget: Any) -> int | None:
    """A budget as a number of tokens, also where it was written as text; None where there is none."""
    try:
        number = None if isinstance(budget, bool) else int(budget)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and number >= 0 else None


def shown_keys(asked: Mapping[str, Any], betas: tuple[str, ...]) -> list[str]:
    """What else of `thinking` may go along."""
    displays = ["summarized", "omitted"]
    displays += ["updates"] * any(beta.startswith("thinking-display-updates-") for beta in betas)
    keys = ["display"] if asked.get("display") in displays or ("display" in asked and asked["display"] is None) else []
    if any(beta.startswith("thinking-binding-controls-") for beta in betas) and isinstance(
        asked.get("block_binding"), dict
    ):
        keys.append("block_binding")
    return keys


def effort_for(budget: int) -> str:
    return [level for level, size in BUDGETS.items() if size <= max(budget, LEAST_BUDGET)][-1]


def nearest(wanted: Any, levels: tuple[str, ...]) -> str:
    """The level of `levels` nearest to the wanted one, the lower of two; "" if it is no level or there are none."""
    wanted = OTHER_NAMES.get(wanted, wanted) if isinstance(wanted, str) else ""
    if wanted not in EFFORTS or not levels:
        return ""
    at = EFFORTS.index(wanted)
    return min(levels, key=lambda level: (abs(EFFORTS.index(level) - at), EFFORTS.index(level)))


def lacks_thoughts(messages: list[Message]) -> bool:
    """Whether tool calls being answered came without the thinking that `enabled` wants in front of them: SillyTavern
    never sends it back."""
    start = loop_start(messages)
    loop = messages[start:]
    if not loop or not answers_tools(messages[-1]):
        return False
    turn: list[Any] = []
    for message in loop:
        if message["role"] == "assistant":
            turn += as_blocks(message.get("content"))
        elif turn and message is not messages[-1] and answers_tools(message):
            if turn[0].get("type") not in THOUGHTS:
                return True
            turn = []
    return not turn or turn[0].get("type") not in THOUGHTS


def told(given: Any, wanted: Any, settled: Settled, model: Model) -> str:
    """The change in a player's words."""
    parts = []
    before = given.get("type") if isinstance(given, dict) else None
    after = settled.thinking["type"] if settled.thinking else None
    if before != after:
        budget = f" ({settled.thinking['budget_tokens']:,} tokens)" if settled.thinking and after == "enabled" else ""
        instead = f" instead of {before}" if before in THINKING_TYPES else ""
        parts.append(f"thinking is {after}{budget}{instead}" if after else "left thinking out")
    elif settled.thinking != given:
        parts.append("mended how thinking was asked for")
    if (wanted or "") != settled.effort:
        parts.append(f"effort is {settled.effort}" if settled.effort else "left effort out")
    said = " and ".join(parts) or "mended how thinking was asked for"
    return f"{said[0].upper()}{said[1:]}: that is what {model.display_name} takes."
