"""What is known of the caches, over restarts."""

import sqlite3
import threading
import time

import pytest
from cache_bench import MODELS, SECRET, Bench
from chats import Chat

from server.cache_journal import CacheEntry, Journal, packed, unpacked
from server.cache_memory import CacheMemory, Scope, alive, seen
from server.prefix import Digests, read_prompt
from server.rewrite.late_lore import Head
from server.rewrite.steady_window import Window

MODEL = MODELS.like("claude-sonnet-4-6")


def opened(folder, secret=SECRET, now=0.0):
    return CacheMemory(secret, Journal(folder / "state.sqlite", now=now))


def played(memory, turns=6, **options):
    """A chat of some turns, a minute each; returns the chat and its bench."""
    bench, chat = Bench(memory, **options), Chat(seed=1, earlier=30)
    for turn in range(turns):
        chat.say()
        bench.ask(chat.ask(), turn * 60.0)
        chat.reply()
    chat.say()
    return chat, bench


def test_after_a_restart_the_plan_is_the_same(tmp_path):
    memory = opened(tmp_path)
    chat, bench = played(memory)
    _, before = bench.plan(chat.ask(), 360.0)
    memory.close()
    again = opened(tmp_path, now=360.0)
    _, after = Bench(again).plan(chat.ask(), 360.0)
    again.close()
    assert before.live
    assert before.live == after.live
    assert before.marks == after.marks
    assert before.forecast == after.forecast
    assert seen(before.related, before.prompt) == seen(after.related, after.prompt)


def test_without_the_file_it_starts_empty(tmp_path):
    memory = opened(tmp_path)
    chat, _bench = played(memory)
    memory.close()
    (tmp_path / "state.sqlite").unlink()
    again = opened(tmp_path)
    assert Bench(again).plan(chat.ask(), 360.0)[1].live == {}
    again.close()


def test_a_damaged_file_is_left_alone_and_said_in_the_log(tmp_path, caplog):
    damaged = b"this is no database" * 500
    (tmp_path / "state.sqlite").write_bytes(damaged)
    memory = opened(tmp_path)
    played(memory)
    memory.close()
    assert "cannot be read" in caplog.text
    assert (tmp_path / "state.sqlite").read_bytes() == damaged


def test_rows_that_make_no_sense_are_dropped(tmp_path, caplog):
    memory = opened(tmp_path)
    played(memory)
    memory.close()
    with sqlite3.connect(tmp_path / "state.sqlite") as db:
        db.execute("UPDATE cache_requests SET prompt = '{\"own\": 3}'")
    db.close()
    again = opened(tmp_path)
    assert "starting empty" in caplog.text
    chat, _bench = played(again)
    again.close()
    assert caplog.text.count("starting empty") == 1
    third = opened(tmp_path, now=360.0)
    assert Bench(third).plan(chat.ask(), 360.0)[1].live != {}
    third.close()


def test_another_secret_finds_nothing_in_a_copied_file(tmp_path):
    memory = opened(tmp_path)
    chat, _ = played(memory)
    memory.close()
    stranger = opened(tmp_path, secret=b"another secret", now=360.0)
    assert Bench(stranger).plan(chat.ask(), 360.0)[1].live == {}
    stranger.close()


def test_nothing_of_the_chat_nor_of_its_owner_is_on_disk(tmp_path):
    memory = opened(tmp_path)
    chat, _ = played(memory)
    memory.close()
    raw = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert len(raw) > 10_000
    for text in [chat.main, *chat.cards[0], *(text for _, text in chat.story), "key of w", "api.example"]:
        for word in text.split("."):
            assert not word.strip() or word.strip().encode() not in raw
    prompt = read_prompt(chat.ask(), MODEL, "s", Digests(b"guessed"))
    assert prompt.own[0] not in raw


def test_the_file_is_the_owners_alone(tmp_path):
    opened(tmp_path).close()
    assert (tmp_path / "state.sqlite").stat().st_mode & 0o077 == 0


def test_writing_is_done_by_a_thread_of_its_own(tmp_path):
    memory = opened(tmp_path)
    played(memory, turns=1)
    assert any(thread.name.startswith("cache-memory") for thread in threading.enumerate())
    memory.close()


def test_it_shares_the_file_with_other_tables(tmp_path):
    with sqlite3.connect(tmp_path / "state.sqlite") as db:
        db.execute("CREATE TABLE client_keys (id TEXT)")
        db.execute("INSERT INTO client_keys VALUES ('key_1')")
    db.close()
    memory = opened(tmp_path)
    played(memory)
    memory.close()
    with sqlite3.connect(tmp_path / "state.sqlite") as db:
        assert db.execute("SELECT id FROM client_keys").fetchall() == [("key_1",)]
    db.close()


def test_what_is_learned_reaches_the_disk_while_the_proxy_runs(tmp_path):
    memory = opened(tmp_path)
    played(memory)
    with sqlite3.connect(tmp_path / "state.sqlite") as db:
        for _ in range(1200):
            if found := db.execute("SELECT COUNT(*) FROM cache_entries").fetchone()[0]:
                break
            time.sleep(0.05)
    db.close()
    assert found > 0
    memory.close()


