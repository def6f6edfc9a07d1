"""Every model × every shape that front ends send × both versions of the API, before an upstream that is strict."""

import orjson
import pytest

from server.models import Models
from server.practice.rules import refusal
from server.request import ChatRequest
from server.rewrite import Context, Options, rewrite
from tests.shapes import shapes

NOW = 1_795_176_000.0  # 2026-11-20
LINE = "You are Claude Code, Anthropic's official CLI for Claude."
MODELS = Models.load()
KNOWN = [model.id for model in MODELS.all if not model.gone(NOW)]
UNKNOWN = [
    "claude-opus-6",
    "claude-sonnet-6-1",
    "claude-haiku-7-20280101",
    "claude-fable-9",
    "claude-novella-1",
    "anthropic/claude-opus-7",
]
ST_BETAS = "output-128k-2025-02-19,context-1m-2025-08-07,tools-2024-05-16,prompt-caching-2024-07-31,effort-2025-11-24"
SHAPES = shapes()


def asked(body, model, version="2023-06-01", betas="", counting=False):
    return ChatRequest.parse(orjson.dumps({**body, "model": model}), version=version, betas=betas, counting=counting)


def context(kind="api_key", **more):
    return Context(kind, MODELS, options=Options(required_system_line=LINE, **more), now=NOW)


def refused(sent, kind="api_key"):
    """What the strict upstream says against a request, if anything."""
    headers = {"anthropic-version": sent.version, "anthropic-beta": ",".join(sent.betas)}
    found = refusal(sent.body, headers, MODELS.like(sent.model), kind, NOW, counting=sent.counting)
    return found and f"{found.status} {found.message}"


def refusals(model, version, kind="api_key", counting=False):
    found = {}
    for name, body in SHAPES.items():
        request = asked(body, model, version, ST_BETAS, counting)
        sent = rewrite(request, context(kind))
        if words := refused(sent, kind):
            found[name] = words
    return found


@pytest.mark.parametrize("version", ["2023-06-01", "2026-10-21"])
@pytest.mark.parametrize("model", [*KNOWN, *UNKNOWN])
def test_no_shape_is_refused(model, version):
    assert refusals(model, version) == {}
