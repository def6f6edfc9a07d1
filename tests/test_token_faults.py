"""Renewals that go wrong: the endpoint stumbles, answers get lost, logins end, processes meet."""

import asyncio
import contextlib
import json
import re
import stat
import subprocess
from math import inf

import pytest
from filelock import FileLock, Timeout

from server.errors import ProxyError
from tests.fake_oauth import FakeOAuth
from tests.pools import TOO_LATE, login, make_pool, needs_posix, on_disk, python, started, stored

pytestmark = pytest.mark.anyio

DAY = 86_400.0


@pytest.fixture
async def pool(pool, oauth, clock):
    await pool.add_oauth(login(oauth, clock))
    return pool


# ---- the endpoint is away, or stumbles

STUMBLES = {
    "nobody there": None,
    "429": (429, json.dumps({"error": {"type": "rate_limit_error"}}), {}),
    "500": (500, "", {}),
    "503": (503, json.dumps({"error": "temporarily_unavailable"}), {}),
    "HTML": (200, "<html>Down for maintenance</html>", {}),
    "404 without a name": (404, "not found", {}),
    "400 with another name": (400, json.dumps({"error": "invalid_request"}), {}),
    "no token in it": (200, json.dumps({"refresh_token": "sk-ant-ort01-x", "expires_in": 3600}), {}),
}


@pytest.mark.parametrize("stumble", STUMBLES.values(), ids=STUMBLES)
async def test_while_the_endpoint_stumbles_logins_are_kept_and_valid_ones_used(tmp_path, clock, stumble):
    async with contextlib.AsyncExitStack() as stack:
        oauth = await stack.enter_async_context(FakeOAuth().serving())
        url = oauth.url if stumble else "http://127.0.0.1:9/v1/oauth/token"
        pool = await stack.enter_async_context(started(make_pool(tmp_path, url, clock)))
        await pool.add_oauth(login(oauth, clock))
        oauth.always = stumble
        before = (tmp_path / "data" / "tokens.json").read_bytes()

        clock.now += oauth.lifetime - 100
        assert (await pool.credential()).secret in oauth.access  # still valid: it goes on

        clock.now += 200
        for _ in range(1000):
            with pytest.raises(ProxyError) as raised:
                await pool.credential()
            assert raised.value.status == 503
            assert raised.value.headers["retry-after"] == "1"
        assert (tmp_path / "data" / "tokens.json").read_bytes() == before
        assert pool.all()[0].state == "ready"
        assert pool.all()[0].last_refresh_error


async def test_under_load_the_endpoint_is_asked_at_most_eight_times_in_five_minutes(pool, oauth, clock):
    clock.now += TOO_LATE
    oauth.always = (503, "", {})
    for _ in range(300):
        for end in await asyncio.gather(*(pool.credential() for _ in range(5)), return_exceptions=True):
            assert end.status == 503
        await pool.tend()
        clock.now += 1
    assert len(oauth.seen) == 8
    oauth.always = None
    clock.now += 60
    assert (await pool.credential()).secret in oauth.access


async def test_retry_after_is_the_time_to_the_next_try(pool, oauth, clock):
    clock.now += TOO_LATE
    oauth.always = (503, "", {})
    told = []
    for _ in range(4):
        with pytest.raises(ProxyError) as raised:
            await pool.credential()
        told.append(raised.value.headers["retry-after"])
        clock.now += int(told[-1])
    assert told == ["1", "4", "16", "60"]
    assert len(oauth.seen) == 4


async def test_retry_after_of_the_endpoint_is_kept(pool, oauth, clock):
    clock.now += TOO_LATE
    oauth.always = (429, "", {"retry-after": "600"})
    for _ in range(60):
        with pytest.raises(ProxyError) as raised:
            await pool.credential()
        clock.now += 9
    assert len(oauth.seen) == 1
    assert int(raised.value.headers["retry-after"]) <= 600 - 59 * 9
    clock.now += 61
    oauth.always = None
    assert (await pool.credential()).secret in oauth.access


