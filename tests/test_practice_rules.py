"""What the practice upstream refuses on any model, rule by rule, with the texts that go with it."""

import struct

import pytest

from tests.practice import (
    CALL,
    ENABLED,
    FORCED,
    NEW,
    OLD,
    RESULT,
    THINKING,
    TOOL,
    ask,
    document,
    gif,
    image,
    jpeg,
    mark,
    png,
    said,
    webp,
)
from tests.steps import HELLO, assistant, text, user

LONG = 4 * 200_001


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
