"""What the tests of single steps share: a request, and what a step may know."""

from server.models import Models
from server.request import ChatRequest
from server.rewrite import Context, Options

MODELS = Models.load()
NOW = 1_795_176_000.0  # 2026-11-20
HELLO = {"role": "user", "content": "Hello"}


def asked(model="claude-opus-4-6", *, version="2023-06-01", betas=(), counting=False, **body):
    return ChatRequest(
        {"model": model, "max_tokens": 60_000, "messages": [HELLO], **body},
        version=version,
        betas=betas,
        counting=counting,
    )


def knowing(
    kind="api_key", *, persona=None, lessons=(), model="claude-opus-4-6", anthropic_upstream=True, now=NOW, **options
):
    return Context(
        kind,
        MODELS,
        persona,
        Options(**options),
        {model: tuple(lessons)},
        anthropic_upstream=anthropic_upstream,
        now=now,
    )


def user(*blocks):
    return {"role": "user", "content": [text(b) if isinstance(b, str) else b for b in blocks]}


def assistant(*blocks):
    return {"role": "assistant", "content": [text(b) if isinstance(b, str) else b for b in blocks]}


def text(words, **more):
    return {"type": "text", "text": words, **more}


def details(request):
    return [change.detail for change in request.changes]
