"""What the practice upstream says: labelled, different at each swipe, within the limits the request sets."""

import json

import pytest

from server.models import Models
from server.practice.accounting import Bill
from server.practice.messages import events, message
from server.practice.replies import example, reply_to, size_of

MODELS = Models.load()
BILL = Bill(read=1_200, write_1h=0, write_5m=30, plain=4)
HELLO = {"role": "user", "content": "Hello"}


def said(model="claude-haiku-4-5", nth=1, start=0, bill=BILL, **changes):
    body = {"max_tokens": 4_000, "messages": [HELLO], **changes}
    return reply_to(body, MODELS.find(model), bill, nth, start)


def test_every_reply_says_that_it_is_practice_and_that_no_ai_wrote_it():
    for start in range(30):
        first = said(start=start).text.split("\n")[0].lower()
        assert "practice" in first
        assert "no ai" in first


def test_each_swipe_brings_another_reply():
    assert len({said(nth=nth).text for nth in range(1, 50)}) == 49


def test_some_replies_are_several_paragraphs_long():
    lengths = [said(nth=nth).text.count("\n\n") for nth in range(1, 13)]
    assert min(lengths) == 2
    assert max(lengths) == 4


def test_a_reply_tells_what_the_prompt_came_to():
    assert "1,234; 1,200 of them read from the cache, 30 written to it." in said().text


def test_a_reply_ends_at_max_tokens():
    reply = said(max_tokens=20)
    assert (reply.stop_reason, size_of(reply.text)) == ("max_tokens", 20)
    assert said().text.startswith(reply.text)


def test_a_reply_is_cut_between_characters():
    texts = [said(max_tokens=n, stop_sequences=[]).text for n in range(1, 400)]
    assert all(said().text.startswith(text) for text in texts)


def test_a_reply_ends_at_the_first_stop_sequence():
    whole = said().text
    reply = said(stop_sequences=["cache", "practice", "tick"])
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "practice")
    assert whole.startswith(reply.text + "practice")
    assert said(stop_sequences=["a phrase that is not in it"]).stop_reason == "end_turn"


def test_a_reply_ends_where_the_context_does():
    full = Bill(0, 0, 0, 200_000 - 15)
    assert (said(bill=full).stop_reason, size_of(said(bill=full).text)) == ("model_context_window_exceeded", 15)


def test_warming_the_cache_gets_an_empty_reply():
    reply = said(max_tokens=0)
    assert (reply.text, reply.thinking, reply.call, reply.stop_reason) == ("", None, None, "max_tokens")


def test_a_prefill_is_continued_and_not_repeated():
    reply = said(messages=[HELLO, {"role": "assistant", "content": "Well, my friend"}])
    assert reply.text.startswith(" … and here the practice upstream takes over")
    assert "Well, my friend" not in reply.text


@pytest.mark.parametrize(
    ("model", "thinking", "thinks"),
    [
        ("claude-opus-5", None, True),
        ("claude-opus-5", {"type": "disabled"}, False),
        ("claude-opus-4-8", None, False),
        ("claude-opus-4-8", {"type": "adaptive"}, True),
        ("claude-sonnet-5-5", {"type": "between_tools"}, False),
        ("claude-haiku-4-5", {"type": "enabled", "budget_tokens": 1_024}, True),
    ],
)
def test_a_reply_thinks_as_the_model_does_or_as_asked(model, thinking, thinks):
    reply = said(model, **({"thinking": thinking} if thinking else {}))
    assert (reply.thinking is not None) == thinks
    assert reply.tokens == size_of(reply.text) + reply.thinking_tokens


def test_more_effort_means_longer_thoughts():
    levels = ("low", "medium", "high", "xhigh", "max")
    lengths = [said("claude-opus-5-5", output_config={"effort": effort}).thinking_tokens for effort in levels]
    assert lengths == sorted(set(lengths))


def test_thinking_may_use_up_the_whole_reply():
    reply = said("claude-opus-5", max_tokens=10)
    assert (reply.text, reply.stop_reason, reply.thinking_tokens) == ("", "max_tokens", 10)


DICE = {
    "name": "dice",
    "input_schema": {
        "type": "object",
        "properties": {
            "sides": {"type": "integer", "minimum": 4},
            "colour": {"enum": ["red", "blue"]},
            "why": {"type": "string"},
        },
        "required": ["sides", "colour"],
    },
}

