"""What the practice upstream refuses: the published restrictions, model by model, and the texts that go with them."""

import base64
import json
import struct
from datetime import UTC, datetime
from functools import cache

import anthropic
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.models import Models
from server.practice.accounting import read_prompt
from server.practice.blocks import row
from server.practice.headers import betas_of, credential, refusal_of_headers
from server.practice.rules import REQUIRED_SYSTEM_LINE, refusal
from server.practice.signatures import sign
from tests.traces import traces

MODELS = Models.load()
BY_ID = {name: model for model in MODELS.all for name in (model.id, *model.aliases)}
NOW = datetime(2026, 11, 20, tzinfo=UTC).timestamp()
OLD, NEW = "2023-06-01", "2026-10-21"

# Anthropic's restrictions per model as published by November 2026, written down here once more, apart from the table
# that the program uses: samplers taken, prefill, thinking types, forced tools, system messages, effort levels.
RESTRICTIONS = """
claude-fable-5-2  | none | -       | adaptive                  | -      | system | low medium high xhigh max
claude-fable-5-1  | none | -       | adaptive                  | -      | system | low medium high xhigh max
claude-mythos-5-1 | none | -       | adaptive                  | -      | system | low medium high xhigh max
claude-fable-5    | none | -       | adaptive                  | forced | system | low medium high xhigh max
claude-opus-5-5   | none | -       | adaptive                  | -      | system | low medium high xhigh max
claude-sonnet-5-5 | none | -       | adaptive between_tools    | -      | system | low medium high xhigh max
claude-haiku-5-5  | none | -       | adaptive disabled         | forced | system | low medium high xhigh max
claude-opus-5     | none | -       | adaptive disabled         | forced | system | low medium high xhigh max
claude-sonnet-5   | none | -       | adaptive disabled         | forced | -      | low medium high xhigh max
claude-opus-4-8   | none | -       | adaptive disabled         | forced | system | low medium high xhigh max
claude-opus-4-7   | none | -       | adaptive disabled         | forced | -      | low medium high xhigh max
claude-opus-4-6   | one  | -       | adaptive enabled disabled | forced | -      | low medium high max
claude-sonnet-4-6 | one  | -       | adaptive enabled disabled | forced | -      | low medium high max
claude-opus-4-5   | one  | prefill | enabled disabled          | forced | -      | low medium high
claude-sonnet-4-5 | one  | prefill | enabled disabled          | forced | -      |
claude-haiku-4-5  | one  | prefill | enabled disabled          | forced | -      |
"""
COLUMNS = ("sampling", "prefill", "thinking", "forced", "system", "efforts")
TABLE = {
    name: dict(zip(COLUMNS, cells, strict=True))
    for name, *cells in ([cell.strip() for cell in line.split("|")] for line in RESTRICTIONS.strip().splitlines())
}
EVERY_MODEL = pytest.mark.parametrize("model", TABLE)
THINKING = {
    "adaptive": {"type": "adaptive"},
    "enabled": {"type": "enabled", "budget_tokens": 1_024},
    "disabled": {"type": "disabled"},
    "between_tools": {"type": "between_tools"},
}
TOOL = {"name": "dice", "input_schema": {"type": "object"}}
HELLO = {"role": "user", "content": "Hello"}


def text(words, **more):
    return {"type": "text", "text": words, **more}


def mark(lifetime="5m"):
    return {"cache_control": {"type": "ephemeral", "ttl": lifetime}}


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def ask(model="claude-opus-4-5", **changes):
    return {"model": model, "max_tokens": 2_000, "messages": [HELLO], **changes}


def refused(body, version=OLD, betas="", kind="api_key", counting=False, now=NOW):
    """The refusal's (status, type, text), None if the request is accepted."""
    headers = {"anthropic-version": version, "anthropic-beta": betas}
    return refusal(body, headers, BY_ID.get(body.get("model")), kind, now, counting=counting)


def said(body, **more):
    """The text of a 400, "" if the request is accepted."""
    found = refused(body, **more)
    assert found is None or found[:2] == (400, "invalid_request_error")
    return found.message if found else ""


# ---------------------------------------------------------------------------------- model by model


@EVERY_MODEL
def test_a_plain_request_is_accepted_under_both_versions(model):
    for version in (OLD, NEW):
        assert refused(ask(model), version=version) is None


@EVERY_MODEL
@pytest.mark.parametrize(
    ("given", "takes"),
    [
        ({"temperature": 0.7}, ("one",)),
        ({"temperature": 1}, ("one", "none")),
        ({"top_p": 0.9}, ("one",)),
        ({"top_p": 1.0}, ("one",)),
        ({"top_k": 40}, ("one",)),
        ({"top_k": 0}, ("one",)),
        ({"temperature": 0.7, "top_k": 40}, ("one",)),
        ({"temperature": 0.7, "top_p": 0.9}, ()),
        ({"temperature": 1, "top_p": 1}, ()),
    ],
    ids=str,
)
def test_samplers_are_taken_as_the_model_takes_them(model, given, takes):
    sampling = TABLE[model]["sampling"]
    message = said(ask(model, **given))
    if sampling in takes:
        assert message == ""
    elif sampling == "none":
        assert message in [f"`{name}` is deprecated for this model." for name in given]
    else:
        assert message == "`temperature` and `top_p` cannot both be specified for this model. Please use only one."


@EVERY_MODEL
@pytest.mark.parametrize("given", [{"temperature": 1}, {"top_p": 1}, {"top_k": 0}], ids=str)
def test_the_newest_version_has_no_samplers_on_any_model(model, given):
    assert said(ask(model, **given), version=NEW) == f"{next(iter(given))}: Extra inputs are not permitted"


