"""Prompts as rows of digests: what is remembered of blocks, and what two prompts have in common."""

import pytest
from cache_bench import MODELS
from chats import Chat

from server import prefix
from server.prefix import Digests, picture_in, read_prompt

MODEL = MODELS.like("claude-sonnet-4-6")
SECRET = b"a secret of this test's own"


def picture(data="aGVsbG8=", media_type="image/png"):
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


BLOCKS = [
    {"type": "text", "text": "Hello."},
    {"type": "text", "text": "Hellö \U0001f3ee."},
    {"type": "text", "text": "Hello.", "citations": None},
    picture(),
    picture(media_type="image/jpeg"),
    picture("aGVsbG8h"),
    {"type": "image", "source": {"type": "url", "url": "aGVsbG8="}},
    {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": 1}},
    {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": True}},
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_that_comes_back_has_the_digest_it_had(block):
    digests = Digests(SECRET)
    first = digests.of("messages", "user", block["type"], block)
    assert digests.of("messages", "user", block["type"], block) == first
    assert Digests(SECRET).of("messages", "user", block["type"], block) == first


def test_different_blocks_have_different_digests_also_the_second_time():
    digests = Digests(SECRET)
    for _ in range(2):
        found = [
            digests.of(part, role, block["type"], block)[0]
            for part, role in (("system", ""), ("messages", "user"), ("messages", "assistant"))
            for block in BLOCKS
        ]
        assert len(set(found)) == len(found)


def test_texts_weigh_their_bytes():
    digests = Digests(SECRET)
    for _ in range(2):
        assert digests.of("messages", "user", "text", {"type": "text", "text": "é\U0001f3ee"})[1] == 6


def test_another_secret_gives_other_digests():
    one, other = Digests(SECRET), Digests(b"another secret")
    assert all(one.of("system", "", b["type"], b) != other.of("system", "", b["type"], b) for b in BLOCKS)


def test_the_number_of_remembered_blocks_is_limited():
    digests = Digests(SECRET)
    for i in range(prefix.KNOWN + 10):
        digests.of("messages", "user", "text", {"type": "text", "text": str(i)})
    assert 0 < len(digests) <= prefix.KNOWN


def test_pictures_with_anything_unusual_are_read_whole():
    assert picture_in(picture()) == ("image/png", "aGVsbG8=")
    assert picture_in({**picture(), "cache_control": {"type": "ephemeral"}}) is None
    assert picture_in({"source": picture()["source"], "type": "image"}) is None
    assert picture_in({"type": "document", "source": picture()["source"]}) is None
    assert picture_in({"type": "image", "source": {**picture()["source"], "data": 3}}) is None


def test_a_story_tells_a_chat_though_the_prompts_in_front_are_one_block_and_another():
    digests = Digests(SECRET)
    chat, stranger = Chat(seed=1, card=2_000, squash=True, lore=1), Chat(seed=2, card=2_000, squash=True)
    chat.say()
    one = read_prompt(chat.ask(), MODEL, "s", digests)
    chat.active = {0: 5}
    other = read_prompt(chat.ask(), MODEL, "s", digests)
    assert one.likeness(other) < 0.2
    assert one.resembles(other, 0.35)
    assert not one.resembles(read_prompt(stranger.ask(), MODEL, "s", digests), 0.35)


def test_prompts_resemble_each_other_as_much_as_they_or_their_stories_are_alike():
    digests = Digests(SECRET)
    chats = [Chat(seed=seed, earlier=earlier) for seed in (1, 2) for earlier in (0, 3, 12, 40)]
    prompts = [read_prompt(chat.ask(), MODEL, "s", digests) for chat in chats]
    twice = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Again. " * 40}] * 6}]}
    once = {"messages": [{"role": "user", "content": [*twice["messages"][0]["content"][:1]]}]}
    prompts += [read_prompt({"model": "m", **body}, MODEL, "s", digests) for body in (twice, once)]
    answers = set()
    for one in prompts:
        for other in prompts:
            for share in (0.1, 0.35, 0.9):
                told = sum(weight for own, weight in one.story.items() if own in other.weights)
                story = bool(told) and told >= share * sum(one.story.values())
                assert one.resembles(other, share) == (story or one.likeness(other) >= share)
                answers.add(one.resembles(other, share))
    assert answers == {True, False}
