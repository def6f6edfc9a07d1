"""Changing lines of `system` stand behind the story: their order changes, not a word."""

from cache_bench import MODELS, SECRET, Bench
from chats import Chat
from hypothesis import given, settings
from hypothesis import strategies as st

from server.cache_helps import CacheHelps
from server.rewrite import late_lore
from server.rewrite.late_lore import OFTEN, Head, Lines, after, choose_head

MODEL = MODELS.like("claude-sonnet-4-6")
TAKES_SYSTEM = MODELS.like("claude-opus-5")
LATE = CacheHelps(cache_late_lore=True)
MESSAGES = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Well met"},
    {"role": "user", "content": "So?"},
]


def body(*blocks, messages=MESSAGES):
    return {"system": [{"type": "text", "text": text} for text in blocks], "messages": messages}


def lines_of(*blocks):
    return Lines.of(body(*blocks), SECRET)


def head_of(*blocks):
    return after(None, lines_of(*blocks), frozenset(), cold=False)


def moved(head, *blocks, model=MODEL, messages=MESSAGES):
    return late_lore.late_lore(body(*blocks, messages=messages), lines_of(*blocks), head, model)


def test_what_was_there_from_the_start_stays_untouched():
    whole = body("You are Ada.\nBe kind.", "The inn is old.")
    lines = Lines.of(whole, SECRET)
    assert late_lore.late_lore(whole, lines, after(None, lines, frozenset(), cold=False), MODEL) == (whole, 0)


def test_a_line_that_came_stands_just_before_the_last_user_message():
    changed, count = moved(head_of("You are Ada.", "Be kind."), "You are Ada.", "The inn is old.", "Be kind.")
    assert count == 1
    assert [block["text"] for block in changed["system"]] == ["You are Ada.", "Be kind."]
    assert changed["messages"][2]["content"] == [
        {"type": "text", "text": "The inn is old."},
        {"type": "text", "text": "So?"},
    ]


def test_the_line_that_a_subscription_requires_keeps_its_place():
    required = "You are a tool."
    asked = body(required, "You are Ada.", "The inn is old.")
    lines = Lines.of(asked, SECRET, required)
    changed, count = late_lore.late_lore(asked, lines, head_of("You are Ada."), MODEL)
    assert [block["text"] for block in changed["system"]] == [required, "You are Ada."]
    assert count == 1


def test_where_the_model_takes_system_messages_it_is_one():
    changed, _ = moved(head_of("You are Ada."), "You are Ada.", "The inn is old.", model=TAKES_SYSTEM)
    assert changed["messages"][3] == {"role": "system", "content": [{"type": "text", "text": "The inn is old."}]}
    assert changed["messages"][:3] == MESSAGES


def test_behind_a_prefill_no_system_message_may_stand():
    messages = [*MESSAGES, {"role": "assistant", "content": "Well,"}]
    changed, _ = moved(head_of("You are Ada."), "You are Ada.", "The inn.", model=TAKES_SYSTEM, messages=messages)
    assert [message["role"] for message in changed["messages"]] == ["user", "assistant", "user", "assistant"]


