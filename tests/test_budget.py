"""Budgets of client keys: what a request may cost, what is held for it, and that a limit holds on every road."""

import asyncio
import json
import random
from collections import Counter
from datetime import date, datetime
from math import inf, nan

import pytest

from server.budget import NO_LIMITS, Budgets, Limits, OverBudget, likely, upper_bound
from server.days import begins
from server.errors import ProxyError
from server.models import Models
from server.prices import cost
from server.receipt import Receipt
from tests.fakes import ASK, PATIENCE, STREAM, error, plain, reply_events, stream
from tests.pools import Clock
from tests.running import running

pytestmark = pytest.mark.anyio
MODELS = Models.load()
SONNET = MODELS.find("claude-sonnet-4-6")
NOON = datetime(2026, 11, 20, 12).timestamp()  # noqa: DTZ001 (of this computer's day)
DAY = 86_400.0
HOUR_MARK = {"type": "ephemeral", "ttl": "1h"}


def body(text="Hello", **changes):
    return {**ASK, "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}], **changes}


# -- what a request may cost


@pytest.mark.parametrize("model", ["claude-sonnet-4-6", "claude-opus-5-5", "claude-haiku-5-5", "claude-fable-5-2"])
@pytest.mark.parametrize("mark", [None, {"type": "ephemeral"}, HOUR_MARK])
def test_no_bill_the_upstream_may_write_is_above_the_bound(model, mark):
    rng, found = random.Random(1), MODELS.find(model)
    for _ in range(300):
        text = "".join(rng.choice('ab \n"\\é語🙂') for _ in range(rng.randrange(1, 3000)))
        block = {"type": "text", "text": text, **({"cache_control": mark} if mark else {})}
        asked = {**ASK, "model": model, "max_tokens": rng.randrange(1, 5000)}
        asked["messages"] = [{"role": "user", "content": [block]}]
        tokens = len(text.encode())  # no tokenizer makes more of it
        written = rng.randrange(tokens + 1) if mark else 0
        hour = written if mark and "ttl" in mark else 0
        usage = {
            "input_tokens": tokens - written,
            "cache_creation_input_tokens": written,
            "cache_creation": {"ephemeral_1h_input_tokens": hour, "ephemeral_5m_input_tokens": written - hour},
            "output_tokens": asked["max_tokens"],
        }
        bound = upper_bound(asked, found)
        assert cost(found, usage)[0] <= bound.usd + 1e-12
        assert tokens + asked["max_tokens"] <= bound.tokens
        assert likely(asked, found).usd < bound.usd


def test_the_worst_price_is_that_of_the_marks_a_request_carries_and_a_story_carries_none():
    plain_, five, hour = (
        upper_bound(body(system=[{"type": "text", "text": "x" * 1000, **mark}]), SONNET).usd
        for mark in ({}, {"cache_control": {"type": "ephemeral"}}, {"cache_control": HOUR_MARK})
    )
    assert plain_ < five < hour
    spoken = upper_bound(body('"cache_control":{"ttl":"1h"}'), SONNET).usd
    assert spoken == pytest.approx(upper_bound(body("x" * 32), SONNET).usd, rel=0.05)


def test_a_picture_counts_as_a_picture_a_document_as_a_whole_context_and_a_count_as_itself():
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 2_000_000}}
    paper = {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}
    assert 6_000 <= upper_bound(body(messages=[{"role": "user", "content": [picture]}]), SONNET).tokens < 7_000
    assert upper_bound(body(messages=[{"role": "user", "content": [paper]}]), SONNET).tokens == SONNET.context + 100
    assert upper_bound(body("x" * 100_000), SONNET, counted=1000).tokens == 1050 + 50 + 100
    assert upper_bound(body("x" * 5_000_000), SONNET).tokens == SONNET.context + 100


def test_fast_mode_and_the_american_region_cost_more():
    opus = MODELS.find("claude-opus-5")
    usual = upper_bound(body(), opus).usd
    assert upper_bound(body(speed="fast"), opus).usd == pytest.approx(2 * usual, rel=0.1)
    assert upper_bound(body(inference_geo="us"), opus).usd == pytest.approx(1.1 * usual, rel=0.1)


