"""The shape of a Messages API body: which fields there are, and what may stand in them.

Source: the types of Anthropic's Python SDK (2026-11). Fields of a beta are taken with its header only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Check = Callable[[Any, str], None]


class Malformed(Exception):
    """What is wrong and where, in Anthropic's words."""


# ---------------------------------------------------------------------------- what may stand there


def text(value: Any, path: str) -> None:
    if not isinstance(value, str):
        raise Malformed(f"{path}: Input should be a valid string")


def boolean(value: Any, path: str) -> None:
    if not isinstance(value, bool):
        raise Malformed(f"{path}: Input should be a valid boolean")


def anything(value: Any, path: str) -> None:
    """Fields whose inside this practice upstream does not look at."""


def mapping(value: Any, path: str) -> None:
    if not isinstance(value, dict):
        raise Malformed(f"{path}: Input should be a valid dictionary")


def whole(at_least: int) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Malformed(f"{path}: Input should be a valid integer")
        if value < at_least:
            raise Malformed(f"{path}: Input should be greater than or equal to {at_least}")

    return check


def share(value: Any, path: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Malformed(f"{path}: Input should be a valid number")
    if not 0 <= value <= 1:
        raise Malformed(f"{path}: range: 0..1")


def one_of(*values: str) -> Check:
    *most, last = (f"'{value}'" for value in values)
    expected = f"{', '.join(most)} or {last}" if most else last

    def check(value: Any, path: str) -> None:
        if value not in values:
            raise Malformed(f"{path}: Input should be {expected}")

    return check


def or_null(check: Check) -> Check:
    def checked(value: Any, path: str) -> None:
        if value is not None:
            check(value, path)

    return checked


def each(check: Check) -> Check:
    def checked(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise Malformed(f"{path}: Input should be a valid list")
        for i, item in enumerate(value):
            check(item, f"{path}.{i}")

    return checked


def text_or(check: Check) -> Check:
    def checked(value: Any, path: str) -> None:
        if not isinstance(value, str):
            check(value, path)

    return checked


def record(required: Mapping[str, Check], optional: Mapping[str, Check] = {}, *, open: bool = False) -> Check:
    """An object with these fields and, unless it is open, no others."""
    fields = {**required, **optional}

    def check(value: Any, path: str) -> None:
        mapping(value, path)
        inside = f"{path}." if path else ""
        for key, item in value.items():
            if field := fields.get(key):
                field(item, inside + key)
            elif not open:
                raise Malformed(f"{inside}{key}: Extra inputs are not permitted")
        for key in required:
            if key not in value:
                raise Malformed(f"{inside}{key}: Field required")

    return check


def tagged(kinds: Mapping[str, Check], default: str | None = None) -> Check:
    """An object whose `type` says which of these it is; the type becomes part of the path, as in Anthropic's texts."""
    expected = ", ".join(f"'{kind}'" for kind in kinds)

    def check(value: Any, path: str) -> None:
        mapping(value, path)
        kind = value.get("type") or default
        if kind is None:
            raise Malformed(f"{path}.type: Field required")
        if not isinstance(kind, str) or kind not in kinds:
            raise Malformed(
                f"{path}: Input tag '{kind}' found using 'type' does not match any of the expected tags: {expected}"
            )
        kinds[kind](value, f"{path}.{kind}")

    return check


# -------------------------------------------------------------------------------------- the fields

MARK = or_null(record({"type": one_of("ephemeral")}, {"ttl": one_of("5m", "1h")}))
TYPE = {"type": text}


def block(required: Mapping[str, Check], optional: Mapping[str, Check] = {}, *, open: bool = False) -> Check:
    return record({**TYPE, **required}, {"cache_control": MARK, **optional}, open=open)


TEXT = block({"text": text}, {"citations": or_null(each(mapping))})
CITATIONS = or_null(record({}, {"enabled": boolean}))
IMAGE_TYPES = one_of("image/jpeg", "image/png", "image/gif", "image/webp")
IMAGE = block(
    {
        "source": tagged(
            {
                "base64": record({**TYPE, "data": text, "media_type": IMAGE_TYPES}),
                "url": record({**TYPE, "url": text}),
                "file": record({**TYPE, "file_id": text}),
            }
        )
    },
    {"transformations": or_null(mapping)},
)
DOCUMENT = block(
    {"source": record({"type": one_of("base64", "text", "content", "url", "file")}, open=True)},
    {"citations": CITATIONS, "context": or_null(text), "title": or_null(text)},
)
SEARCH_RESULT = block({"content": each(TEXT), "source": text, "title": text}, {"citations": CITATIONS})
SYSTEM = text_or(each(tagged({"text": TEXT})))
SERVER_BLOCKS = (
    "server_tool_use",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "container_upload",
)
CONTENT = each(
    tagged(
        {
            "text": TEXT,
            "image": IMAGE,
            "document": DOCUMENT,
            "search_result": SEARCH_RESULT,
            "thinking": record({**TYPE, "thinking": text, "signature": text}),
            "redacted_thinking": record({**TYPE, "data": text}),
            "tool_use": block(
                {"id": text, "name": text, "input": mapping}, {"caller": mapping, "toolset_name": or_null(text)}
            ),
            "tool_result": block(
                {"tool_use_id": text},
                {
                    "content": text_or(
                        each(
                            tagged(
                                {
                                    "text": TEXT,
                                    "image": IMAGE,
                                    "document": DOCUMENT,
                                    "search_result": SEARCH_RESULT,
                                    "tool_reference": block({"tool_name": text}),
                                }
                            )
                        )
                    ),
                    "is_error": boolean,
                    "toolset_name": or_null(text),
                },
            ),
            **dict.fromkeys(SERVER_BLOCKS, block({}, open=True)),
        }
    )
)
MESSAGE = record({"role": one_of("user", "assistant", "system"), "content": text_or(CONTENT)})

SERVER_TOOLS = (
    *("web_search_20250305", "web_search_20260209", "web_search_20260318"),
    *("web_fetch_20250910", "web_fetch_20260209", "web_fetch_20260309", "web_fetch_20260318"),
    *("code_execution_20250522", "code_execution_20250825", "code_execution_20260120", "code_execution_20260521"),
    *("text_editor_20250124", "text_editor_20250429", "text_editor_20250728", "bash_20250124", "memory_20250818"),
    *("computer_toolset_20260801", "browser_toolset_20260801"),
    *("tool_search_tool_regex_20251119", "tool_search_tool_bm25_20251119"),
)
TOOLS = each(
    tagged(
        {
            "custom": record(
                {"name": text, "input_schema": record({"type": one_of("object")}, open=True)},
                {
                    "type": or_null(text),
                    "description": text,
                    "cache_control": MARK,
                    "strict": boolean,
                    "defer_loading": boolean,
                    "eager_input_streaming": or_null(boolean),
                    "allowed_callers": each(text),
                    "input_examples": each(mapping),
                },
            ),
            **dict.fromkeys(SERVER_TOOLS, block({}, {"name": text}, open=True)),
        },
        default="custom",
    )
)
NOT_PARALLEL = {"disable_parallel_tool_use": boolean}
TOOL_CHOICE = tagged(
    {
        "auto": record(TYPE, NOT_PARALLEL),
        "any": record(TYPE, NOT_PARALLEL),
        "tool": record({**TYPE, "name": text}, NOT_PARALLEL),
        "none": record(TYPE),
    }
)


def thinking(betas: Iterable[str]) -> Check:
    displays = ("summarized", "omitted", *(["updates"] if "thinking-display-updates-2026-08-18" in betas else []))
    shown: dict[str, Check] = {"display": or_null(one_of(*displays))}
    if "thinking-binding-controls-2026-08-01" in betas:
        shown["block_binding"] = record({}, {"prefix_mismatch_behavior": one_of("error", "drop_block")})
    return tagged(
        {
            "adaptive": record(TYPE, shown),
            "enabled": record({**TYPE, "budget_tokens": whole(1_024)}, shown),
            "disabled": record(TYPE),
            "between_tools": record(TYPE),
        }
    )


def output_config(betas: Iterable[str]) -> Check:
    fields: dict[str, Check] = {
        "effort": or_null(one_of("low", "medium", "high", "xhigh", "max")),
        "format": or_null(record({"type": one_of("json_schema"), "schema": mapping})),
    }
    if "task-budgets-2026-03-13" in betas:
        fields["task_budget"] = or_null(mapping)
    return record({}, fields)


SAMPLERS: Mapping[str, Check] = {"temperature": share, "top_p": share, "top_k": whole(-1)}

# Field → what its beta's name begins with.
BETA_FIELDS = {
    "billing_policy": "user-profiles-billing-",
    "compaction": "compact-",
    "context_management": "context-management-",
    "fallback_credit_token": "fallback-credit-",
    "fallbacks": "server-side-fallback-",
    "mcp_servers": "mcp-client-",
    "thread": "message-threads-",
}


def check_body(body: Mapping[str, Any], version: str, betas: Iterable[str], counting: bool) -> None:
    """Raise Malformed if this is not a body of POST /v1/messages or, when counting, of …/count_tokens.

    From version 2026-10-21 on there are no samplers.
    """
    required: dict[str, Check] = {"model": text, "messages": each(MESSAGE)}
    optional: dict[str, Check] = {
        "cache_control": MARK,
        "output_config": output_config(betas),
        "speed": or_null(one_of("standard", "fast")),
        "system": SYSTEM,
        "thinking": thinking(betas),
        "tool_choice": TOOL_CHOICE,
        "tools": TOOLS,
    }
    if not counting:
        required["max_tokens"] = whole(0)
        optional |= {
            "container": anything,
            "diagnostics": or_null(record({}, {"previous_message_id": or_null(text)})),
            "inference_geo": or_null(text),
            "metadata": record({}, {"user_id": or_null(text)}),
            "service_tier": one_of("auto", "standard_only"),
            "stop_sequences": each(text),
            "stream": boolean,
        }
        if version == "2023-06-01":
            optional |= SAMPLERS
    optional |= {
        field: anything for field, prefix in BETA_FIELDS.items() if any(beta.startswith(prefix) for beta in betas)
    }
    record(required, optional)(body, "")
