"""What is stored of the accounts: with several processes on it, a disk that fails, a damaged file."""

import asyncio
import json
import os
import shutil
import stat
from random import Random

import pytest

from server.errors import ProxyError
from server.payers import Credential
from tests.pools import (
    TOO_LATE,
    as_plain_user,
    login,
    make_pool,
    needs_posix,
    open_to_all,
    refused,
    started,
    stored,
)

pytestmark = pytest.mark.anyio

KEY = "sk-ant-api03-abcdefgh-wxyz"


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
from tests.pools import TOO_LATE, Clock, login, make_pool, started
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
