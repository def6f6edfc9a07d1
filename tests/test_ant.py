"""Profiles of the `ant` command: found, referred to, renewed by `ant` itself or, without it, as the SDKs do."""

import asyncio
import json
import os
import stat
import sys

import pytest

from server.ant import config_dir, profiles
from tests.fake_oauth import FakeOAuth
from tests.pools import NOW, UPSTREAM, make_pool, needs_posix, refused, started, stored, write_json

pytestmark = pytest.mark.anyio

LIFE = 3_600
TOO_LATE = 4_000


@pytest.fixture
async def oauth():
    async with FakeOAuth().serving() as oauth:
        oauth.told = {}
        yield oauth


@pytest.fixture
def credentials(tmp_path, oauth):
    return put_profile(tmp_path, "default", oauth.issue())


def host(oauth):
    return oauth.url.removesuffix("/v1/oauth/token")


def put_profile(folder, name, pair, *, now=NOW, kind="user_oauth", client_id="their-client", **config):
    authentication = {"type": kind, "client_id": client_id} if client_id else {"type": kind}
    write_json(
        folder / "ant" / "configs" / f"{name}.json",
        {"version": "1.0", "authentication": authentication, "organization_id": "org-1", **config},
    )
    return put_credentials(folder, name, pair, now)


def put_credentials(folder, name, pair, now):
    return write_json(
        folder / "ant" / "credentials" / f"{name}.json",
        {"version": "1.0", "type": "oauth_token", **pair, "expires_at": int(now) + LIFE, "ofTomorrow": [1]},
    )


# ---- finding


def test_profiles_lie_where_the_official_sdks_look(tmp_path):
    assert config_dir({"ANTHROPIC_CONFIG_DIR": str(tmp_path)}) == tmp_path
    if os.name != "nt":
        assert config_dir({}).parts[-2:] == (".config", "anthropic")


async def test_profiles_with_a_login_are_offered_the_active_one_first(tmp_path, oauth):
    for name in ("alpha", "default", "zeta"):
        put_profile(tmp_path, name, oauth.issue())
    put_profile(tmp_path, "empty", oauth.issue()).unlink()
    put_profile(tmp_path, "bad", oauth.issue()).write_text("{")
    (tmp_path / "ant" / "configs" / ".hidden.json").write_text("{}")
    environ = {"ANTHROPIC_CONFIG_DIR": str(tmp_path / "ant")}
    assert [(p.name, p.active) for p in profiles(environ)] == [("default", True), ("alpha", False), ("zeta", False)]
    (tmp_path / "ant" / "active_config").write_text("zeta\n")
    assert [p.name for p in profiles(environ)] == ["zeta", "alpha", "default"]
    assert [p.name for p in profiles({**environ, "ANTHROPIC_PROFILE": "alpha"})] == ["alpha", "default", "zeta"]
    assert profiles({"ANTHROPIC_CONFIG_DIR": str(tmp_path / "nowhere")}) == []


@pytest.mark.parametrize("name", ["nobody", "", "../default", "default/../default", "default.json"])
async def test_only_a_profile_that_was_found_can_be_used(tmp_path, oauth, clock, credentials, name):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        assert (await refused(pool.use_ant_profile(name))).status == 404
        assert pool.all() == ()


# ---- using


async def test_a_profile_pays_as_the_sdks_would_and_only_its_name_is_stored(tmp_path, oauth, clock):
    pair = oauth.issue()
    put_profile(tmp_path, "default", pair, workspace_id="wrkspc_7")
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        account = await pool.use_ant_profile("default")
        assert (account.kind, account.source, account.state) == ("platform", "ant", "ready")
        credential = await pool.credential()
        assert [p.used for p in pool.ant_profiles()] == [True]
        assert (await pool.use_ant_profile("default")).id == account.id
    assert credential.headers() == {
        "authorization": f"Bearer {pair['access_token']}",
        "anthropic-workspace-id": "wrkspc_7",
    }
    assert (credential.base_url, credential.betas) == (UPSTREAM, ("oauth-2025-04-20",))
    assert "sk-ant" not in json.dumps(stored(tmp_path))