async def test_another_account_pays_while_one_cannot_be_renewed(pool, oauth, clock):
    await pool.add_api_key("sk-ant-api03-second")
    clock.now += TOO_LATE
    oauth.always = (503, "", {})
    assert {(await pool.credential()).secret for _ in range(20)} == {"sk-ant-api03-second"}
    assert len(oauth.seen) == 1


# ---- the answer gets lost


async def test_a_lost_answer_is_asked_for_again_at_once_and_a_gracious_server_gives_it(pool, oauth, clock, tmp_path):
    clock.now += TOO_LATE
    oauth.drop_answers, oauth.grace = 1, True
    credential = await pool.credential()
    assert credential.secret in oauth.access
    assert len(oauth.seen) == 2
    assert oauth.seen[0][0] == oauth.seen[1][0]
    assert on_disk(tmp_path)["access_token"] == credential.secret


async def test_a_lost_answer_without_grace_ends_in_signing_in_again_and_in_no_loop(pool, oauth, clock, tmp_path):
    clock.now += TOO_LATE
    oauth.drop_answers = 1
    for _ in range(20):
        with pytest.raises(ProxyError) as raised:
            await pool.credential()
        assert raised.value.status == 401
    assert len(oauth.seen) == 2
    assert pool.all()[0].state == "sign_in_again"
    assert on_disk(tmp_path)["refresh_token"]


async def test_answers_that_keep_getting_lost_are_not_repeated_at_each_round(pool, oauth, clock):
    clock.now += TOO_LATE
    oauth.drop_answers, oauth.grace = 10**6, True
    for _ in range(300):
        with pytest.raises(ProxyError):
            await pool.credential()
        clock.now += 1
    assert len(oauth.seen) == 9  # eight rounds, and the one repetition


# ---- the final word


async def test_a_spent_refresh_token_costs_one_call_for_a_thousand_requests(pool, oauth, clock, tmp_path):
    entry = on_disk(tmp_path)
    oauth.rotate(entry["refresh_token"])  # behind our back
    clock.now += TOO_LATE
    ends = await asyncio.gather(*(pool.credential() for _ in range(500)), return_exceptions=True)
    for _ in range(500):
        with pytest.raises(ProxyError) as raised:
            await pool.credential()
        ends.append(raised.value)
    assert {end.status for end in ends} == {401}
    assert len(oauth.seen) == 1
    await pool.tend()
    after = on_disk(tmp_path)
    assert {name: after[name] for name in ("access_token", "refresh_token", "expires_at")} == {
        name: entry[name] for name in ("access_token", "refresh_token", "expires_at")
    }
    account = pool.all()[0]
    assert (account.state, account.public(clock.now)["state"]) == ("sign_in_again", "sign_in_again")
    assert "Sign in again" in account.reason


async def test_the_final_word_outlives_a_restart_and_asks_nobody_again(pool, oauth, clock, tmp_path):
    oauth.refresh.clear()
    clock.now += TOO_LATE
    with pytest.raises(ProxyError):
        await pool.credential()
    await pool.close()
    async with started(make_pool(tmp_path, oauth.url, clock)) as after:
        with pytest.raises(ProxyError):
            await after.credential()
        await after.tend()
        assert after.all()[0].state == "sign_in_again"
    assert len(oauth.seen) == 1


async def test_the_next_account_pays_when_a_login_has_ended(pool, oauth, clock):
    await pool.add_api_key("sk-ant-api03-second")
    oauth.refresh.clear()
    clock.now += TOO_LATE
    got = await asyncio.gather(*(pool.credential() for _ in range(100)))
    assert {credential.secret for credential in got} == {"sk-ant-api03-second"}
    assert len(oauth.seen) == 1


async def test_signing_in_again_heals_an_ended_login_in_place(pool, oauth, clock):
    oauth.refresh.clear()
    clock.now += TOO_LATE
    with pytest.raises(ProxyError):
        await pool.credential()
    (before,) = pool.all()
    await pool.add_oauth(login(oauth, clock))
    (after,) = pool.all()
    assert (after.id, after.state) == (before.id, "ready")
    assert (await pool.credential()).secret in oauth.access


