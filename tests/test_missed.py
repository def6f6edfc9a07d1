"""Each cause of a cache miss, produced with the whole program before the practice upstream: told in the receipt, in the
reply's headers, in the log and on the request's page, in figures that are the upstream's own."""

import logging
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import unescape

import pytest
from aiohttp.test_utils import TestServer

from server.models import Models
from server.pages.books import RECEIPTS
from server.practice.app import create_practice
from server.prices import cost
from tests.chats import Chat, words
from tests.fakes import PLAIN, error, plain
from tests.pools import Clock
from tests.running import running

pytestmark = pytest.mark.anyio
MODELS = Models.load()
KEY, OTHER_KEY = "sk-ant-api03-one-of-the-tests-0001", "sk-ant-api03-another-workspace-0002"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TOOL = {"name": "roll", "description": "Rolls dice.", "input_schema": {"type": "object"}}


@dataclass(frozen=True)
class Miss:
    """What a chat is like, what happens in it or to its last request, and what the receipt then says first."""

    why: str
    shape: dict = field(default_factory=dict)
    happens: object = lambda chat: None
    pause: float = 60.0
    always: dict = field(default_factory=dict)  # in the body of every request
    then: dict = field(default_factory=dict)  # in that of the last
    key: str = KEY
    settings: dict = field(default_factory=dict)


def lore_comes(chat):
    chat.active = {1: 9}


def card_changes(chat):
    chat.cards[0][2] = words(chat.rng, 100)


def first_prompt_changes(chat):
    chat.cards[0][0] = words(chat.rng, 100)


def oldest_go(chat):
    del chat.story[:2]


def message_is_edited(chat):
    chat.story[10] = (chat.story[10][0], words(chat.rng, 120))


def model_is_switched(chat):
    chat.model = "claude-opus-4-8"


def picture_comes(chat):
    chat.picture = True


MISSES = {
    "a World Info entry that came": Miss(
        "World Info entry came into the system prompt (block 2 of 11)", {"lore": 2}, lore_comes
    ),
    "a World Info entry that changed": Miss(
        "World Info entry in the system prompt changed (block 4 of 10), or another text there", {}, card_changes
    ),
    "prompts in the first message": Miss(
        "World Info entry in the prompts in the first message changed (block 2 of",
        {"system": False},
        first_prompt_changes,
    ),
    "a macro": Miss(
        "the system prompt changes with every request (block 1 of 10), as a time, date or random macro does",
        {"macro": "random"},
    ),
    "an author's note": Miss(
        "an author's note or World Info entry at a depth moved on", {"note": 12, "length": 300, "turns": 1}
    ),
    "the oldest messages": Miss("the context size is full: the oldest messages were dropped", {}, oldest_go),
    "an edited message": Miss(
        "an earlier message was edited, deleted or hidden (message 11 of 40)", {}, message_is_edited
    ),
    "another model": Miss("the model was switched from claude-sonnet-4-6 to claude-opus-4-8", {}, model_is_switched),
    "another effort": Miss("effort was changed from high to low", then={"output_config": {"effort": "low"}}),
    "a picture": Miss("the first image came", {}, picture_comes),
    "a tool": Miss(
        "a tool definition changed", always={"tools": [TOOL]}, then={"tools": [{**TOOL, "description": "Rolls a die."}]}
    ),
    "another key": Miss("another account or key pays now, with a cache of its own", key=OTHER_KEY),
    "a pause": Miss("pause of 14 min", pause=840.0, settings={"strip_cache_ttl": "true"}),
    "a long pause": Miss("pause of 2.1 h", pause=7_500.0),
}


class Player:
    """Plays a chat through the program; time passes as the player says."""

    def __init__(self, proxy, clock, chat, always=()):
        self.proxy, self.clock, self.chat, self.always = proxy, clock, chat, dict(always)

    async def ask(self, key=KEY, **changes):
        """The reply to the chat's next request, and its receipt."""
        body = {"system": ..., **self.chat.ask(), **self.always, **changes}
        if getattr(self.chat, "picture", False):
            image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
            body["messages"][-1]["content"].append(image)
        answer = await self.proxy.ask(headers={"x-api-key": key}, **body)
        assert answer.status == 200, answer.raw
        row = next(row for row in await self.proxy.receipts() if row["id"] == answer.headers["x-receipt"])
        return answer, row

    async def warm(self, turns=4, pause=60.0):
        """Some turns, each answered, and the player's next words."""
        for turn in range(turns):
            self.chat.say()
            answer, _ = await self.ask()
            self.chat.reply()
            self.clock.now += pause if turn == turns - 1 else 60.0
        self.chat.say()
        return answer


