"""Who pays: the choice among accounts, what others see of one, and credentials that requests bring."""

import json
from dataclasses import replace
from math import inf, nan

import pytest

from server.days import rfc3339
from server.errors import ProxyError
from server.payers import (
    Account,
    Credential,
    choose,
    guest_credential,
    settle,
)
from tests.pools import (
    NOW,
    UPSTREAM,
)

KEY = "sk-ant-api03-abcdefgh-wxyz"


def account(id, **changes):
    return Account(**{"id": id, "name": id, "kind": "api_key", **changes})


def resting(id, until, **changes):
    return account(id, state="resting", rests_until=until, reason="limit", **changes)


# ---- the choice

READY, OFF = account("a"), account("off", enabled=False, state="off")
AGAIN = account("ended", kind="subscription", state="sign_in_again")
REFUSED = account("refused", state="sign_in_again")
CODE = account("code", kind="subscription", source="claude_code", priority=-5)


@pytest.mark.parametrize(
    ("accounts", "tried", "chosen"),
    [
        ([READY], (), "a"),
        ([account("a"), account("b")], (), "a"),
        ([account("a", priority=1), account("b")], (), "b"),
        ([account("a", priority=1), account("b", priority=-1), account("c", priority=-1)], (), "b"),
        ([CODE, account("a", priority=9)], (), "a"),
        ([CODE], (), "code"),
        ([account("a"), account("b")], ("a",), "b"),
        ([OFF, AGAIN, resting("r", NOW + 1), account("b")], (), "b"),
        ([resting("r", NOW)], (), "r"),
        ([resting("r", NOW - 1, priority=-1), account("b")], (), "r"),
    ],
)
def test_the_account_that_pays(accounts, tried, chosen):
    assert choose(accounts, NOW, tried=tried).id == chosen


@pytest.mark.parametrize(
    ("accounts", "tried", "status", "says"),
    [
        ([], (), 401, "Nobody is signed in"),
        ([OFF], (), 401, "switched off"),
        ([AGAIN, OFF], (), 401, "no longer accepts the saved sign-in"),
        ([REFUSED, OFF], (), 401, "API key is no longer accepted"),
        ([REFUSED, AGAIN], (), 401, "and sign in again"),
        ([resting("r", NOW + 90), AGAIN], (), 429, "in 90 s"),
        ([resting("r", NOW + 90), resting("s", NOW + 7200)], (), 429, "in 90 s"),
        ([resting("r", NOW + 7300)], (), 429, "in 2 h"),
        ([resting("r", NOW + 600)], (), 429, "in 10 min"),
        ([resting("r", inf)], (), 402, "credit or spend limit of every account is used up"),
        ([resting("r", inf), resting("s", NOW + 90)], (), 429, "in 90 s"),
        ([account("a")], ("a",), 503, "Try again"),
        ([account("a"), resting("r", NOW + 90)], ("a",), 503, "Try again"),
    ],
)
def test_why_nobody_pays_and_what_to_do(accounts, tried, status, says):
    with pytest.raises(ProxyError) as raised:
        choose(accounts, NOW, tried=tried)
    assert raised.value.status == status
    assert says in raised.value.message
    assert all(a.name not in raised.value.message.split() for a in accounts if len(a.name) > 1)


def test_when_all_rest_the_soonest_end_is_told_in_the_header_and_as_a_clock_time():
    with pytest.raises(ProxyError) as raised:
        choose([resting("r", NOW + 90.2), resting("s", NOW + 999)], NOW)
    assert raised.value.headers == {"retry-after": "91"}
    assert raised.value.type == "rate_limit_error"


SUBSCRIPTION = account("sub", kind="subscription", shared=True)  # as no file can make it, and yet


@pytest.mark.parametrize("accounts", [[READY], [SUBSCRIPTION, READY], [CODE], []])
def test_client_keys_are_served_by_shared_accounts_only_and_never_by_a_subscription(accounts):
    with pytest.raises(ProxyError) as raised:
        choose(accounts, NOW, shared_only=True)
    assert (raised.value.status, raised.value.type) == (403, "permission_error")
    assert choose([*accounts, account("shared", shared=True)], NOW, shared_only=True).id == "shared"


