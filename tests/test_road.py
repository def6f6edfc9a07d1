"""The road from a front end to the upstream and back, with the real program between them."""

import asyncio
import gc
import json
import logging

import aiohttp
import pytest

from server.fitting import MOST_PLANNED
from server.request import ChatRequest
from tests.fakes import (
    ASK,
    KEY,
    PATIENCE,
    PLAIN,
    STREAM,
    STREAM_HEAD,
    chunked,
    error,
    event,
    plain,
    raw_upstream,
    reply_events,
    stream,
)
from tests.running import running

pytestmark = pytest.mark.anyio


# -- replies


async def test_a_stream_reaches_the_front_end_byte_for_byte(proxy, anthropic):
    anthropic.will(stream(STREAM))
    reply = await proxy.ask(stream=True)
    assert reply.raw == STREAM
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert reply.headers["request-id"] == "req_upstream"


async def test_nothing_is_kept_of_a_request_while_its_reply_streams(proxy, anthropic):
    first, last = b"".join(reply_events("Good ")[:3]), b"".join(reply_events("Good ")[3:])
    gate, said = asyncio.Event(), "The ferry waits for no one. " * 20
    body = {**ASK, "stream": True, "messages": [{"role": "user", "content": said}]}
    anthropic.will(stream(first, gate=gate, last=last))
    headers = {"x-api-key": KEY}
    async with proxy.session.post(proxy.url + "/v1/messages", json=body, headers=headers) as reply:
        assert await reply.content.readexactly(len(first)) == first
        kept = [one for one in gc.get_objects() if isinstance(one, ChatRequest) and said in str(one.body)]
        gate.set()
        assert await reply.read() == last
    assert kept == []


async def test_the_first_words_arrive_while_the_rest_is_still_being_written(proxy, anthropic):
    first, last = b"".join(reply_events("Good ")[:3]), b"".join(reply_events("Good ")[3:])
    gate = asyncio.Event()
    anthropic.will(stream(first, gate=gate, last=last))
    headers = {"x-api-key": KEY}
    async with proxy.session.post(proxy.url + "/v1/messages", json={**ASK, "stream": True}, headers=headers) as reply:
        assert await reply.content.readexactly(len(first)) == first
        gate.set()
        assert await reply.read() == last


async def test_a_plain_reply_comes_back_as_it_is(proxy, anthropic):
    reply = await proxy.ask()
    assert reply.status == 200
    assert reply.json == PLAIN


async def test_the_receipt_tells_tokens_money_and_end(proxy, anthropic):
    reply = await proxy.ask(stream=True)
    receipt = (await proxy.receipts())[0]
    assert receipt["id"] == reply.headers["x-receipt"]
    assert receipt["tokens"] == {
        "input_tokens": 7,
        "cache_write_5m_tokens": 2,
        "cache_write_1h_tokens": 3,
        "cache_read_tokens": 11,
        "output_tokens": 3,
    }
    # claude-sonnet-4-6: 3 in, 15 out, 3.75 and 6 to write, 0.30 to read, per million
    assert receipt["usd"] == pytest.approx((7 * 3 + 2 * 3.75 + 3 * 6 + 11 * 0.30 + 3 * 15) / 1e6)
    assert receipt["usd_without_cache"] == pytest.approx((23 * 3 + 3 * 15) / 1e6)
    assert (receipt["status"], receipt["stop_reason"], receipt["ended"]) == (200, "end_turn", "whole")


