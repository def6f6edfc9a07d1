"""What client keys may spend: an upper bound is held before each call and settled after it, so that limits hold."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from math import ceil, isfinite
from typing import Any, NamedTuple

import orjson

from server.content import images_of
from server.days import day_of, month_of, next_day, next_month, time_of_day
from server.errors import ProxyError
from server.models import Model, Models
from server.prices import US_FACTOR, cost, price, token_counts
from server.receipt import Receipt
from server.request import Change
from server.rewrite.fields import FIELDS

IMAGE_TOKENS = 6_000  # the most a picture counts
TOOL_TOKENS = 1_000  # of the API's own words about tools, which the request does not show
BYTES_PER_TOKEN = 3  # of usual text
COUNTED_SLACK, COUNTED_MORE = 1.05, 50  # count_tokens is an estimate, says its documentation
MINUTE = 60.0
WARN_AT = 0.8  # of a limit
MOST_USD, MOST_TOKENS, MOST_REQUESTS = 1e6, 10**12, 10**6
# Tools that the front end runs itself; any other adds to the prompt, or asks a model, while the reply is made.
CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "memory_", "computer_", "browser_")
NOTICE = "budget_notice"


@dataclass(frozen=True)
class Limits:
    """What a key may spend; None: as much as it likes. Days and months are those of this computer's clock."""

    usd_per_day: float | None = None
    usd_per_month: float | None = None
    tokens_per_day: int | None = None
    requests_per_minute: int | None = None

    @property
    def money(self) -> bool:
        return self.usd_per_day is not None or self.usd_per_month is not None

    @property
    def spending(self) -> bool:
        """Whether something must be held before a call."""
        return self.money or self.tokens_per_day is not None

    @classmethod
    def of(cls, given: object) -> Limits:
        """The limits in a JSON object; null means none. Raises ProxyError 400 naming the field."""
        if given is None:
            return NO_LIMITS
        if not isinstance(given, dict):
            raise ProxyError(400, "limits: must be an object.")
        names = [one.name for one in fields(cls)]
        if unknown := sorted(given.keys() - set(names)):
            raise ProxyError(400, f"limits.{unknown[0]}: there is no such limit. There are {', '.join(names)}.")
        read: dict[str, Any] = {name: limit(name, value) for name, value in given.items() if value is not None}
        return cls(**read)

    def public(self) -> dict[str, float | int | None]:
        return {one.name: getattr(self, one.name) for one in fields(self)}


NO_LIMITS = Limits()


def limit(name: str, value: object) -> float | int:
    """One limit. Raises ProxyError 400."""
    whole, most = not name.startswith("usd"), MOST_USD
    if whole:
        most = MOST_TOKENS if name.startswith("tokens") else MOST_REQUESTS
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not 0 <= value <= most:
        kind = "a whole number" if whole else "a number of dollars"
        raise ProxyError(400, f"limits.{name}: must be {kind} from 0 to {most:,.0f}, or null for no limit.")
    return value if whole or isfinite(value) else 0


class Amount(NamedTuple):
    """Money and tokens."""

    usd: float = 0.0
    tokens: int = 0


NOTHING = Amount()


# -- what a request may cost


def upper_bound(body: Mapping[str, Any], model: Model, counted: int | None = None) -> Amount:
    """The most a request can cost: its prompt all written to the cache if it has marks, its reply as long as may be.

    A token is at least a byte of text. `counted` is what the API itself counted, near enough.
    """
    raw = orjson.dumps(body)
    prompt = most_tokens(body, raw, model) if counted is None else ceil(counted * COUNTED_SLACK) + COUNTED_MORE
    output = body.get("max_tokens", model.max_output)
    return Amount(dollars(body, raw, model, prompt, output), prompt + output)


def likely(body: Mapping[str, Any], model: Model) -> Amount:
    """What a prompt costs by and large: for a reply that its reader did not wait for, whose usage nobody told."""
    raw = orjson.dumps(body)
    prompt = most_tokens(body, raw, model) // BYTES_PER_TOKEN
    return Amount(dollars(body, raw, model, prompt, 0), prompt)