async def test_a_login_another_process_has_stored_since_is_adopted(pool, oauth, clock, tmp_path):
    async with started(make_pool(tmp_path, oauth.url, clock)) as other:
        clock.now += TOO_LATE
        theirs = await other.credential()
        assert (await pool.credential()).secret == theirs.secret
    assert (oauth.refreshes, oauth.reuses) == (1, 0)


async def test_an_ended_login_revives_when_its_file_changes(pool, oauth, clock, tmp_path):
    oauth.refresh.clear()
    clock.now += TOO_LATE
    with pytest.raises(ProxyError):
        await pool.credential()
    async with started(make_pool(tmp_path, oauth.url, clock)) as other:
        await other.add_oauth(login(oauth, clock))
    assert (await pool.credential()).secret in oauth.access
    assert pool.all()[0].state == "ready"


async def test_a_sign_in_during_a_renewal_is_not_overwritten_by_it(pool, oauth, clock, tmp_path):
    clock.now += TOO_LATE
    oauth.gate = asyncio.Event()
    request = asyncio.create_task(pool.credential())
    await oauth.entered.wait()
    new = login(oauth, clock)
    signing_in = asyncio.create_task(pool.add_oauth(new))
    await asyncio.sleep(0)
    oauth.gate.set()
    await signing_in
    assert (await request).secret in oauth.access
    assert on_disk(tmp_path)["access_token"] == new.access_token
    assert (await pool.credential()).secret == new.access_token


# ---- odd answers


async def test_an_answer_without_a_refresh_token_keeps_the_old_one(pool, oauth, clock, tmp_path):
    before = on_disk(tmp_path)
    clock.now += TOO_LATE
    oauth.odd.append((200, json.dumps({"access_token": "sk-ant-oat01-odd", "expires_in": "7200"}), {}))
    assert (await pool.credential()).secret == "sk-ant-oat01-odd"
    after = on_disk(tmp_path)
    assert after["refresh_token"] == before["refresh_token"]
    assert after["expires_at"] == clock.now + 7200
    assert after["details"] == before["details"]


async def test_a_login_about_to_end_is_told_for_a_week_and_logged_once_a_day(oauth, clock, tmp_path, caplog):
    oauth.told["refresh_token_expires_in"] = 30 * DAY
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        account = await pool.add_oauth(login(oauth, clock), "My plan")
        clock.now += TOO_LATE
        await pool.tend()  # which renews it
        end = clock.now + 30 * DAY
        assert (pool.get(account.id).ends_at, pool.warnings) == (end, [])
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:  # it is known over a restart
        oauth.told.pop("refresh_token_expires_in")
        clock.now = end - 7 * DAY
        pair = {"access_token": "sk-ant-oat01-kept", "expires_in": 8 * DAY}
        oauth.odd.append((200, json.dumps(pair), {}))  # the refresh token stays, and its end with it
        await pool.tend()
        (words,) = pool.warnings
        assert words.startswith("The sign-in “My plan” ends in 7 days, on ")
        assert words.endswith("and cannot be renewed then. Sign in again.")
        for hours in range(0, 7 * 24, 6):
            clock.now = end - 7 * DAY + hours * 3600
            await pool.tend()
        logged = [record.getMessage() for record in caplog.records if "My plan" in record.getMessage()]
        assert [re.search(r"ends in ([\w ]+),", words)[1] for words in logged] == [
            *("7 days", "6 days", "5 days", "4 days", "3 days", "48 h", "24 h")
        ]
        clock.now = end - 60
        assert "less than an hour" in pool.warnings[0]
        await pool.update(account.id, enabled=False)
        assert pool.warnings == []
        await pool.update(account.id, enabled=True)
        await pool.add_oauth(login(oauth, clock))  # the owner has signed in again
        assert (pool.get(account.id).ends_at, pool.warnings) == (inf, [])


async def test_a_login_that_nothing_can_renew_is_told_from_the_beginning(tmp_path, oauth, clock):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.add_oauth(login(oauth, clock, refresh_token="", ends_at=clock() + 28800))
        assert "ends in 8 h" in pool.warnings[0]


