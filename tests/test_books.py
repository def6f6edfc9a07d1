"""The books: what is entered, what is asked of them, what a restart, age and a bad disk leave."""

import asyncio
import csv
import io
import random
import re
import sqlite3
from contextlib import closing, suppress
from datetime import date, datetime

import aiohttp
import pytest

from server.books import TOGETHER, Books
from server.cache_why import CacheStory
from server.chats import Chats
from server.days import begins, day_of, next_day, next_month, read_moment
from server.errors import ProxyError
from server.models import Models
from server.receipt import Receipt, Row
from server.request import Change
from tests.chats import Chat as Played
from tests.fakes import ASK, KEY, fake_anthropic, plain, reply_events, stream
from tests.pools import Clock
from tests.running import running

pytestmark = pytest.mark.anyio
MODELS = Models.load()
NOON = datetime(2026, 11, 20, 12).timestamp()  # noqa: DTZ001 (of this computer's day)
DAY = 86_400.0
TIME = re.compile(r"\dT\d\d:\d\d:\d\d(?:\.\d+)?(Z|[^\"]*)\"")
USED = {"input_tokens": 1000, "output_tokens": 100, "cache_read_input_tokens": 10_000}


@pytest.fixture
def clock():
    return Clock(NOON)


@pytest.fixture
def open_books(tmp_path, clock):
    opened = []

    def open_(days=90):
        opened.append(Books(tmp_path / "state.sqlite", MODELS, days=days, clock=clock))
        return opened[-1]

    yield open_
    for books in opened:
        books.close()


def receipt(at=NOON, usage=USED, **fields):
    usual = {"model": "claude-sonnet-4-6", "status": 200, "ended": "whole", "stop_reason": "end_turn"}
    return Receipt(at=at, usage=usage, **{**usual, **fields})


async def rows(books, since=0.0, until=1e11, by="day", **kwargs):
    return await books.usage(since, until, by, **kwargs)


async def test_more_rows_than_one_statement_takes_are_all_written(open_books):
    books = open_books()
    for n in range(3 * TOGETHER + 5):
        books.add(receipt(at=NOON + n, duration_ms=n))
    found = await books.requests(1000)
    assert [row.duration_ms for row in found] == list(reversed(range(3 * TOGETHER + 5)))


# -- the calendar


def test_a_day_is_from_midnight_to_midnight_and_a_month_to_the_first():
    assert day_of(begins(date(2026, 11, 20))) == date(2026, 11, 20)
    assert day_of(begins(date(2026, 11, 20)) - 1) == date(2026, 11, 19)
    assert next_day(NOON) == begins(date(2026, 11, 21))
    assert next_month(NOON) == begins(date(2026, 12, 1))
    assert next_month(begins(date(2026, 12, 31))) == begins(date(2027, 1, 1))


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        ("2026-11-20", False, begins(date(2026, 11, 20))),
        ("2026-11-20", True, begins(date(2026, 11, 21))),
        ("2026-11-20T00:00:00Z", False, 1_795_132_800.0),
        ("2026-11-20T00:00:00.500z", False, 1_795_132_800.5),
        ("2026-11-20T02:00:00+02:00", True, 1_795_132_800.0),
        ("2026-11-20T02:00:00 02:00", False, 1_795_132_800.0),
    ],
)
def test_a_querys_dates_and_times(text, end, expected):
    assert read_moment("from", text, end=end) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-13-01", "2026-02-30", "20261120", "2026-11-20T10:00", "1", "٢"]
)
def test_what_is_no_date_is_a_400_that_shows_one(text):
    with pytest.raises(ProxyError, match="2026-11-20") as caught:
        read_moment("from", text)
    assert caught.value.status == 400


# -- what is entered