@asynccontextmanager
async def playing(tmp_path, *, settings=None, always=(), **shape):
    clock = Clock()
    app = create_practice(MODELS, clock=clock, pace=0.0, first_byte=0.0)
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        async with running(tmp_path, url, clock=clock, **(settings or {})) as proxy:
            yield Player(proxy, clock, Chat(**{"seed": 1, "earlier": 30, **shape}), always)


@pytest.mark.parametrize("miss", MISSES.values(), ids=MISSES.keys())
async def test_each_cause_is_told_with_its_tokens_and_their_price(tmp_path, miss, caplog):
    caplog.set_level(logging.INFO, "server.turns")
    shape = dict(miss.shape)
    turns = shape.pop("turns", 4)
    async with playing(tmp_path, settings=miss.settings, always=miss.always, **shape) as player:
        await player.warm(turns, miss.pause)
        miss.happens(player.chat)
        answer, row = await player.ask(miss.key, **miss.then)
        page = await player.proxy.owner("GET", f"/requests/{row['id']}")
    cache, tokens = row["cache"], row["tokens"]
    why = cache["missed_because"]
    assert why.startswith(miss.why)
    again, cents = re.fullmatch(r".+: ([\d,]+) tokens sent again, (\d+\.\d) ¢", why).groups()
    again, price = int(again.replace(",", "")), MODELS.find(row["model"]).price
    assert float(cents) == pytest.approx(again * price.input / 10_000, abs=0.05)
    told = sum(tokens.values()) - tokens["output_tokens"]
    assert 0.1 * told < again <= told - cache["read"]
    assert cache["outcome"] == ("partial" if cache["read"] else "miss")
    # the same in the log, in the headers and on the page; of no chat a word
    assert caplog.messages[-1].endswith(
        f"; cache {cache['outcome']}, {cache['read']:,} read, {cache['written']:,} written; {why}"
    )
    assert answer.headers["x-cache"] == f"{cache['outcome']}; read={cache['read']}; written={cache['written']}"
    assert answer.headers["x-cache-missed-because"] == why.replace("¢", "ct")
    assert f"Why: {why}." in re.sub(r"\s+", " ", unescape(page.raw.decode()))
    assert not [text for _, text in player.chat.story if text[:25] in caplog.text + why]
    # and every figure is the upstream's
    usage = next(event["message"]["usage"] for event in answer.events if event["type"] == "message_start")
    usage |= next(event["usage"] for event in answer.events if event["type"] == "message_delta")
    assert tokens == {
        "input_tokens": usage["input_tokens"],
        "cache_write_5m_tokens": usage["cache_creation"]["ephemeral_5m_input_tokens"],
        "cache_write_1h_tokens": usage["cache_creation"]["ephemeral_1h_input_tokens"],
        "cache_read_tokens": cache["read"],
        "output_tokens": usage["output_tokens"],
    }
    assert cache["read"] == usage["cache_read_input_tokens"]
    assert cache["written"] == usage["cache_creation_input_tokens"]
    assert (row["usd"], row["usd_without_cache"]) == pytest.approx(cost(MODELS.find(row["model"]), usage))


async def test_after_a_restart_each_turn_still_has_its_cause_in_brief(tmp_path):
    async with playing(tmp_path) as player:
        await player.warm(2)
        card_changes(player.chat)
        await player.ask()
    async with playing(tmp_path) as again:
        rows = await again.proxy.receipts()
    assert [row["cache"]["missed_because"] for row in rows] == [
        "the system prompt changed",
        None,
        "first request of this chat",
    ]
    assert [row["cache"]["outcome"] for row in rows] == ["miss", "hit", "miss"]


