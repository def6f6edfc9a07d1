"""The live list of models, laid over the table."""

import pytest

from server.live_models import LiveModels
from server.models import Models
from server.rewrite import Context, rewrite
from tests.steps import NOW, asked


@pytest.fixture
def models():
    return Models.load()


def item(name, **more):
    kinds = {
        kind: {"supported": kind in ("adaptive", "disabled")}
        for kind in ("adaptive", "between_tools", "disabled", "enabled")
    }
    efforts = {level: {"supported": level in ("low", "high")} for level in ("low", "medium", "high", "xhigh", "max")}
    return {
        "type": "model",
        "id": name,
        "created_at": "2027-01-05T00:00:00Z",
        "lifecycle": "active",
        "max_tokens": 77_000,
        "capabilities": {"thinking": {"supported": True, "types": kinds}, "effort": {"supported": True, **efforts}},
        **more,
    }


def test_the_live_list_goes_before_the_table(models):
    live = LiveModels(models)
    live.saw([item("claude-sonnet-5-5")])
    row = live.models.find("claude-sonnet-5-5")
    assert (row.max_output, row.thinking_off, row.efforts) == (77_000, "disabled", ("low", "high"))
    assert row.sampling == "none"  # the list does not speak of it
    assert models.find("claude-sonnet-5-5").max_output == 128_000
    assert live.models.version == models.version


def test_a_model_nobody_knew_gets_a_row_of_its_own(models):
    live = LiveModels(models)
    live.saw([item("claude-opus-6"), {"id": 3}, "odd", item("other-model"), {"type": "model"}])
    row = live.models.find("claude-opus-6")
    assert (row.id, row.line, row.max_output, row.known) == ("claude-opus-6", "opus", 77_000, False)
    assert live.models.newest("opus").id == "claude-opus-6"
    sent = rewrite(asked("claude-opus-6", thinking={"type": "disabled"}), Context("api_key", live.models))
    assert sent.body["thinking"] == {"type": "disabled"}
    assert not any(model.id == "other-model" for model in live.models.all)


def test_a_model_alive_there_is_not_gone_whatever_date_was_set(models):
    december = 1_796_256_000.0
    live = LiveModels(models, clock=lambda: december)
    assert models.find("claude-sonnet-4-5").gone(december)
    live.saw([item("claude-sonnet-4-5-20250929", lifecycle="deprecated", retires_at="2026-11-30T00:00:00Z")])
    assert not live.models.find("claude-sonnet-4-5").gone(december)
    live.saw([item("claude-opus-4-20250514", retires_at=None)])
    assert not live.models.find("claude-opus-4-0").gone(december)
    live.saw([item("claude-opus-5", lifecycle="retired", retires_at="2026-11-01T00:00:00Z")])
    assert live.models.find("claude-opus-5").gone(december)


def test_a_day_of_retirement_to_come_is_taken_over(models):
    live = LiveModels(models, clock=lambda: NOW)
    live.saw([item("claude-opus-5", lifecycle="deprecated", retires_at="2027-03-01T00:00:00Z")])
    assert str(live.models.find("claude-opus-5").retires) == "2027-03-01"
