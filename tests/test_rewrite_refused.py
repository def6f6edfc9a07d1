from server.lesson import Lesson
from server.rewrite.refused import leave_out_refused
from tests.steps import HELLO, asked, assistant, details, knowing, text, user


def field(path):
    return Lesson(f"field {path}", path, "", "")


def test_fields_refused_before_are_left_out_wherever_they_stand():
    lessons = [
        field("service_tier"),
        field("tools.*.strict"),
        field("messages.*.content.*.citations"),
        field("thinking.display"),
    ]
    request = asked(
        service_tier="auto",
        tools=[{"name": "a", "strict": True}, {"name": "b"}],
        thinking={"type": "adaptive", "display": "omitted"},
        messages=[HELLO, user(text("Hi", citations=[]), text("Ho"))],
    )
    sent = leave_out_refused(request, knowing(lessons=lessons))
    assert (
        sent.body
        == asked(
            tools=[{"name": "a"}, {"name": "b"}], thinking={"type": "adaptive"}, messages=[HELLO, user("Hi", "Ho")]
        ).body
    )
    assert details(sent) == [
        "Left out service_tier, tools.strict, messages.content.citations, thinking.display: "
        "claude-opus-4-6 refused it before."
    ]


def test_an_object_left_empty_goes_too():
    sent = leave_out_refused(asked(metadata={"user_id": "x"}), knowing(lessons=[field("metadata.user_id")]))
    assert "metadata" not in sent.body


def test_kinds_of_content_refused_before_leave_a_note():
    lessons = [Lesson("block video", "video", "", "")]
    sent = leave_out_refused(asked(messages=[user("Look", {"type": "video", "source": {}})]), knowing(lessons=lessons))
    assert sent.body["messages"] == [user("Look", "[A video was left out here.]")]


def test_lessons_about_other_models_or_absent_fields_change_nothing():
    request = asked()
    assert leave_out_refused(request, knowing(lessons=[field("speed")])) is request
    assert (
        leave_out_refused(asked(speed="fast"), knowing(lessons=[field("speed")], model="claude-opus-5")).changes == ()
    )


def test_two_of_one_side_in_a_row_are_joined_where_that_was_refused():
    request = asked(messages=[HELLO, user("Well?"), assistant("Well."), user("So?")])
    sent = leave_out_refused(request, knowing(lessons=[Lesson("alternate", "", "", "")]))
    assert sent.body["messages"] == [user("Hello", "Well?"), assistant("Well."), user("So?")]
    assert details(sent) == ["Joined neighbouring messages of one side."]
    assert leave_out_refused(request, knowing()) is request
