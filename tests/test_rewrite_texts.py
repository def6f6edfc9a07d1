import pytest

from server.rewrite.texts import fit_texts
from tests.steps import HELLO, asked, assistant, knowing, text, user


def test_blank_texts_and_messages_go_and_the_rest_stays():
    messages = [
        user("", "Hello", " \n"),
        assistant(""),
        {"role": "user", "content": "  "},
        {"role": "user", "content": "Well?"},
    ]
    sent = fit_texts(asked(messages=messages), knowing())
    assert sent.body["messages"] == [user("Hello"), {"role": "user", "content": "Well?"}]


def test_texts_inside_tool_results_count_too():
    result = {"type": "tool_result", "tool_use_id": "a", "content": [text(""), text("A bridge.")]}
    sent = fit_texts(asked(messages=[user(result)]), knowing())
    assert sent.body["messages"][0]["content"][0]["content"] == [text("A bridge.")]


def test_a_chat_with_nothing_in_it_gets_a_placeholder():
    assert fit_texts(asked(messages=[user(" ")]), knowing()).body["messages"] == [user("[No text]")]


@pytest.mark.parametrize(
    ("system", "kept"), [("  ", "gone"), ([text("")], "gone"), ([text("Be kind."), text("\t")], [text("Be kind.")])]
)
def test_blank_system_texts_go(system, kept):
    assert fit_texts(asked(system=system), knowing()).body.get("system", "gone") == kept


def test_a_zero_width_space_as_sillytavern_sends_it_is_a_text():
    request = asked(system=[text("\u200b")], messages=[HELLO, assistant("\u200b"), HELLO])
    assert fit_texts(request, knowing()) is request