@pytest.mark.parametrize("cut", [1, 40, len(STREAM) // 2, len(STREAM) - 1])
async def test_a_reply_cut_short_ends_in_an_error_event_after_whole_events(tmp_path, cut):
    async def cut_off(reader, writer):
        writer.write(STREAM_HEAD + chunked(STREAM[:cut]) + b"0\r\n\r\n")

    async with raw_upstream(cut_off) as url, running(tmp_path, url) as proxy:
        reply = await proxy.ask(stream=True)
        if reply.status == 200:
            whole, _, last = reply.raw.rpartition(b"event: error\ndata: ")
            assert STREAM.startswith(whole)
            assert json.loads(last)["error"]["message"].startswith("Upstream connection lost after")
            assert b"message_stop" not in reply.raw
        else:
            assert reply.status == 502  # cut before the first whole event: an ordinary error can still be sent
        assert (await proxy.receipts())[0]["ended"] in ("cut", "error")


async def test_an_error_in_the_middle_of_a_stream_passes_unchanged(proxy, anthropic):
    broken = b"".join(reply_events("Good ")[:3]) + event("error", error={"type": "overloaded_error", "message": "Busy"})
    anthropic.will(stream(broken))
    assert (await proxy.ask(stream=True)).raw == broken
    assert (await proxy.receipts())[0]["ended"] == "error"


async def test_an_error_as_first_event_becomes_an_ordinary_error_after_retries(proxy, anthropic):
    busy = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    anthropic.will(*[stream(busy)] * 3)
    reply = await proxy.ask(stream=True)
    assert (reply.status, reply.json["error"]["type"]) == (529, "overloaded_error")
    assert len(anthropic.seen) == 3


async def test_overload_is_tried_again_before_the_first_byte(proxy, anthropic):
    anthropic.will(*[error(529, "overloaded_error", "Overloaded")] * 2, stream(STREAM))
    assert (await proxy.ask(stream=True)).raw == STREAM
    assert (await proxy.receipts())[0]["attempts"] == 3


async def test_html_instead_of_a_reply_is_a_502_that_says_so(proxy, anthropic):
    anthropic.will(plain(b"<html><script>alert(1)</script>", content_type="text/html"))
    reply = await proxy.ask()
    assert reply.status == 502
    assert "text/html" in reply.message


async def test_half_a_json_reply_is_a_502(proxy, anthropic):
    anthropic.will(plain(json.dumps(PLAIN).encode()[:-10]))
    assert (await proxy.ask()).status == 502


async def test_a_redirect_is_a_502_and_is_not_followed(proxy, anthropic):
    anthropic.will(plain(status=307, location="http://127.0.0.1:9/"))
    assert (await proxy.ask()).status == 502


async def test_a_refusal_is_said_in_the_chat(proxy, anthropic):
    refused = reply_events(stop_reason="refusal")
    refused[-2] = event(
        "message_delta", delta={"stop_reason": "refusal", "stop_details": {"explanation": "Not that."}}, usage={}
    )
    anthropic.will(stream(b"".join(refused)))
    reply = await proxy.ask(stream=True)
    texts = [e["delta"]["text"] for e in reply.events if e["type"] == "content_block_delta"]
    assert texts == ["\n\n[Tavern Proxy: Claude declined to answer. It says: Not that. Reword your message, or swipe.]"]
    starts = [e["index"] for e in reply.events if e["type"] == "content_block_start"]
    assert starts == [0, 1]
    assert reply.events[-1]["type"] == "message_stop"


async def test_a_reply_lost_to_thinking_is_explained_in_a_plain_reply_too(proxy, anthropic):
    anthropic.will(plain({**PLAIN, "content": [{"type": "thinking", "thinking": "hm"}], "stop_reason": "max_tokens"}))
    reply = await proxy.ask()
    assert "response length" in reply.json["content"][-1]["text"]
    assert (await proxy.receipts())[0]["changes"][-1]["name"] == "explain_in_chat"


async def test_nothing_is_added_to_a_reply_that_speaks(proxy, anthropic):
    anthropic.will(stream(b"".join(reply_events("Yes", stop_reason="max_tokens"))))
    assert b"Tavern Proxy" not in (await proxy.ask(stream=True)).raw


# -- hang-ups


@pytest.mark.parametrize("when", ["before the answer", "in the middle", "in a plain reply"])
async def test_a_front_end_that_leaves_takes_the_upstream_with_it(tmp_path, when):
    begun, left = asyncio.Event(), asyncio.Event()

    async def answer_slowly(reader, writer):
        if when == "in the middle":
            writer.write(STREAM_HEAD + chunked(b"".join(reply_events("Good ")[:3])))
        begun.set()
        await reader.read()
        left.set()

    async with raw_upstream(answer_slowly) as url, running(tmp_path, url) as proxy:
        body = {**ASK, "stream": when != "in a plain reply"}
        asking = asyncio.create_task(
            proxy.session.post(proxy.url + "/v1/messages", json=body, headers={"x-api-key": KEY})
        )
        async with asyncio.timeout(PATIENCE):
            await begun.wait()
            if when == "in the middle":
                reply = await asking
                await reply.content.readany()
                reply.close()
            else:
                asking.cancel()
            await left.wait()
            while not (receipts := await proxy.receipts()):
                await asyncio.sleep(0.01)
        assert receipts[0]["ended"] == "client_left"
        if when == "in the middle":
            assert receipts[0]["tokens"]["cache_read_tokens"] == 11  # what was spent is booked all the same


# -- what goes upstream


async def test_our_name_is_our_own_and_one_credential_goes_upstream(proxy, anthropic):
    await proxy.ask(headers={"x-api-key": KEY, "User-Agent": "node-fetch", "Authorization": "Bearer anything"})
    sent = {name.lower(): value for name, value in anthropic.seen[0].headers.items()}
    assert sent["user-agent"].startswith("tavern-proxy/")
    assert sent["x-api-key"] == KEY
    assert "authorization" not in sent
    assert sent["accept-encoding"] == "identity"
    assert sent["anthropic-version"] == "2023-06-01"


async def test_a_guests_key_serves_its_own_request_alone(proxy, anthropic):
    own = await proxy.sign_in()
    anthropic.seen.clear()
    await asyncio.gather(*(proxy.ask(headers={"x-api-key": KEY if i % 2 else "anything"}) for i in range(20)))
    keys = [seen.headers["x-api-key"] for seen in anthropic.seen]
    assert sorted(keys) == sorted([KEY, own] * 10)
    anthropic.will(error(401, "authentication_error", "invalid x-api-key"))
    assert (await proxy.ask()).status == 401
    assert (await proxy.ask(headers={"x-api-key": "anything"})).status == 200


@pytest.mark.parametrize("password", ["anything", "", "tavern", "pässwort", "x" * 8000])
async def test_whatever_stands_in_the_password_field_is_ignored_here(proxy, anthropic, password):
    own = await proxy.sign_in()
    anthropic.seen.clear()
    assert (await proxy.ask(headers={"x-api-key": password})).status == 200
    assert anthropic.seen[0].headers["x-api-key"] == own


async def test_the_front_ends_own_headers_stay_here(proxy, anthropic):
    await proxy.ask(headers={"x-api-key": KEY, "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4", "X-Secret": "1"})
    assert not {"cookie", "x-forwarded-for", "x-secret"} & {name.lower() for name in anthropic.seen[0].headers}


async def test_only_listed_headers_come_back(proxy, anthropic):
    given = {"Set-Cookie": "a=b", "Access-Control-Allow-Origin": "*", "X-Other": "1", "retry-after": "7"}
    anthropic.will(plain(PLAIN, **given))
    reply = await proxy.ask()
    low = {name.lower() for name in reply.headers}
    assert not {"set-cookie", "access-control-allow-origin", "x-other"} & low
    assert reply.headers["retry-after"] == "7"


async def test_persona_urls_add_the_persona(proxy, anthropic):
    personas = (await proxy.send("POST", "/v1/nobody-we-know/messages", json=ASK, headers={"x-api-key": KEY})).message
    name = personas.split("Known personas: ")[1].split(",")[0].split(".")[0]
    await proxy.ask(f"/v1/{name}/messages", system="The card.")
    system = anthropic.seen[0].body["system"]
    assert len(system[0]["text"]) > 500
    assert system[-1] == {"type": "text", "text": "The card."}
    assert (await proxy.receipts())[0]["changes"][0]["name"] == "add_persona"


# -- limits and refusals


async def test_a_429_rests_the_account_until_its_end_and_nothing_is_sent_meanwhile(proxy, anthropic):
    await proxy.sign_in()
    anthropic.seen.clear()
    anthropic.will(error(429, "rate_limit_error", "Too fast.", retry_after="30"))
    first = await proxy.ask(headers={})
    second = await proxy.ask(headers={})
    assert (first.status, first.headers["retry-after"]) == (429, "30")
    assert first.message.startswith("Too fast. This rate limit ends at ")
    assert second.status == 429
    assert 0 < int(second.headers["retry-after"]) <= 30
    assert len(anthropic.seen) == 1


async def test_a_second_account_takes_over_at_once(proxy, anthropic):
    await proxy.sign_in("sk-ant-api03-one-of-two-0000000001")
    await proxy.sign_in("sk-ant-api03-two-of-two-0000000002")
    anthropic.will(error(429, "rate_limit_error", "Too fast.", retry_after="30"))
    assert (await proxy.ask(headers={})).status == 200
    anthropic.will(error(401, "authentication_error", "invalid x-api-key"))
    last = await proxy.ask(headers={})
    assert last.status == 401
    assert "invalid x-api-key." in last.message


async def test_a_policy_refusal_is_shown_not_tried_again_and_rests_nobody(proxy, anthropic):
    await proxy.sign_in()
    words = "This credential is only authorized for use with Claude Code and cannot be used for other API requests."
    anthropic.seen.clear()
    anthropic.will(error(400, "invalid_request_error", words))
    reply = await proxy.ask(headers={})
    assert reply.status == 400
    assert reply.message.startswith(words)
    assert "API key" in reply.message[len(words) :]
    assert len(anthropic.seen) == 1
    assert (await proxy.ask(headers={})).status == 200


async def test_an_upstream_error_keeps_status_type_id_and_words(proxy, anthropic):
    anthropic.will(error(413, "request_too_large", "Request exceeds the maximum size"))
    reply = await proxy.ask()
    assert (reply.status, reply.json["error"]["type"]) == (413, "request_too_large")
    assert reply.message.startswith("Request exceeds the maximum size. ")
    assert reply.headers["request-id"] == reply.json["request_id"] == "req_upstream"


@pytest.mark.parametrize(("given", "kept"), [("req_in_the_body", True), ("req_odd\r\nx-more: 1", False), (5, False)])
async def test_an_id_that_an_upstream_error_has_in_its_body_alone_is_kept(proxy, anthropic, given, kept):
    refused = {"type": "request_too_large", "message": "Request exceeds the maximum size"}
    anthropic.will(plain({"type": "error", "error": refused, "request_id": given}, 413))
    reply = await proxy.ask()
    assert (reply.status, reply.headers["request-id"]) == (413, reply.json["request_id"])
    assert (reply.json["request_id"] == given) == kept
    assert "x-more" not in reply.headers


async def test_a_refusal_teaches_once_and_is_remembered_over_a_restart(tmp_path, anthropic):
    anthropic.will(error(400, "invalid_request_error", "`top_k` is deprecated for this model."), plain())
    async with running(tmp_path, anthropic.url) as proxy:
        assert (await proxy.ask(model="claude-opus-4-6", top_k=5)).status == 200
        receipt = (await proxy.receipts())[0]
        assert (receipt["attempts"], receipt["changes"][-1]["name"]) == (2, "learn")
        assert "top_k" in receipt["changes"][-1]["detail"]
    async with running(tmp_path, anthropic.url) as proxy:
        assert (await proxy.ask(model="claude-opus-4-6", top_k=5)).status == 200
        assert (await proxy.receipts())[0]["attempts"] == 1
    assert ["top_k" in seen.body for seen in anthropic.seen] == [True, False, False]


async def test_a_refusal_that_stays_is_passed_on_after_one_try(proxy, anthropic):
    anthropic.will(*[error(400, "invalid_request_error", "`top_k` is deprecated for this model.")] * 5)
    assert (await proxy.ask(model="claude-opus-4-6", top_k=5)).status == 400
    assert len(anthropic.seen) == 2


async def test_a_lesson_whose_step_is_left_out_costs_no_second_try(tmp_path, anthropic):
    anthropic.will(*[error(400, "invalid_request_error", "`top_k` is deprecated for this model.")] * 2)
    async with running(tmp_path, anthropic.url, filter_sampling_params="false", skip_steps=("fit_sampling",)) as proxy:
        assert (await proxy.ask(model="claude-opus-4-6", top_k=5)).status == 400
    assert len(anthropic.seen) == 1


async def test_thinking_that_was_refused_is_left_out_of_its_own_chat_alone(tmp_path, anthropic):
    words = "messages.1.content.0: Invalid `signature` in `thinking` block"

    def chat(signature):
        thought = {"type": "thinking", "thinking": "Hm.", "signature": signature}
        said = {"role": "assistant", "content": [thought, {"type": "text", "text": "Hello."}]}
        return [ASK["messages"][0], said, {"role": "user", "content": "And now?"}]

    async with running(tmp_path, anthropic.url) as proxy:
        anthropic.will(error(400, "invalid_request_error", words))
        assert (await proxy.ask(messages=chat("forged"))).status == 200
        assert "thinking" not in str(anthropic.seen[1].body["messages"])
    async with running(tmp_path, anthropic.url) as proxy:
        await proxy.ask(messages=chat("forged"))
        await proxy.ask(messages=chat("good"))
    assert len(anthropic.seen) == 4
    assert "thinking" not in str(anthropic.seen[2].body["messages"])
    assert anthropic.seen[3].body["messages"][1]["content"][0]["signature"] == "good"


async def test_a_refused_beta_is_learned_too(proxy, anthropic):
    words = "Unexpected value(s) `new-2027-01-01` for the `anthropic-beta` header."
    anthropic.will(error(400, "invalid_request_error", words))
    assert (await proxy.ask(headers={"x-api-key": KEY, "anthropic-beta": "new-2027-01-01"})).status == 200
    assert [seen.headers.get("anthropic-beta") for seen in anthropic.seen] == ["new-2027-01-01", None]


async def test_any_other_400_is_never_tried_again(proxy, anthropic):
    anthropic.will(error(400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API."))
    assert (await proxy.ask()).status == 400
    assert len(anthropic.seen) == 1


async def test_the_planner_marks_a_long_chat_and_the_receipt_tells_what_the_cache_did(proxy, anthropic):
    chat = [{"role": "user", "content": "Once upon a time. " * 800}]
    for turn in range(2):
        reply = await proxy.ask(messages=chat, stream=True)
        chat = [*chat, {"role": "assistant", "content": "And then?"}, {"role": "user", "content": f"Turn {turn}."}]
    assert b"cache_control" in anthropic.seen[0].raw
    receipt = (await proxy.receipts())[0]
    assert receipt["cache"]["read"] == 11
    assert any(change["name"] == "plan_cache" for change in receipt["changes"])
    assert "x-cache" in reply.headers


async def test_keep_alive_pings_read_the_prefix_again_and_have_receipts_of_their_own(tmp_path, anthropic):
    due = asyncio.Event()

    async def sleep(seconds):
        assert 200 < seconds < 300
        due.set()

    settings = {"strip_cache_ttl": "true", "cache_keepalive_pings": 1}
    async with running(tmp_path, anthropic.url, sleep=sleep, **settings) as proxy:
        await proxy.sign_in()
        anthropic.seen.clear()
        await proxy.ask(headers={}, messages=[{"role": "user", "content": "Once upon a time. " * 800}], stream=True)
        async with asyncio.timeout(PATIENCE):
            await due.wait()
            while len(receipts := await proxy.receipts()) < 2:
                await asyncio.sleep(0.01)
    asked, ping = anthropic.seen
    assert (ping.body["max_tokens"], "stream" in ping.body) == (0, False)
    assert ping.body["messages"][0] == asked.body["messages"][0]
    assert ping.headers["x-api-key"] == asked.headers["x-api-key"]
    (told,) = (one for one in receipts if [change["name"] for change in one["changes"]] == ["cache_keepalive_pings"])
    assert told["tokens"]["cache_read_tokens"] == 11


async def test_a_guests_key_is_never_used_for_pings(tmp_path, anthropic):
    async def sleep(seconds):
        pass

    async with running(tmp_path, anthropic.url, sleep=sleep, strip_cache_ttl="true", cache_keepalive_pings=3) as proxy:
        await proxy.ask(messages=[{"role": "user", "content": "Once upon a time. " * 800}], stream=True)
        await proxy.ask()
        rows = await proxy.receipts()
    assert len(anthropic.seen) == 2
    assert [row["kind"] for row in rows] == ["chat", "chat"], "what was not sent has no receipt"


async def test_without_the_planner_the_front_ends_marks_stay(tmp_path, anthropic):
    marked = [{"type": "text", "text": "Hello " * 2000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    async with running(tmp_path, anthropic.url, cache_planner=False) as proxy:
        await proxy.ask(messages=[{"role": "user", "content": marked}])
    assert anthropic.seen[0].body["messages"][0]["content"] == marked


async def test_a_chat_beyond_all_measure_is_served_as_it_is(proxy, anthropic):
    block = {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}
    turns = [{"role": "user", "content": [block] + [{"type": "text", "text": "Hello"}] * MOST_PLANNED}]
    assert (await proxy.ask(messages=turns)).status == 200
    assert anthropic.seen[0].body["messages"] == turns


async def test_our_own_errors_carry_the_receipts_id(proxy):
    reply = await proxy.send("POST", "/v1/messages", data=b"{", headers={"Content-Type": "application/json"})
    assert reply.status == 400
    assert reply.json["request_id"] == reply.headers["request-id"] == reply.headers["x-receipt"]
    assert (await proxy.receipts())[0]["id"] == reply.json["request_id"]


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({"Content-Type": "text/plain"}, "/v1/messages", 415),
        ({"Host": "rebound.example"}, "/v1/messages/count_tokens", 403),
        ({"Origin": "https://elsewhere.example"}, "/v1/ansel/messages", 403),
        ({"Expect": "the unexpected"}, "/v1/messages", 417),
        ({"Content-Encoding": "gzip"}, "/v1/messages", 400),
    ],
)
async def test_a_chat_that_is_turned_away_at_the_gate_has_a_receipt_too(proxy, anthropic, headers, path, status):
    headers = {"Content-Type": "application/json", **headers}
    session = aiohttp.ClientSession(auto_decompress=False)
    async with session, session.post(proxy.url + path, data=json.dumps(ASK).encode(), headers=headers) as reply:
        told = await reply.json()
    assert reply.status == status
    (receipt,) = await proxy.receipts()
    assert (receipt["id"], receipt["status"]) == (reply.headers["x-receipt"], status)
    assert told["request_id"] == reply.headers["request-id"] == receipt["id"]
    assert anthropic.seen == []


async def test_an_upstream_that_is_away_is_a_502_in_our_shape(tmp_path):
    async with running(tmp_path, "http://127.0.0.1:9") as proxy:
        reply = await proxy.ask()
    assert (reply.status, reply.json["error"]["type"]) == (502, "api_error")


async def test_no_secret_and_no_chat_text_reaches_the_log(proxy, anthropic, caplog):
    caplog.set_level(logging.DEBUG)
    marker = "the-heron-flies-at-midnight"
    await proxy.sign_in("sk-ant-api03-never-to-be-seen-77777")
    for reply in (None, error(500, "api_error", marker), plain(marker.encode(), content_type="text/html")):
        if reply:
            anthropic.will(*[reply] * 3)
        await proxy.ask(headers={}, messages=[{"role": "user", "content": marker}])
    await proxy.send("POST", "/v1/messages", data=f'{{"{marker}', headers={"Content-Type": "application/json"})
    text = caplog.text + json.dumps(await proxy.receipts())
    assert marker not in text
    assert "never-to-be-seen" not in text
