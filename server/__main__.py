"""Start here: read the command and the settings, build the program, run it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from server import __version__
from server.config import Config, ConfigError

COMMANDS = {
    "start": "start the proxy (the same as no command)",
    "demo": "start with the built-in practice upstream: no account, no network, no AI",
    "open": "open the dashboard of the running proxy in the browser, signed in",
    "doctor": "check settings, port, data folder, sign-ins, clock and upstream, and say what to do",
    "test": "set up what the tests need and run them all",
    "fix": "tidy the code: format and lint",
}
RUN = "run.bat" if os.name == "nt" else "./run.sh"


def run() -> int:
    """`main`, which ends quietly where whoever reads its words goes away, as `head` does."""
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to be written at the end
        return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 fine, 1 refused or failed, 2 a command that does not exist."""
    command = read_command(arguments)
    if command in ("test", "fix"):
        print(f"“{command}” is run by {RUN}: type {RUN} {command}", file=sys.stderr)
        return 2
    try:
        config = Config.load()
    except ConfigError as error:
        print(f"Cannot start. {error}", file=sys.stderr)
        return 1
    if command == "demo":
        config = replace(config, practice=True)
    if command == "open":
        from server.browser import open_running

        return open_running(config)
    if command == "doctor":
        from server.doctor import examine

        return examine(config)
    from server.serve import serve

    return serve(config)


def read_command(arguments: Sequence[str] | None) -> str:
    width = max(map(len, COMMANDS)) + 2
    parser = argparse.ArgumentParser(
        prog=RUN,
        description="Tavern Proxy: SillyTavern and its cousins chat with Claude.",
        epilog="commands:\n" + "\n".join(f"  {name:{width}}{meaning}" for name, meaning in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=COMMANDS, default="start", metavar="command", help="see below")
    parser.add_argument("--version", action="version", version=f"Tavern Proxy {__version__}")
    return str(parser.parse_args(arguments).command)


if __name__ == "__main__":
    sys.exit(run())
