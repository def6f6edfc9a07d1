"""What the prompt cache would save in a recorded chat: python util/replay_trace.py TRACE.jsonl[.xz] … [--turns]

Runs the recorded requests through the proxy's own rewriting and cache planner, on the recording's clock, and lets the
practice upstream's accounting make out the bill. Nothing is sent. Costs are input costs, as a share of no caching.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "util")]

import hindsight  # noqa: E402
from hindsight import FIRST_BYTE, Hindsight  # noqa: E402

from server.cache_draft import Bounds  # noqa: E402
from server.cache_helps import CacheHelps  # noqa: E402
from server.cache_memory import CacheMemory, Scope  # noqa: E402
from server.cache_planner import CachePlanner  # noqa: E402
from server.cache_why import tell  # noqa: E402
from server.errors import ProxyError  # noqa: E402
from server.models import Model, Models  # noqa: E402
from server.practice import accounting  # noqa: E402
from server.practice.accounting import Bill, Entry, Prompt  # noqa: E402
from server.request import ChatRequest  # noqa: E402
from server.rewrite import Context, Options, rewrite  # noqa: E402
from server.rewrite.cache_marks import without_marks  # noqa: E402

BACK_TO_BACK = 0.05  # seconds between requests where the planner sees no pauses

Marks = Mapping[int, str]
Marker = Callable[[Mapping[str, Any], Prompt], Marks]


@dataclass(frozen=True)
class Asked:
    """One recorded request."""

    at: float
    request: ChatRequest
    model: Model


@dataclass(frozen=True)
class Turn:
    """What one request cost. `share` is of sending it without caching."""

    at: float
    tokens: int
    bill: Bill
    cost: float
    outcome: str = ""
    missed_because: str | None = None


@dataclass(frozen=True)
class Replay:
    """A whole chat under one policy, with what it would have cost without caching."""

    turns: tuple[Turn, ...]
    without: float

    @property
    def share(self) -> float:
        return sum(turn.cost for turn in self.turns) / self.without if self.without else 1.0


def read_trace(path: Path, models: Models) -> list[Asked]:
    """The requests of a recording; its lines have `t` and `body`, and may have `headers`."""
    raw = path.read_bytes()
    text = (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode()
    return [asked(json.loads(line), models) for line in text.splitlines() if line.strip()]


def asked(record: Mapping[str, Any], models: Models) -> Asked:
    headers = {key.lower(): value for key, value in (record.get("headers") or {}).items()}
    request = ChatRequest.parse(
        json.dumps(record["body"]).encode(),
        version=headers.get("anthropic-version", ""),
        betas=headers.get("anthropic-beta", ""),
    )
    return Asked(float(record["t"]), request, models.like(request.model))


# -------------------------------------------------------------------------------------------------------- marks by rule


def message_ends(prompt: Prompt) -> dict[int, int]:
    """The last block of each message."""
    return {int(path.split(".")[1]): i for i, path in enumerate(prompt.paths) if path.startswith("messages.")}


def system_end(prompt: Prompt) -> int:
    return max((i for i, path in enumerate(prompt.paths) if path.startswith("system.")), default=-1)


def sillytavern(depth: int | None, lifetime: str) -> Marker:
    """SillyTavern's own caching: the end of `system`, and two messages counted from the end in changes of role."""

    def marks(body: Mapping[str, Any], prompt: Prompt) -> Marks:
        found = {system_end(prompt): lifetime}
        ends, messages = message_ends(prompt), body["messages"]
        last = max((i for i, message in enumerate(messages) if message["role"] != "assistant"), default=-1)
        switches, role = 0, ""
        for i in range(last, -1, -1):
            if depth is None or switches > depth + 2:
                break
            if messages[i]["role"] != role:
                if switches in (depth, depth + 2) and i in ends:
                    found[ends[i]] = lifetime
                switches, role = switches + 1, messages[i]["role"]
        return {i: ttl for i, ttl in found.items() if i >= 0}

    return marks


def automatic(body: Mapping[str, Any], prompt: Prompt) -> Marks:
    return {len(prompt.chain) - 1: "5m"}


