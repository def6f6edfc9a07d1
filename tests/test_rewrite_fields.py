import pytest

from server.rewrite.fields import fit_fields
from tests.steps import HELLO, asked, details, knowing, text, user

FORM = {"type": "json_schema", "schema": {"type": "object"}}


def changed(context=None, **body):
    request = asked(**body)
    sent = fit_fields(request, context or knowing())
    return {
        key: sent.body.get(key, "gone")
        for key in {*request.body, *sent.body}
        if request.body.get(key) != sent.body.get(key)
    }


def test_what_the_api_knows_passes_as_it_is():
    request = asked(
        system=[text("Be kind.", citations=None)],
        stop_sequences=[],
        metadata={"user_id": "x"},
        stream=True,
        output_config={"effort": "low"},
        service_tier="auto",
        cache_control=None,
        container=None,
    )
    assert fit_fields(request, knowing()) is request


def test_fields_of_other_services_are_left_out_by_name():
    sent = fit_fields(asked(frequency_penalty=0.1, char_name="Maren", logit_bias={}), knowing())
    assert sent.body == asked().body
    assert details(sent) == ["Left out or mended what the API does not know: char_name, frequency_penalty, logit_bias."]


def test_other_providers_keep_fields_of_their_own():
    request = asked(transforms=["middle-out"])
    assert fit_fields(request, knowing(anthropic_upstream=False)) is request


def test_what_exists_here_under_another_name_is_translated():
    assert changed(stop="User:") == {"stop": "gone", "stop_sequences": ["User:"]}
    assert changed(stop=["a"], stop_sequences=["b"]) == {"stop": "gone"}
    assert changed(max_completion_tokens=700, max_tokens=None) == {"max_completion_tokens": "gone", "max_tokens": 700}


@pytest.mark.parametrize("beta", ["mcp-client-2025-11-20", "mcp-client-2027-02-02"])
def test_a_field_of_a_beta_passes_with_its_header(beta):
    request = asked(mcp_servers=[{}], betas=(beta,))
    assert fit_fields(request, knowing()) is request
    assert changed(mcp_servers=[{}]) == {"mcp_servers": "gone"}


def test_an_unknown_field_passes_with_an_unknown_beta_because_it_may_be_its_own():
    request = asked(candour=3, betas=("candour-2027-01-01",))
    assert fit_fields(request, knowing()) is request
    assert changed(candour=3, betas=("effort-2025-11-24",)) == {"candour": "gone"}
    assert changed(logit_bias={}, betas=("candour-2027-01-01",)) == {"logit_bias": "gone"}


@pytest.mark.parametrize(
    "key", ["system", "thinking", "tools", "tool_choice", "metadata", "stop_sequences", "service_tier", "top_p"]
)
def test_empty_fields_are_left_out(key):
    request = asked(**{key: None})
    assert key not in fit_fields(request, knowing()).body


def test_keys_that_blocks_and_messages_do_not_have_are_left_out():
    messages = [{**user(text("Hi", id=3, citations=None)), "name": "Anna"}]
    assert changed(messages=messages) == {"messages": [user(text("Hi", citations=None))]}
    assert changed(system=[text("Be kind.", index=0)]) == {"system": [text("Be kind.")]}


def test_pictures_and_texts_in_openais_spelling_become_ours():
    pictures = (
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "input_image", "image_url": "https://example.org/a.png"},
    )
    ours = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    look = {"type": "input_text", "text": "Look"}
    assert changed(messages=[user(look, *pictures)]) == {"messages": [user("Look", ours, ours)]}
    assert changed(system=[look]) == {"system": [text("Look")]}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"service_tier": "flex"}, {"service_tier": "gone"}),
        ({"speed": "fast", "model": "claude-opus-5"}, {}),
        ({"speed": "fast", "model": "claude-sonnet-5"}, {"speed": "gone"}),
        ({"inference_geo": "us"}, {}),
        ({"inference_geo": "us", "model": "claude-haiku-4-5"}, {"inference_geo": "gone"}),
        ({"metadata": {"user_id": "x", "chat": 1}}, {"metadata": {"user_id": "x"}}),
        ({"metadata": {"user_id": "x" * 300}}, {"metadata": {"user_id": "x" * 256}}),
        ({"stop_sequences": ["", " ", "User:", None]}, {"stop_sequences": ["User:"]}),
        ({"stop_sequences": [" "]}, {"stop_sequences": "gone"}),
        ({"output_config": {"effort": "low", "mood": 1}}, {"output_config": {"effort": "low"}}),
        ({"output_config": {"mood": 1}}, {"output_config": "gone"}),
        ({"output_config": {"format": {**FORM, "name": "x", "strict": True}}}, {"output_config": {"format": FORM}}),
    ],
)
def test_values_the_api_would_refuse_are_mended(given, kept):
    assert changed(**given) == kept


def test_a_field_with_an_unreadable_name_is_not_spelt_out():
    sent = fit_fields(asked(**{"\x1b[31m": 1, "x" * 99: 2}), knowing())
    assert details(sent) == ["Left out or mended what the API does not know: an unreadable name, an unreadable name."]


def test_names_of_fields_are_told_and_their_contents_are_not():
    sent = fit_fields(asked(prompt="Maren keeps a secret."), knowing())
    assert "secret" not in str(details(sent))
    assert sent.body["messages"] == [HELLO]
