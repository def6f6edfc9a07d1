"""The table of models: names, guesses, prices, and what the live list says on top."""

from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from anthropic.types import ModelInfo
from hypothesis import given
from hypothesis import strategies as st

from server.models import Models, overlay

MODELS = Models.load()
TODAY = datetime(2026, 11, 20, tzinfo=UTC).timestamp()
ROW = """
line = "opus"
released = 2026-01-01
context = 1000
max_output = 100
min_cacheable = 10
sampling = "none"
prefill = false
thinking = ["adaptive"]
thinking_off = "never"
forced_tools = true
system_messages = true
display_default = "omitted"
"""


def table(tmp_path, text):
    path = tmp_path / "models.toml"
    path.write_text(text)
    return Models.load(path)


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("claude-opus-5-5", "claude-opus-5-5"),
        ("  Claude-Opus-5-5 ", "claude-opus-5-5"),
        ("claude-opus-5.5", "claude-opus-5-5"),
        ("claude-opus-4-5", "claude-opus-4-5-20251101"),
        ("claude-opus-4-6-20260205", "claude-opus-4-6"),
        ("anthropic/claude-opus-4.5", "claude-opus-4-5-20251101"),
        ("openrouter/anthropic/claude-haiku-4.5:beta", "claude-haiku-4-5-20251001"),
        ("anthropic/claude-sonnet-4.5:thinking", "claude-sonnet-4-5-20250929"),
        ("claude-sonnet-4-6-thinking", "claude-sonnet-4-6"),
        ("anthropic.claude-opus-4-8", "claude-opus-4-8"),
        ("us.anthropic.claude-opus-4-5-20251101-v1:0", "claude-opus-4-5-20251101"),
        ("us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5-20250929"),
        ("claude-haiku-4-5@20251001", "claude-haiku-4-5-20251001"),
        ("claude-opus-4-7@default", "claude-opus-4-7"),
        ("claude-opus-5[1m]", "claude-opus-5"),
        ("claude-sonnet-latest", "claude-sonnet-5-5"),
        ("opus", "claude-opus-5-5"),
        ("fable-5.1", "claude-fable-5-1"),
        ("claude-4.5-sonnet", "claude-sonnet-4-5-20250929"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022"),
        ("claude-sonnet-3.5", "claude-3-5-sonnet-20241022"),
        ("claude-3.7-sonnet", "claude-3-7-sonnet-20250219"),
        ("claude-opus-4-0", "claude-opus-4-20250514"),
        ("claude-2.1", "claude-2.1"),
    ],
)
def test_a_model_is_found_however_its_name_is_spelt(name, id):
    assert MODELS.find(name).id == id


@pytest.mark.parametrize("name", ["", "gpt-6", "claude", "claude-opus-9", "deepseek/deepseek-v4", "claude-opus-4-99"])
def test_a_name_that_is_not_in_the_table_finds_nothing(name):
    assert MODELS.find(name) is None


@pytest.mark.parametrize(
    ("name", "relative"),
    [("claude-opus-6", "claude-opus-5-5"), ("anthropic/claude-fable-7-preview", "claude-fable-5-2")],
)
def test_a_model_nobody_knows_is_treated_as_the_newest_of_its_line_under_its_own_name(name, relative):
    newest = MODELS.find(relative)
    assert MODELS.like(name) == replace(newest, id=name, aliases=(), successor="", known=False)


def test_a_name_without_a_line_is_treated_as_a_sonnet_whose_price_nobody_knows():
    guess = MODELS.like("gpt-6")
    assert (guess.id, guess.line, guess.price, guess.known) == ("gpt-6", "sonnet", None, False)


@pytest.mark.parametrize("model", MODELS.all, ids=lambda model: model.id)
def test_each_row_of_the_table_holds_together(model):
    assert MODELS.find(model.id) is model
    assert all(MODELS.find(alias) is model for alias in model.aliases)
    assert model.max_output <= model.context
    assert set(model.off_efforts) <= set(model.efforts)
    assert (model.default_effort in model.efforts) if model.efforts else not model.default_effort
    if model.thinking_off in ("disabled", "between_tools"):
        assert model.thinking_off in model.thinking
    if model.thinking_off == "never":
        assert not model.thinking & {"disabled", "between_tools"}
    if model.retired:
        assert MODELS.find(model.successor).retired is None