def test_a_row_holds_numbers_and_names_and_no_word_of_a_change():
    secret = "what the player wrote"
    row = Row.of(receipt(changes=(Change("fit_roles", secret),), persona="brindle"), MODELS)
    assert (row.changes, row.persona, row.day) == (1, "brindle", "2026-11-20")
    assert row.usd == pytest.approx((1000 * 3 + 100 * 15 + 10_000 * 0.3) / 1e6)
    assert row.usd_without_cache == pytest.approx((11_000 * 3 + 100 * 15) / 1e6)
    assert secret not in str(row)


@pytest.mark.parametrize(
    ("model", "usage", "usd"),
    [
        ("claude-of-tomorrow-opus", USED, None),
        ("llama-7", USED, None),
        ("llama-7", {}, 0.0),  # a refused request used nothing
    ],
)
def test_a_model_without_a_known_price_is_marked_and_never_free(model, usage, usd):
    assert Row.of(receipt(model=model, usage=usage), MODELS).usd == usd


# -- what is asked of them


async def test_sums_by_day_model_key_account_persona_and_chat(open_books):
    books = open_books()
    for i in range(6):
        one = receipt(at=NOON - DAY * (i // 3), id=f"req_{i}", model=["claude-sonnet-4-6", "claude-opus-5"][i % 2])
        one.key_id, one.key, one.persona, one.chat = f"key_{i % 3}", "same name", "brindle" if i else "", f"chat_{i}"
        one.account_id, one.account = "acc_1", "mine"
        books.add(one)
    by_day = await rows(books)
    assert [(row["group"], row["requests"], row["cache_read_tokens"]) for row in by_day] == [
        ("2026-11-19", 3, 30_000),
        ("2026-11-20", 3, 30_000),
    ]
    assert {row["group"] for row in await rows(books, by="model")} == {"claude-sonnet-4-6", "claude-opus-5"}
    assert {row["id"] for row in await rows(books, by="key")} == {"key_0", "key_1", "key_2"}
    assert [(row["group"], row["id"]) for row in await rows(books, by="account")] == [("mine", "acc_1")]
    assert {row["group"] for row in await rows(books, by="persona")} == {"brindle", None}
    assert len(await rows(books, by="chat")) == 6
    assert [row["requests"] for row in await rows(books, key_id="key_1")] == [1, 1]
    split = await rows(books, by="account", split_by="persona")
    assert sorted((row["persona"] or "", row["id"], row["requests"]) for row in split) == [
        ("", "acc_1", 1),
        ("brindle", "acc_1", 5),
    ]
    whole, parts = await rows(books, by="account"), await rows(books, by="model")
    assert sum(row["usd"] for row in parts) == pytest.approx(whole[0]["usd"])


async def test_a_sum_says_how_many_requests_had_no_price(open_books):
    books = open_books()
    books.add(receipt(model="llama-7"))
    assert [(row["usd"], row["unpriced_requests"]) for row in await rows(books)] == [(None, 1)]
    books.add(receipt())
    (row,) = await rows(books)
    assert row["usd"] == pytest.approx(0.0075)
    assert (row["requests"], row["unpriced_requests"], row["input_tokens"]) == (2, 1, 2000)


async def test_a_span_takes_its_beginning_and_leaves_its_end(open_books):
    books = open_books()
    for at in (NOON - 1, NOON, NOON + 1):
        books.add(receipt(at=at))
    (row,) = await rows(books, NOON, NOON + 1)
    assert row["requests"] == 1


# -- over restarts and years


async def test_a_restart_keeps_every_row_and_every_chat(open_books):
    books, chats = open_books(), Chats(b"secret")
    body = {"messages": [{"role": "user", "content": "The lamp is out."}]}
    chat = chats.recognise(body, "", NOON)
    books.add(receipt(id="req_1", chat=chat.id), chat)
    assert [row.id for row in await books.requests(10)] == ["req_1"]
    again = open_books()
    assert [row.id for row in await again.requests(10)] == ["req_1"]
    assert Chats(b"secret", again.chats()).recognise(body, "", NOON + 1).id == chat.id


async def test_old_rows_become_sums_that_stay(open_books, clock, tmp_path):
    books = open_books(days=3)
    for age in range(6):
        for n in range(2):
            books.add(receipt(at=NOON - age * DAY, id=f"req_{age}_{n}", chat=f"chat_{n}", key_id="k", key="tablet"))
    before = [await rows(books, by=by) for by in ("day", "model", "key", "chat")]
    clock.now += DAY
    books.add(receipt(at=NOON + DAY, id="req_new", usage={}))  # a new day's first row
    kept = {row.id for row in await books.requests(100)}
    assert kept == {"req_new"} | {f"req_{age}_{n}" for age in range(3) for n in range(2)}
    after = [await rows(books, until=NOON + 1, by=by) for by in ("day", "model", "key", "chat")]
    assert after == before
    assert [row["requests"] for row in await rows(books, begins(date(2026, 11, 16)), begins(date(2026, 11, 18)))] == [
        2,
        2,
    ]


async def test_names_given_to_chats_and_times_for_those_without(open_books):
    books, chats = open_books(), Chats(b"secret")
    chat = chats.recognise({"messages": [{"role": "user", "content": "The lamp is out."}]}, "", NOON)
    books.add(receipt(chat=chat.id), chat)
    assert (await rows(books, by="chat"))[0]["group"] == "20 Nov 2026, 12:00"
    assert (await books.name_chat(chat.id, "The lighthouse"))["name"] == "The lighthouse"
    assert (await rows(books, by="chat"))[0]["group"] == "The lighthouse"
    with pytest.raises(ProxyError, match="no such chat"):
        await books.name_chat("chat_of_nobody", "x")


# -- bad files and disks


async def test_books_of_an_earlier_version_are_read_and_go_on(open_books, tmp_path, clock):
    Books(tmp_path / "state.sqlite", MODELS, days=90, clock=clock).close()
    with closing(sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None)) as db:
        db.execute("ALTER TABLE book_requests DROP COLUMN cause")
        db.execute("INSERT INTO book_requests (id, at) VALUES ('req_old', 1)")
    books = open_books()
    books.add(receipt(cache=CacheStory("miss", cause="model")))
    new, old = await books.requests(10)
    assert (old.id, old.cause, new.cause) == ("req_old", None, "model")
    assert new.public()["cache"]["missed_because"] == "the model was switched"
    assert books.warnings == []


async def test_a_damaged_database_is_set_aside_with_a_message(open_books, tmp_path):
    (tmp_path / "state.sqlite").write_bytes(b"not a database at all" * 500)
    books = open_books()
    assert "state.sqlite was damaged" in books.warnings[0]
    books.add(receipt())
    assert len(await books.requests(10)) == 1
    assert any(path.read_bytes().startswith(b"not a database") for path in tmp_path.glob("*.corrupt.*"))


async def test_rows_wait_while_nothing_can_be_written_and_are_entered_later(open_books, tmp_path):
    books = open_books()
    books.add(receipt(id="req_0"))
    await books.requests(1)
    with closing(sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None)) as other:
        other.execute("ALTER TABLE book_requests RENAME TO elsewhere")
        books.add(receipt(id="req_1"))
        with pytest.raises(ProxyError, match="cannot be read"):
            await books.requests(10)
        assert "cannot be written" in books.warnings[0]
        other.execute("ALTER TABLE elsewhere RENAME TO book_requests")
    books.add(receipt(id="req_2"))
    assert {row.id for row in await books.requests(10)} == {"req_0", "req_1", "req_2"}
    assert books.warnings == []


