"""The reply on its way to the front end: passed through as it comes, its story told at the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import orjson

from server.budget import notice_change
from server.errors import ProxyError
from server.explain import closing_words, framed
from server.receipt import Receipt
from server.request import Change
from server.sse import PING, EventTooLarge, Meter, WholeEvents, before_last_words, text_events
from server.upstream import Answer, Broken, Patience, Silence

PARTING_SECONDS = 2.0  # patience with an upstream that does not end a reply after its last event


class Reply:
    """What the front end gets: a plain body, or a stream of whole events."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes | None, stream: Stream | None = None) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.stream = stream


class Passing:
    """Any other answer on its way to the front end, piece by piece, its bytes left as they are."""

    def __init__(self, answer: Answer, headers: dict[str, str], patience: Patience) -> None:
        self.status, self.headers = answer.status, headers
        self._answer, self._patience = answer, patience

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Raises Broken or Silence: then it is not whole, and nothing can be put behind it to say so."""
        while chunk := await self._answer.read_some(self._patience.idle):
            yield chunk

    def close(self) -> None:
        """To be called however it ended."""
        self._answer.close()


class Stream:
    """A streamed reply, passed through byte for byte; whatever breaks it ends in an `error` event of ours.

    `explain` is the setting explain_in_chat.
    """

    def __init__(
        self,
        answer: Answer,
        receipt: Receipt,
        first: bytes,
        events: WholeEvents,
        patience: Patience,
        *,
        explain: str,
    ) -> None:
        self._answer, self._receipt, self._events = answer, receipt, events
        self._patience, self._explain = patience, explain
        self.meter = Meter()
        self._first = self._listen(first)

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Whole events as they come; a `ping` in each quarter of a minute of silence."""
        yield self._first
        silent, idle = 0.0, self._patience.idle
        try:
            while self.meter.error is None:
                patience = PARTING_SECONDS if self.meter.whole else min(self._patience.ping, idle - silent)
                try:
                    chunk = await self._answer.read_some(patience)
                except Silence:
                    if self.meter.whole:
                        break
                    silent += patience
                    if silent >= idle:
                        raise Broken(f"nothing came for {idle:.0f} s") from None
                    yield PING
                    continue
                silent = 0.0
                if not chunk:
                    break
                if whole := self._events.feed(chunk):
                    yield self._listen(whole)
            if self.meter.error is not None:
                self._receipt.ended = "error"
            elif self.meter.whole and not self._events.rest.strip():
                self._receipt.ended = "whole"
            else:
                raise Broken("it ended too early")
        except (Broken, EventTooLarge) as error:
            self._receipt.ended = "cut"
            why = "an event of more than 16 MiB" if isinstance(error, EventTooLarge) else str(error)
            yield broken_off(why, self.meter.events).event(self._receipt.id)

    def _listen(self, whole: bytes) -> bytes:
        """Meter these events; with them, where they end a reply that says nothing, a line of ours before that end."""
        ended = self.meter.stop_reason is not None
        self.meter.feed(whole)
        self._receipt.events = self.meter.events
        if ended or self.meter.stop_reason is None:
            return whole
        words = closing(self._receipt, self.meter, self._explain)
        return before_last_words(whole, text_events(self.meter.blocks, words)) if words else whole

    def interrupt(self, why: str) -> None:
        """End it now with an `error` event, because the proxy stops."""
        self._answer.interrupt(why)

    def close(self) -> None:
        """Book what the reply said of itself, and let go of the connection. To be called however the reply ended."""
        book(self._receipt, self.meter)
        self._receipt.ended = self._receipt.ended or "client_left"
        self._answer.close()


def explained(raw: bytes, value: dict[str, Any], receipt: Receipt, meter: Meter, mode: str) -> bytes:
    """A plain reply's body, with a line of ours at the end where it says nothing."""
    words = closing(receipt, meter, mode)
    if not words or not isinstance(value.get("content"), list):
        return raw
    return orjson.dumps({**value, "content": [*value["content"], {"type": "text", "text": words}]})


def closing(receipt: Receipt, meter: Meter, mode: str) -> str:
    """The line of ours that ends this reply, noted in its receipt; "" for none."""
    words = closing_words(meter.stop_reason, meter.stop_details, spoke=meter.spoke, mode=mode)
    if words:
        detail = "Added a line of ours at the end of a reply that said nothing."
        receipt.changes = (*receipt.changes, Change("explain_in_chat", detail))
    if receipt.notice and mode != "false" and meter.stop_reason in ("end_turn", "stop_sequence", "max_tokens"):
        receipt.changes = (*receipt.changes, notice_change())
        words += framed(receipt.notice)
    return words


def broken_off(why: str, events: int) -> ProxyError:
    return ProxyError(
        502,
        f"Upstream connection lost after {events} event{'' if events == 1 else 's'} ({why}). "
        "The reply above is incomplete: use Continue or Regenerate.",
    )


def book(receipt: Receipt, meter: Meter) -> None:
    """Note in the receipt what the reply said of itself."""
    receipt.usage = meter.usage
    receipt.stop_reason = meter.stop_reason
    receipt.model = meter.model or receipt.model
