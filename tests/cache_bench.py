"""A planner beside the practice upstream's accounting: what tests of the prompt cache play their chats against."""

from server.cache_draft import Bounds
from server.cache_helps import CacheHelps
from server.cache_memory import CacheMemory, Scope
from server.cache_planner import CachePlanner
from server.cache_why import tell
from server.models import Models
from server.practice import accounting
from server.request import ChatRequest

MODELS = Models.load()
SECRET = b"a secret of this test's own"


class Upstream:
    """The cache of one organisation's workspace, by the documented rules."""

    def __init__(self):
        self.entries = {}
        self.at = 0.0

    def bill(self, body, model, at, first_byte=1.0):
        prompt = accounting.read_prompt(body, model)
        bill, changed = accounting.settle(self.entries, prompt, model.min_cacheable, at, first_byte)
        return prompt, bill, changed


class Bench:
    """Plays requests through a planner against upstreams of its own, one for each workspace."""

    def __init__(self, memory=None, **options):
        self.memory = memory or CacheMemory(SECRET)
        self.planner = CachePlanner(self.memory)
        self.upstreams = {}
        self.options = options
        self.cost = self.tokens = 0.0

    def plan(self, body, at, *, workspace="w", **options):
        """The request as it would be sent, and its plan."""
        scope = Scope("https://api.example", f"key of {workspace}", workspace)
        model = MODELS.like(body["model"])
        return self.planner.plan(ChatRequest(body), model, scope, at, Bounds(**{**self.options, **options}))

    def ask(self, body, at, *, workspace="w", usage=None, **options):
        """Send it: the story of its cache. `usage` makes the upstream say something else than it did."""
        sent, plan = self.plan(body, at, workspace=workspace, **options)
        upstream = self.upstreams.setdefault(workspace, Upstream())
        prompt, bill, changed = upstream.bill(sent.body, plan.model, at)
        accounting.remember(upstream.entries, changed, at)
        said = accounting.usage(bill, 10) if usage is None else usage
        story = tell(plan, said)
        self.planner.began(plan, said, at, at + 1.0)
        price = plan.model.price
        read = price.read / price.input if price else 0.1
        self.cost += bill.plain + read * bill.read + 1.25 * bill.write_5m + 2 * bill.write_1h
        self.tokens += prompt.tokens
        self.sent, self.plan_, self.bill = sent, plan, bill
        return story

    def play(self, requests):
        """Every `(t, body, model)`: the stories, and at the end the share of no caching."""
        return [self.ask(body, t) for t, body, _ in requests]

    @property
    def share(self):
        return self.cost / self.tokens


def share_of(requests, **options):
    bench = Bench(**options)
    bench.play(requests)
    return bench.share


BOTH = CacheHelps(cache_late_lore=True, cache_steady_window=True)


def bare(value):
    """Without cache marks, wherever they are."""
    if isinstance(value, dict):
        return {key: bare(inner) for key, inner in value.items() if key != "cache_control"}
    return [bare(inner) for inner in value] if isinstance(value, list) else value


def as_lists(body):
    """A body with every plain string content as one text block: a mark turns one into the other."""

    def listed(content):
        return [{"type": "text", "text": content}] if isinstance(content, str) else content

    changed = {**body, "messages": [{**m, "content": listed(m["content"])} for m in body["messages"]]}
    return changed | ({"system": listed(body["system"])} if "system" in body else {})


def marks_of(body):
    """`(order, ttl)` of every mark, in the API's order: tools, system, messages."""
    found = [b.get("cache_control") for b in body.get("tools") or ()]
    system = body.get("system") or ()
    found += [b.get("cache_control") for b in (system if isinstance(system, list) else ())]
    for message in body["messages"]:
        content = message["content"]
        found += [b.get("cache_control") for b in (content if isinstance(content, list) else ())]
    return [mark.get("ttl", "5m") for mark in found if mark]
