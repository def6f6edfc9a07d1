"""The road itself: who pays, what we send, one attempt after another until a reply begins, then the reply."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from server.accounts import Accounts, Credential
from server.clients import Client
from server.errors import ProxyError, type_of
from server.explain import Refusal, is_policy, remedy, rests_until
from server.models import Models
from server.presets import Personas
from server.reply import Reply, Stream, book, explained
from server.request import ChatRequest
from server.retry import STATUSES, Budget, delay
from server.rewrite import Context, Options, rewrite
from server.sse import EventTooLarge, Meter, WholeEvents
from server.upstream import USER_AGENT, Answer, Broken, Silence, Upstream, UpstreamFailed
from server.usage import Receipt, Receipts

log = logging.getLogger(__name__)

IDLE_SECONDS = 90.0  # between two events
REST_SECONDS = 60.0  # for a 429 that does not say
REST_LEAST, REST_MOST = 1.0, 3600.0  # for per-minute limits
STATUS_OF = {"overloaded_error": 529, "rate_limit_error": 429, "authentication_error": 401, "api_error": 500}

# What a front end may learn from the upstream's headers, and what it may tell the upstream by its own.
PASSED_BACK = ("request-id", "retry-after", "retry-after-ms", "x-should-retry")
PASSED_BACK_PREFIXES = ("anthropic-ratelimit-", "anthropic-priority-")
PASSED_ON = ("anthropic-user-profile-id", "anthropic-workspace-id")


@dataclass(frozen=True)
class Asked:
    """One request on its way: who asks, what, with which headers of theirs, where to, and the receipt being written."""

    client: Client
    request: ChatRequest
    headers: Mapping[str, str]
    path: str  # behind the base URL: /v1/messages or /v1/messages/count_tokens
    receipt: Receipt


class Relay:
    """Takes a request down the road. Tries again only while nothing has reached the front end."""

    def __init__(
        self,
        accounts: Accounts,
        upstream: Upstream,
        models: Models,
        personas: Personas,
        receipts: Receipts,
        options: Options,
        *,
        practice: Credential | None = None,
        explain: str = "auto",
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.time,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._accounts, self._upstream, self._models = accounts, upstream, models
        self._personas, self._receipts, self._options = personas, receipts, options
        self._practice = practice  # pays for everything in practice mode, so that no real credential goes there
        self._explain, self._idle, self._clock, self._luck = explain, idle_seconds, clock, luck
        self._budget = Budget()

    async def exchange(self, asked: Asked) -> Reply:
        """The reply to one request, from its beginning on. Raises ProxyError."""
        persona = self._personas.get(asked.request.persona)
        guest = self._practice or self._accounts.guest(asked.headers)
        self._budget.note_request(self._clock())
        tried: set[str] = set()
        retries = 0
        credential = guest or await self._choose(asked, tried)
        while True:
            sent = rewrite(asked.request, Context(credential.kind, self._models, persona, self._options))
            self._note(asked.receipt, sent, credential)
            try:
                outcome = await self._attempt(asked, sent, credential)
            except UpstreamFailed as error:
                if not error.unsent or (wait := self._may_retry(retries, {})) is None:
                    raise
            else:
                if isinstance(outcome, Reply):
                    return outcome
                if not guest and (other := await self._other(asked, outcome, credential, tried)):
                    credential = other
                    continue
                if outcome.status not in STATUSES or (wait := self._may_retry(retries, outcome.headers)) is None:
                    raise PassedOn(outcome, self._clock())
            retries += 1
            await asyncio.sleep(wait)

    async def _choose(self, asked: Asked, tried: set[str]) -> Credential:
        return await self._accounts.credential(tried=tried, shared_only=asked.client.holds_key)

    async def _other(self, asked: Asked, refusal: Refusal, refused: Credential, tried: set[str]) -> Credential | None:
        """Another credential to try at once after a 401 or 429; None when this refusal is the last word."""
        if refusal.status == 401:
            if renewed := await self._accounts.after_401(refused):
                return renewed
        elif refusal.status == 429:
            self._rest(refused, refusal)
        else:
            return None
        tried.add(refused.account_id)
        try:
            return await self._choose(asked, tried)
        except ProxyError as error:
            log.info("No other account after a %d: %s", refusal.status, error)
            return None

    def _may_retry(self, retries: int, headers: Mapping[str, str]) -> float | None:
        wait = delay(retries, headers, self._luck())
        return wait if wait is not None and self._budget.take(self._clock()) else None

    def _rest(self, credential: Credential, refusal: Refusal) -> None:
        """Let the account rest until its limit ends; after a spend cap, until its owner wakes it."""
        if refusal.code.endswith("spend_limit_reached"):
            self._accounts.rest(credential.account_id, math.inf, refusal.message)
            return
        now = self._clock()
        until = rests_until(refusal.headers, now)
        unified = "anthropic-ratelimit-unified-reset" in refusal.headers
        if until is None:
            until = now + REST_SECONDS
        elif not unified:
            until = now + min(max(until - now, REST_LEAST), REST_MOST)
        self._accounts.rest(credential.account_id, max(until, now + REST_LEAST), refusal.message)

    def _note(self, receipt: Receipt, sent: ChatRequest, credential: Credential) -> None:
        receipt.attempts += 1
        receipt.model = sent.model
        receipt.changes = sent.changes
        receipt.account = self._payer(credential)

    def _payer(self, credential: Credential) -> str:
        if credential.account_id:
            return self._accounts.get(credential.account_id).name
        return "practice" if self._practice else "the request's own key"

    async def _attempt(self, asked: Asked, sent: ChatRequest, credential: Credential) -> Reply | Refusal:
        """One attempt. A refusal is returned, so that the road can decide; a reply has begun when it is returned."""
        body = orjson.dumps(sent.body)
        headers = headers_for(sent, credential, asked.headers)
        answer = await self._upstream.send("POST", credential.base_url, asked.path, headers, body)
        begun = False
        try:
            if answer.status >= 400:
                return refusal_of(answer.status, await answer.read_all(self._idle), answer.headers, credential.kind)
            if 300 <= answer.status < 400:
                raise UpstreamFailed(
                    502, "The upstream answered with a redirect, which is not followed. Check api_base_url."
                )
            back = passed_back(answer.headers)
            if answer.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/event-stream":
                outcome = await self._begin(asked, answer, back, credential)
                begun = isinstance(outcome, Reply)
                return outcome
            raw = await answer.read_all(self._idle)
            value = json_object(raw, answer)
            if not sent.counting:
                meter = Meter()
                meter.message(value)
                book(asked.receipt, meter)
                raw = explained(raw, value, asked.receipt, meter, self._explain)
            asked.receipt.ended = "whole"
            return Reply(answer.status, {**back, "Content-Type": "application/json"}, raw)
        finally:
            if not begun:
                answer.close()

    async def _begin(
        self, asked: Asked, answer: Answer, back: dict[str, str], credential: Credential
    ) -> Reply | Refusal:
        """Wait for the first events: an `error` as the first of them still counts as before the first byte."""
        events = WholeEvents()
        try:
            while not (first := events.feed(chunk := await answer.read_some(self._idle))) and chunk:
                pass
        except Silence:
            silent = f"The upstream began an answer and fell silent for {self._idle:.0f} s. Try again."
            raise UpstreamFailed(504, silent) from None
        except Broken as error:
            cut = f"The upstream's answer broke off before its first word ({error}). Try again."
            raise UpstreamFailed(502, cut) from error
        except EventTooLarge:
            raise UpstreamFailed(502, "The upstream's answer is far too large to be one. Try again.") from None
        if not first:
            raise UpstreamFailed(502, "The upstream's answer ended before its first word. Try again.")
        stream = Stream(answer, asked.receipt, first, events, idle=self._idle, explain=self._explain)
        if stream.meter.error is not None and not stream.meter.usage:
            return refusal_event(stream.meter.error, answer.headers, credential.kind)
        return Reply(answer.status, {**back, "Content-Type": "text/event-stream; charset=utf-8"}, None, stream)

    async def pass_through(
        self, method: str, target: str, asked_headers: Mapping[str, str], client: Client, body: bytes | None
    ) -> Reply:
        """Any other /v1/ request, as it is, with the credential that would pay for a chat."""
        credential = self._practice or self._accounts.guest(asked_headers)
        credential = credential or await self._accounts.credential(shared_only=client.holds_key)
        request = ChatRequest(
            body={},
            version=asked_headers.get("anthropic-version", ChatRequest.version),
            betas=tuple(b.strip() for b in asked_headers.get("anthropic-beta", "").split(",") if b.strip()),
        )
        request = replace(request, betas=(*request.betas, *(b for b in credential.betas if b not in request.betas)))
        headers = headers_for(request, credential, asked_headers)
        if body:
            headers["Content-Type"] = asked_headers.get("content-type", "application/octet-stream")
        answer = await self._upstream.send(method, credential.base_url, target, headers, body or None)
        try:
            raw = await answer.read_all(self._idle)
            if answer.status >= 400:
                raise PassedOn(refusal_of(answer.status, raw, answer.headers, credential.kind), self._clock())
            kind = answer.headers.get("content-type", "application/octet-stream")
            return Reply(answer.status, {**passed_back(answer.headers), "Content-Type": kind}, raw)
        finally:
            answer.close()


class PassedOn(ProxyError):
    """An error of the upstream's, with a sentence of ours behind its words."""

    def __init__(self, refusal: Refusal, now: float) -> None:
        words = refusal.message.strip()
        if words and words[-1] not in ".!?…":
            words += "."
        super().__init__(
            refusal.status, f"{words} {remedy(refusal, now)}".strip(), headers=passed_back(refusal.headers)
        )
        self._type = refusal.type
        self.policy = is_policy(refusal)

    @property
    def type(self) -> str:
        return self._type


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