def most_tokens(body: Mapping[str, Any], raw: bytes, model: Model) -> int:
    """No prompt is longer than the model's context; a document may be as long, whatever its bytes."""
    tokens = len(raw) + TOOL_TOKENS * bool(body.get("tools"))
    for image in images_of(body["messages"]):
        tokens += IMAGE_TOKENS - len(orjson.dumps(image))
    return model.context if b'"type":"document"' in raw else min(tokens, model.context)


def dollars(body: Mapping[str, Any], raw: bytes, model: Model, prompt: int, output: int) -> float:
    band = model.price_of(prompt)
    if band is None:
        return 0.0
    # Inside a string JSON escapes quotation marks, so these bytes are a mark's and never a story's.
    into = band.write_1h if b'"ttl":"1h"' in raw else band.write_5m if b'"cache_control"' in raw else band.input
    factor = (model.fast_factor or 1.0) if body.get("speed") == "fast" else 1.0
    factor *= US_FACTOR if body.get("inference_geo") == "us" else 1.0
    return factor * (prompt * into + output * band.output) / 1e6


def refuse_unpriceable(body: Mapping[str, Any], model: Model | None) -> Model:
    """The model, if what a request costs can be bounded. Raises ProxyError 403."""
    if model is None or model.price is None:
        raise ProxyError(
            403, "The price of this model is not known, so a key with a limit may not use it. Choose another model."
        )
    for tool in body.get("tools") or ():
        if isinstance(tool, dict) and not str(tool.get("type") or "custom").startswith(CLIENT_TOOLS):
            raise ProxyError(
                403, "A key with a limit may not use tools that run at Claude's side: nobody knows their cost before."
            )
    if unknown := sorted(body.keys() - FIELDS):
        raise ProxyError(403, f"A key with a limit may not use “{unknown[0]}”: nobody knows its cost before.")
    return model


# -- the account of a key


class OverBudget(ProxyError):
    """What is left of a limit does not cover the request. `is_empty`: nothing is left at all."""

    def __init__(self, message: str, wait: float, *, is_empty: bool) -> None:
        headers = {"retry-after": str(max(1, ceil(wait))), "x-should-retry": "false"}
        super().__init__(429, message, headers=headers)
        self.is_empty = is_empty


class LimitStatus(NamedTuple):
    """One limit as it stands: what it is called, what is used of it, and when it starts anew."""

    what: str
    most: float
    used: float
    asked: float
    ends: float
    shown: Callable[[float], str]


def as_dollars(usd: float) -> str:
    return f"${usd:.2f}" if usd >= 0.095 or usd == 0 else f"{usd * 100:.1f} ¢"


def as_tokens(count: float) -> str:
    return f"{count:,.0f} tokens"


@dataclass
class Spent:
    """What a key has used in this day and month, what is held for calls under way, and its requests of the minute."""

    day: date
    month: date
    today: Amount = NOTHING
    usd_this_month: float = 0.0
    held: Amount = NOTHING
    requests: deque[float] = field(default_factory=deque)
    warned: date | None = None

    def start_anew(self, now: float) -> None:
        """Where another day or month has begun."""
        if self.day != (today := day_of(now)):
            self.day, self.today = today, NOTHING
        if self.month != (month := month_of(now)):
            self.month, self.usd_this_month = month, 0.0

    def statuses(
        self, limits: Limits, now: float, *, held: Amount = NOTHING, asked: Amount = NOTHING
    ) -> Iterator[LimitStatus]:
        if limits.usd_per_day is not None:
            used = self.today.usd + held.usd
            yield LimitStatus("money for today", limits.usd_per_day, used, asked.usd, next_day(now), as_dollars)
        if limits.usd_per_month is not None:
            used = self.usd_this_month + held.usd
            anew = next_month(now)
            yield LimitStatus("money for this month", limits.usd_per_month, used, asked.usd, anew, as_dollars)
        if limits.tokens_per_day is not None:
            used = self.today.tokens + held.tokens
            yield LimitStatus("tokens for today", limits.tokens_per_day, used, asked.tokens, next_day(now), as_tokens)


