"""The plan itself: values in, marks out."""

from dataclasses import replace

import pytest
from cache_bench import MODELS, SECRET
from hypothesis import given, settings
from hypothesis import strategies as st

from server.prefix import Digests, read_prompt
from server.rewrite.cache_plan import (
    LiveEntry,
    Return,
    Seen,
    Terms,
    certainty,
    chances,
    expected_returns,
    forecast,
    laid_over,
    plan_marks,
)

MODEL = MODELS.like("claude-sonnet-4-6")
TERMS = Terms(minimum=1_024, tokens_per_byte=0.25)


def prompt(blocks=30, size=2_000, head=4, **body):
    """A prompt of so many blocks, each in a message of its own behind the head."""
    system = [{"type": "text", "text": f"{i} ".ljust(size, "s")} for i in range(head)]
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": f"{i} ".ljust(size, "m")}]}
        for i in range(blocks - head)
    ]
    return read_prompt({"system": system, "messages": messages, "stream": True, **body}, MODEL, "s", Digests(SECRET))


def grew(length, steps, pause=60.0, followers=None, head=4):
    return Seen(length, head, head + 1, pause, tuple(steps), followers or max((k for k, _ in steps), default=1))


STEADY = [grew(n, [(1, n)], followers=6) for n in range(18, 30, 2)]


def test_a_chat_nobody_knows_is_written_for_five_minutes():
    marks = plan_marks(prompt(), {}, [], TERMS)
    assert marks
    assert set(marks.values()) == {"5m"}
    assert 29 in marks


def test_the_first_turn_of_a_chat_without_system_is_written_where_only_five_minutes_are_taken():
    terms = Terms(minimum=1_024, tokens_per_byte=0.25, lifetimes=("5m",))
    assert plan_marks(prompt(blocks=1, size=16_000, head=0), {}, [], terms) == {0: "5m"}


def test_a_steady_chat_reads_its_hit_and_writes_its_end():
    marks = plan_marks(prompt(), {27: LiveEntry("5m", 999.0)}, STEADY, TERMS)
    assert {27, 29} <= marks.keys()
    assert "1h" in marks.values(), "two new blocks carry the whole chat for an hour"


def test_where_a_note_stands_four_before_the_end_nothing_behind_it_is_written():
    seen = [grew(n, [(1, n - 4)], followers=6) for n in range(18, 30, 2)]
    marks = plan_marks(prompt(), {23: LiveEntry("5m", 999.0)}, seen, TERMS)
    assert max(marks) == 25


def test_a_chat_that_parts_at_its_start_each_time_is_not_written():
    seen = [grew(n, [], followers=6) for n in range(10, 30, 2)]
    assert plan_marks(prompt(), {}, seen, TERMS) == {}


def test_a_prefix_that_comes_back_after_three_requests_is_written():
    seen = [grew(n, [(3, n)], pause=20.0, followers=6) for n in range(10, 30, 2)]
    assert max(plan_marks(prompt(), {}, seen, TERMS)) == 29


def test_below_the_minimum_nothing_is_marked():
    assert plan_marks(prompt(blocks=6, size=200), {}, [], TERMS) == {}


def test_with_long_pauses_only_nothing_is_written():
    seen = [grew(n, [(1, n)], pause=9_000.0, followers=6) for n in range(2, 30, 2)]
    assert plan_marks(prompt(), {}, seen, TERMS) == {}


def test_where_no_lifetime_is_taken_there_are_no_marks():
    none = Terms(minimum=1_024, tokens_per_byte=0.25, lifetimes=())
    assert plan_marks(prompt(), {27: LiveEntry("5m", 999.0)}, STEADY, none) == {}


def test_one_kind_of_lifetime_is_used_where_only_that_is_taken():
    for kind in ("5m", "1h"):
        terms = Terms(minimum=1_024, tokens_per_byte=0.25, lifetimes=(kind,))
        assert set(plan_marks(prompt(), {27: LiveEntry(kind, 999.0)}, STEADY, terms).values()) == {kind}


def test_requests_that_came_into_the_chat_in_another_way_say_less():
    def of(alike):
        seen = [replace(one, alike=alike) for one in STEADY[:3]] + [grew(n, [], followers=6) for n in (24, 26, 28)]
        return sum(one.chance for one in expected_returns(prompt(), seen))

    assert of(alike=False) < 0.8 * of(alike=True)