@EVERY_MODEL
def test_a_prefill_is_taken_where_the_model_takes_it(model):
    message = said(ask(model, messages=[HELLO, assistant(text("Well,"))]))
    expected = "This model does not support assistant message prefill. The conversation must end with a user message."
    assert message == ("" if TABLE[model]["prefill"] == "prefill" else expected)


@EVERY_MODEL
@pytest.mark.parametrize("kind", THINKING)
def test_thinking_types_are_taken_as_the_model_takes_them(model, kind):
    message = said(ask(model, thinking=THINKING[kind]))
    if kind in TABLE[model]["thinking"].split():
        assert message == ""
    elif kind == "adaptive":
        assert message == "adaptive thinking is not supported on this model"
    else:
        assert message.startswith(f'"thinking.type.{kind}" is not supported for this model')


@pytest.mark.parametrize(
    ("model", "kind", "advice"),
    [
        (
            "claude-opus-5",
            "enabled",
            '. Use "thinking.type.adaptive" and "output_config.effort" to control thinking behavior.',
        ),
        (
            "claude-opus-5-5",
            "disabled",
            '. Use "thinking.type.adaptive" and "output_config.effort" to control thinking behavior.',
        ),
        (
            "claude-fable-5",
            "disabled",
            ". Thinking defaults to adaptive mode when not specified; use "
            '"thinking.type.enabled" with "budget_tokens" for extended thinking.',
        ),
        ("claude-sonnet-5-5", "disabled", '. Use "thinking.type.between_tools" for the lowest thinking setting'),
        ("claude-opus-4-6", "between_tools", ""),
    ],
)
def test_the_refusal_of_a_thinking_type_gives_anthropics_advice(model, kind, advice):
    assert said(ask(model, thinking=THINKING[kind])).startswith(
        f'"thinking.type.{kind}" is not supported for this model{advice}'
    )


@EVERY_MODEL
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "dice"}], ids=str)
def test_tools_are_forced_where_the_model_lets_them_be(model, choice):
    message = said(ask(model, tools=[TOOL], tool_choice=choice))
    expected = 'tool_choice: type "tool" and "any" are not supported for this model.'
    assert message == ("" if TABLE[model]["forced"] == "forced" else expected)


@EVERY_MODEL
def test_system_messages_are_taken_where_the_model_takes_them(model):
    message = said(ask(model, messages=[HELLO, {"role": "system", "content": "It rains."}]))
    assert message == ("" if TABLE[model]["system"] == "system" else "role 'system' is not supported on this model")


@EVERY_MODEL
@pytest.mark.parametrize("effort", ["low", "medium", "high", "xhigh", "max"])
def test_effort_levels_are_taken_as_the_model_takes_them(model, effort):
    message, levels = said(ask(model, output_config={"effort": effort})), TABLE[model]["efforts"].split()
    if effort in levels:
        assert message == ""
    elif levels:
        supported = ", ".join(sorted(levels))
        assert message == f"This model does not support effort level '{effort}'. Supported levels: {supported}."
    else:
        assert message == "This model does not support the effort parameter."


@pytest.mark.parametrize(
    ("model", "kind", "effort", "accepted"),
    [
        *[("claude-opus-5", "disabled", level, True) for level in ("low", "medium", "high", None)],
        *[("claude-opus-5", "disabled", level, False) for level in ("xhigh", "max")],
        *[("claude-haiku-5-5", "disabled", level, level != "xhigh") for level in ("high", "xhigh", None)],
        *[("claude-sonnet-5-5", "between_tools", level, level != "max") for level in ("low", "high", "max", None)],
        *[("claude-sonnet-5", "disabled", level, True) for level in ("high", "max")],
        *[("claude-opus-4-8", "disabled", level, True) for level in ("high", "max")],
    ],
)
def test_thinking_can_be_switched_off_at_some_efforts_only(model, kind, effort, accepted):
    message = said(ask(model, thinking=THINKING[kind], output_config={"effort": effort}))
    expected = f"output_config.effort '{effort}' is not supported when thinking is disabled on this model"
    assert message == "" if accepted else message.startswith(expected)


@pytest.mark.parametrize(
    "model", ["claude-opus-4-1-20250805", "claude-sonnet-4-0", "claude-3-opus-20240229", "claude-mythos-preview"]
)
def test_a_retired_model_is_not_found(model):
    assert refused(ask(model)) == (404, "not_found_error", f"model: {model}")


@pytest.mark.parametrize(
    "model", ["gpt-6", "anthropic/claude-opus-5", "claude-sonnet-latest", "claude-opus-5-20260724"]
)
def test_a_name_that_anthropic_does_not_know_is_not_found(model):
    assert refused(ask(model)) == (404, "not_found_error", f"model: {model}")


def test_a_model_goes_on_the_day_it_retires():
    before, after = (datetime(2026, 11, day, tzinfo=UTC).timestamp() for day in (29, 30))
    assert refused(ask("claude-sonnet-4-5"), now=before) is None
    assert refused(ask("claude-sonnet-4-5"), now=after) == (404, "not_found_error", "model: claude-sonnet-4-5")


# ------------------------------------------------------------------------------------ rule by rule


CALL = {"type": "tool_use", "id": "t1", "name": "dice", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "6"}
FORCED = {"type": "any"}
ENABLED = THINKING["enabled"]
LONG = 4 * 200_001


def document(**more):
    return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}, **more}


