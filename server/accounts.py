"""The accounts: all there are, when each rests, and a valid credential of the one that is to pay."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from math import inf
from pathlib import Path

from server.addresses import base_of, url_problem
from server.ant import AntProfile, AntStore
from server.claude_code import ON_A_MAC, ClaudeCodeSettings
from server.errors import ProxyError
from server.health import (
    STRAINED_SECONDS,
    Gauge,
    Rest,
    Strain,
    gauges_of,
    longer_rest,
    nearly_empty,
)
from server.oauth import InvalidGrant, OAuthSettings, Tokens, Unavailable, is_token
from server.payers import (
    KINDS,
    Account,
    Choice,
    Credential,
    Kind,
    choose,
    guest_credential,
    renew_later,
    settle,
)
from server.secret import ending
from server.tokens import Entry, Login, fingerprint, with_tokens
from server.wallet import CLAUDE_CODE, Wallet, refusal

LONGEST_KEY = 1000  # characters


def account_name(text: str, instead: str) -> str:
    """A name as it may stand on a page and in a log line."""
    return "".join(c for c in text if c.isprintable()).strip()[:80] or instead


def checked_api_key(given: object) -> str:
    """An API key as pasted, without the blanks around it. Raises ProxyError 400 for what cannot be one."""
    key = given.strip() if isinstance(given, str) else ""
    if not key:
        raise ProxyError(400, "The API key is missing. Paste it into the field.")
    if key.startswith(("sk-ant-oat", "sk-ant-ort", "sk-ant-sid")):
        raise ProxyError(
            400, "This is a sign-in token, not an API key. Make an API key in the Claude Console, or sign in below."
        )
    if not is_token(key) or len(key) > LONGEST_KEY:
        raise ProxyError(400, "This is not an API key: it has blanks or odd characters in it. Copy it once more.")
    return key


def checked_base_url(given: object) -> str:
    """Where a key is to go, without the /v1 that is put behind it; "" for the usual address. Raises ProxyError 400 for
    one it may not be sent to."""
    base = base_of(given) if isinstance(given, str) else given
    if base and (problem := url_problem(base) if isinstance(base, str) else "must be text"):
        raise ProxyError(400, f"base_url: {problem}.")
    return str(base or "")


class Accounts:
    """The pool: every account, when each rests, and a valid credential for each request. Built once, in app.py."""

    def __init__(
        self,
        data_dir: Path,
        *,
        base_url: str,
        oauth: OAuthSettings,
        claude_code: ClaudeCodeSettings,
        choice: Choice = "sticky",
        clock: Callable[[], float] = time.time,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._choice, self._clock = choice, clock
        self._wallet = Wallet(
            data_dir.expanduser(),
            base_url=self._base_url,
            oauth=oauth,
            claude_code=claude_code,
            clock=clock,
            environ=environ,
        )
        self._rests: dict[str, Rest] = {}
        self._failed: dict[str, float] = {}  # when each failed last
        self._gauges: dict[str, tuple[Gauge, ...]] = {}
        self._turn = 0

    async def start(self) -> None:
        """Read what is stored, mend what a crash left, and begin to keep the logins alive."""
        await self._wallet.start()

    async def close(self) -> None:
        """Let renewals under way end, for the server has spent their tokens; save what is not saved."""
        await self._wallet.close()

    async def look(self) -> None:
        """Read the files again; nothing is renewed or written."""
        await self._wallet.look()

    async def tend(self) -> None:
        """One look at everything, as the background takes it about once a minute."""
        await self._wallet.tend()

    @property
    def warnings(self) -> list[str]:
        """What the owner should know now, for the log, /health and the pages."""
        return [*self._wallet.warnings, *self._wallet.endings]

    @property
    def unsaved(self) -> str:
        """Why what was last changed is in memory only; "" when it is on the disk."""
        return self._wallet.unsaved

    # -- who there is

    def all(self) -> tuple[Account, ...]:
        """Every account as it stands now, in order of adding."""
        now = self._clock()
        return tuple(self._account(entry, now) for entry in self._wallet.entries().values())

    def get(self, account_id: str) -> Account:
        """Raises ProxyError 404 when there is no such account."""
        return self._account(self._wallet.entry(account_id), self._clock())

    def payer(self, credential: Credential) -> str:
        """The name under which receipts tell who pays."""
        return self.get(credential.account_id).name if credential.account_id else credential.name

    def guest(self, headers: Mapping[str, str]) -> Credential | None:
        """The credential a request brings itself. Raises ProxyError 401 for a broken one."""
        return guest_credential(headers, self._held(), self._base_url)

    # -- the road

    async def credential(
        self,
        *,
        tried: Collection[str] = (),
        shared_only: bool = False,
        kinds: Collection[Kind] = KINDS,
        conversation: str = "",
    ) -> Credential:
        """A valid credential of the account that pays; the next one's if a login turns out to have ended.

        Raises ProxyError as `choose` does, and 503 when a login cannot be renewed just now and nobody else is free.
        """
        await self._wallet.look()
        out = set(tried)
        self._turn += 1
        not_now: ProxyError | None = None
        while True:
            try:
                possible = [account for account in self.all() if account.kind in kinds]
                account = choose(
                    possible,
                    self._clock(),
                    tried=out,
                    shared_only=shared_only,
                    choice=self._choice,
                    conversation=conversation,
                    turn=self._turn,
                )
            except ProxyError as nobody:
                raise not_now or nobody from None
            if account.state == "resting":
                self._rests[account.id] = self._rests[account.id]._replace(tried_at=self._clock())
            try:
                return await self.fresh(account.id)
            except InvalidGrant:
                out.add(account.id)
            except Unavailable as error:
                out.add(account.id)
                not_now = not_now or renew_later(error.retry_after)

    async def fresh(self, account_id: str) -> Credential:
        """A valid credential of this account. Raises InvalidGrant, Unavailable."""
        entry = self._wallet.entry(account_id)
        login = self._wallet.login(entry)
        return self._credential(entry, (await login.valid()).access_token if login else entry["api_key"])

    async def fresh_if_ready(self, account_id: str) -> Credential | None:
        """A valid credential of this very account; None when it is gone, resting or needs a new sign-in."""
        account = next((a for a in self.all() if a.id == account_id), None)
        if account is None or settle(account, self._clock()).state != "ready":
            return None
        try:
            return await self.fresh(account_id)
        except (InvalidGrant, Unavailable):
            return None

    async def after_401(self, failed: Credential) -> Credential | None:
        """What to pay with instead of a credential the upstream refused; None: nothing of this account's.

        A login is renewed, once for everybody; what another process has stored since is adopted. An API key, and a
        login refused again right after that, are set aside. Raises Unavailable when it cannot be renewed just now.
        """
        await self._wallet.look()
        entry = self._wallet.entries().get(failed.account_id)
        if entry is None:
            return None
        login = self._wallet.login(entry)
        if login is None:
            return self._after_refused_key(entry, failed)
        tokens = login.store.read()
        if tokens is None or refusal(entry, tokens):
            return None
        if tokens.access_token != failed.secret and login.is_good(tokens):
            return self._credential(entry, tokens.access_token, renewed=True)
        if tokens.access_token == failed.secret and failed.renewed:
            self._wallet.end(entry, tokens, "it is refused even after renewing it")
            return None
        try:
            tokens = await login.refused(failed.secret)
        except InvalidGrant:
            return None
        return self._credential(entry, tokens.access_token, renewed=True)

    def _after_refused_key(self, entry: Entry, failed: Credential) -> Credential | None:
        if entry["api_key"] != failed.secret:
            return self._credential(entry, entry["api_key"], renewed=True)  # the owner has replaced it meanwhile
        if not refusal(entry, None):
            self._wallet.set_aside(entry, None, "This API key is refused. Add a valid one.")
        return None

    def rest(self, account_id: str, until: float, reason: str) -> None:
        """Leave an account alone until then (unix seconds; inf: until the owner wakes it)."""
        if account_id in self._wallet.entries():
            self._rests[account_id] = longer_rest(self._rests.get(account_id), until, reason, self._clock())

    def failed(self, account_id: str) -> None:
        """It did not answer, or not as it should: for a while others go first."""
        self._failed[account_id] = self._clock()

    def heard(self, account_id: str, headers: Mapping[str, str], *, served: bool) -> None:
        """Note what an answer's headers tell of the limits. An account that served in spite of a rest rests no more."""
        if account_id not in self._wallet.entries():
            return
        if gauges := gauges_of(headers, self._clock()):
            self._gauges[account_id] = gauges
        if served:
            self._failed.pop(account_id, None)
            if (rest := self._rests.get(account_id)) and rest.tried_at:
                del self._rests[account_id]

    # -- what the owner does

    def wake(self, account_id: str) -> Account:
        """End a rest; try a refused credential again."""
        entry = self._wallet.entry(account_id)
        self._rests.pop(account_id, None)
        self._failed.pop(account_id, None)
        if "refused" in entry:
            self._wallet.edit(account_id, lambda e: {k: v for k, v in e.items() if k != "refused"})
        if login := self._wallet.login(entry):
            login.forget_troubles()
        return self.get(account_id)

    async def add_api_key(self, api_key: str, name: str = "", base_url: str = "") -> Account:
        """Add a key, or replace the same one. Raises ProxyError 400 for what cannot be a key or an address."""
        key, base = checked_api_key(api_key), checked_base_url(base_url)
        await self._wallet.require_writable()
        identity = fingerprint(key)
        old = next((e for e in self._wallet.entries().values() if e.get("identity") == identity), {})
        named = account_name(name, str(old.get("name") or f"API key …{ending(key)}"))
        new = {"kind": "api_key", "name": named, "api_key": key, "base_url": base, "identity": identity}
        return await self._keep(old, new)

    def replaced_by(self, tokens: Tokens) -> Account | None:
        """The account `add_oauth` would replace: the same identity's, or the only one whose identity is unknown."""
        own = [a for a in self.all() if a.source == "own" and a.kind == "subscription"]
        same = [a for a in own if a.identity == tokens.identity]
        return same[0] if same and (tokens.identity or len(same) == 1) else None

    async def add_oauth(self, tokens: Tokens, name: str = "") -> Account:
        """Add a subscription sign-in, or replace the one of the same identity."""
        await self._wallet.require_writable()
        replaced = self.replaced_by(tokens)
        old = self._wallet.entry(replaced.id) if replaced else {}
        label = f"Claude subscription ({tokens.label})" if tokens.label else "Claude subscription"
        named = account_name(name, str(old.get("name") or label))
        new = {"kind": "subscription", "name": named, "identity": "", "last_refresh_at": self._clock()}
        return await self._keep(old, with_tokens(new, tokens))

    async def use_claude_code(self, agreed: bool) -> Account | None:
        """Note whether the owner agreed to use Claude Code's login, as the last choice."""
        await self._wallet.look()
        if agreed and not self._wallet.claude_code_allowed:
            raise ProxyError(400, "Claude Code's login is switched off by the setting fallback_to_claude_code.")
        if agreed and not self.claude_code_found():
            raise ProxyError(404, f"Claude Code is not signed in on this computer. {ON_A_MAC}")
        await self._wallet.require_writable()
        await self._wallet.agree_to_claude_code(agreed)
        return self.get(CLAUDE_CODE) if CLAUDE_CODE in self._wallet.entries() else None

    def claude_code_found(self) -> bool:
        """Whether Claude Code's login is on this machine (as of the last look) and may be offered."""
        return self._wallet.claude_code_found()

    async def use_ant_profile(self, profile: str) -> Account:
        """Use a profile of the `ant` command. Only its name is stored, never its token."""
        if profile not in [p.name for p in self.ant_profiles()]:
            raise ProxyError(404, "There is no such `ant` profile on this computer. Run in a terminal: ant auth login")
        await self._wallet.require_writable()
        old = next((e for e in self._wallet.entries().values() if e.get("profile") == profile), {})
        name = old.get("name") or f"ant profile {profile}"
        return await self._keep(old, {"kind": "platform", "source": "ant", "profile": profile, "name": name})

    def ant_profiles(self) -> list[AntProfile]:
        """The `ant` profiles on this machine, the active one first."""
        return self._wallet.ant_profiles()

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
        await self._wallet.require_writable()
        named = None if name is None else account_name(name, account.name)
        given = {"name": named, "enabled": enabled, "priority": priority, "shared": shared}
        changes = {key: value for key, value in given.items() if value is not None}
        self._wallet.edit(account_id, lambda e: {**e, **changes})
        await self._wallet.save()
        return self.get(account_id)

    async def remove(self, account_id: str) -> None:
        """Forget an account, in the backup too. The files of Claude Code and `ant` stay as they are."""
        self._wallet.entry(account_id)
        if account_id == CLAUDE_CODE and self._wallet.claude_code_always:
            raise ProxyError(400, "The setting fallback_to_claude_code is true; change it instead.")
        await self._wallet.require_writable()
        await self._wallet.forget([account_id])
        self._rests.pop(account_id, None)

    async def refresh(self, account_id: str) -> Account:
        """Renew a login now, for the owner's button. Raises ProxyError 401 when it has ended, 503 when it must wait."""
        await self._wallet.look()
        if login := self._wallet.login(self._wallet.entry(account_id)):
            tokens = login.store.read()
            try:
                await login.renewed(tokens.access_token if tokens else "", at_once=True)
            except InvalidGrant:
                raise ProxyError(401, f"This sign-in has ended. {login.store.remedy}") from None
            except Unavailable as error:
                raise ProxyError(503, f"The sign-in could not be renewed: {error}. It is kept; try later.") from None
        return self.get(account_id)

    async def sign_out(self) -> None:
        """Forget every account of ours and every permission. The files of Claude Code and `ant` stay as they are."""
        await self._wallet.require_writable()
        await self._wallet.forget_all()
        self._rests.clear()

    # -- from entries to values

    def _account(self, entry: Entry, now: float) -> Account:
        login = self._wallet.login(entry)
        tokens = login.store.read() if login else None
        priority, stored = entry.get("priority"), entry.get("last_refresh_at")
        account = Account(
            id=entry["id"],
            name=str(entry.get("name", "")),
            kind=entry["kind"],
            source=entry.get("source", "own"),
            base_url=base_url_of(entry, login),
            priority=priority if isinstance(priority, int) else 0,
            enabled=entry.get("enabled") is not False,
            shared=entry.get("shared", True) is True and entry["kind"] != "subscription",
            expires_at=tokens.expires_at if tokens else None,
            ends_at=tokens.ends_at if tokens else None,
            last_refresh_at=(login and login.renewed_at) or (stored if isinstance(stored, (int, float)) else None),
            last_refresh_error=login.error if login else "",
            identity=str(entry.get("identity", "")),
            ends_with=ending(entry["api_key"]) if login is None else "",
            strain=self._strain(entry["id"], now),
            gauges=self._gauges.get(entry["id"], ()),
        )
        if not account.enabled:
            return replace(account, state="off", reason="Switched off.")
        if login and tokens is None:
            return replace(account, state="sign_in_again", reason=login.store.problem or login.store.remedy)
        if reason := refusal(entry, tokens):
            return replace(account, state="sign_in_again", reason=reason)
        rest = self._rests.get(account.id)
        if rest and rest.holds(now):
            return replace(
                account, state="resting", reason=rest.reason, rests_until=rest.until, may_be_over=rest.may_be_over(now)
            )
        return account

    def _strain(self, account_id: str, now: float) -> Strain:
        if 0 <= now - self._failed.get(account_id, -inf) < STRAINED_SECONDS:
            return "failing"
        return "nearly_empty" if nearly_empty(self._gauges.get(account_id, ()), now) else ""

    def _credential(self, entry: Entry, secret: str, *, renewed: bool = False) -> Credential:
        login = self._wallet.login(entry)
        workspace = login.store.workspace_id if login and isinstance(login.store, AntStore) else ""
        base_url = base_url_of(entry, login) or self._base_url
        return Credential(entry["kind"], secret, base_url, entry["id"], workspace, renewed)

    def _held(self) -> Iterable[Credential]:
        for entry in self._wallet.entries().values():
            login = self._wallet.login(entry)
            if login and (tokens := login.store.read()):
                yield self._credential(entry, tokens.access_token)

    async def _keep(self, old: Entry, new: Entry) -> Account:
        """Store an entry in the place of an old one, whose settings it keeps, or as a new one."""
        account_id = await self._wallet.keep(old, new)
        self._rests.pop(account_id, None)
        return self.get(account_id)


def base_url_of(entry: Entry, login: Login | None) -> str:
    """The account's own upstream; "" for the usual one. A credential goes to its own host only."""
    if login and isinstance(login.store, AntStore):
        return login.store.own_base_url
    return str(entry.get("base_url", ""))
