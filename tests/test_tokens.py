"""Logins that stay valid: one renewal for everybody, in one process and in several, and none lost on the way."""

import asyncio
import contextlib
import json
import re
import stat
import subprocess
import time
from math import inf

import pytest
from filelock import FileLock, Timeout

from server.errors import ProxyError
from server.files import Damaged
from server.oauth import Tokens, Unavailable
from server.shared_json import SharedJson
from server.tokens import (
    AHEAD,
    JITTER,
    Login,
    OwnHome,
    Pause,
    change_entry,
    check_document,
    drop_entries,
    entries,
    put_entry,
    tokens_in,
    with_tokens,
)
from tests.fake_oauth import FakeOAuth
from tests.pools import NOW, login, make_pool, needs_posix, python, settings, started, stored

pytestmark = pytest.mark.anyio

TOO_LATE = 30_000.0  # seconds after which the usual login has ended
DAY = 86_400.0


@pytest.fixture
async def pool(tmp_path, oauth, clock):
    async with started(make_pool(tmp_path, oauth.url, clock)) as pool:
        await pool.add_oauth(login(oauth, clock))
        yield pool


def on_disk(folder):
    """The one login in tokens.json."""
    (entry,) = stored(folder)["accounts"]
    return entry


# ---- functions over values


def test_pauses_after_failures_make_at_most_eight_tries_in_five_minutes():
    pause, now, tries = Pause(), 0.0, 0
    while now <= 300:
        tries += 1
        pause = pause.after_failure(now)
        now += pause.left(now)
    assert tries == 8
    assert pause.wait == 60


def test_a_pause_is_as_long_as_the_endpoint_asks_but_never_shorter_than_ours():
    assert Pause().after_failure(NOW, asked=120).left(NOW) == 120
    assert Pause(failures=9).after_failure(NOW, asked=5).left(NOW) == 60
    assert Pause().after_failure(NOW).left(NOW + 0.5) == 0.5
    assert Pause().after_failure(NOW).left(NOW + 1) == 0


def test_a_clock_set_back_ends_a_pause():
    assert Pause().after_failure(NOW, asked=60).left(NOW - 86400) == 0


@pytest.mark.parametrize(
    "document",
    [{}, {"version": "1"}, {"version": True}, {"version": 0}, {"version": 1}, {"version": 1, "accounts": {}}],
    ids=str,
)
def test_a_document_of_another_make_is_damaged(document):
    with pytest.raises(Damaged):
        check_document(document)


def test_a_newer_document_must_not_be_written_and_this_one_may():
    assert "newer" in check_document({"version": 2})
    assert check_document({"version": 1, "accounts": []}) == ""


OWN = {"id": "acc_1", "kind": "subscription", "access_token": "sk-ant-oat01-x"}


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        {},
        {"id": "acc_1"},
        {**OWN, "id": ""},
        {**OWN, "id": 7},
        {**OWN, "kind": "of a later version"},
        {**OWN, "source": "of a later version"},
        {**OWN, "access_token": ""},
        {**OWN, "access_token": 7},
        {**OWN, "kind": "api_key"},
        {**OWN, "base_url": "http://api.anthropic.com.evil.example"},
        {**OWN, "base_url": 7},
        {"id": "acc_1", "kind": "platform", "source": "ant"},
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_read_is_left_out_and_left_in_place(entry):
    good = {"id": "acc_2", "kind": "api_key", "api_key": "sk-ant-api03-x"}
    document = {"version": 1, "accounts": [entry, good]}
    assert list(entries(document)) == ["acc_2"]
    after = drop_entries(["acc_2"])(change_entry("acc_2", lambda e: {**e, "name": "x"})(document))
    assert after == {"version": 1, "accounts": [entry]}


def test_edits_keep_what_they_do_not_know():
    document = {"version": 1, "theme": "dark", "accounts": [{**OWN, "mood": "good"}]}
    after = change_entry("acc_1", lambda e: with_tokens(e, Tokens("sk-ant-oat01-new", "r", NOW)))(document)
    (entry,) = after["accounts"]
    assert (after["theme"], entry["mood"], entry["access_token"]) == ("dark", "good", "sk-ant-oat01-new")
    assert document["accounts"] == [{**OWN, "mood": "good"}]
    assert put_entry(OWN)({}) == {"version": 1, "accounts": [OWN]}
    assert change_entry("acc_9", lambda e: {})(document) is document


@pytest.mark.parametrize("end", [None, "soon", [], float("nan"), float("inf")], ids=repr)
def test_a_login_whose_end_cannot_be_read_counts_as_ended(end):
    assert tokens_in({**OWN, "expires_at": end}).expires_at == 0


# ---- many requests, one renewal


