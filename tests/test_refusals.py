"""The words of refusals as they were seen until 2026-11, and others that mean the same."""

import pytest

from server.content import image_digest, loop_start, thought_digest
from server.models import Models
from server.refusals import field_pattern, lesson_of
from server.request import ChatRequest
from tests.fakes import ASK
from tests.shapes import image
from tests.steps import HELLO, asked, assistant, text, user

MODELS = Models.load()
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "abc"}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
NOTE = {"role": "system", "content": "It rains."}
ENABLED, ADAPTIVE, OFF = {"type": "enabled", "budget_tokens": 2_000}, {"type": "adaptive"}, {"type": "disabled"}
FORCED = {"tools": [{"name": "x"}], "tool_choice": {"type": "any"}}
LONG = "The long context beta is not yet available for this subscription."


@pytest.mark.parametrize(
    ("words", "body", "rule", "value"),
    [
        # samplers
        (
            "`temperature` and `top_p` cannot both be specified for this model. Please use only one.",
            {"temperature": 0.9, "top_p": 0.9},
            "sampling",
            "one",
        ),
        ("`temperature` is deprecated for this model.", {"temperature": 0.9, "top_k": 3}, "sampling", "none"),
        ("top_p is deprecated for this model.", {"top_p": 0.9}, "sampling", "none"),
        ("temperature: Extra inputs are not permitted", {"temperature": 0.9}, "sampling", "none"),
        (
            "`temperature` may only be set to 1 when thinking is enabled or in adaptive mode.",
            {"temperature": 0.9},
            "thinking_samplers",
            "",
        ),
        ("top_k is not available on this model", {"temperature": 0.9, "top_k": 3}, "field top_k", "top_k"),
        # prefill
        (
            "This model does not support assistant message prefill. The conversation must end with a user message.",
            {},
            "prefill",
            "",
        ),
        ("Assistant prefill is unsupported.", {}, "prefill", ""),
        # thinking
        (
            '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and '
            '"output_config.effort" to control thinking behavior.',
            {"thinking": ENABLED},
            "thinking enabled",
            "adaptive",
        ),
        (
            '"thinking.type.disabled" is not supported for this model.'
            ' Use "thinking.type.between_tools" for the lowest thinking setting.',
            {"thinking": OFF},
            "thinking disabled",
            "between_tools",
        ),
        (
            'To turn thinking off on this model, send "thinking": {"type": "between_tools"} instead of '
            '{"type": "disabled"}.',
            {"thinking": OFF},
            "thinking disabled",
            "between_tools",
        ),
        ("adaptive thinking is not supported on this model", {"thinking": ADAPTIVE}, "thinking adaptive", ""),
        ("Thinking is not supported by this model.", {"thinking": ENABLED}, "thinking enabled", ""),
        (
            "messages.1.content.0.type: Expected `thinking` or `redacted_thinking`, but found `tool_use`",
            {"thinking": ENABLED},
            "no_thinking",
            "",
        ),
        (
            "Thinking may not be enabled when tool_choice forces tool use.",
            {**FORCED, "thinking": ENABLED},
            "no_forced_thinking",
            "",
        ),
        # effort
        ("This model does not support the effort parameter.", {"output_config": {"effort": "low"}}, "efforts", ""),
        (
            "This model does not support effort level 'xhigh'. Supported levels: high, low, max, medium.",
            {"output_config": {"effort": "xhigh"}},
            "efforts",
            "low medium high max",
        ),
        (
            "output_config.effort: Input should be 'low', 'medium' or 'high'",
            {"output_config": {"effort": "max"}},
            "efforts",
            "low medium high",
        ),
        ("effort max is not available to this organization", {"output_config": {"effort": "max"}}, "effort max", "max"),
        (
            "output_config.effort 'xhigh' is not supported when thinking is disabled on this model.",
            {"output_config": {"effort": "xhigh"}, "thinking": OFF},
            "off_effort xhigh",
            "xhigh",
        ),
        # tools
        ('tool_choice: type "tool" and "any" are not supported for this model.', FORCED, "forced_tools", ""),
        (
            "tools.0: 'web_search_20250305' is not supported on this model",
            {"tools": [SEARCH]},
            "tool web_search_20250305",
            "web_search_20250305",
        ),
        (
            "Web search is not enabled for your organization.",
            {"tools": [SEARCH]},
            "tool web_search_20250305",
            "web_search_20250305",
        ),
        # roles
        ("role 'system' is not supported on this model", {"messages": [HELLO, NOTE]}, "system_messages", ""),
        ("messages.1.role: Input should be 'user' or 'assistant'", {"messages": [HELLO, NOTE]}, "system_messages", ""),
        ('messages: first message must use the "user" role', {"messages": [assistant("Hi."), HELLO]}, "user_first", ""),
        (
            'messages: roles must alternate between "user" and "assistant", but found multiple "user" roles in a row',
            {},
            "alternate",
            "",
        ),
        # lengths
        (
            "max_tokens: 99999 > 64000, which is the maximum allowed number of output tokens for claude-x",
            {"max_tokens": 99_999},
            "max_tokens",
            "64000",
        ),
        ("max_tokens must be at most 8,192 for this model", {"max_tokens": 99_999}, "max_tokens", "8192"),
        (
            "input length and `max_tokens` exceed context limit: 196000 + 8192 > 200000, decrease input length",
            {"max_tokens": 8_192},
            "room",
            "4000",
        ),
        # headers
        (
            "Unexpected value(s) `candour-1` for the `anthropic-beta` header.",
            {"betas": ("candour-1", "effort-1")},
            "beta candour-1",
            "candour-1",
        ),
        (LONG, {"betas": ("context-1m-2026-01-01",)}, "beta context-1m-2026-01-01", "context-1m-2026-01-01"),
        ('anthropic-version: "2027-03-01" is not a valid version', {"version": "2027-03-01"}, "version", "2023-06-01"),
        # marks
        ("A maximum of 4 blocks with cache_control may be provided. Found 5.", {}, "marks", "4"),
        (
            "system.0.cache_control.ttl: Extra inputs are not permitted",
            {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
            "ttl",
            "",
        ),
        ("cache_control is not supported by this provider", {}, "marks", "0"),
        # anything else, by the name of the field
        ("candour: Extra inputs are not permitted", {"candour": 1}, "field candour", "candour"),
        (
            "tools.0.custom.strict: Extra inputs are not permitted",
            {"tools": [{"name": "x", "strict": True}]},
            "field tools.*.strict",
            "tools.*.strict",
        ),
        (
            "messages.0.content.0.text.zip: Extra inputs are not permitted",
            {"messages": [user(text("x", zip=1))]},
            "field messages.*.content.*.zip",
            "messages.*.content.*.zip",
        ),
        ("Fast mode is currently unavailable for this model", {"speed": "fast"}, "field speed", "speed"),
        (
            "This model takes at most 4 stop sequences",
            {"stop_sequences": ["a"] * 5},
            "field stop_sequences",
            "stop_sequences",
        ),
        (
            "thinking.display: Extra inputs are not permitted",
            {"thinking": {**ADAPTIVE, "display": "omitted"}},
            "field thinking.display",
            "thinking.display",
        ),
        (
            "messages.0.content.0: Input tag 'video' found using 'type' does not match any of the expected tags",
            {},
            "block video",
            "video",
        ),
    ],
)
def test_a_refusal_teaches(words, body, rule, value):
    found = lesson_of(words, asked(**body))
    assert (found.rule, found.value) == (rule, value)
    assert found.refused
    assert found.did


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ("prompt is too long: 214032 tokens > 200000 maximum", {}),
        ("Your credit balance is too low to access the Anthropic API.", {"metadata": {}}),
        ("You have reached your specified API usage limits.", {}),
        ("This credential is only authorized for use with Claude Code and cannot be used for other API requests.", {}),
        ("messages: text content blocks must be non-empty", {}),
        ("messages.0.content.0.text: too rude", {"messages": [user("x")]}),
        ("tools.0.custom.input_schema: JSON schema is invalid", {"tools": [{"name": "x", "input_schema": {}}]}),
        ("tools: Tool names must be unique.", {"tools": [{"name": "x"}]}),
        ("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024", {"thinking": ENABLED}),
        ("model: claude-x is not available", {}),
        ("candour: Extra inputs are not permitted", {}),
        ("Something went wrong.", {"metadata": {}, "speed": "fast"}),
        ("input length and `max_tokens` exceed context limit: 199990 + 8192 > 200000", {"max_tokens": 8_192}),
        ("", {}),
    ],
)
def test_other_refusals_teach_nothing(words, body):
    assert lesson_of(words, asked(**body)) is None


