"""Who pays: the accounts there are, which of them is free, and a valid credential for the one that is chosen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil, inf
from pathlib import Path
from typing import Any, Literal

from server.errors import ProxyError
from server.oauth import BETA, OAuthSettings, Tokens

Kind = Literal["api_key", "platform", "subscription"]
Source = Literal["own", "ant", "claude_code"]
State = Literal["ready", "resting", "sign_in_again", "off"]

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
    expires_at: float | None = None
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
            "expires_at": rfc3339(seen.expires_at),
            "last_refresh_at": rfc3339(seen.last_refresh_at),
            "last_refresh_error": seen.last_refresh_error or None,
            "priority": seen.priority,
            "shared": seen.shared,
        }


def settle(account: Account, now: float) -> Account:
    """`account` with a rest that is over taken as over."""
    raise NotImplementedError


def rfc3339(moment: float | None) -> str | None:
    raise NotImplementedError


def choose(
    accounts: Iterable[Account], now: float, *, tried: Collection[str] = (), shared_only: bool = False
) -> Account:
    """The account that pays. Raises ProxyError when none can: 401, 403, 429 or 503 with the remedy."""
    raise NotImplementedError


def guest_credential(headers: Mapping[str, str], known: Iterable[Credential], base_url: str) -> Credential | None:
    """The Anthropic credential a request brings, for this request only."""
    raise NotImplementedError


@dataclass(frozen=True)
class ClaudeCodeSettings:
    """The settings fallback_to_claude_code and claude_config_dir."""

    fallback: Literal["ask", "true", "false"] = "ask"
    config_dir: str = ""


@dataclass(frozen=True)
class AntProfile:
    """A profile of the `ant` command found on this machine, as the sign-in page offers it."""

    name: str
    active: bool
    used: bool


class Accounts:
    """The pool: tokens.json, Claude Code's file, `ant` profiles, and when each rests."""

    def __init__(
        self,
        data_dir: Path,
        *,
        base_url: str,
        oauth: OAuthSettings,
        claude_code: ClaudeCodeSettings,
        clock: Callable[[], float] = time.time,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        raise NotImplementedError

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    @property
    def warnings(self) -> list[str]:
        raise NotImplementedError

    def all(self) -> tuple[Account, ...]:
        raise NotImplementedError

    def get(self, account_id: str) -> Account:
        """Raises ProxyError 404 when there is no such account."""
        raise NotImplementedError

    def guest(self, headers: Mapping[str, str]) -> Credential | None:
        raise NotImplementedError

    async def credential(self, *, tried: Collection[str] = (), shared_only: bool = False) -> Credential:
        raise NotImplementedError

    async def after_401(self, failed: Credential) -> Credential | None:
        raise NotImplementedError

    def rest(self, account_id: str, until: float, reason: str) -> None:
        raise NotImplementedError

    def wake(self, account_id: str) -> Account:
        raise NotImplementedError

    async def add_api_key(self, api_key: str, name: str = "", base_url: str = "") -> Account:
        raise NotImplementedError

    def replaced_by(self, tokens: Tokens) -> Account | None:
        """The account that `add_oauth(tokens)` would replace."""
        raise NotImplementedError

    async def add_oauth(self, tokens: Tokens, name: str = "") -> Account:
        raise NotImplementedError

    async def use_claude_code(self, agreed: bool) -> Account | None:
        raise NotImplementedError

    def claude_code_found(self) -> bool:
        raise NotImplementedError

    async def use_ant_profile(self, profile: str) -> Account:
        raise NotImplementedError

    def ant_profiles(self) -> list[AntProfile]:
        raise NotImplementedError

    async def update(
        self,
        account_id: str,
        *,
        name: str | None = None,
        enabled: bool | None = None,
        priority: int | None = None,
        shared: bool | None = None,
    ) -> Account:
        raise NotImplementedError

    async def remove(self, account_id: str) -> None:
        raise NotImplementedError

    async def refresh(self, account_id: str) -> Account:
        raise NotImplementedError

    async def sign_out(self) -> None:
        raise NotImplementedError
