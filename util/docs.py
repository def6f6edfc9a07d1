"""Writes into README.md and server/config.txt what they take from the code: python util/docs.py [--check]"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from server import config, rewrite  # noqa: E402
from server.__main__ import COMMANDS  # noqa: E402

README = ROOT / "README.md"

# The order of the rooms in README: the start, then the road of a request. Rooms not named here stand behind.
ROAD = (
    *("__main__", "serve", "app", "config", "errors", "http_server", "guard"),
    *("api", "paths", "messages", "transfer", "turns", "traffic", "clients", "request", "content"),
    *("relay", "accounts", "payers", "tokens"),
    *("fitting", "presets", "rewrite", "models", "attempt", "upstream", "wire", "sse", "reply", "explain", "retry"),
    *("prices", "receipt", "receipts"),
)


def commands_table() -> str:
    rows = [f"| `./run.sh {name}` | {meaning} |" for name, meaning in COMMANDS.items() if name != "start"]
    return table("command", "what it does", ["| `./run.sh` | start the proxy |", *rows])


def rooms_table() -> str:
    """A row for each module of server/: its name, and the first sentence of its docstring."""
    rooms = dict(rooms_of(ROOT / "server"))
    order = [name for name in ROAD if name in rooms] + sorted(rooms.keys() - set(ROAD))
    rows = []
    for name in order:
        path = rooms[name]
        shown = f"{name}/" if path.name == "__init__.py" else path.name
        rows.append(f"| [`{shown}`]({path.parent.relative_to(ROOT).as_posix()}/{path.name}) | {purpose(path)} |")
    return table("room", "what it is for", rows)


def rooms_of(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            yield path.stem, path
        elif (path / "__init__.py").exists():
            yield path.name, path / "__init__.py"


def util_table() -> str:
    """A row for each script of util/: its name, and the first line of its docstring."""
    scripts = sorted((ROOT / "util").glob("*.py"))
    rows = [f"| [`{path.name}`](util/{path.name}) | {docstring(path).splitlines()[0]} |" for path in scripts]
    return table("script", "its use", rows)


def purpose(path: Path) -> str:
    """The first sentence of a module's docstring."""
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", " ".join(docstring(path).split()))[0]


def docstring(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").replace("|", "\\|")


def table(left: str, right: str, rows: list[str]) -> str:
    return "\n".join([f"| {left} | {right} |", "|---|---|", *rows]) + "\n"


# What stands between <!-- name --> and <!-- /name --> in README.md
PARTS = {
    "commands": commands_table,
    "settings": config.readme_table,
    "steps": rewrite.readme_table,
    "rooms": rooms_table,
    "util": util_table,
}


def readme(text: str) -> str:
    """README's `text` with each part as it is now. Raises ValueError where a part has no place."""
    for name, part in PARTS.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, behind = rest.partition(f"<!-- /{name} -->")
        if not end:
            raise ValueError(f"README.md has no place for this part: <!-- {name} --> and, below it, <!-- /{name} -->")
        text = before + begin + part() + end + behind
    return text


def outdated() -> dict[Path, str]:
    """What each file that is no longer current should hold."""
    wanted = {README: readme(README.read_text(encoding="utf-8")), config.CONFIG_FILE: config.config_text()}
    return {path: text for path, text in wanted.items() if path.read_text(encoding="utf-8") != text}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something is out of date")
    check = parser.parse_args().check
    found = outdated()
    for path, text in found.items():
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text, encoding="utf-8", newline="\n")
    return 1 if found and check else 0


if __name__ == "__main__":
    sys.exit(main())
