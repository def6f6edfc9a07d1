"""Step: tools, their calls and their results."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from server.content import (
    NOTHING_SAID,
    Block,
    Message,
    as_blocks,
    asks_to_think,
    by_budget,
    inner_blocks,
    text_block,
    turns_of,
    user_message,
)
from server.models import Model
from server.request import ChatRequest
from server.rewrite.context import Context

NO_RESULT = "No result was kept."
INSIDE = ("text", "image", "document", "search_result")  # what may stand in a result and outside of one
TOOL_KEYS = {
    *("type", "name", "description", "input_schema", "cache_control", "strict", "defer_loading"),
    *("eager_input_streaming", "allowed_callers", "input_examples"),
}
ALTERNATIVES = ("anyOf", "oneOf", "allOf")


def fit_tools(request: ChatRequest, context: Context) -> ChatRequest:
    """Mends tools so that they are taken: names (unique, plain letters), choices of tools that are not there, calls
    that lost their result or results that lost their call when a chat was edited. A forced tool becomes a sentence in
    words on models that cannot be forced, and thinking gives way to it where both at once are refused."""
    model = context.model_of(request)
    if model is None:
        return request
    request = fit_definitions(request, context)
    request = fit_calls(request)
    return fit_choice(request, context, model)


# ------------------------------------------------------------------------------------------------------- definitions


def fit_definitions(request: ChatRequest, context: Context) -> ChatRequest:
    given = request.body.get("tools")
    if given is None:
        return request
    refused = {kind for value in context.learned(request, "tool") for kind in value.split()}
    tools: list[dict[str, Any]] = []
    names: set[str] = set()
    for tool in given if isinstance(given, list) else ():
        fitted = definition(tool) if isinstance(tool, dict) else None
        name = tool_name(fitted) if fitted else ""
        if fitted is None or name in names or str(fitted.get("type")) in refused:
            continue
        names.add(name)
        tools.append(fitted)
    if tools == given:
        return request
    detail = "Mended the tools: their names must be unique and plain, their schemas objects."
    return request.but("fit_tools", detail, tools=tools) if tools else request.without("fit_tools", detail, "tools")


def definition(tool: dict[str, Any]) -> dict[str, Any] | None:
    """A tool as the API takes it; None if it has no name. OpenAI's spelling is understood."""
    inner = tool.get("function")
    if isinstance(inner, dict):
        tool = {
            "name": inner.get("name"),
            "description": inner.get("description"),
            "input_schema": inner.get("parameters"),
        }
    if tool.get("type") not in (None, "custom", "function"):
        return tool
    name, about = tool.get("name"), tool.get("description")
    schema = tool.get("input_schema") or tool.get("parameters")
    if not isinstance(name, str) or not name:
        return None
    tool = {key: value for key, value in tool.items() if key in TOOL_KEYS}
    if tool.get("type") == "function":
        del tool["type"]
    if "description" in tool and not isinstance(about, str):
        del tool["description"]
    return {**tool, "name": plain_name(name), "input_schema": object_schema(schema if isinstance(schema, dict) else {})}


def object_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as the API takes it: an object's, without alternatives at its top; their properties stay."""
    listed = [schema[key] for key in ALTERNATIVES if isinstance(schema.get(key), list)]
    branches = [branch for one in listed for branch in one if isinstance(branch, dict)]
    told = [branch["properties"] for branch in (*branches, schema) if isinstance(branch.get("properties"), dict)]
    schema = {key: value for key, value in schema.items() if key not in ALTERNATIVES}
    if branches and told:
        schema["properties"] = {name: value for properties in told for name, value in properties.items()}
    return schema if schema.get("type") == "object" else {**schema, "type": "object"}


def tool_name(tool: dict[str, Any]) -> str:
    return str(tool.get("name") or tool.get("type"))


def plain_name(name: str) -> str:
    """A name as the API takes it: up to 128 plain letters, digits, _ and -."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:128] or "tool"


# -------------------------------------------------------------------------------------------------- calls and results


@dataclass
class Calls:
    """The calls met so far in a chat: the names taken, and the calls of the last assistant turn, which wait for their
    results (each the id as the front end has it, and as it is sent)."""

    taken: set[str] = field(default_factory=set)
    waiting: list[tuple[str, str]] = field(default_factory=list)

    def called(self, block: Block) -> Block:
        """A call with a name and an id of its own."""
        given = str(block.get("id") or "")
        base = re.sub(r"[^a-zA-Z0-9_-]", "_", given) or "call"
        new, n = base, 2
        while new in self.taken:
            new, n = f"{base}_{n}", n + 1
        self.taken.add(new)
        self.waiting.append((given, new))
        name = block.get("name")
        right = {
            "id": new,
            "name": plain_name(name if isinstance(name, str) else ""),
            "input": as_object(block.get("input")),
        }
        return block if all(block.get(key) == value for key, value in right.items()) else {**block, **right}


def as_object(arguments: Any) -> dict[str, Any]:
    """A call's arguments, which some front ends keep as the text they streamed in as."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return {"text": arguments}
    return arguments if isinstance(arguments, dict) else {}


