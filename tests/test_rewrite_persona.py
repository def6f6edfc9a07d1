from server.presets import Persona
from server.rewrite.persona import add_persona
from tests.steps import HELLO, asked, assistant, knowing, text, user

MAREN = Persona(
    "maren",
    system="You are Maren.",
    suffix="Stay Maren.",
    suffix_thinking="Think as Maren.",
    settings={"top_k": 9, "max_tokens": 5},
)
CALL = {"type": "tool_use", "id": "a", "name": "x", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "y"}


def test_without_a_persona_nothing_changes():
    request = asked()
    assert add_persona(request, knowing()) is request


def test_the_system_text_goes_in_front_and_the_suffix_behind_the_users_last_words():
    sent = add_persona(
        asked(system="Be kind.", messages=[HELLO, assistant("Hm."), user("Well?")]), knowing(persona=MAREN)
    )
    assert sent.body["system"] == [text("You are Maren."), text("Be kind.")]
    assert sent.body["messages"] == [HELLO, assistant("Hm."), user("Well?", "Stay Maren.")]
    assert [change.name for change in sent.changes] == ["add_persona"]


def test_the_suffix_keeps_its_place_while_tools_are_called():
    messages = [user("Where is it?"), assistant(CALL), user(RESULT)]
    sent = add_persona(asked(messages=messages), knowing(persona=MAREN))
    assert sent.body["messages"] == [user("Where is it?", "Stay Maren."), *messages[1:]]


def test_a_thinking_request_gets_the_thinking_suffix():
    sent = add_persona(asked(thinking={"type": "adaptive"}), knowing(persona=MAREN))
    assert sent.body["messages"] == [user("Hello", "Think as Maren.")]
    off = add_persona(asked(thinking={"type": "disabled"}), knowing(persona=MAREN))
    assert off.body["messages"] == [user("Hello", "Stay Maren.")]


def test_settings_hold_where_the_request_has_none():
    sent = add_persona(asked(), knowing(persona=MAREN))
    assert (sent.body["top_k"], sent.body["max_tokens"]) == (9, 60_000)
    assert "top_k" not in add_persona(asked(counting=True), knowing(persona=MAREN)).body