# -- limits as they are set


@pytest.mark.parametrize(
    "given",
    [
        {"usd_per_day": -1},
        {"usd_per_day": "1"},
        {"usd_per_day": True},
        {"usd_per_month": 1e9},
        {"usd_per_day": nan},
        {"usd_per_day": inf},
        {"tokens_per_day": 1.5},
        {"requests_per_minute": 10**9},
        {"usd_per_year": 1},
        [],
        "none",
    ],
)
def test_what_is_no_limit_is_a_400(given):
    with pytest.raises(ProxyError, match="limits") as caught:
        Limits.of(given)
    assert caught.value.status == 400


def test_null_is_no_limit():
    assert Limits.of(None) == Limits.of({}) == Limits.of({"usd_per_day": None}) == NO_LIMITS
    assert Limits.of({"usd_per_day": 0}).money


# -- the account of a key


@pytest.fixture
def clock():
    return Clock(NOON)


def used(usage, at=NOON, ended="whole", **fields):
    return Receipt(at=at, model="claude-sonnet-4-6", usage=usage, ended=ended, **fields)


def held(budgets, limits, asked=None, key="k"):
    hold = budgets.open(key, limits)
    hold.reserve(asked or body(), SONNET)
    return hold


def test_what_is_held_counts_until_it_is_settled(clock):
    most = upper_bound(body(), SONNET)
    budgets, limits = Budgets(MODELS, clock=clock), Limits(usd_per_day=most.usd * 2.5)
    first, _ = held(budgets, limits), held(budgets, limits)
    with pytest.raises(OverBudget):
        held(budgets, limits)
    first.settle(used({"input_tokens": 1, "output_tokens": 1}))
    held(budgets, limits)
    assert budgets.used("k")["usd_today"] == pytest.approx(18e-6)


def test_a_hold_is_taken_anew_and_not_added_for_another_attempt(clock):
    budgets, limits = Budgets(MODELS, clock=clock), Limits(usd_per_day=upper_bound(body(), SONNET).usd * 1.5)
    hold = budgets.open("k", limits)
    for _ in range(5):
        hold.reserve(body(), SONNET)
    hold.settle(used({}, ended="error"))
    held(budgets, limits)


@pytest.mark.parametrize(
    ("usage", "ended", "tokens"),
    [
        ({"input_tokens": 10, "output_tokens": 5}, "whole", 15),
        ({"input_tokens": 10, "output_tokens": 1}, "client_left", 110),  # as long as it might have become
        ({"input_tokens": 10, "output_tokens": 1}, "cut", 110),
        ({"input_tokens": 10, "output_tokens": 200}, "cut", 210),
        ({}, "client_left", likely(body(), SONNET).tokens),
    ],
)
def test_what_a_key_is_charged_with(clock, usage, ended, tokens):
    budgets = Budgets(MODELS, clock=clock)
    hold, receipt = held(budgets, Limits(usd_per_day=1)), used(usage, ended=ended)
    hold.settle(receipt)
    assert receipt.charged_tokens == budgets.used("k")["tokens_today"] == tokens
    assert receipt.charged_usd > 0


def test_what_was_refused_or_failed_costs_nothing(clock):
    budgets = Budgets(MODELS, clock=clock)
    hold, receipt = held(budgets, Limits(usd_per_day=1)), used({}, ended="error")
    hold.free()
    hold.settle(receipt)
    assert receipt.charged_usd == 0
    assert budgets.used("k") == {"usd_today": 0, "usd_this_month": 0, "tokens_today": 0}


