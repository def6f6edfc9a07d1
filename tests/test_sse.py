import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.sse import EventTooLarge, Meter, WholeEvents
from tests.fakes import STREAM, USAGE, event, reply_events


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(st.integers(0, 10_000), max_size=40), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_a_stream_cut_anywhere_comes_out_byte_for_byte_and_in_whole_events(places, line_end):
    data = STREAM.replace(b"\n", line_end)
    events, out = WholeEvents(), []
    for chunk in cut(data, places):
        out.append(events.feed(chunk))
        assert out[-1] == b"" or out[-1].endswith(line_end * 2)
    assert b"".join(out) == data
    assert events.rest == b""


@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_the_meter_reads_the_same_wherever_the_stream_was_cut(places):
    events, meter = WholeEvents(), Meter()
    for chunk in cut(STREAM, places):
        meter.feed(events.feed(chunk))
    assert meter.usage == {**USAGE, "output_tokens": 3}
    assert (meter.model, meter.stop_reason, meter.whole) == ("claude-sonnet-4-6", "end_turn", True)
    assert meter.events == len(reply_events("Good ", "evening."))


def test_half_an_event_is_held_back():
    events = WholeEvents()
    whole, half = event("ping"), event("message_stop")[:-3]
    assert events.feed(whole + half) == whole
    assert events.rest == half


def test_an_event_that_never_ends_is_refused():
    events = WholeEvents()
    for _ in range(32):
        events.feed(b"x" * 2**19)
    with pytest.raises(EventTooLarge):
        events.feed(b"x")


def test_words_of_a_story_are_not_taken_for_events():
    meter = Meter()
    text = 'He wrote: {"type":"message_stop"} and data: {"type": "error"} on the wall'
    meter.feed(event("content_block_delta", index=0, delta={"type": "text_delta", "text": text}))
    assert not meter.whole
    assert meter.error is None


def test_an_error_event_is_noticed():
    meter = Meter()
    meter.feed(event("error", error={"type": "overloaded_error", "message": "Overloaded"}))
    assert meter.error == {"type": "overloaded_error", "message": "Overloaded"}


def test_unknown_and_broken_events_pass_unread():
    meter = Meter()
    meter.feed(
        b"event: message_start\ndata: {broken\n\n" + event("message_start_of_the_future") + b": message_stop\n\n"
    )
    assert meter.usage == {}
    assert not meter.whole


def test_null_counters_of_a_delta_leave_the_earlier_ones():
    meter = Meter()
    meter.feed(event("message_start", message={"usage": USAGE}))
    meter.feed(event("message_delta", delta={}, usage={"output_tokens": 9, "input_tokens": None}))
    assert json.loads(json.dumps(meter.usage)) == {**USAGE, "output_tokens": 9}