async def test_a_lost_right_to_chat_is_told(pool, oauth, clock):
    assert pool.warnings == []
    oauth.told["scope"] = "user:profile"
    clock.now += TOO_LATE
    await pool.credential()
    assert any("user:inference" in words for words in pool.warnings)


async def test_unknown_fields_of_the_entry_and_the_file_are_kept(pool, oauth, clock, tmp_path):
    document = stored(tmp_path)
    document["theme"] = "dark"
    document["accounts"][0]["mood"] = {"deep": [1, 2]}
    (tmp_path / "data" / "tokens.json").write_text(json.dumps(document))
    clock.now += TOO_LATE
    await pool.credential()
    after = stored(tmp_path)
    assert (after["theme"], after["accounts"][0]["mood"]) == ("dark", {"deep": [1, 2]})
    assert after["accounts"][0]["access_token"] in oauth.access


# ---- several processes

WORKER = """
import asyncio, json, sys, time
from pathlib import Path
from tests.pools import Clock, make_pool
async def main(folder, url, requests, late):
    clock = Clock()
    pool = make_pool(Path(folder), url, clock)
    await pool.start()
    await pool.tend()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    clock.now += float(late)
    ends = await asyncio.gather(*(pool.credential() for _ in range(int(requests))), return_exceptions=True)
    print(json.dumps([getattr(end, "secret", repr(end)) for end in ends]), flush=True)
    await pool.close()
asyncio.run(main(*sys.argv[1:]))
"""


async def in_processes(count, folder, url, requests):
    """What each request of each process got; for all of them the token ends at the same moment."""
    workers = [python(WORKER, folder, url, requests, TOO_LATE, stdin=subprocess.PIPE) for _ in range(count)]
    try:
        for worker in workers:
            assert await asyncio.to_thread(worker.stdout.readline) == "ready\n", worker.stderr.read()
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        out = await asyncio.gather(*(asyncio.to_thread(worker.communicate) for worker in workers))
    finally:
        for worker in workers:
            worker.kill()
    assert all(err == "" for _, err in out)
    return [secret for text, _ in out for secret in json.loads(text)]


@pytest.mark.parametrize("count", [2, 8])
async def test_several_processes_on_one_folder_renew_once(tmp_path, oauth, clock, figure, count):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.add_oauth(login(oauth, clock))
    oauth.delay = 0.2
    got = await in_processes(count, tmp_path, oauth.url, 100 // count)
    figure(f"{count} processes on one folder, {len(got)} requests, an ended token: {oauth.refreshes} renewal, 0 failed")
    assert len(got) == 100 // count * count
    assert set(got) <= oauth.access
    assert (oauth.refreshes, oauth.reuses, len(oauth.seen)) == (1, 0, 1)


@needs_posix
async def test_the_death_of_the_process_that_renews_frees_the_others(tmp_path, oauth, clock):
    """kill -9 while it holds the lock and waits for an answer that the endpoint has not given yet."""
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.add_oauth(login(oauth, clock))
    oauth.hang = 1
    with python(WORKER, tmp_path, oauth.url, 1, TOO_LATE, stdin=subprocess.PIPE) as holder:
        assert await asyncio.to_thread(holder.stdout.readline) == "ready\n"
        holder.stdin.write("go\n")
        holder.stdin.flush()
        await oauth.entered.wait()
        with pytest.raises(Timeout):
            FileLock(tmp_path / "data" / "tokens.json.lock").acquire(blocking=False)
        clock.now += TOO_LATE
        async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
            request = asyncio.create_task(pool.credential())
            await asyncio.sleep(0.2)  # the request may get as far as the lock
            assert not request.done()
            holder.kill()
            assert (await request).secret in oauth.access
    assert (oauth.refreshes, oauth.reuses, len(oauth.seen)) == (1, 0, 2)
    assert stat.S_IMODE((tmp_path / "data" / "tokens.json").stat().st_mode) == 0o600
