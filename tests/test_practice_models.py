"""The published restrictions of each model, as the practice upstream holds to them."""

from datetime import UTC, datetime

import pytest

from tests.practice import EVERY_MODEL, NEW, OLD, TABLE, THINKING, TOOL, ask, refused, said
from tests.steps import HELLO, assistant, text


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
