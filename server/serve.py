"""Run the program: sockets, what the start says, signals, and an end in good order."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable

from aiohttp import http_parser, web

from server import __version__
from server.addresses import own_url
from server.app import Parts, build
from server.browser import open_in_browser
from server.config import Config
from server.http_server import Runner
from server.logs import Lines, set_up
from server.start import BACKLOG, StartRefused, listen

log = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0  # how long open streams may finish after a signal
YOUNG = 50_000  # objects until the collector looks for cycles
LAST_SECONDS = 0.3  # for what is still open then: time for a last event


def serve(config: Config) -> int:
    """Run until a signal says stop. The exit status."""
    set_up(config.log_level)
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        return refuse("aiohttp came without its fast parser. Delete the folder .venv and start again.")
    sockets: list[socket.socket] = []
    try:
        sockets += listen(config.host, config.port)
        port = sockets[0].getsockname()[1]
        parts = build(config, port)
    except StartRefused as error:
        for made in sockets:
            made.close()
        return refuse(str(error))
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        return runner.run(run(config, parts, sockets, port))


def refuse(why: str) -> int:
    print(f"Cannot start. {why}", file=sys.stderr)
    return 1


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed; the plain one elsewhere, as on Windows."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def run(config: Config, parts: Parts, sockets: list[socket.socket], port: int) -> int:
    runner = Runner(parts.app, shutdown_timeout=LAST_SECONDS)
    await runner.setup()
    for made in sockets:
        await web.SockSite(runner, made, backlog=BACKLOG).start()
    stop = Stop()
    stop.listen()
    screen = Lines(sys.stdout)
    greet(screen, config, parts, port)
    spare_the_collector()
    await stop.asked.wait()
    await drain(screen, runner, parts, stop)
    return 0


def spare_the_collector() -> None:
    """What the start built stays, and requests leave no cycles: there is little to look for."""
    gc.freeze()
    gc.set_threshold(YOUNG)


async def drain(screen: Lines, runner: Runner, parts: Parts, stop: Stop) -> None:
    """Stop listening, let streams finish, then leave. A second signal leaves at once."""
    for site in list(runner.sites):
        await site.stop()
    if busy := parts.traffic.busy:
        screen.add(
            f"Stopping when {busy} open repl{'y has' if busy == 1 else 'ies have'} ended; Ctrl+C again to leave now."
        )
    finishing = asyncio.create_task(parts.traffic.drain(DRAIN_SECONDS))
    insisted = asyncio.create_task(stop.insisted.wait())
    await asyncio.wait([finishing, insisted], return_when=asyncio.FIRST_COMPLETED)
    for task in (finishing, insisted):
        task.cancel()
    await runner.cleanup()
    for handler in logging.getLogger().handlers:
        handler.flush()  # the log has a thread of its own, and this is the last word
    screen.add("Stopped.")
    screen.flush()


class Stop:
    """The signals: the first asks to stop, the second insists."""

    def __init__(self) -> None:
        self.asked, self.insisted = asyncio.Event(), asyncio.Event()

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self.note)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(self.note))

    def note(self) -> None:
        (self.insisted if self.asked.is_set() else self.asked).set()


def greet(screen: Lines, config: Config, parts: Parts, port: int) -> None:
    """What a beginner needs to know now, in a few lines."""
    here = own_url(config.host, port)
    signed_in = bool(parts.accounts.all()) or config.practice
    link = f"{here}/auth/login?token={parts.owner.new_link_token()}"
    screen.add()
    screen.add(f"Tavern Proxy {__version__} is running.")
    if config.practice:
        screen.add("  PRACTICE MODE: no account, no AI, nothing leaves this computer.")
    screen.add()
    screen.add("  In SillyTavern: API “Chat Completion”, source “Claude”, then under “Reverse Proxy”")
    screen.add(f"    Proxy Server URL   {here}/v1")
    screen.add(f"    Proxy Password     {password(parts)}")
    screen.add()
    screen.add(
        f"  {'Your page' if signed_in else 'Sign in'}: open this link once in your browser (keep it to yourself)"
    )
    screen.add(f"    {link}")
    screen.add()
    screen.add("  To stop: press Ctrl+C in this window, or close it.")
    screen.add()
    if config.auto_open_browser and not signed_in:
        open_in_browser(f"{here}/auth/login?token={parts.owner.new_link_token()}")


def password(parts: Parts) -> str:
    if parts.keys.first_key():
        return "the client key shown on your page (also in the file first_client_key of the data folder)"
    return "one of your client keys" if parts.keys.needed else "anything, for example: tavern"