def test_results_of_tools_stay_first_in_their_message():
    result = {"type": "tool_result", "tool_use_id": "t", "content": "6"}
    messages = [
        {"role": "assistant", "content": []},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    changed, _ = moved(head_of("You are Ada."), "You are Ada.", "The inn.", messages=messages)
    assert [block["type"] for block in changed["messages"][1]["content"]] == ["tool_result", "text", "text"]


def test_lines_are_moved_not_blocks():
    changed, count = moved(
        head_of("You are Ada.\nBe kind.\nIt is summer."), "You are Ada.\nThe inn.\nBe kind.\nIt is summer."
    )
    assert count == 1
    assert changed["system"] == [{"type": "text", "text": "You are Ada.\nBe kind.\nIt is summer."}]


def test_equal_lines_are_told_apart_by_their_order():
    head = head_of("[Example]", "One.", "[Example]", "Two.")
    changed, _ = moved(head, "[Example]", "One.", "New.", "[Example]", "Two.")
    assert [block["text"] for block in changed["system"]] == ["[Example]", "One.", "[Example]", "Two."]


def test_a_line_that_left_leaves_the_head_and_comes_back_late():
    first = lines_of("You are Ada.", "The inn.", "Be kind.")
    gone = lines_of("You are Ada.", "Be kind.")
    head = after(after(None, first, frozenset(), cold=False), gone, frozenset(), cold=False)
    assert len(head.stable) == 2
    changed, count = moved(after(head, first, frozenset(), cold=False), "You are Ada.", "The inn.", "Be kind.")
    assert count == 1
    assert "The inn." in str(changed["messages"][2])


def test_a_settled_line_is_taken_back_when_the_cache_is_cold_and_not_before():
    old, new = lines_of("You are Ada."), lines_of("You are Ada.", "The summary.")
    head = after(None, old, frozenset(), cold=False)
    for _ in range(late_lore.SETTLED):
        head = after(head, new, frozenset(), cold=False)
    assert len(head.stable) == 1
    assert len(after(head, new, frozenset(), cold=True).stable) == 2
    early = after(after(None, old, frozenset(), cold=False), new, frozenset(), cold=True)
    assert len(early.stable) == 1


def test_another_card_is_another_head_unless_the_story_is_the_same():
    heads = [head_of("You are Ada.", "A long card of hers, with much in it.")]
    other = lines_of("You are Bo.", "Another card, nothing like it, long as well.")
    assert choose_head(other, frozenset(), heads) == -1
    known = [Head(heads[0].stable, {}, frozenset(), frozenset({"m1", "m2"}))]
    assert choose_head(other, frozenset({"m1", "m2", "m3"}), known) == 0
    assert choose_head(lines_of("You are Ada.", "A long card of hers, with much in it."), frozenset(), heads) == 0


def test_blocks_that_are_more_than_text_stay_where_they_are():
    special = {"type": "text", "text": "Cited.", "citations": None}
    system = [special, {"type": "text", "text": "Plain."}]
    asked = {"system": system, "messages": MESSAGES}
    changed, _ = late_lore.late_lore(asked, Lines.of(asked, SECRET), Head((), {}), MODEL)
    assert changed["system"] == [special]


def first_message(*texts):
    content = [{"type": "text", "text": text} for text in texts]
    return {"messages": [{"role": "user", "content": content}, *MESSAGES[1:]]}


def test_without_system_the_prompts_of_the_first_message_are_looked_after():
    start = Lines.of(first_message("You are Ada.", "Be kind.", "[Start]"), SECRET)
    head = after(None, start, frozenset(), cold=False)
    asked = first_message("You are Ada.", "The inn.", "Be kind.", "[Start]", "I come in.")
    changed, count = late_lore.late_lore(asked, Lines.of(asked, SECRET), head, MODEL)
    front = [block["text"] for block in changed["messages"][0]["content"]]
    assert count == 1
    assert front == ["You are Ada.", "Be kind.", "[Start]", "I come in."], "what the player said stays in its place"
    assert changed["messages"][2]["content"][0]["text"] == "The inn."


def test_paragraphs_stay_paragraphs():
    changed, _ = moved(head_of("You are Ada."), "You are Ada.", "The inn is old.\n\nIt has two rooms.")
    assert changed["messages"][2]["content"][0]["text"] == "The inn is old.\n\nIt has two rooms."


def test_of_very_many_paragraphs_the_changed_one_is_moved_alone():
    text = "\n\n".join(f"Paragraph {number}." for number in range(2 * OFTEN))
    changed, count = moved(head_of(text), text.replace("Paragraph 77.", "A new one."))
    assert count == 1
    assert changed["messages"][2]["content"][0]["text"] == "A new one."
    assert changed["system"][0]["text"] == text.replace("Paragraph 77.\n", "")


def test_a_front_of_too_many_lines_to_compare_stays_as_it_is():
    """Compared all with all, these would take a quarter of an hour, in which the proxy answers nobody."""
    equal = "\n".join(["An old line."] * 60_000)
    assert moved(head_of(equal), f"A new line.\n{equal}") == (body(f"A new line.\n{equal}"), 0)


some_lines = st.lists(
    st.sampled_from(["", "Ada.", "Bo.", "The inn.", "[Example]", "Rain.", "Snow."]), min_size=1, max_size=6
)
systems = st.lists(some_lines.map("\n".join), min_size=1, max_size=5)


@settings(deadline=None)
@given(st.lists(systems, min_size=2, max_size=6), st.booleans())
def test_no_line_is_lost_added_or_reworded(asked, cold):
    head = None
    for blocks in asked:
        lines = lines_of(*blocks)
        head = after(head, lines, frozenset(), cold)
        changed, count = moved(head, *blocks)
        front = [line for block in changed.get("system", []) for line in block["text"].split("\n")]
        late = changed["messages"][2]["content"]
        behind = late[0]["text"].split("\n") if count else []
        written = [line for text in blocks for line in text.split("\n") if line]
        assert sorted(line for line in front + behind if line) == sorted(written)
        assert changed["messages"][:2] == MESSAGES[:2]


def test_in_a_chat_it_is_named_and_off_by_default():
    plain, helped = Bench(), Bench(helps=LATE)
    chat = Chat(seed=1, lore=2, earlier=20)
    for bench in (plain, helped):
        chat.active = {}
        bench.ask(chat.ask(), 0.0)
        chat.active = {1: 5}
        bench.ask(chat.ask(), 60.0)
    assert "cache_late_lore" not in {change.name for change in plain.sent.changes}
    named = [change for change in helped.sent.changes if change.name == "cache_late_lore"]
    assert "Moved 1 changing line" in named[0].detail
    assert helped.bill.read > 0
    assert plain.bill.read == 0


def test_thinking_that_is_bound_to_what_stands_before_it_forbids_it():
    model = MODELS.like("claude-opus-5-5")
    assert model.binds_thinking
    chat = Chat(seed=1, lore=1, earlier=20, model=model.id)
    bench = Bench(helps=LATE)
    bench.ask(chat.ask(), 0.0)
    chat.active = {0: 5}
    asked = chat.ask()
    asked["messages"][0]["content"].insert(0, {"type": "thinking", "thinking": "hm", "signature": "x"})
    bench.ask(asked, 60.0)
    assert "cache_late_lore" not in [change.name for change in bench.sent.changes]
