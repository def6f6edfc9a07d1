"""Which chat a request belongs to, over chats of all shapes that front ends send."""

import pytest

from server.chats import KEPT, Chats
from tests.chats import Chat, words

SHAPES = {
    "plain": {},
    "long, with a note that moves": {"earlier": 60, "note": 4, "closing": "[Write on, in the past tense.]"},
    "without a system prompt": {"system": False, "closing": "[Write on.]"},
    "lore that comes and goes": {"lore": 8, "lore_at": 3, "earlier": 10},
    "swipes and edits": {"swipes": 0.4, "edits": 0.3, "earlier": 6},
    "a window that slides": {"earlier": 40, "limit": 20_000},
    "a group": {"group": 3, "quick": True, "earlier": 4},
    "summaries": {"summary": 3, "earlier": 8},
    "a prefill": {"prefill": "Understood. Here it goes:", "earlier": 2},
}


def asked(*texts):
    return {"messages": [{"role": "user", "content": text} for text in texts]}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_all_requests_of_a_chat_are_one_chat(shape):
    chats = Chats(b"secret")
    ids = {chats.recognise(body, "", t).id for t, body in Chat(turns=25, **shape).play()}
    assert len(ids) == 1


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_two_chats_with_the_same_character_played_in_turn_stay_two(shape):
    chats = Chats(b"secret")
    one, other = Chat(turns=12, **{**shape, "earlier": 20}), Chat(turns=12, **{**shape, "earlier": 20})
    other.story = [other.story[0], *((role, words(other.rng, 40)) for role, _ in other.story[1:])]  # the same greeting
    found = [set(), set()]
    for (t, first), (_, second) in zip(one.play(), other.play(), strict=False):
        found[0].add(chats.recognise(first, "", t).id)
        found[1].add(chats.recognise(second, "", t + 1).id)
    assert [len(ids) for ids in found] == [1, 1]
    assert found[0] != found[1]


def test_a_request_cut_otherwise_into_messages_is_the_same_chat():
    chats = Chats(b"secret")
    lines = [f"line {i} of the story" for i in range(20)]
    as_messages = chats.recognise(asked(*lines), "", 0)
    squashed = chats.recognise(asked("\n\n".join([*lines, "and the next"])), "", 1)
    assert as_messages.id == squashed.id


def test_the_same_words_under_another_key_are_another_chat():
    chats = Chats(b"secret")
    assert chats.recognise(asked("hello"), "key_1", 0).id != chats.recognise(asked("hello"), "key_2", 0).id


def test_a_chat_left_for_long_is_still_known_until_many_others_came():
    chats = Chats(b"secret")
    first = chats.recognise(asked("the first"), "", 0)
    for i in range(KEPT - 1):
        chats.recognise(asked(f"another, {i}"), "", i)
    assert chats.recognise(asked("the first", "goes on"), "", 999).id == first.id
    for i in range(KEPT):
        chats.recognise(asked(f"yet another, {i}"), "", i)
    assert chats.recognise(asked("the first", "goes on"), "", 999).id != first.id


def test_a_request_without_a_line_of_text_is_no_chat():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    assert Chats(b"s").recognise({"messages": [{"role": "user", "content": [image]}]}, "", 0) is None


def test_nothing_can_be_read_from_what_is_kept_of_a_chat():
    chat = Chats(b"secret").recognise(asked("the seventh lighthouse"), "", 0)
    assert b"lighthouse" not in b"".join(chat.lines)
    assert chat.lines != Chats(b"another").recognise(asked("the seventh lighthouse"), "", 0).lines
