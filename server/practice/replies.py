"""What the practice upstream answers: friendly, different at each swipe, and plain about being no AI."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from server.models import Model
from server.practice.accounting import Bill

OPENINGS = (
    "Practice reply {nth}. No AI wrote this: it comes from the practice upstream built into Tavern Proxy.",
    "Practice reply {nth}, with warm greetings from a text file. No AI has read your words, and nobody is billed.",
    "This is practice reply {nth}. There is no AI behind it, only a short list of paragraphs and a steady clock.",
    "Hello again from the practice upstream, with reply {nth}. Nothing left your computer, and no AI was asked.",
)

PARAGRAPHS = (
    "Imagine a small inn at a crossroads, late in autumn. Rain ticks on the shutters, somebody has left a lute by "
    "the fire, and the innkeeper is polishing the same glass for the third time. She has no lines yet. Give her a "
    "real model to speak through and she will have plenty to say; here she only nods, pours you something warm "
    "and points at the best chair.",
    "A lighthouse keeper once wrote down every ship that passed, and next to each one what he supposed it "
    "carried: oranges, pianos, letters from an aunt. He was wrong nearly every time and enjoyed it just as much. "
    "These practice paragraphs pass in much the same way. Swipe, and the next one sails by.",
    "There is a map on the table, drawn by someone with more courage than ink. North is only a guess. A dotted "
    "line runs from the bakery to a hill marked “probably fine”, and on from there to the edge of the paper, "
    "where a small and very polite dragon asks travellers to wipe their feet.",
    "The night train is almost empty. A conductor in a blue coat walks through, checks a ticket that is not "
    "there, and writes “practice” on it in careful letters. Outside, fields go by like pages being turned. You "
    "will arrive exactly where you set out, which for a practice journey is the right place.",
    "In the clockmaker's shop every clock shows another time, and each of them is sure. The clockmaker does not "
    "mind. “They agree twice a day,” she says, “and that is more than can be said of most families.” Then she "
    "winds the smallest one, and it begins to tick in step with these words as they arrive.",
    "A gardener is planting bulbs in the dark, by feel, counting under his breath. Forty-one, forty-two. He will "
    "not see them until spring and does not seem to be in a hurry. Some things are better set up early and "
    "enjoyed later; a chat that runs without errors is one of them.",
    "Two travellers share a bench and a bag of plums. One tells a story with no ending, the other an ending that "
    "has no story, and by the last plum they notice that the two fit. They shake hands and part as friends. "
    "Nothing here was invented by a model, but it may serve to show how text streams in.",
)

HINTS = (
    "While you are here: press Stop in the middle of a reply, and the proxy hangs up on its upstream at once.",
    "While you are here: swipe, and the same request comes again; all of it that was cached is read from the cache.",
    "While you are here: the dashboard shows this request's receipt, with everything the proxy changed and why.",
    "While you are here: choose another model. Requests are checked here by the rules that Anthropic publishes for it.",
)

THOUGHTS = (
    "These are practice thoughts: no AI is thinking them.",
    "They are here so that you can see how reasoning looks in your front end, and where it ends.",
    "A real model would now weigh what your characters want, and what they would rather not say.",
    "It would look back over the story for loose threads, and forward for a place to tie one.",
    "Then it would stop and speak, and so does this.",
)
EFFORTS = ("low", "medium", "high", "xhigh", "max")


class Reply(NamedTuple):
    """A reply before it is put into the API's shape. `thinking` is whole, whatever of it is to be shown."""

    thinking: str | None
    text: str
    call: tuple[str, dict[str, Any]] | None  # the tool that is called, and its input
    stop_reason: str
    stop_sequence: str | None = None
    searched: bool = False  # the web, before the text

    @property
    def thinking_tokens(self) -> int:
        return size_of(self.thinking or "")

    @property
    def tokens(self) -> int:
        call = json.dumps(self.call[1]) if self.call else ""
        return max(1, self.thinking_tokens + size_of(self.text) + size_of(call))


