"""`doctor`: checks what usually goes wrong, and says what to do."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from server.browser import other_proxy
from server.clients import KEYS_LOST, THERE_ARE_KEYS
from server.config import TOP, Config
from server.payers import Account
from server.presets import Personas
from server.start import StartRefused, accounts_of, listen, prepare_folder

SKEW = 120.0  # seconds a clock may be off before sign-ins suffer
ROOM = 100 * 2**20  # bytes of disk below which writing becomes a matter of luck
PATIENCE = 8.0  # seconds
MARKS = {"ok": "✓", "note": "·", "bad": "✗"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: fine, worth knowing, or wrong; and the remedy."""

    mark: str  # ok · note · bad
    what: str


def examine(config: Config) -> int:
    """Look at everything and print it. The exit status: 1 if something is wrong."""
    logging.getLogger("server").addHandler(logging.NullHandler())  # what is found is printed here, once
    findings = []
    for finding in look(config, Personas(TOP / "presets")):
        print(f"  {MARKS[finding.mark]} {finding.what}", flush=True)
        findings.append(finding)
    wrong = sum(finding.mark == "bad" for finding in findings)
    print(f"\n{wrong} thing{'' if wrong == 1 else 's'} to mend." if wrong else "\nAll is well.", flush=True)
    return 1 if wrong else 0


def look(config: Config, personas: Personas) -> Iterator[Finding]:
    """Each check in turn, as it is done."""
    yield Finding("ok", "The settings can be read.")
    if config.practice:
        yield Finding("note", "Practice mode is on: replies come from the built-in stand-in, and no account is used.")
    yield port(config)
    try:
        warnings = prepare_folder(config.data_dir.expanduser())
    except StartRefused as error:
        yield Finding("bad", str(error))
        return
    yield Finding("ok", f"The data folder {config.data_dir.expanduser()} can be used.")
    yield from (Finding("note", warning) for warning in warnings)
    free = shutil.disk_usage(config.data_dir.expanduser()).free
    if free < ROOM:
        yield Finding("bad", f"Only {free // 2**20} MiB are free on its disk. Make room, or sign-ins may get lost.")
    yield database(config.data_dir.expanduser())
    yield from about_personas(personas)
    yield from asyncio.run(sign_ins(config))
    if not config.practice:
        yield from asyncio.run(reach(config.api_base_url))


def port(config: Config) -> Finding:
    if running := other_proxy(config.host, config.port):
        unlike = running.get("practice") and not config.practice
        how = ", in practice mode: its replies come from the built-in stand-in" if unlike else ""
        return Finding("ok", f"A Tavern Proxy is running at port {config.port}{how}.")
    try:
        for made in listen(config.host, config.port):
            made.close()
    except StartRefused as error:
        return Finding("bad", str(error))
    return Finding("ok", f"Port {config.port} is free.")


def database(folder: Path) -> Finding:
    """state.sqlite, read and not changed."""
    path = folder / "state.sqlite"
    keys = 0
    try:
        if path.exists() and path.stat().st_size:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
                (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    raise sqlite3.DatabaseError("its pages do not fit together")
                (keys,) = db.execute("SELECT count(*) FROM client_keys").fetchone()
    except (sqlite3.OperationalError, OSError) as error:
        return Finding("note", f"The client keys and books cannot be read just now ({error}).")
    except sqlite3.DatabaseError as error:
        return Finding("bad", f"state.sqlite is damaged ({error}). Start the proxy anew: it sets the file aside.")
    if not keys and (folder / THERE_ARE_KEYS).exists():
        return Finding("bad", KEYS_LOST)
    return Finding("ok", "The client keys and books can be read.")


def about_personas(found: Personas) -> Iterator[Finding]:
    yield Finding("ok", f"Personas: {', '.join(persona.name for persona in found.all()) or 'none'}.")
    yield from (Finding("bad", warning) for warning in found.warnings)


async def sign_ins(config: Config) -> list[Finding]:
    """What each account says of itself; tokens are read, never renewed here."""
    accounts = accounts_of(config)
    await accounts.look()
    found = [about(account) for account in accounts.all()]
    if not found:
        found = [Finding("note", "Nobody is signed in yet. Start the proxy, open its page and choose who pays.")]
    return [*found, *(Finding("bad", warning) for warning in accounts.warnings)]


def about(account: Account) -> Finding:
    kind = {"api_key": "API key", "platform": "ant profile", "subscription": "subscription sign-in"}[account.kind]
    if account.state == "ready":
        return Finding("ok", f"{account.name} ({kind}) is ready.")
    mark = "bad" if account.state == "sign_in_again" else "note"
    return Finding(mark, f"{account.name} ({kind}): {account.reason or account.state}")


async def reach(base_url: str) -> list[Finding]:
    """Whether the upstream answers, and whether its clock and ours agree."""
    import httpx2

    try:
        async with httpx2.AsyncClient(timeout=PATIENCE, trust_env=False, follow_redirects=False) as client:
            begun = time.time()
            answer = await client.get(f"{base_url}/v1/models", headers={"anthropic-version": "2023-06-01"})
    except httpx2.HTTPError as error:
        cause = "its certificate is not trusted" if isinstance(error.__cause__, ssl.SSLError) else type(error).__name__
        remedy = "Check the internet connection, a firewall or VPN"
        return [Finding("bad", f"{base_url} cannot be reached ({cause}). {remedy}, and the setting api_base_url.")]
    found = [Finding("ok", f"{base_url} answers.")]
    try:
        skew = parsedate_to_datetime(answer.headers["date"]).timestamp() - (begun + time.time()) / 2
    except (KeyError, ValueError):
        return found
    if abs(skew) > SKEW:
        wrong = f"This computer's clock is {abs(skew) / 60:.0f} min {'slow' if skew > 0 else 'fast'}"
        return [*found, Finding("bad", f"{wrong}. Set it right, or sign-ins fail.")]
    return [*found, Finding("ok", "The clock is right.")]
