"""What each model refuses in the settings of a request: samplers, lengths, thinking, effort."""

from __future__ import annotations

import math

from server.practice.asked import Asked
from server.practice.blocks import as_bytes, tokens


def long_context_beta(asked: Asked) -> str | None:
    """Models from 4.6 on hold a million tokens anyway, and ignore the beta."""
    if asked.kind == "subscription" and asked.model.context < 1_000_000 and "context-1m-2025-08-07" in asked.betas:
        return "The long context beta is not yet available for this subscription."
    return None


def sampling(asked: Asked) -> str | None:
    """Models from 4.7 on take no samplers; of the defaults only `temperature: 1` is known to be let pass."""
    given = {name: asked.body[name] for name in ("temperature", "top_p", "top_k") if name in asked.body}
    if asked.model.sampling == "none":
        for name, value in given.items():
            if (name, value) != ("temperature", 1):
                return f"`{name}` is deprecated for this model."
        return None
    if asked.model.sampling == "one" and given.keys() >= {"temperature", "top_p"}:
        return "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
    if not asked.thinks:
        return None
    consult = "when thinking is enabled or in adaptive mode. Please consult our documentation at docs.claude.com."
    if given.get("temperature", 1) != 1:
        return f"`temperature` may only be set to 1 {consult}"
    if given.get("top_p", 1) < 0.95:
        return f"`top_p` must be greater than or equal to 0.95 or unset {consult}"
    return f"`top_k` must be unset {consult}" if "top_k" in given else None


def stop_sequences(asked: Asked) -> str | None:
    if any(not text.strip() for text in asked.body.get("stop_sequences", ())):
        return "stop_sequences: each stop sequence must contain non-whitespace"
    return None


def length_of_reply(asked: Asked) -> str | None:
    most, model = asked.body.get("max_tokens", 1), asked.model
    if most > model.max_output:
        which = f"which is the maximum allowed number of output tokens for {model.id}"
        return f"max_tokens: {most} > {model.max_output}, {which}"
    if most == 0:
        format_ = (asked.body.get("output_config") or {}).get("format")
        for given, name in (
            (asked.body.get("stream"), "stream"),
            (asked.thinking.get("type") == "enabled", "thinking.type.enabled"),
            (format_, "output_config.format"),
            (asked.forces_tool, "a tool_choice that forces tool use"),
        ):
            if given:
                return f"max_tokens: 0 is not supported with {name}"
    return None


def length_of_prompt(asked: Asked) -> str | None:
    """Since Sonnet 4.5 a prompt that leaves less room than `max_tokens` is served, and its reply cut."""
    total = sum(tokens(block.content, len(as_bytes(block.content))) for block in asked.blocks)
    if total > asked.model.context:
        return f"prompt is too long: {total} tokens > {asked.model.context} maximum"
    return None


def speed_and_place(asked: Asked) -> str | None:
    if asked.body.get("speed") == "fast" and asked.model.fast_factor is None:
        return f"speed: fast mode is not supported for {asked.model.id}"
    if asked.body.get("inference_geo") and asked.model.prefill:  # the models before 4.6
        return "inference_geo: not supported for this model"
    return None


def thinking_type(asked: Asked) -> str | None:
    kind, model = asked.thinking.get("type"), asked.model
    if kind is None or kind in model.thinking:
        return None
    unsupported = f'"thinking.type.{kind}" is not supported for this model'
    if kind == "between_tools":
        return unsupported
    if kind == "adaptive":
        return "adaptive thinking is not supported on this model"
    if kind == "disabled" and "between_tools" in model.thinking:
        return f'{unsupported}. Use "thinking.type.between_tools" for the lowest thinking setting.'
    if kind == "disabled" and model.line in ("fable", "mythos"):
        return (
            f"{unsupported}. Thinking defaults to adaptive mode when not specified; use "
            '"thinking.type.enabled" with "budget_tokens" for extended thinking.'
        )
    return f'{unsupported}. Use "thinking.type.adaptive" and "output_config.effort" to control thinking behavior.'


def thinking_budget(asked: Asked) -> str | None:
    if "budget_tokens" in asked.thinking and asked.thinking["budget_tokens"] >= asked.body.get("max_tokens", math.inf):
        return "`max_tokens` must be greater than `thinking.budget_tokens`"
    return None


def effort(asked: Asked) -> str | None:
    level, model = asked.effort, asked.model
    if level and not model.efforts:
        return "This model does not support the effort parameter."
    if level and level not in model.efforts:
        return (
            f"This model does not support effort level '{level}'. Supported levels: {', '.join(sorted(model.efforts))}."
        )
    level = level or model.default_effort
    if asked.thinking.get("type") in ("disabled", "between_tools") and level and level not in model.off_efforts:
        return f"output_config.effort '{level}' is not supported when thinking is disabled on this model."
    return None
