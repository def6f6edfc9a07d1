"""What an upstream's error means for a player, and what to do: one sentence behind the upstream's own words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from server.days import moment, time_of_day

NOT_FOR_APPS = (
    "Anthropic does not allow subscription sign-ins here: use an API key or an `ant` login on the proxy's sign-in page."
)


@dataclass(frozen=True)
class Refusal:
    """An upstream's error as it came: status, error.type, words, error.details.error_code, headers."""

    status: int
    type: str
    message: str
    code: str
    headers: Mapping[str, str]
    kind: str = "api_key"  # who paid
    guest: bool = False  # with a key that the request itself brought

    def says(self, *words: str) -> bool:
        low = self.message.lower()
        return all(word in low for word in words)

    @property
    def is_unpaid(self) -> bool:
        """Whether prepaid credit is used up: a 402, formerly a 400 known by its words."""
        return self.status == 402 or (self.status == 400 and self.says("credit balance is too low"))


def is_policy(refusal: Refusal) -> bool:
    """Whether a subscription sign-in was refused for being used outside Anthropic's own apps (texts seen 2025-10 to
    2026-09). Such a refusal rests no account, is not tried again, and is not worked around."""
    return refusal.status in (400, 403) and (
        refusal.says("only authorized for use with claude code")
        or refusal.says("third-party apps")
        or refusal.says("disabled claude subscription access")
        or refusal.says("oauth authentication is currently not")
    )


def remedy(refusal: Refusal, now: float) -> str:
    """The sentence that tells the player what to do; "" where the upstream's own words say it all."""
    if is_policy(refusal):
        return NOT_FOR_APPS
    if refusal.says("prompt is too long") or refusal.says("exceed context limit"):
        return too_long(refusal.message)
    if refusal.code.endswith("spend_limit_reached") or refusal.says("specified api usage limits"):
        return (
            "Your spend limit is reached: raise it in the Anthropic Console under Limits, or wait for its next month."
        )
    if refusal.is_unpaid:
        return "Add credit in the Anthropic Console under Billing, then send again."
    match refusal.status:
        case 401 if refusal.guest:
            return (
                "That is the key in your front end's password field: correct it there, or put “anything” in its place."
            )
        case 401 if refusal.kind == "api_key":
            return "The API key was refused: check it in the Console and paste it again on the proxy's sign-in page."
        case 401:
            return "The sign-in was refused: sign in again on the proxy's sign-in page."
        case 403:
            return "This account may not use that: choose another model, or sign in with another account."
        case 404 if refusal.says("model"):
            return "This model is retired or not open to this account: choose another one in your front end."
        case 413:
            return "The request is too large: remove pictures from the chat or lower the context size."
        case 429:
            return rate_limited(refusal, now)
        case 500 | 502 | 503 | 504:
            return "The trouble is on the upstream's side: send again in a moment."
        case 529:
            return "Claude is overloaded, not you: send again in a minute or choose another model."
    return ""


def closing_words(stop_reason: str | None, details: Mapping[str, object], *, spoke: bool, mode: str) -> str:
    """What is said at the end of a reply where nothing else would reach the reader; "" for nothing.

    `mode` is the setting explain_in_chat: auto speaks at refusals and blank replies, true also at replies cut short,
    false never.
    """
    if mode == "false":
        return ""
    if stop_reason == "refusal":
        why = str(details.get("explanation") or "").strip()
        return framed(f"Claude declined to answer.{f' It says: {why}' if why else ''} Reword your message, or swipe.")
    if not spoke and stop_reason == "max_tokens":
        return framed(
            "Claude used up the whole response length for thinking. "
            "Raise “Max Response Length” in SillyTavern, or lower “Reasoning Effort”."
        )
    if not spoke and stop_reason in ("end_turn", "stop_sequence"):
        return framed("Claude sent an empty reply. Swipe, or write a little more and send again.")
    if mode == "true" and stop_reason == "max_tokens":
        return framed("The reply ends here because the response length is used up. Use Continue, or raise it.")
    if mode == "true" and stop_reason == "model_context_window_exceeded":
        return framed("The reply ends here because the model's context is full. Lower the context size.")
    return ""


def framed(words: str) -> str:
    """A line of the proxy's own, marked so that nobody takes it for the model's."""
    return f"\n\n[Tavern Proxy: {words}]"


def too_long(message: str) -> str:
    numbers = [int(n) for n in re.findall(r"(\d{4,})", message)[:2]]
    if len(numbers) == 2 and numbers[0] > numbers[1]:
        over = f"It is {numbers[0] - numbers[1]:,} tokens over the limit of {numbers[1]:,}. "
    else:
        over = ""
    return f"{over}Lower “Context Size (tokens)” in SillyTavern's AI Response Configuration, or start a new chat."


def rate_limited(refusal: Refusal, now: float) -> str:
    """Which limit it was, as far as the headers tell, and the clock time at which it ends."""
    claim = refusal.headers.get("anthropic-ratelimit-unified-representative-claim", "")
    which = {"five_hour": "Your plan's 5-hour limit", "seven_day": "Your plan's weekly limit"}.get(
        claim, "This rate limit"
    )
    until = rests_until(refusal.headers, now)
    if until is None:
        return f"{which} is reached: wait a minute, then send again."
    return f"{which} ends at {time_of_day(until, now)}: send again then, or sign in with another account."


def rests_until(headers: Mapping[str, str], now: float) -> float | None:
    """When a 429's rest ends, in unix seconds: `retry-after` (seconds or HTTP date), else the unified reset (unix
    seconds), else the latest exhausted per-minute reset (RFC 3339). None when no header says."""
    if (text := headers.get("retry-after", "").strip()) and (at := moment(text, now)) is not None:
        return at
    if (text := headers.get("anthropic-ratelimit-unified-reset", "")) and (at := moment(text, now)) is not None:
        return at
    ends = [
        at
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
        if headers.get(f"anthropic-ratelimit-{what}-remaining") == "0"
        and (at := moment(headers.get(f"anthropic-ratelimit-{what}-reset", ""), now)) is not None
    ]
    return max(ends, default=None)