async def test_a_place_where_no_file_can_be_fails_no_request(tmp_path, clock):
    books = Books(tmp_path / "nowhere" / "state.sqlite", MODELS, days=90, clock=clock)
    books.add(receipt())
    with pytest.raises(ProxyError) as caught:
        await books.usage(0, 1e11, "day")
    assert caught.value.status == 503
    assert books.charges(0) == []
    assert books.warnings
    books.close()


# -- the addresses


async def test_the_fee_of_a_search_is_in_the_receipt_the_books_and_on_the_page(tmp_path):
    async with fake_anthropic() as anthropic, running(tmp_path, anthropic.url) as proxy:
        plain_usage, searched = {"input_tokens": 1000}, {"web_search_requests": 2, "web_fetch_requests": 1}
        for used in (None, searched, {"of_tomorrow": 1}):
            events = reply_events("Found it.", usage={**plain_usage, "server_tool_use": used}, output=100)
            anthropic.will(stream(*events))
            await proxy.ask(stream=True)
        unknown, fees, none = await proxy.receipts()
        assert fees["fees"] == [
            {"name": "web_search_requests", "uses": 2, "usd": 0.02},
            {"name": "web_fetch_requests", "uses": 1, "usd": 0},
        ]
        assert (none["fees"], fees["usd"]) == ([], pytest.approx(none["usd"] + 0.02))
        assert (unknown["usd"], unknown["fees"]) == (None, [{"name": "of_tomorrow", "uses": 1, "usd": None}])
        (row,) = (await proxy.owner("GET", "/api/usage?by=model")).json["rows"]
        assert (row["usd"], row["unpriced_requests"]) == (pytest.approx(none["usd"] + fees["usd"]), 1)
        shown = (await proxy.owner("GET", f"/requests/{fees['id']}")).raw.decode()
        assert re.search(r"Web searches in it</dt><dd>2: 2.0 ¢</dd>", shown)
        assert "of_tomorrow</dt><dd>1: unknown" in (await proxy.owner("GET", f"/requests/{unknown['id']}")).raw.decode()