async def test_a_federated_token_belongs_to_its_workspace_already(tmp_path, oauth, clock):
    put_profile(tmp_path, "ci", oauth.issue(), kind="oidc_federation", workspace_id="wrkspc_7")
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.use_ant_profile("ci")
        assert (await pool.credential()).workspace_id == ""


@pytest.mark.parametrize(
    ("base_url", "goes_to"),
    [
        (None, UPSTREAM),
        ("https://api.anthropic.com", UPSTREAM),
        ("https://api.anthropic.com/", UPSTREAM),
        ("https://eu.example/anthropic/", "https://eu.example/anthropic"),
    ],
)
async def test_requests_go_to_the_address_of_the_profile(tmp_path, oauth, clock, base_url, goes_to):
    put_profile(tmp_path, "default", oauth.issue(), base_url=base_url)
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        account = await pool.use_ant_profile("default")
        assert (await pool.credential()).base_url == goes_to
        assert account.base_url == ("" if goes_to == UPSTREAM else goes_to)


@pytest.mark.parametrize("base_url", ["http://eu.example", "https://me@eu.example", "ftp://eu.example"])
async def test_a_profile_with_an_address_no_token_may_go_to_is_not_used(tmp_path, oauth, clock, base_url):
    put_profile(tmp_path, "default", oauth.issue(), base_url=base_url)
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        account = await pool.use_ant_profile("default")
        assert (account.state, "base_url" in account.reason) == ("sign_in_again", True)
        assert (await refused(pool.credential())).status == 401


@needs_posix
async def test_a_profile_others_may_write_is_not_used(tmp_path, oauth, clock, credentials):
    """The official SDKs refuse it as well: whoever may write it could send the token elsewhere."""
    (tmp_path / "ant" / "configs" / "default.json").chmod(0o664)
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        account = await pool.use_ant_profile("default")
        assert "chmod go-w" in account.reason


async def test_an_account_whose_profile_was_deleted_says_what_to_do(tmp_path, oauth, clock, credentials):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.use_ant_profile("default")
        (tmp_path / "ant" / "configs" / "default.json").unlink()
        credentials.unlink()
        assert (await refused(pool.credential())).status == 401
        (account,) = pool.all()
    assert account.state == "sign_in_again"
    assert account.reason == (
        "This `ant` profile is no longer there. Remove the account, or make it anew. "
        "Run in a terminal: ant auth login --profile default"
    )


async def test_a_profile_may_name_its_credentials_file(tmp_path, oauth, clock):
    pair = oauth.issue()
    put_profile(tmp_path, "default", oauth.issue()).unlink()
    write_json(tmp_path / "elsewhere.json", {**pair, "expires_at": int(NOW) + LIFE})
    config = {"authentication": {"type": "user_oauth", "credentials_path": str(tmp_path / "elsewhere.json")}}
    write_json(tmp_path / "ant" / "configs" / "default.json", config)
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.use_ant_profile("default")
        assert (await pool.credential()).secret == pair["access_token"]


async def test_it_may_be_shared_for_it_is_paid_by_an_organisation(tmp_path, oauth, clock, credentials):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        account = await pool.use_ant_profile("default")
        await pool.update(account.id, shared=True)
        assert (await pool.credential(shared_only=True)).account_id == account.id


# ---- renewing without the command


