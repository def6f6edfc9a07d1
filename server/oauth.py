"""The token endpoint: what it is asked, what its answers mean, and when an answer is not to be believed."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

from server import __version__
from server.addresses import url_problem
from server.days import moment

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

BETA = "oauth-2025-04-20"  # asked of every request paid by an OAuth token, and of a refresh for an `ant` profile

USUAL_LIFE, LONGEST_LIFE, SHORTEST_LIFE = 3600.0, 366 * 86400.0, 60.0  # seconds of an access token
LARGEST_ANSWER = 1 << 20
NOT_DETAILS = {"access_token", "refresh_token", "expires_in", "refresh_token_expires_in", "scope", "error"}


@dataclass(frozen=True)
class OAuthSettings:
    """Where the subscription sign-in happens; all of it is config, because the hosts moved in 2026."""

    authorize_url: str
    token_url: str
    redirect_uri: str
    client_id: str
    scopes: str
    deadline: float = 12.0  # seconds for one call of the token endpoint, so that a repeated one fits into LOCK_WAIT


@dataclass(frozen=True)
class Tokens:
    """One OAuth login: the access token with its end, and what renews it. repr hides both tokens."""

    access_token: str = field(repr=False)
    refresh_token: str = field(default="", repr=False)  # "" = cannot be renewed
    expires_at: float = 0.0  # unix seconds, of the access token
    scopes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)  # what else the endpoint told
    ends_at: float = math.inf  # unix seconds, when nothing can renew it any more; inf = not known

    @property
    def identity(self) -> str:
        """Whose login it is: organisation and account, as the endpoint names them; "" if it named neither."""
        uuids = [str(part(self.details, name).get("uuid") or "") for name in ("organization", "account")]
        return "/".join(uuids) if any(uuids) else ""

    @property
    def label(self) -> str:
        """The account's e-mail address or the organisation's name, for the owner's eyes; "" if unknown."""
        told = part(self.details, "account").get("email_address") or part(self.details, "organization").get("name")
        return told if isinstance(told, str) and told.isprintable() and len(told) <= 100 else ""

    @property
    def may_chat(self) -> bool:
        return not self.scopes or "user:inference" in self.scopes


class InvalidGrant(Exception):
    """The endpoint's final word: this refresh token, or code, is not accepted any more."""