class Budgets:
    """Every key's account, in memory; `charges` are those of this month from the books: key, day, dollars, tokens.
    `warned` is the day on which each was last warned of a limit."""

    def __init__(
        self,
        models: Models,
        charges: Iterable[tuple[str, str, float, int]] = (),
        warned: Mapping[str, str] | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._models, self._clock = models, clock
        self._spent: dict[str, Spent] = {}
        self._revoked: set[str] = set()
        now = clock()
        for key_id, day, usd, tokens in charges:
            spent = self._of(key_id)
            spent.usd_this_month += usd * (date.fromisoformat(day) >= month_of(now))
            if day == day_of(now).isoformat():
                spent.today = Amount(spent.today.usd + usd, spent.today.tokens + tokens)
        for key_id, day in (warned or {}).items():
            self._of(key_id).warned = date.fromisoformat(day)

    def _of(self, key_id: str) -> Spent:
        now = self._clock()
        spent = self._spent.get(key_id)
        if spent is None:
            spent = self._spent[key_id] = Spent(day_of(now), month_of(now))
        spent.start_anew(now)
        return spent

    def open(self, key_id: str, limits: Limits, *, ping: bool = False) -> Hold:
        """A hold for one request of a key. Raises ProxyError 429 for one too many in a minute, 401 once revoked."""
        if key_id in self._revoked:
            raise ProxyError(401, "This client key was revoked. Ask the owner of the proxy for another.")
        if limits.requests_per_minute is not None and not ping:
            self._count(key_id, limits.requests_per_minute)
        return Hold(self, key_id, limits)

    def revoke(self, key_id: str) -> None:
        self._revoked.add(key_id)

    def _count(self, key_id: str, most: int) -> None:
        now, times = self._clock(), self._of(key_id).requests
        while times and not 0 <= now - times[0] < MINUTE:
            times.popleft()
        if len(times) >= most:
            wait = MINUTE - (now - times[0]) if times else MINUTE
            words = f"This key may send {most} request{'' if most == 1 else 's'} a minute."
            raise OverBudget(f"{words} Wait {ceil(wait)} s, then send again.", wait, is_empty=True)
        times.append(now)

    def used(self, key_id: str) -> dict[str, float | int]:
        """What a key has used, for the pages; what is held for calls under way is not in it."""
        spent = self._of(key_id)
        return {
            "usd_today": round(spent.today.usd, 8),
            "usd_this_month": round(spent.usd_this_month, 8),
            "tokens_today": spent.today.tokens,
        }

    def hold(self, key_id: str, limits: Limits, asked: Amount) -> None:
        """Hold this much. Raises OverBudget."""
        now, spent = self._clock(), self._of(key_id)
        for status in spent.statuses(limits, now, held=spent.held, asked=asked):
            left = status.most - status.used
            if status.asked > left + 1e-9:
                raise over(status, left, now)
        spent.held = Amount(spent.held.usd + asked.usd, spent.held.tokens + asked.tokens)

    def release(self, key_id: str, held: Amount) -> None:
        spent = self._of(key_id)
        spent.held = Amount(spent.held.usd - held.usd, spent.held.tokens - held.tokens)

    def charge(self, key_id: str, at: float, amount: Amount) -> None:
        """Book what a request of that time cost."""
        spent = self._of(key_id)
        if day_of(at) == spent.day:
            spent.today = Amount(spent.today.usd + amount.usd, spent.today.tokens + amount.tokens)
        if month_of(at) == spent.month:
            spent.usd_this_month += amount.usd

    def notice(self, key_id: str, limits: Limits) -> str:
        """A word of warning when most of a limit is used, once a day; "" else."""
        now, spent = self._clock(), self._of(key_id)
        if spent.warned == spent.day:
            return ""
        for status in spent.statuses(limits, now):
            if status.used >= WARN_AT * status.most:
                used = f"{status.shown(min(status.used, status.most))} of {status.shown(status.most)}"
                end = time_of_day(status.ends, now)
                return f"{used} of this key's {status.what} are used. It starts anew at {end}."
        return ""

    def noticed(self, key_id: str) -> None:
        spent = self._of(key_id)
        spent.warned = spent.day

    def price_of(self, receipt: Receipt, usage: Mapping[str, Any], model: Model | None) -> float:
        """What a key is charged for a reply; without the fee of a tool whose price is not known."""
        for told in (usage, {**usage, "server_tool_use": None}):
            if priced := price(self._models, receipt.model, told) or (cost(model, told) if model else None):
                return priced[0]
        return 0.0


def over(status: LimitStatus, left: float, now: float) -> OverBudget:
    end, wait = time_of_day(status.ends, now), status.ends - now
    if left <= 1e-9:
        words = f"This key's {status.what} ({status.shown(status.most)}) is used up or held by replies under way."
        return OverBudget(f"{words} It starts anew at {end}; the owner of the proxy can raise it.", wait, is_empty=True)
    words = f"This request may take up to {status.shown(status.asked)};"
    words += f" of this key's {status.what} {status.shown(left)} is left."
    remedy = f"Lower the context size or the response length, or wait until {end}."
    return OverBudget(f"{words} {remedy}", wait, is_empty=False)


class Hold:
    """What is held for one request, from before it is sent until its cost is known."""

    def __init__(self, budgets: Budgets, key_id: str, limits: Limits) -> None:
        self._budgets, self.key_id, self.limits = budgets, key_id, limits
        self._held: Amount | None = None
        self._model: Model | None = None
        self._most_output = 0
        self._likely = NOTHING

    def reserve(self, body: Mapping[str, Any], model: Model | None, counted: int | None = None) -> None:
        """Hold the most this request may cost, in place of what was held before. Raises OverBudget, and ProxyError 403
        where nobody can say what it costs."""
        self.free()
        if not self.limits.spending:
            return
        model = refuse_unpriceable(body, model)
        most = upper_bound(body, model, counted)
        self._budgets.hold(self.key_id, self.limits, most)
        self._held, self._model = most, model
        self._most_output = body.get("max_tokens", model.max_output)
        usual = likely(body, model)
        self._likely = Amount(min(usual.usd, most.usd), min(usual.tokens, most.tokens))

    def free(self) -> None:
        """The attempt cost nothing: it was refused, or failed on the other side, and such are not billed."""
        if self._held is not None:
            self._budgets.release(self.key_id, self._held)
            self._held = None

    def notice(self) -> str:
        return self._budgets.notice(self.key_id, self.limits) if self.limits.spending else ""

    def settle(self, receipt: Receipt) -> None:
        """Charge the key with what the request cost, as far as the upstream told, and let go of the rest.

        A reply left in the middle is charged as if it had become as long as allowed; one left before its beginning with
        what such a prompt usually costs.
        """
        if not self.key_id:
            return
        usage = dict(receipt.usage)
        if usage and self._held and receipt.ended != "whole":
            usage["output_tokens"] = max(token_counts(usage)["output_tokens"], self._most_output)
        if usage:
            spent = Amount(self._budgets.price_of(receipt, usage, self._model), sum(token_counts(usage).values()))
        else:
            spent = self._likely if self._held and receipt.ended != "whole" else NOTHING
        self.free()
        self._budgets.charge(self.key_id, receipt.at, spent)
        receipt.charged_usd, receipt.charged_tokens = spent
        if any(change.name == NOTICE for change in receipt.changes):
            self._budgets.noticed(self.key_id)


def notice_change() -> Change:
    return Change(NOTICE, "Said at the end of the reply that most of this key's limit is used.")
