"""Profiles of Anthropic's own `ant` command: found on this machine, referred to, never copied."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from server import oauth
from server.addresses import url_problem
from server.files import POSIX, Damaged, may_be_replaced, read_json_file
from server.oauth import BETA, InvalidGrant, OAuthSettings, Tokens, Unavailable, is_token, part
from server.shared_json import Document, Edit, SharedJson
from server.tokens import stored_time

ANTHROPIC = "https://api.anthropic.com"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+ -]{0,63}")  # it becomes a file name
DEADLINE = 20.0  # seconds for the `ant` command
NOT_FOR_ANT = {"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"}  # they would go before the profile


@dataclass(frozen=True)
class AntProfile:
    """A profile as the sign-in page offers it."""

    name: str
    active: bool  # the one `ant` itself uses now
    used: bool = False  # already one of our accounts


def config_dir(environ: Mapping[str, str]) -> Path:
    """$ANTHROPIC_CONFIG_DIR, or where the official SDKs look too (anthropic 2.11, lib/credentials)."""
    if given := environ.get("ANTHROPIC_CONFIG_DIR"):
        return Path(given)
    if os.name == "nt":
        return Path(environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "Anthropic"
    return Path.home() / ".config" / "anthropic"


def profiles(environ: Mapping[str, str]) -> list[AntProfile]:
    """The profiles on this machine that hold a login, the active one first."""
    folder = config_dir(environ)
    active = active_profile(environ)
    found = [
        AntProfile(config.stem, config.stem == active)
        for config in sorted(folder.glob("configs/*.json"))
        if NAME.fullmatch(config.stem) and (holds_login(config, folder) or command(environ))
    ]
    return sorted(found, key=lambda profile: not profile.active)


def active_profile(environ: Mapping[str, str]) -> str:
    if name := environ.get("ANTHROPIC_PROFILE"):
        return name
    try:
        return (config_dir(environ) / "active_config").read_text(encoding="utf-8").strip() or "default"
    except (OSError, UnicodeDecodeError):
        return "default"


def holds_login(config: Path, folder: Path) -> bool:
    try:
        credentials = credentials_file(read_json_file(config, follow=True), config.stem, folder)
        return tokens_in(read_json_file(credentials)) is not None
    except (OSError, Damaged):
        return False


def credentials_file(config: Document, profile: str, folder: Path) -> Path:
    given = part(config, "authentication").get("credentials_path")
    return Path(given).expanduser() if isinstance(given, str) and given else folder / "credentials" / f"{profile}.json"


def command(environ: Mapping[str, str]) -> str | None:
    return shutil.which("ant", path=environ.get("PATH", ""))


class AntStore:
    """One profile: `configs/NAME.json` says how, `credentials/NAME.json` holds the token.

    `ant` renews its own files; only where there is no such command we do it, as the official SDKs do.
    """

    def __init__(
        self,
        profile: str,
        settings: OAuthSettings,
        base_url: str,
        clock: Callable[[], float],
        environ: Mapping[str, str],
    ) -> None:
        folder = config_dir(environ)
        self.profile = profile
        self.config = SharedJson(folder / "configs" / f"{profile}.json", ours=False, clock=clock)
        self.file = SharedJson(folder / "credentials" / f"{profile}.json", ours=False, clock=clock)
        self._folder = folder
        self._settings = settings
        self._base_url = base_url
        self._clock = clock
        self._environ = environ

    async def look(self) -> None:
        await self.config.look()
        path = credentials_file(self.config.document, self.profile, self._folder)
        if path != self.file.path:
            self.file = SharedJson(path, ours=False, clock=self._clock)
        await self.file.look()

    @property
    def own_base_url(self) -> str:
        """The address the profile names; "" when it names none, or the usual one."""
        named = self.config.document.get("base_url")
        named = named.rstrip("/") if isinstance(named, str) else ""
        return "" if named == ANTHROPIC else named

    @property
    def workspace_id(self) -> str:
        """Sent as a header, except for federated tokens, which belong to one workspace already."""
        named = self.config.document.get("workspace_id")
        return named if is_token(named) and self._kind == "user_oauth" else ""

    @property
    def remedy(self) -> str:
        return f"Run in a terminal: ant auth login --profile {self.profile}"

    @property
    def problem(self) -> str:
        """Why the profile must not be used; "" if it may."""
        if problem := self.own_base_url and url_problem(self.own_base_url):
            return f"The base_url of this `ant` profile {problem}."
        try:
            mode = self.config.path.stat().st_mode
        except OSError:
            return f"This `ant` profile is no longer there. Remove the account, or make it anew. {self.remedy}"
        if POSIX and stat.S_IMODE(mode) & 0o022:
            return f"Others may write {self.config.path}. Run in a terminal: chmod go-w {self.config.path}"
        return ""

    def read(self) -> Tokens | None:
        tokens = None if self.problem else tokens_in(self.file.document)
        if tokens and not tokens.refresh_token and self._kind == "user_oauth":
            return replace(tokens, ends_at=tokens.expires_at)
        return tokens

    def put(self, spent: Tokens, new: Tokens) -> Edit:
        def edit(document: Document) -> Document:
            stored = tokens_in(document)
            if stored is None or stored.access_token == new.access_token:
                return document  # signed out, or `ant` has written it
            if stored.refresh_token != spent.refresh_token:
                return document  # renewed by another program
            return {
                "version": "1.0",
                "type": "oauth_token",
                **document,
                "access_token": new.access_token,
                "refresh_token": new.refresh_token,
                "expires_at": int(new.expires_at),
            }

        return edit

    async def ask(self, old: Tokens, *, repeat_lost: bool) -> Tokens:
        if program := command(self._environ):
            return await self._have_ant_renew(program)
        client_id = part(self.config.document, "authentication").get("client_id")
        if self._kind != "user_oauth":
            raise Unavailable("only the `ant` command can renew this profile; install it")
        if not isinstance(client_id, str) or not client_id:
            raise Unavailable("this `ant` profile is renewed by another program, which has not done so")
        if not old.refresh_token:
            raise InvalidGrant("it came without a refresh token")
        if self.file.unreadable:
            raise Unavailable(self.file.unreadable)
        if not may_be_replaced(self.file.path.resolve()):
            raise Unavailable(f"{self.file.path} cannot be written here, so its login cannot be renewed")
        token_url = f"{self.own_base_url or self._base_url}/v1/oauth/token"
        settings = replace(self._settings, token_url=token_url, client_id=client_id)
        headers = {"anthropic-beta": BETA}
        return await oauth.refresh(settings, old, clock=self._clock, repeat_lost=repeat_lost, headers=headers)

    async def _have_ant_renew(self, program: str) -> Tokens:
        """`ant auth print-credentials` renews what is near its end; what it prints then stands in its file too."""
        environ = {name: value for name, value in self._environ.items() if name not in NOT_FOR_ANT}
        arguments = ("auth", "print-credentials", "--profile", self.profile, "--access-token")
        nothing = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                program, *arguments, stdin=nothing, stdout=nothing, stderr=nothing, env=environ
            )
        except OSError as error:
            raise Unavailable(f"the `ant` command cannot be started ({type(error).__name__})") from None
        try:
            async with asyncio.timeout(DEADLINE):
                status = await process.wait()
        except TimeoutError:
            raise Unavailable("the `ant` command did not come to an end") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        await self.file.reload()
        tokens = tokens_in(self.file.document)
        if status != 0 or tokens is None or tokens.expires_at <= self._clock():
            raise Unavailable(f"`ant` did not renew the profile; run: ant auth login --profile {self.profile}")
        return tokens

    @property
    def _kind(self) -> str:
        return str(part(self.config.document, "authentication").get("type", ""))


def tokens_in(document: Document) -> Tokens | None:
    """The login in a credentials file (expires_at in unix seconds). Without an end it is valid until a 401."""
    access, refresh = document.get("access_token"), document.get("refresh_token")
    if not is_token(access):
        return None
    return Tokens(
        access_token=access,
        refresh_token=refresh if is_token(refresh) else "",
        expires_at=stored_time(document.get("expires_at"), missing=inf),
    )
