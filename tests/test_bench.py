"""The measuring tool and the page that tells what it measured."""

import json
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
PAGE = (TOP / "docs" / "performance.md").read_text(encoding="utf-8")
sys.path.append(str(TOP / "util"))

import bench  # noqa: E402
import bench_plan  # noqa: E402
import bench_servers  # noqa: E402


@pytest.mark.parametrize("load", bench.LOADS, ids=lambda load: load.name)
def test_the_page_names_every_load_with_a_figure_for_each_of_three_runs(load):
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| {load.name} |"))
    goal, *runs = (float(cell) for cell in row.strip("|").split("|")[1:])
    assert goal > 0
    assert len(runs) == 3
    assert all(runs)


def test_the_page_says_how_to_measure_again():
    assert "python util/bench.py" in PAGE
    for option in ("--loop plain", "--rounds", "--silence"):
        assert option in PAGE


@pytest.mark.parametrize("load", bench.LOADS, ids=lambda load: load.name)
def test_a_load_is_a_request_of_about_the_size_it_says(load):
    size = len(json.dumps(load.body()))
    assert size > (1_000_000 if "MB" in load.name else 1_500)
    assert load.units == load.requests * max(load.events, 1)


def test_the_upstream_reads_from_a_header_what_is_asked_of_it():
    head = b"post /v1/messages http/1.1\r\ncontent-length: 12\r\nanthropic-user-profile-id: 300/0.02\r\n\r\n"
    assert bench_servers.length_of(head) == 12
    assert bench_servers.asked_of(head) == (300, 0.02)
    assert bench_servers.asked_of(b"post / http/1.1\r\n\r\n") == (0, 0.0)


def test_a_row_compares_with_nginx_where_there_is_one():
    row = {"load": "2 KB", "unit": "request", "cpu_us": {"tavern": 300.0, "nginx": 20.0}, "memory_mib": 50.0}
    row["ms"] = {"tavern": 2.0, "direct": 0.5, "nginx": 0.6}
    assert "× nginx   15.0" in bench.show(row)
    del row["cpu_us"]["nginx"]
    assert "× nginx      –" in bench.show(row)


def test_the_planning_bench_plays_each_kind_of_chat_at_its_size():
    for chat, _ in bench_plan.CHATS.values():
        bodies = [*chat(40, 3)]
        assert len(bodies) == 3
        assert all(len(body["system"]) + len(body["messages"]) in (40, 42, 44) for body in bodies)
    lines = [*bench_plan.report(blocks=40, turns=3)]
    assert [line.partition("  ")[0].partition(" of ")[0].strip() for line in lines] == [*bench_plan.CHATS]
    assert all(line.count("median") == line.count("p99") == 2 for line in lines)


def test_a_chat_that_grows_is_planned_to_be_read_and_a_new_one_to_be_written(tmp_path):
    for name, reads in (("first sight", False), ("growing chat", True)):
        chat, helps = bench_plan.CHATS[name]
        (tmp_path / name).mkdir()
        turns = [*bench_plan.played(chat(60, 3), helps, tmp_path / name)]
        assert [turn.bill.read > 0 for turn in turns] == [False, reads, reads]


@pytest.mark.parametrize("name", bench_plan.CHATS)
def test_the_page_tells_what_planning_costs(name):
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
    assert all(float(cell) > 0 for cell in row.strip("|").split("|")[1:])