ROWS = [
    # required fields and types
    ({"model": "claude-opus-5", "messages": [HELLO]}, "max_tokens: Field required"),
    ({"model": "claude-opus-5", "max_tokens": 1}, "messages: Field required"),
    (ask(max_tokens=True), "max_tokens: Input should be a valid integer"),
    (ask(max_tokens=-1), "max_tokens: Input should be greater than or equal to 0"),
    (ask(max_tokens="many"), "max_tokens: Input should be a valid integer"),
    (ask(messages="Hello"), "messages: Input should be a valid list"),
    (ask(messages=[]), "messages: at least one message is required"),
    (ask(messages=["Hello"]), "messages.0: Input should be a valid dictionary"),
    (ask(messages=[{"role": "user"}]), "messages.0.content: Field required"),
    (ask(messages=[{"content": "x"}]), "messages.0.role: Field required"),
    (
        ask(messages=[{"role": "tool", "content": "x"}]),
        "messages.0.role: Input should be 'user', 'assistant' or 'system'",
    ),
    (ask(messages=[{**HELLO, "name": "Bob"}]), "messages.0.name: Extra inputs are not permitted"),
    (ask(messages=[user({"text": "x"})]), "messages.0.content.0.type: Field required"),
    (
        ask(messages=[user({"type": "audio"})]),
        "messages.0.content.0: Input tag 'audio' found using 'type' does not match",
    ),
    (
        ask(messages=[user({"type": "text", "text": 1})]),
        "messages.0.content.0.text.text: Input should be a valid string",
    ),
    (ask(system=None), "system: Input should be a valid list"),
    (ask(system=[document()]), "system.0: Input tag 'document' found"),
    (ask(system=""), ""),
    (ask(stream="yes"), "stream: Input should be a valid boolean"),
    (ask(metadata={"user_id": None}), ""),
    (ask(metadata={"user": "u"}), "metadata.user: Extra inputs are not permitted"),
    (ask(service_tier="auto"), ""),
    (ask(service_tier="flex"), "service_tier: Input should be 'auto' or 'standard_only'"),
    (ask(n=1), "n: Extra inputs are not permitted"),
    (ask(presence_penalty=0), "presence_penalty: Extra inputs are not permitted"),
    # ranges
    (ask(temperature=None), "temperature: Input should be a valid number"),
    (ask(temperature=1.1), "temperature: range: 0..1"),
    (ask(temperature=-0.1), "temperature: range: 0..1"),
    (ask(temperature="1"), "temperature: Input should be a valid number"),
    (ask(top_p=1.01), "top_p: range: 0..1"),
    (ask(top_k=-1), ""),
    (ask(top_k=0.5), "top_k: Input should be a valid integer"),
    # lengths
    (ask(max_tokens=64_000), ""),
    (
        ask(max_tokens=99_999),
        "max_tokens: 99999 > 64000, which is the maximum allowed number of output tokens for claude-opus-4-5-20251101",
    ),
    (ask(messages=[user(text("x" * LONG))]), "prompt is too long: 200001 tokens > 200000 maximum"),
    (ask("claude-opus-4-6", messages=[user(text("x" * LONG))]), ""),
    (ask(max_tokens=64_000, messages=[user(text("x" * 4 * 190_000))]), ""),
    (ask(max_tokens=0), ""),
    (ask(max_tokens=0, stream=True), "max_tokens: 0 is not supported with stream"),
    (ask(max_tokens=0, tools=[TOOL], tool_choice=FORCED), "max_tokens: 0 is not supported with a tool_choice"),
    (ask(max_tokens=0, thinking=ENABLED), "`max_tokens` must be greater than `thinking.budget_tokens`"),
    # first role and order
    (ask(messages=[assistant(text("Hi.")), HELLO]), ""),
    (ask(messages=[HELLO, HELLO, assistant(text("a")), assistant(text("b")), HELLO]), ""),
    # empty texts
    (ask(messages=[{"role": "user", "content": ""}]), "messages.0: all messages must have non-empty content"),
    (ask(messages=[user(), HELLO]), "messages.0: all messages must have non-empty content"),
    (ask(messages=[HELLO, assistant()]), ""),
    (ask(messages=[assistant()]), "messages.0: all messages must have non-empty content"),
    (ask(messages=[user(text(""))]), "messages: text content blocks must be non-empty"),
    (ask(messages=[user(text(" \n"))]), "messages: text content blocks must contain non-whitespace text"),
    (ask(messages=[user(text("\u200b"))]), ""),
    (ask(system=[text("")]), "system: text content blocks must be non-empty"),
    (
        ask(messages=[user(text("", **mark()))]),
        "messages.0.content.0.text: cache_control cannot be set for empty text blocks",
    ),
    # stop sequences
    (ask(stop_sequences=[]), ""),
    (ask(stop_sequences=["\nUser:"]), ""),
    (ask(stop_sequences=["x", "\n"]), "stop_sequences: each stop sequence must contain non-whitespace"),
    (ask(stop_sequences="x"), "stop_sequences: Input should be a valid list"),
    (ask(stop_sequences=None), "stop_sequences: Input should be a valid list"),
    # prefill
    (
        ask(messages=[HELLO, assistant(text("Well, "))]),
        "messages: final assistant content cannot end with trailing whitespace",
    ),
    (ask(messages=[HELLO, assistant(text("Well, ")), HELLO]), ""),
    (
        ask(messages=[HELLO, assistant(text("Well,"))], thinking=ENABLED),
        "messages.1.content.0.type: Expected `thinking` or `redacted_thinking`, but found `text`",
    ),
    (
        ask("claude-opus-5", messages=[HELLO, assistant({"type": "server_tool_use", "id": "s", "name": "web_search"})]),
        "",
    ),
    # thinking
    (ask(thinking={"type": "enabled"}), "thinking.enabled.budget_tokens: Field required"),
    (
        ask(thinking={"type": "enabled", "budget_tokens": 1_000}),
        "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024",
    ),
    (
        ask(thinking={"type": "enabled", "budget_tokens": 2_000}),
        "`max_tokens` must be greater than `thinking.budget_tokens`",
    ),
    (ask(thinking={"type": "sometimes"}), "thinking: Input tag 'sometimes' found using 'type' does not match"),
    (
        ask("claude-opus-5", thinking={"type": "disabled", "display": "omitted"}),
        "thinking.disabled.display: Extra inputs are not permitted",
    ),
    (ask("claude-opus-5", thinking={"type": "adaptive", "display": "summarized"}), ""),
    (
        ask("claude-opus-5", thinking={"type": "adaptive", "display": "full"}),
        "thinking.adaptive.display: Input should be 'summarized' or 'omitted'",
    ),
    (
        ask(
            "claude-opus-5", thinking={"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "drop_block"}}
        ),
        "thinking.adaptive.block_binding: Extra inputs are not permitted",
    ),
    # samplers with thinking
    (
        ask(thinking=ENABLED, temperature=0.9),
        "`temperature` may only be set to 1 when thinking is enabled or in adaptive mode. Please consult",
    ),
    (ask("claude-opus-4-6", thinking=THINKING["adaptive"], temperature=0.9), "`temperature` may only be set to 1 when"),
    (ask(thinking=ENABLED, temperature=1), ""),
    (ask(thinking=ENABLED, top_p=0.97), ""),
    (
        ask(thinking=ENABLED, top_p=0.9),
        "`top_p` must be greater than or equal to 0.95 or unset when thinking is enabled",
    ),
    (ask(thinking=ENABLED, top_k=40), "`top_k` must be unset when thinking is enabled"),
    (ask(thinking=THINKING["disabled"], temperature=0.9, top_k=40), ""),
    # effort and format
    (ask("claude-opus-5", output_config={"effort": "min"}), "output_config.effort: Input should be 'low', 'medium'"),
    (ask("claude-opus-5", output_config={"effort": None}), ""),
    (
        ask("claude-opus-5", output_config={"verbosity": "low"}),
        "output_config.verbosity: Extra inputs are not permitted",
    ),
    (ask("claude-opus-5", output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}}), ""),
    # system messages
    (
        ask("claude-opus-5", messages=[{"role": "system", "content": "x"}, HELLO]),
        "messages.0: use the top-level 'system' parameter",
    ),
    (
        ask("claude-opus-5", messages=[HELLO, {"role": "system", "content": "x"}, HELLO]),
        "messages.1: a 'system' message must precede an 'assistant' message or end the array",
    ),
    (
        ask("claude-opus-5", messages=[HELLO, assistant(text("a")), {"role": "system", "content": "x"}]),
        "messages.2: a 'system' message must follow a 'user' message",
    ),
    (ask("claude-opus-5", messages=[HELLO, {"role": "system", "content": "x"}, assistant(text("a")), HELLO]), ""),
    # tools
    (ask(tools=[]), ""),
    (ask(tools=[TOOL], tool_choice={"type": "auto"}), ""),
    (
        ask(tools=[TOOL], tool_choice=FORCED, thinking=ENABLED),
        "Thinking may not be enabled when tool_choice forces tool use.",
    ),
    (ask(tools=[TOOL], tool_choice={"type": "tool", "name": "coin"}), "Tool 'coin' not found in provided tools"),
    (ask(tool_choice={"type": "auto"}), "tool_choice: `tool_choice` may only be specified while providing `tools`."),
    (ask(tools=[TOOL, TOOL]), "tools: Tool names must be unique."),
    (
        ask(tools=[{**TOOL, "name": "roll dice"}]),
        "tools.0.custom.name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'",
    ),
    (ask(tools=[{"name": "dice"}]), "tools.0.custom.input_schema: Field required"),
    (
        ask(tools=[{**TOOL, "input_schema": {"type": "object", "anyOf": [{"required": ["a"]}]}}]),
        "tools.0.custom.input_schema: input_schema does not support oneOf, allOf, or anyOf at the top level",
    ),
    (
        ask(tools=[TOOL], messages=[HELLO, assistant({**CALL, "name": "roll dice"}), user(RESULT)]),
        "messages.1.content.0.tool_use.name: String should match pattern '^[a-zA-Z0-9_-]{1,128}$'",
    ),
    (ask(tools=[{**TOOL, "input_schema": {}}]), "tools.0.custom.input_schema.type: Field required"),
    (
        ask(tools=[{"type": "function", "function": {}}]),
        "tools.0: Input tag 'function' found using 'type' does not match",
    ),
    (ask(tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}, TOOL]), ""),
    # calls and results
    (ask(messages=[HELLO, assistant(CALL), user(RESULT, text("so?"))]), ""),
    (
        ask(messages=[HELLO, assistant(CALL), HELLO]),
        "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: t1. Each",
    ),
    (
        ask(messages=[HELLO, assistant(CALL), user(text("so?"), RESULT)]),
        "messages.1: `tool_use` ids were found without",
    ),
    (
        ask(messages=[HELLO, assistant(text("a")), user(RESULT)]),
        "messages.2.content.0: unexpected `tool_use_id` found in",
    ),
    (
        ask(messages=[HELLO, assistant(CALL), user(RESULT), assistant(CALL), user(RESULT)]),
        "messages: `tool_use` ids must be unique",
    ),
    (
        ask(messages=[HELLO, assistant(CALL), user(RESULT, RESULT)]),
        "messages.2: each `tool_use` must have a single result",
    ),
    (ask(messages=[user(CALL)]), "messages.0.content.0: `tool_use` blocks can only be in `assistant` messages"),
    (
        ask(messages=[HELLO, assistant(CALL), user(RESULT)], thinking=ENABLED),
        "messages.1.content.0.type: Expected `thinking` or `redacted_thinking`, but found `tool_use`",
    ),
    (ask(messages=[HELLO, assistant(CALL), user(RESULT), assistant(text("6")), HELLO], thinking=ENABLED), ""),
    (ask("claude-opus-5", messages=[HELLO, assistant(CALL), user(RESULT)], thinking=THINKING["adaptive"]), ""),
    # cache marks
    (ask(messages=[user(*[text("x", **mark())] * 4)]), ""),
    (
        ask(messages=[user(*[text("x", **mark())] * 5)]),
        "A maximum of 4 blocks with cache_control may be provided. Found 5.",
    ),
    (
        ask(
            system=[text("x", **mark())] * 4,
            messages=[HELLO, assistant(CALL), user({**RESULT, "content": [text("6", **mark())]})],
        ),
        "A maximum of 4 blocks with cache_control may be provided. Found 5.",
    ),
    (
        ask(messages=[user(*[text("x", **mark())] * 4, text("y"))], **mark()),
        "A maximum of 4 blocks with cache_control may be provided. Found 5.",
    ),
    (
        ask(system=[text("x", **mark())], messages=[user(text("y", **mark("1h")))]),
        "messages.0.content.0.cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' "
        "cache_control block. Note that blocks are processed in the following order: `tools`, `system`, `messages`.",
    ),
    (ask(tools=[{**TOOL, **mark()}], system=[text("x", **mark("1h"))]), "system.0.cache_control.ttl: a ttl='1h'"),
    (ask(tools=[{**TOOL, **mark("1h")}], system=[text("x", **mark())]), ""),
    (
        ask(system=[text("x", **mark())], **mark("1h")),
        "cache_control.ttl: a ttl='1h' cache_control block must not come after",
    ),
    (
        ask(messages=[user(text("x", **mark()))], **mark("1h")),
        "cache_control.ttl: the last block already has another ttl",
    ),
    (ask(messages=[user(text("x", **mark()))], **mark()), ""),
    (
        ask(messages=[user(text("x", **mark("2h")))]),
        "messages.0.content.0.text.cache_control.ttl: Input should be '5m' or '1h'",
    ),
    (ask(cache_control={"type": "persistent"}), "cache_control.type: Input should be 'ephemeral'"),
    (ask(cache_control=None), ""),
    (
        ask(messages=[HELLO, assistant({"type": "redacted_thinking", "data": "d", **mark()}, text("a")), HELLO]),
        "messages.1.content.0.redacted_thinking.cache_control: Extra inputs are not permitted",
    ),
    # fields of betas
    (ask(context_management={"edits": []}), "context_management: Extra inputs are not permitted"),
    (ask(mcp_servers=[]), "mcp_servers: Extra inputs are not permitted"),
    # speed and place
    (ask("claude-opus-5", speed="fast"), ""),
    (ask("claude-opus-4-6", speed="fast"), "speed: fast mode is not supported for claude-opus-4-6"),
    (ask("claude-opus-4-6", inference_geo="us"), ""),
    (ask("claude-opus-4-5", inference_geo="us"), "inference_geo: not supported for this model"),
]


