"""A lesson in words, and a model's row with lessons laid over it."""

import pytest

from server.lesson import Lesson, taught, with_lessons
from server.models import Models

MODELS = Models.load()


def test_the_receipt_names_what_was_learned():
    lasting = Lesson("x", "", "top_k", "left it out")
    assert lasting.change("Claude Opus 6").detail == "Claude Opus 6 refused top_k; left it out and remembered that."
    once = Lesson("x", "", "so long a reply", "cut it", lasting=False)
    assert once.change("Claude Opus 6").detail == "Claude Opus 6 refused so long a reply; cut it."


@pytest.mark.parametrize(
    ("rule", "value", "field", "after"),
    [
        ("sampling", "none", "sampling", "none"),
        ("sampling", "one", "sampling", "one"),
        ("prefill", "", "prefill", False),
        ("forced_tools", "", "forced_tools", False),
        ("system_messages", "", "system_messages", False),
        ("max_tokens", "9000", "max_output", 9_000),
        ("max_tokens", "900000", "max_output", 64_000),
        ("thinking enabled", "adaptive", "thinking", {"disabled", "adaptive"}),
        ("thinking disabled", "enabled", "thinking", {"enabled"}),
        ("efforts", "low medium", "efforts", ("low", "medium")),
        ("effort high", "high", "efforts", ("low", "medium")),
        ("off_effort high", "high", "off_efforts", ("low", "medium")),
    ],
)
def test_a_models_row_is_laid_over_by_its_lessons(rule, value, field, after):
    model = MODELS.find("claude-opus-4-5")
    assert getattr(taught(model, [Lesson(rule, value, "", "")]), field) == after


def test_without_a_way_to_stop_thinking_it_never_stops():
    model = MODELS.find("claude-sonnet-5-5")
    assert taught(model, [Lesson("thinking between_tools", "", "", "")]).thinking_off == "never"
    assert taught(model, [Lesson("thinking between_tools", "disabled", "", "")]).thinking_off == "never"


def test_a_requests_own_lessons_go_before_what_is_known():
    old, new, other = Lesson("marks", "3", "", ""), Lesson("marks", "2", "", ""), Lesson("prefill", "", "", "")
    known = {"a": (old, other), "b": (old,)}
    assert with_lessons(known, "a", [new]) == {"a": (other, new), "b": (old,)}
    assert with_lessons(known, "a", []) is known