async def test_a_search_in_practice_has_its_fee(tmp_path):
    async with running(tmp_path, "http://127.0.0.1:9", practice=True) as proxy:
        search = {"type": "web_search_20250305", "name": "web_search"}
        for streamed in (True, False):
            await proxy.ask(tools=[search], stream=streamed, max_tokens=1000)
        for receipt in await proxy.receipts():
            assert receipt["fees"] == [{"name": "web_search_requests", "uses": 1, "usd": 0.01}]


async def test_every_time_the_owner_is_told_has_one_form(proxy):
    made = await proxy.owner("POST", "/api/keys", json={"name": "tablet"})
    await proxy.ask(headers={"x-api-key": made.json["key"]}, messages=[{"role": "user", "content": "Once upon a time"}])
    told = []
    for path in ("keys", "requests", "chats", "accounts", "usage?by=chat"):
        told += TIME.findall((await proxy.owner("GET", f"/api/{path}")).raw.decode())
    assert len(told) >= 5
    assert [end for end in told if end != "Z"] == []


async def test_the_books_know_a_persona_by_its_own_name_and_none_that_is_not_there(proxy):
    for name in ("EDDA", "nobody", "%3Cscript%3E"):
        await proxy.ask(path=f"/v1/{name}/messages")
    rows = (await proxy.owner("GET", "/api/usage?by=persona")).json["rows"]
    assert {row["group"]: row["requests"] for row in rows} == {"edda": 1, None: 2}


async def test_usage_and_its_exports(proxy):
    await proxy.ask(stream=True)
    await proxy.ask()
    today = day_of(datetime.now().astimezone().timestamp()).isoformat()
    (row,) = (await proxy.owner("GET", f"/api/usage?from={today}&to={today}&by=day")).json["rows"]
    assert (row["group"], row["requests"], row["input_tokens"], row["output_tokens"]) == (today, 2, 14, 6)
    table = await proxy.owner("GET", "/api/usage.csv?by=model")
    assert table.headers["Content-Type"] == "text/csv; charset=utf-8"
    (line,) = csv.DictReader(io.StringIO(table.raw.decode()))
    assert (line["group"], line["cache_read_tokens"]) == ("claude-sonnet-4-6", "22")
    assert (await proxy.owner("GET", "/api/usage?from=2000-01-01&to=2000-01-02")).json == {"rows": []}


