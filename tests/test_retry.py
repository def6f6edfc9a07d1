import pytest

from server.retry import RetryBudget, delay


@pytest.mark.parametrize(("tries", "low", "high"), [(0, 0.25, 0.5), (1, 0.5, 1.0)])
def test_waits_grow_and_are_spread(tries, low, high):
    assert delay(tries, {}, 0.0) == low
    assert delay(tries, {}, 1.0) == high


def test_two_retries_are_the_most():
    assert delay(2, {}, 0.5) is None


def test_the_upstreams_word_counts():
    assert delay(0, {"x-should-retry": "false"}, 0.5) is None
    assert delay(0, {"retry-after": "3"}, 0.5) == 3.0
    assert delay(0, {"retry-after-ms": "1500"}, 0.5) == 1.5
    assert delay(0, {"retry-after": "60"}, 0.5) is None
    assert delay(0, {"retry-after": "soon"}, 1.0) == 0.5
    assert delay(0, {"retry-after": "nan"}, 1.0) == 0.5


def test_a_storm_gets_a_fifth_of_its_requests_as_retries():
    budget = RetryBudget()
    for _ in range(100):
        budget.note_request(0.0)
    assert sum(budget.take(1.0) for _ in range(100)) == 20


def test_a_lone_player_always_has_a_few_and_gets_them_back():
    budget = RetryBudget()
    budget.note_request(0.0)
    assert [budget.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert budget.take(61.0)


def test_what_lies_behind_the_window_is_forgotten_also_where_nothing_is_retried():
    budget = RetryBudget()
    for now in range(1000):
        budget.note_request(float(now))
    assert len(budget._requests) <= budget.WINDOW + 1
