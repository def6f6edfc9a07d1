"""Logins that stay valid: one renewal for everybody, in one process and in several, and none lost on the way."""

import asyncio
import contextlib
import time

import pytest

from server.errors import ProxyError
from server.files import Damaged
from server.oauth import Tokens, Unavailable
from server.shared_json import SharedJson
from server.tokens import (
    AHEAD,
    JITTER,
    Login,
    OwnStore,
    Pause,
    change_entry,
    check_document,
    drop_entries,
    entries,
    put_entry,
    tokens_in,
    with_tokens,
)
from tests.pools import NOW, TOO_LATE, login, make_pool, on_disk, settings

pytestmark = pytest.mark.anyio

DAY = 86_400.0


@pytest.fixture
async def pool(pool, oauth, clock):
    await pool.add_oauth(login(oauth, clock))
    return pool


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

    one = Login(OwnStore(file, "acc_1", settings(oauth.url), clock), clock, lambda tokens, reason: None)
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
