"""Several accounts, the real program, and an upstream that treats one of them badly."""

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime

import pytest

from tests.chats import Chat as Played
from tests.fakes import error, plain, stream
from tests.pools import Clock
from tests.running import running

pytestmark = pytest.mark.anyio
BAD, GOOD = "sk-ant-api03-the-bad-account-0001", "sk-ant-api03-the-good-account-0002"
QUOTA = {
    "anthropic_ratelimit_unified_status": "rejected",
    "anthropic_ratelimit_unified_representative_claim": "five_hour",
}


def limited(**headers):
    return error(429, "rate_limit_error", "This request would exceed your rate limit.", **headers)


async def reset(request):
    request.transport.abort()
    return await plain()(request)


def in_an_hour():
    return datetime.fromtimestamp(int(time.time()) + 3600, UTC).isoformat()


FAILURES = {
    "429 per minute": lambda: limited(retry_after="20"),
    "429 until a reset": lambda: limited(
        anthropic_ratelimit_requests_remaining="0", anthropic_ratelimit_requests_reset=in_an_hour()
    ),
    "429 of a plan's quota": lambda: limited(**QUOTA, anthropic_ratelimit_unified_reset=str(int(time.time()) + 9000)),
    "429 of a spend cap": lambda: error(429, "rate_limit_error", "Spend cap.", code="enforced_spend_limit_reached"),
    "429 without headers": limited,
    "402": lambda: error(402, "billing_error", "Your credit balance is too low."),
    "529": lambda: error(529, "overloaded_error", "Overloaded"),
    "500": lambda: error(500, "api_error", "Internal server error"),
    "401": lambda: error(401, "authentication_error", "invalid x-api-key"),
    "403": lambda: error(403, "permission_error", "Your account does not have access to this model."),
    "reset": lambda: reset,
}


async def add(proxy, key, name, **changes):
    added = await proxy.owner("POST", "/api/accounts", json={"kind": "api_key", "name": name, "api_key": key})
    assert added.status == 201, added.raw
    if changes:
        await proxy.owner("PATCH", f"/api/accounts/{added.json['id']}", json=changes)
    return added.json["id"]


async def account(proxy, account_id):
    rows = (await proxy.owner("GET", "/api/accounts")).json["accounts"]
    return next(row for row in rows if row["id"] == account_id)


def fails(anthropic, failure):
    """The bad account's requests meet this failure from now on; the good one's are answered."""

    def answer(seen):
        key = {name.lower(): value for name, value in seen.headers.items()}.get("x-api-key")
        if key == BAD:
            return failure()
        return stream() if seen.raw and seen.body.get("stream") else plain()

    anthropic.seen.clear()
    anthropic.answer = answer


def payers(anthropic):
    return Counter(
        {name.lower(): value for name, value in seen.headers.items()}["x-api-key"] for seen in anthropic.seen
    )


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("failure", FAILURES)
async def test_with_one_of_two_accounts_failing_every_request_is_answered(tmp_path, anthropic, failure, count):
    async with running(tmp_path, anthropic.url, clock=Clock()) as proxy:  # so that no rest ends meanwhile
        await add(proxy, BAD, "bad")
        await add(proxy, GOOD, "good")
        fails(anthropic, FAILURES[failure])

        async def one(i):
            return await proxy.ask(
                headers={}, stream=i % 2 == 0, messages=[{"role": "user", "content": f"Tell me of number {i}."}]
            )

        statuses = Counter()
        for start in range(0, count, 10):
            statuses.update(reply.status for reply in await asyncio.gather(*(one(i) for i in range(start, start + 10))))
        assert statuses == {200: count}
        assert 1 <= payers(anthropic)[BAD] <= 10  # what was under way when the first was refused, and no more


