"""What the practice upstream reads, writes and bills: each rule of the prompt cache, and the recorded chats."""

import base64
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.models import Models
from server.practice.accounting import Bill, Entry, missed_because, read_prompt, remember, settle, usage
from tests.traces import traces

MODELS = Models.load()
OPUS = MODELS.find("claude-opus-5")
NONE = 0  # no minimum
DAY = 86_400.0


def text(words, **more):
    return {"type": "text", "text": words, **more}


def mark(block, lifetime="5m"):
    return {**block, "cache_control": {"type": "ephemeral", "ttl": lifetime}}


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks):
    return {"role": "assistant", "content": list(blocks)}


def prompt(body, model=OPUS, scope=b""):
    return read_prompt({"model": model.id, **body}, model, scope)


def row_of(count, marks=(), size=10):
    """A prompt of `count` text blocks of `size` tokens each, marked for 5 minutes, or as the pairs say."""
    lifetimes = dict((m, "5m") if isinstance(m, int) else m for m in marks)
    blocks = [text(f"{i:04}".ljust(4 * size, "x")) for i in range(count)]
    blocks = [mark(block, lifetimes[i]) if i in lifetimes else block for i, block in enumerate(blocks)]
    return prompt({"messages": [user(*blocks)]})


class Cache:
    """An upstream's entries, asked one request after the other."""

    def __init__(self, minimum=NONE, first_byte=1.0):
        self.entries = {}
        self.minimum = minimum
        self.first_byte = first_byte

    def ask(self, asked, now=0.0):
        bill, changed = settle(self.entries, asked, self.minimum, now, self.first_byte)
        remember(self.entries, changed, now)
        return bill


# ----------------------------------------------------------------------------- blocks and prefixes


def test_tools_come_before_system_and_system_before_messages():
    body = {
        "messages": [user(text("c"), text("d")), assistant(text("e"))],
        "system": [text("b")],
        "tools": [{"name": "a", "input_schema": {"type": "object"}}],
    }
    paths = ("tools.0", "system.0", "messages.0.content.0", "messages.0.content.1", "messages.1.content.0")
    assert prompt(body).paths == paths


def test_a_plain_string_is_one_text_block():
    strings = {"system": "s", "messages": [{"role": "user", "content": "u"}]}
    assert prompt(strings).chain == prompt({"system": [text("s")], "messages": [user(text("u"))]}).chain


def test_the_bounds_of_messages_of_one_role_do_not_count():
    apart = [user(text("a")), user(text("b")), assistant(text("c"))]
    assert (
        prompt({"messages": apart}).chain
        == prompt({"messages": [user(text("a"), text("b")), assistant(text("c"))]}).chain
    )


def test_a_mark_is_no_part_of_the_content():
    assert row_of(5, marks=[1, (3, "1h")]).chain == row_of(5).chain


def test_a_block_has_a_quarter_of_its_bytes_as_tokens_rounded_up():
    assert prompt({"messages": [user(text("12345"), text("é"))]}).upto == (2, 3)


def test_an_image_has_tokens_by_its_size_and_not_by_its_bytes():
    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">II", 300, 250) + b"\0" * 4_000
    image = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png).decode()},
    }
    inside = {"type": "tool_result", "tool_use_id": "t", "content": [image, text("1234")]}
    assert prompt({"messages": [user(image, inside)]}).upto == (100, 201)


TOOL = {"name": "dice", "input_schema": {"type": "object", "properties": {"a": {}, "b": {}}}}
WEB = {"type": "web_search_20250305", "name": "web_search"}
BASE = {
    "tools": [TOOL, {**TOOL, "name": "coin"}],
    "system": [text("s0"), text("s1")],
    "messages": [user(text("m0")), assistant(text("m1")), user(text("m2"))],
}
PICTURE = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
CITED = {"type": "document", "source": {"type": "url", "url": "https://example.com"}, "citations": {"enabled": True}}
REORDERED = {"name": "dice", "input_schema": {"type": "object", "properties": {"b": {}, "a": {}}}}


