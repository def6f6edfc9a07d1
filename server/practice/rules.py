"""What Anthropic refuses, in its own words and in order.

Source: Anthropic's API reference, model and migration pages (2026-11) and error texts seen in public reports. Wording
may change on their side; statuses and error types are stable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.models import Model
from server.practice import conversation, images, parameters, tools
from server.practice.asked import Asked, Kind, Rule
from server.practice.headers import Refusal, betas_of, refusal_of_headers, refused
from server.practice.shape import Malformed, check_body

REQUIRED_SYSTEM_LINE = "You are Claude Code, Anthropic's official CLI for Claude."

RULES: tuple[Rule, ...] = (
    conversation.required_system_line,
    parameters.long_context_beta,
    conversation.number_of_messages,
    conversation.empty_messages,
    conversation.system_messages,
    conversation.empty_texts,
    parameters.sampling,
    parameters.stop_sequences,
    parameters.speed_and_place,
    parameters.thinking_type,
    parameters.thinking_budget,
    parameters.effort,
    conversation.prefill,
    tools.tools,
    tools.forced_tools,
    tools.tool_calls,
    tools.thinking_before_tools,
    conversation.thinking_blocks,
    conversation.cache_marks,
    conversation.newest_version,
    images.images,
    parameters.length_of_reply,
    parameters.length_of_prompt,
)


def refusal(
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    model: Model | None,
    kind: Kind,
    now: float,
    *,
    counting: bool = False,
    required_line: str = REQUIRED_SYSTEM_LINE,
) -> Refusal | None:
    """Why Anthropic would refuse this request, or None. `headers` have lower-case names; `model` is None if unknown."""
    if refused_headers := refusal_of_headers(headers):
        return refused_headers
    version, betas = headers["anthropic-version"], betas_of(headers)
    try:
        check_body(body, version, betas, counting)
    except Malformed as error:
        return refused(400, str(error))
    if model is None or model.gone(now):
        return refused(404, f"model: {body['model']}")
    asked = Asked(body, model, version, betas, kind, required_line)
    if message := next((text for rule in RULES if (text := rule(asked))), None):
        return refused(400, message)
    return None