class Unavailable(Exception):
    """No answer to act upon, for the reason in the words: nothing is lost, and later may be better."""

    def __init__(self, words: str, *, sent: bool = False, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(words)
        self.sent = sent  # the endpoint may have acted on it, and the answer is lost
        self.status = status
        self.retry_after = retry_after  # seconds, as the endpoint asks


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = field(repr=False)
    retry_after: str = ""


def read_answer(answer: Answer, now: float, old: Tokens | None = None) -> Tokens:
    """The tokens in an answer of the token endpoint, what it leaves out taken from `old`.

    Raises InvalidGrant for that error in a 4xx (RFC 6749 §5.2; only this one is final), Unavailable for everything else
    that is not a good answer.
    """
    try:
        told = json.loads(answer.body)
    except (ValueError, RecursionError):
        told = None
    told = told if isinstance(told, dict) else {}
    if answer.status != 200 or told.get("error"):
        words = error_words(told)
        if error_name(told) == "invalid_grant" and 400 <= answer.status < 500:
            raise InvalidGrant(words or "invalid_grant")
        raise Unavailable(
            f"the sign-in server answered {answer.status}{words and ': '}{words}",
            status=answer.status,
            retry_after=seconds(answer.retry_after, now),
        )
    access, refresh = told.get("access_token"), told.get("refresh_token")
    if not is_token(access):
        raise Unavailable("the sign-in server sent an answer without a usable token", status=answer.status)
    scope, expires_at = told.get("scope"), now + life(told.get("expires_in"))
    kept = old.refresh_token if old else ""
    renewed = refresh if is_token(refresh) else kept
    ends_at = now + renewable_for(told) if renewed else expires_at
    return Tokens(
        access_token=access,
        refresh_token=renewed,
        expires_at=expires_at,
        ends_at=old.ends_at if old and renewed == kept and ends_at == math.inf else ends_at,
        scopes=tuple(scope.split()) if isinstance(scope, str) and scope.split() else (old.scopes if old else ()),
        details={
            **(old.details if old else {}),
            **{name: value for name, value in told.items() if name not in NOT_DETAILS},
        },
    )


def life(expires_in: Any) -> float:
    """Seconds an access token lives: an hour if it does not say; never below a minute, so that none is renewed twice a
    minute, and never beyond a year."""
    if isinstance(expires_in, bool) or not isinstance(expires_in, (int, float, str)):
        return USUAL_LIFE
    try:
        told = float(expires_in)
    except (ValueError, OverflowError):
        return LONGEST_LIFE if isinstance(expires_in, int) and expires_in > 0 else USUAL_LIFE
    return USUAL_LIFE if math.isnan(told) else min(max(told, SHORTEST_LIFE), LONGEST_LIFE)


def renewable_for(told: Mapping[str, Any]) -> float:
    """Seconds for which an answer's refresh token is good; inf where it does not say, or nothing sensible."""
    try:
        left = float(told["refresh_token_expires_in"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return math.inf
    return left if left > 0 else math.inf


def is_token(value: Any) -> TypeGuard[str]:
    """Whether it can stand in a header: visible ASCII, without blanks."""
    if not isinstance(value, str) or not 0 < len(value) <= 16384:
        return False
    return value.isascii() and value.isprintable() and " " not in value


def error_name(told: Mapping[str, Any]) -> str:
    """The `error` of RFC 6749, or the `type` within Anthropic's own error shape."""
    error = told.get("error")
    name = error.get("type") if isinstance(error, dict) else error
    return name if isinstance(name, str) else ""


def error_words(told: Mapping[str, Any]) -> str:
    """What the endpoint says went wrong: one short line, without anything that could be a token."""
    for words in (told.get("error_description"), part(told, "error").get("message"), error_name(told)):
        if isinstance(words, str) and words.strip():
            line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
            return re.sub(r"[\w~+/=-]{24,}|sk-ant-\S+", "…", line)[:200]
    return ""


def seconds(retry_after: str, now: float) -> float:
    """A `retry-after` header as seconds from now, at most an hour."""
    until = moment(retry_after, now)
    return 0.0 if until is None else min(max(until - now, 0.0), 3600.0)


def part(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = told.get(name)
    return value if isinstance(value, dict) else {}


async def refresh(
    settings: OAuthSettings,
    old: Tokens,
    *,
    clock: Callable[[], float],
    repeat_lost: bool,
    headers: Mapping[str, str] | None = None,
) -> Tokens:
    """New tokens for old ones. A call whose answer got lost is repeated once, at once, with the same refresh token:
    servers that give a rotated token some grace answer again, and the others say `invalid_grant`."""
    fields = {"grant_type": "refresh_token", "refresh_token": old.refresh_token, "client_id": settings.client_id}
    ask = partial(post, settings.token_url, fields, deadline=settings.deadline, headers=headers)
    try:
        answer = await ask()
    except Unavailable as lost:
        if not (lost.sent and repeat_lost):
            raise
        logger.info("The sign-in server's answer got lost; asking once more.")
        answer = await ask()
    return read_answer(answer, clock(), old)


async def post(
    url: str, fields: Mapping[str, str], *, deadline: float, headers: Mapping[str, str] | None = None
) -> Answer:
    """One POST of JSON within the deadline, following no redirect and no proxy variable. Raises Unavailable."""
    if problem := url_problem(url):
        raise Unavailable(f"the address of the sign-in server {problem}")
    client = await asyncio.to_thread(new_client, deadline)  # the import, and reading the certificates, take their time
    import httpx2

    sent = {"user-agent": f"tavern-proxy/{__version__}", "accept-encoding": "identity", **(headers or {})}
    try:
        async with asyncio.timeout(deadline), client.stream("POST", url, json=fields, headers=sent) as response:
            body = b""
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > LARGEST_ANSWER:
                    raise Unavailable("the sign-in server's answer is far too long", status=response.status_code)
            return Answer(response.status_code, body, response.headers.get("retry-after", ""))
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.LocalProtocolError) as error:
        raise Unavailable(f"the sign-in server cannot be reached ({type(error).__name__})") from None
    except (httpx2.HTTPError, TimeoutError) as error:
        raise Unavailable(f"the sign-in server's answer got lost ({type(error).__name__})", sent=True) from None
    finally:
        await client.aclose()


def new_client(deadline: float) -> httpx2.AsyncClient:
    import httpx2

    limits = httpx2.Timeout(deadline, connect=0.4 * deadline)
    return httpx2.AsyncClient(timeout=limits, follow_redirects=False, trust_env=False)
