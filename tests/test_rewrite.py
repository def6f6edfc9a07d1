"""The steps together: whatever comes, they end in a request or in an error of ours, touch nothing they were given, and
find nothing left to do in their own work."""

import copy
import string
from contextlib import suppress
from dataclasses import replace

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.errors import ProxyError
from server.models import Models
from server.practice.rules import refusal
from server.refusals import lesson_of
from server.request import ChatRequest
from server.rewrite import STEPS, Context, Options, readme_table, rewrite, step_name

MODELS = Models.load()
NOW = 1_795_176_000.0
LINE = "You are Claude Code, Anthropic's official CLI for Claude."

words = st.sampled_from(
    ["", " ", "\n", "Hello", "Maren takes a breath, then", "Well. ", "{", "x" * 400, "\u200b", "Ä\u0301"]
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(-3, 300_000), st.floats(-2, 3), words)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6
)
marks = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["ephemeral", "x"])}, optional={"ttl": st.sampled_from(["5m", "1h", None, "2h"])}
    ),
)
more = {"cache_control": marks, "name": words, "index": st.integers(0, 3)}


def block(kind, required=None, optional=None):
    return st.fixed_dictionaries({"type": st.just(kind), **(required or {})}, optional={**more, **(optional or {})})


ids = st.sampled_from(["toolu_1", "toolu_2", "call:3", ""])
texts = block("text", {"text": words}, {"citations": st.sampled_from([None, [], [{"type": "x"}]])})
images = block(
    "image",
    {},
    {
        "source": st.one_of(
            anything,
            st.fixed_dictionaries(
                {"type": st.sampled_from(["base64", "url", "file", 3])},
                optional={"data": words, "media_type": words, "url": words, "file_id": words},
            ),
        )
    },
)
blocks = st.one_of(
    texts,
    images,
    block("tool_use", {}, {"id": ids, "name": words, "input": anything}),
    block(
        "tool_result",
        {},
        {
            "tool_use_id": ids,
            "content": st.one_of(anything, st.lists(st.one_of(texts, images), max_size=3)),
            "is_error": st.booleans(),
        },
    ),
    block("thinking", {}, {"thinking": anything, "signature": anything}),
    block("redacted_thinking", {}, {"data": anything}),
    block("document", {}, {"source": anything}),
)
contents = st.one_of(words, st.lists(blocks, max_size=4))
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": contents}, optional={"name": words}
    ),
    min_size=1,
    max_size=6,
)
thinking = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["adaptive", "enabled", "disabled", "between_tools", "auto", None]),
        "budget_tokens": scalars,
        "display": st.sampled_from(["summarized", "omitted", "updates", None]),
        "block_binding": anything,
    },
)
bodies = st.fixed_dictionaries(
    {"messages": messages},
    optional={
        "max_tokens": st.integers(0, 300_000),
        "system": st.one_of(st.none(), contents),
        "thinking": st.one_of(st.none(), thinking),
        "output_config": st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {},
                optional={"effort": st.one_of(scalars, st.sampled_from(["low", "max", "xhigh"])), "format": anything},
            ),
        ),
        "temperature": anything,
        "top_p": scalars,
        "top_k": scalars,
        "stop_sequences": st.one_of(st.none(), st.lists(scalars, max_size=3)),
        "stream": st.booleans(),
        "tools": st.one_of(
            st.none(),
            st.lists(
                st.one_of(
                    anything,
                    st.fixed_dictionaries(
                        {"name": words},
                        optional={
                            "input_schema": anything,
                            "description": scalars,
                            "cache_control": marks,
                            "type": st.sampled_from(["custom", "function", None]),
                        },
                    ),
                ),
                max_size=3,
            ),
        ),
        "tool_choice": st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {"type": st.sampled_from(["auto", "any", "tool", "none", "required", None])}, optional={"name": words}
            ),
        ),
        "metadata": st.one_of(st.none(), st.dictionaries(words, scalars, max_size=2)),
        "cache_control": marks,
        "service_tier": scalars,
        "speed": scalars,
        "stop": anything,
        "user": anything,
        "some_field": anything,
    },
)
models = st.sampled_from(
    [
        *(model.id for model in MODELS.all),
        "claude-opus-6",
        "anthropic/claude-sonnet-4.6",
        "gpt-4o",
        "claude-sonnet-latest",
    ]
)


