"""What we send: the request, rewritten step by step. STEPS is the order."""

from __future__ import annotations

from functools import cache

from server.request import ChatRequest
from server.rewrite.betas import fit_betas
from server.rewrite.context import Context, Options, Step
from server.rewrite.counting import fit_counting
from server.rewrite.fields import fit_fields
from server.rewrite.images import fit_images
from server.rewrite.marks import fit_marks
from server.rewrite.max_tokens import fit_max_tokens
from server.rewrite.model import choose_model
from server.rewrite.persona import add_persona
from server.rewrite.prefill import fit_prefill
from server.rewrite.refused import leave_out_refused
from server.rewrite.roles import fit_roles
from server.rewrite.sampling import fit_sampling
from server.rewrite.system_line import add_system_line
from server.rewrite.texts import fit_texts
from server.rewrite.thinking import fit_thinking
from server.rewrite.thoughts import fit_thoughts
from server.rewrite.tools import fit_tools
from server.rewrite.ttl import strip_ttl
from server.rewrite.version import fit_version

__all__ = ["STEPS", "Context", "Options", "Step", "readme_table", "rewrite", "step_name"]

STEPS: tuple[Step, ...] = (
    choose_model,
    add_persona,
    # what the request says
    fit_fields,
    fit_texts,
    fit_roles,
    fit_tools,
    fit_images,
    fit_version,
    add_system_line,  # behind the steps that may still put something into `system`
    fit_thoughts,  # behind everything that changes what stands before earlier thinking
    fit_prefill,
    # how it is to be answered
    fit_thinking,
    fit_max_tokens,
    fit_sampling,
    fit_counting,
    fit_betas,
    strip_ttl,
    fit_marks,
    leave_out_refused,
)


def rewrite(request: ChatRequest, context: Context) -> ChatRequest:
    """The request as it goes upstream; each change it made is named in `changes`."""
    for step in steps_without(context.options.skip_steps):
        request = step(request, context)
    return request


@cache
def steps_without(skipped: tuple[str, ...]) -> tuple[Step, ...]:
    """The steps that are left, in order."""
    return tuple(step for step in STEPS if step_name(step) not in skipped)


def step_name(step: Step) -> str:
    """The name by which a step is listed in receipts, in the README and in `skip_steps`."""
    return step.__name__


# Changes that receipts name besides those of the steps.
BESIDE = {
    "mend_text": "Replaces halves of emojis, which front ends cut apart now and then and Claude refuses.",
    "mend_shape": "Writes texts, blocks and numbers as the API spells them where they come in another shape.",
    "plan_cache": "Takes out the front end's cache marks and places those that pay (setting `cache_planner`).",
    "ask_why": "Asks Anthropic's API to say why the cache is missed, if it is (setting `cache_diagnostics`).",
    "learn": "Mends what the model has just refused, tries once more before anything reached you, and remembers it.",
}


def readme_table() -> str:
    """The README's table of steps, in Markdown: each step's name and the first paragraph of its docstring."""
    rows = [(step_name(step), (step.__doc__ or "").split("\n\n")[0]) for step in STEPS]
    lines = [f"| `{name}` | {' '.join(text.split())} |" for name, text in (*rows, *BESIDE.items())]
    return "\n".join(["| change | what it does, and why |", "|---|---|", *lines]) + "\n"
