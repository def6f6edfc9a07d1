"""The composition root: every part built once, every route on one screen."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from aiohttp import web

from server import guard, pages
from server.accounts import Accounts
from server.api import Doors
from server.attempt import Attempts, check_key
from server.books import Books
from server.budget import Budgets
from server.cache_helps import CacheHelps
from server.cache_journal import Journal
from server.cache_memory import CacheMemory
from server.cache_planner import CachePlanner
from server.chats import Chats
from server.clients import ClientKeys
from server.config import CONFIG_FILE, ENV_FILE, TOP, Config
from server.days import begins, month_of
from server.doctor import look
from server.errors import ProxyError
from server.fitting import Fitting
from server.keepalive import KeepAlive, Pings, Sleep
from server.lesson_store import Lessons
from server.live_models import LiveModels
from server.messages import Messages
from server.metrics import Metrics
from server.model_list import ModelList
from server.models import Models
from server.owner import Owner
from server.pages import books as book_pages
from server.pages import keys as key_pages
from server.pages import live as live_pages
from server.pages import metrics as metrics_page
from server.pages import page
from server.payers import Credential
from server.practice.app import LocalPractice
from server.presets import Personas
from server.receipts import Receipts
from server.relay import Relay
from server.rewrite import Options
from server.signin import SignIn
from server.start import StartRefused, accounts_of, hold, oauth_settings, prepare_folder, unusable
from server.trace import TraceRecorder
from server.traffic import Traffic
from server.transfer import MAX_BODY
from server.turns import Turns
from server.upstream import Patience, Upstream

log = logging.getLogger(__name__)


@dataclass
class Parts:
    """The application, and the parts that serve.py speaks with besides."""

    app: web.Application
    keys: ClientKeys
    traffic: Traffic
    owner: Owner
    accounts: Accounts


def build(
    config: Config,
    port: int,
    *,
    patience: Patience | None = None,
    clock: Callable[[], float] = time.time,
    sleep: Sleep = asyncio.sleep,
    presets: Path = TOP / "presets",
) -> Parts:
    """The whole program, ready to be run; `port` is the one listened on. Raises StartRefused."""
    data_dir, patience = config.data_dir.expanduser(), patience or Patience()
    warnings = prepare_folder(data_dir)
    models = Models.load()
    try:
        keys = ClientKeys(
            data_dir,
            require=config.require_client_key,
            beyond_loopback=config.listens_beyond_loopback,
            clock=clock,
        )
        keys.first_key(make=config.make_first_key)
    except (sqlite3.OperationalError, OSError, ProxyError) as error:
        raise unusable(data_dir / "state.sqlite", error) from None
    if refusal := open_without_key(config, keys):
        keys.close()
        raise refusal

    # Practice is played for nothing: its turns stand in no real book, and what it refuses is no real model's word.
    kept = data_dir / ("practice.sqlite" if config.practice else "state.sqlite")
    books = Books(kept, models, days=config.books_days, clock=clock)
    personas = Personas(presets)
    metrics = Metrics()
    receipts = Receipts(models, books, metrics, keep_bodies=config.keep_bodies_in_memory)
    budgets = Budgets(models, books.charges(begins(month_of(clock()))), books.warned(), clock=clock)
    practice = LocalPractice(models, clock) if config.practice else None
    base_url = practice.url if practice else config.api_base_url.rstrip("/")
    accounts = accounts_of(config, base_url, clock)
    owner = Owner.at(data_dir, port, clock)
    live, lessons = LiveModels(models, clock=clock), Lessons(kept, models, clock=clock)
    journal = Journal(kept, now=clock())
    memory = CacheMemory(owner.admin_token.encode(), journal)
    planner = CachePlanner(memory) if plans_cache(config) else None
    upstream = Upstream(patience)
    attempts = Attempts(upstream, patience, explain=config.explain_in_chat)
    paid_by = Credential("api_key", "sk-ant-api03-practice", base_url, name="practice") if practice else None
    pings = Pings(accounts, attempts, live, receipts, budgets, practice=paid_by, clock=clock)
    fitting = Fitting(
        live,
        lessons,
        planner,
        KeepAlive(planner, pings.send, clock=clock, sleep=sleep) if planner else None,
        step_options(config),
        base_url=base_url,
        clock=clock,
    )
    relay = Relay(
        accounts,
        attempts,
        fitting,
        personas,
        CacheHelps(**{field.name: getattr(config, field.name) for field in fields(CacheHelps)}),
        keep_bodies=config.keep_bodies_in_memory > 0,
        practice=paid_by,
        clock=clock,
    )
    recorder = TraceRecorder(data_dir / "traces") if config.record_trace else None
    if recorder:
        warnings.append(recorder.warning)
    held, others = hold(data_dir)
    warnings += others
    for sentence in (*owner.warnings, *warnings):
        log.warning("%s", sentence)
    traffic = Traffic()
    chats = Chats(owner.admin_token.encode(), books.chats())
    turns = Turns(receipts, chats, recorder, clock)
    messages = Messages(
        keys,
        budgets,
        relay,
        turns,
        traffic,
        warm=partial(upstream.warm, base_url),
        skip_steps=config.skip_steps,
        reader_patience=patience.reader,
    )
    doors = Doors(
        messages,
        ModelList(relay, live, clock),
        keys,
        budgets,
        personas,
        accounts,
        relay,
        traffic,
        practice=config.practice,
        reader_patience=patience.reader,
    )

    app = web.Application(client_max_size=MAX_BODY)
    rules = guard.Rules.of(port, config.host, config.allowed_hosts, config.allowed_origins)
    guard.attach(app, rules, owner, page.refusal_page, turns.turned_away)
    app[page.CONFIG] = config
    app[page.ACCOUNTS] = accounts
    app[page.SIGNIN] = SignIn(data_dir, oauth_settings(config), clock=clock)
    app[page.OWNER] = owner
    app[page.PORT] = port
    app[page.CHECK_KEY] = lambda base_url, key: check_key(upstream, base_url, key)
    app[page.PASSWORD] = lambda: page.Password(needed=keys.needed, key=keys.first_key())
    app[page.PERSONAS] = personas
    app[page.PLACES] = (CONFIG_FILE, ENV_FILE, os.environ)
    app[page.EXAMINE] = lambda: list(look(config, personas))
    app[page.WARNINGS] = lambda: [*warnings, *keys.warnings, *books.warnings, *app[page.PERSONAS].warnings]
    app[key_pages.KEYS] = keys
    app[key_pages.BUDGETS] = budgets
    app[book_pages.RECEIPTS] = receipts
    app[book_pages.BOOKS] = books
    pages.attach(app)
    app[metrics_page.METRICS] = metrics
    app[metrics_page.BUSY] = lambda: traffic.busy
    app.add_routes(metrics_page.routes())
    receipts.when_changed(app[live_pages.NEWS].changed)
    app.add_routes(doors.routes())

    async def run_parts(app: web.Application) -> AsyncIterator[None]:
        """What is opened here is closed in the opposite order."""
        if practice:
            await practice.start()
        await upstream.open()
        await accounts.start()
        if not practice:
            upstream.warm(base_url)
        yield
        await fitting.close()
        await accounts.close()
        await upstream.close()
        memory.close()
        if recorder:
            recorder.close()
        lessons.close()
        books.close()
        if practice:
            await practice.stop()
        keys.close()
        held.release()

    app.cleanup_ctx.append(run_parts)
    return Parts(app, keys, traffic, owner, accounts)


def step_options(config: Config) -> Options:
    """The settings of the rewrite steps. Where the planner places the marks, it also takes out the front end's: the
    steps that mend those would only add lines to receipts."""
    given = {field.name: getattr(config, field.name) for field in fields(Options)}
    if plans_cache(config):
        given["skip_steps"] = (*config.skip_steps, "strip_ttl", "fit_marks")
    return Options(**given)


def plans_cache(config: Config) -> bool:
    return config.cache_planner and "plan_cache" not in config.skip_steps


def open_without_key(config: Config, keys: ClientKeys) -> StartRefused | None:
    """Beyond this computer nothing is served without a client key."""
    if not config.listens_beyond_loopback or keys.any():
        return None
    return StartRefused(
        f"host={config.host} would open the proxy to your network, but there is no client key yet. "
        "Start it once with host left blank, make a key on the page Keys, then set host again."
    )