async def test_without_the_command_an_ended_token_is_renewed_as_the_sdks_do(tmp_path, oauth, clock, credentials):
    before = json.loads(credentials.read_bytes())
    pool = make_pool(tmp_path, "http://127.0.0.1:9/another/endpoint", clock, base_url=host(oauth))
    async with started(pool):
        await pool.use_ant_profile("default")
        clock.now += TOO_LATE
        got = await asyncio.gather(*(pool.credential() for _ in range(100)))
    assert {credential.secret for credential in got} <= oauth.access
    assert (oauth.refreshes, oauth.reuses) == (1, 0)
    ((asked, headers, path),) = oauth.seen
    assert asked == {
        "grant_type": "refresh_token",
        "refresh_token": before["refresh_token"],
        "client_id": "their-client",
    }
    assert (headers["anthropic-beta"], headers["Content-Type"]) == ("oauth-2025-04-20", "application/json")
    assert path == "/v1/oauth/token"
    after = json.loads(credentials.read_bytes())
    assert after["access_token"] == got[0].secret
    assert after["expires_at"] == int(clock.now + oauth.lifetime)
    assert isinstance(after["expires_at"], int)
    assert (after["version"], after["type"], after["ofTomorrow"]) == ("1.0", "oauth_token", [1])
    if os.name != "nt":
        assert stat.S_IMODE(credentials.stat().st_mode) == 0o600


async def test_the_profiles_own_address_renews_it(tmp_path, oauth, clock):
    put_profile(tmp_path, "default", oauth.issue(), base_url=host(oauth))
    pool = make_pool(tmp_path, "http://127.0.0.1:9/x", clock, base_url="http://127.0.0.1:9")
    async with started(pool):
        await pool.use_ant_profile("default")
        clock.now += TOO_LATE
        assert (await pool.credential()).base_url == host(oauth)
    assert oauth.refreshes == 1


async def test_the_final_word_leaves_the_file_as_it_is(tmp_path, oauth, clock, credentials):
    before = credentials.read_bytes()
    oauth.refresh.clear()
    pool = make_pool(tmp_path, oauth.url, clock, base_url=host(oauth))
    async with started(pool):
        await pool.use_ant_profile("default")
        clock.now += TOO_LATE
        for _ in range(20):
            assert (await refused(pool.credential())).status == 401
        (account,) = pool.all()
        assert "ant auth login --profile default" in account.reason
        put_credentials(tmp_path, "default", oauth.issue(), clock.now)
        assert (await pool.credential()).secret in oauth.access
    assert len(oauth.seen) == 1
    assert before != credentials.read_bytes()


async def test_a_profile_that_cannot_be_renewed_is_told_before_it_ends_a_federated_one_is_made_anew(
    tmp_path, oauth, clock
):
    for name, kind in (("mine", "user_oauth"), ("ci", "oidc_federation")):
        put_profile(tmp_path, name, {**oauth.issue(), "refresh_token": ""}, kind=kind)
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.use_ant_profile("mine")
        await pool.use_ant_profile("ci")
        (words,) = pool.warnings
        assert "“ant profile mine” ends in" in words
        assert words.endswith("Run in a terminal: ant auth login --profile mine")


@pytest.mark.parametrize("changes", [{"kind": "oidc_federation"}, {"client_id": ""}], ids=str)
async def test_what_only_others_can_renew_is_used_while_valid_and_then_told(tmp_path, oauth, clock, changes):
    file = put_profile(tmp_path, "default", oauth.issue(), **changes)
    before = file.read_bytes()
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.use_ant_profile("default")
        assert (await pool.credential()).secret in oauth.access
        clock.now += TOO_LATE
        assert (await refused(pool.credential())).status == 503
        assert pool.all()[0].last_refresh_error
        put_credentials(tmp_path, "default", oauth.issue(), clock.now)
        assert (await pool.credential()).secret in oauth.access
    assert oauth.seen == []
    assert file.read_bytes() != before


# ---- renewing with the command

ANT = """#!{python}
import json, os, sys
from pathlib import Path
folder = Path({folder!r})
with (folder / "calls").open("a") as calls:
    print(json.dumps([sys.argv[1:], sorted(os.environ)]), file=calls)
if (folder / "fails").exists():
    sys.exit("not signed in")
if (folder / "new.json").exists():
    os.replace(folder / "new.json", folder / "ant" / "credentials" / "default.json")
print(json.loads((folder / "ant" / "credentials" / "default.json").read_text())["access_token"])
"""