def test_a_prompt_packed_and_unpacked_is_the_same():
    prompt = read_prompt(
        {**Chat(seed=2, earlier=10).ask(), "tools": [{"name": "t", "input_schema": {}}]}, MODEL, "s", Digests(SECRET)
    )
    assert unpacked(packed(prompt)) == prompt


def test_helps_and_refusals_are_remembered(tmp_path):
    memory = opened(tmp_path)
    head = Head(("a", "b"), {"a": 3, "b": 1}, frozenset("c"), frozenset("xy"))
    window = Window(("a", "b"), 2, 1, ("b", "c"))
    memory.keep_head(0, head)
    memory.keep_window(0, window)
    memory.learn("https://api.example", no_hours_until=500.0)
    memory.close()
    again = opened(tmp_path)
    assert list(again.heads.values()) == [head]
    assert list(again.windows.values()) == [window]
    scope = Scope("https://api.example", "k")
    assert again.terms(scope, MODEL, True, 100.0).lifetimes == ("5m",)
    assert again.terms(scope, MODEL, True, 501.0).lifetimes == ("5m", "1h")
    again.close()


def test_the_number_of_chats_with_helps_is_limited():
    memory = CacheMemory(SECRET)
    for i in range(50):
        memory.keep_head(0, Head((str(i),), {}))
    assert len(memory.heads) == 32
    assert Head(("49",), {}) in memory.heads.values()


def test_old_requests_are_forgotten_also_on_disk(tmp_path):
    memory = opened(tmp_path)
    prompt = read_prompt(Chat(seed=2).ask(), MODEL, "s", Digests(SECRET))
    for i in range(130):
        memory.remember(prompt, (), float(i))
    memory.close()
    with sqlite3.connect(tmp_path / "state.sqlite") as db:
        assert db.execute("SELECT COUNT(*), MIN(at) FROM cache_requests").fetchone() == (96, 34.0)
    db.close()


def test_of_two_requests_that_overlapped_the_longer_life_counts():
    memory = CacheMemory(SECRET)
    prompt = read_prompt(Chat(seed=2).ask(), MODEL, "s", Digests(SECRET))
    memory.write(prompt, {3: CacheEntry("5m", 400.0, 100.0)})
    memory.write(prompt, {3: CacheEntry("5m", 350.0, 51.0)})
    assert alive(memory.known(prompt), 390.0).keys() == {3}


def test_tokens_per_byte_are_learned_from_usage():
    bench = Bench()
    body = Chat(seed=2, earlier=20).ask()
    before = bench.memory.terms(Scope("u", "c"), MODEL, True, 0.0).tokens_per_byte
    size = read_prompt(body, MODEL, "s", Digests(SECRET)).size[-1]
    bench.ask(body, 0.0, usage={"input_tokens": size // 2, "output_tokens": 1})
    after = bench.memory.terms(Scope("u", "c"), MODEL, True, 0.0).tokens_per_byte
    assert before == 0.25
    assert after == pytest.approx(0.5, rel=0.01)


def test_two_chats_are_told_apart_by_what_they_say():
    bench = Bench()
    one, other = Chat(seed=1, earlier=10), Chat(seed=2, earlier=10)
    for at, chat in enumerate((one, other, one, other)):
        chat.say()
        bench.ask(chat.ask(), at * 30.0)
        chat.reply()
    one.say()
    _, plan = bench.plan(one.ask(), 200.0)
    assert [request.at for request in plan.related] == [0.0, 60.0]
    assert [request.pause for request in plan.related] == [None, 60.0]


def test_a_request_is_seen_as_followed_by_the_one_that_is_planned():
    memory = CacheMemory(SECRET)
    chat, bench = played(memory)
    _, plan = bench.plan(chat.ask(), 360.0)
    before, told = plan.related[-1], seen(plan.related, plan.prompt)
    assert (before.followers, before.steps) == (0, [])
    assert (told[-1].followers, told[-1].steps) == (1, ((1, before.prompt.shared(plan.prompt)),))


def test_a_request_is_alike_if_its_prompts_in_front_are_as_usual_in_the_chat_as_these():
    """Two lorebook entries, each awake for one turn."""
    memory = CacheMemory(SECRET)
    chat, bench = Chat(seed=4, earlier=20, lore=2), Bench(memory)
    for at, active in enumerate(({}, {}, {0: 9}, {}, {}, {})):
        chat.active = active
        chat.say()
        bench.ask(chat.ask(), at * 60.0)
        chat.reply()
    chat.active = {1: 9}
    _, plan = bench.plan(chat.ask(), 360.0)
    assert [one.alike for one in seen(plan.related, plan.prompt)] == [False, False, True, False, False, False]


def test_a_request_is_alike_if_it_goes_on_where_an_earlier_one_ended_as_this_one_does():
    """An author's note in every second turn: turns without it go on from each other, those with it from none."""
    memory = CacheMemory(SECRET)
    chat, bench = Chat(seed=5, note=2, note_every=2, turns=8), Bench(memory)
    for at in range(7):
        chat.say()
        bench.ask(chat.ask(), at * 60.0)
        chat.reply()
    chat.say()
    _, plan = bench.plan(chat.ask(), 420.0)
    assert [one.alike for one in seen(plan.related, plan.prompt)][-4:] == [True, False, True, False]