def test_a_picture_is_known_by_its_place_and_remembered_by_its_hash():
    request = asked(messages=[HELLO, user("Look", image(), image("AAAA"))])
    found = lesson_of("messages.1.content.2.image.source.base64.data: Could not process image", request)
    assert found.value == image_digest(image("AAAA"))
    everything = lesson_of("Could not process image", request)
    assert everything.value.split() == [image_digest(image()), image_digest(image("AAAA"))]
    inside = {"type": "tool_result", "tool_use_id": "a", "content": [text("x"), image("BBBB")]}
    nested = lesson_of(
        "messages.0.content.0.tool_result.content.1.image: Could not process image",
        asked(messages=[user(inside, image())]),
    )
    assert nested.value == image_digest(image("BBBB"))


def test_a_too_large_picture_is_shrunk_first_and_given_up_when_that_does_not_help():
    words = "At least one of the image dimensions exceed max allowed size for many-image requests: 1500 pixels"
    request = asked(messages=[user(image())])
    assert (lesson_of(words, request).rule, lesson_of(words, request).value) == ("image_pixels", "1500")
    shrunk = request.noted("fit_images", "Saved a picture anew, at most 1,500 pixels wide.")
    assert lesson_of(words, shrunk).rule.startswith("image ")


def test_a_limit_on_the_number_of_pictures_is_understood():
    request = asked(messages=[user(image(), image())])
    for words, most in (
        ("messages: too many images and documents: 105 + 0 > 100", "100"),
        ("This model does not support images.", "0"),
        ("Image inputs are not supported on this model", "0"),
    ):
        assert (lesson_of(words, request).rule, lesson_of(words, request).value) == ("most_images", most)


