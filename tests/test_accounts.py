"""Who pays: the choice, the guests, what the owner does, and what becomes of it when the disk or the file fails."""

import asyncio
import json
import os
import shutil
import stat
from dataclasses import replace
from math import inf, nan
from random import Random

import pytest

from server.days import rfc3339
from server.errors import ProxyError
from server.health import Rest, longer_rest
from server.oauth import Tokens
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
    as_plain_user,
    login,
    make_pool,
    needs_posix,
    open_to_all,
    started,
    stored,
)

pytestmark = pytest.mark.anyio

TOO_LATE = 30_000.0
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


# ---- rests


def test_a_new_rest_never_shortens_the_one_that_holds():
    long = longer_rest(None, NOW + 3600, "five hours", NOW)
    assert longer_rest(long, NOW + 60, "a minute", NOW) == long
    assert longer_rest(long, NOW + 7200, "longer", NOW).reason == "longer"
    assert longer_rest(long, NOW + 3660, "later", NOW + 3601).reason == "later"


@pytest.mark.parametrize(
    ("until", "end"), [(NOW - 5, NOW + 1), (NOW, NOW + 1), (nan, NOW + 60), (inf, inf), (-inf, NOW + 1), (1e30, inf)]
)
def test_a_rest_lasts_at_least_a_second_and_one_beyond_a_year_has_no_end(until, end):
    assert longer_rest(None, until, "limit", NOW).until == end


def test_a_clock_set_back_by_a_day_ends_a_rest():
    rest = Rest(NOW, NOW + 60, "limit")
    assert rest.holds(NOW + 59)
    assert not rest.holds(NOW + 60)
    assert rest.holds(NOW - 1)
    assert not rest.holds(NOW - 86400)


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


# ---- the pool


@pytest.fixture
async def pool(tmp_path, oauth, clock):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        yield pool


async def refused(coroutine):
    with pytest.raises(ProxyError) as raised:
        await coroutine
    return raised.value


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


# ---- other processes


async def test_what_another_process_adds_is_seen_at_the_next_request(pool, tmp_path, oauth, clock):
    async with started(make_pool(tmp_path, oauth.url, clock)) as other:
        await other.add_api_key(KEY)
        assert (await pool.credential()).secret == KEY
        await pool.add_api_key("sk-ant-api03-second")
        await other.credential()
        assert len(other.all()) == 2


async def test_changes_of_two_processes_at_once_are_all_kept(pool, tmp_path, oauth, clock):
    async with started(make_pool(tmp_path, oauth.url, clock)) as other:
        await asyncio.gather(
            *(p.add_api_key(f"sk-ant-api03-{n}-{i}") for n, p in enumerate((pool, other)) for i in range(10))
        )
    assert len(stored(tmp_path)["accounts"]) == 20


# ---- the disk


async def test_when_nothing_can_be_saved_requests_go_on_from_memory_and_it_is_saved_later(
    pool, oauth, clock, tmp_path, caplog
):
    """The data folder goes away (a drive, a mount) while a login comes to its end."""
    await pool.add_oauth(login(oauth, clock))
    data, away = tmp_path / "data", tmp_path / "away"
    data.rename(away)
    data.write_text("something else")
    clock.now += TOO_LATE
    got = await asyncio.gather(*(pool.credential() for _ in range(100)))
    assert {credential.secret for credential in got} <= oauth.access
    assert (oauth.refreshes, oauth.reuses) == (1, 0)
    assert any("tokens.json" in words for words in pool.warnings)
    assert "tokens.json" in caplog.text

    data.unlink()
    away.rename(data)
    clock.now += 60
    await pool.tend()
    assert stored(tmp_path)["accounts"][0]["access_token"] == got[0].secret
    assert pool.warnings == []
    assert (await pool.credential()).secret == got[0].secret
    assert oauth.refreshes == 1


async def test_saving_is_tried_again_with_growing_pauses(pool, clock, tmp_path):
    data = tmp_path / "data"
    await pool.add_api_key(KEY)
    shutil.rmtree(data)
    data.write_text("something else")
    await pool.add_api_key("sk-ant-api03-second")
    assert len(pool.all()) == 2
    data.unlink()
    data.mkdir(mode=0o700)
    await pool.tend()
    assert not (data / "tokens.json").exists()  # the pause after the failure still holds
    clock.now += 1
    await pool.tend()
    assert "sk-ant-api03-second" in (data / "tokens.json").read_text()


