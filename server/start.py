"""What a start needs before anything is built: sockets, the data folder, and the sentences that refuse it."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from server.accounts import Accounts
from server.browser import other_proxy
from server.claude_code import ClaudeCodeSettings
from server.config import Config
from server.files import PRIVATE_FILE, private_folder
from server.oauth import OAuthSettings

if TYPE_CHECKING:
    from filelock import FileLock

log = logging.getLogger(__name__)

BACKLOG = 512
NOT_ALONE = (
    "Another Tavern Proxy uses the same data folder. Each counts for itself what client keys spend, so a limit holds "
    "at each, not in all. Stop one of them, or set another data_dir."
)


class StartRefused(Exception):
    """The proxy may not start like this: one sentence with the remedy."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets for `host`; for a blank one this computer by both families, since “localhost” may mean either.
    Raises StartRefused."""
    if host:
        return [bound(host, port)]
    first = bound("127.0.0.1", port)
    try:
        return [first, bound("::1", first.getsockname()[1])]
    except StartRefused:
        return [first]  # no IPv6 here, or somebody else's port there


def bound(host: str, port: int) -> socket.socket:
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        raise StartRefused(not_ours(host)) from None
    try:
        if sys.platform == "win32":  # there another program could else take the port over
            made.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise StartRefused(why_not(host, port, error)) from None
    made.setblocking(False)
    return made


def why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        other = (
            " by another Tavern Proxy: use that one, or stop it first"
            if other_proxy(host, port)
            else " by another program"
        )
        return f"Port {port} at {host} is taken{other}. To use another port, set port=… in server/config.txt."
    if error.errno == errno.EACCES:
        return f"Port {port} is reserved by the system. Choose one above 1023: port=… in server/config.txt."
    return not_ours(host)


def not_ours(host: str) -> str:
    return f"host={host} is no address of this computer. Leave host blank for this computer only."


def prepare_folder(data_dir: Path) -> list[str]:
    """Make the data folder, for its owner alone. The warnings about it; raises StartRefused where it cannot be used."""
    try:
        warnings = private_folder(data_dir)
        if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "permission denied")
    except OSError as error:
        why = (error.strerror or "failed").lower()
        if data_dir.is_dir() and hasattr(os, "getuid"):
            remedy = f"{give(data_dir)}, or set data_dir in server/config.txt."
        else:
            remedy = "Set data_dir in server/config.txt to a folder of your own."
        raise StartRefused(f"The data folder {data_dir} cannot be used ({why}). {remedy}") from None
    return warnings


def give(folder: Path) -> str:
    """What to do where files are another user's, as after a start with sudo."""
    command = f" (sudo chown -R {os.getuid()}:{os.getgid()} '{folder}')" if hasattr(os, "getuid") else ""
    return f"Give it to the user who runs the proxy{command}"


def unusable(database: Path, error: Exception) -> StartRefused:
    """A file of the data folder cannot be opened, read or written: mostly the database."""
    path, why, denied = database, str(error), False
    if isinstance(error, OSError):
        path, why = Path(error.filename or database), (error.strerror or "failed").lower()
        denied = isinstance(error, PermissionError)
    elif isinstance(error, sqlite3.Error):
        denied = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    remedy = give(path.parent) if denied else "Make room on the disk, or close what else has it open"
    return StartRefused(f"{path} cannot be used ({why}). {remedy}, or set data_dir in server/config.txt.")


def hold(data_dir: Path) -> tuple[FileLock, list[str]]:
    """Lets other proxies know that this one uses the folder, until the lock is released; a warning if one does."""
    from filelock import FileLock, Timeout

    lock = FileLock(data_dir / "proxy.lock", mode=PRIVATE_FILE, fallback_to_soft=False, preserve_lock_file=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return lock, [NOT_ALONE]
    except (OSError, NotImplementedError) as error:  # such a disk knows no locks
        log.debug("%s cannot be locked: %s", lock.lock_file, error)
    return lock, []


def accounts_of(config: Config, base_url: str = "", clock: Callable[[], float] = time.time) -> Accounts:
    """The accounts as the settings have them; `base_url` where not api_base_url is the upstream."""
    return Accounts(
        config.data_dir,
        base_url=base_url or config.api_base_url,
        oauth=oauth_settings(config),
        claude_code=ClaudeCodeSettings(config.fallback_to_claude_code, config.claude_config_dir),
        choice=config.account_choice,
        clock=clock,
    )


def oauth_settings(config: Config) -> OAuthSettings:
    """Where the subscription sign-in happens."""
    return OAuthSettings(
        config.oauth_authorize_url,
        config.oauth_token_url,
        config.oauth_redirect_uri,
        config.oauth_client_id,
        config.oauth_scopes,
    )
