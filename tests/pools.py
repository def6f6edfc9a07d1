"""A pool of accounts on a folder of its own, with a clock the test moves and nothing of the person's own home."""

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from server.accounts import Accounts
from server.claude_code import ClaudeCodeSettings
from server.errors import ProxyError
from server.oauth import OAuthSettings, Tokens

TOP = Path(__file__).resolve().parent.parent
NOW = 1_795_000_000.0  # November 2026
UPSTREAM = "https://api.anthropic.com"
TOO_LATE = 30_000.0  # seconds after which the usual login has ended

needs_posix = pytest.mark.skipif(os.name == "nt", reason="only on Linux and macOS: file modes and signals")
NOBODY = 65534


class Clock:
    def __init__(self, now=NOW):
        self.now = now

    def __call__(self):
        return self.now


def settings(token_url, **changes):
    usual = OAuthSettings(
        authorize_url="https://claude.ai/oauth/authorize",
        token_url=token_url,
        redirect_uri="https://console.anthropic.com/oauth/code/callback",
        client_id="the-client",
        scopes="user:profile user:inference",
        deadline=30.0,
    )
    return replace(usual, **changes)


def make_pool(folder, token_url, clock=None, *, fallback="ask", base_url=UPSTREAM, path="", **changes):
    """Accounts on `folder`/data, with the folders of Claude Code and `ant` beside; programs are found on `path`."""
    environ = {"CLAUDE_CONFIG_DIR": str(folder / "claude"), "ANTHROPIC_CONFIG_DIR": str(folder / "ant"), "PATH": path}
    return Accounts(
        folder / "data",
        base_url=base_url,
        oauth=settings(token_url, **changes),
        claude_code=ClaudeCodeSettings(fallback),
        clock=clock or Clock(),
        environ=environ,
    )


@asynccontextmanager
async def started(accounts):
    await accounts.start()
    try:
        yield accounts
    finally:
        await accounts.close()


def login(oauth, clock, lifetime=28800.0, **changes):
    """A login as a sign-in ends in one, alive at the fake endpoint."""
    pair = oauth.issue()
    usual = Tokens(
        access_token=pair["access_token"],
        refresh_token=pair["refresh_token"],
        expires_at=clock() + lifetime,
        scopes=("user:profile", "user:inference"),
        details=dict(oauth.told),
    )
    return replace(usual, **changes)


def stored(folder):
    return json.loads((folder / "data" / "tokens.json").read_bytes())


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    path.chmod(0o600)
    return path


def python(script, *args, **kwargs):
    """A child process that runs `script`; it finds the program and the tests."""
    environ = {**os.environ, "PYTHONPATH": str(TOP), **kwargs.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        **kwargs,
    )


DROP_RIGHTS = f"""
import asyncio, encodings.ascii, encodings.idna, encodings.utf_8_sig, json, os, sys, tempfile
from pathlib import Path
from server.files import locked
from server.oauth import post
from tests.fake_oauth import FakeOAuth
import tests.pools

async def warm_up():
    with tempfile.TemporaryDirectory() as folder:
        async with locked(Path(folder) / "file"), FakeOAuth().serving() as oauth:
            await post(oauth.url, {{}}, deadline=30)

asyncio.run(warm_up())
if os.geteuid() == 0:
    os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
"""


def as_plain_user(script, *args):
    """What a child without root's rights prints; root would pass every check of file modes.

    They are dropped within the child, when it has loaded what it needs: Python may lie in a folder of root's own.
    """
    with python(DROP_RIGHTS + script, *args) as child:
        out, err = child.communicate(timeout=240)
    assert child.returncode == 0, err
    return out


def open_to_all(path):
    """Let a plain user reach what lies in a test's folder."""
    for folder in (path, *path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)


async def refused(coroutine):
    """The error that it raises."""
    with pytest.raises(ProxyError) as raised:
        await coroutine
    return raised.value


def on_disk(folder):
    """The one login in tokens.json."""
    (entry,) = stored(folder)["accounts"]
    return entry
