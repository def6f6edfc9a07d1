"""The practice upstream on a real port, spoken to by Anthropic's own client and by hand."""

import asyncio
import io
import json
from contextlib import asynccontextmanager

import aiohttp
import anthropic
import pytest
from aiohttp import web

from server.models import Models
from server.practice.app import PRACTICE, create_practice
from server.practice.rules import REQUIRED_SYSTEM_LINE

pytestmark = pytest.mark.anyio
MODELS = Models.load()
KEY = {"x-api-key": "sk-ant-api03-test", "anthropic-version": "2023-06-01"}
OAUTH = {"anthropic-version": "2023-06-01", "anthropic-beta": "oauth-2025-04-20"}
HELLO = {"role": "user", "content": "Hello"}
LONG = {"type": "text", "text": "Once upon a time. " * 400, "cache_control": {"type": "ephemeral"}}


class Clock:
    """Time as the test says."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


class Running:
    """The practice upstream on a port of its own, with plain requests to it."""

    def __init__(self, url, practice, clock, wire):
        self.url, self.practice, self.clock, self.wire = url, practice, clock, wire

    async def post(self, path="/v1/messages", headers=KEY, **body):
        async with self.wire.post(self.url + path, json=body, headers=headers) as response:
            return response.status, response.headers, await response.json()

    async def ask(self, headers=KEY, **changes):
        """The message of a request that is accepted."""
        status, _, whole = await self.post(headers=headers, **body(**changes))
        assert status == 200, whole
        return whole


def body(model="claude-opus-5", **changes):
    return {"model": model, "max_tokens": 2_000, "messages": [HELLO], **changes}


@asynccontextmanager
async def running(pace=0.0, first_byte=0.0):
    clock = Clock(1_795_000_000.0)  # 2026-11-18
    app = create_practice(MODELS, clock=clock, pace=pace, first_byte=first_byte)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as wire:
            yield Running(f"http://127.0.0.1:{runner.addresses[0][1]}", app[PRACTICE], clock, wire)
    finally:
        await runner.cleanup()


@pytest.fixture
async def upstream(anyio_backend):
    async with running() as one:
        yield one


@pytest.fixture
async def slow_upstream(anyio_backend):
    """A word every ten seconds: a stream that ends only if somebody ends it."""
    async with running(pace=10.0) as one:
        yield one


@pytest.fixture
async def client(upstream):
    async with anthropic.AsyncAnthropic(api_key="sk-ant-api03-test", base_url=upstream.url, max_retries=0) as client:
        yield client


# -------------------------------------------------------------------------- Anthropic's own client


async def test_the_official_client_streams_a_reply(client):
    async with client.messages.stream(**body(thinking={"type": "adaptive", "display": "summarized"})) as stream:
        words = [word async for word in stream.text_stream]
        message = await stream.get_final_message()
    assert len(words) > 20
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[1].text == "".join(words)
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens == 2


async def test_the_official_client_gets_a_whole_reply(client):
    message = await client.messages.create(**body("claude-haiku-4-5"))
    assert message.model == "claude-haiku-4-5-20251001"
    assert "practice" in message.content[0].text.lower()


async def test_the_official_client_keeps_its_thinking_through_a_tool_loop(client):
    tools = [{"name": "dice", "input_schema": {"type": "object"}}]
    asked = body(tools=tools, tool_choice={"type": "any"})
    call = await client.messages.create(**asked)
    assert [block.type for block in call.content] == ["thinking", "tool_use"]
    answer = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.content[1].id, "content": "6"}]}
    reply = await client.messages.create(**body(tools=tools, messages=[HELLO, call.to_param(), answer]))
    assert reply.content[-1].type == "text"


async def test_the_official_client_counts_tokens_and_lists_models(client):
    counted = await client.messages.count_tokens(model="claude-opus-5", messages=[{**HELLO, "content": "x" * 400}])
    assert counted.input_tokens == 100
    listed = [model async for model in client.models.list(limit=4)]
    assert [model.id for model in listed] == [item["id"] for item in MODELS.offline_list(1_795_000_000.0)["data"]]
    assert (await client.models.retrieve("claude-haiku-4-5")).max_input_tokens == 200_000


async def test_the_official_client_reads_a_refusal(client):
    with pytest.raises(anthropic.BadRequestError, match="at least one message is required") as error:
        await client.messages.create(**body(messages=[]))
    assert error.value.request_id.startswith("req_practice")
    with pytest.raises(anthropic.NotFoundError, match="model: claude-opus-4-1"):
        await client.messages.create(**body("claude-opus-4-1"))


# ----------------------------------------------------------------------------------------- by hand


async def test_a_stream_has_named_events_and_no_more(upstream):
    async with upstream.wire.post(f"{upstream.url}/v1/messages", json=body(stream=True), headers=KEY) as response:
        assert response.content_type == "text/event-stream"
        assert response.headers["request-id"].startswith("req_practice")
        raw = (await response.read()).decode()
    events = [event.split("\n") for event in raw.removesuffix("\n\n").split("\n\n")]
    assert all(name.startswith("event: ") and data.startswith("data: {") for name, data in events)
    assert [name for name, _ in events[:2] + events[-1:]] == [
        "event: message_start",
        "event: ping",
        "event: message_stop",
    ]


async def test_the_same_request_gets_another_reply_and_another_request_its_own(upstream):
    texts = [(await upstream.ask())["content"][1]["text"] for _ in range(3)]
    assert len(set(texts)) == 3


async def test_thinking_is_shown_as_the_model_does_or_as_asked(upstream):
    assert (await upstream.ask())["content"][0]["thinking"] == ""
    shown = await upstream.ask(thinking={"type": "adaptive", "display": "summarized"})
    assert shown["content"][0]["thinking"] != ""
    older = await upstream.ask(model="claude-opus-4-6", thinking={"type": "adaptive"})
    assert older["content"][0]["thinking"] != ""


async def test_thinking_that_is_sent_back_is_recognised(upstream):
    asked = body("claude-fable-5-2", system="You are a lamp.")
    reply = await upstream.ask(**asked)
    messages = [HELLO, {"role": "assistant", "content": reply["content"]}, HELLO]
    assert (await upstream.post(**asked | {"messages": messages}))[0] == 200
    status, _, refused = await upstream.post(**asked | {"messages": messages, "system": "You are a lantern."})
    assert status == 400
    assert "bound to a different conversation" in refused["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status", "type"),
    [
        ({}, 401, "authentication_error"),
        ({"x-api-key": "anything"}, 401, "authentication_error"),
        ({"authorization": "Bearer sk-ant-oat01-a", "anthropic-version": "2023-06-01"}, 401, "authentication_error"),
        ({"x-api-key": "sk-ant-api03-a"}, 400, "invalid_request_error"),
        (KEY, 200, None),
        ({"authorization": "Bearer sk-ant-oat01-a", **OAUTH}, 200, None),
        ({"authorization": "Bearer sk-ant-oat01-subscription", **OAUTH}, 400, "invalid_request_error"),
    ],
)
async def test_credentials_are_told_apart(upstream, headers, status, type):
    answered, seen, whole = await upstream.post(headers=headers, **body())
    assert (answered, whole.get("error", {}).get("type")) == (status, type)
    assert seen["request-id"] == whole.get("request_id", seen["request-id"])


async def test_a_subscription_is_served_with_the_required_line(upstream):
    headers = {"authorization": "Bearer sk-ant-oat01-subscription", **OAUTH}
    await upstream.ask(headers=headers, system=REQUIRED_SYSTEM_LINE)


async def test_rate_limits_are_told_to_api_keys_alone(upstream):
    _, key, _ = await upstream.post(**body())
    assert key["anthropic-ratelimit-requests-limit"] == "1000"
    assert key["anthropic-ratelimit-input-tokens-reset"] == "2026-11-18T11:07:40Z"
    _, token, _ = await upstream.post(headers={"authorization": "Bearer sk-ant-oat01-a", **OAUTH}, **body())
    assert not [name for name in token if name.lower().startswith("anthropic-ratelimit")]


@pytest.mark.parametrize(
    ("method", "path", "raw", "status", "type"),
    [
        ("GET", "/v1/messages", b"", 405, "invalid_request_error"),
        ("POST", "/v1/complete", b"{}", 404, "not_found_error"),
        ("POST", "/v1/messages", b"{", 400, "invalid_request_error"),
        ("POST", "/v1/messages", b"[]", 400, "invalid_request_error"),
        ("POST", "/v1/messages", b'{"model": 5}', 400, "invalid_request_error"),
        ("POST", "/v1/messages", b" " * (33 * 1024 * 1024), 413, "request_too_large"),
        ("GET", "/v1/models?limit=0", b"", 400, "invalid_request_error"),
        ("GET", "/v1/models?limit=many", b"", 400, "invalid_request_error"),
        ("GET", "/v1/models/claude-3-opus-20240229", b"", 404, "not_found_error"),
        ("GET", "/v1/models/nobody", b"", 404, "not_found_error"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_every_error_has_anthropics_shape(upstream, method, path, raw, status, type):
    async with upstream.wire.request(method, upstream.url + path, data=io.BytesIO(raw), headers=KEY) as response:
        whole = await response.json()
    assert (response.status, whole["type"], whole["error"]["type"]) == (status, "error", type)
    assert whole["error"]["message"]
    assert whole["request_id"] == response.headers["request-id"]


# --------------------------------------------------------------------------------------- the cache


def counted(whole):
    usage = whole["usage"]
    split = usage["cache_creation"]
    return (
        usage["cache_read_input_tokens"],
        split["ephemeral_1h_input_tokens"],
        split["ephemeral_5m_input_tokens"],
        usage["input_tokens"],
    )


async def test_a_marked_prompt_is_written_once_and_read_until_five_minutes_after_its_last_use(upstream):
    assert counted(await upstream.ask(system=[LONG])) == (0, 0, 1_800, 2)
    upstream.clock.now += 299
    assert counted(await upstream.ask(system=[LONG])) == (1_800, 0, 0, 2)
    upstream.clock.now += 299
    assert counted(await upstream.ask(system=[LONG])) == (1_800, 0, 0, 2)
    upstream.clock.now += 301
    assert counted(await upstream.ask(system=[LONG])) == (0, 0, 1_800, 2)


async def test_a_prompt_shorter_than_the_models_minimum_is_not_cached(upstream):
    for _ in range(2):
        assert counted(await upstream.ask(model="claude-opus-4-6", system=[LONG])) == (0, 0, 0, 1_802)


async def test_two_keys_two_workspaces_and_two_models_share_no_cache(upstream):
    await upstream.ask(system=[LONG])
    for headers in (KEY | {"x-api-key": "sk-ant-api03-other"}, KEY | {"anthropic-workspace-id": "wrkspc_2"}):
        assert counted(await upstream.ask(headers=headers, system=[LONG]))[0] == 0
    assert counted(await upstream.ask(model="claude-opus-5-5", system=[LONG]))[0] == 0
    assert counted(await upstream.ask(system=[LONG]))[0] == 1_800


async def test_a_refused_request_writes_nothing(upstream):
    status, _, _ = await upstream.post(**body(system=[LONG], temperature=0.5))
    assert status == 400
    assert counted(await upstream.ask(system=[LONG])) == (0, 0, 1_800, 2)


async def test_the_cache_is_warmed_without_a_reply(upstream):
    warmed = await upstream.ask(system=[LONG], max_tokens=0)
    assert (warmed["content"], warmed["usage"]["output_tokens"]) == ([], 0)
    assert counted(await upstream.ask(system=[LONG]))[0] == 1_800


async def test_a_stream_tells_its_cache_use_at_the_start_and_at_the_end(upstream):
    asked = body(system=[LONG], stream=True)
    async with upstream.wire.post(f"{upstream.url}/v1/messages", json=asked, headers=KEY) as response:
        data = [json.loads(line[6:]) for line in (await response.text()).split("\n") if line.startswith("data: ")]
    start, end = data[0]["message"]["usage"], data[-2]["usage"]
    for usage in (start, end):
        assert usage["cache_creation_input_tokens"] == 1_800
        assert usage["cache_creation"] == {"ephemeral_5m_input_tokens": 1_800, "ephemeral_1h_input_tokens": 0}
    assert (start["output_tokens"], end["output_tokens"] > 50) == (1, True)


async def test_the_diagnostics_say_why_the_cache_was_missed(upstream):
    first = await upstream.ask(system=[LONG])
    assert first["diagnostics"] is None
    asked = {"diagnostics": {"previous_message_id": first["id"]}}
    assert (await upstream.ask(system=[LONG], **asked))["diagnostics"] is None
    changed = await upstream.ask(system=[{"type": "text", "text": "Other."}, LONG], **asked)
    assert changed["diagnostics"]["cache_miss_reason"] == {"type": "system_changed", "cache_missed_input_tokens": 1_802}
    unknown = await upstream.ask(diagnostics={"previous_message_id": "msg_nobody"})
    assert unknown["diagnostics"]["cache_miss_reason"] == {"type": "previous_message_not_found"}


# -------------------------------------------------------------------------------------- hanging up


async def settled(condition):
    """Wait until it holds; the test's own time limit is the only one."""
    while not condition():
        await asyncio.sleep(0.005)


