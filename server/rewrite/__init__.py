"""What we send: the request, rewritten step by step. STEPS is the order."""

from __future__ import annotations

from server.request import ChatRequest
from server.rewrite.betas import fit_betas
from server.rewrite.context import Context, Options, Step
from server.rewrite.counting import fit_counting
from server.rewrite.model import choose_model
from server.rewrite.persona import add_persona
from server.rewrite.sampling import fit_sampling
from server.rewrite.system_line import add_system_line
from server.rewrite.ttl import strip_ttl

__all__ = ["STEPS", "Context", "Options", "Step", "rewrite", "step_name"]

STEPS: tuple[Step, ...] = (
    choose_model,
    add_persona,
    fit_sampling,
    fit_counting,
    fit_betas,
    add_system_line,
    strip_ttl,
)


def rewrite(request: ChatRequest, context: Context) -> ChatRequest:
    """The request as it goes upstream; each change it made is named in `changes`."""
    for step in STEPS:
        if step_name(step) not in context.options.skip_steps:
            request = step(request, context)
    return request


def step_name(step: Step) -> str:
    """The name by which a step is listed in receipts, in the README and in `skip_steps`."""
    return step.__name__


def readme_table() -> str:
    """The README's table of steps, in Markdown: each step's name and the first paragraph of its docstring."""
    rows = []
    for step in STEPS:
        first = (step.__doc__ or "").split("\n\n")[0]
        rows.append(f"| `{step_name(step)}` | {' '.join(first.split())} |")
    return "\n".join(["| step | what it changes, and why |", "|---|---|", *rows]) + "\n"
