"""One attempt: a request as it was rewritten goes out, a reply or a refusal comes back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import orjson

from server.budget import Hold
from server.clients import Client
from server.errors import type_of
from server.explain import Refusal
from server.payers import Credential
from server.receipt import Receipt
from server.reply import Passing, Reply, Stream, book, explained
from server.request import LARGE, ChatRequest
from server.secret import struck
from server.sse import EventTooLarge, Meter, WholeEvents
from server.upstream import USER_AGENT, Answer, Broken, Patience, Silence, Upstream, UpstreamFailed

MESSAGES, COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"
ROOMY = 64 * 1024  # bytes
KEY_CHECK_SECONDS = 8.0
STATUS_OF = {"overloaded_error": 529, "rate_limit_error": 429, "authentication_error": 401, "api_error": 500}

REQUEST_ID = re.compile(r"req_[A-Za-z0-9_-]{1,100}")  # fit for a header, whatever an upstream writes there

# What a front end may learn from the upstream's headers, and what it may tell the upstream by its own.
PASSED_BACK = ("request-id", "retry-after", "retry-after-ms", "x-should-retry")
PASSED_BACK_PREFIXES = ("anthropic-ratelimit-", "anthropic-priority-")
PASSED_ON = ("anthropic-user-profile-id", "anthropic-workspace-id")


class Asked(NamedTuple):
    """One request on its way: who asks, what, with which headers of theirs, where to, and the receipt being written."""

    client: Client
    request: ChatRequest
    headers: Mapping[str, str]
    path: str  # behind the base URL: /v1/messages or /v1/messages/count_tokens
    receipt: Receipt
    hold: Hold  # on what the client's key may spend

    @property
    def passed_on(self) -> Mapping[str, str]:
        """Its headers as far as they may choose something for the account: a guest's may not."""
        return self.headers if self.client.own else {}


Begun = Callable[[Meter], None]
KeyCheck = Literal["ok", "refused", "unknown"]