def test_a_rest_that_is_over_is_taken_as_over():
    assert settle(resting("r", NOW), NOW) == account("r")
    assert settle(resting("r", NOW + 1), NOW).state == "resting"


# ---- what others see


def test_the_public_row_has_the_fields_of_the_contract_and_no_secret():
    row = resting("r", NOW + 60, expires_at=NOW, identity="secret-digest", ends_with="wxyz").public(NOW)
    wanted = "id name kind state reason rests_until expires_at last_refresh_at last_refresh_error priority shared"
    assert set(wanted.split()) <= set(row)
    assert row["rests_until"] == "2026-11-18T11:07:40Z"
    assert row["last_refresh_at"] is row["last_refresh_error"] is None
    assert "secret-digest" not in json.dumps(row)
    assert resting("r", NOW).public(NOW)["state"] == "ready"


@pytest.mark.parametrize("moment", [None, inf, -inf, nan, 1e30, -1e30])
def test_a_time_no_calendar_holds_is_null(moment):
    assert rfc3339(moment) is None


def test_a_credential_sends_exactly_one_header_and_hides_its_secret():
    key = Credential("api_key", KEY, UPSTREAM)
    assert (key.headers(), key.betas) == ({"x-api-key": KEY}, ())
    for kind in ("platform", "subscription"):
        token = Credential(kind, "sk-ant-oat01-x", UPSTREAM, workspace_id="wrkspc_1")
        assert token.headers() == {"authorization": "Bearer sk-ant-oat01-x", "anthropic-workspace-id": "wrkspc_1"}
        assert token.betas == ("oauth-2025-04-20",)
    assert KEY not in repr(key)


# ---- guests

OURS = Credential("platform", "sk-ant-oat01-ours", "https://eu.example", "acc_1", "wrkspc_1")


@pytest.mark.parametrize(
    ("headers", "secret", "kind"),
    [
        ({"x-api-key": KEY}, KEY, "api_key"),
        ({"x-api-key": f"  {KEY} "}, KEY, "api_key"),
        ({"authorization": f"Bearer {KEY}"}, KEY, "api_key"),
        ({"authorization": f"bearer  {KEY}"}, KEY, "api_key"),
        ({"x-api-key": KEY, "authorization": "Bearer sk-ant-oat01-x"}, KEY, "api_key"),
        ({"x-api-key": "anything", "authorization": f"Bearer {KEY}"}, KEY, "api_key"),
        ({"x-api-key": "sk-ant-oat01-theirs"}, "sk-ant-oat01-theirs", "subscription"),
        ({"authorization": "Bearer sk-ant-oat01-ours"}, "sk-ant-oat01-ours", "platform"),
    ],
)
def test_a_credential_in_the_headers_serves_that_request(headers, secret, kind):
    found = guest_credential(headers, [OURS], UPSTREAM)
    assert (found.secret, found.kind, found.account_id) == (secret, kind, "")


def test_a_token_of_ours_pasted_as_the_password_goes_where_its_account_goes():
    found = guest_credential({"x-api-key": OURS.secret}, [OURS], UPSTREAM)
    assert found == replace(OURS, account_id="")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": "anything"},
        {"x-api-key": "mein Paßwort"},
        {"authorization": "Bearer anything"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": KEY},
        {"authorization": "Bearer"},
        {"x-api-key": "SK-ANT-api03-x"},
        {"x-api-key": "my sk-ant-api03-x"},
    ],
    ids=str,
)
def test_whatever_else_stands_in_the_password_field_is_no_credential(headers):
    assert guest_credential(headers, [OURS], UPSTREAM) is None


@pytest.mark.parametrize("secret", ["sk-ant-api03-a b", "sk-ant-api03-ü", "sk-ant-ort01-refresh", "sk-ant-\x00"])
def test_what_is_meant_as_a_credential_but_cannot_be_one_is_refused_not_paid_by_the_owner(secret):
    with pytest.raises(ProxyError) as raised:
        guest_credential({"x-api-key": secret}, [OURS], UPSTREAM)
    assert raised.value.status == 401
    assert secret not in raised.value.message
