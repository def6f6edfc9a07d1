import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ProxyError
from server.request import ChatRequest, read_json
from tests.fakes import ASK


def refusal(raw: bytes, skip: tuple[str, ...] = ()) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        ChatRequest.parse(raw, skip=skip)
    return caught.value


def raw(**changes) -> bytes:
    return json.dumps({**ASK, **changes}).encode()


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"  ",
        raw()[:-1],
        raw() + b"x",
        raw() + raw(),
        b"{'model': 'x'}",
        b'{"model": "x", /* hi */ "messages": []}',
        b'{"a": 1,}',
        b"{a: 1}",
        b'{"a": "\t\n"}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": -Infinity}',
        b'{"temperature": 1e999999}',
        b'{"n": ' + b"1" * 5000 + b"}",
        b'{"a":' * 100_000,
        b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}",
        '{"a": "ä"}'.encode("latin-1"),
        raw().decode().encode("utf-16"),
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\xc0\xaf"}',
        b'[1, "x"]',
        b'"text"',
        b"null",
    ],
)
def test_what_is_not_a_json_object_in_utf_8_is_refused_with_a_400(bad):
    error = refusal(bad)
    assert error.status == 400
    assert error.type == "invalid_request_error"


def test_the_place_of_a_syntax_error_is_named():
    assert "line 2, column 5" in refusal(b'{"a": 1,\n"b" 2}').message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": 7}, "model"),
        ({"model": "x" * 10_000}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [{"role": "user", "content": "hi"}] * 100_001}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [7]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"text": 7}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": False}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"system": 7}, "system"),
        ({"thinking": "on"}, "thinking"),
        ({"tools": {}}, "tools"),
    ],
)
def test_a_field_that_cannot_be_read_is_named(changes, field):
    assert refusal(raw(**changes)).message.startswith(f"{field}:")


TEXT = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"messages": [{"role": "user", "content": ["x", TEXT]}]}, [{"role": "user", "content": [TEXT, TEXT]}]),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, [{"role": "user", "content": [TEXT]}]),
        ({"messages": [{"role": "user", "content": TEXT}]}, [{"role": "user", "content": [TEXT]}]),
        ({"system": ["x", TEXT]}, [TEXT, TEXT]),
        ({"system": TEXT}, [TEXT]),
        ({"stop_sequences": "END"}, ["END"]),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"max_tokens": "450"}, 450),
        ({"max_tokens": 450.0}, 450),
    ],
)
def test_what_can_be_understood_is_written_as_the_api_spells_it_and_named(changes, read):
    (key,) = changes
    request = ChatRequest.parse(raw(**changes))
    assert request.body[key] == read
    assert [(change.name, key in change.detail) for change in request.changes] == [("mend_shape", True)]
    assert refusal(raw(**changes), skip=("mend_shape",)).message.startswith(key)


def test_what_is_right_beside_it_stays_as_it_was():
    request = ChatRequest.parse(raw(system=["x"], temperature=0.7, stop_sequences=[], candour=[1]))
    assert request.body == {**ASK, "system": [TEXT], "temperature": 0.7, "stop_sequences": [], "candour": [1]}


def test_null_means_not_set():
    assert ChatRequest.parse(raw(stream=None, max_tokens=None, system=None, tools=None)).body["stream"] is None


def test_a_byte_order_mark_is_skipped():
    assert ChatRequest.parse(b"\xef\xbb\xbf" + raw()).model == ASK["model"]


def test_a_broken_half_of_an_emoji_is_replaced_and_named():
    body = b'{"messages":[{"role":"user","content":"a \\ud83d b \\\\ud83d c \\ud83d\\ude00 \\ude00"}]}'
    request = ChatRequest.parse(body)
    assert request.body["messages"][0]["content"] == "a \ufffd b \\ud83d c \U0001f600 \ufffd"
    assert request.changes[0].detail.startswith("Replaced 2 broken characters")
    assert "valid JSON" in refusal(body, skip=("mend_text",)).message


def test_of_duplicate_keys_the_last_wins():
    assert read_json(b'{"a": 1, "a": 2}')[0] == {"a": 2}


def test_unknown_keys_and_blocks_ride_along():
    blocks = [{"type": "hologram", "depth": 3}]
    request = ChatRequest.parse(raw(new_feature={"on": True}, messages=[{"role": "user", "content": blocks}]))
    assert request.body["new_feature"] == {"on": True}
    assert request.body["messages"][0]["content"] == blocks


def test_numbers_keep_their_text():
    text = b'{"a":1.0,"b":0.97,"c":1,"d":-0.5,"e":18446744073709551615}'
    assert orjson.dumps(read_json(text)[0]) == text


def test_header_values_become_lists_without_blanks():
    request = ChatRequest.parse(raw(), betas=" a-1 , ,b-2,", version="2026-10-21")
    assert (request.betas, request.version) == (("a-1", "b-2"), "2026-10-21")


def test_a_changed_copy_leaves_the_original_as_it_was():
    request = ChatRequest.parse(raw(temperature=1))
    changed = request.without("fit_sampling", "Left out temperature.", "temperature").but("x", "y", model="m")
    assert request.body["temperature"] == 1
    assert request.changes == ()
    assert "temperature" not in changed.body
    assert [change.name for change in changed.changes] == ["fit_sampling", "x"]


def outcome(data):
    try:
        ChatRequest.parse(data)
    except ProxyError as error:
        return error.status
    return 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.sampled_from([*ASK, "system", "stream", "thinking", "tools"]), JSON))
def test_any_json_object_is_read_or_refused_with_a_400(body):
    assert outcome(json.dumps(body).encode()) in (200, 400)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_a_400(data):
    assert outcome(data) in (200, 400)
