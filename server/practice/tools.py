"""What is refused in tools: their names, forcing them, calls without results."""

from __future__ import annotations

import re
from collections import Counter

from server.practice.asked import Asked, Turn
from server.practice.blocks import THOUGHTS

TOOL_NAME = r"^[a-zA-Z0-9_-]{1,128}$"
TOOL_ID = r"^[a-zA-Z0-9_-]+$"


def tools(asked: Asked) -> str | None:
    names = [block.content.get("name") or block.kind for block in asked.blocks if block.place == "tools"]
    for block in asked.blocks:
        if block.place != "tools" or block.kind != "custom":
            continue
        if not re.match(TOOL_NAME, block.content["name"]):
            return f"{block.path}.custom.name: String should match pattern '{TOOL_NAME}'"
        if {"oneOf", "allOf", "anyOf"} & block.content["input_schema"].keys():
            alternatives = "input_schema does not support oneOf, allOf, or anyOf at the top level"
            return f"{block.path}.custom.input_schema: {alternatives}"
    if len(set(names)) < len(names):
        return "tools: Tool names must be unique."
    choice = asked.body.get("tool_choice") or {}
    if choice and not names:
        return "tool_choice: `tool_choice` may only be specified while providing `tools`."
    if choice.get("type") == "tool" and choice["name"] not in names:
        return f"Tool '{choice['name']}' not found in provided tools"
    return None


def forced_tools(asked: Asked) -> str | None:
    if asked.forces_tool and not asked.model.forced_tools:
        return 'tool_choice: type "tool" and "any" are not supported for this model.'
    if asked.forces_tool and asked.thinking.get("type") == "enabled":
        return "Thinking may not be enabled when tool_choice forces tool use."
    return None


def tool_calls(asked: Asked) -> str | None:
    """Each call stands in an assistant turn and is answered first thing in the user turn after it, once."""
    calls = [block for block in asked.blocks if block.kind == "tool_use"]
    for block in calls:
        if block.role != "assistant":
            return f"{block.path}: `tool_use` blocks can only be in `assistant` messages"
        for key, pattern in (("id", TOOL_ID), ("name", TOOL_NAME)):
            if not re.match(pattern, block.content[key]):
                return f"{block.path}.tool_use.{key}: String should match pattern '{pattern}'"
    if any(count > 1 for count in Counter(block.content["id"] for block in calls).values()):
        return "messages: `tool_use` ids must be unique"
    turns = [turn for turn in asked.turns if turn.role != "system"]
    for called, answered in zip([Turn("user", []), *turns], [*turns, Turn("user", [])], strict=True):
        if message := unpaired(called, answered):
            return message
    return None


def unpaired(called: Turn, answered: Turn) -> str | None:
    """What is wrong between the calls of one turn and the results in the next."""
    wanted = [block.content["id"] for block in called.blocks if block.kind == "tool_use"]
    results = [block for block in answered.blocks if block.kind == "tool_result"]
    for block in results:
        if block.role != "user":
            return f"{block.path}: `tool_result` blocks can only be in `user` messages"
        if block.content["tool_use_id"] not in wanted:
            return (
                f"{block.path}: unexpected `tool_use_id` found in `tool_result` blocks: "
                f"{block.content['tool_use_id']}. Each `tool_result` block must have a corresponding `tool_use` block "
                "in the previous message."
            )
    first = [block.content.get("tool_use_id") for block in answered.blocks[: len(wanted)]]
    if missing := [name for name in wanted if name not in first]:
        return (
            f"{called.at}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the next "
            "message."
        )
    if len(results) > len(wanted):
        return f"{answered.at}: each `tool_use` must have a single result"
    return None


def thinking_before_tools(asked: Asked) -> str | None:
    """With `enabled`, the turn whose tool calls are being answered must still have its thinking."""
    turns = [turn for turn in asked.turns if turn.role != "system"]
    if asked.thinking.get("type") != "enabled" or len(turns) < 2:
        return None
    *_, called, answered = turns
    first = called.blocks[0]
    if answered.blocks[0].kind == "tool_result" and first.kind not in THOUGHTS:
        return (
            f"{first.path}.type: Expected `thinking` or `redacted_thinking`, but found `{first.kind}`. When `thinking` "
            "is enabled, a final `assistant` message must start with a thinking block."
        )
    return None
