"""Signing in with a subscription: OAuth with PKCE, from the page to open to the tokens it ends in."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from server.addresses import is_loopback
from server.errors import ProxyError
from server.files import Damaged, read_json_file, write_private
from server.oauth import InvalidGrant, OAuthSettings, Tokens, Unavailable, is_token, post, read_answer
from server.secret import same

logger = logging.getLogger(__name__)

LIFE = 600.0  # seconds an attempt may take
MOST = 20  # attempts kept; the oldest go first
AGAIN = "Start the sign-in again."

Why = Literal["unknown", "expired", "used", "other_browser", "denied", "wrong_code", "refused", "unreachable"]


class SignInFailed(ProxyError):
    """A sign-in that did not work out: `why` lets the page choose its picture, the message is for the person."""

    def __init__(self, why: Why, message: str, status: int = 400) -> None:
        super().__init__(status, message)
        self.why = why


@dataclass(frozen=True)
class Attempt:
    """A sign-in under way: the page to open, and the state that comes back with the code."""

    authorize_url: str
    state: str


@dataclass(frozen=True)
class Pending:
    """What is kept of an attempt. The browser stands here as a hash; `used` outlives its use, to say so."""

    state: str = field(repr=False)
    verifier: str = field(repr=False)
    browser: str
    ends_at: float
    used: bool = False


# ---- functions over values


def new_secret() -> str:
    """256 random bits as 43 unreserved characters: a PKCE verifier (RFC 7636 §4.1), or a state."""
    return secrets.token_urlsafe(32)


def challenge(verifier: str) -> str:
    """The S256 challenge of a verifier (RFC 7636 §4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest()).rstrip(b"=").decode("ascii")


def authorize_url(settings: OAuthSettings, state: str, verifier: str) -> str:
    """The page to open. `code=true` asks for the page that shows the code; a loopback redirect needs none."""
    shows_code = {} if is_loopback(urlsplit(settings.redirect_uri).hostname or "") else {"code": "true"}
    query = {
        **shows_code,
        "client_id": settings.client_id,
        "response_type": "code",
        "redirect_uri": settings.redirect_uri,
        "scope": settings.scopes,
        "code_challenge": challenge(verifier),
        "code_challenge_method": "S256",
        "state": state,
    }
    return f"{settings.authorize_url}?{urlencode(query, quote_via=quote)}"


def exchange_fields(settings: OAuthSettings, code: str, pending: Pending) -> dict[str, str]:
    """What turns a code into tokens; this endpoint wants the state too."""
    return {
        "grant_type": "authorization_code",
        "code": code,
        "state": pending.state,
        "client_id": settings.client_id,
        "redirect_uri": settings.redirect_uri,
        "code_verifier": pending.verifier,
    }


def split_code(pasted: str) -> tuple[str, str]:
    """(code, state) of what was pasted: `code#state`, a bare code, or the whole address of the callback; blanks and
    line breaks, as a copied line brings them, are dropped."""
    text = "".join(pasted.split())
    if text.startswith(("http://", "https://")):
        try:
            query = parse_qs(urlsplit(text).query)
        except ValueError:
            return "", ""
        code, _, state = query.get("code", [""])[0].partition("#")
        return code, state or query.get("state", [""])[0] or urlsplit(text).fragment
    code, _, state = text.partition("#")
    return code, state


def find(pending: Iterable[Pending], state: str) -> Pending | None:
    found = None
    for attempt in pending:
        if same(attempt.state, state):
            found = attempt
    return found


def check(attempt: Pending | None, browser: str | None, now: float) -> Pending:
    """The attempt, if it may be redeemed now. Raises SignInFailed."""
    if attempt is None:
        raise SignInFailed("unknown", f"This code belongs to no sign-in that was started here. {AGAIN}")
    if browser is not None and not same(attempt.browser, hashed(browser)):
        raise SignInFailed("other_browser", f"This sign-in was started in another browser. {AGAIN}", 403)
    if attempt.used:
        raise SignInFailed("used", f"This code was used already. If you are not signed in: {AGAIN.lower()}")
    if now >= attempt.ends_at:
        raise SignInFailed("expired", f"This sign-in took longer than ten minutes and has expired. {AGAIN}")
    return attempt


