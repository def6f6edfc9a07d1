"""Keep-alive pings: sent only where and as long as they pay."""

import asyncio

import pytest
from cache_bench import Bench
from chats import Chat

from server.keepalive import KeepAlive, chance_of_return, next_ping, warming
from server.practice import accounting
from server.practice.rules import refusal

pytestmark = pytest.mark.anyio
HEADERS = {"anthropic-version": "2023-06-01", "x-api-key": "sk-ant-api03-x", "content-type": "application/json"}
MINUTE = 60.0


def played(pauses=(60.0,) * 6, ttl_allowed=False, **shape):
    """A chat with these pauses, each request sent: its bench, and the time of the last request."""
    bench, chat, at = Bench(ttl_allowed=ttl_allowed), Chat(**{"seed": 1, "earlier": 30, **shape}), 0.0
    for pause in (0.0, *pauses):
        at += pause
        chat.say()
        bench.ask(chat.ask(), at)
        chat.reply()
    return bench, chat, at


def test_a_ping_comes_shortly_before_the_entry_dies():
    bench, _, at = played()
    ping = next_ping(bench.plan_, bench.sent, used_at=at, sent=0, most=3)
    assert ping.at == at + 280


def test_a_ping_repeats_the_prefix_asks_for_nothing_and_reads_it():
    bench, _, at = played()
    ping = next_ping(bench.plan_, bench.sent, used_at=at, sent=0, most=3)
    body = ping.request.body
    assert body["max_tokens"] == 0
    assert "stream" not in body
    assert body["messages"][-1] == {"role": "user", "content": [{"type": "text", "text": "."}]}
    assert refusal(body, HEADERS, bench.plan_.model, "api_key", 0.0) is None
    _, bill, _ = bench.upstreams["w"].bill(body, bench.plan_.model, ping.at)
    assert bill.read == accounting.read_prompt(body, bench.plan_.model).upto[max(bench.plan_.marks)]
    assert bill.write_5m == bill.write_1h == 0
    assert bill.plain < 10


def test_where_an_hour_is_allowed_there_are_none():
    bench, _, at = played(ttl_allowed=True)
    assert next_ping(bench.plan_, bench.sent, used_at=at, sent=0, most=3) is None


def test_no_more_than_the_setting_says():
    bench, _, at = played()
    assert next_ping(bench.plan_, bench.sent, used_at=at, sent=3, most=3) is None
    assert next_ping(bench.plan_, bench.sent, used_at=at, sent=0, most=0) is None


def test_they_end_where_they_no_longer_pay():
    bench, _, at = played(pauses=(60.0, 4000.0) * 12)
    assert next_ping(bench.plan_, bench.sent, used_at=at, sent=0, most=99) is None, "who stays away stays away long"
    bench, _, at = played(pauses=(60.0, 400.0) * 6)
    assert next_ping(bench.plan_, bench.sent, used_at=at, sent=0, most=99) is not None


def test_the_chance_of_return_is_of_those_who_stayed_away_that_long():
    assert chance_of_return([60.0] * 20, 0.0) == pytest.approx(0.3)
    assert chance_of_return([60.0, 400.0, 400.0, 4000.0], 0.0) == pytest.approx((2 + 0.9) / 6)
    assert chance_of_return([400.0] * 20, 300.0) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "change",
    [
        {"tool_choice": {"type": "any"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
    ],
)
def test_none_where_the_api_takes_no_empty_reply(change):
    bench, chat, at = played()
    bench.ask({**chat.ask(), **change}, at + MINUTE)
    assert warming(bench.plan_, bench.sent) is None


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self, at):
        self.at = at

    def __call__(self):
        return self.at

    async def sleep(self, seconds):
        self.at += seconds
        await asyncio.sleep(0)


def keeper(bench, clock, sent, answers=True):
    async def send(asked, plan, request):
        _, bill, changed = bench.upstreams["w"].bill(request.body, plan.model, clock.at)
        accounting.remember(bench.upstreams["w"].entries, changed, clock.at)
        sent.append(clock.at)
        return accounting.usage(bill, 0) if answers else None

    return KeepAlive(bench.planner, send, clock=clock, sleep=clock.sleep)


async def settled():
    for _ in range(50):
        await asyncio.sleep(0)


async def test_pings_carry_a_chat_over_a_pause_and_the_planner_knows():
    bench, chat, at = played(pauses=(60.0, 400.0) * 4)
    clock, sent = Clock(at), []
    keep = keeper(bench, clock, sent)
    keep.watch(bench.plan_, bench.sent, None, most=2)
    await settled()
    assert sent == [at + 280, at + 560], "two, as the setting allows"
    chat.say()
    told = bench.ask(chat.ask(), at + 500)
    assert told.outcome == "hit"
    await keep.close()


async def test_the_chat_going_on_ends_the_pings_of_the_request_before():
    bench, chat, at = played(pauses=(60.0, 400.0) * 4)
    sent, waiting = [], asyncio.Event()

    async def forever(seconds):
        await waiting.wait()

    async def send(asked, plan, request):
        sent.append(plan)

    keep = KeepAlive(bench.planner, send, clock=lambda: at, sleep=forever)
    first = bench.plan_
    keep.watch(first, bench.sent, None, most=2)
    await settled()
    chat.say()
    bench.ask(chat.ask(), at + MINUTE)
    keep.watch(bench.plan_, bench.sent, None, most=2)
    waiting.set()
    await settled()
    await keep.close()
    assert first not in sent
    assert sent == [bench.plan_]


async def test_where_there_is_nothing_to_keep_alive_they_stop():
    bench, _, at = played(pauses=(60.0, 400.0) * 4)
    bench.upstreams["w"].entries.clear()
    clock, sent = Clock(at), []
    keep = keeper(bench, clock, sent)
    keep.watch(bench.plan_, bench.sent, None, most=5)
    await settled()
    assert len(sent) == 1
    await keep.close()


async def test_while_the_account_rests_none_is_sent_again():
    bench, _, at = played(pauses=(60.0, 400.0) * 4)
    clock, sent = Clock(at), []
    keep = keeper(bench, clock, sent, answers=False)
    keep.watch(bench.plan_, bench.sent, None, most=5)
    await settled()
    assert len(sent) == 1
    await keep.close()