@pytest.mark.parametrize(
    ("failure", "state", "ends"),
    [
        ("429 per minute", "resting", 20),
        ("429 until a reset", "resting", 3600),
        ("429 of a plan's quota", "resting", 9000),
        ("429 without headers", "resting", 60),
        ("429 of a spend cap", "resting", None),
        ("402", "resting", None),
        ("401", "sign_in_again", None),
        ("403", "ready", None),
        ("529", "ready", None),
        ("reset", "ready", None),
    ],
)
async def test_each_refusal_has_its_own_move(tmp_path, anthropic, failure, state, ends):
    async with running(tmp_path, anthropic.url, account_choice="priority") as proxy:
        bad = await add(proxy, BAD, "bad")
        await add(proxy, GOOD, "good")
        fails(anthropic, FAILURES[failure])
        assert (await proxy.ask(headers={})).status == 200
        row = await account(proxy, bad)
        assert row["state"] == state
        if ends is not None:
            wait = datetime.fromisoformat(row["rests_until"]).timestamp() - time.time()
            assert ends - 15 < wait < ends + 15
        else:
            assert row["rests_until"] is None
        assert row["strain"] == ("failing" if state == "ready" else None)


async def test_the_owner_ends_a_rest(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as proxy:
        bad = await add(proxy, BAD, "bad")
        fails(anthropic, FAILURES["429 of a spend cap"])
        assert (await proxy.ask(headers={})).status == 429
        anthropic.answer = None
        refused = await proxy.ask(headers={})
        assert (refused.status, refused.json["error"]["type"]) == (402, "billing_error")
        assert (await proxy.owner("POST", f"/api/accounts/{bad}/wake")).json["state"] == "ready"
        assert (await proxy.ask(headers={})).status == 200


async def test_when_all_rest_one_429_names_the_soonest_time_and_nothing_is_sent(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as proxy:
        await add(proxy, BAD, "one")
        await add(proxy, GOOD, "other")
        anthropic.will(limited(retry_after="300"), limited(retry_after="30"))
        assert (await proxy.ask(headers={})).status == 429
        sent = len(anthropic.seen)
        refused = await proxy.ask(headers={})
        assert refused.status == 429
        assert 25 <= int(refused.headers["retry-after"]) <= 31
        assert "free again at" in refused.message
        assert len(anthropic.seen) == sent


@pytest.mark.parametrize(
    "refusal",
    [
        error(400, "invalid_request_error", "messages: text content blocks must be non-empty"),
        error(400, "invalid_request_error", "This credential is only authorized for use with Claude Code."),
        error(403, "permission_error", "OAuth authentication is currently not allowed for this organization."),
        error(404, "not_found_error", "model: claude-sonnet-4-6"),
        error(413, "request_too_large", "Request exceeds the maximum size"),
    ],
)
async def test_what_is_about_the_request_or_the_terms_goes_to_no_other_account(tmp_path, anthropic, refusal):
    async with running(tmp_path, anthropic.url) as proxy:
        ids = [await add(proxy, BAD, "one"), await add(proxy, GOOD, "other")]
        anthropic.seen.clear()
        anthropic.will(refusal)
        assert (await proxy.ask(headers={})).status >= 400
        assert len(anthropic.seen) == 1
        assert [(await account(proxy, id_))["state"] for id_ in ids] == ["ready", "ready"]


async def test_a_spend_limit_told_by_a_400_rests_the_account_until_the_day_it_names(tmp_path, anthropic):
    words = "You have reached your specified API usage limits. You will regain access on 2099-12-01 at 00:00 UTC."
    async with running(tmp_path, anthropic.url, account_choice="priority") as proxy:
        bad = await add(proxy, BAD, "bad")
        await add(proxy, GOOD, "good")
        fails(anthropic, lambda: error(400, "invalid_request_error", words))
        told = await proxy.ask(headers={})
        assert (told.status, words in told.message) == (400, True)
        assert (await account(proxy, bad))["state"] == "resting"
        assert (await proxy.ask(headers={})).status == 200


async def test_an_overload_of_everything_is_not_made_worse(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as proxy:
        await add(proxy, BAD, "one")
        await add(proxy, GOOD, "other")
        anthropic.seen.clear()
        anthropic.answer = lambda seen: error(529, "overloaded_error", "Overloaded", x_should_retry="false")
        replies = await asyncio.gather(
            *(proxy.ask(headers={}, messages=[{"role": "user", "content": f"{i}"}]) for i in range(60))
        )
        assert {reply.status for reply in replies} == {529}
        assert len(anthropic.seen) <= 60 * 2


async def test_two_chats_of_twenty_turns_keep_their_accounts(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as proxy:
        for i in range(4):
            await add(proxy, f"sk-ant-api03-account-number-000{i}", f"number {i}")
        played = [Played(seed=seed, turns=20, earlier=6, swipes=0.2) for seed in (1, 2)]
        for turns in zip(*(chat.play() for chat in played), strict=False):
            for _, body in turns:
                assert (await proxy.send("POST", "/v1/messages", json=body)).status == 200
        paid = Counter((row["chat"], row["account"]) for row in await proxy.receipts())
        assert len(paid) == 2
        assert min(paid.values()) >= 20


async def test_a_chat_comes_back_to_its_account_after_a_rest(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as proxy:
        ids = {name: await add(proxy, key, name) for name, key in (("one", BAD), ("other", GOOD))}
        await proxy.ask(headers={})
        first = (await proxy.receipts())[0]["account"]
        anthropic.will(limited(retry_after="300"))
        await proxy.ask(headers={})
        moved = (await proxy.receipts())[0]["account"]
        await proxy.owner("POST", f"/api/accounts/{ids[first]}/wake")
        await proxy.ask(headers={})
        assert first != moved
        assert (await proxy.receipts())[0]["account"] == first


@pytest.mark.parametrize(("choice", "paid"), [("priority", {BAD: 6}), ("round_robin", {BAD: 3, GOOD: 3})])
async def test_the_other_ways_to_choose(tmp_path, anthropic, choice, paid):
    async with running(tmp_path, anthropic.url, account_choice=choice) as proxy:
        await add(proxy, BAD, "first")
        await add(proxy, GOOD, "second")
        anthropic.seen.clear()
        for i in range(6):
            await proxy.ask(headers={}, messages=[{"role": "user", "content": f"{i}"}])
        assert payers(anthropic) == paid


async def test_an_account_whose_headers_say_it_is_nearly_used_up_steps_back_before_it_refuses(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url, account_choice="priority") as proxy:
        first = await add(proxy, BAD, "first")
        await add(proxy, GOOD, "second")
        anthropic.seen.clear()
        told = {
            "anthropic_ratelimit_requests_limit": "50",
            "anthropic_ratelimit_requests_remaining": "1",
            "anthropic_ratelimit_requests_reset": in_an_hour(),
        }
        anthropic.will(plain(**told))
        for _ in range(3):
            assert (await proxy.ask(headers={})).status == 200
        assert payers(anthropic) == {BAD: 1, GOOD: 2}
        row = await account(proxy, first)
        assert row["strain"] == "nearly_empty"
        assert [(one["name"], one["used"]) for one in row["limits"]] == [("requests", 0.98)]


async def test_the_last_account_is_used_up_to_its_end(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as proxy:
        await add(proxy, BAD, "only")
        used = {
            "anthropic_ratelimit_unified_5h_utilization": "0.99",
            "anthropic_ratelimit_unified_5h_reset": str(int(time.time()) + 99),
        }
        anthropic.answer = lambda seen: plain(**used)
        assert [(await proxy.ask(headers={})).status for _ in range(3)] == [200] * 3


async def test_a_key_brought_by_the_request_falls_over_to_no_account_of_the_owners(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as proxy:
        await add(proxy, GOOD, "mine")
        fails(anthropic, FAILURES["401"])
        assert (await proxy.ask(headers={"x-api-key": BAD})).status == 401
        assert payers(anthropic) == {BAD: 1}
