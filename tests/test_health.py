"""What refusals and headers say about an account; the choice among several."""

from collections import Counter
from datetime import UTC, datetime
from math import inf, nan

import pytest

from server.errors import ProxyError
from server.explain import Refusal
from server.health import GENTLE_SECONDS, Gauge, Rest, gauges_of, longer_rest, nearly_empty, rest_after
from server.payers import Account, choose
from tests.pools import NOW

pytestmark = pytest.mark.anyio
UNIFIED = "anthropic-ratelimit-unified-"


def refusal(status=429, message="Limit.", code="", **headers):
    return Refusal(status, "error", message, code, {name.replace("_", "-"): value for name, value in headers.items()})


def rfc(moment):
    return datetime.fromtimestamp(moment, UTC).isoformat()


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (refusal(retry_after="20"), 20),
        (refusal(retry_after="99999"), 3600),  # no minute is longer than an hour
        (refusal(retry_after="-5"), 1),
        (refusal(retry_after="soon"), 60),
        (refusal(), 60),
        (refusal(retry_after="Sat, 21 Nov 2099 07:28:00 GMT"), 3600),
        (
            refusal(anthropic_ratelimit_tokens_remaining="0", anthropic_ratelimit_tokens_reset=rfc(NOW + 42)),
            42,
        ),
        (refusal(**{"retry_after": "30", f"{UNIFIED}reset": str(int(NOW) + 18_000)}), 18_000),
        (refusal(**{f"{UNIFIED}reset": str(int(NOW) - 5)}), 1),
        (refusal(code="enforced_spend_limit_reached", retry_after="5"), inf),
        (refusal(code="contract_spend_limit_reached"), inf),
        (refusal(code="ramp_limit_exceeded", retry_after="5"), 5),
        (refusal(402), inf),
        (refusal(400, "Your credit balance is too low to access the API."), inf),
        (refusal(400, "messages.0: a credit balance"), None),
        (refusal(400, "You have reached your specified API usage limits."), inf),
        (refusal(400, "You have reached your specified API usage limits. You will regain access on 2026-13-01."), inf),
        (refusal(400, "messages: at least one message is required"), None),
        (refusal(529, retry_after="5"), None),
        (refusal(401), None),
        (refusal(403), None),
    ],
)
def test_how_long_a_refusal_lets_an_account_rest(given, seconds):
    until = rest_after(given, NOW)
    assert until == (None if seconds is None else NOW + seconds)


def test_a_spend_limit_ends_on_the_day_it_names():
    words = "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."
    assert rest_after(refusal(400, words), NOW) == datetime(2026, 12, 1, tzinfo=UTC).timestamp()


def test_gauges_are_read_from_both_kinds_of_headers_and_odd_ones_are_left():
    headers = {
        "Anthropic-RateLimit-Requests-Limit": "50",
        "anthropic-ratelimit-requests-remaining": "10",
        "anthropic-ratelimit-requests-reset": rfc(NOW + 30),
        "anthropic-ratelimit-tokens-limit": "0",
        "anthropic-ratelimit-tokens-remaining": "5",
        f"{UNIFIED}5h-utilization": "0.5",
        f"{UNIFIED}5h-reset": str(int(NOW) + 60),
        f"{UNIFIED}7d-utilization": "1.7",
        f"{UNIFIED}7d_sonnet-utilization": "nan",
    }
    assert gauges_of(headers, NOW) == (
        Gauge("requests", 0.8, NOW + 30),
        Gauge("5h", 0.5, NOW + 60),
        Gauge("7d", 1.0, None),
    )


@pytest.mark.parametrize(
    ("gauge", "empty"),
    [
        (Gauge("requests", 0.96, NOW + 5), True),
        (Gauge("requests", 0.90, NOW + 5), False),
        (Gauge("requests", 1.0, NOW - 1), False),  # has started anew
        (Gauge("requests", 1.0, None), False),
    ],
)
def test_what_is_nearly_empty(gauge, empty):
    assert nearly_empty((gauge,), NOW) is empty


# -- the choice


def account(id, **changes):
    return Account(**{"id": id, "name": id, "kind": "api_key", **changes})


POOL = [account(name) for name in "abcd"]


def choices(pool, **kwargs):
    return {i: choose(pool, NOW, conversation=f"chat_{i}", **kwargs).id for i in range(400)}


def test_chats_spread_over_equal_accounts_and_each_keeps_its_own():
    first = choices(POOL)
    assert first == choices(list(reversed(POOL)))
    assert all(60 <= count <= 140 for count in Counter(first.values()).values())


