from server.lesson import Lesson
from server.rewrite.roles import fit_roles
from tests.steps import HELLO, asked, assistant, knowing, text, user

NOTE = {"role": "system", "content": "It rains."}
MARKED = user("[System note: It rains.]")
PICTURE = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}


def sent(messages, model="claude-opus-4-6", lessons=(), **body):
    return fit_roles(asked(model, messages=messages, **body), knowing(lessons=lessons, model=model)).body


def test_leading_system_messages_go_into_the_system_prompt():
    body = sent([NOTE, {"role": "system", "content": [text("It is night.")]}, HELLO], system="Be kind.")
    assert body["system"] == [text("Be kind."), text("It rains."), text("It is night.")]
    assert body["messages"] == [HELLO]


def test_a_chat_of_system_messages_alone_keeps_a_message():
    body = sent([NOTE])
    assert body["system"] == [text("It rains.")]
    assert body["messages"] == [user("[No text]")]


def test_system_messages_inside_the_chat_stay_where_the_model_takes_them():
    for messages in ([HELLO, NOTE, assistant("Hm."), HELLO], [HELLO, NOTE], [HELLO, NOTE, NOTE]):
        assert sent(messages, "claude-opus-5")["messages"] == messages


def test_elsewhere_they_become_marked_user_text_in_their_place():
    assert sent([HELLO, NOTE, assistant("Hm."), HELLO])["messages"] == [HELLO, MARKED, assistant("Hm."), HELLO]


def test_misplaced_ones_become_marked_user_text_on_any_model():
    for messages in ([HELLO, assistant("Hm."), NOTE], [HELLO, assistant("Hm."), NOTE, HELLO], [HELLO, NOTE, HELLO]):
        wanted = [MARKED if message is NOTE else message for message in messages]
        assert sent(messages, "claude-opus-5")["messages"] == wanted


def test_pictures_of_the_assistants_move_to_the_users_next_message():
    messages = [HELLO, assistant("Look:", PICTURE), user("Nice.")]
    assert sent(messages)["messages"] == [HELLO, assistant("Look:"), user(PICTURE, "Nice.")]
    assert sent([HELLO, assistant(PICTURE)])["messages"] == [HELLO, user(PICTURE)]


def test_greetings_and_neighbours_of_one_side_pass_because_the_api_takes_them():
    messages = [assistant("Maren waves."), HELLO, HELLO, assistant("Hm."), assistant("Well."), HELLO]
    assert sent(messages)["messages"] == messages


def test_an_upstream_that_refused_them_gets_them_otherwise():
    first = Lesson("user_first", "", "", "")
    assert sent([assistant("Maren waves."), HELLO], lessons=[first])["messages"][0] == user("[Start of the chat]")


def test_a_document_of_the_assistants_moves_where_the_version_refuses_it():
    page = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
    chat = [HELLO, assistant("Read.", page), user("And?")]
    assert sent(chat)["messages"] == chat
    assert sent(chat, version="2026-10-21")["messages"] == [HELLO, assistant("Read."), user(page, "And?")]
