"""Logins kept valid: what tokens.json holds, and one renewal at a time, which outlives whoever asked for it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from server import oauth
from server.addresses import url_problem
from server.files import Busy, Damaged, why
from server.logs import frames
from server.oauth import InvalidGrant, OAuthSettings, Tokens, Unavailable, is_token
from server.shared_json import Document, Edit, SharedJson

logger = logging.getLogger(__name__)

VERSION = 1
AHEAD, JITTER = 300.0, 30.0  # seconds before the end at which a login is renewed; processes differ a little
IN_FLIGHT = 10.0  # a token that ends within these seconds is not sent any more
RARELY = 60.0  # seconds between two renewals of the same login ahead of its end

Entry = Mapping[str, Any]  # one account as tokens.json holds it; unknown fields stay


# ---- tokens.json: functions over the document


def check_document(document: Document) -> str:
    """Why the file must not be written ("" if it may). Raises Damaged when it is none of ours."""
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise Damaged("is not a file of sign-ins")
    if version > VERSION:
        return "tokens.json was written by a newer Tavern Proxy and is left untouched. Update this one."
    if not isinstance(document.get("accounts"), list):
        raise Damaged("is not a file of sign-ins")
    return ""


def all_entries(document: Document) -> list[Any]:
    found = document.get("accounts")
    return found if isinstance(found, list) else []


def entries(document: Document) -> dict[str, Entry]:
    """The accounts that can be used, by id, in order of adding. Others stay in the file and are left out."""
    found: dict[str, Entry] = {}
    for entry in all_entries(document):
        if is_usable(entry):
            found.setdefault(entry["id"], entry)
    return found


def is_usable(entry: Any) -> bool:
    """Whether this version understands an entry: id, kind, and what its kind is paid with."""
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or not entry["id"]:
        return False
    if not isinstance(entry.get("base_url", ""), str) or (entry.get("base_url") and url_problem(entry["base_url"])):
        return False
    match entry.get("source", "own"), entry.get("kind"):
        case "own", "api_key":
            return is_token(entry.get("api_key"))
        case "own", "subscription" | "platform":
            return is_token(entry.get("access_token"))
        case "ant", "platform":
            return isinstance(entry.get("profile"), str)
        case "claude_code", "subscription":
            return True
    return False


def with_accounts(document: Document, accounts: Iterable[Any]) -> Document:
    return {"version": VERSION, **document, "accounts": list(accounts)}


def put_entry(entry: Entry) -> Edit:
    """Add an account, or put it in the place of the one with its id."""

    def edit(document: Document) -> Document:
        old = all_entries(document)
        if any(has_id(e, entry["id"]) for e in old):
            return with_accounts(document, [entry if has_id(e, entry["id"]) else e for e in old])
        return with_accounts(document, [*old, entry])

    return edit


def change_entry(account_id: str, change: Callable[[Entry], Entry]) -> Edit:
    def edit(document: Document) -> Document:
        old = all_entries(document)
        if not any(has_id(e, account_id) for e in old):
            return document
        return with_accounts(document, [change(e) if has_id(e, account_id) else e for e in old])

    return edit


def drop_entries(ids: Iterable[str]) -> Edit:
    gone = frozenset(ids)

    def edit(document: Document) -> Document:
        old = all_entries(document)
        kept = [e for e in old if not (isinstance(e, dict) and e.get("id") in gone)]
        return document if len(kept) == len(old) else with_accounts(document, kept)

    return edit


def has_id(entry: Any, account_id: str) -> bool:
    return isinstance(entry, dict) and entry.get("id") == account_id


def tokens_in(entry: Entry) -> Tokens:
    """The login in an entry of our own."""
    refresh, scopes, details = entry.get("refresh_token"), entry.get("scopes"), entry.get("details")
    expires_at = stored_time(entry.get("expires_at"), missing=0.0)
    return Tokens(
        access_token=entry["access_token"],
        refresh_token=refresh if is_token(refresh) else "",
        expires_at=expires_at,
        ends_at=stored_time(entry.get("ends_at"), missing=inf) if is_token(refresh) else expires_at,
        scopes=tuple(s for s in scopes if isinstance(s, str)) if isinstance(scopes, list) else (),
        details=details if isinstance(details, dict) else {},
    )


def with_tokens(entry: Entry, tokens: Tokens) -> Entry:
    """An entry with another login; its refusal, if any, was the old one's."""
    kept = {name: value for name, value in entry.items() if name != "refused"}
    return {
        **kept,
        "access_token": tokens.access_token,
        "refresh_token": tokens.refresh_token,
        "expires_at": tokens.expires_at,
        "ends_at": tokens.ends_at if tokens.ends_at < inf else None,
        "scopes": list(tokens.scopes),
        "details": dict(tokens.details),
        **({"identity": tokens.identity} if tokens.identity else {}),
    }


