"""The planner in whole chats, against the accounting of the practice upstream."""

import pytest
from cache_bench import BOTH, MODELS, SECRET, Bench, Upstream, as_lists, bare, marks_of
from chats import Chat, requests
from hypothesis import given, settings
from hypothesis import strategies as st

from server.cache_draft import Bounds, draft
from server.cache_helps import CacheHelps
from server.cache_memory import CacheMemory, Scope
from server.cache_planner import CachePlanner
from server.practice import accounting
from server.practice.rules import refusal
from server.prefix import read_prompt
from server.request import ChatRequest
from server.rewrite.cache_marks import without_marks

SCOPE = Scope("https://api.example", "key")
HEADERS = {"anthropic-version": "2023-06-01", "x-api-key": "sk-ant-api03-x", "content-type": "application/json"}


def story(n, words=200):
    """A body with n turns, each text different and long enough to be cached."""
    messages = []
    for i in range(n):
        messages.append({"role": "user", "content": [{"type": "text", "text": f"player {i} " + "word " * words}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": f"reply {i} " + "word " * words}]})
    messages.append({"role": "user", "content": [{"type": "text", "text": f"player {n} " + "word " * words}]})
    system = [{"type": "text", "text": "You tell stories. " * 200}]
    return {"model": "claude-sonnet-4-6", "max_tokens": 100, "stream": True, "system": system, "messages": messages}


# ---------------------------------------------------------------------------------------------------------- never a 400

texts = st.sampled_from(["", " ", "\n", "a", "hello " * 40, "story " * 400, "​", "🐦" * 300])
ttls = st.sampled_from([{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral", "ttl": "5m"}])
picture = {
    "type": "image",
    "source": {
        "type": "base64",
        "media_type": "image/png",
        "data": "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
    },
}


said = st.sampled_from(["a", "hello " * 40, "story " * 400, "One.\nTwo.", "🐦" * 300])


@st.composite
def text_blocks(draw, texts=texts):
    made = {"type": "text", "text": draw(texts)}
    return made | ({"cache_control": draw(ttls)} if draw(st.booleans()) else {})


@st.composite
def bodies(draw, texts=texts, thoughts=True):
    """Chats as odd front ends send them: marks anywhere, blank texts, strings, tools, pictures, thinking sent back."""
    messages = []
    for i in range(draw(st.integers(1, 14))):
        role = ("user", "assistant")[i % 2]
        if draw(st.booleans()):
            content = draw(texts)
        else:
            content = draw(st.lists(text_blocks(texts), min_size=1, max_size=4))
            if role == "user" and draw(st.integers(0, 5)) == 0:
                content.append(picture)
            if thoughts and role == "assistant" and draw(st.integers(0, 3)) == 0:
                content.insert(0, {"type": "thinking", "thinking": "hm", "signature": "c2lnbmF0dXJl"})
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] == "assistant":
        messages.append({"role": "user", "content": "and then?"})
    model = draw(st.sampled_from(["claude-sonnet-4-5", "claude-opus-4-6", "claude-opus-5", "claude-haiku-4-5"]))
    body = {"model": model, "max_tokens": 100, "messages": messages}
    if draw(st.booleans()):
        body["system"] = draw(st.one_of(texts, st.lists(text_blocks(texts), max_size=5)))
    if draw(st.booleans()):
        body["cache_control"] = draw(ttls)
    if draw(st.integers(0, 3)) == 0:
        body["tools"] = [
            {"type": "web_search_20250305", "name": "web_search", "cache_control": draw(ttls)},
            {"name": "roll", "description": "dice " * 300, "input_schema": {"type": "object"}},
        ]
    if draw(st.booleans()):
        body["stream"] = draw(st.booleans())
    return body


def refused_for_marks(body, model, counting=False):
    found = refusal(body, HEADERS, model, "api_key", 0.0, counting=counting)
    return found is not None and "cache_control" in str(found)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(bodies(), st.sampled_from([1, 20, 290, 400, 4000])), min_size=1, max_size=4), st.booleans())
def test_marks_never_break_a_rule_and_nothing_but_marks_is_changed(asked, ttl_allowed):
    bench, at = Bench(ttl_allowed=ttl_allowed), 0.0
    for body, pause in asked:
        for again in (body, grown(body)):
            at += pause
            bench.ask(again, at)
            sent = bench.sent.body
            marks = marks_of(sent)
            assert not refused_for_marks(sent, MODELS.like(body["model"]))
            assert len(marks) <= 4
            assert marks == sorted(marks)  # "1h" before "5m"
            assert "cache_control" not in sent
            assert ttl_allowed or "1h" not in marks
            assert bare(as_lists(sent)) == bare(as_lists(again))


@settings(max_examples=120, deadline=None)
@given(st.lists(bodies(said, thoughts=False), min_size=2, max_size=5))
def test_with_the_helps_no_request_is_refused_that_was_fine_before(asked):
    bench, at = Bench(helps=BOTH), 0.0
    for body in asked:
        for again in (body, grown(body)):
            at += 60.0
            again = {**bare(again), "model": "claude-opus-5"}
            bench.ask(again, at)
            assert bench.plan_ is not None
            assert refusal(again, HEADERS, bench.plan_.model, "api_key", 0.0) is None
            assert refusal(bench.sent.body, HEADERS, bench.plan_.model, "api_key", 0.0) is None
            assert bench.sent.body["messages"][-1]["role"] in ("user", "system")


def grown(body):
    more = [{"role": "assistant", "content": "So it was. " * 100}, {"role": "user", "content": "And then? " * 100}]
    return {**body, "messages": [*body["messages"], *more]}


@settings(max_examples=60, deadline=None)
@given(bodies())
def test_requests_that_count_carry_no_marks(body):
    _, plan = draft(ChatRequest(body, counting=True), MODELS.like(body["model"]), SCOPE, CacheMemory(SECRET), 0.0)
    sent, _ = draft(ChatRequest(body, counting=True), MODELS.like(body["model"]), SCOPE, CacheMemory(SECRET), 0.0)
    assert plan.off == "counting"
    assert marks_of(sent.body) == []
    assert sent.body == bare(body)


@settings(max_examples=80, deadline=None)
@given(bodies(), bodies())
def test_our_prefixes_are_the_same_where_the_accounting_says_so(one, other):
    model = MODELS.like("claude-sonnet-4-5")
    memory = CacheMemory(SECRET)
    ours, theirs = [], []
    for body in ({**one, "model": model.id}, {**other, "model": model.id}, grown({**one, "model": model.id})):
        clean = without_marks(body)
        ours.append(set(read_prompt(clean, model, "scope", memory.digests).keys()))
        theirs.append(set(accounting.read_prompt(as_lists_without_blanks(clean), model).chain))
    for i in range(3):
        for j in range(i):
            assert len(ours[i] & ours[j]) == len(theirs[i] & theirs[j])


def as_lists_without_blanks(body):
    """An empty string is no block to us; the accounting counts it as one."""
    body = {**body, "messages": [m for m in body["messages"] if m["content"] != ""]}
    return body


def test_a_request_that_needs_nothing_stays_the_same_object():
    request = ChatRequest({"model": "claude-sonnet-4-6", "messages": [{"role": "user", "content": "Hi"}]})
    sent, plan = Bench().plan(request.body, 0.0)
    assert sent.body == request.body
    assert sent.changes == ()
    assert plan.marks == {}


def test_the_front_ends_marks_are_taken_out_and_that_is_named():
    body = story(3)
    body["messages"][2]["content"][0]["cache_control"] = {"type": "ephemeral", "ttl": "1h"}
    body["cache_control"] = {"type": "ephemeral"}
    sent, _ = Bench().plan(body, 0.0)
    assert "cache_control" not in sent.body
    assert "cache_control" not in sent.body["messages"][2]["content"][0]
    assert sent.changes[-1].name == "plan_cache"
    assert "took out the front end's 2" in sent.changes[-1].detail
    assert body["cache_control"], "the original stays as it was"


def test_where_ttl_is_not_allowed_no_mark_carries_one():
    bench = Bench(ttl_allowed=False)
    for turn in range(8):
        bench.ask(story(3 + turn), turn * 60.0)
        assert "ttl" not in str(bench.sent.body)
    assert bench.bill.read > 0


# ---------------------------------------------------------------------------------------------------- chats as they are


def test_a_chat_that_grows_reads_all_it_sent_before():
    bench = Bench()
    bench.ask(story(5), 300.0)
    for turn in range(6, 12):
        before = bench.tokens
        assert bench.ask(story(turn), turn * 60.0).outcome == "hit"
        assert bench.bill.plain == 0
        assert bench.bill.read > 0.8 * (bench.tokens - before)


def test_the_forecast_is_what_the_upstream_counts():
    bench = Bench()
    for turn in range(5, 15):
        bench.ask(story(turn), turn * 60.0)
        if turn > 5:
            assert bench.plan_.forecast.read == pytest.approx(bench.bill.read, abs=20)
            assert bench.plan_.forecast.write_1h == pytest.approx(bench.bill.write_1h, abs=20)
            assert bench.plan_.forecast.write_5m == pytest.approx(bench.bill.write_5m, abs=20)


def test_an_hour_is_bought_with_the_new_tokens_only_and_carries_the_chat_over_a_pause():
    bench = Bench()
    hours = []
    for turn in range(5, 13):
        bench.ask(story(turn), turn * 60.0)
        hours.append(bench.bill.write_1h)
    assert 0 < sum(hours) < 0.2 * bench.tokens
    assert hours[0] == 0, "not the whole prompt, cold"
    assert bench.ask(story(13), 13 * 60.0 + 1500).read > 0.5 * sum(bench.bill)


def test_two_chats_played_in_turns_keep_their_caches():
    bench = Bench()
    one, other = Chat(seed=1, earlier=30), Chat(seed=2, earlier=30)
    outcomes = []
    for turn in range(10):
        for chat in (one, other):
            chat.say()
            outcomes.append(bench.ask(chat.ask(), turn * 100.0 + (50 if chat is other else 0)).outcome)
            chat.reply()
    assert outcomes[2:] == ["hit"] * 18


def test_a_summary_reads_the_chat_and_does_not_disturb_it():
    bench = Bench()
    chat = Chat(seed=3, earlier=30)
    outcomes = []
    for turn in range(8):
        chat.say()
        outcomes.append(bench.ask(chat.ask(), turn * 100.0).outcome)
        chat.reply()
        if turn % 3 == 2:
            told = bench.ask(chat.ask(quiet="Sum up the story."), turn * 100.0 + 20)
            assert told.outcome == "hit"
    assert outcomes == ["miss"] + ["hit"] * 7


def test_a_lone_request_that_does_not_stream_is_not_written():
    caption = {**story(0, words=3000), "stream": False}
    bench = Bench()
    bench.ask(caption, 0.0)
    assert bench.bill.write_5m == bench.bill.write_1h == 0


def test_a_group_finds_each_members_cache_again():
    bench = Bench()
    chat = Chat(seed=4, group=3, quick=True, earlier=30, card=800)
    outcomes = []
    for turn in range(10):
        chat.say()
        for member in range(3):
            outcomes.append(bench.ask(chat.ask(member), turn * 100.0 + 14 * member).outcome)
            chat.reply()
    assert outcomes[12:] == ["hit"] * 18
    assert bench.share < 0.6


def test_a_swipe_reads_everything():
    bench = Bench()
    bench.ask(story(6), 0.0)
    bench.ask(story(7), 60.0)
    bench.ask(story(7), 90.0)
    assert bench.bill.read == sum(bench.bill)


def test_an_edit_loses_what_stands_behind_it_and_no_more():
    bench = Bench()
    for turn in range(6, 12):
        bench.ask(story(turn), turn * 60.0)
    edited = story(12)
    edited["messages"][18]["content"][0]["text"] = "Something else happened. " * 50
    before = bench.bill
    bench.ask(edited, 12 * 60.0)
    assert 0.5 * before.read < bench.bill.read < before.read


def test_two_keys_in_different_workspaces_share_nothing():
    bench = Bench()
    bench.ask(story(6), 0.0)
    bench.ask(story(7), 60.0)
    told = bench.ask(story(8), 120.0, workspace="another")
    assert (told.outcome, told.read) == ("miss", 0)
    assert "another account or key" in told.missed_because
    assert bench.plan_.live == {}
    assert bench.ask(story(9), 180.0).outcome == "hit", "the first workspace still has its own"


def test_short_chats_cost_nothing_extra():
    bench = Bench()
    for turn in range(3):
        told = bench.ask({**story(turn, words=20), "model": "claude-opus-4-6", "system": "Be brief."}, turn * 60.0)
        assert told.outcome == "off"
        assert "too short to be cached on this model" in told.missed_because
    assert bench.share == 1.0


def test_a_prompt_far_too_short_to_be_cached_is_not_read_and_leaves_nothing_behind():
    bench, short = Bench(), {**story(1, words=20), "model": "claude-opus-4-6", "system": "Be brief."}
    assert bench.ask(short, 0.0).outcome == "off"
    assert bench.plan_.off == "short"
    assert bench.plan_.forecast.plain > 20
    assert bench.sent.body == short
    assert bench.memory.related(read_prompt(short, bench.plan_.model, "scope", bench.memory.digests)) == ()
    with_mark = {**short, "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]}
    bench.ask(with_mark, 60.0)
    assert bench.sent.body == bare(with_mark)


def test_a_prompt_that_changes_at_the_start_each_time_is_soon_written_no_more():
    asked = requests(seed=5, macro="random", earlier=60, turns=20)
    bench = Bench()
    bench.play(asked)
    assert bench.share < 1.03
    assert bench.plan_.marks == {}


# ------------------------------------------------------------------------------------------- learning from the upstream


def test_a_request_that_failed_wrote_nothing():
    bench = Bench()
    _, plan = bench.plan(story(6), 0.0)
    bench.planner.failed(plan)
    _, again = bench.plan(story(6), 10.0)
    assert plan.marks
    assert again.live == {}


def test_an_entry_counts_from_the_moment_its_response_begins():
    bench = Bench()
    _, plan = bench.plan(story(6), 100.0)
    _, parallel = bench.plan(story(6), 101.0)
    assert parallel.live == {}
    bench.planner.began(plan, {}, 100.0, 103.0)
    assert bench.plan(story(6), 102.9)[1].live == {}
    assert bench.plan(story(6), 103.0)[1].live != {}


def test_what_was_not_read_is_believed_no_more():
    bench = Bench()
    bench.ask(story(6), 0.0)
    bench.ask(story(7), 60.0)
    bench.upstreams["w"].entries.clear()
    told = bench.ask(story(8), 120.0)
    assert "no longer had" in told.missed_because
    live = bench.plan(story(9), 180.0)[1].live
    assert set(live) <= set(bench.plan_.marks), "only what was written just now"


def test_what_another_proxy_wrote_is_found_and_used():
    upstream, first, second = Upstream(), Bench(), Bench()
    first.upstreams["w"] = second.upstreams["w"] = upstream
    for turn in range(5, 9):
        first.ask(story(turn), turn * 60.0)
    second.ask(story(8), 9 * 60.0)
    assert second.bill.read > 0
    second.ask(story(9), 10 * 60.0)
    assert second.bill.read >= 0.8 * sum(second.bill)


def test_an_upstream_that_reports_nothing_is_believed_to_cache():
    bench = Bench()
    silent = {"input_tokens": 12_000, "output_tokens": 3}
    bench.ask(story(6), 0.0, usage=silent)
    bench.ask(story(7), 60.0, usage=silent)
    assert bench.plan_.live != {}


def test_a_refused_ttl_means_five_minutes_from_now_on():
    bench = Bench()
    plans = []
    for turn in range(5, 12):
        bench.ask(story(turn), turn * 60.0)
        plans.append(bench.plan_)
    with_hours = next(plan for plan in plans if "1h" in plan.marks.values())
    assert bench.planner.refused(with_hours, "cache_control.ttl: Extra inputs are not permitted", 700.0)
    for turn in range(12, 16):
        bench.ask(story(turn), turn * 60.0)
        assert set(bench.plan_.marks.values()) == {"5m"}
    _, later = bench.plan(story(16), 700.0 + 8 * 86_400)
    assert later.terms.lifetimes == ("5m", "1h"), "tried again after a week"


def test_refused_marks_mean_none_from_now_on():
    bench = Bench()
    bench.ask(story(6), 0.0)
    assert bench.planner.refused(bench.plan_, "system.0.cache_control: Extra inputs are not permitted", 1.0)
    told = bench.ask(story(7), 60.0)
    assert bench.plan_.marks == {}
    assert told.missed_because == "this upstream takes no cache marks"


def test_another_refusal_says_nothing_about_marks():
    bench = Bench()
    _, plan = bench.plan(story(6), 0.0)
    assert not bench.planner.refused(plan, "temperature: range: 0..1", 0.0)
    assert bench.plan(story(6), 1.0)[1].marks == plan.marks


class Apart(Upstream):
    """An upstream that keeps entries of five minutes and of an hour in two stores."""

    def bill(self, body, model, at, first_byte=1.0):
        prompt = accounting.read_prompt(body, model)
        said = set(prompt.marks.values())
        kind = "1h" if "1h" in said else "5m"
        mine = {digest: entry for digest, entry in self.entries.items() if entry.lifetime == kind}
        bill, changed = accounting.settle(mine, prompt, model.min_cacheable, at, first_byte)
        return prompt, bill, changed


def test_where_lifetimes_are_separate_one_kind_is_used():
    bench = Bench()
    bench.upstreams["w"] = Apart()
    for turn in range(5, 16):
        bench.ask(story(turn), turn * 60.0)
    assert set(bench.plan_.marks.values()) == {"1h"}
    assert bench.bill.read > 0.8 * sum(bench.bill)


def test_planning_never_raises_and_then_goes_without_marks(caplog):
    odd = {**story(3), "tool_choice": "auto", "cache_control": {"type": "ephemeral"}}
    sent, plan = CachePlanner(CacheMemory(SECRET)).plan(ChatRequest(odd), MODELS.like("claude-sonnet-4-6"), SCOPE, 0.0)
    assert plan is None
    assert marks_of(sent.body) == []
    assert "cache_control" not in sent.body
    assert "goes without marks" in caplog.text
    assert "player 1" not in caplog.text


def test_a_dry_run_changes_nothing():
    bench = Bench(helps=BOTH)
    bench.ask(story(6), 0.0)
    body, model = story(7), MODELS.like("claude-sonnet-4-6")
    first = draft(ChatRequest(body), model, SCOPE, bench.memory, 60.0, Bounds(helps=BOTH))
    second = draft(ChatRequest(body), model, SCOPE, bench.memory, 60.0, Bounds(helps=BOTH))
    assert first[0].body == second[0].body
    assert first[1].forecast == second[1].forecast
    assert len(bench.memory.related(first[1].prompt)) == 1


@pytest.mark.parametrize(("tools", "moves"), [([], True), ([{"name": "roll", "input_schema": {}}], False)])
def test_nothing_is_moved_where_calls_may_send_bound_thinking_back(tools, moves):
    bench = Bench(helps=BOTH)
    for turn, note in ((6, "It rains."), (7, "It snows.")):
        system = [{"type": "text", "text": f"You are Ada. {'Be kind. ' * 90}"}, {"type": "text", "text": note}]
        bench.ask({**story(turn), "system": system, "model": "claude-fable-5-2", "tools": tools}, turn * 60.0)
    assert (bare(bench.sent.body)["system"] != system) is moves


# ------------------------------------------------------------------------------------------------ chats nobody has seen

SHAPES = {
    "plain": {},
    "long": {"earlier": 120},
    "without system": {"system": False, "earlier": 40},
    "note at depth 2": {"note": 2, "earlier": 40},
    "note at depth 6": {"note": 6, "earlier": 40},
    "closing instruction": {"closing": "Write on in the same voice.", "earlier": 20},
    "swipes": {"swipes": 0.4},
    "edits": {"edits": 0.3, "earlier": 40},
    "lore at depth 4": {"lore": 4, "lore_at": 4, "earlier": 40},
    "squashed": {"squash": True, "earlier": 40},
    "summary": {"summary": 5, "earlier": 20},
    "prefill": {"prefill": "Well then,", "model": "claude-sonnet-4-5", "earlier": 20},
    "group of two": {"group": 2, "earlier": 40},
    "quick group of four": {"group": 4, "quick": True, "earlier": 20},
    "another model": {"model": "claude-opus-5-5", "earlier": 40},
    "sessions": {"mid": 0.25, "long": 0.1, "earlier": 40},
}


@pytest.mark.parametrize("name", SHAPES)
def test_no_chat_costs_more_than_a_little_above_no_caching_and_most_far_less(name):
    bench = Bench()
    bench.play(requests(seed=7, turns=25, **SHAPES[name]))
    assert bench.share < 0.9
    assert bench.share < {"long": 0.35, "plain": 0.5, "swipes": 0.5}.get(name, 0.9)


@pytest.mark.parametrize("shape", [{"lore": 6}, {"macro": "minute"}, {"lore": 6, "squash": True}], ids=str)
def test_late_lore_makes_changing_heads_cheap(shape):
    asked = requests(seed=8, turns=25, earlier=40, **shape)
    plain, helped = Bench(), Bench(helps=CacheHelps(cache_late_lore=True))
    plain.play(asked)
    helped.play(asked)
    assert helped.share < 0.45
    assert helped.cost < 0.6 * plain.cost


def test_a_steady_window_makes_a_full_context_cheap():
    asked = requests(seed=9, turns=40, earlier=60, limit=24_000)
    plain, helped = Bench(), Bench(helps=BOTH)
    plain.play(asked)
    helped.play(asked)
    assert helped.cost < 0.6 * plain.cost