@pytest.mark.parametrize(
    ("body", "message"), ROWS, ids=[f"{i}: {message[:50] or 'accepted'}" for i, (_, message) in enumerate(ROWS)]
)
def test_a_request_is_refused_in_anthropics_words_or_accepted(body, message):
    assert said(body)[: len(message) or None] == message


@pytest.mark.parametrize(
    ("body", "version", "message"),
    [
        (
            ask(messages=[HELLO, assistant(document(), text("a")), HELLO]),
            NEW,
            "messages.1.content.0: `document` blocks are not permitted in `assistant` messages",
        ),
        (ask(messages=[HELLO, assistant(document(), text("a")), HELLO]), OLD, ""),
        (
            ask(messages=[user(text("x", citations=[{"type": "char_location"}]))]),
            NEW,
            "messages.0.content.0.text.citations: citations are not permitted",
        ),
        (ask(messages=[user(text("x", citations=[]))]), NEW, ""),
    ],
)
def test_the_newest_version_refuses_documents_and_citations_in_the_wrong_places(body, version, message):
    assert said(body, version=version)[: len(message) or None] == message


@pytest.mark.parametrize(
    ("field", "beta"),
    [
        ({"context_management": {"edits": []}}, "context-management-2025-06-27"),
        ({"mcp_servers": []}, "mcp-client-2025-11-20"),
        ({"output_config": {"task_budget": {"type": "tokens", "total": 20_000}}}, "task-budgets-2026-03-13"),
        ({"thinking": {"type": "adaptive", "display": "updates"}}, "thinking-display-updates-2026-08-18"),
        (
            {"thinking": {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "error"}}},
            "thinking-binding-controls-2026-08-01",
        ),
    ],
    ids=str,
)
def test_a_field_of_a_beta_needs_its_header(field, beta):
    assert said(ask("claude-opus-5", **field), betas=beta) == ""
    assert said(ask("claude-opus-5", **field)) != ""


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": 5},
        {"temperature": 1},
        {"stream": True},
        {"stop_sequences": []},
        {"metadata": {}},
        {"service_tier": "auto"},
    ],
    ids=str,
)
def test_counting_tokens_takes_no_fields_of_generation(field):
    body = {"model": "claude-opus-4-5", "messages": [HELLO], "system": "s", "tools": [TOOL], "thinking": ENABLED}
    assert said(body, counting=True) == ""
    assert said(body | field, counting=True) == f"{next(iter(field))}: Extra inputs are not permitted"