def refusal_of(status: int, raw: bytes, headers: Mapping[str, str], kind: str) -> Refusal:
    """An upstream's error answer, also when it is not in the API's shape."""
    low = {key.lower(): value for key, value in headers.items()}
    try:
        body = orjson.loads(raw)
        error = body["error"]
        details = error.get("details") or {}
        return Refusal(
            status, str(error["type"]), str(error["message"]), str(details.get("error_code") or ""), low, kind
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        words = f"The upstream answered {status} with {what_came(raw, low.get('content-type', ''))}."
        return Refusal(status, type_of(status), words, "", low, kind)


def refusal_event(error: Mapping[str, Any], headers: Mapping[str, str], kind: str) -> Refusal:
    """An upstream's error that came as the first event of a stream, with the status it would have had."""
    type_ = str(error.get("type") or "api_error")
    words = str(error.get("message") or "The upstream reported an error.")
    return Refusal(STATUS_OF.get(type_, 500), type_, words, "", {k.lower(): v for k, v in headers.items()}, kind)


def json_object(raw: bytes, answer: Answer) -> dict[str, Any]:
    """A plain reply's body. Raises UpstreamFailed 502 when it is no JSON object."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        came = what_came(raw, answer.headers.get("content-type", ""))
        raise UpstreamFailed(
            502, f"The upstream answered with {came} instead of a reply. Check api_base_url, or try again."
        )
    return value


def what_came(raw: bytes, kind: str) -> str:
    """A few harmless words about an answer that is not what was expected."""
    start = " ".join(raw[:400].decode("utf-8", "replace").split())[:80]
    name = "".join(c for c in kind.partition(";")[0] if c.isalnum() or c in "/+-.") or "no content type"
    return f"{name}: “{start}”" if start else f"{name} and nothing in it"
