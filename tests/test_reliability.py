"""docs/reliability.md: every fault and threat has its row, every test it names is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
TABLE = (TOP / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = {row[1]: row[0] for row in re.finditer(r"^\| ([FT]\d+) \|.*\|$", TABLE, re.M)}
NOT_OFFERED = {"F40", "F41"}


@cache
def functions_of(name):
    tree = ast.parse((TOP / "tests" / name).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_fault_and_threat_has_one_row_in_order():
    wanted = [f"F{number}" for number in range(1, 42)] + [f"T{number}" for number in range(1, 23)]
    assert [row[1] for row in re.finditer(r"^\| ([FT]\d+) \|", TABLE, re.M)] == wanted


@pytest.mark.parametrize("name", ROWS)
def test_a_row_names_tests_that_exist(name):
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", ROWS[name])
    assert named or name in NOT_OFFERED
    assert [f"{file}::{test}" for file, test in named if test not in functions_of(file)] == []


def test_what_protects_the_tokens_on_a_stolen_disk_is_said_plainly():
    said = (TOP / "SECURITY.md").read_text(encoding="utf-8") + (TOP / "README.md").read_text(encoding="utf-8")
    assert re.search(r"disk encryption|encrypt\w* (?:your|the) disk", said, re.I)
