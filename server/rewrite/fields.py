"""Step: fields the API does not know."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from server.content import Block, Message, text_block, with_blocks, with_messages
from server.models import Model
from server.request import ChatRequest
from server.rewrite.context import Context

# The fields of the API (its SDK's types, 2026-11).
FIELDS = frozenset(
    {
        *("model", "max_tokens", "messages", "system", "cache_control", "stop_sequences", "stream", "metadata"),
        *("thinking", "output_config", "tools", "tool_choice", "service_tier", "speed", "inference_geo", "container"),
        *("diagnostics", "temperature", "top_p", "top_k"),
    }
)
# Those that other steps look after.
PASSING = FIELDS - {
    *("service_tier", "speed", "inference_geo", "metadata", "output_config", "stop_sequences", "diagnostics"),
}
MESSAGE_KEYS = frozenset({"role", "content"})
MAY_BE_NULL = {"cache_control", "speed", "inference_geo", "container", "diagnostics"}
FIRST_WITH_PLACE = date(2026, 2, 5)  # Opus 4.6; earlier models refuse `inference_geo`
# Field → how the betas that bring it begin. Without that beta it is refused.
BETA_FIELDS = {
    "billing_policy": "user-profiles-billing-",
    "compaction": "compact-",
    "context_management": "context-management-",
    "fallback_credit_token": "fallback-credit-",
    "fallbacks": "server-side-fallback-",
    "mcp_servers": "mcp-client-",
    "thread": "message-threads-",
    "task_budget": "task-budgets-",
}
# Betas that bring no fields, or only those above. Any other may bring some that nobody here has heard of.
PLAIN_BETAS = (
    *BETA_FIELDS.values(),
    *("adaptive-thinking-", "cache-diagnosis-", "claude-code-", "code-execution-", "computer-use-", "context-1m-"),
    *("dev-full-thinking-", "effort-", "extended-cache-ttl-", "fast-mode-", "files-api-", "fine-grained-tool-"),
    *("interleaved-thinking-", "max-tokens-", "message-batches-", "messages-", "model-context-window-", "oauth-"),
    *("output-", "pdfs-", "prompt-caching-", "search-results-", "skills-", "structured-outputs-", "thinking-"),
    *("token-", "tool-examples-", "tool-search-", "tools-", "user-profiles-", "web-fetch-", "web-search-"),
)
# What front ends written for other APIs leave behind; no beta brings these.
FOREIGN = {
    *("best_of", "char_name", "do_sample", "echo", "frequency_penalty", "function_call", "functions", "grammar"),
    *("include_reasoning", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens_to_sample", "min_p"),
    *("mirostat", "n", "num_predict", "parallel_tool_calls", "presence_penalty", "prompt", "reasoning"),
    *("reasoning_effort", "repeat_penalty", "repetition_penalty", "response_format", "seed", "stop", "store"),
    *("stream_options", "suffix", "tfs", "top_a", "top_logprobs", "typical_p", "user", "user_name", "verbosity"),
}
BLOCK_KEYS: Mapping[str, frozenset[str]] = {
    kind: frozenset(keys.split()) | {"type", "cache_control"}
    for kind, keys in {
        "text": "text citations",
        "image": "source transformations",
        "document": "source citations context title",
        "search_result": "content source title citations",
        "tool_use": "id name input caller toolset_name",
        "tool_result": "tool_use_id content is_error toolset_name",
        "tool_reference": "tool_name",
    }.items()
} | {"thinking": frozenset({"type", "thinking", "signature"}), "redacted_thinking": frozenset({"type", "data"})}
OPENAIS = ("image_url", "input_image", "input_text", "output_text")  # types of blocks


def fit_fields(request: ChatRequest, context: Context) -> ChatRequest:
    """Leaves out fields the API does not know and would refuse, such as `frequency_penalty`, `user` or `char_name` of
    front ends written for other services, and empty ones; a `stop` or `max_completion_tokens` among them is translated.
    Fields of a beta pass with that beta's header."""
    if not context.anthropic_upstream:
        return request
    if is_plain(request):
        return request
    open_ended = any(not beta.startswith(PLAIN_BETAS) for beta in request.betas)
    known = {field for field, prefix in BETA_FIELDS.items() if any(beta.startswith(prefix) for beta in request.betas)}
    model = context.model_of(request)
    body = {}
    for key, value in translated(request.body).items():
        if key in FIELDS or key in known or (open_ended and key not in FOREIGN | BETA_FIELDS.keys()):
            fitted = fitting(key, value, known, model)
            if fitted is not None or (value is None and key in MAY_BE_NULL):
                body[key] = fitted
    if not open_ended:
        if not all(message.keys() <= MESSAGE_KEYS for message in body["messages"]):
            body["messages"] = [bare_message(message) for message in body["messages"]]
        if not all(is_known(*shape) for shape in request.shapes):
            body["messages"] = with_messages(body["messages"], known_keys)
        if isinstance(body.get("system"), list):
            body["system"] = with_blocks(body["system"], known_keys)
    if body == request.body:
        return request
    odd = {key for key in {*request.body, *body} if key not in body or body[key] != request.body.get(key)}
    named = ", ".join(sorted(readable(key, inside=key in body) for key in odd))
    return request.noted("fit_fields", f"Left out or mended what the API does not know: {named}.", body=body)


