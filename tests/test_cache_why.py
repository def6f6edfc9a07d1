"""Why a turn missed the cache: each cause is produced, and said in the player's words."""

import re

import pytest
from cache_bench import SECRET, Bench
from chats import Chat, words

from server.cache_memory import CacheMemory
from server.cache_why import CacheStory, tell
from server.practice import accounting


def warmed(turns=4, ttl_allowed=True, **shape):
    """A chat some turns old, all of it cached, the player's next message said; and its bench, at 60 s a turn."""
    bench, chat = Bench(ttl_allowed=ttl_allowed), Chat(**{"seed": 1, "earlier": 30, **shape})
    for turn in range(turns):
        chat.say()
        bench.ask(chat.ask(), turn * 60.0)
        chat.reply()
    chat.say()
    return bench, chat, turns * 60.0


def test_a_turn_that_reads_all_there_was_missed_nothing():
    bench, chat, at = warmed()
    told = bench.ask(chat.ask(), at)
    assert (told.outcome, told.missed_because) == ("hit", None)
    assert (told.read, told.written) == (bench.bill.read, bench.bill.write_5m + bench.bill.write_1h)


def test_the_first_request_of_a_chat():
    told = Bench().ask(Chat(earlier=30).ask(), 0.0)
    assert (told.outcome, told.missed_because) == ("miss", "first request of this chat")


def test_the_tokens_sent_again_and_their_price_are_told():
    bench, chat, at = warmed()
    chat.cards[0][1] += " And one more habit."
    told = bench.ask(chat.ask(), at)
    found = re.search(r": ([\d,]+) tokens sent again, ([\d.]+) ¢$", told.missed_because)
    again = int(found[1].replace(",", ""))
    assert again == told.again
    assert float(found[2]) == pytest.approx(again * 3 / 1e6 * 100, abs=0.06)
    assert 0.7 * bench.tokens / 5 < again < 1.1 * bench.tokens / 5


def test_a_world_info_entry_that_comes_and_goes():
    bench, chat, at = warmed(lore=2)
    chat.active = {1: 9}
    assert bench.ask(chat.ask(), at).missed_because.startswith(
        "World Info entry came into the system prompt (block 2 of 11)"
    )
    chat.active = {}
    told = bench.ask({**chat.ask(), "model": "claude-sonnet-4-6"}, at + 400)
    assert told.missed_because.startswith(("World Info entry left the system prompt (block 2 of 10)", "pause of"))


def test_a_text_of_the_system_prompt_that_changed():
    bench, chat, at = warmed()
    chat.cards[0][2] = words(chat.rng, 100)
    told = bench.ask(chat.ask(), at)
    assert told.missed_because.startswith(
        "World Info entry in the system prompt changed (block 4 of 10), or another text there: "
    )


def test_a_macro_that_changes_every_request():
    bench, chat, at = warmed(macro="random")
    told = bench.ask(chat.ask(), at)
    assert told.missed_because.startswith(
        "the system prompt changes with every request (block 1 of 10), as a time, date or random macro does: "
    )


def test_without_system_the_prompts_of_the_first_message_are_named():
    bench, chat, at = warmed(system=False)
    chat.cards[0][0] = words(chat.rng, 100)
    assert "the prompts in the first message changed" in bench.ask(chat.ask(), at).missed_because


def test_another_speaker_in_a_group():
    bench, chat, at = warmed(group=2, card=900)
    told = bench.ask(chat.ask(1), at)
    assert told.missed_because.startswith("another character speaks (group chat)")


def test_the_oldest_messages_dropped():
    bench, chat, at = warmed()
    del chat.story[:2]
    told = bench.ask(chat.ask(), at)
    assert told.missed_because.startswith("the context size is full: the oldest messages were dropped")
    assert told.outcome in ("partial", "miss")


def test_an_edited_message():
    bench, chat, at = warmed()
    chat.story[10] = (chat.story[10][0], words(chat.rng, 120))
    assert (
        "an earlier message was edited, deleted or hidden (message 11 of 40)"
        in bench.ask(chat.ask(), at).missed_because
    )


def test_an_authors_note_at_a_depth_where_the_planner_marks_behind_it():
    bench, chat, at = warmed(turns=1, note=12, length=300)
    chat.reply()
    told = bench.ask(chat.ask(), at)
    assert told.missed_because.startswith("an author's note or World Info entry at a depth moved on")


def test_a_switched_model():
    bench, chat, at = warmed()
    chat.model = "claude-opus-4-8"
    told = bench.ask(chat.ask(), at)
    assert told.missed_because.startswith("the model was switched from claude-sonnet-4-6 to claude-opus-4-8")


def test_another_credential():
    bench, chat, at = warmed()
    told = bench.ask(chat.ask(), at, workspace="another")
    assert told.missed_because.startswith("another account or key pays now, with a cache of its own")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"output_config": {"effort": "low"}}, "effort was changed from high to low"),
        ({"thinking": {"type": "adaptive"}}, "thinking was changed from disabled to adaptive"),
        ({"tool_choice": {"type": "none"}}, "tool_choice was changed from auto to none"),
        ({"speed": "fast"}, "fast mode or citations were switched"),
    ],
)
def test_a_changed_setting(change, why):
    bench, chat, at = warmed()
    assert bench.ask({**chat.ask(), **change}, at).missed_because.startswith(why)


def test_the_first_image():
    bench, chat, at = warmed()
    body = chat.ask()
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": pixel}}
    body["messages"][-1]["content"].append(image)
    assert bench.ask(body, at).missed_because.startswith("the first image came")


