"""The pool of accounts: who pays, and what the owner does with them."""

import asyncio
import json
import os
import stat
from math import inf

import pytest

from server.errors import ProxyError
from server.oauth import Tokens
from server.payers import Credential
from tests.pools import (
    NOW,
    TOO_LATE,
    UPSTREAM,
    login,
    make_pool,
    refused,
    started,
    stored,
)

pytestmark = pytest.mark.anyio

KEY = "sk-ant-api03-abcdefgh-wxyz"


# ---- the pool


async def test_before_anybody_signed_in_the_remedy_is_told_and_no_file_is_made(pool, tmp_path):
    assert (await refused(pool.credential())).status == 401
    assert pool.all() == ()
    assert not (tmp_path / "data" / "tokens.json").exists()


async def test_an_api_key_pays_and_is_kept_privately_over_a_restart(pool, tmp_path, oauth, clock):
    added = await pool.add_api_key(f" {KEY}\n", "Inn")
    assert (added.name, added.kind, added.ends_with, added.state) == ("Inn", "api_key", "wxyz", "ready")
    async with started(make_pool(tmp_path, oauth.url, clock)) as after:
        credential = await after.credential()
        assert credential == Credential("api_key", KEY, UPSTREAM, added.id)
        assert after.all() == (added,)
    if os.name != "nt":
        assert stat.S_IMODE((tmp_path / "data" / "tokens.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


async def test_the_same_key_again_replaces_it_and_another_is_added(pool):
    first = await pool.add_api_key(KEY, "Inn", "https://eu.example/")
    await pool.update(first.id, priority=3)
    again = await pool.add_api_key(KEY)
    assert (again.id, again.name, again.priority, again.base_url) == (first.id, "Inn", 3, "")
    await pool.add_api_key("sk-ant-api03-another")
    assert [a.name for a in pool.all()] == ["Inn", "API key …ther"]


@pytest.mark.parametrize(
    ("key", "base_url"),
    [
        ("", ""),
        ("   ", ""),
        ("a b", ""),
        ("sk-ant-api03-ü", ""),
        ("sk-ant\x00", ""),
        ("sk-ant-oat01-x", ""),
        ("sk-ant-ort01-x", ""),
        (KEY, "http://api.anthropic.com"),
        (KEY, "https://user:pw@api.anthropic.com"),
        (KEY, "https://api.anthropic.com?x=1"),
        (KEY, "http://127.0.0.1.evil.example"),
        (KEY, "http://169.254.169.254"),
        (KEY, "file:///etc/passwd"),
        (KEY, "nonsense"),
    ],
)
async def test_what_cannot_be_a_key_or_an_address_is_refused(pool, key, base_url):
    error = await refused(pool.add_api_key(key, "", base_url))
    assert error.status == 400
    assert pool.all() == ()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://openrouter.ai/api/v1", "https://openrouter.ai/api"),
        ("https://openrouter.ai/api/", "https://openrouter.ai/api"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("", UPSTREAM),
    ],
)
async def test_a_key_goes_to_its_own_host_only(pool, given, kept):
    await pool.add_api_key(KEY, "", given)
    assert (await pool.credential()).base_url == kept


async def test_a_refused_key_is_set_aside_and_the_next_account_pays(pool, tmp_path, oauth, clock):
    first = await pool.add_api_key(KEY)
    second = await pool.add_api_key("sk-ant-api03-second")
    credential = await pool.credential()
    assert await pool.after_401(credential) is None
    assert (await pool.credential()).account_id == second.id
    assert pool.get(first.id).state == "sign_in_again"
    assert KEY not in pool.get(first.id).reason
    await pool.tend()
    async with started(make_pool(tmp_path, oauth.url, clock)) as after:
        assert after.get(first.id).state == "sign_in_again"
    assert pool.wake(first.id).state == "ready"


async def test_a_refused_key_the_owner_has_replaced_meanwhile_is_not_held_against_the_account(pool, tmp_path):
    added = await pool.add_api_key(KEY)
    old = await pool.credential()
    document = stored(tmp_path)
    document["accounts"][0]["api_key"] = "sk-ant-api03-replaced"
    (tmp_path / "data" / "tokens.json").write_text(json.dumps(document))
    assert (await pool.after_401(old)).secret == "sk-ant-api03-replaced"
    assert pool.get(added.id).state == "ready"


async def test_a_guests_failure_is_nobody_elses(pool):
    await pool.add_api_key("sk-ant-api03-owner")
    guest = pool.guest({"x-api-key": KEY})
    assert await pool.after_401(guest) is None
    pool.rest(guest.account_id, NOW + 60, "limit")
    assert [a.state for a in pool.all()] == ["ready"]
    assert len(pool.all()) == 1


async def test_guests_and_the_owner_at_once_are_never_mixed(pool, tmp_path):
    await pool.add_api_key("sk-ant-api03-owner")

    async def one(i):
        if i % 3:
            return (await pool.credential()).secret
        return pool.guest({"x-api-key": f"sk-ant-api03-guest-{i}"}).secret

    got = await asyncio.gather(*(one(i) for i in range(1000)))
    assert got == ["sk-ant-api03-owner" if i % 3 else f"sk-ant-api03-guest-{i}" for i in range(1000)]
    assert "guest" not in (tmp_path / "data" / "tokens.json").read_text()


async def test_rests_end_by_themselves_or_when_the_owner_wakes_the_account(pool, clock):
    added = await pool.add_api_key(KEY)
    pool.rest(added.id, clock.now + 60, "per-minute limit")
    error = await refused(pool.credential())
    assert (error.status, error.headers["retry-after"]) == (429, "60")
    assert pool.get(added.id).reason == "per-minute limit"
    clock.now += 60
    assert (await pool.credential()).account_id == added.id
    pool.rest(added.id, inf, "spend cap")
    assert (await refused(pool.credential())).status == 402
    assert pool.get(added.id).public(clock.now)["rests_until"] is None
    assert pool.wake(added.id).state == "ready"
    assert (await pool.credential()).account_id == added.id


async def test_the_owner_may_rename_order_share_and_switch_off(pool):
    first, second = await pool.add_api_key(KEY), await pool.add_api_key("sk-ant-api03-second")
    changed = await pool.update(second.id, name="  The\x00 Inn  ", priority=-1, shared=True)
    assert (changed.name, changed.priority, changed.shared) == ("The Inn", -1, True)
    assert (await pool.credential()).account_id == second.id
    assert (await pool.credential(shared_only=True)).account_id == second.id
    assert (await pool.update(second.id, enabled=False)).state == "off"
    assert (await pool.credential()).account_id == first.id
    assert (await pool.update(second.id, enabled=True)).state == "ready"


async def test_a_subscription_cannot_be_shared_not_even_by_editing_the_file(pool, oauth, clock, tmp_path):
    added = await pool.add_oauth(login(oauth, clock))
    assert (await refused(pool.update(added.id, shared=True))).status == 400
    document = stored(tmp_path)
    document["accounts"][0]["shared"] = True
    (tmp_path / "data" / "tokens.json").write_text(json.dumps(document))
    assert (await refused(pool.credential(shared_only=True))).status == 403
    assert pool.get(added.id).shared is False


async def test_an_unknown_account_is_a_404(pool):
    for act in (pool.update("acc_x", name="x"), pool.remove("acc_x"), pool.refresh("acc_x")):
        assert (await refused(act)).status == 404
    for act in (pool.get, pool.wake):
        with pytest.raises(ProxyError) as raised:
            act("acc_x")
        assert raised.value.status == 404


# ---- subscription sign-ins


def tokens(organization="", account="", **told):
    details = {"organization": {"uuid": organization}, "account": {"uuid": account, **told}}
    return Tokens(f"sk-ant-oat01-{organization}{account}", "sk-ant-ort01-x", NOW + 9999, details=details)


async def test_the_same_identity_replaces_and_another_adds(pool):
    first = await pool.add_oauth(tokens("org", "me", email_address="me@inn.example"))
    assert first.name == "Claude subscription (me@inn.example)"
    await pool.update(first.id, name="Mine", priority=4)
    assert pool.replaced_by(tokens("org", "me")).id == first.id
    again = await pool.add_oauth(tokens("org", "me"))
    assert (again.id, again.name, again.priority) == (first.id, "Mine", 4)
    for other in (tokens("org", "you"), tokens("other", "me")):
        assert pool.replaced_by(other) is None
        await pool.add_oauth(other)
    assert len(pool.all()) == 3


async def test_without_an_identity_the_one_account_without_is_replaced(pool):
    await pool.add_oauth(tokens("org", "me"))
    first = await pool.add_oauth(tokens())
    assert (await pool.add_oauth(tokens())).id == first.id
    assert len(pool.all()) == 2


async def test_refreshing_at_the_owners_request_renews_at_once(pool, oauth, clock):
    added = await pool.add_oauth(login(oauth, clock))
    clock.now += 5
    after = await pool.refresh(added.id)
    assert (oauth.refreshes, after.last_refresh_at) == (1, clock.now)
    key = await pool.add_api_key(KEY)
    assert await pool.refresh(key.id) == key


async def test_a_failed_refresh_is_told_and_kept_on_the_account(pool, oauth, clock):
    added = await pool.add_oauth(login(oauth, clock))
    oauth.always = (503, "", {})
    for _ in range(2):  # the button does not mind the pause
        assert (await refused(pool.refresh(added.id))).status == 503
    assert len(oauth.seen) == 2
    assert "503" in pool.get(added.id).last_refresh_error
    oauth.always = (400, json.dumps({"error": "invalid_grant"}), {})
    assert (await refused(pool.refresh(added.id))).status == 401
    assert pool.get(added.id).state == "sign_in_again"


# ---- taking out


async def test_a_removed_account_is_gone_from_the_backup_too(pool, tmp_path):
    first, second = await pool.add_api_key(KEY), await pool.add_api_key("sk-ant-api03-second")
    await pool.remove(first.id)
    assert [a.id for a in pool.all()] == [second.id]
    for path in (tmp_path / "data").iterdir():
        assert KEY not in path.read_text()


async def test_signing_out_forgets_everything(pool, tmp_path, oauth, clock):
    await pool.add_api_key(KEY)
    await pool.add_oauth(login(oauth, clock))
    await pool.sign_out()
    assert pool.all() == ()
    assert (await refused(pool.credential())).status == 401
    for path in (tmp_path / "data").iterdir():
        assert "sk-ant" not in path.read_text()


# ---- secrets


async def test_no_secret_stands_in_a_row_a_warning_an_error_or_a_log_line(pool, oauth, clock, tmp_path, caplog):
    caplog.set_level("DEBUG")
    await pool.add_api_key(KEY)
    await pool.add_oauth(login(oauth, clock))
    clock.now += TOO_LATE
    key = await pool.credential()
    await pool.after_401(key)
    paid = await pool.credential()
    errors = []
    for odd in ((500, f"{paid.secret} is odd", {}), (400, json.dumps({"error": "invalid_grant"}), {})):
        oauth.odd.append(odd)
        errors.append(await refused(pool.refresh(paid.account_id)))
    told = repr([pool.all(), [a.public(NOW) for a in pool.all()], pool.warnings, errors, key, paid]) + caplog.text
    entry = stored(tmp_path)["accounts"][1]
    for secret in (KEY, paid.secret, entry["access_token"], entry["refresh_token"], *oauth.refresh, *oauth.access):
        assert secret not in told