def fit_calls(request: ChatRequest) -> ChatRequest:
    """Each call is answered first thing in the user turn behind it, once; neighbours of one role count as one turn."""
    messages: list[Message] = request.body["messages"]
    if not request.has("tool_use", "tool_result"):
        return request
    calls = Calls()
    new: list[Message] = []
    for turn in turns_of(messages):
        blocks = [block for message in turn for block in as_blocks(message.get("content"))]
        if turn[0]["role"] == "assistant":
            fitted = [part for block in blocks for part in as_said(block, calls)]
        elif turn[0]["role"] == "user":
            fitted = answered(blocks, calls)
        else:
            if calls.waiting:
                new.append(user_message(*answered([], calls)))
            fitted = blocks
        if fitted == blocks:
            new += turn
        elif fitted:
            new.append({**turn[0], "content": fitted})
    if calls.waiting:
        new.append(user_message(*answered([], calls)))
    new = new or [user_message(text_block(NOTHING_SAID))]
    if new == messages:
        return request
    detail = "Mended tool calls that had lost their result, or results that had lost their call."
    return request.but("fit_tools", detail, messages=new)


def as_said(block: Block, calls: Calls) -> list[Block]:
    """A block of the assistant's."""
    match block.get("type"):
        case "tool_use":
            return [calls.called(block)]
        case "tool_result":  # pictures have no place with the assistant
            return [part for part in as_words(block) if part.get("type") == "text"]
    return [block]


def answered(blocks: list[Block], calls: Calls) -> list[Block]:
    """A user turn: the results of the waiting calls in front, what belongs to no call as words."""
    results: dict[str, Block] = {}
    rest: list[Block] = []
    for block in blocks:
        given = str(block.get("tool_use_id") or "")
        free = [sent for name, sent in calls.waiting if name == given and sent not in results]
        if block.get("type") == "tool_result" and free:
            results[free[0]] = fitted_result(block, free[0])
        elif block.get("type") == "tool_result":
            rest += as_words(block)
        elif block.get("type") == "tool_use":
            arguments = json.dumps(block.get("input"), ensure_ascii=False)
            rest.append(text_block(f"[Tool call: {block.get('name')} {arguments}]"))
        else:
            rest.append(block)
    for _, sent in calls.waiting:
        lost = {"type": "tool_result", "tool_use_id": sent, "content": NO_RESULT, "is_error": True}
        results.setdefault(sent, lost)
    calls.waiting = []
    return [*results.values(), *rest]


def fitted_result(block: Block, id_: str) -> Block:
    """A result as the API takes it: text, or a list of the blocks that may stand in one."""
    new = {**block, "tool_use_id": id_}
    if "is_error" in new and not isinstance(new["is_error"], bool):
        del new["is_error"]
    content = new.get("content")
    if content is None:
        new.pop("content", None)
    elif isinstance(content, list):
        new["content"] = [part if is_inner(part) else text_block(as_text(part)) for part in content if part != ""]
    elif not isinstance(content, str):
        new["content"] = as_text(content)
    return block if new == block else new


def is_inner(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in (*INSIDE, "tool_reference")


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def as_words(result: Block) -> list[Block]:
    """A tool's result as ordinary content."""
    content = result.get("content")
    if isinstance(content, str) and content.strip():
        return [text_block(f"[Tool result: {content}]")]
    inner = [block for block in inner_blocks(result) if block.get("type") in INSIDE]
    return [text_block("[Tool result:]" if inner else "[Tool result without content]"), *inner]


# ------------------------------------------------------------------------------------------------------------ choice


def fit_choice(request: ChatRequest, context: Context, model: Model) -> ChatRequest:
    body = request.body
    if "tool_choice" not in body:
        return request
    names = {tool_name(tool) for tool in body.get("tools") or ()}
    choice = choice_of(body["tool_choice"], names)
    if choice is None:
        return request.without("fit_tools", "Left out the choice of a tool that is not there.", "tool_choice")
    if choice != body["tool_choice"]:
        request = request.but("fit_tools", "Mended the choice of a tool.", tool_choice=choice)
    if choice["type"] not in ("any", "tool"):
        return request
    clash = bool(context.learned(request, "no_forced_thinking"))
    stuck = clash and model.thinking_off == "never"
    if not model.forced_tools or stuck:
        which = f"the tool “{choice['name']}”" if choice["type"] == "tool" else "one of your tools"
        asked = user_message(text_block(f"[Call {which} in this reply.]"))
        free = {key: value for key, value in choice.items() if key == "disable_parallel_tool_use"}
        detail = f"Asked for the tool in words: {model.display_name} cannot be forced to call one."
        return request.but(
            "fit_tools", detail, tool_choice={"type": "auto", **free}, messages=[*body["messages"], asked]
        )
    if by_budget(body.get("thinking"), model) or (clash and (asks_to_think(body) or model.thinks_by_default)):
        detail = "Switched thinking off for this request: it cannot be together with a forced tool."
        return request.but("fit_tools", detail, thinking={"type": "disabled"})
    return request


def choice_of(choice: Any, names: set[str]) -> dict[str, Any] | None:
    """A tool choice as the API takes it; None where there is nothing to choose. OpenAI's spelling is understood."""
    if not names or not isinstance(choice, dict):
        return None
    kind, name = choice.get("type"), choice.get("name")
    inner = choice.get("function")
    if kind == "function" and isinstance(inner, dict):
        kind, name = "tool", inner.get("name")
    kind = {"required": "any"}.get(str(kind), kind)
    if kind == "tool":
        name = name if isinstance(name, str) and name in names else plain_name(str(name))
        if name not in names:
            kind = "auto"
    if kind not in ("auto", "any", "tool", "none"):
        kind = "auto"
    fitted: dict[str, Any] = {"type": kind}
    if kind == "tool":
        fitted["name"] = name
    if kind != "none" and isinstance(choice.get("disable_parallel_tool_use"), bool):
        fitted["disable_parallel_tool_use"] = choice["disable_parallel_tool_use"]
    return fitted