def test_days_and_months_start_anew_by_this_computers_clock(clock):
    budgets, limits = Budgets(MODELS, clock=clock), Limits(usd_per_day=1, usd_per_month=3)
    dear = {"input_tokens": 300_000, "output_tokens": 0}  # $0.90
    for _day in range(3):
        held(budgets, limits).settle(used(dear, at=clock.now))
        with pytest.raises(OverBudget, match="for today"):
            held(budgets, limits, body("x" * 40_000))
        clock.now += DAY
    held(budgets, limits).settle(used(dear, at=clock.now))
    with pytest.raises(OverBudget) as caught:
        held(budgets, limits)
    assert "for this month ($3.00) is used up" in caught.value.message
    assert float(caught.value.headers["retry-after"]) == begins(date(2026, 12, 1)) - clock.now
    clock.now = begins(date(2026, 12, 1))
    held(budgets, limits)


def test_what_is_left_and_when_it_starts_anew_is_told(clock):
    budgets = Budgets(MODELS, clock=clock)
    with pytest.raises(OverBudget) as caught:
        held(budgets, Limits(usd_per_day=0.001), body("x" * 1000))
    assert caught.value.status == 429
    assert caught.value.headers == {"retry-after": "43200", "x-should-retry": "false"}
    assert "0.1 ¢ is left" in caught.value.message
    assert "until 00:00" in caught.value.message
    with pytest.raises(OverBudget, match="tokens for today"):
        held(budgets, Limits(tokens_per_day=100))


def test_requests_of_a_minute_are_counted_and_the_wait_is_told(clock):
    budgets, limits = Budgets(MODELS, clock=clock), Limits(requests_per_minute=3)
    for _ in range(3):
        budgets.open("k", limits)
        clock.now += 10
    with pytest.raises(OverBudget, match=r"3 requests a minute\. Wait 30 s") as caught:
        budgets.open("k", limits)
    assert caught.value.headers["retry-after"] == "30"
    budgets.open("other", limits)
    clock.now += 30
    budgets.open("k", limits)


def test_what_the_books_hold_of_this_month_counts_from_the_start_on(clock):
    charges = [("k", "2026-11-20", 0.5, 1000), ("k", "2026-11-02", 2.0, 9), ("k", "2026-10-31", 50.0, 9)]
    budgets = Budgets(MODELS, charges, clock=clock)
    assert budgets.used("k") == {"usd_today": 0.5, "usd_this_month": 2.5, "tokens_today": 1000}


def test_a_revoked_keys_requests_end(clock):
    budgets = Budgets(MODELS, clock=clock)
    budgets.revoke("k")
    with pytest.raises(ProxyError, match="revoked"):
        budgets.open("k", NO_LIMITS, ping=True)


# -- on the road


