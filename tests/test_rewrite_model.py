from dataclasses import replace

import pytest

from server.errors import ProxyError
from server.presets import Persona
from server.rewrite.model import choose_model
from tests.steps import asked, details, knowing


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("anthropic/claude-opus-5", "claude-opus-5"),
        ("claude-sonnet-4.6", "claude-sonnet-4-6"),
        ("anthropic/claude-haiku-4.5:beta", "claude-haiku-4-5-20251001"),
        ("us.anthropic.claude-opus-4-6-v1:0", "claude-opus-4-6"),
        ("claude-sonnet-latest", "claude-sonnet-5-5"),
        (" Claude-Opus-5 ", "claude-opus-5"),
        ("anthropic/claude-opus-7", "claude-opus-7"),
        ("anthropic:claude-opus-5", "claude-opus-5"),
    ],
)
def test_names_of_other_services_become_anthropics_own(name, right):
    sent = choose_model(asked(name), knowing())
    assert sent.model == right
    assert details(sent) == [f"Wrote the model's name as Anthropic does: {right}."]


@pytest.mark.parametrize(
    "name",
    [
        "claude-opus-4-5",
        "claude-opus-4-5-20251101",
        "claude-fable-5-2",
        "claude-opus-9",
        "gpt-4o",
        "my-claude",
        "claude",
    ],
)
def test_a_name_the_upstream_may_know_passes(name):
    request = asked(name)
    assert choose_model(request, knowing()) is request


def test_other_providers_get_their_own_names():
    request = asked("anthropic/claude-opus-5")
    assert choose_model(request, knowing(anthropic_upstream=False)) is request


def test_a_missing_name_is_the_personas_then_the_settings_then_an_error():
    persona = Persona("maren", system="x", model="claude-opus-5")
    assert choose_model(asked(""), knowing(persona=persona, default_model="claude-haiku-4-5")).model == "claude-opus-5"
    for missing in ("", None):
        assert choose_model(asked(missing), knowing(default_model="claude-haiku-4-5")).model == "claude-haiku-4-5"
    with pytest.raises(ProxyError, match="default_model") as caught:
        choose_model(asked(""), knowing())
    assert caught.value.status == 400


def test_a_retired_model_is_named_with_its_successor():
    with pytest.raises(ProxyError) as caught:
        choose_model(asked("claude-sonnet-4-0"), knowing())
    assert caught.value.status == 404
    assert caught.value.message == (
        "Claude Sonnet 4 was retired on 15 June 2026. Choose Claude Sonnet 5.5 (claude-sonnet-5-5) in your front end "
        "instead, or set replace_retired_models=true to have it used by itself."
    )


def test_the_successor_answers_itself_where_the_owner_allows_it():
    sent = choose_model(asked("claude-3-opus-20240229"), knowing(replace_retired_models=True))
    assert sent.model == "claude-opus-5-5"
    assert details(sent) == ["Claude Opus 3 was retired on 05 January 2026; asked its successor Claude Opus 5.5."]


def test_a_model_counts_as_retired_from_its_day_on():
    december = 1_796_256_000.0
    assert choose_model(asked("claude-sonnet-4-5"), knowing()).model == "claude-sonnet-4-5"
    with pytest.raises(ProxyError, match="was retired on 30 November 2026"):
        choose_model(asked("claude-sonnet-4-5"), replace(knowing(), now=december))