@pytest.fixture
def ant(tmp_path):
    """An `ant` command that stores whatever the test has put into new.json. Where to find it."""
    program = tmp_path / "bin" / "ant"
    program.parent.mkdir()
    program.write_text(ANT.format(python=sys.executable, folder=str(tmp_path)))
    program.chmod(0o755)
    return str(program.parent)


def calls(folder):
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def renewal(folder, oauth, now):
    """What the command will store when it is called next."""
    pair = oauth.issue()
    put_credentials(folder / "next", "default", pair, now).rename(folder / "new.json")
    return pair


@needs_posix
async def test_the_command_renews_its_own_files_once_for_everybody(tmp_path, oauth, clock, credentials, ant):
    async with started(make_pool(tmp_path, oauth.url, clock, path=ant)) as pool:
        await pool.use_ant_profile("default")
        clock.now += TOO_LATE
        pair = renewal(tmp_path, oauth, clock.now)
        written = (tmp_path / "new.json").stat().st_ino
        got = await asyncio.gather(*(pool.credential() for _ in range(100)))
    assert {credential.secret for credential in got} == {pair["access_token"]}
    assert credentials.stat().st_ino == written  # what the command wrote, and nobody since
    ((arguments, environ),) = calls(tmp_path)
    assert arguments == ["auth", "print-credentials", "--profile", "default", "--access-token"]
    assert "ANTHROPIC_CONFIG_DIR" in environ
    assert oauth.seen == []


@needs_posix
async def test_a_refused_token_is_renewed_by_the_command_and_set_aside_if_that_changes_nothing(
    tmp_path, oauth, clock, credentials, ant
):
    async with started(make_pool(tmp_path, oauth.url, clock, path=ant)) as pool:
        await pool.use_ant_profile("default")
        pair = renewal(tmp_path, oauth, clock.now)
        renewed = await pool.after_401(await pool.credential())
        assert renewed.secret == pair["access_token"]
        assert await pool.after_401(renewed) is None
        assert pool.all()[0].state == "sign_in_again"
    assert len(calls(tmp_path)) == 1


@needs_posix
async def test_a_command_that_gives_the_refused_token_again_ends_the_login(tmp_path, oauth, clock, credentials, ant):
    async with started(make_pool(tmp_path, oauth.url, clock, path=ant)) as pool:
        await pool.use_ant_profile("default")
        assert await pool.after_401(await pool.credential()) is None
        assert pool.all()[0].state == "sign_in_again"
        renewal(tmp_path, oauth, clock.now).keys()
        (tmp_path / "new.json").rename(credentials)
        assert (await pool.credential()).secret in oauth.access


@needs_posix
async def test_a_command_that_fails_is_not_final_and_not_asked_at_each_request(
    tmp_path, oauth, clock, credentials, ant
):
    before = credentials.read_bytes()
    (tmp_path / "fails").touch()
    async with started(make_pool(tmp_path, oauth.url, clock, path=ant)) as pool:
        await pool.use_ant_profile("default")
        clock.now += TOO_LATE
        for _ in range(20):
            assert (await refused(pool.credential())).status == 503
        assert "ant auth login --profile default" in pool.all()[0].last_refresh_error
        assert len(calls(tmp_path)) == 1
        (tmp_path / "fails").unlink()
        pair = renewal(tmp_path, oauth, clock.now)
        clock.now += 60
        assert (await pool.credential()).secret == pair["access_token"]
    assert credentials.read_bytes() != before


@needs_posix
async def test_a_file_that_is_no_program_is_told(tmp_path, oauth, clock, credentials, ant):
    (tmp_path / "bin" / "ant").write_bytes(b"\x7fELF not really")
    async with started(make_pool(tmp_path, oauth.url, clock, path=ant)) as pool:
        await pool.use_ant_profile("default")
        clock.now += TOO_LATE
        assert (await refused(pool.credential())).status == 503
        assert "cannot be started" in pool.all()[0].last_refresh_error