async def test_a_name_is_no_formula_in_a_spreadsheet(proxy):
    made = (await proxy.owner("POST", "/api/keys", json={"name": "=HYPERLINK(1)"})).json
    await proxy.sign_in()
    assert (await proxy.ask(headers={"x-api-key": made["key"]})).status == 200
    (line,) = csv.DictReader(io.StringIO((await proxy.owner("GET", "/api/usage.csv?by=key")).raw.decode()))
    assert line["group"] == "'=HYPERLINK(1)"


@pytest.mark.parametrize("query", ["by=mood", "from=soon", "to=2026-02-30", "from=2026-11-20&to=2026-11-01", "by="])
async def test_a_bad_query_is_a_400(proxy, query):
    for address in ("/api/usage", "/api/usage.csv"):
        reply = await proxy.owner("GET", f"{address}?{query}")
        assert (reply.status, reply.json["error"]["type"]) == (400, "invalid_request_error")


async def test_a_chat_is_listed_named_and_remembered(proxy, anthropic):
    for _, body in Played(turns=4).play():
        await proxy.ask(**body)
    for _, body in Played(seed=9, turns=1).play():
        await proxy.ask(**body)
    listed = (await proxy.owner("GET", "/api/chats")).json["chats"]
    assert sorted(row["requests"] for row in listed) == [1, 4]
    chat = max(listed, key=lambda row: row["requests"])
    named = await proxy.owner("PATCH", f"/api/chats/{chat['id']}", json={"name": "The lighthouse"})
    assert named.json["name"] == "The lighthouse"
    groups = [row["group"] for row in (await proxy.owner("GET", "/api/usage?by=chat")).json["rows"]]
    assert "The lighthouse" in groups
    assert (await proxy.owner("PATCH", "/api/chats/none", json={"name": "x"})).status == 404
    assert (await proxy.owner("PATCH", f"/api/chats/{chat['id']}", json={})).status == 400


