from datetime import datetime

import pytest

from server.explain import Refusal, closing_words, is_policy, remedy, rests_until

NOW = datetime.fromisoformat("2026-11-20T20:00").astimezone().timestamp()  # on the clock where the test runs


def refusal(status=400, message="", code="", kind="api_key", **headers):
    return Refusal(status, "", message, code, {k.replace("_", "-"): v for k, v in headers.items()}, kind)


@pytest.mark.parametrize(
    "text",
    [
        "This credential is only authorized for use with Claude Code and cannot be used for other API requests.",
        "Third-party apps now draw from your extra usage, not your plan limits. Add more at claude.ai/settings/usage.",
        "OAuth authentication is currently not allowed for this organization.",
    ],
)
def test_a_subscription_refused_outside_its_apps_is_recognised(text):
    assert is_policy(refusal(message=text))
    assert "API key" in remedy(refusal(message=text), NOW)


def test_an_ordinary_400_is_no_policy():
    assert not is_policy(refusal(message="messages: at least one message is required"))
    assert remedy(refusal(message="messages: at least one message is required"), NOW) == ""


def test_too_long_a_prompt_names_both_numbers_and_the_slider():
    words = remedy(refusal(message="prompt is too long: 214032 tokens > 200000 maximum"), NOW)
    assert words.startswith("It is 14,032 tokens over the limit of 200,000. Lower “Context Size (tokens)”")


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "API key was refused"), (402, "Add credit"), (403, "may not use"), (413, "too large"), (529, "overloaded")],
)
def test_each_status_has_its_remedy(status, words):
    assert words in remedy(refusal(status), NOW)


def test_used_up_credit_is_known_by_its_words_too():
    assert "Add credit" in remedy(refusal(400, "Your credit balance is too low to access the API."), NOW)


def test_a_refused_sign_in_asks_to_sign_in_again():
    assert "sign in again" in remedy(refusal(401, kind="subscription"), NOW)


def test_a_spend_limit_is_told_from_a_rate_limit():
    assert "spend limit" in remedy(refusal(429, code="enforced_spend_limit_reached"), NOW)
    assert "spend limit" in remedy(refusal(400, "You have reached your specified API usage limits. Regain on …"), NOW)


def test_a_rate_limit_names_its_class_and_the_clock_time_it_ends():
    five = refusal(
        429,
        anthropic_ratelimit_unified_representative_claim="five_hour",
        anthropic_ratelimit_unified_reset=str(NOW + 5400),
    )
    assert remedy(five, NOW).startswith("Your plan's 5-hour limit ends at 21:30")
    assert remedy(refusal(429, retry_after="600"), NOW).startswith("This rate limit ends at 20:10")
    assert "wait a minute" in remedy(refusal(429), NOW)


def test_the_latest_exhausted_limit_counts_when_there_is_no_retry_after():
    headers = {
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-11-20T20:00:30Z",
        "anthropic-ratelimit-tokens-remaining": "5",
        "anthropic-ratelimit-tokens-reset": "2026-11-20T20:09:00Z",
        "anthropic-ratelimit-input-tokens-remaining": "0",
        "anthropic-ratelimit-input-tokens-reset": "2026-11-20T20:01:00Z",
    }
    assert rests_until(headers, NOW) == datetime.fromisoformat("2026-11-20T20:01:00Z").timestamp()


@pytest.mark.parametrize(
    ("stop_reason", "spoke", "mode", "words"),
    [
        ("refusal", False, "auto", "declined"),
        ("refusal", True, "auto", "declined"),
        ("max_tokens", False, "auto", "for thinking"),
        ("end_turn", False, "auto", "empty reply"),
        ("max_tokens", True, "true", "used up"),
        ("model_context_window_exceeded", True, "true", "context is full"),
        ("max_tokens", True, "auto", ""),
        ("end_turn", True, "true", ""),
        ("tool_use", False, "auto", ""),
        (None, False, "auto", ""),
        ("refusal", False, "false", ""),
    ],
)
def test_a_closing_line_stands_only_where_nothing_else_reaches_the_reader(stop_reason, spoke, mode, words):
    line = closing_words(stop_reason, {}, spoke=spoke, mode=mode)
    assert words in line
    assert bool(line) is bool(words)