def messages(at, block, role="user"):
    changed = [dict(message) for message in BASE["messages"]]
    changed[at] = {"role": role, "content": [block]}
    return {"messages": changed}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"tools": [{**TOOL, "name": "dices"}, BASE["tools"][1]]}, 0),
        ({"tools": [REORDERED, BASE["tools"][1]]}, 0),
        ({"tools": BASE["tools"][::-1]}, 0),
        ({"tools": [TOOL, {**TOOL, "name": "coins"}]}, 1),
        ({"tools": [WEB, *BASE["tools"]]}, 2),
        ({"speed": "fast"}, 2),
        (messages(2, CITED), 2),
        ({"system": [text("s0!"), text("s1")]}, 2),
        ({"system": [text("s0"), text("s1!")]}, 3),
        ({"tool_choice": {"type": "any"}}, 4),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, 4),
        (messages(2, PICTURE), 4),
        ({"thinking": {"type": "disabled"}}, 4),
        ({"output_config": {"effort": "low"}}, 4),
        (messages(0, text("m0!")), 4),
        (messages(1, text("m1"), role="user"), 5),
        (messages(2, text("m2!")), 6),
        ({"thinking": {"type": "adaptive", "display": "summarized"}}, 7),
        ({"thinking": {"type": "adaptive"}}, 7),
        ({"output_config": {"effort": "high"}}, 7),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": False}}, 7),
        ({"speed": "standard"}, 7),
        ({"temperature": 1, "max_tokens": 7, "stop_sequences": ["x"], "metadata": {"user_id": "u"}, "stream": True}, 7),
    ],
    ids=str,
)
def test_a_change_loses_the_cache_from_where_it_counts(changes, kept):
    before, after = prompt(BASE), prompt(BASE | changes)
    shared = [a == b for a, b in zip(before.chain, after.chain, strict=False)]
    assert shared == [True] * kept + [False] * (len(shared) - kept)


def test_a_thinking_budget_counts_for_the_messages():
    older = MODELS.find("claude-opus-4-6")
    budgets = [prompt(BASE | {"thinking": {"type": "enabled", "budget_tokens": n}}, older) for n in (1_024, 2_048)]
    assert [a == b for a, b in zip(budgets[0].chain, budgets[1].chain, strict=True)] == [True] * 4 + [False] * 3


def test_another_model_or_another_workspace_shares_nothing():
    chains = [prompt(BASE, OPUS, b"a"), prompt(BASE, OPUS, b"b"), prompt(BASE, MODELS.find("claude-opus-5-5"), b"a")]
    assert len({digest for chain in chains for digest in chain.chain}) == 21


THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
CALL = {"type": "tool_use", "id": "t", "name": "dice", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "6"}


def test_older_models_drop_old_thinking_when_an_ordinary_user_turn_arrives():
    loop = [user(text("roll")), assistant(THOUGHT, CALL), user(RESULT)]
    after = [*loop, assistant(text("six")), user(text("again"))]
    haiku = MODELS.find("claude-haiku-4-5")
    during, later = prompt({"messages": loop}, haiku), prompt({"messages": after}, haiku)
    assert len(during.chain) == 4
    assert "messages.1.content.0" not in later.paths
    assert during.chain[0] == later.chain[0]
    assert during.chain[1] != later.chain[1]
    kept = prompt({"messages": after}, MODELS.find("claude-opus-4-5"))
    assert kept.chain[:4] == prompt({"messages": loop}, MODELS.find("claude-opus-4-5")).chain


# ------------------------------------------------------------------------------------------- marks


def test_nothing_is_cached_without_a_mark():
    cache = Cache()
    assert cache.ask(row_of(5)) == Bill(0, 0, 0, 50)
    assert cache.ask(row_of(5, marks=[4]), now=10) == Bill(0, 0, 50, 0)


def test_a_mark_without_a_lifetime_lasts_five_minutes():
    block = {**text("x" * 40), "cache_control": {"type": "ephemeral"}}
    assert prompt({"messages": [user(block)]}).marks == {0: "5m"}