class Attempts:
    """Makes attempts. `explain` is the setting explain_in_chat."""

    def __init__(self, upstream: Upstream, patience: Patience, *, explain: str) -> None:
        self._upstream, self._patience, self._explain = upstream, patience, explain

    async def make(self, asked: Asked, sent: ChatRequest, credential: Credential, begun: Begun) -> Reply | Refusal:
        """One attempt. A refusal is returned, so that the road can decide; a reply has begun when it is returned, and
        `begun` was told what it says of its prompt."""
        body = await asyncio.to_thread(as_json, sent.body) if sent.size > LARGE else as_json(sent.body)
        headers = headers_for(sent, credential, asked.passed_on)
        answer = await self._upstream.send("POST", credential.base_url, asked.path, headers, body)
        kept = False
        try:
            if refusal := await self._refusal(answer, credential):
                return refusal
            back = passed_back(answer.headers)
            if answer.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/event-stream":
                outcome = await self._begin(asked, answer, back, credential, begun)
                kept = isinstance(outcome, Reply)
                return outcome
            raw = await answer.read_all(self._patience.idle)
            value = json_object(raw, answer, credential)
            if value.get("type") == "error" and isinstance(value.get("error"), dict):
                return refusal_event(value["error"], answer.headers, credential)
            if not sent.counting:
                meter = Meter()
                meter.message(value)
                begun(meter)
                book(asked.receipt, meter)
                raw = explained(raw, value, asked.receipt, meter, self._explain)
            asked.receipt.ended = "whole"
            return Reply(answer.status, {**back, "Content-Type": "application/json"}, raw)
        finally:
            if not kept:
                answer.close()

    async def _refusal(self, answer: Answer, credential: Credential) -> Refusal | None:
        """What the upstream says against a request, if anything. Raises UpstreamFailed 502 for a redirect: a credential
        is not carried elsewhere."""
        if 300 <= answer.status < 400:
            raise UpstreamFailed(
                502, "The upstream answered with a redirect, which is not followed. Check api_base_url."
            )
        if answer.status < 400:
            return None
        raw = await answer.read_all(self._patience.idle)
        return refusal_of(answer.status, raw, answer.headers, credential)

    async def _begin(
        self, asked: Asked, answer: Answer, back: dict[str, str], credential: Credential, begun: Begun
    ) -> Reply | Refusal:
        """Wait for the first events: an `error` as the first of them still counts as before the first byte."""
        events = WholeEvents()
        try:
            while not (first := events.feed(chunk := await answer.read_some(self._patience.idle))) and chunk:
                pass
        except Silence:
            silent = f"The upstream began an answer and fell silent for {self._patience.idle:.0f} s. Try again."
            raise UpstreamFailed(504, silent) from None
        except Broken as error:
            cut = f"The upstream's answer broke off before its first word ({error}). Try again."
            raise UpstreamFailed(502, cut) from error
        except EventTooLarge:
            raise UpstreamFailed(502, "The upstream's answer is far too large to be one. Try again.") from None
        if not first:
            raise UpstreamFailed(502, "The upstream's answer ended before its first word. Try again.")
        stream = Stream(answer, asked.receipt, first, events, self._patience, explain=self._explain)
        if stream.meter.error is not None and not stream.meter.usage:
            return refusal_event(stream.meter.error, answer.headers, credential)
        begun(stream.meter)
        return Reply(answer.status, {**back, "Content-Type": "text/event-stream; charset=utf-8"}, None, stream)

    async def count(self, asked: Asked, sent: ChatRequest, credential: Credential) -> int | None:
        """The tokens of a prompt as the upstream itself counts them, which costs nothing; None where it does not."""
        headers = headers_for(sent, credential, asked.passed_on)
        try:
            answer = await self._upstream.send("POST", credential.base_url, COUNT_TOKENS, headers, as_json(sent.body))
            try:
                raw = await answer.read_all(self._patience.idle)
                counted = json_object(raw, answer, credential).get("input_tokens") if answer.status == 200 else None
            finally:
                answer.close()
        except UpstreamFailed:
            return None
        return counted if isinstance(counted, int) and counted >= 0 else None

    async def plain(
        self, method: str, target: str, sent: ChatRequest, credential: Credential, given: Mapping[str, str], body: bytes
    ) -> Reply | Passing | Refusal:
        """An attempt at any other address of the API, its body and answer left as they are: JSON is read to its end,
        so that a break in it can be told; a stream or a file passes as it comes."""
        headers = headers_for(sent, credential, given)
        if body:
            headers["Content-Type"] = given.get("content-type", "application/octet-stream")
        answer = await self._upstream.send(method, credential.base_url, target, headers, body or None)
        kept = False
        try:
            if refusal := await self._refusal(answer, credential):
                return refusal
            kind = answer.headers.get("content-type", "application/octet-stream")
            back = {**passed_back(answer.headers), "Content-Type": kind}
            if kind.partition(";")[0].strip().lower() == "application/json":
                return Reply(answer.status, back, await answer.read_all(self._patience.idle))
            kept = True
            return Passing(answer, back, self._patience)
        finally:
            if not kept:
                answer.close()


async def check_key(upstream: Upstream, base_url: str, key: str) -> tuple[KeyCheck, str]:
    """Whether the upstream takes an API key, and its words where it does not, or where that cannot be said."""
    paid = Credential("api_key", key, base_url)
    headers = {**paid.headers(), "anthropic-version": ChatRequest.version, "Accept-Encoding": "identity"}
    try:
        async with asyncio.timeout(KEY_CHECK_SECONDS):
            answer = await upstream.send("GET", base_url, "/v1/models?limit=1", headers, None)
            try:
                raw = await answer.read_all(KEY_CHECK_SECONDS)
            finally:
                answer.close()
    except UpstreamFailed as error:
        return "unknown", error.message
    except TimeoutError:
        return "unknown", "no answer in time"
    if answer.status in (401, 403):
        return "refused", refusal_of(answer.status, raw, answer.headers, paid).message
    return ("ok", "") if answer.status == 200 else ("unknown", f"the upstream answered {answer.status}")


