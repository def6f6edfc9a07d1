from datetime import date

import pytest

from server.days import begins, span, time_of_day

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