SEARCH = {"type": "web_search_20250305", "name": "web_search"}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "dice"}])
def test_a_forced_tool_is_called_with_an_input_that_fits_its_schema(choice):
    reply = said(tools=[DICE], tool_choice=choice)
    assert (reply.call, reply.stop_reason) == (("dice", {"sides": 4, "colour": "red"}), "tool_use")


def test_a_tool_that_is_offered_only_is_not_called():
    assert said(tools=[DICE], tool_choice={"type": "auto"}).call is None


@pytest.mark.parametrize(
    ("changes", "searched"),
    [
        ({}, False),
        ({"tools": [DICE]}, False),
        ({"tools": [DICE, SEARCH]}, True),
        ({"tools": [SEARCH], "tool_choice": {"type": "none"}}, False),
        ({"tools": [SEARCH], "max_tokens": 5}, False),
    ],
    ids=str,
)
def test_the_web_is_searched_where_that_is_offered(changes, searched):
    reply = said(**changes)
    assert reply.searched is searched
    content = streamed(reply)[1]["content"]
    assert [block["type"] for block in content][:-1] == ["server_tool_use", "web_search_tool_result"] * searched


def test_structured_output_fits_its_schema():
    schema = {
        "type": "object",
        "properties": {"names": {"type": "array"}, "done": {"type": "boolean"}},
        "required": ["done"],
    }
    reply = said(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(reply.text) == {"done": True}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "array", "items": {"type": "null"}, "minItems": 1}, [None]),
        ({"anyOf": [{"type": "number"}, {"type": "string"}]}, 1),
        ({"const": "x"}, "x"),
        ({"type": ["string", "null"]}, "practice"),
        ({}, "practice"),
    ],
    ids=str,
)
def test_an_example_fits_any_common_schema(schema, value):
    assert example(schema) == value


# --------------------------------------------------------------------------------------- the shape


def streamed(reply, shows_thinking=True):
    """(names of the events, the message put together from them)."""
    usage = {
        "input_tokens": 4,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 1_200,
        "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 0},
        "output_tokens": reply.tokens,
        "output_tokens_details": {"thinking_tokens": reply.thinking_tokens},
        "server_tool_use": None,
    }
    whole = message("msg_1", "claude-opus-5", reply, "c2ln", shows_thinking, usage, diagnostics=None)
    names, built = [], None
    for name, data in events(whole):
        first, second, *rest = data.decode().split("\n")
        assert (first, rest) == (f"event: {name}", ["", ""])
        event = json.loads(second.removeprefix("data: "))
        assert event["type"] == name
        names.append(name)
        match event:
            case {"type": "message_start"}:
                built = event["message"]
                assert built["usage"]["output_tokens"] == 1
                assert built["usage"]["cache_creation"] == usage["cache_creation"]
            case {"type": "content_block_start"}:
                assert event["index"] == len(built["content"])
                built["content"].append(event["content_block"] | {"partial": ""})
            case {"type": "content_block_delta", "delta": {"type": kind, **given}}:
                block = built["content"][event["index"]]
                [(key, value)] = given.items()
                if kind == "input_json_delta":
                    block["partial"] += value
                else:
                    block[key] += value
            case {"type": "content_block_stop"}:
                block = built["content"][event["index"]]
                partial = block.pop("partial")
                if partial:
                    block["input"] = json.loads(partial)
            case {"type": "message_delta"}:
                built |= event["delta"]
                built["usage"] = built["usage"] | event["usage"]
    assert built == whole
    return names, built


def test_the_events_of_a_stream_add_up_to_the_message():
    names, _ = streamed(said("claude-opus-5"))
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-2:] == ["message_delta", "message_stop"]
    assert names.count("content_block_start") == names.count("content_block_stop") == 2


def test_a_call_streams_its_input():
    _, built = streamed(said(tools=[DICE], tool_choice={"type": "any"}))
    assert built["content"][0]["input"] == {"sides": 4, "colour": "red"}


def test_omitted_thinking_is_an_empty_block_with_a_signature():
    names, built = streamed(said("claude-opus-5"), shows_thinking=False)
    assert built["content"][0] == {"type": "thinking", "thinking": "", "signature": "c2ln"}
    assert names[2:5] == ["content_block_start", "content_block_delta", "content_block_stop"]


def test_a_text_streams_word_by_word():
    reply = said()
    names, _ = streamed(reply)
    assert names.count("content_block_delta") == len(reply.text.split())