def test_a_top_level_mark_stands_on_the_last_block_that_can_carry_one():
    body = {
        "messages": [user(text("a")), assistant(text("b"), THOUGHT)],
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
    }
    assert prompt(body).marks == {1: "1h"}


def test_a_top_level_mark_changes_nothing_on_a_block_that_has_the_same():
    body = {"messages": [user(text("a"), mark(text("b")))], "cache_control": {"type": "ephemeral"}}
    assert prompt(body).marks == {1: "5m"}


def test_a_mark_with_one_token_too_few_before_it_does_nothing():
    cache = Cache(minimum=30)
    assert cache.ask(row_of(5, marks=[1])) == Bill(0, 0, 0, 50)
    assert cache.ask(row_of(5, marks=[2])) == Bill(0, 0, 30, 20)
    assert Cache(minimum=31).ask(row_of(5, marks=[2])) == Bill(0, 0, 0, 50)


def test_a_mark_below_the_minimum_does_not_read_either():
    cache = Cache(minimum=NONE)
    cache.ask(row_of(5, marks=[1]))
    cache.minimum = 30
    assert cache.ask(row_of(5, marks=[1]), now=10) == Bill(0, 0, 0, 50)


# -------------------------------------------------------------------------------- reading, writing


@pytest.mark.parametrize(("marked", "read"), [(5, 60), (6, 60), (24, 60), (25, 0)])
def test_a_mark_finds_an_entry_at_most_nineteen_blocks_before_it(marked, read):
    cache = Cache()
    cache.ask(row_of(40, marks=[5]))
    assert cache.ask(row_of(40, marks=[marked]), now=10) == Bill(
        read, 0, 10 * (marked + 1) - read, 400 - 10 * (marked + 1)
    )


def test_the_longest_prefix_that_any_mark_finds_is_the_hit():
    cache = Cache()
    cache.ask(row_of(40, marks=[3, 9]))
    assert cache.ask(row_of(40, marks=[3, 25]), now=10).read == 100


def test_a_shared_prefix_that_was_never_marked_is_not_found():
    cache = Cache()
    cache.ask(row_of(10, marks=[9]))
    shorter = row_of(8, marks=[7])
    assert cache.ask(shorter, now=10) == Bill(0, 0, 80, 0)


def test_each_mark_above_the_hit_writes_an_entry_of_its_own():
    cache = Cache()
    cache.ask(row_of(10, marks=[2, 5, 9]))
    assert [cache.ask(row_of(n, marks=[n - 1]), now=10).read for n in (3, 6, 10)] == [30, 60, 100]


def test_the_bill_is_read_then_an_hour_then_five_minutes_then_plain():
    cache = Cache()
    cache.ask(row_of(10, marks=[1]))
    assert cache.ask(row_of(10, marks=[1, (3, "1h"), (5, "1h"), 7]), now=10) == Bill(20, 40, 20, 20)


def test_an_hours_mark_behind_a_five_minute_hit_pays_for_the_new_blocks_only():
    cache = Cache()
    cache.ask(row_of(10, marks=[8]))
    assert cache.ask(row_of(10, marks=[(9, "1h")]), now=10) == Bill(90, 10, 0, 0)


def test_the_usage_shows_the_bill():
    shown = usage(Bill(read=1, write_1h=20, write_5m=300, plain=4_000), output=7, thinking=5)
    assert shown["cache_read_input_tokens"] == 1
    assert shown["cache_creation_input_tokens"] == 320
    assert shown["cache_creation"] == {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 20}
    assert (shown["input_tokens"], shown["output_tokens"]) == (4_000, 7)


# --------------------------------------------------------------------------------------- lifetimes


@pytest.mark.parametrize(
    ("lifetime", "later", "read"),
    [("5m", 299, 50), ("5m", 301, 0), ("5m", 300, 0), ("1h", 3_599, 50), ("1h", 3_601, 0)],
)
def test_an_entry_lives_for_its_lifetime_from_the_start_of_the_request(lifetime, later, read):
    cache = Cache()
    cache.ask(row_of(5, marks=[(4, lifetime)]))
    assert cache.ask(row_of(5, marks=[(4, lifetime)]), now=later).read == read