def test_counting_tokens_checks_the_cache_marks_too():
    body = ask(system=[text("x", **mark())], messages=[user(text("y", **mark("1h")))])
    del body["max_tokens"]
    assert "must not come after" in said(body, counting=True)


# ------------------------------------------------------------------------------------------ images


def png(width=10, height=10):
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0"


def gif(width=10, height=10):
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0"


def jpeg(width=10, height=10, before=b""):
    return b"\xff\xd8" + before + b"\xff\xc0" + struct.pack(">HBHH", 17, 8, height, width) + b"\0" * 12


def webp(width=10, height=10):
    return b"RIFF\0\0\0\0WEBPVP8X" + b"\0" * 8 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def image(data, media_type="image/png"):
    encoded = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": encoded}}


SEGMENT = b"\xff\xe1" + struct.pack(">H", 40_002) + b"\xff" * 40_000


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (image(png()), ""),
        (image(gif(), "image/gif"), ""),
        (image(webp(), "image/webp"), ""),
        (image(jpeg(), "image/jpeg"), ""),
        (image(jpeg(before=SEGMENT), "image/jpeg"), ""),
        (
            image(jpeg()),
            "image.source.base64.data: The image was specified using the image/png media type, but the image appears "
            "to be a image/jpeg image",
        ),
        (image(b"BM not an image"), "image.source.base64.data: Could not process image"),
        (image(png()[:18]), "image.source.base64.data: Could not process image"),
        (image(jpeg()[:10], "image/jpeg"), "image.source.base64.data: Could not process image"),
        (image("not base64!"), "image.source.base64.data: Invalid base64 data"),
        (
            image(png(), "image/bmp"),
            "image.source.base64.media_type: Input should be 'image/jpeg', 'image/png', 'image/gif'",
        ),
        (image(png(8_000, 8_000)), ""),
        (
            image(png(8_001, 10)),
            "image.source.base64.data: At least one of the image dimensions exceed max allowed size: 8000 pixels",
        ),
        (image(webp(10, 9_000), "image/webp"), "image.source.base64.data: At least one of the image dimensions exceed"),
        (
            image(png() + b"\0" * 3_932_160),
            "image.source.base64: image exceeds 5 MB maximum: 5242920 bytes > 5242880 bytes",
        ),
        ({"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}, ""),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_images_are_looked_at_wherever_they_stand(block, message):
    path = f"messages.0.content.1.{message}"
    assert said(ask(messages=[user(text("see"), block)]))[: len(path)] == (path if message else "")
    result = {**RESULT, "content": [block]}
    assert bool(said(ask(messages=[HELLO, assistant(CALL), user(result)]))) == bool(message)


def test_many_images_must_be_smaller():
    assert said(ask(messages=[user(*[image(png(2_100, 10))] * 20)])) == ""
    assert "many-image requests: 2000 pixels" in said(ask(messages=[user(*[image(png(2_100, 10))] * 21)]))


# ------------------------------------------------------------------------------ thinking sent back


def chat_with_thought(model="claude-opus-5-5", shown="hm"):
    """A request and the reply's thinking block, signed for it."""
    first = ask(model, system=[text("s")], messages=[user(text("a"))])
    return first, {"type": "thinking", "thinking": shown, "signature": sign(model, "hm", row(first))}


def again(first, *turns, **changes):
    return {**first, "messages": [*first["messages"], *turns], **changes}


def test_a_thinking_block_sent_back_as_it_was_is_accepted():
    first, thought = chat_with_thought()
    assert said(again(first, assistant(thought, text("b")), HELLO)) == ""


def test_a_thinking_block_whose_text_was_omitted_is_accepted():
    first, thought = chat_with_thought(shown="")
    assert said(again(first, assistant(thought, text("b")), HELLO)) == ""


def test_an_edited_thinking_block_is_refused():
    first, thought = chat_with_thought()
    edited = assistant({**thought, "thinking": "hmm"}, text("b"))
    assert said(again(first, edited, HELLO)).startswith(
        "messages.1.content.0: `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be mod"
    )
    assert said(again(first, edited, HELLO, assistant(text("c")), HELLO)) == (
        "messages.1.content.0: Invalid `signature` in `thinking` block"
    )


def test_a_signature_of_nobodys_is_refused():
    first, thought = chat_with_thought()
    assert "Invalid `signature`" in said(again(first, assistant({**thought, "signature": "c2ln"}, text("b")), HELLO))


@pytest.mark.parametrize("model", ["claude-fable-5-2", "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"])
def test_newer_models_bind_a_thinking_block_to_everything_before_it(model):
    first, thought = chat_with_thought(model)
    changed = again(first, assistant(thought, text("b")), HELLO, system=[text("S")])
    assert said(changed) == (
        "messages.1.content.0: Invalid `signature` in `thinking` block. The block is bound to a different "
        'conversation. Remove the block, or set `thinking.block_binding.prefix_mismatch_behavior` to "drop_block".'
    )
    dropping = {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "drop_block"}}
    assert said(changed | {"thinking": dropping}, betas="thinking-binding-controls-2026-08-01") == ""


def test_older_models_do_not_bind_their_thinking():
    first, thought = chat_with_thought("claude-opus-5")
    assert said(again(first, assistant(thought, text("b")), HELLO, system=[text("S")])) == ""


def test_marks_settings_and_other_thinking_do_not_part_a_block_from_its_conversation():
    first, thought = chat_with_thought()
    marked = {"system": [text("s", **mark())], "output_config": {"effort": "low"}}
    second = again(first, assistant(thought, text("b")), user(text("c")))
    later = {"type": "thinking", "thinking": "hm", "signature": sign(first["model"], "hm", row(second))}
    assert said(again(first, assistant(text("b")), user(text("c")), assistant(later, text("d")), HELLO, **marked)) == ""


def test_the_thinking_of_another_model_is_dropped_silently():
    first, thought = chat_with_thought("claude-fable-5-1")
    assert said(again(first, assistant(thought, text("b")), HELLO, model="claude-opus-5-5", system="S")) == ""


# ----------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-api-key": "sk-ant-api03-a"}, ("api_key", "sk-ant-api03-a")),
        ({"authorization": "Bearer sk-ant-api03-a"}, ("api_key", "sk-ant-api03-a")),
        (
            {"authorization": "Bearer sk-ant-oat01-a", "anthropic-beta": "oauth-2025-04-20"},
            ("platform", "sk-ant-oat01-a"),
        ),
        (
            {"authorization": "bearer sk-ant-oat01-subscription", "anthropic-beta": "x, oauth-2025-04-20"},
            ("subscription", "sk-ant-oat01-subscription"),
        ),
        ({"x-api-key": "sk-ant-api03-a", "authorization": "Bearer sk-ant-oat01-a"}, ("api_key", "sk-ant-api03-a")),
        ({}, (401, "authentication_error", "x-api-key header is required")),
        ({"x-api-key": "password"}, (401, "authentication_error", "invalid x-api-key")),
        ({"x-api-key": "sk-ant-oat01-a"}, (401, "authentication_error", "invalid x-api-key")),
        ({"authorization": "Bearer token"}, (401, "authentication_error", "Invalid bearer token")),
        ({"authorization": "Basic sk-ant-api03-a"}, (401, "authentication_error", "Invalid bearer token")),
        (
            {"authorization": "Bearer sk-ant-oat01-a"},
            (401, "authentication_error", "OAuth authentication is currently not supported."),
        ),
    ],
    ids=str,
)
def test_a_credential_is_known_by_its_beginning(headers, expected):
    assert credential(headers) == expected


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"anthropic-version": OLD}, None),
        ({"anthropic-version": NEW, "anthropic-beta": ""}, None),
        ({}, "anthropic-version: header is required"),
        ({"anthropic-version": "2025-01-01"}, 'anthropic-version: "2025-01-01" is not a valid version'),
        (
            {"anthropic-version": OLD, "anthropic-beta": "output-128k-2025-02-19,time-travel-2031-01-01"},
            "Unexpected value(s) `time-travel-2031-01-01` for the `anthropic-beta` header. Please",
        ),
    ],
    ids=str,
)
def test_version_and_betas_must_be_known(headers, message):
    found = refusal_of_headers(headers)
    assert found is None if message is None else (found.status == 400 and found.message.startswith(message))


