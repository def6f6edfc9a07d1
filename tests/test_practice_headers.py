"""What the practice upstream reads from headers: the credential, the version, the betas."""

import pytest

from server.practice.headers import betas_of, credential, refusal_of_headers
from server.practice.rules import REQUIRED_SYSTEM_LINE
from tests.practice import NEW, OLD, ask, said
from tests.steps import text


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-api-key": "sk-ant-api03-a"}, ("api_key", "sk-ant-api03-a")),
        ({"authorization": "Bearer sk-ant-api03-a"}, ("api_key", "sk-ant-api03-a")),
        (
            {"authorization": "Bearer sk-ant-oat01-a", "anthropic-beta": "oauth-2025-04-20"},
            ("platform", "sk-ant-oat01-a"),
        ),
        (
            {"authorization": "bearer sk-ant-oat01-subscription", "anthropic-beta": "x, oauth-2025-04-20"},
            ("subscription", "sk-ant-oat01-subscription"),
        ),
        ({"x-api-key": "sk-ant-api03-a", "authorization": "Bearer sk-ant-oat01-a"}, ("api_key", "sk-ant-api03-a")),
        ({}, (401, "authentication_error", "x-api-key header is required")),
        ({"x-api-key": "password"}, (401, "authentication_error", "invalid x-api-key")),
        ({"x-api-key": "sk-ant-oat01-a"}, (401, "authentication_error", "invalid x-api-key")),
        ({"authorization": "Bearer token"}, (401, "authentication_error", "Invalid bearer token")),
        ({"authorization": "Basic sk-ant-api03-a"}, (401, "authentication_error", "Invalid bearer token")),
        (
            {"authorization": "Bearer sk-ant-oat01-a"},
            (401, "authentication_error", "OAuth authentication is currently not supported."),
        ),
    ],
    ids=str,
)
def test_a_credential_is_known_by_its_beginning(headers, expected):
    assert credential(headers) == expected


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"anthropic-version": OLD}, None),
        ({"anthropic-version": NEW, "anthropic-beta": ""}, None),
        ({}, "anthropic-version: header is required"),
        ({"anthropic-version": "2025-01-01"}, 'anthropic-version: "2025-01-01" is not a valid version'),
        (
            {"anthropic-version": OLD, "anthropic-beta": "output-128k-2025-02-19,time-travel-2031-01-01"},
            "Unexpected value(s) `time-travel-2031-01-01` for the `anthropic-beta` header. Please",
        ),
    ],
    ids=str,
)
def test_version_and_betas_must_be_known(headers, message):
    found = refusal_of_headers(headers)
    assert found is None if message is None else (found.status == 400 and found.message.startswith(message))


def test_betas_are_told_apart_whatever_blanks_stand_between_them():
    assert betas_of({"anthropic-beta": " a ,b,, c"}) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("system", "accepted"),
    [
        (REQUIRED_SYSTEM_LINE, True),
        ([text(REQUIRED_SYSTEM_LINE), text("more")], True),
        ([text("more"), text(REQUIRED_SYSTEM_LINE)], False),
        ("You are Seraphina.", False),
    ],
)
def test_a_subscription_serves_requests_that_begin_with_the_required_line_alone(system, accepted):
    only = "This credential is only authorized for use with Claude Code and cannot be used for other API requests."
    assert said(ask(system=system), kind="subscription") == ("" if accepted else only)
    assert said(ask(system=system), kind="platform") == ""
    assert said(ask(), kind="subscription") == only


def test_the_long_context_beta_is_refused_to_subscriptions_on_models_that_need_it():
    body = ask("claude-sonnet-4-5", system=REQUIRED_SYSTEM_LINE)
    expected = "The long context beta is not yet available for this subscription."
    assert said(body, kind="subscription", betas="context-1m-2025-08-07") == expected
    assert said(body | {"model": "claude-opus-5"}, kind="subscription", betas="context-1m-2025-08-07") == ""
    assert said(body, kind="api_key", betas="context-1m-2025-08-07") == ""
