"""util/hindsight.py: the bound nobody can be below, one who knows what comes, and how near the planner is to them."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from chats import KINDS, Chat, any_chat
from traces import FOLDER, NAMES

from server.models import Models
from server.practice import accounting
from server.request import ChatRequest
from util import replay_trace
from util.replay_trace import FIRST_BYTE, Hindsight

MODELS = Models.load()
RECORDED = {  # what another program, written apart from this one, made of the recordings: clairvoyant and bound
    "group": (0.506, 0.504),
    "groupjoin": (0.697, 0.697),
    "long": (0.289, 0.288),
    "lorebook": (0.561, 0.547),
    "macros": (0.955, 0.955),
    "nosys": (0.519, 0.519),
    "plain": (0.311, 0.311),
    "prefill": (0.409, 0.408),
    "stcache": (0.801, 0.790),
    "summary": (0.642, 0.641),
    "swipes": (0.285, 0.285),
    "thinking": (0.377, 0.377),
    "truncation": (0.718, 0.709),
}


def recorded(name):
    return replay_trace.read_trace(FOLDER / f"{name}.jsonl.xz", MODELS)


def made_up(seed):
    _, given = any_chat(seed)
    return [replay_trace.Asked(t, ChatRequest(body), MODELS.like(body["model"])) for t, body in Chat(**given).play()]


def hindsight(trace):
    return Hindsight(
        [
            replay_trace.hindsight.Asked.of(one.at, replay_trace.without_marks(one.request.body), one.model)
            for one in trace
        ]
    )


def cost(asked, plans):
    entries, total = {}, 0.0
    for one, marks in zip(asked, plans, strict=True):
        prompt = replace(one.prompt, marks=marks)
        bill, changed = accounting.settle(entries, prompt, one.minimum, one.at, FIRST_BYTE)
        accounting.remember(entries, changed, one.at)
        total += one.cost(bill)
    return total


@pytest.mark.parametrize("name", NAMES)
def test_recorded_chats_cost_what_another_program_worked_out(name):
    trace = recorded(name)
    clairvoyant, bound = RECORDED[name]
    assert replay_trace.in_hindsight(trace).share == pytest.approx(clairvoyant, abs=0.002)
    assert hindsight(trace).bound() / replay_trace.without_caching(trace) == pytest.approx(bound, abs=0.025)


@pytest.mark.parametrize("seed", range(500, 500 + len(KINDS)))
def test_no_marks_cost_less_than_the_bound(seed):
    """Neither any that are drawn by lot, nor SillyTavern's, nor ours, nor the clairvoyant's."""
    rng, trace = random.Random(seed), made_up(seed)[:12]
    known = hindsight(trace)
    bound = known.bound() * (1 - 1e-9)
    for _ in range(10):
        ends = [
            sorted(rng.sample(sorted(one.markable), rng.randint(0, min(4, len(one.markable))))) for one in known.asked
        ]
        hours = [rng.randint(0, len(marks)) for marks in ends]
        lots = [{i: "1h" if n < h else "5m" for n, i in enumerate(m)} for m, h in zip(ends, hours, strict=True)]
        assert cost(known.asked, lots) >= bound
    for name, replay in replay_trace.policies(trace, MODELS):
        if "+" not in name:  # the helps send another prompt
            assert replay.share * replay.without >= bound, name
    assert cost(known.asked, known.clairvoyant()) >= bound


@pytest.mark.parametrize("name", ["group", "lorebook", "truncation"])
def test_who_knows_what_comes_obeys_the_rules(name):
    known = hindsight(recorded(name))
    for one, marks in zip(known.asked, known.clairvoyant(), strict=True):
        assert len(marks) <= 4
        assert marks.keys() <= one.markable
        assert all(one.prompt.upto[i] >= one.minimum for i in marks)
        assert all(early <= late for early, late in pairwise(ttl for _, ttl in sorted(marks.items()))), "hours first"


def test_the_planner_is_near_to_one_who_knows_what_comes():
    """In the recordings together, and in chats made up: of these none costs much more than without caching."""
    ours = clairvoyant = 0.0
    for name in NAMES:
        planned = replay_trace.by_planner(recorded(name), MODELS)
        ours += planned.share * planned.without
        clairvoyant += RECORDED[name][0] * planned.without
    assert ours / clairvoyant <= 1.09


def test_in_made_up_chats_the_planner_is_near_to_the_bound_and_none_costs_much_more_than_without_caching():
    ours = bound = 0.0
    for seed in range(600, 600 + 2 * len(KINDS)):
        trace = made_up(seed)
        planned = replay_trace.by_planner(trace, MODELS)
        assert planned.share <= 1.05, any_chat(seed)
        ours += planned.share * planned.without
        bound += hindsight(trace).bound()
    assert ours / bound <= 1.15