def is_plain(request: ChatRequest) -> bool:
    """Whether it has nothing but what passes as it is: so nearly every chat."""
    body, system = request.body, request.body.get("system")
    return (
        body.keys() <= PASSING
        and not any(value is None for value in body.values())
        and all(message.keys() <= MESSAGE_KEYS for message in body["messages"])
        and all(is_known(*shape) for shape in request.shapes)
        and all(is_known(str(block.get("type")), *block) for block in (system if isinstance(system, list) else ()))
    )


def is_known(kind: str, *keys: str) -> bool:
    """Whether blocks of this type, with these keys, pass as they are."""
    return kind not in OPENAIS and BLOCK_KEYS.get(kind, frozenset(keys)).issuperset(keys)


def bare_message(message: Message) -> Message:
    """A message without the names, ids and dates that front ends keep in it."""
    if message.keys() <= MESSAGE_KEYS:
        return message
    return {key: message[key] for key in message if key in MESSAGE_KEYS}


def translated(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body with other APIs' names for things that exist here under their own."""
    new = dict(body)
    stop = new.get("stop")
    if stop and "stop_sequences" not in new and isinstance(stop, str | list):
        new["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    for name in ("max_completion_tokens", "max_tokens_to_sample"):
        if isinstance(new.get(name), int) and new[name] > 0 and new.get("max_tokens") is None:
            new["max_tokens"] = new[name]
    return new


def fitting(key: str, value: Any, betas: set[str], model: Model | None) -> Any:
    """A field's value as the API takes it; None to leave it out. What other steps look after passes."""
    match key:
        case "service_tier":
            return value if value in ("auto", "standard_only") else None
        case "speed":
            has_fast = model is None or model.fast_factor is not None
            return value if value == "standard" or (value == "fast" and has_fast) else None
        case "inference_geo":
            too_old = model is not None and model.released < FIRST_WITH_PLACE
            return value if isinstance(value, str) and not too_old else None
        case "metadata":
            user = value.get("user_id") if isinstance(value, dict) else None
            return (
                {"user_id": user[:256]}
                if isinstance(user, str)
                else value
                if value in ({}, {"user_id": None})
                else None
            )
        case "output_config":
            return output_config(value, betas)
        case "stop_sequences":
            given = value if isinstance(value, list) else []
            texts = [text for text in given if isinstance(text, str) and text.strip()]
            return texts if texts or value == [] else None
        case "diagnostics":
            return value if isinstance(value, dict) and value.keys() <= {"previous_message_id"} else None
    return value


def output_config(value: Any, betas: set[str]) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    known = {"effort", "format"} | ({"task_budget"} & betas)
    kept: dict[str, Any] = {
        key: part
        for key, part in value.items()
        if key in known and (part is None or isinstance(part, str if key == "effort" else dict))
    }
    form = kept.get("format") or {}
    if form.get("type") == "json_schema":  # OpenAI's has a name as well
        kept["format"] = {key: part for key, part in form.items() if key in ("type", "schema")}
    return value if kept == value else kept or None


def known_keys(block: Block) -> list[Block]:
    """A block without keys that its kind does not have; texts and pictures as OpenAI's API spells them become ours."""
    kind = block.get("type")
    if kind in ("image_url", "input_image") and (url := image_url(block)):
        return [{"type": "image", "source": {"type": "url", "url": url}}]
    if kind in ("input_text", "output_text") and isinstance(block.get("text"), str):
        return [text_block(block["text"])]
    keys = BLOCK_KEYS.get(str(kind))
    if keys is None or block.keys() <= keys:
        return [block]
    return [{key: value for key, value in block.items() if key in keys}]


def image_url(block: Block) -> str:
    given = block.get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    return url if isinstance(url, str) else ""


def readable(key: str, *, inside: bool) -> str:
    """A field's name as a receipt may show it."""
    if inside and key in ("messages", "system"):
        return f"extra keys inside {key}"
    return key if len(key) <= 60 and key.isprintable() else "an unreadable name"
