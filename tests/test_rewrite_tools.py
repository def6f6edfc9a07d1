import pytest

from server.lesson import Lesson
from server.rewrite.tools import fit_tools
from tests.steps import HELLO, asked, assistant, details, knowing, text, user

SCHEMA = {"type": "object", "properties": {}}
TOOL = {"name": "look_up", "input_schema": SCHEMA}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"place": "quay"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "Grey stone."}
LOST = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "No result was kept.", "is_error": True}


def sent(model="claude-opus-4-6", lessons=(), **body):
    return fit_tools(asked(model, **body), knowing(lessons=lessons, model=model))


def messages_of(*messages, **body):
    return sent(tools=[TOOL], messages=list(messages), **body).body["messages"]


def test_tools_in_order_pass_as_they_are():
    body = {"tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}], "tool_choice": {"type": "auto"}}
    request = asked(**body, messages=[HELLO, assistant("Let me see.", CALL), user(RESULT, "And?")])
    assert fit_tools(request, knowing()) is request


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([TOOL, TOOL], [TOOL]),
        ([{**TOOL, "name": "look up!"}], [{**TOOL, "name": "look_up_"}]),
        ([{"name": "wait"}], [{"name": "wait", "input_schema": {"type": "object"}}]),
        ([{**TOOL, "id": 3, "description": None}], [TOOL]),
        (
            [{"type": "function", "function": {"name": "look_up", "description": "x", "parameters": SCHEMA}}],
            [{**TOOL, "description": "x"}],
        ),
        ([{"name": "look_up", "parameters": SCHEMA}], [TOOL]),
        ([{"description": "nameless"}], None),
        (
            [
                {
                    "name": "x",
                    "input_schema": {"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}]},
                }
            ],
            [{"name": "x", "input_schema": {"type": "object", "properties": {"a": {}}}}],
        ),
        (
            [{"name": "x", "input_schema": {"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}}],
            [{"name": "x", "input_schema": {"type": "object", "properties": {"a": {}, "b": {}}}}],
        ),
        ([{"name": "x", "input_schema": {**SCHEMA, "anyOf": 7}}], [{"name": "x", "input_schema": SCHEMA}]),
    ],
)
def test_tools_are_mended(given, kept):
    assert sent(tools=given).body.get("tools") == kept


def test_a_call_that_lost_its_result_gets_one_that_says_so():
    assert messages_of(HELLO, assistant(CALL), user("Never mind.")) == [
        HELLO,
        assistant(CALL),
        user(LOST, "Never mind."),
    ]
    assert messages_of(HELLO, assistant(CALL)) == [HELLO, assistant(CALL), user(LOST)]


def test_a_result_that_lost_its_call_stays_as_words():
    assert messages_of(HELLO, assistant("Hm."), user(RESULT, "Well?"))[-1] == user(
        "[Tool result: Grey stone.]", "Well?"
    )
    inside = {**RESULT, "content": [text("Grey"), text("stone.")]}
    assert messages_of(user(inside)) == [user("[Tool result:]", "Grey", "stone.")]
    assert messages_of(HELLO, assistant(CALL), user(RESULT, RESULT))[-1] == user(RESULT, "[Tool result: Grey stone.]")


def test_results_come_before_the_users_words():
    assert messages_of(HELLO, assistant(CALL), user("Here:"), user(RESULT)) == [
        HELLO,
        assistant(CALL),
        user(RESULT, "Here:"),
    ]


def test_a_call_used_twice_gets_a_second_name_and_so_does_its_result():
    found = messages_of(HELLO, assistant(CALL), user(RESULT), assistant(CALL), user(RESULT))
    assert found[3:] == [assistant({**CALL, "id": "toolu_1_2"}), user({**RESULT, "tool_use_id": "toolu_1_2"})]


def test_two_calls_of_one_name_in_one_turn_are_told_apart():
    found = messages_of(HELLO, assistant(CALL, CALL), user(RESULT, {**RESULT, "content": "Wet."}))
    assert [block["id"] for block in found[1]["content"]] == ["toolu_1", "toolu_1_2"]
    assert [block["tool_use_id"] for block in found[2]["content"]] == ["toolu_1", "toolu_1_2"]


def test_arguments_kept_as_text_become_an_object_again():
    odd = {**CALL, "id": "call:1", "input": '{"place": "quay"}'}
    found = messages_of(HELLO, assistant(odd), user({**RESULT, "tool_use_id": "call:1"}))
    assert found[1:] == [assistant({**CALL, "id": "call_1"}), user({**RESULT, "tool_use_id": "call_1"})]


def test_blocks_on_the_wrong_side_become_words():
    found = messages_of(user(CALL, "Hi"), assistant(RESULT, "Hm."), HELLO)
    assert found == [
        user('[Tool call: look_up {"place": "quay"}]', "Hi"),
        assistant("[Tool result: Grey stone.]", "Hm."),
        HELLO,
    ]


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        ({"type": "tool", "name": "look_up"}, {"type": "tool", "name": "look_up"}),
        ({"type": "tool", "name": "sing"}, {"type": "auto"}),
        ({"type": "required"}, {"type": "any"}),
        ({"type": "function", "function": {"name": "look_up"}}, {"type": "tool", "name": "look_up"}),
        ({"type": "any", "name": "x"}, {"type": "any"}),
        ({}, {"type": "auto"}),
    ],
)
def test_choices_are_mended(choice, kept):
    assert sent(tools=[TOOL], tool_choice=choice).body["tool_choice"] == kept


def test_a_choice_without_tools_goes():
    assert "tool_choice" not in sent(tool_choice={"type": "auto"}).body
    assert "tool_choice" not in sent(tools=[], tool_choice={"type": "any"}).body


def test_a_forced_tool_is_asked_for_in_words_where_the_model_cannot_be_forced():
    choice = {"type": "tool", "name": "look_up", "disable_parallel_tool_use": True}
    request = sent("claude-opus-5-5", tools=[TOOL], tool_choice=choice)
    assert request.body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert request.body["messages"] == [HELLO, user("[Call the tool “look_up” in this reply.]")]
    assert details(request) == ["Asked for the tool in words: Claude Opus 5.5 cannot be forced to call one."]


def test_thinking_gives_way_to_a_forced_tool_where_both_are_refused():
    forced = {"tools": [TOOL], "tool_choice": {"type": "any"}}
    budget = {"type": "enabled", "budget_tokens": 2_000}
    assert sent("claude-sonnet-4-5", **forced, thinking=budget).body["thinking"] == {"type": "disabled"}
    assert sent("claude-sonnet-4-5", **forced, thinking={"type": "adaptive"}).body["thinking"] == {"type": "disabled"}
    assert sent("claude-opus-5", **forced, thinking=budget).body["thinking"] == budget  # which becomes adaptive there
    clash = Lesson("no_forced_thinking", "", "", "")
    assert sent("claude-opus-5", [clash], **forced).body["thinking"] == {"type": "disabled"}
    never_off = sent("claude-fable-5", [clash], **forced).body
    assert never_off["tool_choice"] == {"type": "auto"}


def test_a_refused_kind_of_tool_is_left_out():
    gone = Lesson("tool web_search_20250305", "web_search_20250305", "", "")
    search = {"type": "web_search_20250305", "name": "web_search"}
    assert sent(lessons=[gone], tools=[search, TOOL]).body["tools"] == [TOOL]
    alone = sent(lessons=[gone], tools=[search], tool_choice={"type": "auto"}).body
    assert alone.keys() & {"tools", "tool_choice"} == set()