def size_of(text: str) -> int:
    """Tokens, by the practice upstream's measure."""
    return -(-len(text.encode()) // 4)


def reply_to(body: Mapping[str, Any], model: Model, bill: Bill, nth: int, start: int) -> Reply:
    """The `nth` practice reply to the same request. `start` spreads different requests over the paragraphs."""
    room, reason = body["max_tokens"], "max_tokens"
    if (left := model.context - sum(bill)) < room:
        room, reason = left, "model_context_window_exceeded"
    if room <= 0:
        return Reply(None, "", None, reason)
    thinking = thoughts(body, model)
    if thinking is not None and size_of(thinking) >= room:
        return Reply(shortened(thinking, room), "", None, reason)
    choice = body.get("tool_choice") or {}
    if choice.get("type") in ("any", "tool"):
        return Reply(thinking, "", forced_call(body["tools"], choice), "tool_use")
    if shape := (body.get("output_config") or {}).get("format"):
        text = json.dumps(example(shape["schema"]))
    else:
        text = words(bill, nth, start)
        if body["messages"][-1]["role"] == "assistant":
            text = f" … and here the practice upstream takes over from your opening words. {text}"
    found = [(at, stop) for stop in body.get("stop_sequences", ()) if (at := text.find(stop)) >= 0]
    at, stop = min(found, default=(len(text), None))
    room -= size_of(thinking or "")
    if size_of(text[:at]) > room:
        return Reply(thinking, shortened(text, room), None, reason)
    reason = "stop_sequence" if stop is not None else "end_turn"
    return Reply(thinking, text[:at], None, reason, stop, searched=may_search(body))


def may_search(body: Mapping[str, Any]) -> bool:
    """The practice upstream searches once wherever it may, so that the fee for it can be seen."""
    allowed = [tool for tool in body.get("tools") or () if tool.get("type", "").startswith("web_search_")]
    return bool(allowed) and (body.get("tool_choice") or {}).get("type") != "none"


def words(bill: Bill, nth: int, start: int) -> str:
    """An opening, one to three paragraphs, what the prompt came to, and a hint."""
    turn = start + nth
    story = [PARAGRAPHS[(turn + i) % len(PARAGRAPHS)] for i in range(1 + turn % 3)]
    counted = (
        f"Tokens in your prompt, by the practice measure: {sum(bill):,}; {bill.read:,} of them read from the cache, "
    )
    counted += f"{bill.write_5m + bill.write_1h:,} written to it."
    opening = OPENINGS[turn % len(OPENINGS)].format(nth=nth)
    return "\n\n".join([opening, *story, f"{counted} {HINTS[turn % len(HINTS)]}"])


def thoughts(body: Mapping[str, Any], model: Model) -> str | None:
    """The more effort is asked for, the longer; within the budget, where there is one. None where thinking is off."""
    thinking = body.get("thinking") or {"type": "adaptive" if model.thinks_by_default else "disabled"}
    if thinking["type"] not in ("adaptive", "enabled"):
        return None
    effort = (body.get("output_config") or {}).get("effort") or model.default_effort or "high"
    text = " ".join(THOUGHTS[: 1 + EFFORTS.index(effort)])
    return shortened(text, thinking.get("budget_tokens", size_of(text)))


def shortened(text: str, tokens: int) -> str:
    return text.encode()[: 4 * tokens].decode(errors="ignore")


def forced_call(tools: list[dict[str, Any]], choice: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A call of the tool that is forced, or of the first one, with an input its schema allows."""
    tool = next((tool for tool in tools if tool.get("name") == choice.get("name")), tools[0])
    made = example(tool.get("input_schema") or {})
    return tool["name"], made if isinstance(made, dict) else {}


def example(schema: Mapping[str, Any]) -> Any:
    """A small value that fits a JSON schema: its required fields only."""
    if options := schema.get("enum"):
        return options[0]
    if "const" in schema:
        return schema["const"]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return example(schema[key][0])
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties") or {}
            return {name: example(properties.get(name) or {}) for name in schema.get("required") or ()}
        case "array":
            return [example(schema.get("items") or {})] * (1 if schema.get("minItems") else 0)
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
    return "practice"


def pieces(text: str) -> list[str]:
    """A text as it is streamed: word by word, each with the blanks behind it."""
    return re.findall(r"\s*\S+\s*|\s+$", text)
