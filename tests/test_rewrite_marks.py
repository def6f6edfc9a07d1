import pytest

from server.lesson import Lesson
from server.rewrite.marks import fit_marks
from tests.shapes import marked
from tests.steps import HELLO, asked, assistant, knowing, text, user

MARK = {"type": "ephemeral"}


def places(body):
    """Where the marks stand, and for how long."""
    found = [("top", body["cache_control"].get("ttl", "5m"))] if body.get("cache_control") else []
    for part in (body.get("tools", ()), body.get("system", ()), *(m["content"] for m in body["messages"])):
        for block in part if isinstance(part, list) else ():
            if block.get("cache_control"):
                found.append((block.get("text") or block.get("name"), block["cache_control"].get("ttl", "5m")))
    return found


def fitted(lessons=(), **body):
    return places(fit_marks(asked(**body), knowing(lessons=lessons)).body)


def test_good_marks_pass():
    request = asked(
        system=[marked(text("a"), "1h")], messages=[HELLO, user(marked(text("b"), "5m"))], cache_control=MARK
    )
    assert fit_marks(request, knowing()) is request


def test_of_too_many_the_first_and_the_last_stay():
    lines = [marked(text(str(i))) for i in range(7)]
    assert [name for name, _ in fitted(messages=[user(*lines)])] == ["0", "4", "5", "6"]
    assert [name for name, _ in fitted(messages=[user(*lines)], cache_control=MARK)] == ["top", "0", "5", "6"]


def test_an_hour_behind_five_minutes_becomes_five_minutes():
    body = {"system": [marked(text("a"), "5m")], "messages": [user(marked(text("b"), "1h"))]}
    assert fitted(**body) == [("a", "5m"), ("b", "5m")]


def test_a_top_mark_that_contradicts_the_last_block_goes():
    body = {"messages": [user(marked(text("b"), "5m"))], "cache_control": {**MARK, "ttl": "1h"}}
    assert fitted(**body) in ([("b", "5m")], [("top", "5m"), ("b", "5m")])
    other = {"messages": [user(marked(text("b"), "1h"))], "cache_control": MARK}
    assert fitted(**other) == [("b", "1h")]


def test_no_mark_stands_on_thinking():
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x", "cache_control": MARK}
    sent = fit_marks(asked(messages=[HELLO, assistant(thought, "Hi."), HELLO]), knowing()).body
    assert "cache_control" not in sent["messages"][1]["content"][0]


@pytest.mark.parametrize(
    ("mark", "mended"),
    [
        ({"type": "persistent"}, []),
        ("yes", []),
        ({**MARK, "ttl": "2h"}, [("a", "5m")]),
        ({**MARK, "x": 1}, [("a", "5m")]),
    ],
)
def test_odd_marks_are_mended(mark, mended):
    assert fitted(messages=[user({**text("a"), "cache_control": mark})]) == mended


def test_what_an_upstream_refused_is_kept_to():
    lines = [marked(text(str(i)), "1h") for i in range(4)]
    assert fitted([Lesson("marks", "2", "", "")], messages=[user(*lines)]) == [("0", "1h"), ("3", "1h")]
    assert fitted([Lesson("marks", "1", "", "")], messages=[user(*lines)]) == [("3", "1h")]
    assert fitted([Lesson("marks", "0", "", "")], messages=[user(*lines)]) == []
    assert fitted([Lesson("ttl", "", "", "")], messages=[user(*lines)]) == [(str(i), "5m") for i in range(4)]


def test_marks_inside_the_results_of_tools_count_too():
    inner = {"type": "tool_result", "tool_use_id": "a", "content": [marked(text("4")), text("5")]}
    system = [marked(text(name)) for name in "abcd"]
    body = fit_marks(asked(system=system, messages=[user(inner)]), knowing()).body
    assert [block["text"] for block in body["system"] if "cache_control" in block] == ["a", "c", "d"]
    assert body["messages"] == [user(inner)]
    late = {**inner, "content": [marked(text("4"), "1h"), text("5")]}
    body = fit_marks(asked(system=[marked(text("a"), "5m")], messages=[user(late)]), knowing()).body
    assert body["messages"][0]["content"][0]["content"] == [marked(text("4")), text("5")]
