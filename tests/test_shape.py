"""The shape of the code: imports run downhill, pure rooms do no I/O, every change has its line in the README."""

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
SERVER = TOP / "server"
MODULES = {
    ".".join(path.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SERVER.rglob("*.py"))
}
PURE = ["addresses", "errors", "content", "request", "sse", "retry", "explain", "lesson", "refusals", "paths", "prefix"]
PURE += ["prices"]
PURE_MODULES = [f"server.{name}" for name in PURE] + [name for name in MODULES if name.startswith("server.rewrite")]
PURE_MODULES += [name for name in MODULES if name.startswith("server.practice") and name != "server.practice.app"]
OUTSIDE = {"aiohttp", "httpx2", "asyncio", "os", "time", "random", "secrets", "socket", "subprocess", "sqlite3"}


def imported(path: Path) -> set[str]:
    """The modules a file imports when it is loaded or later, but for type checkers."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & MODULES.keys() or {node.module}  # a room taken out of a package needs no more of it
    return found


GRAPH = {name: (imported(path) & set(MODULES)) - {name, "server"} for name, path in MODULES.items()}


def test_no_room_imports_one_that_imports_it():
    left = {name: set(others) for name, others in GRAPH.items()}
    while ready := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in ready}
    assert not left, f"these import in a circle: {sorted(left)}"


@pytest.mark.parametrize("name", PURE_MODULES)
def test_pure_rooms_do_no_io_and_read_no_clock(name):
    assert not {module.partition(".")[0] for module in imported(MODULES[name])} & OUTSIDE


def test_the_road_never_imports_the_practice_upstream():
    users = {name for name, others in GRAPH.items() if any(other.startswith("server.practice") for other in others)}
    assert {name for name in users if not name.startswith("server.practice")} == {"server.app"}


def test_only_the_wire_speaks_aiohttps_client():
    client = re.compile(r"aiohttp\.(ClientSession|ClientRequest|TCPConnector)")
    assert [name for name, path in MODULES.items() if client.search(path.read_text(encoding="utf-8"))] == [
        "server.wire"
    ]


def test_httpx2_is_imported_only_when_first_needed():
    for path in MODULES.values():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            assert "httpx2" not in ast.dump(node) or not isinstance(node, ast.Import | ast.ImportFrom), path


def test_every_change_a_receipt_may_name_is_explained_in_the_readme():
    named = re.compile(r"""(?:Change|\.noted|\.but|\.without)\(\s*"([a-z_]+)",""")
    names = {name for path in MODULES.values() for name in named.findall(path.read_text(encoding="utf-8"))}
    readme = (TOP / "README.md").read_text(encoding="utf-8")
    assert len(names) > 15
    assert [name for name in sorted(names) if f"| `{name}` |" not in readme] == []
