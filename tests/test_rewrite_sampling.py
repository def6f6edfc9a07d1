import pytest

from server.lesson import Lesson
from server.rewrite.sampling import fit_sampling
from tests.steps import asked, details, knowing

THREE = {"temperature": 0.9, "top_p": 0.97, "top_k": 40}


def kept(model="claude-opus-4-6", version="2023-06-01", thinking=None, lessons=(), mode="auto", **given):
    body = given | ({"thinking": thinking} if thinking else {})
    context = knowing(lessons=lessons, model=model, filter_sampling_params=mode)
    sent = fit_sampling(asked(model, version=version, **body), context).body
    return {key: sent[key] for key in ("temperature", "top_p", "top_k") if key in sent}


@pytest.mark.parametrize(
    ("model", "given", "wanted"),
    [
        ("claude-opus-4-7", THREE, {}),
        ("claude-fable-5-2", {"temperature": 1}, {}),
        ("claude-opus-4-6", THREE, {"temperature": 0.9, "top_k": 40}),
        ("claude-haiku-4-5", {"temperature": 1, "top_p": 0.9}, {"top_p": 0.9}),
        ("claude-haiku-4-5", {"temperature": 1.0, "top_p": 1.0}, {}),
        ("claude-haiku-4-5", {"temperature": 0.7}, {"temperature": 0.7}),
        ("claude-haiku-4-5", {"top_p": 0.97, "top_k": 0}, {"top_p": 0.97, "top_k": 0}),
        ("claude-opus-11", THREE, {}),
    ],
)
def test_a_model_gets_the_samplers_it_takes(model, given, wanted):
    assert kept(model, **given) == wanted


def test_the_newest_version_takes_none_on_any_model():
    assert kept("claude-haiku-4-5", "2026-10-21", **THREE) == {}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (THREE, {"top_p": 0.97}),
        ({"temperature": 1, "top_k": 3}, {"temperature": 1}),
        ({"temperature": 1, "top_p": 0.97, "top_k": 3}, {"top_p": 0.97}),
        ({"top_p": 0.9}, {}),
    ],
)
def test_while_it_thinks_next_to_none_is_left(given, wanted):
    assert kept(thinking={"type": "adaptive"}, **given) == wanted
    assert kept(thinking={"type": "disabled"}, temperature=0.9) == {"temperature": 0.9}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"temperature": 1.7}, {"temperature": 1}),
        ({"temperature": -1}, {"temperature": 0}),
        ({"temperature": "0.7"}, {"temperature": 0.7}),
        ({"temperature": None}, {}),
        ({"temperature": "hot"}, {}),
        ({"temperature": True}, {}),
        ({"top_k": 40.0}, {"top_k": 40}),
        ({"top_k": -9}, {"top_k": -1}),
    ],
)
def test_values_out_of_range_become_the_nearest(given, wanted):
    assert kept(**given) == wanted


def test_the_classic_rule_and_none_at_all_are_settings():
    assert kept("claude-opus-5", mode="false", **THREE) == THREE
    assert kept("claude-opus-5", mode="true", **THREE) == {"temperature": 0.9, "top_k": 40}
    assert kept("claude-opus-5", mode="true", temperature=1) == {}


def test_other_models_on_other_providers_keep_theirs():
    request = asked("deepseek-chat", temperature=1.7, top_p=0.4)
    assert fit_sampling(request, knowing(anthropic_upstream=False)) is request


def test_what_was_refused_is_left_out():
    assert kept(lessons=[Lesson("sampling", "none", "", "")], **THREE) == {}
    assert kept("claude-opus-4-6", lessons=[Lesson("thinking_samplers", "", "", "")], **THREE) == {"top_p": 0.97}


def test_the_change_names_what_went_and_why():
    sent = fit_sampling(asked("claude-opus-5", **THREE), knowing())
    assert details(sent) == ["Left out temperature and top_p and top_k: Claude Opus 5 takes none."]
