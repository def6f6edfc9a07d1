from datetime import date, datetime

import pytest

from server.days import begins, moment, span, time_of_day

NOON = begins(date(2026, 11, 20)) + 12 * 3600


def test_another_day_is_named():
    assert time_of_day(NOON + 60, NOON) == "12:01"
    assert time_of_day(NOON + 86400, NOON) == "12:00 on Saturday, 21 November"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (5399, "90 min"), (7200, "2 h"), (7560, "2.1 h"), (90_000, "25 h")],
)
def test_a_span_is_told_in_the_largest_unit_that_says_it_well(seconds, said):
    assert span(seconds) == said


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("0.5", 0.5),
        (str(NOON + 90), 90),
        (datetime.fromtimestamp(NOON + 120).astimezone().isoformat(), 120),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("soon", None),
        ("", None),
    ],
)
def test_a_moment_is_read_in_every_form(text, seconds):
    assert moment(text, NOON) == (None if seconds is None else pytest.approx(NOON + seconds))


def test_an_http_date_is_a_moment():
    assert moment("Fri, 20 Nov 2026 21:00:00 GMT", 0.0) == 1795208400.0