async def test_a_stream_ends_when_its_client_leaves(slow_upstream):
    async with slow_upstream.wire.post(
        f"{slow_upstream.url}/v1/messages", json=body(stream=True), headers=KEY
    ) as response:
        await response.content.readline()
        assert slow_upstream.practice.open_streams == 1
        response.close()
    await settled(lambda: slow_upstream.practice.open_streams == 0)


@pytest.fixture
async def hesitant_upstream(anyio_backend):
    """An hour until a reply begins."""
    async with running(first_byte=3_600.0) as one:
        yield one


async def broken_off(asking):
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_request_whose_client_leaves_before_the_reply_begins_writes_nothing(hesitant_upstream):
    asking = asyncio.create_task(hesitant_upstream.ask(system=[LONG]))
    await settled(lambda: hesitant_upstream.practice.times_asked)
    await broken_off(asking)
    assert hesitant_upstream.practice.entries == {}


async def test_a_reply_in_the_making_cannot_be_read_from_the_cache_yet(hesitant_upstream):
    first = asyncio.create_task(hesitant_upstream.ask(system=[LONG]))
    await settled(lambda: hesitant_upstream.practice.times_asked)
    hesitant_upstream.practice.first_byte = 0.0
    assert counted(await hesitant_upstream.ask(system=[LONG])) == (0, 0, 1_800, 2)
    assert counted(await hesitant_upstream.ask(system=[LONG])) == (1_800, 0, 0, 2)
    await broken_off(first)