@pytest.fixture
async def proxy(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as made:
        await made.sign_in()
        anthropic.seen.clear()
        yield made


async def make_key(proxy, **fields):
    made = await proxy.owner("POST", "/api/keys", json={"name": "tablet", **fields})
    assert made.status == 201, made.raw
    return made.json


async def used_by(proxy, key_id):
    rows = (await proxy.owner("GET", "/api/keys")).json["keys"]
    return next(row["used"] for row in rows if row["id"] == key_id)


def bills(anthropic, bill, output=100, before=0.0):
    """Every chat is answered and billed as dearly as can be: a token for each byte of its text, all of them new, and
    the reply as long as allowed."""

    def answer(seen):
        if "count_tokens" in seen.path:
            return plain({"input_tokens": len(said(seen.body).encode())})
        usage = {"input_tokens": len(said(seen.body).encode()), "output_tokens": output}
        bill.append(cost(SONNET, usage)[0])
        if not seen.body.get("stream"):
            message = {"type": "message", "model": "claude-sonnet-4-6", "stop_reason": "end_turn"}
            return plain({**message, "content": [{"type": "text", "text": "Hi."}], "usage": usage})
        begun = {**usage, "output_tokens": 1}
        events = reply_events("Good ", "evening.", usage=begun, output=output)
        return slowly(events, before)

    anthropic.answer = answer


def slowly(events, seconds):
    async def reply(request):
        await asyncio.sleep(seconds)
        return await stream(*events)(request)

    return reply


def said(asked):
    return json.dumps(asked["messages"], ensure_ascii=False)


TEXT = "語" * 300  # 900 bytes: with its reply about 0.5 ct


@pytest.mark.parametrize("limit", ["usd_per_day", "usd_per_month"])
async def test_fifty_streams_at_once_against_the_last_ten_cents_never_overspend(proxy, anthropic, limit):
    key, bill = await make_key(proxy, limits={limit: 0.10}), []
    bills(anthropic, bill, before=0.05)
    for _ in range(3):
        replies = await asyncio.gather(*(chat(proxy, key, stream=True) for _ in range(50)))
        assert {reply.status for reply in replies} <= {200, 429}
    assert 0.08 < sum(bill) <= 0.10
    assert (await used_by(proxy, key["id"]))["usd_today"] == pytest.approx(sum(bill))
    refused = next(reply for reply in replies if reply.status == 429)
    assert refused.json["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["retry-after"]) > 0


async def test_hang_ups_at_every_stage_never_overspend(proxy, anthropic):
    key, bill = await make_key(proxy, limits={"usd_per_day": 0.10}), []
    bills(anthropic, bill, before=0.02)
    rng = random.Random(3)

    async def leave():
        headers, asked = {"x-api-key": key["key"]}, body(TEXT, stream=True)
        async with proxy.session.post(f"{proxy.url}/v1/messages", json=asked, headers=headers) as reply:
            if reply.status == 200:
                await reply.content.readuntil(b"\n\n")
            reply.close()
            return reply.status

    for _ in range(6):
        tasks = [asyncio.create_task(leave()) for _ in range(20)]
        await asyncio.sleep(rng.uniform(0.001, 0.03))
        for task in rng.sample(tasks, 5):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await proxy.parts.traffic.drain(10)
    began = [row for row in await proxy.receipts() if row["tokens"]["input_tokens"]]
    assert began
    assert sum(row["usd"] for row in began) <= 0.10
    assert (await used_by(proxy, key["id"]))["usd_today"] <= 0.10 + 1e-9


async def chat(proxy, key, text=TEXT, path="/v1/messages", **changes):
    return await proxy.send("POST", path, headers={"x-api-key": key["key"]}, json=body(text, **changes))


async def test_plain_requests_and_counts_beside_streams_never_overspend(proxy, anthropic):
    key, bill = await make_key(proxy, limits={"usd_per_day": 0.10}), []
    bills(anthropic, bill, before=0.02)

    async def one(i):
        path = "/v1/messages/count_tokens" if i % 3 == 1 else "/v1/messages"
        return i % 3 == 1, (await chat(proxy, key, path=path, stream=i % 3 == 0)).status

    seen = Counter(await asyncio.gather(*(one(i) for i in range(150))))
    assert seen[(True, 200)] == 50, "counting costs nothing"
    assert seen[(False, 200)]
    assert seen[(False, 429)]
    assert sum(bill) <= 0.10


async def test_retries_are_held_once_and_only_the_reply_is_charged(proxy, anthropic):
    key = await make_key(proxy, limits={"usd_per_day": 0.01})
    anthropic.will(*[error(529, "overloaded_error", "Overloaded", retry_after_ms="1")] * 2, stream(STREAM))
    assert (await chat(proxy, key, stream=True)).status == 200
    assert len(anthropic.seen) == 3
    receipt = (await proxy.receipts())[0]
    assert (await used_by(proxy, key["id"]))["usd_today"] == pytest.approx(receipt["usd"])
    anthropic.will(*[error(529, "overloaded_error", "Overloaded", x_should_retry="false")] * 5)
    for _ in range(5):
        assert (await chat(proxy, key)).status == 529
    assert (await used_by(proxy, key["id"]))["usd_today"] == pytest.approx(receipt["usd"])


@pytest.mark.parametrize(
    ("setting", "of_key", "limit", "pings"), [(1, None, 0.30, 1), (0, 1, 0.30, 1), (0, 1, 0.08, 0), (1, 0, 0.30, 0)]
)
async def test_pings_are_paid_by_the_key_whose_chat_they_keep_alive_and_only_if_it_can_and_wants_them(
    tmp_path, anthropic, setting, of_key, limit, pings
):
    due, bill = asyncio.Event(), []

    async def sleep(seconds):
        due.set()

    settings = {"strip_cache_ttl": "true", "cache_keepalive_pings": setting}
    async with running(tmp_path, anthropic.url, sleep=sleep, **settings) as proxy:
        await proxy.sign_in()
        anthropic.seen.clear()
        key = await make_key(proxy, limits={"usd_per_day": limit}, helps={"cache_keepalive_pings": of_key})
        bills(anthropic, bill)  # 14,400 bytes, so a reply costs 4.5 ct and a ping may cost 5.5
        assert (await chat(proxy, key, "Once upon a time. " * 800, stream=True)).status == 200
        async with asyncio.timeout(PATIENCE):
            if of_key != 0:
                await due.wait()
            while len(receipts := await proxy.receipts()) < 1 + (of_key != 0):
                await asyncio.sleep(0.01)
        assert (await used_by(proxy, key["id"]))["usd_today"] == pytest.approx(sum(bill))
    assert due.is_set() == (of_key != 0)
    assert sum(bill) <= limit
    assert len([seen for seen in anthropic.seen if seen.body.get("max_tokens") == 0]) == pings
    told = [(row["key"], row["chat"], row["status"]) for row in receipts if row["kind"] == "ping"]
    assert told == [("tablet", receipts[-1]["chat"], 200 if pings else 429)] * (of_key != 0)


async def test_where_the_surest_bound_does_not_fit_the_upstream_counts_exactly(proxy, anthropic):
    key, bill = await make_key(proxy, limits={"usd_per_day": 0.02}), []
    bills(anthropic, bill)
    counts = anthropic.answer

    def answer(seen):
        return plain({"input_tokens": 2_000}) if "count_tokens" in seen.path else counts(seen)

    anthropic.answer = answer
    long = "word " * 4_000  # 20,000 bytes: 6 ct if each were a token
    assert (await chat(proxy, key, long)).status == 200
    assert [seen.path for seen in anthropic.seen] == ["/v1/messages/count_tokens", "/v1/messages"]
    assert "max_tokens" not in anthropic.seen[0].body
    anthropic.will(error(404, "not_found_error", "no such address"))
    refused = await chat(proxy, key, long)
    assert refused.status == 429


async def test_tokens_of_a_day_and_requests_of_a_minute(proxy, anthropic):
    few = await make_key(proxy, limits={"tokens_per_day": 50})
    refused = await chat(proxy, few, "Hi")
    assert (refused.status, "tokens" in refused.message) == (429, True)
    slow = await make_key(proxy, limits={"requests_per_minute": 2})
    statuses = [(await chat(proxy, slow, "Hi")).status for _ in range(3)]
    assert statuses == [200, 200, 429]


async def test_a_list_of_models_is_one_of_the_requests_of_a_minute(proxy, anthropic):
    key = await make_key(proxy, limits={"requests_per_minute": 2})
    asked = {"headers": {"x-api-key": key["key"]}}
    statuses = [(await proxy.send("GET", path, **asked)).status for path in ("/v1/models", "/v1/models/opus-5-5")]
    assert statuses == [200, 200]
    refused = await proxy.send("GET", "/v1/models", **asked)
    assert (refused.status, "2 requests a minute" in refused.message) == (429, True)
    assert (await chat(proxy, key)).status == 429


@pytest.mark.parametrize("model", ["claude-opus-of-tomorrow", "llama-7b"])
async def test_a_model_without_a_known_price_is_refused_under_a_money_limit_and_served_without(proxy, anthropic, model):
    key, free = await make_key(proxy, limits={"usd_per_day": 1}), await make_key(proxy)
    refused = await chat(proxy, key, model=model)
    assert (refused.status, "price of this model is not known" in refused.message) == (403, True)
    assert anthropic.seen == []
    assert (await chat(proxy, free, model=model)).status == 200


async def test_tools_at_claudes_side_are_refused_under_a_limit(proxy, anthropic):
    key = await make_key(proxy, limits={"usd_per_day": 1})
    for kind in ("web_search_20250305", "advisor_20260301", "tool_search_tool_bm25_20251119", "of_tomorrow"):
        assert (await chat(proxy, key, tools=[{"type": kind, "name": "x"}])).status == 403
    assert anthropic.seen == []
    of_the_front_end = [{"name": "dice", "input_schema": {"type": "object"}}, {"type": "memory_20250818", "name": "m"}]
    assert (await chat(proxy, key, tools=of_the_front_end)).status == 200


@pytest.mark.parametrize(
    ("beta", "further"),
    [
        ("server-side-fallback-2026-06-01", {"fallbacks": [{"model": "claude-opus-4-5"}]}),
        ("mcp-client-2025-11-20", {"mcp_servers": [{"type": "url", "url": "https://a.example", "name": "a"}]}),
        ("message-threads-2026-10-01", {"thread": {"id": "thread_1"}}),
        ("of-tomorrow-2027-01-01", {"deeper": True}),
    ],
)
async def test_fields_whose_cost_nobody_knows_are_refused_under_a_limit(proxy, anthropic, beta, further):
    key, free = await make_key(proxy, limits={"usd_per_day": 1}), await make_key(proxy)
    headers = {"anthropic-beta": beta}
    refused = await proxy.send(
        "POST", "/v1/messages", headers={**headers, "x-api-key": key["key"]}, json=body(TEXT, **further)
    )
    assert (refused.status, f"may not use “{next(iter(further))}”" in refused.message) == (403, True)
    assert anthropic.seen == []
    passed = await proxy.send(
        "POST", "/v1/messages", headers={**headers, "x-api-key": free["key"]}, json=body(TEXT, **further)
    )
    assert passed.status == 200


async def test_a_limit_set_today_counts_what_was_used_before_and_a_raised_one_opens_at_once(proxy, anthropic):
    key, bill = await make_key(proxy), []
    bills(anthropic, bill)
    for _ in range(3):
        assert (await chat(proxy, key)).status == 200
    changed = await proxy.owner("PATCH", f"/api/keys/{key['id']}", json={"limits": {"usd_per_day": 0.01}})
    assert changed.json["limits"]["usd_per_day"] == 0.01
    assert (await chat(proxy, key)).status == 429
    await proxy.owner("PATCH", f"/api/keys/{key['id']}", json={"limits": {"usd_per_day": None, "usd_per_month": 1}})
    assert (await chat(proxy, key)).status == 200


async def test_what_was_spent_is_known_after_a_restart(tmp_path, anthropic):
    bill = []
    async with running(tmp_path, anthropic.url) as proxy:
        await proxy.sign_in()
        key = await make_key(proxy, limits={"usd_per_day": 0.02})
        bills(anthropic, bill)
        assert (await chat(proxy, key)).status == 200
        before = await used_by(proxy, key["id"])
    async with running(tmp_path, anthropic.url) as proxy:
        assert await used_by(proxy, key["id"]) == before
        statuses = [(await chat(proxy, key)).status for _ in range(6)]
    assert statuses[-1] == 429
    assert 0.01 < sum(bill) <= 0.02


@pytest.mark.parametrize("streams", [True, False])
async def test_at_eighty_per_cent_a_line_at_the_end_of_a_reply_says_so_once(proxy, anthropic, streams):
    key, bill = await make_key(proxy, limits={"usd_per_day": 0.016}), []
    bills(anthropic, bill, output=50)
    said_so = []
    for _ in range(13):
        before = sum(bill)
        reply = await chat(proxy, key, "Hi " * 20, max_tokens=50, stream=streams)
        assert reply.status == 200
        if b"of this key's money for today are used" in reply.raw:
            said_so.append(before)
    assert len(said_so) == 1
    assert 0.0128 <= said_so[0] < 0.0145
    told = [row for row in await proxy.receipts() if any(one["name"] == "budget_notice" for one in row["changes"])]
    assert len(told) == 1


async def test_the_line_at_eighty_per_cent_is_not_said_again_after_a_restart_on_the_same_day(
    anthropic, tmp_path, clock
):
    bills(anthropic, [], output=50)

    async def says_so(proxy):
        reply = await chat(proxy, key, "Hi " * 20, max_tokens=50)
        assert reply.status == 200
        return b"of this key's money for today are used" in reply.raw

    async with running(tmp_path, anthropic.url, clock=clock) as proxy:
        await proxy.sign_in()
        key = await make_key(proxy, limits={"usd_per_day": 0.016})
        while not await says_so(proxy):
            pass
    async with running(tmp_path, anthropic.url, clock=clock) as proxy:
        assert not await says_so(proxy)
    clock.now += 86_400
    async with running(tmp_path, anthropic.url, clock=clock) as proxy:
        while not await says_so(proxy):
            pass


async def test_no_key_and_a_key_without_limits_meet_no_budget(proxy, anthropic):
    assert (await proxy.ask()).status == 200
    key = await make_key(proxy)
    assert (await chat(proxy, key)).status == 200
    assert [seen.path for seen in anthropic.seen] == ["/v1/messages"] * 2


async def test_tokens_are_charged_also_where_the_fee_of_a_tool_is_not_known(proxy, anthropic):
    key = await make_key(proxy)
    usage = {"input_tokens": 1_000_000, "server_tool_use": {"of_tomorrow": 1}}
    anthropic.will(stream(*reply_events("Found.", usage=usage, output=0)))
    await chat(proxy, key, stream=True)
    assert (await used_by(proxy, key["id"]))["usd_today"] == pytest.approx(3)
    assert (await proxy.receipts())[0]["usd"] is None


# -- what a key may use


async def test_a_key_for_certain_models_opens_no_other_under_any_spelling(proxy, anthropic):
    key = await make_key(proxy, models=["sonnet-4.6"])
    for model, status in [("claude-sonnet-4-6", 200), ("anthropic/claude-sonnet-4.6", 200), ("claude-opus-5", 403)]:
        reply = await chat(proxy, key, model=model)
        assert reply.status == status
    assert "claude-sonnet-4-6" in reply.message
    assert (await chat(proxy, key, model="claude-opus-5", path="/v1/messages/count_tokens")).status == 403


async def test_the_list_of_models_shows_a_key_those_it_may_use(proxy, anthropic):
    key = await make_key(proxy, models=["sonnet-4.6", "claude-opus-5"])
    asked = {"headers": {"x-api-key": key["key"]}}
    live = {"data": [{"id": "claude-opus-5-5"}, {"id": "claude-opus-5"}, "odd", {}], "has_more": True, "last_id": "x"}
    anthropic.will(plain(live))
    listed = await proxy.send("GET", "/v1/models", **asked)
    assert listed.json == {"data": [{"id": "claude-opus-5"}], "has_more": True, "last_id": "x"}
    anthropic.will(error(529, "overloaded_error", "Overloaded"), plain(b"<html>"))
    offline = await proxy.send("GET", "/v1/models", **asked)
    assert [row["id"] for row in offline.json["data"]] == ["claude-opus-5", "claude-sonnet-4-6"]
    assert (await proxy.send("GET", "/v1/models", **asked)).json == {"data": []}
    assert (await proxy.send("GET", "/v1/models/claude-opus-5-5", **asked)).status == 403
    assert (await proxy.send("GET", "/v1/models/opus-5", **asked)).status == 200


async def test_a_key_for_certain_personas_opens_no_other_and_not_the_plain_address(proxy, anthropic):
    key = await make_key(proxy, personas=["lampwright"])
    assert (await chat(proxy, key)).status == 403
    refused = await chat(proxy, key, path="/v1/other/messages")
    assert (refused.status, "/v1/lampwright" in refused.message) == (403, True)


async def test_no_limited_key_reaches_addresses_whose_cost_is_not_counted(proxy, anthropic):
    free = await make_key(proxy, own=True)
    limited = await make_key(proxy, own=True, limits={"usd_per_day": 1})
    for key, status in ((free, 200), (limited, 404)):
        headers = {"x-api-key": key["key"]}
        reply = await proxy.send("POST", "/v1/messages/batches", headers=headers, json={"requests": []})
        assert reply.status == status


async def test_a_revoked_key_ends_at_once(proxy, anthropic):
    key = await make_key(proxy, limits={"usd_per_day": 1})
    await make_key(proxy)
    assert (await proxy.owner("DELETE", f"/api/keys/{key['id']}")).status == 204
    assert (await chat(proxy, key)).status == 401
    assert (await proxy.send("GET", "/api/me", headers={"Authorization": f"Bearer {key['key']}"})).status == 401


# -- the addresses


async def test_a_key_is_shown_once_listed_by_its_beginning_with_its_last_use_and_gone_when_revoked(proxy, anthropic):
    key = await make_key(proxy)
    assert (await chat(proxy, key)).status == 200
    listed = await proxy.owner("GET", "/api/keys")
    (row,) = listed.json["keys"]
    assert key["key"].encode() not in listed.raw
    assert key["key"].endswith(row["ends_with"])
    assert datetime.fromisoformat(row["last_used_at"]).timestamp() > 0
    assert (await proxy.owner("DELETE", f"/api/keys/{key['id']}")).status == 204
    assert (await proxy.owner("GET", "/api/keys")).json["keys"] == []


async def test_a_keys_holder_sees_their_own_account_and_nothing_else(proxy, anthropic):
    bill = []
    bills(anthropic, bill)
    key = await make_key(
        proxy,
        limits={"usd_per_day": 1, "tokens_per_day": 10_000},
        models=["claude-sonnet-4-6"],
        helps={"cache_keepalive_pings": 3},
    )
    other = await make_key(proxy, limits={})
    for one in (key, other):
        await chat(proxy, one)
    told = await proxy.send("GET", "/api/me", headers={"Authorization": f"Bearer {key['key']}"})
    assert told.status == 200
    me = told.json
    assert (me["name"], me["models"]) == ("tablet", ["claude-sonnet-4-6"])
    assert me["helps"] == {"cache_late_lore": None, "cache_steady_window": None, "cache_keepalive_pings": 3}
    assert me["used"]["usd_today"] == pytest.approx(bill[0])
    assert me["left"]["usd_today"] == pytest.approx(1 - bill[0])
    assert me["left"]["usd_this_month"] is None
    assert [row["requests"] for row in me["days"]] == [1]
    assert datetime.fromisoformat(me["resets"]["day"]) <= datetime.fromisoformat(me["resets"]["month"])
    assert b"mine" not in told.raw
    assert other["id"].encode() not in told.raw


async def test_the_holders_address_opens_to_a_client_key_alone(proxy):
    key = await make_key(proxy)
    owner = proxy.parts.owner.admin_token
    for secret, status in ((key["key"], 200), (key["key"] + "x", 401), ("anything", 401), (owner, 401), ("", 401)):
        assert (await proxy.send("GET", "/api/me", headers={"Authorization": f"Bearer {secret}"})).status == status
    for method, path in [("GET", "/api/keys"), ("GET", "/api/usage"), ("PATCH", f"/api/keys/{key['id']}")]:
        reply = await proxy.send(method, path, headers={"Authorization": f"Bearer {key['key']}"})
        assert reply.status == 401


@pytest.mark.parametrize(
    "fields",
    [
        {"limits": {"usd_per_day": "much"}},
        {"limits": []},
        {"own": "yes"},
        {"models": "claude"},
        {"models": [""]},
        {"models": [1]},
        {"personas": ["../x"]},
        {"budget": 1},
    ],
)
async def test_a_key_is_not_made_or_changed_with_what_makes_no_sense(proxy, fields):
    key = await make_key(proxy)
    assert (await proxy.owner("POST", "/api/keys", json={"name": "x", **fields})).status == 400
    assert (await proxy.owner("PATCH", f"/api/keys/{key['id']}", json=fields)).status == 400
    rows = (await proxy.owner("GET", "/api/keys")).json["keys"]
    assert len(rows) == 1
