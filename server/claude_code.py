"""Claude Code's stored login, a guest's property: read afresh when it changes, renewed only when it must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

from server import oauth
from server.files import may_be_replaced
from server.oauth import InvalidGrant, OAuthSettings, Tokens, Unavailable, is_token, part
from server.shared_json import Document, Edit, SharedJson
from server.tokens import stored_time

KEY = "claudeAiOauth"
ON_A_MAC = "On a Mac, Claude Code keeps its login in the Keychain, which this proxy does not read."


@dataclass(frozen=True)
class ClaudeCodeSettings:
    """The settings fallback_to_claude_code and claude_config_dir."""

    fallback: Literal["ask", "true", "false"] = "ask"
    config_dir: str = ""


def credentials_file(config_dir: str, environ: Mapping[str, str]) -> Path:
    """`.credentials.json` in the folder of the setting, of $CLAUDE_CONFIG_DIR, or in ~/.claude."""
    return Path(config_dir or environ.get("CLAUDE_CONFIG_DIR") or "~/.claude").expanduser() / ".credentials.json"


class ClaudeCodeStore:
    """`{"claudeAiOauth": {accessToken, refreshToken, expiresAt in ms, scopes, …}, …}`, shared with Claude Code.

    The file is written only after a renewal, as a whole new file with every field we do not know kept; an ended login
    is left exactly as it is, for Claude Code to deal with. Two programs renewing at once lose it (#54443 and #80585 of
    anthropics/claude-code), hence the lock, the second look, and the adoption of whatever is newer.
    """

    def __init__(self, path: Path, settings: OAuthSettings, clock: Callable[[], float]) -> None:
        self.file = SharedJson(path, ours=False, clock=clock)
        self.remedy = "Start Claude Code and sign in there."
        self.problem = ""
        self._settings = settings
        self._clock = clock

    async def look(self) -> None:
        await self.file.look()

    def read(self) -> Tokens | None:
        return tokens_in(self.file.document)

    def put(self, spent: Tokens, new: Tokens) -> Edit:
        def edit(document: Document) -> Document:
            stored = tokens_in(document)
            if stored is None:
                return document  # signed out meanwhile
            if stored.refresh_token != spent.refresh_token and stored.expires_at >= new.expires_at:
                return document  # Claude Code was faster
            login = {
                **part(document, KEY),
                "accessToken": new.access_token,
                "refreshToken": new.refresh_token,
                "expiresAt": int(new.expires_at * 1000),
                **({"scopes": list(new.scopes)} if new.scopes else {}),
            }
            return {**document, KEY: login}

        return edit

    async def ask(self, old: Tokens, *, repeat_lost: bool) -> Tokens:
        if self.file.unreadable:
            raise Unavailable(self.file.unreadable)
        if not old.refresh_token:
            raise InvalidGrant("it came without a refresh token")
        if not may_be_replaced(self.file.path.resolve()):
            raise Unavailable(
                f"{self.file.path} cannot be written here, so only Claude Code itself can renew its login"
            )
        return await oauth.refresh(self._settings, old, clock=self._clock, repeat_lost=repeat_lost)


def tokens_in(document: Document) -> Tokens | None:
    """The login in the file. Without an end it counts as valid until the upstream says otherwise."""
    login = part(document, KEY)
    access, refresh, scopes = login.get("accessToken"), login.get("refreshToken"), login.get("scopes")
    if not is_token(access):
        return None
    expires_at = stored_time(login.get("expiresAt"), missing=inf) / 1000
    return Tokens(
        access_token=access,
        refresh_token=refresh if is_token(refresh) else "",
        expires_at=expires_at,
        ends_at=inf if is_token(refresh) else expires_at,
        scopes=tuple(s for s in scopes if isinstance(s, str)) if isinstance(scopes, list) else (),
    )