def test_each_hit_renews_for_free():
    cache = Cache()
    cache.ask(row_of(5, marks=[4]))
    assert [cache.ask(row_of(5, marks=[4]), now=n * 200).read for n in range(1, 6)] == [50] * 5


def test_a_hit_renews_by_the_entrys_own_lifetime():
    cache = Cache()
    cache.ask(row_of(5, marks=[4]))
    assert cache.ask(row_of(5, marks=[(4, "1h")]), now=200) == Bill(50, 0, 0, 0)
    assert cache.ask(row_of(5, marks=[(4, "1h")]), now=501) == Bill(0, 50, 0, 0)


def test_an_hours_mark_finds_an_entry_of_five_minutes_and_the_other_way_round():
    cache = Cache()
    cache.ask(row_of(6, marks=[(2, "1h")]))
    assert cache.ask(row_of(6, marks=[4]), now=400) == Bill(30, 0, 20, 10)
    assert cache.ask(row_of(6, marks=[(5, "1h")]), now=500) == Bill(50, 10, 0, 0)


def test_marked_entries_below_the_hit_are_renewed_too():
    cache = Cache()
    cache.ask(row_of(6, marks=[2, 5]))
    cache.ask(row_of(6, marks=[2, 5]), now=200)
    assert cache.ask(row_of(3, marks=[2]), now=499).read == 30


def test_entries_below_the_hit_that_are_not_marked_are_not_renewed():
    cache = Cache()
    cache.ask(row_of(6, marks=[2, 5]))
    cache.ask(row_of(6, marks=[5]), now=200)
    assert cache.ask(row_of(3, marks=[2]), now=301).read == 0


def test_a_mark_below_the_hit_without_an_entry_makes_none_and_costs_nothing():
    cache = Cache()
    cache.ask(row_of(6, marks=[5]))
    assert cache.ask(row_of(6, marks=[2, 5]), now=10) == Bill(60, 0, 0, 0)
    assert cache.ask(row_of(3, marks=[2]), now=20).read == 0


def test_an_entry_can_be_read_once_the_response_that_writes_it_has_begun():
    cache = Cache(first_byte=5.0)
    cache.ask(row_of(5, marks=[4]))
    assert cache.ask(row_of(5, marks=[4]), now=5.0).read == 50


def test_two_requests_at_once_both_miss_and_both_write():
    cache = Cache(first_byte=5.0)
    assert cache.ask(row_of(5, marks=[4]), now=0.0) == Bill(0, 0, 50, 0)
    assert cache.ask(row_of(5, marks=[4]), now=4.0) == Bill(0, 0, 50, 0)
    assert cache.ask(row_of(5, marks=[4]), now=6.0).read == 50, "the earlier of the two responses has begun"


def test_a_request_broken_off_before_its_response_begins_writes_nothing():
    cache = Cache()
    settle(cache.entries, row_of(5, marks=[4]), NONE, now=0.0)
    assert cache.ask(row_of(5, marks=[4]), now=10).read == 0


def test_of_two_lives_the_longer_counts():
    entries = {b"d": Entry("1h", 3_600.0, 0.0)}
    remember(entries, {b"d": Entry("5m", 310.0, 11.0)}, now=11.0)
    assert entries == {b"d": Entry("1h", 3_600.0, 0.0)}
    remember(entries, {b"d": Entry("5m", 4_300.0, 4_001.0)}, now=4_001.0)
    assert entries == {b"d": Entry("5m", 4_300.0, 4_001.0)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"messages": [*BASE["messages"], assistant(text("m3"))]}, None),
        ({"tools": [{**TOOL, "name": "die"}, BASE["tools"][1]]}, "tools_changed"),
        ({"system": [text("s"), text("s1")]}, "system_changed"),
        ({"output_config": {"effort": "low"}}, "messages_changed"),
    ],
)
def test_the_diagnostics_say_which_part_changed(changes, reason):
    found = missed_because("a", prompt(BASE), "a", prompt(BASE | changes))
    assert (found and found["type"]) == reason


