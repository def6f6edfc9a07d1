"""util/replay_trace.py: what recorded chats cost under each way of caching; and the figures the planner must reach."""

import json
from pathlib import Path

import pytest
from chats import Chat
from traces import FOLDER, NAMES

from server.models import Models
from util import replay_trace

MODELS = Models.load()
FILES = [FOLDER / f"{name}.jsonl.xz" for name in NAMES]


@pytest.fixture(scope="module")
def replays():
    """Every recording under every policy."""
    return {
        path.name.split(".")[0]: dict(replay_trace.policies(replay_trace.read_trace(path, MODELS), MODELS))
        for path in FILES
    }


def share(replays, policy):
    costs = sum(replay[policy].share * replay[policy].without for replay in replays.values())
    return costs / sum(replay[policy].without for replay in replays.values())


@pytest.mark.parametrize(
    ("policy", "most"), [("ours", 0.58), ("ours, 5m only", 0.655), ("ours + late lore", 0.43), ("ours + both", 0.385)]
)
def test_recorded_chats_cost_at_most_this_share_of_no_caching(replays, policy, most):
    assert len(replays) == 13
    assert share(replays, policy) <= most


@pytest.mark.parametrize("name", NAMES)
def test_no_recorded_chat_costs_more_than_without_caching(replays, name):
    assert replays[name]["ours"].share <= 1.01
    assert replays[name]["ours, 5m only"].share <= 1.01


@pytest.mark.parametrize("name", ["lorebook", "macros", "truncation"])
def test_the_helps_make_changing_prompts_cheap(replays, name):
    assert replays[name]["ours + both"].share <= 0.39


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("SillyTavern best", 0.656),
        ("SillyTavern d4 5m", 0.731),
        ("automatic", 0.983),
        ("last user", 0.954),
        ("last 2 users", 0.887),
    ],
)
def test_fixed_rules_cost_what_was_worked_out_by_hand(replays, policy, expected):
    assert share(replays, policy) == pytest.approx(expected, abs=0.002)


def test_ours_is_cheaper_than_the_best_of_sillytaverns_settings(replays):
    assert share(replays, "SillyTavern best") / share(replays, "ours") > 1.13


def test_the_readme_tells_what_the_recorded_chats_cost(replays):
    text = " ".join((Path(replay_trace.__file__).parent.parent / "README.md").read_text(encoding="utf-8").split())
    ours, theirs, helped = (
        f"{100 * share(replays, policy):.0f} %" for policy in ("ours", "SillyTavern best", "ours + both")
    )
    assert f"came to {ours} of their price without caching; to {theirs} with the best" in text
    assert f"and to {helped} with the first two helps" in text


@pytest.fixture
def recording(tmp_path):
    """A recorded chat, as SillyTavern's requests are kept."""
    path = tmp_path / "evening.jsonl"
    played = Chat(seed=1, turns=8, earlier=20, lore=2).play()
    lines = [json.dumps({"t": 1_795_000_000 + t, "body": body}) for t, body in played]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_it_prints_a_table(recording, capsys):
    assert replay_trace.main([str(recording)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["evening"]
    assert [row.rsplit(None, 1)[0].strip() for row in rows[2:]] == [
        "no caching",
        "SillyTavern best",
        "SillyTavern d4 5m",
        *replay_trace.RULES,
        *replay_trace.OURS,
    ]


def test_turn_by_turn_it_says_what_hit_and_why_not(recording, capsys):
    assert replay_trace.main([str(recording), "--turns"]) == 0
    lines = capsys.readouterr().out.split("evening, turn by turn:\n")[1].splitlines()
    assert len(lines) == 8
    assert "first request of this chat" in lines[0]
    assert lines[0].split()[:3] == ["1", "0", "s"]
    assert all(" read, " in line for line in lines)


def test_as_json_it_says_everything(recording, capsys):
    assert replay_trace.main([str(recording), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["evening"]
    assert len(said["ours"]["turns"]) == 8
    assert sum(turn["cost"] for turn in said["ours"]["turns"]) > 0
    assert set(said["ours"]["turns"][0]["bill"]) == {"read", "write_1h", "write_5m", "plain"}


def test_back_to_back_the_bill_still_counts_the_pauses():
    trace = replay_trace.read_trace(FOLDER / "plain.jsonl.xz", MODELS)
    seen = replay_trace.by_planner(trace, MODELS)
    blind = replay_trace.by_planner(trace, MODELS, back_to_back=True)
    assert [turn.at for turn in blind.turns] == [turn.at for turn in seen.turns]
    assert any(turn.outcome == "miss" for turn in blind.turns[5:]), "after the pause of an hour"
    assert blind.share <= 1.25 * seen.share


def test_in_hindsight_it_could_have_been_cheaper(recording, capsys):
    assert replay_trace.main([str(recording), "--hindsight"]) == 0
    shares = {
        line.rpartition(" ")[0].strip(): float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[1:]
    }
    assert shares["in hindsight"] <= min(shares[name] for name in (*replay_trace.RULES, "ours", "SillyTavern best"))


@pytest.mark.parametrize("content", ["not json", '{"t": 1}', '{"t": 1, "body": {"messages": []}}'])
def test_what_is_no_recording_is_said_in_a_sentence(tmp_path, capsys, content):
    path = tmp_path / "odd.jsonl"
    path.write_text(content, encoding="utf-8")
    assert replay_trace.main([str(path)]) == 1
    assert "cannot be read as a recording" in capsys.readouterr().err


def test_its_first_line_says_its_use():
    first = Path(replay_trace.__file__).read_text(encoding="utf-8").splitlines()[0]
    assert "python util/replay_trace.py" in first