def stored_time(value: Any, *, missing: float) -> float:
    """A point in time read from a file, in the file's own unit."""
    try:
        told = float(value)
    except (TypeError, ValueError, OverflowError):
        return missing
    return told if abs(told) < inf else missing


def fingerprint(*secrets: str) -> str:
    return hashlib.sha256("\0".join(secrets).encode("utf-8", "surrogatepass")).hexdigest()


# ---- one login


class TokenStore(Protocol):
    """Where one login is kept and how it is renewed there: our tokens.json, Claude Code's file, an `ant` profile."""

    file: SharedJson

    @property
    def remedy(self) -> str:
        """What the owner can do when the login has ended."""

    @property
    def problem(self) -> str:
        """Why the login must not be used although it may be there; "" if nothing is wrong."""

    async def look(self) -> None:
        """Take notice of what changed on the disk."""

    def read(self) -> Tokens | None:
        """The login as last seen; None when there is none."""

    def put(self, spent: Tokens, new: Tokens) -> Edit:
        """Store `new` where `spent` was, unless somebody else has stored something better since."""

    async def ask(self, old: Tokens, *, repeat_lost: bool) -> Tokens:
        """Have the login renewed. Raises InvalidGrant, Unavailable."""


class OwnStore:
    """An entry of tokens.json."""

    def __init__(self, file: SharedJson, account_id: str, settings: OAuthSettings, clock: Callable[[], float]) -> None:
        self.file = file
        self.remedy = "Sign in again."
        self.problem = ""
        self._id = account_id
        self._settings = settings
        self._clock = clock

    async def look(self) -> None:
        await self.file.look()

    def read(self) -> Tokens | None:
        entry = entries(self.file.document).get(self._id)
        return tokens_in(entry) if entry else None

    def put(self, spent: Tokens, new: Tokens) -> Edit:
        at = self._clock()

        def change(entry: Entry) -> Entry:
            if entry.get("refresh_token") != spent.refresh_token:
                return entry  # the owner signed in again meanwhile
            return {**with_tokens(entry, new), "last_refresh_at": at}

        return change_entry(self._id, change)

    async def ask(self, old: Tokens, *, repeat_lost: bool) -> Tokens:
        if self.file.closed:
            raise Unavailable(self.file.closed)  # the new tokens could not be kept
        if not old.refresh_token:
            raise InvalidGrant("it came without a refresh token")
        return await oauth.refresh(self._settings, old, clock=self._clock, repeat_lost=repeat_lost)


@dataclass(frozen=True)
class Pause:
    """The wait after failures in a row: 1, 4, 16, then 60 s, which makes 8 tries in 5 minutes; longer if asked to."""

    failures: int = 0
    since: float = 0.0
    wait: float = 0.0

    def after_failure(self, now: float, asked: float = 0.0) -> Pause:
        return Pause(self.failures + 1, now, max(min(4.0**self.failures, 60.0), asked))

    def left(self, now: float) -> float:
        """Seconds still to wait; none when the clock was set back, for nobody knows how far."""
        rest = self.since + self.wait - now
        return rest if 0 < rest <= self.wait else 0.0