def test_the_diagnostics_count_what_would_have_been_read():
    old, new = row_of(5), prompt({"messages": [user(text("other"))]})
    assert missed_because("a", old, "a", new) == {"type": "messages_changed", "cache_missed_input_tokens": 50}
    assert missed_because("a", old, "b", old) == {"type": "model_changed", "cache_missed_input_tokens": 50}


# ---------------------------------------------------------------- the rules once more, told simply


def told_simply(history, asked, minimum, now):
    """A bill by the rules in their plainest words. `history` holds (prefix, lifetime, from, until) of all writes."""
    here = [(i, ttl) for i, ttl in sorted(asked.marks.items()) if asked.upto[i] >= minimum]
    live = {prefix: (ttl, since, until) for prefix, ttl, since, until in history if since <= now < until}
    read_at = -1
    for position, _ in here:
        for back in range(20):
            if position - back >= 0 and asked.chain[position - back] in live:
                read_at = max(read_at, position - back)
    length = lambda i: asked.upto[i] if i >= 0 else 0  # noqa: E731
    for_an_hour = max([read_at] + [i for i, ttl in here if ttl == "1h" and i > read_at])
    highest = max([for_an_hour] + [i for i, _ in here if i > for_an_hour])
    seconds = {"5m": 300, "1h": 3_600}
    for i, ttl in here:
        if i > read_at:
            history.append((asked.chain[i], ttl, now + 1, now + seconds[ttl]))
    for i in {i for i, _ in here if i <= read_at} | ({read_at} - {-1}):
        if asked.chain[i] in live:
            ttl, since, _ = live[asked.chain[i]]
            history[:] = [entry for entry in history if entry[0] != asked.chain[i]]
            history.append((asked.chain[i], ttl, since, now + seconds[ttl]))
    parts = (length(read_at), length(for_an_hour), length(highest), asked.tokens)
    return Bill(parts[0], parts[1] - parts[0], parts[2] - parts[1], parts[3] - parts[2])


@st.composite
def chats(draw):
    """Requests that share beginnings: rows cut and continued at random, with up to four marks, an hour's first."""
    requests, now = [], 0.0
    for _ in range(draw(st.integers(2, 8))):
        now += draw(st.sampled_from([2.0, 30.0, 250.0, 299.0, 301.0, 2_000.0, 3_599.0, 3_601.0]))
        count, branch = draw(st.integers(1, 45)), draw(st.sampled_from("ab"))
        turn = draw(st.integers(0, count))
        positions = sorted(draw(st.sets(st.integers(0, count - 1), max_size=4)))
        hours = draw(st.integers(0, len(positions)))
        blocks = [text(f"{i}{branch if i >= turn else ''}".ljust(20)) for i in range(count)]
        for n, i in enumerate(positions):
            blocks[i] = mark(blocks[i], "1h" if n < hours else "5m")
        requests.append((prompt({"messages": [user(*blocks)]}), now))
    return requests


@settings(max_examples=300, deadline=None)
@given(chats(), st.sampled_from([0, 20, 60]))
def test_any_chat_is_billed_as_the_rules_told_simply_say(requests, minimum):
    cache, history = Cache(minimum), []
    for asked, now in requests:
        bill = cache.ask(asked, now)
        assert bill == told_simply(history, asked, minimum, now)
        assert sum(bill) == asked.tokens
        assert min(bill) >= 0


# ------------------------------------------------------------------------------ the recorded chats


def without_marks(body):
    def bare(blocks):
        return [{key: value for key, value in block.items() if key != "cache_control"} for block in blocks]

    clean = {**body, "messages": [{**m, "content": bare(m["content"])} for m in body["messages"]]}
    return clean | ({"system": bare(body["system"])} if "system" in body else {})


def marked_system(body):
    if not body.get("system"):
        return body
    return {**body, "system": [*body["system"][:-1], mark(body["system"][-1])]}


def marked_messages(body, positions):
    chosen = {i: [*body["messages"][i]["content"][:-1], mark(body["messages"][i]["content"][-1])] for i in positions}
    return {
        **body,
        "messages": [{**m, "content": chosen.get(i, m["content"])} for i, m in enumerate(body["messages"])],
    }