def test_an_account_that_goes_moves_only_its_own_chats_and_one_that_comes_takes_from_all():
    before, without = choices(POOL), choices(POOL[:3])
    assert all(before[i] == without[i] for i in before if before[i] != "d")
    more = choices([*POOL, account("e")])
    assert all(more[i] in (before[i], "e") for i in before)


def test_a_lower_priority_pays_for_every_chat_and_a_strained_account_only_when_its_equals_are_too():
    pool = [account("a", priority=1), account("b"), account("c", strain="failing")]
    assert set(choices(pool).values()) == {"b"}
    assert set(choices([account("a", priority=1), account("c", strain="nearly_empty")]).values()) == {"c"}


def test_round_robin_takes_turns_and_priority_takes_the_first():
    assert [choose(POOL, NOW, choice="round_robin", turn=turn).id for turn in range(5)] == ["a", "b", "c", "d", "a"]
    assert {choose(POOL, NOW, choice="priority", conversation=f"{i}").id for i in range(9)} == {"a"}


# -- rests


def test_a_new_rest_never_shortens_the_one_that_holds():
    long = longer_rest(None, NOW + 3600, "five hours", NOW)
    assert longer_rest(long, NOW + 60, "a minute", NOW) == long
    assert longer_rest(long, NOW + 7200, "longer", NOW).reason == "longer"
    assert longer_rest(long, NOW + 3660, "later", NOW + 3601).reason == "later"


@pytest.mark.parametrize(
    ("until", "end"), [(NOW - 5, NOW + 1), (NOW, NOW + 1), (nan, NOW + 60), (inf, inf), (-inf, NOW + 1), (1e30, inf)]
)
def test_a_rest_lasts_at_least_a_second_and_one_beyond_a_year_has_no_end(until, end):
    assert longer_rest(None, until, "limit", NOW).until == end


def test_a_clock_set_back_by_a_day_ends_a_rest():
    rest = Rest(NOW, NOW + 60, "limit")
    assert rest.holds(NOW + 59)
    assert not rest.holds(NOW + 60)
    assert rest.holds(NOW - 1)
    assert not rest.holds(NOW - 86400)


def test_a_rest_is_tried_gently_and_never_where_only_the_owner_ends_it():
    rest = Rest(NOW, NOW + 9000, "five hours")
    tries = [seconds for seconds in range(0, 9000, 100) if rest.may_be_over(NOW + seconds)]
    assert (min(tries), max(tries)) == (900, 8100), "not at once, and not when the end is near"
    assert not rest._replace(tried_at=NOW + 1000).may_be_over(NOW + 1800)
    assert rest._replace(tried_at=NOW + 1000).may_be_over(NOW + 1900)
    assert not Rest(NOW, inf, "spend cap").may_be_over(NOW + 9000)


async def test_one_request_tries_a_long_rest_and_ends_it_when_it_is_served(pool, clock):
    added = await pool.add_api_key("sk-ant-api03-abcdefgh-wxyz")
    pool.rest(added.id, clock.now + 9000, "five hours")
    with pytest.raises(ProxyError):
        await pool.credential()
    clock.now += GENTLE_SECONDS + 1
    assert (await pool.credential()).account_id == added.id
    with pytest.raises(ProxyError):  # one, no more
        await pool.credential()
    pool.heard(added.id, {}, served=True)
    assert pool.get(added.id).state == "ready"


async def test_a_try_that_is_refused_leaves_the_rest_as_it_was(pool, clock):
    added = await pool.add_api_key("sk-ant-api03-abcdefgh-wxyz")
    until = clock.now + 9000
    pool.rest(added.id, until, "five hours")
    clock.now += GENTLE_SECONDS + 1
    await pool.credential()
    pool.heard(added.id, {}, served=False)
    pool.rest(added.id, until, "five hours")
    assert pool.get(added.id).rests_until == until
    with pytest.raises(ProxyError):
        await pool.credential()


async def test_a_resting_account_is_not_tried_while_another_is_free(pool, clock):
    resting = await pool.add_api_key("sk-ant-api03-abcdefgh-wxyz")
    free = await pool.add_api_key("sk-ant-api03-abcdefgh-free")
    pool.rest(resting.id, clock.now + 9000, "five hours")
    clock.now += GENTLE_SECONDS + 1
    assert {(await pool.credential(conversation=f"{i}")).account_id for i in range(20)} == {free.id}


async def test_a_failure_is_forgotten_after_a_minute_and_when_it_serves_again(pool, clock):
    added = await pool.add_api_key("sk-ant-api03-abcdefgh-wxyz")
    pool.failed(added.id)
    assert pool.get(added.id).strain == "failing"
    clock.now += 61
    assert pool.get(added.id).strain == ""
    pool.failed(added.id)
    pool.heard(added.id, {}, served=True)
    assert pool.get(added.id).strain == ""