def test_betas_are_told_apart_whatever_blanks_stand_between_them():
    assert betas_of({"anthropic-beta": " a ,b,, c"}) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("system", "accepted"),
    [
        (REQUIRED_SYSTEM_LINE, True),
        ([text(REQUIRED_SYSTEM_LINE), text("more")], True),
        ([text("more"), text(REQUIRED_SYSTEM_LINE)], False),
        ("You are Seraphina.", False),
    ],
)
def test_a_subscription_serves_requests_that_begin_with_the_required_line_alone(system, accepted):
    only = "This credential is only authorized for use with Claude Code and cannot be used for other API requests."
    assert said(ask(system=system), kind="subscription") == ("" if accepted else only)
    assert said(ask(system=system), kind="platform") == ""
    assert said(ask(), kind="subscription") == only


def test_the_long_context_beta_is_refused_to_subscriptions_on_models_that_need_it():
    body = ask("claude-sonnet-4-5", system=REQUIRED_SYSTEM_LINE)
    expected = "The long context beta is not yet available for this subscription."
    assert said(body, kind="subscription", betas="context-1m-2025-08-07") == expected
    assert said(body | {"model": "claude-opus-5"}, kind="subscription", betas="context-1m-2025-08-07") == ""
    assert said(body, kind="api_key", betas="context-1m-2025-08-07") == ""


