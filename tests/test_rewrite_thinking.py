import pytest

from server.lesson import Lesson
from server.rewrite.thinking import BUDGETS, effort_for, fit_thinking, nearest
from tests.steps import HELLO, asked, assistant, details, knowing, user

CALL = {"type": "tool_use", "id": "a", "name": "x", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "y"}
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "abc"}


def sent(model, thinking=None, effort=None, lessons=(), **body):
    given = {"thinking": thinking} if thinking is not None else {}
    given |= {"output_config": {"effort": effort}} if effort else {}
    request = fit_thinking(asked(model, **given, **body), knowing(lessons=lessons, model=model))
    return request.body.get("thinking"), (request.body.get("output_config") or {}).get("effort")


ADAPTIVE, OFF, BETWEEN = {"type": "adaptive"}, {"type": "disabled"}, {"type": "between_tools"}
SHOWN = {"type": "adaptive", "display": "summarized"}


def budget(tokens):
    return {"type": "enabled", "budget_tokens": tokens}


@pytest.mark.parametrize(
    ("model", "thinking", "effort"),
    [
        ("claude-opus-5", SHOWN, "max"),
        ("claude-opus-4-6", budget(2_000), "max"),
        ("claude-haiku-4-5", budget(2_000), None),
        ("claude-haiku-5-5", OFF, "high"),
        ("claude-sonnet-5-5", BETWEEN, "low"),
        ("claude-opus-4-5", None, "high"),
        ("claude-opus-9", ADAPTIVE, "xhigh"),
    ],
)
def test_what_the_model_takes_passes(model, thinking, effort):
    assert sent(model, thinking, effort) == (thinking, effort)


@pytest.mark.parametrize(
    ("tokens", "effort"), [(1_024, "low"), (4_096, "medium"), (10_000, "high"), (31_999, "xhigh"), (60_000, "max")]
)
def test_a_budget_becomes_an_effort_with_its_thinking_shown_as_before(tokens, effort):
    assert sent("claude-opus-4-8", budget(tokens)) == (SHOWN, effort)


def test_an_effort_that_was_named_goes_before_the_budget():
    assert sent("claude-opus-5", budget(60_000), "low") == (SHOWN, "low")
    assert sent("claude-opus-5", {**budget(60_000), "display": "omitted"}, "low")[0] == {
        "type": "adaptive",
        "display": "omitted",
    }


@pytest.mark.parametrize(("effort", "tokens"), [("low", 1_024), ("medium", 4_096), ("max", 48_000), (None, 10_000)])
def test_an_effort_becomes_a_budget_where_thinking_has_one(effort, tokens):
    assert sent("claude-haiku-4-5", ADAPTIVE, effort) == (budget(tokens), None)


@pytest.mark.parametrize("level", BUDGETS)
def test_there_and_back_again_is_the_same_level(level):
    assert effort_for(BUDGETS[level]) == level


@pytest.mark.parametrize(
    ("model", "effort", "taken"),
    [
        ("claude-opus-4-6", "xhigh", "high"),
        ("claude-opus-4-5", "max", "high"),
        ("claude-opus-5", "min", "low"),
        ("claude-opus-5", "auto", None),
        ("claude-sonnet-4-5", "high", None),
    ],
)
def test_an_effort_the_model_lacks_becomes_the_nearest_it_has(model, effort, taken):
    assert sent(model, None, effort) == (None, taken)


@pytest.mark.parametrize(
    ("model", "thinking", "effort", "wanted"),
    [
        ("claude-fable-5-1", OFF, "max", (None, "low")),
        ("claude-opus-5-5", OFF, None, (None, "low")),
        ("claude-sonnet-5-5", OFF, "xhigh", (BETWEEN, "high")),
        ("claude-opus-5", OFF, "max", (OFF, "high")),
        ("claude-opus-5", BETWEEN, None, (OFF, None)),
        ("claude-opus-4-8", BETWEEN, "max", (None, "max")),
        ("claude-haiku-4-5", BETWEEN, None, (None, None)),
        ("claude-opus-4-8", {**OFF, "display": "summarized", "budget_tokens": 9}, None, (OFF, None)),
    ],
)
def test_no_thinking_becomes_the_least_the_model_can_do(model, thinking, effort, wanted):
    assert sent(model, thinking, effort) == wanted


def test_odd_budgets_become_ones_the_api_takes():
    assert sent("claude-haiku-4-5", budget(5))[0] == budget(1_024)
    assert sent("claude-haiku-4-5", {"type": "enabled"})[0] == budget(10_000)
    assert sent("claude-haiku-4-5", {"budget_tokens": 3_000})[0] == budget(3_000)
    assert sent("claude-haiku-4-5", {**budget(2_000), "mood": 1})[0] == budget(2_000)
    assert sent("claude-haiku-4-5", budget("3000"))[0] == budget(3_000)
    assert sent("claude-haiku-4-5", budget(-1))[0] == budget(10_000)
    assert sent("claude-haiku-4-5", budget(0))[0] == OFF
    assert sent("claude-opus-5-5", budget(0)) == (None, "low")


def test_a_tool_call_that_lost_its_thinking_is_answered_without():
    loop = [HELLO, assistant("Let me see.", CALL), user(RESULT)]
    whole = [HELLO, assistant(THOUGHT, CALL), user(RESULT)]
    assert sent("claude-sonnet-4-6", budget(2_000), messages=loop) == (OFF, None)
    assert sent("claude-sonnet-4-5", ADAPTIVE, messages=loop) == (OFF, None)
    assert sent("claude-sonnet-4-6", budget(2_000), messages=whole) == (budget(2_000), None)
    assert sent("claude-sonnet-4-6", ADAPTIVE, messages=loop) == (ADAPTIVE, None)
    assert sent("claude-sonnet-4-6", budget(2_000), messages=[*loop, assistant("So."), HELLO]) == (budget(2_000), None)


def test_what_was_refused_is_asked_for_otherwise():
    refused = Lesson("thinking adaptive", "", "", "")
    assert sent("claude-opus-4-6", ADAPTIVE, "low", [refused]) == (budget(1_024), "low")
    assert sent("claude-opus-5", ADAPTIVE, "low", [refused]) == (None, "low")
    assert sent("claude-opus-5", ADAPTIVE, "max", [Lesson("efforts", "low medium", "", "")]) == (ADAPTIVE, "medium")
    assert sent("claude-opus-5", ADAPTIVE, "max", [Lesson("no_thinking", "", "", "", lasting=False)]) == (OFF, "high")


def test_the_change_is_told_in_a_players_words():
    request = fit_thinking(asked("claude-opus-5-5", thinking=budget(5_000)), knowing())
    assert details(request) == [
        "Thinking is adaptive instead of enabled and effort is medium: that is what Claude Opus 5.5 takes."
    ]
    off = fit_thinking(asked("claude-fable-5", thinking=OFF), knowing())
    assert details(off) == ["Left thinking out and effort is low: that is what Claude Fable 5 takes."]


def test_the_nearest_level_is_the_lower_of_two():
    assert nearest("xhigh", ("low", "medium", "high", "max")) == "high"
    assert nearest("high", ()) == nearest(3, ("low",)) == nearest(None, ("low",)) == ""