class Login:
    """One login and its renewals.

    A request never renews anything itself: it asks, and waits if it must. The renewal is a task of its own, shielded:
    a front end that hangs up would else cancel it after the server has spent the refresh token, and the login is lost.
    """

    def __init__(self, store: TokenStore, clock: Callable[[], float], ended: Callable[[Tokens, str], None]) -> None:
        self.store = store
        self.pause = Pause()
        self.error = ""  # why the last renewal failed
        self.renewed_at: float | None = None
        self._clock = clock
        self._ended = ended  # told once when the server's final word has come
        self._refused = ""  # an access token the upstream answered with 401
        self._ahead = AHEAD + random.uniform(-JITTER, JITTER)
        self._task: asyncio.Task[Tokens] | None = None

    def forget_troubles(self) -> None:
        """The owner wants it tried again, or has signed in anew."""
        self.pause, self.error, self._refused = Pause(), "", ""

    @property
    def running(self) -> asyncio.Task[Tokens] | None:
        return self._task

    async def valid(self) -> Tokens:
        """Tokens good for a request now. Valid ones are used at once; a renewal ahead of their end goes on beside.

        Raises InvalidGrant, Unavailable.
        """
        tokens = self.store.read()
        if tokens is None:
            raise InvalidGrant("the login is no longer there")
        if not self.is_good(tokens):
            return await self.renewed(tokens.access_token)
        if self.is_due(tokens):
            _ = self._begin(tokens.access_token)  # nobody waits for it
        return tokens

    async def renewed(self, stale: str, *, at_once: bool = False) -> Tokens:
        """Tokens other than `stale`: one renewal for everybody who asks meanwhile. `at_once` is for the owner's button
        and does not mind the pause after failures. Raises InvalidGrant, Unavailable."""
        tokens = await self._join(stale, at_once)
        if tokens.access_token == stale:  # that renewal had begun for an older token, and ended in this very one
            tokens = await self._join(stale, at_once)
        return tokens

    async def refused(self, stale: str) -> Tokens:
        """After a 401 although `stale` should be valid: other tokens. Raises InvalidGrant, Unavailable."""
        self._refused = stale
        return await self.renewed(stale)

    async def keep_ahead(self) -> None:
        """Renew if the end is near. What goes wrong is noted in `error` and `pause`, or told to the pool."""
        tokens = self.store.read()
        if tokens and (self.is_due(tokens) or not self.is_good(tokens)) and not self.pause.left(self._clock()):
            await asyncio.wait([self._begin(tokens.access_token)])

    def is_good(self, tokens: Tokens) -> bool:
        return tokens.access_token != self._refused and tokens.expires_at > self._clock() + IN_FLIGHT

    def is_due(self, tokens: Tokens) -> bool:
        now = self._clock()
        just_now = self.renewed_at is not None and 0 <= now - self.renewed_at < RARELY
        return tokens.expires_at - now < self._ahead and not just_now and not self.pause.left(now)

    async def _join(self, stale: str, at_once: bool) -> Tokens:
        if not self._task and not at_once and (left := self.pause.left(self._clock())):
            raise Unavailable(self.error, retry_after=left)
        return await asyncio.shield(self._begin(stale))

    def _begin(self, stale: str) -> asyncio.Task[Tokens]:
        if self._task is None:
            self._task = asyncio.create_task(self._renew(stale))
            self._task.add_done_callback(self._finish)
        return self._task

    def _finish(self, task: asyncio.Task[Tokens]) -> None:
        self._task = None
        if task.cancelled():
            return
        error = task.exception()  # looking at it also says that somebody did
        if error and not isinstance(error, (InvalidGrant, Unavailable)):
            logger.error("Renewing a login failed unexpectedly: %s", frames(error))

    async def _renew(self, stale: str) -> Tokens:
        """Lock, reload, look again, renew, save before use, release."""
        file = self.store.file
        spent: Tokens | None = None
        try:
            async with file.lock():
                await file.reload(mend=True)
                spent = self.store.read()
                if spent is None:
                    raise InvalidGrant("the login is no longer there")
                if spent.access_token != stale and self.is_good(spent):
                    tokens = spent  # another process has renewed it
                else:
                    tokens = await self._ask(spent)
        except Busy:
            raise self._failed(Unavailable("another process keeps the file of the login locked")) from None
        except OSError as error:
            raise self._failed(Unavailable(f"{file.path} cannot be locked: {why(error)}")) from None
        except Unavailable as error:
            raise self._failed(error) from None
        except InvalidGrant as error:
            self.error = str(error)
            if spent:
                self._ended(spent, str(error))
            raise
        self.pause, self.error, self.renewed_at = Pause(), "", self._clock()
        return tokens

    async def _ask(self, spent: Tokens) -> Tokens:
        """Renew `spent` and save what comes of it, with the lock held."""
        file = self.store.file
        try:
            new = await self.store.ask(spent, repeat_lost=not self.pause.failures)
        except InvalidGrant:
            await file.reload()  # a program that does not know our lock may have renewed it first
            now = self.store.read()
            if now and now.refresh_token != spent.refresh_token:
                if self.is_good(now):
                    return now
                raise Unavailable("another program is renewing the same login") from None
            raise
        file.edit(self.store.put(spent, new))
        await file.save_locked()  # when it fails, the edit stays in memory and is saved later
        tokens = self.store.read() or new
        if tokens.access_token == self._refused:
            raise InvalidGrant("it was refused, and renewing it gave the same token again")
        return tokens

    def _failed(self, error: Unavailable) -> Unavailable:
        self.error = str(error)
        self.pause = self.pause.after_failure(self._clock(), error.retry_after)
        logger.warning("A login could not be renewed: %s. Next try in %.0f s.", error, self.pause.wait)
        return Unavailable(str(error), retry_after=self.pause.wait)
