import pytest

from server.lesson import Lesson
from server.rewrite.max_tokens import fit_max_tokens
from tests.steps import asked, details, knowing


def sent(model, tokens, lessons=(), **body):
    request = asked(model, **body)
    if tokens is None:
        request = request.without("test", "x", "max_tokens")
    else:
        request = request.but("test", "x", max_tokens=tokens)
    return fit_max_tokens(request, knowing(lessons=lessons, model=model))


def tokens_of(*args, **body):
    return sent(*args, **body).body.get("max_tokens")


def budget(tokens):
    return {"type": "enabled", "budget_tokens": tokens}


@pytest.mark.parametrize(
    ("model", "given", "body"),
    [
        ("claude-haiku-4-5", 300, {}),
        ("claude-opus-4-8", 300, {}),
        ("claude-opus-4-6", 300, {"thinking": {"type": "disabled"}}),
        ("claude-sonnet-5-5", 300, {"thinking": {"type": "between_tools"}}),
        ("claude-opus-5", 20_000, {}),
        ("claude-haiku-4-5", 2_000, {"thinking": budget(1_024)}),
        ("claude-opus-5", 0, {}),
    ],
)
def test_a_length_that_does_passes(model, given, body):
    assert tokens_of(model, given, **body) == given


def test_thinking_gets_room_beside_a_short_reply():
    assert tokens_of("claude-opus-5", 300) == 300 + 8_192
    assert tokens_of("claude-opus-5-5", 300) == 300 + 4_096  # its own effort is medium
    assert tokens_of("claude-opus-5-5", 300, output_config={"effort": "low"}) == 300 + 2_048
    assert (
        tokens_of("claude-opus-4-8", 300, thinking={"type": "adaptive"}, output_config={"effort": "max"})
        == 300 + 32_768
    )
    assert details(sent("claude-opus-5", 300))[-1] == (
        "Raised max_tokens from 300 to 8,492: it counts thinking too, which could eat up the reply."
    )


def test_a_budget_is_added_to_a_reply_it_would_not_leave_room_for():
    assert tokens_of("claude-haiku-4-5", 300, thinking=budget(1_024)) == 1_324
    assert tokens_of("claude-haiku-4-5", 1_024, thinking=budget(1_024)) == 2_048


def test_budget_and_reply_share_what_the_model_has():
    body = sent("claude-haiku-4-5", 60_000, thinking=budget(90_000)).body
    assert body["max_tokens"] == 64_000
    assert body["thinking"] == budget(32_000)


def test_a_length_above_the_models_is_cut():
    request = sent("claude-opus-4-5", 128_000)
    assert request.body["max_tokens"] == 64_000
    assert (
        details(request)[-1] == "Cut the reply length to 64,000 tokens, the most there is room for on Claude Opus 4.5."
    )


def test_a_missing_length_is_filled_in():
    assert tokens_of("claude-haiku-4-5", None) == 4_096
    assert tokens_of("claude-haiku-4-5", 0, stream=True) == 4_096
    assert tokens_of("claude-haiku-4-5", 0, thinking=budget(1_024)) == 4_096


def test_what_was_refused_is_kept_to():
    assert tokens_of("claude-opus-5", 20_000, [Lesson("max_tokens", "9000", "", "")]) == 9_000
    assert tokens_of("claude-opus-5", 20_000, [Lesson("room", "3000", "", "", lasting=False)]) == 3_000
    small = sent(
        "claude-haiku-4-5", 20_000, [Lesson("room", "900", "", "", lasting=False)], thinking=budget(4_000)
    ).body
    assert (small["max_tokens"], small.get("thinking")) == (900, None)


def test_counting_has_no_length():
    request = asked(counting=True)
    assert fit_max_tokens(request, knowing()) is request
