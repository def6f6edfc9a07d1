"""Who the owner is: the admin token, the one-time links that open the pages, and the session cookie."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from multidict import CIMultiDictProxy

from server.errors import ProxyError
from server.files import Damaged, mend_rights, read_private, set_aside, why, write_private
from server.secret import bearer, same

SESSION_SECONDS = 30 * 86400
MIN_TOKEN = 32  # characters of an admin token: fewer could be guessed, so such a file is not trusted
OPEN_LINKS = 64  # one-time links that may wait at once; the oldest gives way
FREE_TRIES, TRY_SECONDS, LONGEST_WAIT = 5, 60, 3600

Headers = CIMultiDictProxy[str]

ASK_THE_OWNER = (
    "This is for the owner of this proxy only. Open it with “./run.sh open” (Windows: “run.bat open”), "
    "or send the admin token as “Authorization: Bearer …”."
)


def digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def signature(admin_token: str, signed: str) -> str:
    key = hmac.digest(admin_token.encode(), b"session cookie", "sha256")
    return hmac.digest(key, signed.encode(errors="surrogatepass"), "sha256").hex()


def session_value(admin_token: str, nonce: str, now: float) -> str:
    """A session as its cookie carries it: end, random id, signature. Nothing is kept here, so it outlives a restart."""
    signed = f"{int(now) + SESSION_SECONDS}.{nonce}"
    return f"{signed}.{signature(admin_token, signed)}"


def session_is_good(value: str, admin_token: str, now: float) -> bool:
    signed, _, signed_by = value.rpartition(".")
    if not same(signed_by, signature(admin_token, signed)):
        return False
    return now < int(signed.partition(".")[0])  # ours, as the signature has shown


def cookies_of(headers: Headers) -> str:
    """All `Cookie` headers of a request as one."""
    return "; ".join(headers.getall("cookie", ()))


def cookies_named(name: str, header: str) -> Iterator[str]:
    """Every value of a cookie. A page on another localhost port can put a cookie of ours beside the right one (cookies
    ignore ports), and the browser sends both: none of them hides another here."""
    for pair in header.split(";"):
        found, _, value = pair.strip().partition("=")
        if found == name:
            yield value


@dataclass(frozen=True)
class Tries:
    """Wrong tokens lately. Five a minute get their 401; then come waits of 1, 2, 4 … 60 minutes."""

    lately: tuple[float, ...] = ()
    blocked_until: float = 0
    wait: float = 0

    def after_a_wrong_one(self, now: float) -> Tries:
        if now < self.blocked_until:
            return self
        lately = tuple(t for t in self.lately if 0 <= now - t < TRY_SECONDS)
        if len(lately) < FREE_TRIES:
            return replace(self, lately=(*lately, now))
        earlier = self.wait if now - self.blocked_until < LONGEST_WAIT else 0
        wait = min(max(earlier * 2, TRY_SECONDS), LONGEST_WAIT)
        return Tries(lately, now + wait, wait)

    def refusal(self, now: float, words: str) -> ProxyError:
        """401 with these words, or 429 while wrong tokens have to wait."""
        seconds = int(self.blocked_until - now) + 1
        if now >= self.blocked_until:
            return ProxyError(401, words, headers={"www-authenticate": "Bearer"})
        return ProxyError(
            429,
            f"Too many wrong tokens. The next try counts in {seconds} s; the right one works at once.",
            headers={"retry-after": str(seconds)},
        )


def read_or_make_admin_token(path: Path, now: float) -> tuple[str, list[str]]:
    """The admin token in a private file, made if there is none; and what the owner should know about it."""
    warnings = []
    try:
        token = read_private(path).decode(errors="replace").strip()
        if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise Damaged("holds no safe token")
        return token, mend_rights(path)
    except FileNotFoundError:
        pass
    except Damaged as error:
        warnings.append(f"{path.name} {error}: a new one was made, and links and browsers have to sign in again.")
    except OSError as error:
        warnings.append(f"{path} cannot be read ({why(error)}): a new admin token is used until the next start.")
        return secrets.token_urlsafe(32), warnings
    token = secrets.token_urlsafe(32)
    try:
        if warnings:
            set_aside(path, now)
        write_private(path, f"{token}\n".encode())
    except OSError as error:
        warnings.append(f"{path} cannot be written ({why(error)}): “run.sh open” will not work until it can.")
    return token, warnings


class Owner:
    """Knows the owner by admin token, one-time link or session cookie. Built once in app.py."""

    def __init__(self, admin_token: str, port: int, clock: Callable[[], float] = time.time) -> None:
        self.admin_token = admin_token
        self.cookie_name = f"tavern_{port}"  # cookies ignore ports: another proxy on this machine has another name
        self.warnings: list[str] = []
        self._clock = clock
        self._tries = Tries()
        self._open_links: deque[str] = deque(maxlen=OPEN_LINKS)
        self._spent_links: deque[str] = deque(maxlen=OPEN_LINKS)

    @classmethod
    def at(cls, data_dir: Path, port: int, clock: Callable[[], float] = time.time) -> Owner:
        """The owner whose admin token lies in `data_dir`; made there at the first start."""
        token, warnings = read_or_make_admin_token(data_dir / "admin_token", clock())
        owner = cls(token, port, clock)
        owner.warnings += warnings
        return owner

    def new_link_token(self) -> str:
        """The token of a link that signs the owner in once: /auth/login?token=…"""
        token = secrets.token_urlsafe(32)
        self._open_links.append(digest(token))
        return token

    def redeem_link(self, token: str) -> Literal["good", "spent"]:
        """Uses a link up. Raises ProxyError 401 (429 after many) for one that never was."""
        hashed = digest(token)
        if hashed in self._open_links:
            self._open_links.remove(hashed)
            self._spent_links.append(hashed)
            return "good"
        if hashed in self._spent_links:
            return "spent"
        raise self._wrong("This link is not one of this proxy's, or is from before its last start.")

    def new_session(self) -> str:
        """A fresh value for the session cookie."""
        return session_value(self.admin_token, secrets.token_urlsafe(16), self._clock())

    def session(self, cookies: str) -> str:
        """The session that a `Cookie` header carries, or ""."""
        now = self._clock()
        values = cookies_named(self.cookie_name, cookies)
        return next((value for value in values if session_is_good(value, self.admin_token, now)), "")

    def refusal(self, cookies: str, authorization: str) -> ProxyError | None:
        """None for the owner, else the error: 401, or 429 after many wrong tokens."""
        if self.session(cookies):
            return None
        if not authorization:
            return ProxyError(401, ASK_THE_OWNER, headers={"www-authenticate": "Bearer"})
        if same(bearer(authorization), self.admin_token):
            return None
        return self._wrong(ASK_THE_OWNER)

    def _wrong(self, words: str) -> ProxyError:
        now = self._clock()
        self._tries = self._tries.after_a_wrong_one(now)
        return self._tries.refusal(now, words)
