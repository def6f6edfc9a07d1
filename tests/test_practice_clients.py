"""What real clients send, recorded and made up, under the rules of the practice upstream; and anything odd."""

import json
from functools import cache

import anthropic
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.practice.accounting import read_prompt
from server.practice.headers import credential
from server.practice.rules import refusal
from server.practice.signatures import sign
from tests.practice import (
    BY_ID,
    CALL,
    ENABLED,
    EVERY_MODEL,
    NEW,
    OLD,
    RESULT,
    TABLE,
    THINKING,
    TOOL,
    ask,
    document,
    image,
    mark,
    png,
    said,
)
from tests.steps import MODELS, NOW, assistant, text, user
from tests.traces import traces


@cache
def shapes():
    """One request of each sort in the recorded chats: by model, settings, last role and number of marks."""
    found = {}
    for name, requests in traces().items():
        for request in requests:
            rest = {key: value for key, value in request["body"].items() if key not in ("messages", "system")}
            marks = json.dumps(request["body"]).count("cache_control")
            found.setdefault((name, json.dumps(rest), request["body"]["messages"][-1]["role"], marks), request)
    return found


@pytest.mark.parametrize("name", traces())
def test_every_recorded_request_is_accepted_or_its_model_is_retired(name):
    for request in traces()[name]:
        body = request["body"]
        found = refusal(body, request["headers"], BY_ID.get(body["model"]), "api_key", NOW)
        assert found == ((404, "not_found_error", "model: claude-sonnet-4-0") if name == "swipes" else None)


@EVERY_MODEL
def test_every_sort_of_recorded_request_meets_the_restrictions_of_every_model(model):
    takes = TABLE[model]
    for request in shapes().values():
        body = {**request["body"], "model": model}
        samplers = {name for name in ("temperature", "top_p", "top_k") if name in body}
        kind = body.get("thinking", {}).get("type")
        breaks = [
            takes["sampling"] == "none" and samplers,
            takes["sampling"] == "one" and samplers >= {"temperature", "top_p"},
            takes["prefill"] != "prefill" and body["messages"][-1]["role"] == "assistant",
            kind and kind not in takes["thinking"].split(),
            "output_config" in body and body["output_config"]["effort"] not in takes["efforts"].split(),
        ]
        assert bool(said(body)) == any(breaks)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1).filter(lambda words: words.strip())


@st.composite
def normal_requests(draw):
    """What a program written against the SDK's types sends: nothing a model refuses, everything else in any mix."""
    model = draw(st.sampled_from([model for model in MODELS.all if not model.gone(NOW)]))
    kept = draw(st.integers(1, 4))
    turns = [{"role": ("user", "assistant")[i % 2], "content": draw(WORDS)} for i in range(2 * kept - 1)]
    if draw(st.booleans()):
        turns[0] = {"role": "user", "content": [text(turns[0]["content"], **mark(draw(st.sampled_from(["5m", "1h"]))))]}
    request = {"model": model.id, "max_tokens": draw(st.integers(2_000, model.max_output)), "messages": turns}
    if draw(st.booleans()):
        request["system"] = draw(st.one_of(WORDS, WORDS.map(lambda words: [text(words)])))
    if draw(st.booleans()):
        request["stop_sequences"] = draw(st.lists(WORDS, max_size=3))
    if draw(st.booleans()):
        request["tools"] = [{**TOOL, "description": draw(WORDS)}]
        request["tool_choice"] = draw(st.sampled_from([{"type": "auto"}, {"type": "none"}]))
    if kind := draw(st.sampled_from([None, *sorted(model.thinking)])):
        request["thinking"] = THINKING[kind]
    if model.efforts and draw(st.booleans()):
        request["output_config"] = {"effort": draw(st.sampled_from(model.off_efforts or model.efforts))}
    if draw(st.booleans()):
        request["metadata"] = {"user_id": draw(WORDS)}
    return request


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(0, 2) | st.sampled_from(["", " ", "text", "5m", "tool"]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "ttl"]), inside),
    max_leaves=6,
)


EVERYTHING = ask(
    "claude-opus-4-6",
    system=[text("s", **mark())],
    tools=[{**TOOL, **mark("1h")}],
    tool_choice={"type": "auto"},
    messages=[
        user(text("a"), image(png())),
        assistant({"type": "redacted_thinking", "data": "d"}, CALL),
        user({**RESULT, "content": [image(png()), text("b", **mark())]}, document(citations={"enabled": True})),
    ],
    thinking=ENABLED,
    output_config={"effort": "low"},
    cache_control=None,
    stop_sequences=["x"],
    temperature=1,
)


def places(value, path=()):
    """The path of everything in a body."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in inside for found in places(child, (*path, key)))]


def with_other(value, path, other):
    if not path:
        return other
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = with_other(value[path[0]], path[1:], other)
    return changed


NEWER = ask(
    "claude-opus-5",
    tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}],
    tool_choice={"type": "tool", "name": "dice"},
    messages=[
        user(text("a")),
        {"role": "system", "content": [text("x")]},
        assistant({"type": "thinking", "thinking": "", "signature": sign("claude-opus-5", "hm", [])}, text("b")),
        {"role": "user", "content": "c"},
    ],
    thinking={"type": "adaptive", "display": "omitted"},
    speed="fast",
    **mark(),
)


@pytest.mark.parametrize("body", [EVERYTHING, NEWER], ids=["older model", "newer model"])
def test_a_body_with_a_bit_of_everything_is_accepted(body):
    assert said(body) == ""


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([(body, path) for body in (EVERYTHING, NEWER) for path in places(body)[1:]]),
    JSON,
    st.sampled_from([OLD, NEW]),
    st.booleans(),
)
def test_nothing_odd_anywhere_in_a_body_breaks_the_rules_or_the_accounting(place, other, version, counting):
    body, path = place
    model = BY_ID[body["model"]]
    body = with_other(body, path, other)
    found = refusal(body, {"anthropic-version": version}, model, "api_key", NOW, counting=counting)
    if found is None:
        assert read_prompt(body, model).tokens > 0
    else:
        assert found.status == 400
        assert found.message


class CheckingTransport(httpx2.BaseTransport):
    """Takes what the SDK puts on the wire, and answers with what the rules say about it."""

    def handle_request(self, request):
        headers = dict(request.headers)
        body = json.loads(request.content)
        kind, _ = credential(headers)
        found = refusal(body, headers, BY_ID.get(body["model"]), kind, NOW)
        return httpx2.Response(found.status if found else 200, json={"refusal": found and found.message})


@settings(max_examples=200, deadline=None)
@given(normal_requests())
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Using Claude with")
def test_what_the_official_client_sends_for_a_normal_program_is_accepted(request):
    with httpx2.Client(transport=CheckingTransport()) as wire:
        client = anthropic.Anthropic(api_key="sk-ant-api03-test", http_client=wire, max_retries=0)
        client.with_options(timeout=60).messages.create(**request)