async def test_another_speaker_of_a_group(tmp_path):
    async with playing(tmp_path, group=2, card=900) as player:
        await player.warm()
        body = player.chat.ask(1)
        _, row = await player.ask(system=body["system"], messages=body["messages"])
    assert row["cache"]["missed_because"].startswith("another character speaks (group chat): ")


async def test_the_first_request_of_a_chat_and_one_that_missed_nothing(tmp_path):
    async with playing(tmp_path) as player:
        first = await player.warm(1)
        assert first.headers["x-cache"].startswith("miss; read=0; written=")
        assert first.headers["x-cache-missed-because"] == "first request of this chat"
        answer, row = await player.ask()
    assert (row["cache"]["outcome"], row["cache"]["missed_because"]) == ("hit", None)
    assert row["cache"]["read"] > 0
    assert "x-cache-missed-because" not in answer.headers


async def test_a_chat_too_short_to_be_cached_on_its_model(tmp_path):
    async with playing(tmp_path, model="claude-opus-4-6", earlier=0, card=100, length=40) as player:
        player.chat.say()
        answer, row = await player.ask()
    prompt = row["tokens"]["input_tokens"]
    why = f"too short to be cached on this model: {prompt:,} of 4,096 tokens"
    assert (row["cache"]["outcome"], row["cache"]["missed_because"]) == ("off", why)
    assert (answer.headers["x-cache"], answer.headers["x-cache-missed-because"]) == ("off; read=0; written=0", why)


# What the API itself says of a miss


async def test_the_api_is_asked_why_only_where_the_owner_wants_it(tmp_path):
    for wanted in (False, True):
        folder = tmp_path / str(wanted)
        folder.mkdir()
        settings = {"cache_diagnostics": wanted, "keep_bodies_in_memory": 1}
        async with playing(folder, settings=settings) as player:
            before = await player.warm(2)
            card_changes(player.chat)
            answer, row = await player.ask()
            sent = player.proxy.parts.app[RECEIPTS].bodies(row["id"]).sent
            _, other_row = await player.ask(OTHER_KEY)
        begun, said = (
            next(e["message"] for e in reply.events if e["type"] == "message_start") for reply in (before, answer)
        )
        asked = [change["name"] for change in row["changes"]]
        assert sent.get("diagnostics") == ({"previous_message_id": begun["id"]} if wanted else None)
        assert ("ask_why" in asked) is wanted
        assert (said["diagnostics"] is not None) is wanted
        assert "ask_why" not in [change["name"] for change in other_row["changes"]], "its reply is another key's"
        assert row["cache"]["missed_because"].startswith(
            "World Info entry in the system prompt changed (block 4 of 10)"
        )


STORY = {"messages": [{"role": "user", "content": "Once upon a time. " * 800}]}  # long enough to be cached


@pytest.mark.parametrize("reason", ["tools_changed", {"type": "tools_changed"}], ids=str)
async def test_what_the_api_says_goes_first_where_we_saw_nothing_change(tmp_path, anthropic, reason):
    usage = {"input_tokens": 20, "cache_creation_input_tokens": 4_000, "cache_read_input_tokens": 0, "output_tokens": 3}
    async with running(tmp_path, anthropic.url, cache_diagnostics=True) as proxy:
        for diagnostics in (None, {"cache_miss_reason": reason}):
            anthropic.will(plain({**PLAIN, "usage": usage, "diagnostics": diagnostics}))
            await proxy.ask(**STORY)
        told = (await proxy.receipts())[0]["cache"]["missed_because"]
    assert anthropic.seen[1].body["diagnostics"] == {"previous_message_id": PLAIN["id"]}
    assert re.fullmatch(r"a tool definition changed: 4,020 tokens sent again, 1\.2 ¢", told)


async def test_an_upstream_that_refuses_to_be_asked_is_asked_no_more(tmp_path, anthropic):
    refusal = error(400, "invalid_request_error", "diagnostics: Extra inputs are not permitted")
    async with running(tmp_path, anthropic.url, cache_diagnostics=True) as proxy:
        await proxy.ask(**STORY)
        anthropic.will(refusal)
        statuses = [(await proxy.ask(**STORY)).status for _ in range(2)]
    assert statuses == [200, 200]
    assert ["diagnostics" in seen.body for seen in anthropic.seen] == [False, True, False, False]
