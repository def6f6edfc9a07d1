"""The token endpoint: what it is asked, what its answers mean, and when an answer is not to be believed."""

from __future__ import annotations

from dataclasses import dataclass, field

BETA = "oauth-2025-04-20"  # asked of every request paid by an OAuth token, and of a refresh for an `ant` profile


@dataclass(frozen=True)
class OAuthSettings:
    """Where the subscription sign-in happens; all of it is config, because the hosts moved in 2026."""

    authorize_url: str
    token_url: str
    redirect_uri: str
    client_id: str
    scopes: str


@dataclass(frozen=True)
class Tokens:
    """One OAuth login: the access token with its end, and what renews it. repr hides both tokens."""

    access_token: str = field(repr=False)
    refresh_token: str = field(default="", repr=False)  # "" = cannot be renewed
    expires_at: float = 0.0  # unix seconds
    scopes: tuple[str, ...] = ()
    identity: str = ""  # "organisation uuid/account uuid" as the endpoint told them; "" = it told neither
    label: str = ""  # the account's e-mail address or the organisation's name, for the owner's eyes