READ_ONLY = """
from pathlib import Path
from tests.pools import Clock, login, make_pool, started
from tests.fake_oauth import FakeOAuth
async def main():
    folder, clock = Path(sys.argv[1]), Clock()
    async with FakeOAuth().serving() as oauth, started(make_pool(folder, oauth.url, clock)) as pool:
        (folder / "data").chmod(0o500)
        await pool.add_oauth(login(oauth, clock))
        clock.now += 30_000
        credential = await pool.credential()
        said = pool.warnings
        (folder / "data").chmod(0o700)
        clock.now += 60
        await pool.tend()
        saved = json.loads((folder / "data" / "tokens.json").read_bytes())["accounts"][0]["access_token"]
        print(json.dumps([credential.secret in oauth.access, oauth.refreshes, said, saved == credential.secret]))
asyncio.run(main())
"""


@needs_posix
async def test_in_a_folder_without_write_permission_a_sign_in_works_and_the_owner_is_told(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    folder.chmod(0o777)
    open_to_all(tmp_path)
    works, refreshes, said, saved = json.loads(await asyncio.to_thread(as_plain_user, READ_ONLY, folder))
    assert (works, refreshes, saved) == (True, 1, True)
    assert any("permission denied" in words for words in said)


async def test_a_folder_that_cannot_be_made_is_told_at_the_start_in_one_line(tmp_path, oauth, clock):
    (tmp_path / "data").write_text("a file where the folder should be")
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        assert any("data_dir" in words for words in pool.warnings)
        await pool.add_api_key(KEY)
        assert (await pool.credential()).secret == KEY


# ---- damaged files

FILE = json.dumps(
    {
        "version": 1,
        "accounts": [
            {"id": "acc_1", "kind": "api_key", "name": "Inn", "api_key": KEY, "priority": 2},
            {
                "id": "acc_2",
                "kind": "subscription",
                "access_token": "sk-ant-oat01-x",
                "refresh_token": "sk-ant-ort01-x",
            },
        ],
    },
    indent=2,
).encode()


def put_file(folder, raw, name="tokens.json"):
    (folder / "data").mkdir(exist_ok=True)
    path = folder / "data" / name
    path.write_bytes(raw)
    path.chmod(0o600)
    return path


DAMAGES = {
    "empty": b"",
    "zeros": b"\0" * 500,
    "cut": FILE[:150],
    "null": b"null",
    "a list": b"[]",
    "no version": b'{"accounts": []}',
    "accounts of the wrong type": b'{"version": 1, "accounts": {"a": 1}}',
    "not UTF-8": FILE.replace(b"Inn", b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_a_damaged_file_is_set_aside_and_its_backup_used(tmp_path, oauth, clock, damage):
    put_file(tmp_path, damage)
    put_file(tmp_path, FILE, "tokens.json.bak")
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        assert [a.id for a in pool.all()] == ["acc_1", "acc_2"]
        assert any("set aside as tokens.json.corrupt." in words and "backup" in words for words in pool.warnings)
    (aside,) = (tmp_path / "data").glob("tokens.json.corrupt.*")
    assert aside.read_bytes() == damage
    assert len(stored(tmp_path)["accounts"]) == 2


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_without_a_good_backup_the_damaged_file_is_kept_and_the_owner_told(tmp_path, oauth, clock, damage):
    put_file(tmp_path, damage)
    put_file(tmp_path, damage, "tokens.json.bak")
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        assert pool.all() == ()
        assert any("sign in again" in words for words in pool.warnings)
        await pool.add_api_key(KEY)
    (aside,) = (tmp_path / "data").glob("tokens.json.corrupt.*")
    assert aside.read_bytes() == damage
    assert len(stored(tmp_path)["accounts"]) == 1


async def test_a_file_damaged_while_the_proxy_runs_loses_nothing_it_knew(pool, oauth, clock, tmp_path):
    await pool.add_api_key(KEY)
    await pool.add_oauth(login(oauth, clock))
    put_file(tmp_path, b'{"version": 1, "acc')
    assert (await pool.credential()).secret == KEY
    await pool.tend()
    assert len(stored(tmp_path)["accounts"]) == 2
    assert any("still knew" in words for words in pool.warnings)


@needs_posix
@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
async def test_something_else_in_the_place_of_the_file_is_moved_away(tmp_path, oauth, clock, what):
    path = put_file(tmp_path, FILE)
    elsewhere = path.rename(tmp_path / "elsewhere")
    if what == "link":
        path.symlink_to(elsewhere)
    elif what == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.add_api_key("sk-ant-api03-new")
        assert len(pool.all()) == 1
    assert not path.is_symlink()
    assert "sk-ant-api03-new" in path.read_text()
    assert elsewhere.read_bytes() == FILE


@needs_posix
async def test_a_file_others_could_read_is_mended_and_the_owner_told(tmp_path, oauth, clock):
    path = put_file(tmp_path, FILE)
    path.chmod(0o644)
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert any(str(path) in words for words in pool.warnings)


async def test_a_file_of_a_newer_version_is_used_but_never_written(tmp_path, oauth, clock):
    newer = FILE.replace(b'"version": 1', b'"version": 2')
    path = put_file(tmp_path, newer)
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        assert [a.id for a in pool.all()] == ["acc_1", "acc_2"]
        assert (await pool.credential()).secret == KEY
        for act in (pool.add_api_key("sk-ant-api03-x"), pool.update("acc_1", name="x"), pool.sign_out()):
            error = await refused(act)
            assert error.status == 409
            assert "newer" in error.message
        assert (await refused(pool.refresh("acc_2"))).status == 503
        assert any("newer" in words for words in pool.warnings)
    assert path.read_bytes() == newer
    assert oauth.seen == []


async def test_an_entry_nobody_understands_is_kept_and_counted(tmp_path, oauth, clock):
    document = json.loads(FILE)
    document["accounts"].insert(0, {"id": "acc_0", "kind": "carrier pigeon"})
    put_file(tmp_path, json.dumps(document).encode())
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        assert [a.id for a in pool.all()] == ["acc_1", "acc_2"]
        assert any("1 account(s)" in words for words in pool.warnings)
        await pool.update("acc_1", name="x")
    assert stored(tmp_path)["accounts"][0] == {"id": "acc_0", "kind": "carrier pigeon"}


def mutated(random):
    raw = bytearray(FILE)
    match random.randrange(5):
        case 0:
            for _ in range(random.randint(1, 4)):
                raw[random.randrange(len(raw))] = random.randrange(256)
        case 1:
            del raw[random.randrange(len(raw)) :]
        case 2:
            start = random.randrange(len(raw))
            raw[start : start + random.randrange(60)] = b"\0" * random.randrange(60)
        case 3:
            start = random.randrange(len(raw))
            raw[start:start] = raw[start : start + random.randrange(60)]
        case 4:
            words = random.choice([b'"acc_1"', b'"api_key"', b'"sk-ant-oat01-x"', b"2", b'"Inn"', b"1"])
            raw = bytearray(FILE.replace(words, random.choice([b"null", b"[]", b"{}", b"1e400", b'""', b"true"])))
    return bytes(raw)


@pytest.mark.parametrize("rounds", [150, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_no_mutation_of_the_file_breaks_the_start_or_loses_the_old_bytes(
    tmp_path, oauth, clock, rounds, caplog, figure
):
    random = Random(11)
    for i in range(rounds):
        folder = tmp_path / str(i)
        folder.mkdir()
        raw = mutated(random)
        put_file(folder, raw)
        async with started(make_pool(folder, "http://127.0.0.1:9/v1/oauth/token", clock)) as pool:
            for account in pool.all():
                json.dumps(account.public(clock.now))
            (end,) = await asyncio.gather(pool.credential(), return_exceptions=True)
            assert isinstance(end, Credential) or (isinstance(end, ProxyError) and end.status in (401, 503))
            assert isinstance(pool.warnings, list)
        kept = [*(folder / "data").glob("tokens.json*")]
        assert raw in [path.read_bytes() for path in kept if path.suffix != ".lock"]
    assert "Traceback" not in caplog.text
    figure(f"{rounds} spoilt token files: {rounds} starts, 0 tracebacks, the old bytes kept each time")


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
