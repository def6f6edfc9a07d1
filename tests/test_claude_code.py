"""Claude Code's stored login: a guest's property, used last, only when allowed, and never the worse for it."""

import asyncio
import json
import os
import stat

import pytest

from server.claude_code import credentials_file, tokens_in
from server.wallet import CLAUDE_CODE
from tests.pools import (
    NOW,
    as_plain_user,
    login,
    make_pool,
    needs_posix,
    open_to_all,
    refused,
    started,
    stored,
    write_json,
)

pytestmark = pytest.mark.anyio

LIFE = 28_800
TOO_LATE = 30_000


@pytest.fixture
def file(tmp_path, oauth):
    """Claude Code's file, as it lies there after a login."""
    return put_login(tmp_path, oauth.issue())


@pytest.fixture
async def pool(tmp_path, oauth, clock, file):
    async with started(make_pool(tmp_path, oauth.url, clock, fallback="true")) as pool:
        yield pool


def put_login(folder, pair, now=NOW):
    document = {
        "claudeAiOauth": {
            "accessToken": pair["access_token"],
            "refreshToken": pair["refresh_token"],
            "expiresAt": int((now + LIFE) * 1000),
            "scopes": ["user:inference", "user:profile"],
            "subscriptionType": "max",
            "rateLimitTier": "default_claude_max_20x",
            "ofTomorrow": {"a": [1, 2, None]},
        },
        "mcpOAuth": {"some-server|1234": {"serverName": "some-server", "accessToken": "é not ours"}},
    }
    return write_json(folder / "claude" / ".credentials.json", document)


def login_in(path):
    return json.loads(path.read_bytes())["claudeAiOauth"]


# ---- where, and what


def test_the_file_is_where_the_setting_or_the_environment_or_the_home_say(tmp_path):
    environ = {"CLAUDE_CONFIG_DIR": str(tmp_path / "env")}
    assert credentials_file(str(tmp_path / "set"), environ) == tmp_path / "set" / ".credentials.json"
    assert credentials_file("", environ) == tmp_path / "env" / ".credentials.json"
    assert credentials_file("", {}).parts[-2:] == (".claude", ".credentials.json")


@pytest.mark.parametrize(
    "document",
    [{}, {"claudeAiOauth": None}, {"claudeAiOauth": []}, {"claudeAiOauth": {}}, {"claudeAiOauth": {"accessToken": 7}}],
    ids=str,
)
def test_a_file_without_a_login_holds_none(document):
    assert tokens_in(document) is None


async def test_one_that_cannot_be_renewed_is_told_a_week_before_it_ends(tmp_path, oauth, clock):
    put_login(tmp_path, {**oauth.issue(), "refresh_token": ""})
    async with started(make_pool(tmp_path, oauth.url, clock, fallback="true")) as pool:
        (words,) = pool.warnings
        assert words.startswith("The sign-in “Claude Code” ends in 8 h")
        assert words.endswith("Start Claude Code and sign in there.")
        put_login(tmp_path, oauth.issue())
        await pool.look()
        assert pool.warnings == []


def test_a_login_without_an_end_is_valid_until_the_upstream_says_otherwise():
    assert tokens_in({"claudeAiOauth": {"accessToken": "sk-ant-oat01-x"}}).expires_at == float("inf")


# ---- consent


async def test_it_is_never_used_without_the_owners_word(tmp_path, oauth, clock, file):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        assert pool.claude_code_found()
        assert pool.all() == ()
        assert (await refused(pool.credential())).status == 401


async def test_the_owners_word_is_kept_over_a_restart_and_can_be_taken_back(tmp_path, oauth, clock, file):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        account = await pool.use_claude_code(agreed=True)
        assert (account.source, account.kind, account.shared) == ("claude_code", "subscription", False)
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        assert (await pool.credential()).secret == login_in(file)["accessToken"]
        assert await pool.use_claude_code(agreed=False) is None
        assert pool.all() == ()
    assert "sk-ant" not in json.dumps(stored(tmp_path))
    assert login_in(file)["accessToken"] in oauth.access