async def test_receipts_reach_back_into_the_books_after_a_restart(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as proxy:
        first = (await proxy.ask(stream=True)).headers["x-receipt"]
    async with running(tmp_path, anthropic.url) as proxy:
        second = (await proxy.ask()).headers["x-receipt"]
        newest, older = await proxy.receipts()
    assert (newest["id"], older["id"]) == (second, first)
    assert newest.keys() == older.keys()
    assert {**newest, **dict.fromkeys(("id", "at", "ttft_ms", "duration_ms", "changes", "cache"))} == {
        **older,
        **dict.fromkeys(("id", "at", "ttft_ms", "duration_ms", "changes", "cache")),
    }


async def test_a_stranger_leaves_no_row(proxy):
    await proxy.owner("POST", "/api/keys", json={"name": "tablet"})
    assert (await proxy.ask()).status == 401
    assert (await proxy.owner("GET", "/api/usage")).json["rows"] == []


async def test_no_word_of_a_chat_lies_on_the_disk(tmp_path, anthropic):
    marker = "xylograph of the seventh lighthouse"
    async with running(tmp_path, anthropic.url) as proxy:
        await proxy.ask(messages=[{"role": "user", "content": f"Tell of the {marker}"}])
    disk = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert b"xylograph" not in disk
    assert b"lighthouse" not in disk


# -- the sums, against what the upstream says


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
async def test_the_books_equal_the_upstreams_usage_to_the_token(tmp_path, anthropic, count):
    """Mixed requests with hang-ups: what the upstream told before the front end left is booked, no more, no less."""
    rng = random.Random(count)
    told = {}

    def usage_of():
        hour, five = rng.randrange(900), rng.randrange(900)
        return {
            "input_tokens": rng.randrange(1, 5000),
            "cache_creation_input_tokens": hour + five,
            "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour},
            "cache_read_input_tokens": rng.randrange(20_000),
            "output_tokens": rng.randrange(1, 4000),
        }

    async with running(tmp_path, anthropic.url) as proxy:

        async def one(i):
            model = rng.choice(["claude-sonnet-4-6", "claude-opus-5", "claude-haiku-5-5"])
            usage, kind = usage_of(), rng.choice(["plain", "stream", "stream", "hang up"])
            headers = {"x-api-key": KEY, "x-test": str(i)}
            body = {**ASK, "model": model, "messages": [{"role": "user", "content": f"{i}"}], "stream": kind != "plain"}
            told[i] = (kind, model, usage)
            async with proxy.session.post(f"{proxy.url}/v1/messages", json=body, headers=headers) as reply:
                if kind == "hang up":
                    with suppress(aiohttp.ClientError):
                        await reply.content.readuntil(b"\n\n")
                    reply.close()
                else:
                    await reply.read()

        anthropic.answer = lambda seen: told_reply(told[int(said(seen.body["messages"][-1]["content"]))])
        for start in range(0, count, 25):
            await asyncio.gather(*(one(i) for i in range(start, start + 25)))
        await proxy.parts.traffic.drain(30)
        for by in ("model", "day"):
            booked = (await proxy.owner("GET", f"/api/usage?by={by}")).json["rows"]
            assert sum(row["requests"] for row in booked) == count
            for name in ("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"):
                assert sum(row[name] for row in booked) == sum(expected(*one)[name] for one in told.values()), name
            assert sum(row["output_tokens"] for row in booked) == sum(
                expected(*one)["output_tokens"] for one in told.values()
            )
            money = sum(expected(*one)["usd"] for one in told.values())
            assert sum(row["usd"] for row in booked) == pytest.approx(money, rel=1e-3)


def said(content):
    return content if isinstance(content, str) else content[-1]["text"]


def expected(kind, model, usage):
    """What a reply costs, by the price list as it stands on paper; a reply left in the middle told only its start."""
    prices = {"claude-sonnet-4-6": (3, 15, 3.75, 6, 0.3), "claude-opus-5": (5, 25, 6.25, 10, 0.5)}
    into, out, write_5m, write_1h, read = prices.get(model, (0.1, 0.5, 0.125, 0.2, 0.01))
    split = usage["cache_creation"]
    five, hour = split["ephemeral_5m_input_tokens"], split["ephemeral_1h_input_tokens"]
    output = 1 if kind == "hang up" else usage["output_tokens"]
    usd = usage["input_tokens"] * into + usage["cache_read_input_tokens"] * read
    usd += five * write_5m + hour * write_1h + output * out
    return {
        "input_tokens": usage["input_tokens"],
        "cache_read_tokens": usage["cache_read_input_tokens"],
        "cache_write_5m_tokens": five,
        "cache_write_1h_tokens": hour,
        "output_tokens": output,
        "usd": usd / 1e6,
    }


def told_reply(told):
    """The upstream's reply with the usage a test chose for it; it never ends where the front end hangs up."""
    kind, model, usage = told
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "stop_reason": "end_turn"}
    text = [{"type": "text", "text": "Good evening."}]
    if kind == "plain":
        return plain({**message, "content": text, "usage": usage})
    begun = {**usage, "output_tokens": 1}
    events = reply_events("Good ", "evening.", model=model, usage=begun, output=usage["output_tokens"])
    if kind == "hang up":
        return stream(*events[:3], gate=asyncio.Event())
    return stream(*events)


async def test_practice_turns_stand_in_no_real_book(tmp_path):
    async with running(tmp_path, "http://127.0.0.1:9", practice=True) as proxy:
        assert (await proxy.ask(max_tokens=1)).status == 200
        assert (await proxy.owner("GET", "/api/usage?by=day")).json["rows"][0]["requests"] == 1
    with closing(sqlite3.connect(tmp_path / "data" / "state.sqlite")) as db:
        tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert tables == [("client_keys",)], "nor is anything else of practice kept there"
    async with running(tmp_path, "http://127.0.0.1:9") as proxy:
        assert (await proxy.owner("GET", "/api/usage?by=day")).json["rows"] == []
