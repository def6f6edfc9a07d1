"""Signing in with a subscription: OAuth with PKCE, from the page to open to the tokens it ends in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.errors import ProxyError
from server.oauth import OAuthSettings, Tokens

Why = Literal["unknown", "expired", "used", "other_browser", "denied", "wrong_code", "refused", "unreachable"]


class SignInFailed(ProxyError):
    """A sign-in that did not work out; `why` lets the page choose its picture, the message is for the person."""

    def __init__(self, why: Why, message: str, status: int = 400) -> None:
        super().__init__(status, message)
        self.why = why


@dataclass(frozen=True)
class Attempt:
    """A sign-in under way: the page to open, and the state that comes back with the code."""

    authorize_url: str
    state: str


def split_code(pasted: str) -> tuple[str, str]:
    """(code, state) of what the person pasted: `code#state`, a bare code, or the whole address of the callback."""
    raise NotImplementedError


class SignIn:
    """Sign-ins under way: state → verifier, bound to a browser, used once, good for 10 minutes and over a restart."""

    def __init__(self, data_dir: Path, settings: OAuthSettings, clock: Callable[[], float] = time.time) -> None:
        raise NotImplementedError

    def start(self, browser: str) -> Attempt:
        """A new attempt of this browser (any text the page keeps in a cookie)."""
        raise NotImplementedError

    async def finish(self, code: str, state: str, browser: str | None) -> Tokens:
        """The tokens for a code. Raises SignInFailed. `browser=None`: the owner's session vouches for it."""
        raise NotImplementedError

    def deny(self, error: str, state: str) -> SignInFailed:
        """What to say when the authorize page sent an error back instead of a code; ends the attempt."""
        raise NotImplementedError