def last_users(count: int) -> Marker:
    """The end of `system` and of the last user messages."""

    def marks(body: Mapping[str, Any], prompt: Prompt) -> Marks:
        ends = message_ends(prompt)
        users = [i for i, message in enumerate(body["messages"]) if message["role"] == "user" and i in ends]
        found = {system_end(prompt), *(ends[i] for i in users[-count:])}
        return {i: "5m" for i in found if i >= 0}

    return marks


SILLYTAVERN = {
    f"depth {depth} {lifetime}" if depth is not None else f"system {lifetime}": sillytavern(depth, lifetime)
    for depth in (None, 0, 2, 4)
    for lifetime in ("5m", "1h")
}
RULES = {"automatic": automatic, "last user": last_users(1), "last 2 users": last_users(2)}
OURS = {
    "ours": (True, CacheHelps()),
    "ours, 5m only": (False, CacheHelps()),
    "ours + late lore": (True, CacheHelps(cache_late_lore=True)),
    "ours + steady window": (True, CacheHelps(cache_steady_window=True)),
    "ours + both": (True, CacheHelps(cache_late_lore=True, cache_steady_window=True)),
}


# ------------------------------------------------------------------------------------------------------------ replaying


def priced(bill: Bill, model: Model) -> float:
    """A bill as so many plain tokens."""
    read = model.price.read / model.price.input if model.price and model.price.input else 0.1
    return bill.plain + read * bill.read + 1.25 * bill.write_5m + 2.0 * bill.write_1h


def by_rule(trace: Sequence[Asked], marker: Marker) -> Replay:
    entries: dict[bytes, Entry] = {}
    turns = []
    for one in trace:
        body = without_marks(one.request.body)
        prompt = accounting.read_prompt(body, one.model)
        prompt = replace(prompt, marks=marker(body, prompt))
        bill, changed = accounting.settle(entries, prompt, one.model.min_cacheable, one.at, FIRST_BYTE)
        accounting.remember(entries, changed, one.at)
        turns.append(Turn(one.at, prompt.tokens, bill, priced(bill, one.model)))
    return Replay(tuple(turns), without_caching(trace))


def by_planner(
    trace: Sequence[Asked],
    models: Models,
    *,
    ttl: bool = True,
    helps: CacheHelps | None = None,
    back_to_back: bool = False,
) -> Replay:
    """The chat as the proxy would send it. Back to back, the planner's clock shows no pauses, but the bill's does."""
    planner = CachePlanner(CacheMemory(b"replay"))
    context = Context("api_key", models, options=Options(skip_steps=("choose_model",)))  # retired ones are replayed too
    entries: dict[bytes, Entry] = {}
    turns = []
    for number, one in enumerate(trace):
        now = number * BACK_TO_BACK if back_to_back else one.at
        sent, plan = planner.plan(
            rewrite(one.request, context),
            one.model,
            Scope("replay", "key"),
            now,
            Bounds(ttl, helps or CacheHelps()),
        )
        prompt = accounting.read_prompt(sent.body, one.model)
        bill, changed = accounting.settle(entries, prompt, one.model.min_cacheable, one.at, FIRST_BYTE)
        accounting.remember(entries, changed, one.at)
        usage = accounting.usage(bill, 0)
        story = tell(plan, usage)
        planner.began(plan, usage, now, now + (0.0 if back_to_back else FIRST_BYTE))
        turns.append(Turn(one.at, prompt.tokens, bill, priced(bill, one.model), story.outcome, story.missed_because))
    return Replay(tuple(turns), without_caching(trace))


def without_caching(trace: Sequence[Asked]) -> float:
    return float(sum(accounting.read_prompt(without_marks(one.request.body), one.model).tokens for one in trace))


def in_hindsight(trace: Sequence[Asked]) -> Replay:
    """By one who knew each later request."""
    bare = [hindsight.Asked.of(one.at, without_marks(one.request.body), one.model) for one in trace]
    marks = iter(Hindsight(bare).clairvoyant())
    return by_rule(trace, lambda _body, _prompt: next(marks))


