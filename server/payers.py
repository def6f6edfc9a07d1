"""Who may pay, as values: an account as it stands at a moment, a credential, and the choice among accounts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import ceil, inf
from typing import Any, Literal

from server.days import rfc3339, span, time_of_day
from server.errors import ProxyError
from server.health import Gauge, Strain, public_gauge
from server.oauth import BETA, is_token
from server.secret import presented, same

Kind = Literal["api_key", "platform", "subscription"]
Source = Literal["own", "ant", "claude_code"]
State = Literal["ready", "resting", "sign_in_again", "off"]
Choice = Literal["sticky", "priority", "round_robin"]
KINDS: tuple[Kind, ...] = ("api_key", "platform", "subscription")

WARNED_AHEAD = 7 * 86_400.0  # seconds before a login ends for good
OPEN_PAGE = "Open the proxy's page in your browser (./run.sh open)"


@dataclass(frozen=True)
class Credential:
    """What one attempt at the upstream is paid with. repr hides the secret."""

    kind: Kind
    secret: str = field(repr=False)
    base_url: str  # scheme://host[:port][/path], no trailing slash
    account_id: str = ""  # "" = brought by the request itself: serves that request only
    workspace_id: str = ""  # of an `ant` profile
    renewed: bool = False  # the answer to a 401: refused once more, its account is set aside
    name: str = "the request's own key"  # of one that is no account's

    def headers(self) -> dict[str, str]:
        """Exactly one of `x-api-key` and `authorization`, and the workspace of an `ant` profile."""
        if self.kind == "api_key":
            return {"x-api-key": self.secret}
        workspace = {"anthropic-workspace-id": self.workspace_id} if self.workspace_id else {}
        return {"authorization": f"Bearer {self.secret}", **workspace}

    @property
    def betas(self) -> tuple[str, ...]:
        return () if self.kind == "api_key" else (BETA,)


@dataclass(frozen=True)
class Account:
    """One account as it stands at this moment: a value, built anew at each look."""

    id: str
    name: str
    kind: Kind
    source: Source = "own"
    base_url: str = ""  # "" = the setting api_base_url
    priority: int = 0  # lower goes first
    enabled: bool = True
    shared: bool = False  # may serve client keys; never true for a subscription
    state: State = "ready"
    reason: str = ""  # why it is not ready, in words for the owner
    rests_until: float | None = None  # unix seconds; inf = until the owner wakes it
    may_be_over: bool = False  # its rest: one request may see
    strain: Strain = ""  # why others of its priority go first
    gauges: tuple[Gauge, ...] = ()
    expires_at: float | None = None
    ends_at: float | None = None  # when its login is over for good; inf: not known
    last_refresh_at: float | None = None
    last_refresh_error: str = ""
    identity: str = ""
    ends_with: str = ""  # the last four characters of an API key

    def public(self, now: float) -> dict[str, Any]:
        """The row of GET /api/accounts: times as RFC 3339 or null, never a secret."""
        seen = settle(self, now)
        return {
            "id": seen.id,
            "name": seen.name,
            "kind": seen.kind,
            "source": seen.source,
            "base_url": seen.base_url,
            "ends_with": seen.ends_with,
            "enabled": seen.enabled,
            "state": seen.state,
            "reason": seen.reason or None,
            "rests_until": rfc3339(seen.rests_until),
            "strain": seen.strain or None,
            "limits": [public_gauge(one, rfc3339(one.resets_at)) for one in seen.gauges],
            "expires_at": rfc3339(seen.expires_at),
            "ends_at": rfc3339(seen.ends_at),
            "ends_soon": seen.ends_at is not None and seen.ends_at - now <= WARNED_AHEAD,
            "last_refresh_at": rfc3339(seen.last_refresh_at),
            "last_refresh_error": seen.last_refresh_error or None,
            "priority": seen.priority,
            "shared": seen.shared,
        }


def settle(account: Account, now: float) -> Account:
    """`account` with a rest that is over taken as over."""
    if account.state == "resting" and account.rests_until is not None and account.rests_until <= now:
        return replace(account, state="ready", reason="", rests_until=None)
    return account


def choose(
    accounts: Iterable[Account],
    now: float,
    *,
    tried: Collection[str] = (),
    shared_only: bool = False,
    choice: Choice = "sticky",
    conversation: str = "",
    turn: int = 0,
) -> Account:
    """The account that pays: of those that are ready the ones with the lowest priority, Claude Code's login last. Of
    these an account goes first that neither failed lately nor is nearly used up; then `choice` decides.

    `sticky`: a conversation keeps its account while it can, for the prompt cache lives there. Conversations spread by
    rendezvous hashing, so that an account that comes or goes moves no conversation of the others. `round_robin`: by
    `turn`. Else, and for what is no conversation, the one added first.
    When all rest, one whose quota may be back early. `shared_only` is for client keys: a subscription serves its owner
    alone. Raises ProxyError with the remedy when none can pay.
    """
    allowed = [settle(a, now) for a in accounts if not shared_only or (a.shared and a.kind != "subscription")]
    free = [a for a in allowed if a.state == "ready" and a.id not in tried]
    if not free:
        early = [a for a in allowed if a.state == "resting" and a.may_be_over and a.id not in tried]
        if not early:
            raise nobody_pays(allowed, now, shared_only=shared_only)
        return min(early, key=lambda a: a.rests_until or inf)
    first = min(rank(a) for a in free)
    equal = [a for a in free if rank(a) == first]
    calm = [a for a in equal if not a.strain] or equal
    if choice == "sticky" and conversation:
        return max(calm, key=lambda a: sha256(f"{conversation}/{a.id}".encode()).digest())
    return calm[turn % len(calm)] if choice == "round_robin" else calm[0]


def rank(account: Account) -> tuple[bool, int]:
    """The lowest goes first."""
    return account.source == "claude_code", account.priority


def nobody_pays(accounts: Collection[Account], now: float, *, shared_only: bool) -> ProxyError:
    """Why none of the accounts can pay, and what to do. No name and no address in it: client keys read it too."""
    states = {a.state for a in accounts}
    if "ready" in states:
        return ProxyError(503, "No account could serve this request. Try again in a moment.")
    if "resting" in states:
        return all_rest(min(a.rests_until or inf for a in accounts if a.state == "resting"), now)
    if shared_only and not accounts:
        return ProxyError(
            403, "The owner of this proxy shares no account with client keys. Ask them for another way in."
        )
    refused = {a.kind for a in accounts if a.state == "sign_in_again"}
    if refused == {"api_key"}:
        return ProxyError(401, f"The saved API key is no longer accepted. {OPEN_PAGE} and add a valid one.")
    if refused:
        return ProxyError(401, f"Claude no longer accepts the saved sign-in. {OPEN_PAGE} and sign in again.")
    if "off" in states:
        return ProxyError(401, f"Every account is switched off. {OPEN_PAGE} and switch one on.")
    return ProxyError(401, f"Nobody is signed in yet. {OPEN_PAGE} and sign in.")


def all_rest(until: float, now: float) -> ProxyError:
    if until == inf:
        return ProxyError(
            402,
            "The credit or spend limit of every account is used up. Raise it in the Anthropic Console, "
            "then press “Try again now” on the proxy's page (./run.sh open).",
        )
    wait = ceil(until - now)
    return ProxyError(
        429,
        f"Every account has reached its limit. The first is free again at {time_of_day(until, now)} (in {span(wait)}).",
        headers={"retry-after": str(wait)},
    )


def renew_later(wait: float) -> ProxyError:
    seconds = max(1, ceil(wait))
    return ProxyError(
        503,
        f"The sign-in has run out and could not be renewed just now. It is kept; try again in {seconds} s.",
        headers={"retry-after": str(seconds)},
    )


def guest_credential(headers: Mapping[str, str], known: Iterable[Credential], base_url: str) -> Credential | None:
    """The Anthropic credential (`sk-ant-…`) a request brings in `x-api-key`, or else as a Bearer token.

    It serves that request only. An access token that is one of ours (`known`) is used as that account would use it;
    another one counts as a subscription's. Anything else, "anything" included, is None. Raises ProxyError 401 for what
    is meant as a credential but cannot be one.
    """
    secret = next((text for text in presented(headers) if text.startswith("sk-ant-")), None)
    if secret is None:
        return None
    if not is_token(secret) or secret.startswith("sk-ant-ort"):
        raise ProxyError(
            401, "The Anthropic key in the password field cannot be one. Copy it again, or clear the field."
        )
    if not secret.startswith("sk-ant-oat"):
        return Credential("api_key", secret, base_url)
    for credential in known:
        if same(secret, credential.secret):
            return replace(credential, account_id="", renewed=False)
    return Credential("subscription", secret, base_url)