@pytest.fixture(scope="module")
def context():
    return Context(
        "subscription", MODELS, options=Options(required_system_line=LINE, replace_retired_models=True), now=NOW
    )


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(body=bodies, model=models, version=st.sampled_from(["2023-06-01", "2026-10-21", "x"]), counting=st.booleans())
def test_odd_requests_are_mended_or_refused_by_us_and_mended_once(context, body, model, version, counting):
    try:
        request = ChatRequest.parse(orjson.dumps({**body, "model": model}), version=version, counting=counting)
    except ProxyError:
        return
    before = copy.deepcopy(request.body)
    sent = rewrite(request, context)
    assert request.body == before  # nothing that was given is touched
    again = rewrite(ChatRequest(sent.body, version=sent.version, betas=sent.betas, counting=counting), context)
    assert again.body == sent.body
    assert again.changes == ()
    if counting or "gpt" in model:
        return
    headers = {"anthropic-version": sent.version, "anthropic-beta": ",".join(sent.betas)}
    found = refusal(sent.body, headers, MODELS.like(sent.model), "subscription", NOW)
    assert found is None or excused(found.message, body)


def excused(message, body):
    """What nobody could mend: signatures only the upstream can read, insides it alone understands."""
    return any(words in message for words in ("signature", "document", "output_config.format", "citations", "source"))


@settings(max_examples=200, deadline=None)
@given(name=st.text(string.printable, max_size=40))
def test_any_name_of_a_model_ends_in_a_request_or_an_error_of_ours(context, name):
    body = {"model": name, "max_tokens": 10, "messages": [{"role": "user", "content": "Hello"}]}
    with suppress(ProxyError):
        assert rewrite(ChatRequest.parse(orjson.dumps(body)), context).model


def test_a_step_can_be_left_out_by_its_name():
    body = {
        "model": "claude-opus-5",
        "max_tokens": 10,
        "temperature": 0.5,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    options = Options(skip_steps=("fit_sampling", "fit_max_tokens"))
    assert rewrite(ChatRequest(body), Context("api_key", MODELS, options=options)).body == body


def test_the_table_of_steps_says_of_each_what_it_does():
    rows = readme_table().splitlines()[2:]
    assert len(rows) >= len(STEPS)  # what is no step, but shows in receipts too, may follow
    for step, row in zip(STEPS, rows, strict=False):
        assert row.startswith(f"| `{step_name(step)}` | ")
        assert len(row) > 60
        assert "|" not in row[2:-1].replace(" | ", "")


VOCABULARY = """
messages.0.content.1.image messages.1.role tools.0.custom.strict thinking.type.enabled thinking.type.disabled thinking
temperature top_p top_k effort 'xhigh' low high max_tokens: 9000 > 4096 is not supported for this model deprecated Extra
inputs are not permitted cache_control maximum of 2 blocks ttl image pixels 1500 prefill anthropic-beta tool_choice
anthropic-version system roles must alternate first message user context 10 + 20 > 25 signature block Expected found
tool_use Input tag 'image' web search output_config.format metadata stop_sequences speed : . , `x`
""".split()  # noqa: SIM905
refusals = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(body=bodies, said=st.lists(refusals, max_size=4), counting=st.booleans())
def test_whatever_a_refusal_says_the_next_try_is_a_request_again(context, body, said, counting):
    model = "claude-opus-6"
    try:
        request = ChatRequest.parse(
            orjson.dumps({**body, "model": model}), betas="fine-1,context-1m-2025-08-07", counting=counting
        )
    except ProxyError:
        return
    learned = {}
    sent = rewrite(request, context)
    for message in said:
        if found := lesson_of(message, sent):
            learned[found.rule] = found
            assert found.change(model).detail.endswith(".")
        sent = rewrite(request, replace(context, lessons={model: tuple(learned.values())}))
        assert sent.body["messages"]
        assert sent.model == model