def test_what_is_assumed_of_any_chat_fades_with_the_turns_seen():
    def assumed(turns):
        return sum(one.chance for one in expected_returns(prompt(), [grew(10, [], followers=6)] * turns))

    assert assumed(1) > 0.1
    assert assumed(20) < 0.01


def test_what_came_back_in_half_of_few_turns_is_believed_less_than_in_half_of_many():
    few, many, always = (
        certainty([Return(chance, seen, 1, 0, 30)]) for chance, seen in ((0.5, 2.0), (0.5, 20.0), (1.0, 2.0))
    )
    assert 0 < few < many < always == 1
    assert certainty([]) == 0


def test_where_a_chat_was_seen_to_part_a_little_earlier_is_marked_too():
    seen = [grew(n, [(1, n - 4)], followers=6) for n in range(18, 30, 2)]
    marks = plan_marks(prompt(), {}, seen, TERMS)
    assert 25 in marks
    assert any(20 <= i < 25 for i in marks), "a text more is injected next time"


def test_cheaper_reads_make_rarer_returns_worth_writing():
    seen = [grew(n, [(1, n)] if n % 8 == 0 else [], pause=60.0, followers=6) for n in range(0, 240, 2)]
    dear = Terms(minimum=1_024, tokens_per_byte=0.25, read=0.3)
    cheap = Terms(minimum=1_024, tokens_per_byte=0.25, read=0.0, write_5m=1.1)
    assert plan_marks(prompt(), {}, seen[-24:], dear) == {}
    assert plan_marks(prompt(), {}, seen[-24:], cheap) != {}


def test_partings_are_counted_from_the_start_in_the_head_and_from_the_end_in_the_story():
    one = grew(20, [])
    now = prompt(blocks=30)
    assert laid_over(now, one, 3) == 3
    assert laid_over(now, one, 16) == 26
    assert laid_over(now, one, 20) == 30


def test_a_request_known_for_less_time_says_nothing_about_later_ones():
    new = [grew(28, [], followers=1)]
    assert not [one for one in expected_returns(prompt(), new) if one.after > 1]
    assert sum(one.chance for one in expected_returns(prompt(), []) if one.low == 0) == pytest.approx(1.0)


def test_pauses_are_learned_from_what_is_expected_of_everybody():
    assert chances([], 1)["5m"] == pytest.approx(0.7)
    assert chances([60.0] * 60, 1)["5m"] > 0.95
    assert chances([600.0] * 60, 1)["1h"] > 0.9
    assert chances([200.0] * 60, 2)["5m"] < 0.1, "two of them together are longer than five minutes"


places = st.sets(st.integers(0, 39), max_size=12)
seen = st.lists(
    st.builds(
        lambda n, cut, k, pause: grew(n, [(k, max(n - cut, 0))], pause, followers=k + 2),
        st.integers(5, 40),
        st.integers(0, 40),
        st.integers(1, 6),
        st.sampled_from([10.0, 200.0, 900.0, 5_000.0]),
    ),
    max_size=24,
)


@settings(max_examples=200, deadline=None)
@given(places, st.sets(st.integers(0, 39)), seen, st.sampled_from([512, 4_096]), st.integers(50, 4_000))
def test_every_plan_obeys_the_rules(alive, hours, before, minimum, size):
    now = prompt(blocks=40, size=size)
    live = {i: LiveEntry("1h" if i in hours else "5m", 999.0) for i in alive}
    terms = Terms(minimum=minimum, tokens_per_byte=0.25)
    marks = plan_marks(now, live, before, terms)
    assert len(marks) <= 4
    assert list(marks) == sorted(marks)
    assert list(marks.values()) == sorted(marks.values()), "hours first"
    assert all(now.markable[i] for i in marks)
    assert all(i in live or now.size[i] * 0.25 >= minimum - 1 for i in marks)
    if live:
        assert max(live) in marks, "the longest living entry is always read"
    counted = forecast(now, marks, live, terms)
    assert sum(counted) == round(now.size[-1] * 0.25)
    assert min(counted) >= 0
