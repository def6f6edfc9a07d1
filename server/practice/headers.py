"""What the headers must be: one known version, known betas, one credential."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from server.errors import type_of
from server.practice.asked import Kind

VERSIONS = ("2023-06-01", "2026-10-21")
OAUTH_BETA = "oauth-2025-04-20"

# The values Anthropic's SDK names (2026-11), and those of older clients that are still taken.
BETAS = frozenset(
    """
    adaptive-thinking-2026-01-28 admin-user-sign-out-2026-10-08 advanced-tool-use-2025-11-20 advisor-tool-2026-03-01
    agent-memory-2026-07-22 analytics-usage-cost-2026-08-24 cache-diagnosis-2026-04-07
    ce-claude-code-managed-settings-2026-10-06 ce-plugins-2026-09-01 ce-user-management-2026-07-13
    claude-code-20250219 code-execution-2025-05-22 code-execution-2025-08-25 compact-2026-01-12 compact-2026-09-04
    computer-use-2024-10-22 computer-use-2025-01-24 computer-use-2025-11-24 context-1m-2025-08-07
    context-management-2025-06-27 dev-full-thinking-2025-05-14 dreaming-2026-04-21 effort-2025-11-24
    experimental-claude-tag-2026-10-21 extended-cache-ttl-2025-04-11 fallback-credit-2026-06-01
    fallback-credit-2026-07-01 fast-mode-2026-02-01 files-api-2025-04-14 fine-grained-tool-streaming-2025-05-14
    inline-tools-2026-09-15 interleaved-thinking-2025-05-14 managed-agents-2026-04-01
    max-tokens-3-5-sonnet-2024-07-15 mcp-client-2025-04-04 mcp-client-2025-11-20 mcp-client-2026-09-15
    mcp-tunnels-2026-06-22 message-batches-2024-09-24 message-threads-2026-08-12 messages-2023-12-15
    mid-conversation-output-config-2026-07-01 mid-conversation-system-clear-at-2026-08-21
    mid-conversation-tool-changes-2026-07-01 model-context-window-exceeded-2025-08-26 oauth-2025-04-20
    output-128k-2025-02-19 output-300k-2026-03-24 pdfs-2024-09-25 prompt-caching-2024-07-31
    prompt-caching-scope-2026-01-05 search-results-2025-06-09 server-side-fallback-2026-06-01
    server-side-fallback-2026-07-01 skills-2025-10-02 spend-limit-reads-2026-09-26 structured-outputs-2025-11-13
    task-budgets-2026-03-13 telemetry-destinations-2026-08-11 thinking-binding-controls-2026-08-01
    thinking-display-updates-2026-08-18 thinking-token-count-2026-05-13 token-counting-2024-11-01
    token-efficient-tools-2025-02-19 tool-examples-2025-10-29 tool-search-tool-2025-10-19 tools-2024-04-04
    tools-2024-05-16 user-profiles-2026-03-24 user-profiles-2026-08-18 user-profiles-2026-09-04
    user-profiles-billing-2026-10-01 web-fetch-2025-09-10 web-search-2025-03-05 webhooks-2026-10-07
    """.split()  # noqa: SIM905
)


class Refusal(NamedTuple):
    """A refused request: HTTP status, `error.type` and `error.message`."""

    status: int
    type: str
    message: str


def refused(status: int, message: str) -> Refusal:
    return Refusal(status, type_of(status), message)


def credential(headers: Mapping[str, str]) -> tuple[Kind, str] | Refusal:
    """The kind of credential and its text. `x-api-key` goes before `Authorization`.

    The practice upstream knows nobody, so the text alone tells: `sk-ant-api…` is an API key, `sk-ant-oat…` an access
    token, of a subscription if it has that word in it.
    """
    if key := headers.get("x-api-key", ""):
        return ("api_key", key) if key.startswith("sk-ant-api") else refused(401, "invalid x-api-key")
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if not token:
        return refused(401, "x-api-key header is required")
    if scheme.lower() == "bearer" and token.startswith("sk-ant-api"):
        return "api_key", token
    if scheme.lower() != "bearer" or not token.startswith("sk-ant-oat"):
        return refused(401, "Invalid bearer token")
    if OAUTH_BETA not in betas_of(headers):
        return refused(401, "OAuth authentication is currently not supported.")
    return ("subscription" if "subscription" in token else "platform"), token


def betas_of(headers: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for part in headers.get("anthropic-beta", "").split(",") if (name := part.strip()))


def refusal_of_headers(headers: Mapping[str, str]) -> Refusal | None:
    version = headers.get("anthropic-version", "")
    if not version:
        return refused(400, "anthropic-version: header is required")
    if version not in VERSIONS:
        return refused(400, f'anthropic-version: "{version}" is not a valid version')
    if unknown := [name for name in betas_of(headers) if name not in BETAS]:
        names = ", ".join(f"`{name}`" for name in unknown)
        return refused(
            400,
            f"Unexpected value(s) {names} for the `anthropic-beta` header. Please consult our documentation at "
            "docs.anthropic.com or try again without the header.",
        )
    return None