def still_kept(attempts: Iterable[Pending], now: float) -> list[Pending]:
    """Those worth remembering: the newest ones, until as long after their end as they lived."""
    kept = [a for a in attempts if a.ends_at - LIFE - 60 <= now < a.ends_at + LIFE]
    return sorted(kept, key=lambda a: a.ends_at)[-MOST:]


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def pending_of(stored: Any) -> Pending | None:
    """An attempt as the file holds it; None for anything else."""
    kinds = {"state": str, "verifier": str, "browser": str, "ends_at": float, "used": bool}
    if not isinstance(stored, Mapping) or not all(isinstance(stored.get(key), kind) for key, kind in kinds.items()):
        return None
    return Pending(**{key: stored[key] for key in kinds})


# ---- attempts under way


class SignIn:
    """Sign-ins under way: state → verifier, bound to a browser, used once, good for 10 minutes and over a restart."""

    def __init__(self, data_dir: Path, settings: OAuthSettings, clock: Callable[[], float] = time.time) -> None:
        self._path = data_dir.expanduser() / "signin.json"
        self._settings = settings
        self._clock = clock
        self._attempts: dict[str, Pending] = {}  # by state; the file is for the next start

    def start(self, browser: str) -> Attempt:
        """A new attempt of this browser (any text the page keeps in a cookie)."""
        pending = Pending(new_secret(), new_secret(), hashed(browser), self._clock() + LIFE)
        self._keep(pending)
        return Attempt(authorize_url(self._settings, pending.state, pending.verifier), pending.state)

    async def finish(self, code: str, state: str, browser: str | None) -> Tokens:
        """The tokens for a code. `browser` is the cookie that came with it ("" if none did); None when the owner's own
        session vouches for it.

        The attempt counts as used before its code is sent, so that no code is ever sent twice; only when nothing was
        sent at all (no connection) may it be tried again. Raises SignInFailed.
        """
        attempt = check(find(self._known(), state), browser, self._clock())
        if not is_token(code):
            raise SignInFailed("wrong_code", "This is not a whole code. Copy everything the page shows, # included.")
        self._keep(replace(attempt, used=True))
        fields = exchange_fields(self._settings, code, attempt)
        try:
            answer = await post(self._settings.token_url, fields, deadline=self._settings.deadline)
            return read_answer(answer, self._clock())
        except InvalidGrant:
            raise SignInFailed("wrong_code", f"Claude does not accept this code. {AGAIN}") from None
        except Unavailable as error:
            if not error.sent and not error.status:
                self._keep(attempt)
                raise SignInFailed(
                    "unreachable",
                    "Claude's sign-in server cannot be reached. Check your connection and try again.",
                    503,
                ) from None
            if 400 <= error.status < 500 and error.status != 429:
                raise SignInFailed("refused", f"The sign-in was refused: {error}. {AGAIN}") from None
            raise SignInFailed("unreachable", f"The sign-in did not work: {error}. {AGAIN}", 502) from None

    def deny(self, error: str, state: str) -> SignInFailed:
        """What to show when the authorize page sent an error back instead of a code; it ends the attempt."""
        if attempt := find(self._known(), state):
            self._keep(replace(attempt, used=True))
        if error == "access_denied":
            return SignInFailed("denied", f"You did not allow the sign-in, so nothing has changed. {AGAIN}")
        return SignInFailed("refused", f"Claude's sign-in page reported a problem. {AGAIN}")

    def _known(self) -> list[Pending]:
        """The attempts of this process, and those an earlier one left in the file."""
        try:
            stored = read_json_file(self._path).get("attempts")
        except (OSError, Damaged):  # none yet, or none any more: then the person starts again
            stored = []
        left = [p for s in (stored if isinstance(stored, list) else []) if (p := pending_of(s))]
        return still_kept(({p.state: p for p in left} | self._attempts).values(), self._clock())

    def _keep(self, attempt: Pending) -> None:
        attempts = {p.state: p for p in self._known()} | {attempt.state: attempt}
        self._attempts = {p.state: p for p in still_kept(attempts.values(), self._clock())}
        document = {"version": 1, "attempts": [asdict(p) for p in self._attempts.values()]}
        try:
            write_private(self._path, json.dumps(document).encode())
        except OSError as error:
            logger.warning("A sign-in under way could not be saved and would not outlive a restart: %s", error.strerror)
