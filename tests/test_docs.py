"""util/docs.py, and whether README.md and config.txt are what the code says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from server import config
from util import docs

TOP = Path(__file__).parent.parent


def test_readme_and_config_txt_are_current():
    assert {path.name: "run .venv/bin/python util/docs.py" for path in docs.outdated()} == {}


def test_the_check_finds_the_same_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, TOP / "util" / "docs.py", "--check"], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_old_table_is_replaced_and_all_else_kept():
    text = "".join(
        f"before {name}\n<!-- {name} -->\n| of last year \\1 |\n<!-- /{name} -->\nbehind {name}\n"
        for name in docs.PARTS
    )
    written = docs.readme(text)
    for name, part in docs.PARTS.items():
        assert f"before {name}\n<!-- {name} -->\n{part()}<!-- /{name} -->\nbehind {name}\n" in written
    assert "of last year" not in written
    assert docs.readme(written) == written


@pytest.mark.parametrize("name", docs.PARTS)
def test_a_part_that_lost_its_place_is_named(name):
    text = "".join(f"<!-- {part} -->\n<!-- /{part} -->\n" for part in docs.PARTS if part != name)
    with pytest.raises(ValueError, match=f"<!-- {name} -->"):
        docs.readme(text)


@pytest.mark.parametrize("name", docs.PARTS)
def test_each_table_has_two_or_three_full_columns(name):
    head, rule, *rows = docs.PARTS[name]().splitlines()
    columns = head.count("|")
    assert rule == "|" + "---|" * (columns - 1)
    assert rows
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == columns, row
        assert not row.endswith("|  |"), "a docstring or a meaning is missing"


def test_each_room_of_the_server_has_its_sentence():
    table = docs.rooms_table()
    rooms = {path.name for path in (TOP / "server").glob("*.py")} - {"__init__.py"}
    rooms |= {f"{path.parent.name}/" for path in (TOP / "server").glob("*/__init__.py")}
    assert set(re.findall(r"^\| \[`(.+?)`\]", table, re.MULTILINE)) == rooms
    assert re.findall(r"^\| \[`(.+?)`\]", table, re.MULTILINE)[0] == "__main__.py"
    for target, sentence in re.findall(r"\]\((.+?)\) \| (.+) \|$", table, re.MULTILINE):
        assert (TOP / target).is_file()
        assert sentence.endswith("."), f"{target}: {sentence}"


def test_only_the_first_sentence_of_a_docstring_is_taken(tmp_path):
    room = tmp_path / "room.py"
    room.write_text('"""What a | is for: v1.0 and\nmore. The rest\nis for readers.\n\nAnd more."""\n')
    assert docs.purpose(room) == "What a \\| is for: v1.0 and more."


def test_every_setting_has_a_row_and_a_line():
    for text in (config.readme_table(), config.config_text()):
        for name in config.Config.__dataclass_fields__:
            assert re.search(rf"^(\| `)?{name}\b", text, re.MULTILINE), name
