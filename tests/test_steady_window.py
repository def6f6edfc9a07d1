"""A full context is cut in larger steps, and the story begins there until the front end has passed it."""

from itertools import pairwise

from cache_bench import SECRET, Bench
from chats import Chat

from server.cache_helps import CacheHelps
from server.rewrite.steady_window import Story, Window, after, choose_window, slid, steady_window

STEADY = CacheHelps(cache_steady_window=True)


def messages(first, last):
    return [
        {"role": ("user", "assistant")[i % 2], "content": f"message {i} " + "word " * 20} for i in range(first, last)
    ]


def story(told):
    return Story.of({"system": "You are Ada.", "messages": told}, SECRET)


def follow(*spans):
    """The window after requests that held messages from … to …"""
    window = None
    for first, last in spans:
        window = after(window, story(messages(first, last)), 0)
    return window


def sent(window, first, last):
    told = messages(first, last)
    changed, cut = steady_window({"messages": told}, story(told), window)
    return int(changed["messages"][0]["content"].split()[1]), cut


def test_a_story_that_only_grows_is_left_whole():
    window = follow((0, 20), (0, 22), (0, 24))
    assert sent(window, 0, 24) == (0, 0)


def test_one_slide_after_the_start_had_stood_is_enough():
    window = follow((0, 36), (0, 38), (0, 40), (2, 42))
    first, cut = sent(window, 2, 42)
    assert cut == first - 2
    assert 10 <= cut <= 16
    assert first % 2 == 0, "a user's message"


def test_else_it_must_be_seen_twice():
    assert follow((0, 40), (2, 42)).begins == ()
    assert follow((0, 40), (2, 42), (4, 44)).begins != ()


def test_the_beginning_is_held_until_the_front_ends_window_passes_it():
    spans = [(0, 36), (0, 38), (0, 40), (2, 42)]
    first, _ = sent(follow(*spans), 2, 42)
    for step in range(4, first + 1, 2):
        spans.append((step, 40 + step))
        assert sent(follow(*spans), step, 40 + step)[0] == first
    step = first + 2
    spans.append((step, 40 + step))
    again, _ = sent(follow(*spans), step, 40 + step)
    assert again > step + 8


def test_a_note_that_came_near_the_top_is_no_slide():
    one, other = story(messages(0, 20)), story([*messages(90, 91), *messages(0, 20)])
    assert not slid(one.digests, other.digests)
    assert slid(other.digests, one.digests)
    window = after(after(Window(one.digests), other, 0), one, 0)
    assert window.begins == (), "gone after one request: a note, not the window"


def test_a_short_story_is_not_cut():
    assert follow((0, 6), (0, 7), (0, 8), (2, 9)).begins == ()


def test_two_chats_are_told_apart():
    windows = [follow((0, 20)), follow((100, 120))]
    assert choose_window(story(messages(100, 122)), windows) == 1
    assert choose_window(story(messages(200, 222)), windows) == -1


def full_chat(bench, turns=30, **shape):
    """A chat in a full window; how many messages went up, and how often its beginning changed."""
    chat, counts, firsts = Chat(seed=1, earlier=60, limit=20_000, **shape), [], []
    for turn in range(turns):
        chat.say()
        asked = chat.ask()
        bench.ask(asked, turn * 60.0)
        counts.append(len(bench.sent.body["messages"]) / len(asked["messages"]))
        firsts.append(str(bare_text(bench.sent.body["messages"][0])))
        chat.reply()
    return counts, sum(one != other for one, other in pairwise(firsts))


def bare_text(message):
    return [block["text"] for block in message["content"]]


def test_in_a_full_chat_the_beginning_changes_rarely_and_little_is_lost():
    plain, helped = Bench(), Bench(helps=STEADY)
    _, changes = full_chat(plain)
    counts, held = full_chat(helped)
    assert changes > 20
    assert held < 8
    assert 0.75 < sum(counts) / len(counts) < 0.95
    assert helped.cost < 0.7 * plain.cost


def test_it_works_where_the_prompts_stand_in_the_first_message():
    plain, helped = Bench(), Bench(helps=STEADY)
    full_chat(plain, system=False)
    _, held = full_chat(helped, system=False)
    assert held < 8
    assert helped.cost < 0.75 * plain.cost
    first = bare_text(helped.sent.body["messages"][0])
    assert first[-1] == "[Start a new Chat]"


def test_it_is_named_with_what_it_left_out():
    bench = Bench(helps=STEADY)
    full_chat(bench, turns=6)
    named = [change.detail for change in bench.sent.changes if change.name == "cache_steady_window"]
    assert len(named) == 1
    assert named[0].startswith("Left out the oldest ")