@pytest.mark.parametrize("waiting", [100, 1000])
async def test_requests_that_meet_an_ended_token_cause_one_renewal_and_none_fails(pool, oauth, clock, figure, waiting):
    clock.now += TOO_LATE
    oauth.delay = 0.5
    began = time.monotonic()
    got = await asyncio.gather(*(pool.credential() for _ in range(waiting)))
    took = (time.monotonic() - began) * 1e3
    figure(
        f"{waiting} requests on an ended token: {oauth.refreshes} renewal of 500 ms, 0 failed, last at {took:.0f} ms"
    )
    assert {credential.secret for credential in got} <= oauth.access
    assert len({credential.secret for credential in got}) == 1
    assert (len(oauth.seen), oauth.refreshes, oauth.reuses) == (1, 1, 0)


@pytest.mark.parametrize("waiting", [2, 100])
async def test_the_first_to_wait_may_hang_up_and_the_others_are_served(pool, oauth, clock, tmp_path, waiting):
    clock.now += TOO_LATE
    oauth.gate = asyncio.Event()
    tasks = [asyncio.create_task(pool.credential()) for _ in range(waiting)]
    await oauth.entered.wait()
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    oauth.gate.set()
    got = await asyncio.gather(*tasks[1:])
    assert tasks[0].cancelled()
    assert {credential.secret for credential in got} <= oauth.access
    assert (oauth.refreshes, oauth.reuses) == (1, 0)
    assert on_disk(tmp_path)["access_token"] == got[0].secret


async def test_a_renewal_that_everybody_left_is_finished_and_saved(pool, oauth, clock, tmp_path):
    clock.now += TOO_LATE
    oauth.gate = asyncio.Event()
    tasks = [asyncio.create_task(pool.credential()) for _ in range(10)]
    await oauth.entered.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    oauth.gate.set()
    credential = await pool.credential()
    assert (oauth.refreshes, oauth.reuses) == (1, 0)
    assert on_disk(tmp_path)["access_token"] == credential.secret


async def test_closing_waits_for_a_renewal_under_way(tmp_path, oauth, clock):
    pool = make_pool(tmp_path, oauth.url, clock)
    await pool.start()
    await pool.add_oauth(login(oauth, clock))
    clock.now += TOO_LATE
    oauth.gate = asyncio.Event()
    request = asyncio.create_task(pool.credential())
    await oauth.entered.wait()
    request.cancel()
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    oauth.gate.set()
    await closing
    assert oauth.refreshes == 1
    assert oauth.refresh[on_disk(tmp_path)["refresh_token"]] == "live"


async def test_renewed_tokens_are_on_the_disk_before_anybody_uses_them(pool, oauth, clock, tmp_path):
    clock.now += TOO_LATE
    credential = await pool.credential()
    entry = on_disk(tmp_path)
    assert entry["access_token"] == credential.secret
    assert oauth.refresh[entry["refresh_token"]] == "live"
    assert entry["expires_at"] == clock.now + oauth.lifetime
    assert entry["last_refresh_at"] == clock.now


# ---- ahead of the end


async def test_a_token_near_its_end_is_used_at_once_and_renewed_beside(pool, oauth, clock):
    clock.now += oauth.lifetime - (AHEAD - JITTER) + 1
    oauth.gate = asyncio.Event()
    first = await pool.credential()
    await oauth.entered.wait()
    assert first.secret in oauth.access
    oauth.gate.set()
    await pool.tend()
    assert (await pool.credential()).secret != first.secret
    assert oauth.refreshes == 1


async def test_a_token_far_from_its_end_is_left_alone(pool, oauth, clock):
    clock.now += oauth.lifetime - (AHEAD + JITTER) - 1
    await pool.credential()
    await pool.tend()
    assert oauth.seen == []


async def test_the_background_look_renews_ahead_also_for_an_account_that_rests(pool, oauth, clock):
    (account,) = pool.all()
    pool.rest(account.id, clock.now + 10**6, "weekly limit")
    clock.now += oauth.lifetime - 100
    await pool.tend()
    assert oauth.refreshes == 1
    assert pool.get(account.id).state == "resting"


async def test_an_account_that_is_switched_off_is_left_alone(pool, oauth, clock):
    (account,) = pool.all()
    await pool.update(account.id, enabled=False)
    clock.now += TOO_LATE
    await pool.tend()
    assert oauth.seen == []


@pytest.mark.parametrize("lifetime", [0, -1, 1, 60, 100])
async def test_short_lives_are_renewed_at_most_once_a_minute(pool, oauth, clock, lifetime):
    oauth.lifetime = lifetime
    clock.now += TOO_LATE
    for _ in range(600):
        await pool.credential()
        await pool.tend()
        clock.now += 1
    assert 6 <= oauth.refreshes <= 13
    assert oauth.reuses == 0