def test_thinking_sent_back_goes_outside_tool_calls_first():
    words = (
        "messages.1.content.0: Invalid `signature` in `thinking` block. The block is bound to a different conversation."
    )
    earlier = asked(messages=[HELLO, assistant(THOUGHT, "Hi."), HELLO])
    loop = asked(messages=[HELLO, assistant(THOUGHT, {"type": "tool_use"}), user({"type": "tool_result"})])
    assert lesson_of(words, earlier).rule == f"thoughts {thought_digest(THOUGHT)}"
    assert (lesson_of(words, loop).rule, lesson_of(words, loop).lasting) == ("all_thoughts", False)
    assert lesson_of(words, asked()) is None
    forged = {**THOUGHT, "signature": "forged"}
    both = asked(messages=[HELLO, assistant(THOUGHT, "Hi."), HELLO, assistant(forged, "Hi."), HELLO])
    assert lesson_of(words, both).value == thought_digest(THOUGHT)
    assert lesson_of(words.replace("messages.1", "messages.3"), both).value == thought_digest(forged)
    assert lesson_of("Invalid `signature` in `thinking` block", both).value == thought_digest(THOUGHT)


@pytest.mark.parametrize(
    ("words", "body", "rule"),
    [
        ("output_config.format: Structured outputs and prefill cannot be combined.", {}, "prefill"),
        ("Prefill is not supported while thinking is enabled.", {}, "prefill"),
        (
            "messages.1: role 'system' must precede an 'assistant' message or end the array",
            {"messages": [HELLO, NOTE, HELLO]},
            "system_messages",
        ),
        ("messages.0.content.0.text: cache_control cannot be set for empty text blocks", {}, "marks"),
        (
            "messages.0.content.0.cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' one",
            {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
            "ttl",
        ),
        (
            "tools.0.web_search_20250305.name: Input should be 'web_search'",
            {"tools": [{**SEARCH, "name": "search"}]},
            "tool web_search_20250305",
        ),
    ],
)
def test_what_was_only_out_of_place_is_not_held_against_the_model(words, body, rule):
    found = lesson_of(words, asked(**body))
    assert (found.rule, found.lasting) == (rule, False)


def test_of_a_tool_that_is_known_only_the_field_goes():
    words = "tools.0.web_search_20250305.max_fuss: Extra inputs are not permitted"
    found = lesson_of(words, asked(tools=[{**SEARCH, "max_fuss": 1}]))
    assert (found.rule, found.lasting) == ("field tools.*.max_fuss", True)
    needed = lesson_of(words.replace("max_fuss", "description"), asked(tools=[{**SEARCH, "description": "x"}]))
    assert (needed.rule, needed.lasting) == ("tool web_search_20250305", False)


def test_the_open_tool_loop_begins_behind_the_last_words_of_a_person():
    call, result = assistant({"type": "tool_use"}), user({"type": "tool_result"})
    assert loop_start([HELLO, call, result]) == 1
    assert loop_start([HELLO, call, result, assistant("So."), HELLO]) == 5
    assert loop_start([call, result]) == 0
    assert loop_start([HELLO, call]) == 1
    assert loop_start([HELLO, call, result, assistant("So")]) == 4  # a reply to be continued: the loop is closed


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("metadata.user_id", "metadata.user_id"),
        ("system.0.text.citations", "system.*.citations"),
        ("system.0.text", ""),
        ("system.0", ""),
        ("system.9.citations", ""),
        ("model", ""),
        ("metadata.user_id.x", ""),
        ("nothing", ""),
    ],
)
def test_a_path_is_found_in_the_body_or_not_at_all(path, pattern):
    body = {"model": "x", "metadata": {"user_id": "y"}, "system": [text("Be kind.", citations=None)]}
    assert field_pattern(path, body) == pattern


def test_a_place_in_the_chat_means_no_setting_whatever_words_follow():
    request = ChatRequest(body={**ASK, "top_k": 5, "metadata": {"user_id": "me"}})
    words = "messages.0.content.0.text: the phrase must not contain top_k or metadata"
    assert lesson_of(words, request) is None


def test_a_complaint_about_a_value_is_not_kept_for_later_requests():
    request = ChatRequest(body={**ASK, "metadata": {"user_id": "x" * 500}})
    learned = lesson_of("metadata.user_id: String should have at most 256 characters", request)
    assert (learned.rule, learned.lasting) == ("field metadata.user_id", False)
    assert lesson_of("metadata.user_id: Extra inputs are not permitted", request).lasting


def test_a_strange_key_of_the_body_breaks_no_reading():
    assert lesson_of("something_[ is not supported", ChatRequest(body={**ASK, "some_[thing(": 1})) is None