@pytest.mark.parametrize("model", [m for m in MODELS.all if m.price and not m.retired], ids=lambda model: model.id)
def test_writing_to_the_cache_costs_a_quarter_more_than_input_and_for_an_hour_twice_as_much(model):
    for price in filter(None, (model.price, model.long_price)):
        assert price.write_5m == pytest.approx(1.25 * price.input)
        assert price.write_1h == pytest.approx(2 * price.input)
        assert price.read <= 0.1 * price.input + 1e-9


@pytest.mark.parametrize(
    ("id", "name"),
    [
        ("claude-opus-4-5-20251101", "Claude Opus 4.5"),
        ("claude-fable-5", "Claude Fable 5"),
        ("claude-2.1", "Claude 2.1"),
    ],
)
def test_a_model_has_a_name_for_people(id, name):
    assert MODELS.find(id).display_name == name


# ---------------------------------------------------------------------------------------- the file


def test_a_row_takes_over_what_its_relative_has_but_no_names_and_dates(tmp_path):
    rows = f'["claude-opus-9"]\nretires = 2027-01-01\naliases = ["nine"]\n{ROW}'
    rows += '["claude-opus-8"]\nsame_as = "claude-opus-9"\nreleased = 2025-01-01\nprefill = true\n'
    newer, older = table(tmp_path, rows).all
    assert older == replace(
        newer,
        id="claude-opus-8",
        aliases=(),
        released=date(2025, 1, 1),
        retires=None,
        prefill=True,
        successor="claude-opus-9",
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f'["claude-x"]\n{ROW}cost = 1', "claude-x: no such field: cost"),
        ('["claude-x"]\nline = "opus"', "claude-x: .*missing .*released"),
        (f'["claude-x"]\n{ROW}price = {{ input = 1 }}', "claude-x: .*missing .*output"),
        (
            f'["claude-x"]\n{ROW.replace("none", "some")}',
            "claude-x: sampling cannot be 'some'. Choose from none, one, both",
        ),
        (f'["claude-x"]\n{ROW.replace("adaptive", "often")}', "claude-x: thinking cannot be 'often'"),
        (f'["claude-x"]\nsame_as = "claude-y"\n["claude-y"]\n{ROW}', "claude-x: same_as names claude-y, .* further up"),
        ('model = "claude-x"', "model is not a table"),
        ("[claude", "models.toml|TOML|Expected"),
    ],
)
def test_a_mistake_in_the_table_is_named(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        table(tmp_path, text)


def test_the_version_changes_with_the_table(tmp_path):
    first = table(tmp_path, f'["claude-x"]\n{ROW}').version
    assert first == table(tmp_path, f'["claude-x"]\n{ROW}').version
    assert first != table(tmp_path, f'["claude-x"]\n{ROW.replace("1000", "2000")}').version


# ---------------------------------------------------------------------------------------- the list


def test_the_offline_list_has_the_shape_of_the_api_newest_first():
    listed = MODELS.offline_list(TODAY)
    read = [ModelInfo.model_validate(item) for item in listed["data"]]
    assert [model.id for model in read] == [item["id"] for item in listed["data"]]
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (read[0].id, read[-1].id, False)
    assert [model.created_at for model in read] == sorted((model.created_at for model in read), reverse=True)
    opus = next(model for model in read if model.id == "claude-opus-5")
    assert (opus.display_name, opus.line, opus.max_input_tokens, opus.max_tokens) == (
        "Claude Opus 5",
        "opus",
        1_000_000,
        128_000,
    )
    assert opus.capabilities.thinking.types.disabled.supported
    assert not opus.capabilities.thinking.types.enabled.supported
    assert opus.capabilities.effort.xhigh.supported


def test_the_offline_list_leaves_out_what_is_gone_or_not_for_everybody():
    ids = [item["id"] for item in MODELS.offline_list(TODAY)["data"]]
    assert "claude-sonnet-4-5-20250929" in ids
    assert not any("mythos" in id or "claude-3" in id for id in ids)
    after = datetime(2026, 11, 30, tzinfo=UTC).timestamp()
    assert "claude-sonnet-4-5-20250929" not in [item["id"] for item in MODELS.offline_list(after)["data"]]


def test_a_model_on_notice_says_when_it_goes():
    item = next(item for item in MODELS.offline_list(TODAY)["data"] if item["id"] == "claude-sonnet-4-5-20250929")
    assert (item["lifecycle"], item["retires_at"]) == ("deprecated", "2026-11-30T00:00:00Z")


def test_the_offline_list_comes_in_pages_forwards_and_backwards():
    ids = [item["id"] for item in MODELS.offline_list(TODAY)["data"]]
    forwards, after = [], ""
    while True:
        page = MODELS.offline_list(TODAY, limit=4, after_id=after)
        forwards += [item["id"] for item in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert forwards == ids
    back = MODELS.offline_list(TODAY, limit=4, before_id=ids[6])
    assert [item["id"] for item in back["data"]] == ids[2:6]
    assert back["has_more"]
    assert MODELS.offline_list(TODAY, limit=4, after_id=ids[-1]) == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


# ------------------------------------------------------------------------------- what the API says


@pytest.mark.parametrize("item", MODELS.offline_list(TODAY)["data"], ids=lambda item: item["id"])
def test_a_live_item_that_agrees_with_the_table_changes_nothing(item):
    model = MODELS.find(item["id"])
    assert overlay(model, item) == model


def test_the_live_list_goes_before_the_table():
    live = {
        "max_input_tokens": 2_000_000,
        "max_tokens": 256_000,
        "lifecycle": "deprecated",
        "deprecated_at": "2026-12-01T00:00:00Z",
        "retires_at": "2027-06-01T00:00:00Z",
        "capabilities": {
            "thinking": {"types": {"disabled": {"supported": True}, "adaptive": {"supported": True}}},
            "effort": {"xhigh": {"supported": False}, "max": {"supported": False}},
        },
    }
    model = overlay(MODELS.find("claude-opus-5-5"), live)
    assert (model.context, model.max_output) == (2_000_000, 256_000)
    assert (model.deprecated, model.retires, model.retired) == (date(2026, 12, 1), date(2027, 6, 1), None)
    assert (model.thinking, model.thinking_off) == (frozenset({"adaptive", "disabled"}), "disabled")
    assert model.efforts == ("low", "medium", "high")
    assert model.off_efforts == ("low", "medium", "high")
    assert model.default_effort == "medium"


def test_a_way_of_switching_thinking_off_that_the_live_list_denies_is_not_used():
    denied = {"capabilities": {"thinking": {"types": {"disabled": {"supported": False}}}}}
    assert overlay(MODELS.find("claude-opus-5"), denied).thinking_off == "never"
    assert overlay(MODELS.find("claude-opus-4-8"), denied).thinking_off == "omit"


def test_a_live_model_is_not_retired_whatever_the_table_says_and_a_retired_one_is():
    gone, here = MODELS.find("claude-opus-4-1"), MODELS.find("claude-opus-5")
    assert overlay(gone, {"lifecycle": "deprecated", "retires_at": None}).retired is None
    assert overlay(here, {"lifecycle": "retired", "retires_at": "2026-11-01T00:00:00Z"}).retired == date(2026, 11, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "capabilities",
    "max_tokens",
    "max_input_tokens",
    "retires_at",
    "deprecated_at",
    "lifecycle",
    "thinking",
    "effort",
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3)))
def test_nothing_odd_in_a_live_item_breaks_the_table(item):
    model = overlay(MODELS.find("claude-sonnet-5-5"), item)
    assert model.context > 0
    assert model.thinking == {"adaptive", "between_tools"}
