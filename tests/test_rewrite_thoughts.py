from server.content import thought_digest
from server.lesson import Lesson
from server.request import Change
from server.rewrite.thoughts import fit_thoughts
from tests.steps import HELLO, asked, assistant, details, knowing, user

THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "abc"}
HIDDEN = {"type": "redacted_thinking", "data": "xyz"}
CALL = {"type": "tool_use", "id": "a", "name": "x", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "y"}
CHAT = [HELLO, assistant(THOUGHT, "Hi."), HELLO]
LOOP = [*CHAT, assistant(THOUGHT, CALL), user(RESULT)]


def sent(messages, model="claude-opus-5-5", lessons=(), changes=()):
    request = asked(model, messages=messages)
    request = request if not changes else request.noted(changes, "x")
    return fit_thoughts(request, knowing(lessons=lessons, model=model))


def test_thinking_that_may_still_fit_is_sent_back():
    assert sent(LOOP).body["messages"] == LOOP
    assert sent(LOOP, "claude-sonnet-4-5", changes="add_persona").body["messages"] == LOOP
    assert sent([HELLO, assistant(HIDDEN, "Hi."), HELLO]).changes == ()


def test_behind_a_changed_prompt_it_goes_where_models_bind_it_but_not_in_the_middle_of_tool_calls():
    request = sent(LOOP, changes="add_persona")
    assert request.body["messages"] == [HELLO, assistant("Hi."), *LOOP[2:]]
    assert details(request)[1:] == [
        "Took 1 block of earlier thinking out of the chat: Claude Opus 5.5 would refuse it."
    ]
    assert request.changes[0] == Change("add_persona", "x")


def test_what_is_changed_alike_in_every_turn_leaves_it_where_it_is():
    for change in ("add_system_line", "fit_fields", "fit_texts", "fit_images"):
        assert sent(LOOP, changes=change).body["messages"] == LOOP


def test_thinking_without_a_signature_or_in_the_wrong_place_goes_everywhere():
    unsigned = {"type": "thinking", "thinking": "Hm."}
    empty = {**THOUGHT, "signature": ""}
    for bad in (assistant(unsigned, "Hi."), assistant(empty, "Hi."), assistant("Hi.", THOUGHT)):
        assert sent([HELLO, bad, HELLO], "claude-sonnet-4-5").body["messages"] == [HELLO, assistant("Hi."), HELLO]
    assert sent([user(THOUGHT, "Hello")]).body["messages"] == [user("Hello")]
    assert sent([HELLO, assistant(THOUGHT), HELLO]).body["messages"] == [HELLO, HELLO]


def test_after_a_refusal_it_goes_first_outside_tool_calls_then_everywhere():
    earlier = Lesson("thoughts", thought_digest(THOUGHT), "", "")
    assert sent([HELLO, assistant(HIDDEN, "Hi."), HELLO], "claude-opus-5", [earlier]).changes == (), "another chat"
    all_ = Lesson("all_thoughts", "", "", "", lasting=False)
    assert sent(LOOP, "claude-opus-5", [earlier]).body["messages"] == [HELLO, assistant("Hi."), *LOOP[2:]]
    assert sent(LOOP, "claude-opus-5", [all_]).body["messages"] == [
        HELLO,
        assistant("Hi."),
        HELLO,
        assistant(CALL),
        user(RESULT),
    ]