@pytest.mark.parametrize("jump", [86400, -86400, 10**7, -(10**7)])
async def test_a_clock_that_jumps_costs_one_renewal_at_worst(pool, oauth, clock, jump):
    clock.now += jump
    for _ in range(20):
        assert (await pool.credential()).secret in oauth.access
    clock.now -= jump
    for _ in range(20):
        credential = await pool.credential()
        if credential.secret not in oauth.access:
            credential = await pool.after_401(credential)
        assert credential.secret in oauth.access
    assert oauth.refreshes <= 1
    assert oauth.reuses == 0


# ---- refused although it should be valid


async def test_a_token_killed_early_is_renewed_once_for_a_hundred_requests(pool, oauth):
    got = await asyncio.gather(*(pool.credential() for _ in range(100)))
    oauth.kill(got[0].secret)
    again = await asyncio.gather(*(pool.after_401(credential) for credential in got))
    assert {credential.secret for credential in again} <= oauth.access
    assert (oauth.refreshes, oauth.reuses) == (1, 0)


async def test_one_request_after_another_may_meet_a_killed_token(pool, oauth):
    """Each stale token is renewed, however quickly they follow each other: nobody is signed out for bad luck."""
    for _ in range(20):
        credential = await pool.credential()
        oauth.kill(credential.secret)
        credential = await pool.after_401(credential)
        assert credential.secret in oauth.access
    assert (oauth.refreshes, oauth.reuses) == (20, 0)


async def test_a_stale_request_gets_the_token_that_is_there_already(pool, oauth):
    stale = await pool.credential()
    oauth.kill(stale.secret)
    renewed = await pool.after_401(stale)
    assert await pool.after_401(stale) == renewed
    assert oauth.refreshes == 1


class SlowToLetGo(SharedJson):
    """A file whose lock takes its time to be given back: then `let_go` is set by the test."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.let_go, self.leaving = asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def lock(self, wait=30.0):
        async with super().lock(wait):
            yield
        self.leaving.set()
        await self.let_go.wait()


async def test_who_meets_a_401_during_a_renewal_for_an_older_token_does_not_get_the_refused_one_again(
    tmp_path, oauth, clock
):
    """The renewal under way has just adopted what another process stored, and that very token is refused now."""
    old, stored_by_another = login(oauth, clock, lifetime=-60), login(oauth, clock)
    file = SlowToLetGo(tmp_path / "tokens.json", ours=True, check=check_document, clock=clock)
    file.edit(put_entry(with_tokens({"id": "acc_1", "kind": "subscription"}, stored_by_another)))
    file.let_go.set()
    await file.save()
    file.let_go.clear(), file.leaving.clear()

    one = Login(OwnHome(file, "acc_1", settings(oauth.url), clock), clock, lambda tokens, reason: None)
    first = asyncio.create_task(one.renewed(old.access_token))
    await file.leaving.wait()
    oauth.kill(stored_by_another.access_token)
    second = asyncio.create_task(one.refused(stored_by_another.access_token))
    await asyncio.sleep(0)
    file.let_go.set()
    assert await first == stored_by_another
    assert (await second).access_token in oauth.access
    assert (oauth.refreshes, oauth.reuses) == (1, 0)


async def test_a_second_refusal_sets_the_login_aside_and_keeps_it(pool, oauth, tmp_path):
    renewed = await pool.after_401(await pool.credential())
    assert await pool.after_401(renewed) is None
    (account,) = pool.all()
    assert account.state == "sign_in_again"
    assert "even after renewing" in account.reason
    with pytest.raises(ProxyError) as raised:
        await pool.credential()
    assert (raised.value.status, oauth.refreshes) == (401, 1)
    await pool.tend()
    assert on_disk(tmp_path)["refresh_token"].startswith("sk-ant-ort01-")


async def test_many_stale_requests_after_the_final_word_ask_nobody(pool, oauth):
    got = [await pool.credential() for _ in range(50)]
    oauth.refresh.clear()
    for credential in got:
        assert await pool.after_401(credential) is None
    assert len(oauth.seen) == 1


async def test_a_refused_token_that_cannot_be_renewed_just_now_is_not_sent_again(pool, oauth, clock):
    credential = await pool.credential()
    oauth.always = (503, "", {})
    with pytest.raises(Unavailable):
        await pool.after_401(credential)
    with pytest.raises(ProxyError) as raised:
        await pool.credential()
    assert raised.value.status == 503
    oauth.always = None
    clock.now += 60
    assert (await pool.credential()).secret in oauth.access


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