async def test_switched_off_it_is_neither_offered_nor_used(tmp_path, oauth, clock, file):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.use_claude_code(agreed=True)
    async with started(make_pool(tmp_path, oauth.url, clock, fallback="false")) as pool:
        assert not pool.claude_code_found()
        assert pool.all() == ()
        assert (await refused(pool.use_claude_code(agreed=True))).status == 400


async def test_where_there_is_no_login_agreeing_tells_so(tmp_path, oauth, clock):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        assert not pool.claude_code_found()
        error = await refused(pool.use_claude_code(agreed=True))
        assert error.status == 404
        assert "Keychain" in error.message


async def test_always_allowed_it_needs_no_click_and_is_gone_with_its_file(pool, file):
    (account,) = pool.all()
    assert (account.id, account.state) == (CLAUDE_CODE, "ready")
    file.unlink()
    assert (await refused(pool.credential())).status == 401
    assert pool.all() == ()


async def test_a_word_given_for_a_login_that_is_gone_asks_to_sign_in_there(tmp_path, oauth, clock, file):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.use_claude_code(agreed=True)
        file.unlink()
        assert (await refused(pool.credential())).status == 401
        (account,) = pool.all()
        assert (account.state, "Claude Code" in account.reason) == ("sign_in_again", True)
        put_login(tmp_path, oauth.issue())
        assert (await pool.credential()).account_id == CLAUDE_CODE


async def test_it_pays_last(pool):
    own = await pool.add_api_key("sk-ant-api03-own")
    await pool.update(own.id, priority=99)
    await pool.update(CLAUDE_CODE, priority=-99)
    assert (await pool.credential()).account_id == own.id
    pool.rest(own.id, NOW + 60, "limit")
    assert (await pool.credential()).account_id == CLAUDE_CODE


async def test_it_serves_its_owner_alone(pool):
    assert (await refused(pool.update(CLAUDE_CODE, shared=True))).status == 400
    assert (await refused(pool.credential(shared_only=True))).status == 403


async def test_it_may_be_switched_off_and_named_like_any_account(pool, tmp_path, oauth, clock):
    assert (await pool.update(CLAUDE_CODE, name="Work", enabled=False)).state == "off"
    async with started(make_pool(tmp_path, oauth.url, clock, fallback="true")) as after:
        assert [(a.name, a.state) for a in after.all()] == [("Work", "off")]
    async with started(make_pool(tmp_path, oauth.url, clock, fallback="ask")) as asking:
        assert asking.all() == ()  # a name is no agreement


# ---- reading


async def test_what_claude_code_writes_is_seen_at_the_next_request(pool, tmp_path, oauth):
    first = await pool.credential()
    put_login(tmp_path, oauth.issue())
    assert (await pool.credential()).secret != first.secret
    assert oauth.seen == []


