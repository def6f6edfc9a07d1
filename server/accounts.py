"""Who pays: the accounts there are, which of them is free, and a valid credential for the one that is chosen."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import ceil, inf, isfinite, isnan
from pathlib import Path
from typing import Any, Literal

from server import ant, files
from server.ant import AntHome, AntProfile
from server.claude_code import ON_A_MAC, ClaudeCodeHome, credentials_file
from server.config import url_problem
from server.errors import ProxyError
from server.files import Busy, why
from server.oauth import BETA, InvalidGrant, OAuthSettings, Tokens, Unavailable, is_token
from server.shared_json import SharedJson
from server.tokens import (
    Entry,
    Login,
    OwnHome,
    Pause,
    all_entries,
    change_entry,
    check_document,
    drop_entries,
    entries,
    fingerprint,
    is_usable,
    put_entry,
    with_tokens,
)

logger = logging.getLogger(__name__)

Kind = Literal["api_key", "platform", "subscription"]
Source = Literal["own", "ant", "claude_code"]
State = Literal["ready", "resting", "sign_in_again", "off"]

CLAUDE_CODE = "acc_claude_code"  # the id of Claude Code's login, of which there is one
OPEN_PAGE = "Open the proxy's page in your browser (./run.sh open)"
LOOK_EVERY = 60.0  # seconds between two looks at all logins


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


@dataclass(frozen=True)
class Rest:
    """An account's pause. It ends at `until`, or when the clock has been set back before its beginning."""

    since: float
    until: float  # unix seconds; inf = until the owner wakes it
    reason: str

    def holds(self, now: float) -> bool:
        return self.since - 60 <= now < self.until


def longer_rest(old: Rest | None, until: float, reason: str, now: float) -> Rest:
    """The rest that follows from a new refusal: at least a second, and never shorter than the one that holds."""
    end = now + 60 if isnan(until) else max(until, now + 1)
    return old if old and old.holds(now) and old.until >= end else Rest(now, end, reason)


def settle(account: Account, now: float) -> Account:
    """`account` with a rest that is over taken as over."""
    if account.state == "resting" and account.rests_until is not None and account.rests_until <= now:
        return replace(account, state="ready", reason="", rests_until=None)
    return account


def rfc3339(moment: float | None) -> str | None:
    """A time for JSON; null also for one that no calendar holds."""
    if moment is None or not isfinite(moment):
        return None
    try:
        return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return None


def choose(
    accounts: Iterable[Account], now: float, *, tried: Collection[str] = (), shared_only: bool = False
) -> Account:
    """The account that pays: of those that are ready the one with the lowest priority, then the one added first.

    Claude Code's login comes last. `shared_only` is for client keys: a subscription serves its owner alone.
    Raises ProxyError with the remedy when none can pay.
    """
    allowed = [settle(a, now) for a in accounts if not shared_only or (a.shared and a.kind != "subscription")]
    free = [a for a in allowed if a.state == "ready" and a.id not in tried]
    if not free:
        raise nobody_pays(allowed, now, shared_only=shared_only)
    return min(free, key=lambda a: (a.source == "claude_code", a.priority))


def nobody_pays(accounts: Collection[Account], now: float, *, shared_only: bool) -> ProxyError:
    """Why none of the accounts can pay, and what to do. No name and no address in it: client keys read it too."""
    states = {a.state for a in accounts}
    if "ready" in states:
        return ProxyError(503, "No account could serve this request. Try again in a moment.")
    if "resting" in states:
        return all_rest(min(a.rests_until or inf for a in accounts if a.state == "resting"), now)
    if shared_only and not accounts:
        return ProxyError(403, "The owner of this proxy shares no account with client keys. Ask them to share one.")
    if "sign_in_again" in states:
        return ProxyError(401, f"Claude no longer accepts the saved sign-in. {OPEN_PAGE} and sign in again.")
    if "off" in states:
        return ProxyError(401, f"Every account is switched off. {OPEN_PAGE} and switch one on.")
    return ProxyError(401, f"Nobody is signed in yet. {OPEN_PAGE} and sign in.")


def all_rest(until: float, now: float) -> ProxyError:
    if until == inf:
        return ProxyError(429, f"Every account has reached its limit. {OPEN_PAGE} to see why and to wake one.")
    wait = ceil(until - now)
    day = "%H:%M" if wait < 20 * 3600 else "%a %d %b, %H:%M"
    clock = datetime.fromtimestamp(until, UTC).astimezone().strftime(day)
    span = f"{wait} s" if wait < 120 else f"{wait // 60} min" if wait < 7200 else f"{wait // 3600} h"
    return ProxyError(
        429,
        f"Every account has reached its limit. The first is free again at {clock} (in {span}).",
        headers={"retry-after": str(wait)},
    )


