"""What there is to pay with: the entries of tokens.json, Claude Code's login, `ant` profiles; saved, and kept alive."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from pathlib import Path

from server import ant, files
from server.ant import AntProfile, AntStore
from server.claude_code import ClaudeCodeSettings, ClaudeCodeStore, credentials_file
from server.errors import ProxyError
from server.files import Busy, why
from server.oauth import OAuthSettings, Tokens
from server.payers import WARNED_AHEAD
from server.shared_json import Document, SharedJson
from server.tokens import (
    Entry,
    Login,
    OwnStore,
    Pause,
    TokenStore,
    all_entries,
    change_entry,
    check_document,
    drop_entries,
    entries,
    fingerprint,
    is_usable,
    put_entry,
)

logger = logging.getLogger(__name__)

CLAUDE_CODE = "acc_claude_code"  # the id of Claude Code's login, of which there is one
LOOK_EVERY = 60.0  # seconds between two looks at all logins, more or less
DAY = 86_400.0  # seconds


def refusal(entry: Entry, tokens: Tokens | None) -> str:
    """Why the credential in an entry is set aside; "" once it is another one than the one refused."""
    refused = entry.get("refused")
    if not isinstance(refused, dict) or refused.get("fingerprint") != credential_print(entry, tokens):
        return ""
    return str(refused.get("reason") or "It was refused.")


def credential_print(entry: Entry, tokens: Tokens | None) -> str:
    if tokens:
        return fingerprint(tokens.access_token, tokens.refresh_token)
    return fingerprint(str(entry.get("api_key", "")))


class Wallet:
    """Everything we hold or may use, by account id, and the one task that looks after it."""

    def __init__(
        self,
        folder: Path,
        *,
        base_url: str,
        oauth: OAuthSettings,
        claude_code: ClaudeCodeSettings,
        clock: Callable[[], float],
        environ: Mapping[str, str],
    ) -> None:
        self._folder = folder
        self._base_url = base_url
        self._oauth = oauth
        self._fallback = claude_code.fallback
        self._clock = clock
        self._environ = environ
        self._file = SharedJson(folder / "tokens.json", ours=True, check=check_document, clock=clock)
        self._claude_code = ClaudeCodeStore(credentials_file(claude_code.config_dir, environ), oauth, clock)
        self._logins: dict[str, Login] = {}
        self._notes: list[str] = []
        self._pause = Pause()  # after a save that failed
        self._warned_at = -inf  # of logins about to end
        self._called = asyncio.Event()  # there is something to save
        self._keeper: asyncio.Task[None] | None = None
        self._sorted: tuple[Document, dict[str, Entry]] = ({}, {})

    # -- beginning and end

    async def start(self) -> None:
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
        await self.look()
        for sentence in (*self._notes, *self._unfit):
            logger.warning(sentence)
        self._keeper = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
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
        await self.save(wait=2.0)

    @property
    def warnings(self) -> list[str]:
        found = [*self._notes, *self._file.notes]
        found += [words for words in (self._file.closed, self._file.unreadable) if words]
        found += [
            f"{file.path} could not be saved: {file.unsaved}. It is tried again until it works."
            for file in self._all_files()
            if file.unsaved and not file.unreadable and not file.closed
        ]
        return [*found, *self._unfit]

    @property
    def _unfit(self) -> list[str]:
        """What is stored and cannot pay."""
        found = []
        if unusable := sum(not is_usable(entry) for entry in all_entries(self._file.document)):
            found.append(f"tokens.json holds {unusable} account(s) that cannot be read; they are left as they are.")
        logins = [login.store.read() for login in self._logins.values()]
        if any(tokens and not tokens.may_chat for tokens in logins):
            found.append("A sign-in lacks the right user:inference and cannot chat. Sign in again.")
        return found

    @property
    def endings(self) -> list[str]:
        """Logins in use that end for good within a week, and what to do before."""
        found = []
        for entry in self.entries().values():
            login = self.login(entry) if entry.get("enabled") is not False else None
            tokens = login.store.read() if login else None
            if login and tokens and not refusal(entry, tokens):
                left = tokens.ends_at - self._clock()
                if 0 < left <= WARNED_AHEAD:
                    found.append(about_to_end(str(entry.get("name")), tokens.ends_at, left, login.store.remedy))
        return found

    @property
    def unsaved(self) -> str:
        return self._file.unsaved

    # -- looking

    async def look(self) -> None:
        """Take notice of files that changed: one stat each."""
        await self._file.look()
        if self.claude_code_allowed:
            await self._claude_code.look()
        for entry in self.entries().values():
            if entry.get("source") == "ant" and (login := self.login(entry)):
                await login.store.look()

    def entries(self) -> dict[str, Entry]:
        """What may pay, by id: what tokens.json holds, and Claude Code's login where setting or owner allow it."""
        document, found = self._sorted
        if document is not self._file.document:
            found = entries(self._file.document)
            self._sorted = (self._file.document, found)
        if self._claude_code_is_in(found):
            return {**found, CLAUDE_CODE: found.get(CLAUDE_CODE, claude_code_entry())}
        return {key: entry for key, entry in found.items() if key != CLAUDE_CODE} if CLAUDE_CODE in found else found

    def entry(self, account_id: str) -> Entry:
        try:
            return self.entries()[account_id]
        except KeyError:
            raise ProxyError(404, "There is no such account. Reload the page.") from None

    def login(self, entry: Entry) -> Login | None:
        """The login of an entry, made when first needed; None for an API key."""
        if entry["kind"] == "api_key":
            return None
        login = self._logins.get(entry["id"])
        if login is None:
            account_id = entry["id"]
            login = Login(self._store(entry), self._clock, lambda tokens, words: self._ended(account_id, tokens, words))
            self._logins[account_id] = login
        return login

    def _store(self, entry: Entry) -> TokenStore:
        match entry.get("source"):
            case "claude_code":
                return self._claude_code
            case "ant":
                return AntStore(entry["profile"], self._oauth, self._base_url, self._clock, self._environ)
        return OwnStore(self._file, entry["id"], self._oauth, self._clock)

    def ant_profiles(self) -> list[AntProfile]:
        used = {entry.get("profile") for entry in self.entries().values()}
        return [replace(profile, used=profile.name in used) for profile in ant.profiles(self._environ)]

    # -- Claude Code

    @property
    def claude_code_allowed(self) -> bool:
        return self._fallback != "false"

    @property
    def claude_code_always(self) -> bool:
        return self._fallback == "true"

    def claude_code_found(self) -> bool:
        return self.claude_code_allowed and self._claude_code.read() is not None

    def _claude_code_is_in(self, found: Mapping[str, Entry]) -> bool:
        if self._fallback == "ask":
            return found.get(CLAUDE_CODE, {}).get("agreed") is True
        return self._fallback == "true" and (CLAUDE_CODE in found or self._claude_code.read() is not None)

    async def agree_to_claude_code(self, agreed: bool) -> None:
        if agreed:
            self.edit(CLAUDE_CODE, lambda e: {**e, "agreed": True})
            await self.save()
        else:
            await self.forget([CLAUDE_CODE])

    # -- changing

    async def require_writable(self) -> None:
        """Raise ProxyError 409 when what the owner wants could not be stored."""
        await self._file.look()
        if self._file.closed:
            raise ProxyError(409, self._file.closed)

    def edit(self, account_id: str, change: Callable[[Entry], Entry]) -> None:
        """Change an entry in memory now, and on the disk soon."""
        if account_id == CLAUDE_CODE and account_id not in entries(self._file.document):
            self._file.edit(put_entry(claude_code_entry()))
        self._file.edit(change_entry(account_id, change))
        self._called.set()

    async def keep(self, old: Entry, new: Entry) -> str:
        """Store an entry in the place of an old one, whose settings it keeps, or as a new one. Its id."""
        kept = {name: value for name, value in old.items() if name != "refused"}
        entry = {"id": "acc_" + secrets.token_hex(8), "source": "own", **kept, **new}
        self._file.edit(put_entry(entry))
        if login := self.login(entry):
            login.forget_troubles()
            await login.store.look()
        await self.save()
        return str(entry["id"])

    async def forget(self, ids: Iterable[str]) -> None:
        """Take entries out, of the backup too."""
        self._file.edit(drop_entries(ids), forget=True)
        await self.save()

    async def forget_all(self) -> None:
        await self.forget(list(entries(self._file.document)))

    def end(self, entry: Entry, tokens: Tokens, reason: str) -> None:
        """A login has ended for good: keep it, set aside, until the owner signs in again or its file changes."""
        if login := self.login(entry):
            self.set_aside(entry, tokens, f"This sign-in has ended: {reason}. {login.store.remedy}")

    def set_aside(self, entry: Entry, tokens: Tokens | None, reason: str) -> None:
        """Do not use this very credential any more."""
        logger.warning("Account %s is set aside: %s", entry.get("name"), reason)
        refused = {"fingerprint": credential_print(entry, tokens), "reason": reason, "at": self._clock()}
        self.edit(entry["id"], lambda e: {**e, "refused": refused})

    def _ended(self, account_id: str, tokens: Tokens, reason: str) -> None:
        if entry := self.entries().get(account_id):
            self.end(entry, tokens, reason)

    async def save(self, wait: float = files.LOCK_WAIT) -> None:
        """Bring every edit to the disk. What fails stays in memory and is tried again, 1 to 60 s later."""
        saved = [await file.save(wait) for file in self._all_files() if file.wants_saving]
        self._pause = Pause() if all(saved) else self._pause.after_failure(self._clock())

    def _all_files(self) -> list[SharedJson]:
        return [
            self._file,
            *(login.store.file for login in self._logins.values() if login.store.file is not self._file),
        ]

    # -- looking after it

    async def tend(self) -> None:
        """Save what is unsaved, renew what comes to its end, also of accounts that rest.

        Other programs' logins are renewed only when a request needs them.
        """
        if not self._pause.left(self._clock()):
            await self.save()
        await self._file.look()
        if not 0 <= self._clock() - self._warned_at < DAY and (endings := self.endings):
            self._warned_at = self._clock()
            for sentence in endings:
                logger.warning(sentence)
        for entry in self.entries().values():
            login = self.login(entry)
            if login is None or entry.get("source", "own") != "own" or entry.get("enabled") is False:
                continue
            if not refusal(entry, login.store.read()):
                await login.keep_ahead()

    async def _keep_looking(self) -> None:
        while True:
            self._called.clear()
            try:
                await self.tend()
            except Exception:
                logger.exception("Looking after the logins failed; it goes on at the next look")
            pause = self._pause.left(self._clock()) or LOOK_EVERY * random.uniform(0.8, 1.2)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._called.wait()


def about_to_end(name: str, ends_at: float, left: float, remedy: str) -> str:
    """A week ahead by days, on the last two by hours."""
    day = datetime.fromtimestamp(ends_at, UTC).astimezone()
    span = (
        f"{left / DAY:.0f} days" if left > 2 * DAY else "less than an hour" if left < 3600 else f"{left / 3600:.0f} h"
    )
    return f"The sign-in “{name}” ends in {span}, on {day:%d %b, %H:%M}, and cannot be renewed then. {remedy}"


def claude_code_entry() -> Entry:
    return {"id": CLAUDE_CODE, "name": "Claude Code", "kind": "subscription", "source": "claude_code"}