def as_json(body: Mapping[str, Any]) -> bytes:
    """A body as it is sent. Behind a short one orjson keeps 14 KB of room for more (seen with 3.13.0), as long as the
    request waits; a copy has none."""
    raw = orjson.dumps(body)
    return raw if len(raw) > ROOMY else bytes(memoryview(raw))


def headers_for(sent: ChatRequest, credential: Credential, given: Mapping[str, str]) -> dict[str, str]:
    """The headers of one attempt: an allow-list, our own name, and exactly one credential."""
    headers = {
        "User-Agent": USER_AGENT,
        "Accept": "text/event-stream" if sent.streams else "application/json",
        "Accept-Encoding": "identity",
        "anthropic-version": sent.version,
    }
    if sent.body:
        headers["Content-Type"] = "application/json"
    if sent.betas:
        headers["anthropic-beta"] = ",".join(sent.betas)
    headers |= {name: given[name] for name in PASSED_ON if name in given}
    return headers | credential.headers()


def passed_back(headers: Mapping[str, str]) -> dict[str, str]:
    """The upstream's headers a front end may see."""
    return {
        name.lower(): value
        for name, value in headers.items()
        if (low := name.lower()) in PASSED_BACK or low.startswith(PASSED_BACK_PREFIXES)
    }


def refusal_of(status: int, raw: bytes, headers: Mapping[str, str], paid: Credential) -> Refusal:
    """An upstream's error answer, also when it is not in the API's shape. Clients read it: the credential is struck."""
    low = {key.lower(): value for key, value in headers.items()}
    raw = without_credential(raw, paid)
    try:
        body = orjson.loads(raw)
        error = body["error"]
        if REQUEST_ID.fullmatch(str(body.get("request_id"))):
            low.setdefault("request-id", body["request_id"])
        details = error.get("details") or {}
        return Refusal(
            status, str(error["type"]), str(error["message"]), str(details.get("error_code") or ""), low, paid.kind
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        words = f"The upstream answered {status} with {what_came(raw, low.get('content-type', ''))}."
        return Refusal(status, type_of(status), words, "", low, paid.kind)


def refusal_event(error: Mapping[str, Any], headers: Mapping[str, str], paid: Credential) -> Refusal:
    """An upstream's error that came with a 200, as first event of a stream or alone, with the status it would have."""
    type_ = str(error.get("type") or "api_error")
    words = struck(str(error.get("message") or "The upstream reported an error."), paid.secret)
    return Refusal(STATUS_OF.get(type_, 500), type_, words, "", {k.lower(): v for k, v in headers.items()}, paid.kind)


def without_credential(raw: bytes, paid: Credential) -> bytes:
    """An upstream's answer as clients may read it."""
    return struck(raw.decode("utf-8", "replace"), paid.secret).encode()


def json_object(raw: bytes, answer: Answer, paid: Credential) -> dict[str, Any]:
    """A plain reply's body. Raises UpstreamFailed 502 when it is no JSON object."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        came = what_came(without_credential(raw, paid), answer.headers.get("content-type", ""))
        raise UpstreamFailed(
            502, f"The upstream answered with {came} instead of a reply. Check api_base_url, or try again."
        )
    return value


def what_came(raw: bytes, kind: str) -> str:
    """A few harmless words about an answer that is not what was expected."""
    start = " ".join(raw[:400].decode("utf-8", "replace").split())[:80]
    name = "".join(c for c in kind.partition(";")[0] if c.isalnum() or c in "/+-.") or "no content type"
    return f"{name}: “{start}”" if start else f"{name} and nothing in it"