# -------------------------------------------------------------------------- what real clients send


@cache
def shapes():
    """One request of each sort in the recorded chats: by model, settings, last role and number of marks."""
    found = {}
    for name, requests in traces().items():
        for request in requests:
            rest = {key: value for key, value in request["body"].items() if key not in ("messages", "system")}
            marks = json.dumps(request["body"]).count("cache_control")
            found.setdefault((name, json.dumps(rest), request["body"]["messages"][-1]["role"], marks), request)
    return found


@pytest.mark.parametrize("name", traces())
def test_every_recorded_request_is_accepted_or_its_model_is_retired(name):
    for request in traces()[name]:
        body = request["body"]
        found = refusal(body, request["headers"], BY_ID.get(body["model"]), "api_key", NOW)
        assert found == ((404, "not_found_error", "model: claude-sonnet-4-0") if name == "swipes" else None)


@EVERY_MODEL
def test_every_sort_of_recorded_request_meets_the_restrictions_of_every_model(model):
    takes = TABLE[model]
    for request in shapes().values():
        body = {**request["body"], "model": model}
        samplers = {name for name in ("temperature", "top_p", "top_k") if name in body}
        kind = body.get("thinking", {}).get("type")
        breaks = [
            takes["sampling"] == "none" and samplers,
            takes["sampling"] == "one" and samplers >= {"temperature", "top_p"},
            takes["prefill"] != "prefill" and body["messages"][-1]["role"] == "assistant",
            kind and kind not in takes["thinking"].split(),
            "output_config" in body and body["output_config"]["effort"] not in takes["efforts"].split(),
        ]
        assert bool(said(body)) == any(breaks)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1).filter(lambda words: words.strip())