def guest_credential(headers: Mapping[str, str], known: Iterable[Credential], base_url: str) -> Credential | None:
    """The Anthropic credential (`sk-ant-…`) a request brings in `x-api-key`, or else as a Bearer token.

    It serves that request only. An access token that is one of ours (`known`) is used as that account would use it;
    another one counts as a subscription's. Anything else, "anything" included, is None. Raises ProxyError 401 for what
    is meant as a credential but cannot be one.
    """
    scheme, _, bearer = headers.get("authorization", "").strip().partition(" ")
    brought = [headers.get("x-api-key", "").strip(), bearer.strip() if scheme.lower() == "bearer" else ""]
    secret = next((text for text in brought if text.startswith("sk-ant-")), None)
    if secret is None:
        return None
    if not is_token(secret) or secret.startswith("sk-ant-ort"):
        raise ProxyError(
            401, "The Anthropic key in the password field cannot be one. Copy it again, or clear the field."
        )
    if not secret.startswith("sk-ant-oat"):
        return Credential("api_key", secret, base_url)
    for credential in known:
        if credential.secret == secret:
            return replace(credential, account_id="", renewed=False)
    return Credential("subscription", secret, base_url)


def account_name(text: str, instead: str) -> str:
    """A name as it may stand on a page and in a log line."""
    return "".join(c for c in text if c.isprintable()).strip()[:80] or instead


@dataclass(frozen=True)
class ClaudeCodeSettings:
    """The settings fallback_to_claude_code and claude_config_dir."""

    fallback: Literal["ask", "true", "false"] = "ask"
    config_dir: str = ""