async def test_a_half_written_file_is_waited_for(pool, file, tmp_path, clock, oauth):
    before = await pool.credential()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert await pool.credential() == before
    clock.now += TOO_LATE
    assert (await refused(pool.credential())).status == 503
    assert file.read_bytes() == whole[: len(whole) // 2]
    assert list(file.parent.glob("*.corrupt*")) == []
    file.write_bytes(whole)
    clock.now += 60
    assert (await pool.credential()).secret in oauth.access


# ---- renewing


async def test_a_valid_login_is_read_only(pool, file):
    before = (file.read_bytes(), file.stat())
    for _ in range(10):
        await pool.credential()
        await pool.tend()
    assert (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) == (
        before[0],
        before[1].st_mtime_ns,
        before[1].st_ino,
    )
    assert os.listdir(file.parent) == [".credentials.json"]


async def test_the_background_leaves_it_to_claude_code(pool, oauth, clock):
    clock.now += TOO_LATE
    await pool.tend()
    assert oauth.seen == []


async def test_an_ended_login_is_renewed_once_and_every_other_field_kept(pool, oauth, clock, file):
    before = json.loads(file.read_bytes())
    clock.now += TOO_LATE
    got = await asyncio.gather(*(pool.credential() for _ in range(100)))
    assert {credential.secret for credential in got} <= oauth.access
    assert (oauth.refreshes, oauth.reuses) == (1, 0)
    after = json.loads(file.read_bytes())
    assert after["claudeAiOauth"]["accessToken"] == got[0].secret
    assert oauth.refresh[after["claudeAiOauth"]["refreshToken"]] == "live"
    assert after["claudeAiOauth"]["expiresAt"] == int((clock.now + oauth.lifetime) * 1000)
    for document in (before, after):
        for name in ("accessToken", "refreshToken", "expiresAt"):
            del document["claudeAiOauth"][name]
    assert after == before
    ((asked, _, _),) = oauth.seen
    assert asked["grant_type"] == "refresh_token"


@needs_posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
async def test_renewing_keeps_the_rights_of_the_file_and_leaves_no_copy(pool, oauth, clock, file, mode):
    file.chmod(mode)
    clock.now += TOO_LATE
    await pool.credential()
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert sorted(os.listdir(file.parent)) == [".credentials.json", ".credentials.json.lock"]


@needs_posix
async def test_a_linked_file_stays_a_link(pool, oauth, clock, file, tmp_path):
    real = file.rename(tmp_path / "dotfiles.json")
    file.symlink_to(real)
    clock.now += TOO_LATE
    credential = await pool.credential()
    assert file.is_symlink()
    assert login_in(real)["accessToken"] == credential.secret


async def test_a_login_claude_code_has_renewed_meanwhile_is_adopted(pool, oauth, clock, file, tmp_path):
    stale = await pool.credential()
    oauth.kill(stale.secret)
    put_login(tmp_path, oauth.rotate(login_in(file)["refreshToken"]))
    assert (await pool.after_401(stale)).secret in oauth.access
    assert (oauth.refreshes, oauth.reuses, oauth.seen) == (1, 0, [])


async def test_losing_the_race_against_claude_code_loses_nothing(pool, oauth, clock, file, tmp_path):
    """It spends the refresh token and stores its new login while our call is under way."""
    clock.now += TOO_LATE
    oauth.gate = asyncio.Event()
    request = asyncio.create_task(pool.credential())
    await oauth.entered.wait()
    put_login(tmp_path, oauth.rotate(login_in(file)["refreshToken"]), clock.now)
    theirs = file.read_bytes()
    oauth.gate.set()
    assert (await request).secret == login_in(file)["accessToken"]
    assert file.read_bytes() == theirs
    assert pool.all()[0].state == "ready"


async def test_a_newer_login_stored_during_our_renewal_is_not_overwritten(pool, oauth, clock, file, tmp_path):
    clock.now += TOO_LATE
    oauth.gate = asyncio.Event()
    request = asyncio.create_task(pool.credential())
    await oauth.entered.wait()
    put_login(tmp_path, oauth.issue(), clock.now + 3600)  # the person has signed in anew
    theirs = file.read_bytes()
    oauth.gate.set()
    assert (await request).secret == login_in(file)["accessToken"]
    assert file.read_bytes() == theirs


async def test_signing_out_of_claude_code_during_our_renewal_is_respected(pool, oauth, clock, file):
    clock.now += TOO_LATE
    oauth.gate = asyncio.Event()
    request = asyncio.create_task(pool.credential())
    await oauth.entered.wait()
    file.write_text(json.dumps({"mcpOAuth": {}}))
    oauth.gate.set()
    await request
    assert json.loads(file.read_bytes()) == {"mcpOAuth": {}}


async def test_an_ended_login_leaves_the_file_exactly_as_it_is_and_asks_once(pool, oauth, clock, file):
    oauth.refresh.clear()
    before = (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino)
    clock.now += TOO_LATE
    for _ in range(50):
        assert (await refused(pool.credential())).status == 401
    assert (file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) == before
    assert len(oauth.seen) == 1
    (account,) = pool.all()
    assert (account.state, "Claude Code" in account.reason) == ("sign_in_again", True)


async def test_it_revives_when_the_person_signs_in_there(pool, oauth, clock, file, tmp_path):
    oauth.refresh.clear()
    clock.now += TOO_LATE
    await refused(pool.credential())
    put_login(tmp_path, oauth.issue(), clock.now)
    assert (await pool.credential()).secret in oauth.access
    assert pool.all()[0].state == "ready"


@pytest.mark.parametrize("odd", [(503, "", {}), (200, "<html>", {}), (200, "{}", {}), (429, "", {})], ids=str)
async def test_an_endpoint_that_stumbles_never_touches_the_file(pool, oauth, clock, file, odd):
    before = file.read_bytes()
    oauth.always = odd
    clock.now += TOO_LATE
    assert (await refused(pool.credential())).status == 503
    assert file.read_bytes() == before


async def test_a_lost_answer_is_asked_for_again_here_too(pool, oauth, clock, file):
    oauth.drop_answers, oauth.grace = 1, True
    clock.now += TOO_LATE
    assert (await pool.credential()).secret == login_in(file)["accessToken"]


async def test_two_pools_on_the_same_file_renew_it_once(tmp_path, oauth, clock, file):
    """Two proxies with folders of their own, for example one in a terminal and one started by a service."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "claude").symlink_to(tmp_path / "claude")
    one = make_pool(tmp_path, oauth.url, clock, fallback="true")
    other = make_pool(tmp_path / "other", oauth.url, clock, fallback="true")
    async with started(one), started(other):
        clock.now += TOO_LATE
        got = await asyncio.gather(*(pool.credential() for pool in (one, other) for _ in range(20)))
    assert {credential.secret for credential in got} <= oauth.access
    assert (oauth.refreshes, oauth.reuses) == (1, 0)


READ_ONLY = """
from pathlib import Path
from server.errors import ProxyError
from tests.pools import Clock, make_pool, started
async def main():
    folder, url, now = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    clock = Clock(now)
    async with started(make_pool(folder, url, clock, fallback="true")) as pool:
        first = await pool.credential()
        clock.now += 28_700
        near = await pool.credential()
        await pool.tend()
        clock.now += 1_300
        try:
            await pool.credential()
            end = "paid"
        except ProxyError as error:
            end = [error.status, pool.all()[0].last_refresh_error]
        print(json.dumps([first.secret, near.secret, end]))
asyncio.run(main())
"""


@needs_posix
@pytest.mark.parametrize("lock_is_there", [False, True])
async def test_in_a_read_only_folder_the_login_is_used_while_it_is_valid_and_never_spent(
    tmp_path, oauth, clock, file, lock_is_there
):
    """As with a folder mounted read-only into a container: renewed tokens could not be stored for Claude Code."""
    os.chmod(file, 0o644)
    if lock_is_there:
        lock = file.with_name(file.name + ".lock")
        lock.touch()
        lock.chmod(0o666)
    os.chmod(file.parent, 0o555)
    os.chmod(tmp_path, 0o777)
    open_to_all(tmp_path)
    first, near, end = json.loads(await asyncio.to_thread(as_plain_user, READ_ONLY, tmp_path, oauth.url, clock.now))
    assert first == near == login_in(file)["accessToken"]
    assert end[0] == 503
    assert str(file) in end[1]
    assert oauth.seen == []


async def test_when_the_new_login_cannot_be_stored_it_is_used_and_stored_later(pool, oauth, clock, file, tmp_path):
    """The folder is replaced by something else just while the endpoint answers."""
    clock.now += TOO_LATE
    oauth.gate = asyncio.Event()
    request = asyncio.create_task(pool.credential())
    await oauth.entered.wait()
    folder = file.parent
    folder.rename(tmp_path / "away")
    folder.write_text("in the way")
    oauth.gate.set()
    credential = await request
    assert credential.secret in oauth.access
    assert (await pool.credential()).secret == credential.secret
    folder.unlink()
    (tmp_path / "away").rename(folder)
    clock.now += 60
    await pool.tend()
    assert login_in(file)["accessToken"] == credential.secret
    assert (oauth.refreshes, oauth.reuses) == (1, 0)


async def test_signing_out_of_the_proxy_leaves_claude_code_signed_in(tmp_path, oauth, clock, file):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.add_oauth(login(oauth, clock))
        await pool.use_claude_code(agreed=True)
        before = file.read_bytes()
        await pool.sign_out()
        assert pool.all() == ()
    assert file.read_bytes() == before