@st.composite
def normal_requests(draw):
    """What a program written against the SDK's types sends: nothing a model refuses, everything else in any mix."""
    model = draw(st.sampled_from([model for model in MODELS.all if not model.gone(NOW)]))
    kept = draw(st.integers(1, 4))
    turns = [{"role": ("user", "assistant")[i % 2], "content": draw(WORDS)} for i in range(2 * kept - 1)]
    if draw(st.booleans()):
        turns[0] = {"role": "user", "content": [text(turns[0]["content"], **mark(draw(st.sampled_from(["5m", "1h"]))))]}
    request = {"model": model.id, "max_tokens": draw(st.integers(2_000, model.max_output)), "messages": turns}
    if draw(st.booleans()):
        request["system"] = draw(st.one_of(WORDS, WORDS.map(lambda words: [text(words)])))
    if draw(st.booleans()):
        request["stop_sequences"] = draw(st.lists(WORDS, max_size=3))
    if draw(st.booleans()):
        request["tools"] = [{**TOOL, "description": draw(WORDS)}]
        request["tool_choice"] = draw(st.sampled_from([{"type": "auto"}, {"type": "none"}]))
    if kind := draw(st.sampled_from([None, *sorted(model.thinking)])):
        request["thinking"] = THINKING[kind]
    if model.efforts and draw(st.booleans()):
        request["output_config"] = {"effort": draw(st.sampled_from(model.off_efforts or model.efforts))}
    if draw(st.booleans()):
        request["metadata"] = {"user_id": draw(WORDS)}
    return request


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(0, 2) | st.sampled_from(["", " ", "text", "5m", "tool"]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "ttl"]), inside),
    max_leaves=6,
)
EVERYTHING = ask(
    "claude-opus-4-6",
    system=[text("s", **mark())],
    tools=[{**TOOL, **mark("1h")}],
    tool_choice={"type": "auto"},
    messages=[
        user(text("a"), image(png())),
        assistant({"type": "redacted_thinking", "data": "d"}, CALL),
        user({**RESULT, "content": [image(png()), text("b", **mark())]}, document(citations={"enabled": True})),
    ],
    thinking=ENABLED,
    output_config={"effort": "low"},
    cache_control=None,
    stop_sequences=["x"],
    temperature=1,
)


def places(value, path=()):
    """The path of everything in a body."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in inside for found in places(child, (*path, key)))]


def with_other(value, path, other):
    if not path:
        return other
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = with_other(value[path[0]], path[1:], other)
    return changed


NEWER = ask(
    "claude-opus-5",
    tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}],
    tool_choice={"type": "tool", "name": "dice"},
    messages=[
        user(text("a")),
        {"role": "system", "content": [text("x")]},
        assistant({"type": "thinking", "thinking": "", "signature": sign("claude-opus-5", "hm", [])}, text("b")),
        {"role": "user", "content": "c"},
    ],
    thinking={"type": "adaptive", "display": "omitted"},
    speed="fast",
    **mark(),
)


@pytest.mark.parametrize("body", [EVERYTHING, NEWER], ids=["older model", "newer model"])
def test_a_body_with_a_bit_of_everything_is_accepted(body):
    assert said(body) == ""


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([(body, path) for body in (EVERYTHING, NEWER) for path in places(body)[1:]]),
    JSON,
    st.sampled_from([OLD, NEW]),
    st.booleans(),
)
def test_nothing_odd_anywhere_in_a_body_breaks_the_rules_or_the_accounting(place, other, version, counting):
    body, path = place
    model = BY_ID[body["model"]]
    body = with_other(body, path, other)
    found = refusal(body, {"anthropic-version": version}, model, "api_key", NOW, counting=counting)
    if found is None:
        assert read_prompt(body, model).tokens > 0
    else:
        assert found.status == 400
        assert found.message


class CheckingTransport(httpx2.BaseTransport):
    """Takes what the SDK puts on the wire, and answers with what the rules say about it."""

    def handle_request(self, request):
        headers = dict(request.headers)
        body = json.loads(request.content)
        kind, _ = credential(headers)
        found = refusal(body, headers, BY_ID.get(body["model"]), kind, NOW)
        return httpx2.Response(found.status if found else 200, json={"refusal": found and found.message})


@settings(max_examples=200, deadline=None)
@given(normal_requests())
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Using Claude with")
def test_what_the_official_client_sends_for_a_normal_program_is_accepted(request):
    with httpx2.Client(transport=CheckingTransport()) as wire:
        client = anthropic.Anthropic(api_key="sk-ant-api03-test", http_client=wire, max_retries=0)
        client.with_options(timeout=60).messages.create(**request)