def last_users(body, count):
    return [i for i, message in enumerate(body["messages"]) if message["role"] == "user"][-count:]


def at_depth(body, *depths):
    """SillyTavern counts switches of role from the end, a prefill aside, and marks where the count is reached."""
    positions, depth, role = [], -1, None
    for i in reversed(range(len(body["messages"]))):
        here = body["messages"][i]["role"]
        if (i == len(body["messages"]) - 1 and here == "assistant") or here == role:
            continue
        depth, role = depth + 1, here
        if depth in depths:
            positions.append(i)
    return positions


POLICIES = {
    "system end": marked_system,
    "SillyTavern's own at depth 4": lambda body: marked_messages(marked_system(body), at_depth(body, 4, 6)),
    "automatic": lambda body: {**body, "cache_control": {"type": "ephemeral"}},
    "system end, last user message": lambda body: marked_messages(marked_system(body), last_users(body, 1)),
    "system end, last two user messages": lambda body: marked_messages(marked_system(body), last_users(body, 2)),
}


def input_cost(requests, policy, minimum=None):
    """(cost, tokens): of a chat's input, in tokens at the plain price."""
    cache, paid, total = Cache(), 0.0, 0
    for request in requests:
        body = policy(request["body"])
        model = MODELS.find(body["model"])
        cache.minimum = model.min_cacheable if minimum is None else minimum
        bill = cache.ask(read_prompt(body, model), request["t"])
        paid += bill.plain + bill.read * model.price.read / model.price.input + 1.25 * bill.write_5m + 2 * bill.write_1h
        total += sum(bill)
    return paid, total


def share(costs):
    return sum(paid for paid, _ in costs) / sum(total for _, total in costs)


@pytest.mark.parametrize(
    ("policy", "minimum", "whole", "plain", "lorebook", "swipes", "truncation"),
    [
        ("system end", None, 0.964, 1.00, 0.97, 0.78, 0.91),
        ("system end", 512, 0.927, 0.86, 0.97, 0.78, 0.91),
        ("SillyTavern's own at depth 4", None, 0.731, 0.48, 0.86, 0.49, 0.99),
        ("automatic", None, 0.983, 0.39, 1.17, 0.43, 1.06),
        ("system end, last user message", None, 0.954, 0.39, 1.12, 0.40, 0.98),
        ("system end, last two user messages", None, 0.887, 0.39, 1.08, 0.34, 0.98),
    ],
)
def test_fixed_policies_cost_on_the_recorded_chats_what_was_reckoned_elsewhere(
    policy, minimum, whole, plain, lorebook, swipes, truncation
):
    costs = {
        name: input_cost(requests, lambda body: POLICIES[policy](without_marks(body)), minimum)
        for name, requests in traces().items()
    }
    assert share(costs.values()) == pytest.approx(whole, abs=0.0006)
    singles = [share([costs[name]]) for name in ("plain", "lorebook", "swipes", "truncation")]
    assert singles == pytest.approx([plain, lorebook, swipes, truncation], abs=0.0055)


def test_the_recorded_chats_come_to_1968_thousand_tokens():
    assert sum(input_cost(requests, lambda body: body)[1] for requests in traces().values()) == 1_968_176


def test_the_marks_of_the_client_as_recorded_cost_more_than_no_caching():
    assert share([input_cost(traces()["stcache"], lambda body: body)]) == pytest.approx(1.638, abs=0.0005)


def test_the_moment_of_the_first_byte_does_not_move_the_costs():
    def bills(first_byte):
        cache = Cache(first_byte=first_byte, minimum=512)
        return [cache.ask(read_prompt(POLICIES["automatic"](r["body"]), OPUS), r["t"]) for r in traces()["plain"]]

    assert bills(first_byte=0.0) == bills(first_byte=2.0)
    assert sum(bill.read for bill in bills(first_byte=0.0)) > 150_000


def test_the_model_of_the_swiped_chat_counts_with_a_minimum_of_1024_tokens():
    assert MODELS.find("claude-sonnet-4-0").min_cacheable == 1_024