def test_a_changed_tool():
    bench, chat = Bench(), Chat(seed=1, earlier=30)
    tool = {"name": "roll", "description": "Rolls dice.", "input_schema": {"type": "object"}}
    bench.ask({**chat.ask(), "tools": [tool]}, 0.0)
    told = bench.ask({**chat.ask(), "tools": [{**tool, "description": "Rolls a die."}]}, 60.0)
    assert told.missed_because.startswith("a tool definition changed")


def test_a_pause():
    bench, chat, at = warmed(turns=2)
    assert bench.ask(chat.ask(), at + 60 + 3_900).missed_because.startswith("pause of 67 min")


def test_a_pause_of_one_speaker_while_others_spoke():
    bench, chat, at = warmed(turns=4, ttl_allowed=False, group=2, card=900)
    for turn in range(6):
        bench.ask(chat.ask(1), at + 60 * turn)
        chat.reply()
        chat.say()
    told = bench.ask(chat.ask(0), at + 5 * 60)
    assert told.missed_because.startswith("last used 6 min ago, and run out")


def test_too_short_to_be_cached_on_this_model():
    chat = Chat(model="claude-opus-4-6", card=100, length=40)
    told = Bench().ask(chat.ask(), 0.0)
    assert told.outcome == "off"
    assert re.fullmatch(r"too short to be cached on this model: [\d,]+ of 4,096 tokens", told.missed_because)


def test_a_chat_that_has_just_become_long_enough():
    bench, chat = Bench(), Chat(seed=1, model="claude-opus-4-6", card=400, length=100)
    for turn in range(30):
        chat.say()
        told = bench.ask(chat.ask(), turn * 60.0)
        if told.outcome != "off":
            break
        chat.reply()
    assert told.missed_because.startswith("the chat has only just become long enough to be cached")


def after_a_pause():
    """A chat whose next turn finds nothing in the cache."""
    bench, chat = Bench(), Chat(seed=1, earlier=30)
    chat.say()
    bench.ask(chat.ask(quiet="Sum up."), 0.0)
    chat.reply()
    chat.say()
    return bench, chat


def told_to_have_waited(plan):
    """Whether all of it had to be written, because the answer to another request had not begun."""
    n = plan.forecast.plain + plan.forecast.write_5m + plan.forecast.write_1h
    usage = {"input_tokens": 0, "cache_creation_input_tokens": n, "cache_read_input_tokens": 0}
    why = tell(plan, usage).missed_because
    return why.startswith("another request with the same beginning was still waiting")


def test_a_parallel_request():
    bench, chat = after_a_pause()
    _, first = bench.plan(chat.ask(), 400.0)
    _, second = bench.plan(chat.ask(), 400.5)
    assert first.waited_for == 0
    assert told_to_have_waited(second)


def test_a_request_made_before_the_answer_to_another_began_could_not_read_it():
    bench, chat = after_a_pause()
    bench.ask(chat.ask(), 400.0)
    _, second = bench.plan(chat.ask(), 400.0)
    assert told_to_have_waited(second)


def test_an_upstream_that_lost_what_it_had():
    bench, chat, at = warmed()
    bench.upstreams["w"].entries.clear()
    told = bench.ask(chat.ask(), at)
    assert told.missed_because.startswith("the upstream no longer had what it had stored")


def test_a_chat_not_worth_storing():
    bench, chat = Bench(), Chat(seed=1, earlier=30, macro="random")
    for turn in range(6):
        chat.say()
        body = chat.ask()
        bench.ask(body, turn * 60.0)
        chat.reply()
    assert bench.ask(body, 360.0).missed_because.startswith("the request before was not stored")


def test_the_upstreams_own_reason_goes_first_where_it_says_something_else():
    bench, chat, at = warmed()
    chat.cards[0][1] += " And one more habit."
    sent, plan = bench.plan(chat.ask(), at)
    _, bill, _ = bench.upstreams["w"].bill(sent.body, plan.model, at)
    usage = accounting.usage(bill, 1)
    own = tell(plan, usage)
    for reason in ("system_changed", "unavailable", "previous_message_not_found", None, 7, {"type": "system_changed"}):
        assert tell(plan, usage, {"cache_miss_reason": reason}) == own
    assert tell(plan, usage, {"cache_miss_reason": {"type": ["tools_changed"]}}) == own
    few = {"type": "tools_changed", "cache_missed_input_tokens": 12}
    assert tell(plan, usage, {"cache_miss_reason": few}) == own
    for reason in ("tools_changed", {**few, "cache_missed_input_tokens": own.again}):
        theirs = tell(plan, usage, {"cache_miss_reason": reason})
        assert theirs.missed_because == own.missed_because.replace(
            own.missed_because.partition(": ")[0], "a tool definition changed"
        )


def test_without_a_plan_the_figures_stand_alone():
    assert tell(None, {"input_tokens": 5}) == CacheStory()
    assert tell(None, {"input_tokens": 5, "cache_read_input_tokens": 9}).outcome == "hit"


def test_headers_and_the_log_line_say_it_in_ascii_and_in_short():
    story = CacheStory("partial", 12_000, 400, "a text — changed: 1,200 tokens sent again, 0.4 ¢", 1_200)
    assert story.headers()["x-cache"] == "partial; read=12000; written=400"
    assert story.headers()["x-cache-missed-because"].isascii()
    assert story.line() == "cache partial, 12,000 read, 400 written; a text — changed: 1,200 tokens sent again, 0.4 ¢"


def test_no_reason_holds_a_word_of_the_chat():
    bench, chat = Bench(CacheMemory(SECRET)), Chat(seed=3, earlier=20, lore=4, group=3, edits=0.3)
    said = " ".join(told.missed_because or "" for told in bench.play([(t, b, None) for t, b in chat.play()]))
    texts = [chat.main, chat.note_text, *chat.entries, *(text for _, text in chat.story)]
    assert said
    assert not any(text[:30] in said for text in texts)