class Accounts:
    """The pool: tokens.json, Claude Code's file, `ant` profiles, and when each account rests. Built once, in app.py."""

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
        self._folder = data_dir.expanduser()
        self._base_url = base_url.rstrip("/")
        self._oauth = oauth
        self._fallback = claude_code.fallback
        self._clock = clock
        self._environ = environ
        self._file = SharedJson(self._folder / "tokens.json", ours=True, check=check_document, clock=clock)
        self._claude_code = ClaudeCodeHome(credentials_file(claude_code.config_dir, environ), oauth, clock)
        self._logins: dict[str, Login] = {}
        self._rests: dict[str, Rest] = {}
        self._notes: list[str] = []
        self._save_pause = Pause()
        self._called = asyncio.Event()  # there is something to save
        self._keeper: asyncio.Task[None] | None = None

    # -- beginning and end

    async def start(self) -> None:
        """Read what is stored, mend what a crash left, and begin to keep the logins alive."""
        try:
            self._notes += await asyncio.to_thread(files.private_folder, self._folder)
        except OSError as error:
            self._notes.append(f"{self._folder} cannot be made: {why(error)}. Set data_dir to a folder of yours.")
        try:
            async with self._file.lock(wait=1.0):
                await asyncio.to_thread(files.sweep, self._file.path)
                await self._file.save_locked()
        except Busy:  # another process is renewing a login
            await self._file.look()
        if self._folder.is_dir() and not os.access(self._folder, os.W_OK):
            self._notes.append(f"{self._folder} cannot be written, so sign-ins are lost when the proxy stops.")
        for sentence in self._notes:
            logger.warning(sentence)
        await self._look()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Let renewals under way end, for the server has spent their tokens; save what is not saved."""
        if self._keeper:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        running = [login.running for login in self._logins.values() if login.running]
        if running:
            _, waiting = await asyncio.wait(running, timeout=2 * self._oauth.deadline + 1)
            for task in waiting:  # those still waited for a lock: nothing was spent
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        await self._save(wait=2.0)

    @property
    def warnings(self) -> list[str]:
        """What the owner should know now, for the log, /health and the pages."""
        found = [*self._notes, *self._file.notes]
        if self._file.closed:
            found.append(self._file.closed)
        found += [
            f"{file.path} could not be saved: {file.unsaved}. It is tried again until it works."
            for file in self._all_files()
            if file.unsaved
        ]
        if unusable := sum(not is_usable(entry) for entry in all_entries(self._file.document)):
            found.append(f"tokens.json holds {unusable} account(s) that cannot be read; they are left as they are.")
        logins = [login.home.read() for login in self._logins.values()]
        if any(tokens and not tokens.may_chat for tokens in logins):
            found.append("A sign-in lacks the right user:inference and cannot chat. Sign in again.")
        return found

    # -- who there is

    def all(self) -> tuple[Account, ...]:
        """Every account as it stands now, in order of adding."""
        now = self._clock()
        return tuple(self._account(entry, now) for entry in self._entries().values())

    def get(self, account_id: str) -> Account:
        """Raises ProxyError 404 when there is no such account."""
        return self._account(self._entry(account_id), self._clock())

    def guest(self, headers: Mapping[str, str]) -> Credential | None:
        """The credential a request brings itself. Raises ProxyError 401 for a broken one."""
        return guest_credential(headers, self._held(), self._base_url)

    # -- the road

    async def credential(self, *, tried: Collection[str] = (), shared_only: bool = False) -> Credential:
        """A valid credential of the account that pays; the next one's if a login turns out to have ended.

        Raises ProxyError as `choose` does, and 503 when a login cannot be renewed just now and nobody else is free.
        """
        await self._look()
        out = set(tried)
        not_now: ProxyError | None = None
        while True:
            try:
                account = choose(self.all(), self._clock(), tried=out, shared_only=shared_only)
            except ProxyError as nobody:
                raise not_now or nobody from None
            try:
                return await self.fresh(account.id)
            except InvalidGrant:
                out.add(account.id)
            except Unavailable:
                out.add(account.id)
                not_now = not_now or renew_later(self._logins[account.id].pause.left(self._clock()))

    async def fresh(self, account_id: str) -> Credential:
        """A valid credential of this account. Raises InvalidGrant, Unavailable."""
        entry = self._entry(account_id)
        login = self._login(entry)
        if login is None:
            return self._credential(entry, entry["api_key"])
        return self._credential(entry, (await login.valid()).access_token)

    async def after_401(self, failed: Credential) -> Credential | None:
        """What to pay with instead of a credential the upstream refused; None: nothing of this account's.

        A login is renewed, once for everybody; what another process has stored since is adopted. An API key, and a
        login refused again right after that, are set aside.
        """
        entry = self._entries().get(failed.account_id)
        if entry is None:
            return None
        login = self._login(entry)
        if login is None:
            if entry["api_key"] != failed.secret:
                return self._credential(entry, entry["api_key"], renewed=True)
            self._set_aside(entry["id"], fingerprint(failed.secret), "Anthropic refuses this API key. Add a valid one.")
            return None
        await login.home.look()
        tokens = login.home.read()
        if tokens and tokens.access_token == failed.secret and failed.renewed:
            self._end(entry["id"], tokens, "it is refused even after renewing it")
            return None
        if tokens and tokens.access_token != failed.secret and login.is_good(tokens):
            return self._credential(entry, tokens.access_token, renewed=True)
        try:
            tokens = await login.refused(failed.secret)
        except (InvalidGrant, Unavailable):
            return None
        return self._credential(entry, tokens.access_token, renewed=True)

    def rest(self, account_id: str, until: float, reason: str) -> None:
        """Leave an account alone until then (unix seconds; inf: until the owner wakes it)."""
        if account_id in self._entries():
            self._rests[account_id] = longer_rest(self._rests.get(account_id), until, reason, self._clock())

    # -- what the owner does

    def wake(self, account_id: str) -> Account:
        """End a rest; try a refused credential again."""
        self._rests.pop(account_id, None)
        if "refused" in self._entry(account_id):
            self._edit_entry(account_id, lambda e: {k: v for k, v in e.items() if k != "refused"})
        if login := self._logins.get(account_id):
            login.forget_troubles()
        return self.get(account_id)

    async def add_api_key(self, api_key: str, name: str = "", base_url: str = "") -> Account:
        """Add a key, or replace the same one. Raises ProxyError 400 for what cannot be a key or an address."""
        key, base = api_key.strip(), base_url.strip().rstrip("/").removesuffix("/v1")
        if not is_token(key):
            raise ProxyError(400, "This is not an API key: it is empty or has blanks in it. Copy it again, whole.")
        if key.startswith(("sk-ant-oat", "sk-ant-ort")):
            raise ProxyError(400, "This is a sign-in token, not an API key. API keys begin with sk-ant-api.")
        if base and (problem := url_problem(base)):
            raise ProxyError(400, f"base_url {problem}.")
        await self._may_write()
        identity = fingerprint(key)
        old = next((e for e in self._entries().values() if e.get("identity") == identity), {})
        named = account_name(name, str(old.get("name") or f"API key …{key[-4:]}"))
        new = {"kind": "api_key", "name": named, "api_key": key, "base_url": base, "identity": identity}
        return await self._keep_entry(old, new)

    def replaced_by(self, tokens: Tokens) -> Account | None:
        """The account `add_oauth` would replace: the same identity's, or the only one whose identity is unknown."""
        own = [a for a in self.all() if a.source == "own" and a.kind == "subscription"]
        same = [a for a in own if a.identity == tokens.identity]
        return same[0] if same and (tokens.identity or len(same) == 1) else None

    async def add_oauth(self, tokens: Tokens, name: str = "") -> Account:
        """Add a subscription sign-in, or replace the one of the same identity."""
        await self._may_write()
        replaced = self.replaced_by(tokens)
        old = self._entry(replaced.id) if replaced else {}
        label = f"Claude subscription ({tokens.label})" if tokens.label else "Claude subscription"
        named = account_name(name, str(old.get("name") or label))
        new = {"kind": "subscription", "name": named, "last_refresh_at": self._clock()}
        account = await self._keep_entry(old, with_tokens({**new, "identity": ""}, tokens))
        if login := self._logins.get(account.id):
            login.forget_troubles()
        return self.get(account.id)

    async def use_claude_code(self, agreed: bool) -> Account | None:
        """Note whether the owner agreed to use Claude Code's login, as the last choice."""
        if agreed and self._fallback == "false":
            raise ProxyError(400, "Claude Code's login is switched off by the setting fallback_to_claude_code.")
        await self._claude_code.look()
        if agreed and not self.claude_code_found():
            raise ProxyError(404, f"Claude Code is not signed in on this computer. {ON_A_MAC}")
        await self._may_write()
        if agreed:
            old = entries(self._file.document).get(CLAUDE_CODE, self._claude_code_entry())
            self._file.edit(put_entry({**old, "agreed": True}))
        else:
            self._file.edit(drop_entries({CLAUDE_CODE}))
        await self._save()
        return self.get(CLAUDE_CODE) if CLAUDE_CODE in self._entries() else None

    def claude_code_found(self) -> bool:
        """Whether Claude Code's login is on this machine (as of the last look) and may be offered."""
        return self._fallback != "false" and self._claude_code.read() is not None

    async def use_ant_profile(self, profile: str) -> Account:
        """Use a profile of the `ant` command. Only its name is stored, never its token."""
        found = await asyncio.to_thread(self.ant_profiles)
        if profile not in [p.name for p in found]:
            raise ProxyError(404, "There is no such `ant` profile on this computer. Run in a terminal: ant auth login")
        await self._may_write()
        old = next((e for e in self._entries().values() if e.get("profile") == profile), {})
        new = {"kind": "platform", "source": "ant", "profile": profile}
        account = await self._keep_entry(old, {**new, "name": old.get("name") or f"ant profile {profile}"})
        await self._look()
        return self.get(account.id)

    def ant_profiles(self) -> list[AntProfile]:
        """The `ant` profiles on this machine, the active one first."""
        used = {e.get("profile") for e in self._entries().values()}
        return [replace(profile, used=profile.name in used) for profile in ant.profiles(self._environ)]

    async def update(
        self,
        account_id: str,
        *,
        name: str | None = None,
        enabled: bool | None = None,
        priority: int | None = None,
        shared: bool | None = None,
    ) -> Account:
        """Change what the owner may change. Raises ProxyError 404, and 400 for sharing a subscription."""
        account = self.get(account_id)
        if shared and account.kind == "subscription":
            raise ProxyError(400, "A subscription serves its owner alone. Share an API key instead.")
        await self._may_write()
        named = None if name is None else account_name(name, account.name)
        given = {"name": named, "enabled": enabled, "priority": priority, "shared": shared}
        changes = {key: value for key, value in given.items() if value is not None}
        self._edit_entry(account_id, lambda e: {**e, **changes})
        await self._save()
        return self.get(account_id)

    async def remove(self, account_id: str) -> None:
        """Forget an account, in the backup too. The files of Claude Code and `ant` stay as they are."""
        entry = self._entry(account_id)
        if account_id == CLAUDE_CODE and self._fallback == "true":
            raise ProxyError(400, "The setting fallback_to_claude_code is true; change it instead.")
        await self._forget([entry["id"]])

    async def refresh(self, account_id: str) -> Account:
        """Renew a login now, for the owner's button. Raises ProxyError 401 when it has ended, 503 when it must wait."""
        login = self._login(self._entry(account_id))
        if login:
            await login.home.look()
            tokens = login.home.read()
            try:
                await login.renewed(tokens.access_token if tokens else "", at_once=True)
            except InvalidGrant:
                raise ProxyError(401, f"This sign-in has ended. {login.home.remedy}") from None
            except Unavailable as error:
                raise ProxyError(503, f"The sign-in could not be renewed: {error}. It is kept; try later.") from None
        return self.get(account_id)

    async def sign_out(self) -> None:
        """Forget every account of ours and every permission. The files of Claude Code and `ant` stay as they are."""
        await self._forget(entries(self._file.document))

    # -- keeping

    async def tend(self) -> None:
        """One look at everything: save what is unsaved, renew what comes to its end, also of accounts that rest.

        Other programs' logins are renewed only when a request needs them.
        """
        if not self._save_pause.left(self._clock()):
            await self._save()
        await self._file.look()
        for account in self.all():
            if account.source == "own" and account.state in ("ready", "resting"):
                login = self._login(self._entry(account.id))
                if login:
                    await login.keep_ahead()

    async def _keep(self) -> None:
        while True:
            self._called.clear()
            try:
                await self.tend()
            except Exception:
                logger.exception("Looking after the logins failed; it goes on at the next look")
            pause = self._save_pause.left(self._clock()) or LOOK_EVERY * random.uniform(0.8, 1.2)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._called.wait()

    async def _save(self, wait: float = files.LOCK_WAIT) -> None:
        """Bring every edit to the disk. What fails stays in memory and is tried again, 1 to 60 s later."""
        saved = [await file.save(wait) for file in self._all_files() if file.wants_saving]
        self._save_pause = Pause() if all(saved) else self._save_pause.after_failure(self._clock())

    def _all_files(self) -> list[SharedJson]:
        return [self._file, *(login.home.file for login in self._logins.values() if login.home.file is not self._file)]

    async def _look(self) -> None:
        """Take notice of files that changed: one stat each."""
        await self._file.look()
        if self._fallback != "false":
            await self._claude_code.look()
        for entry in self._entries().values():
            if entry.get("source") == "ant" and (login := self._login(entry)):
                await login.home.look()

    async def _may_write(self) -> None:
        await self._file.look()
        if self._file.closed:
            raise ProxyError(409, self._file.closed)

    # -- entries

    def _entries(self) -> dict[str, Entry]:
        """What may pay, by id: what tokens.json holds, and Claude Code's login where setting or owner allow it."""
        found = entries(self._file.document)
        stored = found.pop(CLAUDE_CODE, None)
        if self._fallback == "true" and (stored or self.claude_code_found()):
            found[CLAUDE_CODE] = stored or self._claude_code_entry()
        elif self._fallback == "ask" and stored and stored.get("agreed") is True:
            found[CLAUDE_CODE] = stored
        return found

    def _claude_code_entry(self) -> Entry:
        return {"id": CLAUDE_CODE, "name": "Claude Code", "kind": "subscription", "source": "claude_code"}

    def _entry(self, account_id: str) -> Entry:
        try:
            return self._entries()[account_id]
        except KeyError:
            raise ProxyError(404, "There is no such account. Reload the page.") from None

    def _edit_entry(self, account_id: str, change: Callable[[Entry], Entry]) -> None:
        """Change an entry in memory now and on the disk soon."""
        if account_id == CLAUDE_CODE and account_id not in entries(self._file.document):
            self._file.edit(put_entry(self._claude_code_entry()))
        self._file.edit(change_entry(account_id, change))
        self._called.set()

    async def _keep_entry(self, old: Entry, new: Entry) -> Account:
        """Store an entry in the place of an old one, whose settings it keeps, or as a new one."""
        kept = {name: value for name, value in old.items() if name != "refused"}
        entry = {"id": "acc_" + secrets.token_hex(8), "source": "own", **kept, **new}
        self._rests.pop(entry["id"], None)
        self._file.edit(put_entry(entry))
        await self._save()
        return self.get(entry["id"])

    async def _forget(self, ids: Iterable[str]) -> None:
        gone = list(ids)
        await self._may_write()
        self._file.edit(drop_entries(gone), forget=True)
        for account_id in gone:
            self._rests.pop(account_id, None)
        await self._save()

    # -- from entries to accounts and credentials

    def _login(self, entry: Entry) -> Login | None:
        """The login of an entry, made when first needed; None for an API key."""
        if entry["kind"] == "api_key":
            return None
        account_id = entry["id"]
        login = self._logins.get(account_id)
        if login is None:
            home: OwnHome | ClaudeCodeHome | AntHome
            match entry.get("source"):
                case "claude_code":
                    home = self._claude_code
                case "ant":
                    home = AntHome(entry["profile"], self._oauth, self._base_url, self._clock, self._environ)
                case _:
                    home = OwnHome(self._file, account_id, self._oauth, self._clock)
            login = Login(home, self._clock, lambda tokens, reason: self._end(account_id, tokens, reason))
            self._logins[account_id] = login
        return login

    def _account(self, entry: Entry, now: float) -> Account:
        login = self._login(entry)
        tokens = login.home.read() if login else None
        stored = entry.get("last_refresh_at")
        rest = self._rests.get(entry["id"])
        account = Account(
            id=entry["id"],
            name=str(entry.get("name", "")),
            kind=entry["kind"],
            source=entry.get("source", "own"),
            base_url=base_url_of(entry, login),
            priority=entry["priority"] if isinstance(entry.get("priority"), int) else 0,
            enabled=entry.get("enabled") is not False,
            shared=entry.get("shared") is True and entry["kind"] != "subscription",
            expires_at=tokens.expires_at if tokens else None,
            last_refresh_at=(login and login.renewed_at) or (stored if isinstance(stored, (int, float)) else None),
            last_refresh_error=login.error if login else "",
            identity=str(entry.get("identity", "")),
            ends_with=entry["api_key"][-4:] if login is None else "",
        )
        if not account.enabled:
            return replace(account, state="off", reason="Switched off.")
        if login and tokens is None:
            return replace(account, state="sign_in_again", reason=login.home.problem or login.home.remedy)
        if reason := refusal(entry, tokens):
            return replace(account, state="sign_in_again", reason=reason)
        if rest and rest.holds(now):
            return replace(account, state="resting", reason=rest.reason, rests_until=rest.until)
        return account

    def _credential(self, entry: Entry, secret: str, *, renewed: bool = False) -> Credential:
        login = self._login(entry)
        workspace = login.home.workspace_id if login and isinstance(login.home, AntHome) else ""
        base_url = base_url_of(entry, login) or self._base_url
        return Credential(entry["kind"], secret, base_url, entry["id"], workspace, renewed)

    def _held(self) -> Iterable[Credential]:
        for entry in self._entries().values():
            login = self._login(entry)
            if login and (tokens := login.home.read()):
                yield self._credential(entry, tokens.access_token)

    def _end(self, account_id: str, tokens: Tokens, reason: str) -> None:
        """A login has ended for good: keep it, set aside, until the owner signs in again or its file changes."""
        entry = self._entries().get(account_id)
        login = self._login(entry) if entry else None
        if login:
            words = f"This sign-in has ended: {reason}. {login.home.remedy}"
            self._set_aside(account_id, fingerprint(tokens.access_token, tokens.refresh_token), words)

    def _set_aside(self, account_id: str, secret: str, reason: str) -> None:
        refused = {"fingerprint": secret, "reason": reason, "at": self._clock()}
        logger.warning("Account %s is set aside: %s", self._entry(account_id).get("name"), reason)
        self._edit_entry(account_id, lambda e: {**e, "refused": refused})


def base_url_of(entry: Entry, login: Login | None) -> str:
    """The account's own upstream; "" for the usual one. A credential goes to its own host only."""
    if login and isinstance(login.home, AntHome):
        return login.home.own_base_url
    return str(entry.get("base_url", ""))


def refusal(entry: Entry, tokens: Tokens | None) -> str:
    """Why the credential in an entry is set aside; "" once it is another one than the one refused."""
    refused = entry.get("refused")
    if not isinstance(refused, dict):
        return ""
    held = fingerprint(tokens.access_token, tokens.refresh_token) if tokens else fingerprint(entry["api_key"])
    return str(refused.get("reason", "")) if refused.get("fingerprint") == held else ""


def renew_later(wait: float) -> ProxyError:
    seconds = max(1, ceil(wait))
    return ProxyError(
        503,
        f"The sign-in has run out and could not be renewed just now. It is kept; try again in {seconds} s.",
        headers={"retry-after": str(seconds)},
    )