def policies(trace: Sequence[Asked], models: Models, *, back_to_back: bool = False) -> Iterator[tuple[str, Replay]]:
    """Every policy by its name; of SillyTavern's eight settings the best for this chat, known only afterwards."""
    settings = {name: by_rule(trace, marker) for name, marker in SILLYTAVERN.items()}
    best = min(settings, key=lambda name: settings[name].share)
    yield "SillyTavern best", settings[best]
    yield "SillyTavern d4 5m", settings["depth 4 5m"]
    for name, marker in RULES.items():
        yield name, by_rule(trace, marker)
    for name, (ttl, helps) in OURS.items():
        yield name, by_planner(trace, models, ttl=ttl, helps=helps, back_to_back=back_to_back)


# -------------------------------------------------------------------------------------------------------------- showing


def table(names: Sequence[str], results: Sequence[Mapping[str, Replay]]) -> str:
    """One row for each policy, one column for each recording, and the sum of all."""
    tokens, head = tokens_of(results), [*names]
    if len(names) > 1:
        tokens, head = [*tokens, sum(tokens)], [*head, "sum"]
    rows = [["", *head], ["k tokens", *(f"{count / 1000:.0f}" for count in tokens)]]
    rows += [["no caching", *("1.00" for _ in head)]]
    rows += [[policy, *(f"{share:.3f}" for share in shares(results, policy))] for policy in results[0]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def tokens_of(results: Sequence[Mapping[str, Replay]]) -> list[float]:
    """What each recording would cost without caching."""
    return [next(iter(result.values())).without for result in results]


def shares(results: Sequence[Mapping[str, Replay]], policy: str) -> list[float]:
    """The policy's share in each recording, and in all together where there are several."""
    tokens = tokens_of(results)
    costs = [result[policy].share * count for result, count in zip(results, tokens, strict=True)]
    each = [cost / (count or 1) for cost, count in zip(costs, tokens, strict=True)]
    return [*each, sum(costs) / (sum(tokens) or 1)] if len(results) > 1 else each


def turn_lines(replay: Replay) -> Iterator[str]:
    """A line for each turn; its time counts from the first."""
    for number, turn in enumerate(replay.turns, 1):
        bill = turn.bill
        figures = f"{bill.read:,} read, {bill.write_1h:,} + {bill.write_5m:,} written (1h + 5m), {bill.plain:,} plain"
        after, cost = turn.at - replay.turns[0].at, turn.cost / max(turn.tokens, 1)
        start = f"{number:4d}  {after:7.0f} s  {cost:.2f}  {turn.outcome:7s}"
        yield f"{start}  {figures}  {turn.missed_because or ''}".rstrip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE", help="a recording, .jsonl or .jsonl.xz")
    parser.add_argument("--turns", action="store_true", help="what hit in each turn under “ours”, and why not")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    parser.add_argument("--back-to-back", action="store_true", help="as if the proxy saw no pauses between requests")
    parser.add_argument("--hindsight", action="store_true", help="also what one would pay who knew each later request")
    given = parser.parse_args(arguments)
    models = Models.load()
    names, results = [], []
    for path in given.traces:
        try:
            trace = read_trace(path, models)
        except (OSError, ValueError, KeyError, TypeError, lzma.LZMAError, ProxyError) as error:
            print(f"{path}: cannot be read as a recording ({error}).", file=sys.stderr)
            return 1
        names.append(path.name.split(".")[0])
        results.append(dict(policies(trace, models, back_to_back=given.back_to_back)))
        if given.hindsight:
            results[-1]["in hindsight"] = in_hindsight(trace)
    if given.json:
        print(json.dumps({name: as_json(result) for name, result in zip(names, results, strict=True)}, indent=1))
        return 0
    print(table(names, results))
    for name, result in zip(names, results, strict=True) if given.turns else ():
        print(f"\n{name}, turn by turn:", *turn_lines(result["ours"]), sep="\n")
    return 0


def as_json(result: Mapping[str, Replay]) -> dict[str, Any]:
    return {
        policy: {
            "share": round(replay.share, 4),
            "turns": [{**asdict(turn), "bill": turn.bill._asdict()} for turn in replay.turns],
        }
        for policy, replay in result.items()
    }


if __name__ == "__main__":
    sys.exit(main())
