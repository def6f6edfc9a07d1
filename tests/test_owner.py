"""Who the owner is: token file, one-time links, session cookie, wrong tries."""

import os
import stat

import pytest

from server.errors import ProxyError
from server.owner import (
    FREE_TRIES,
    LONGEST_WAIT,
    OPEN_LINKS,
    SESSION_SECONDS,
    Owner,
    Tries,
    cookies_named,
    session_is_good,
    session_value,
)

NOW = 1_800_000_000.0
TOKEN = "t" * 43


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def owner(clock):
    return Owner(TOKEN, 42069, clock)


def status(refusal):
    return refusal and refusal.status


def test_a_session_is_good_until_its_end():
    value = session_value(TOKEN, "nonce", NOW)
    assert session_is_good(value, TOKEN, NOW)
    assert session_is_good(value, TOKEN, NOW + SESSION_SECONDS - 1)
    assert not session_is_good(value, TOKEN, NOW + SESSION_SECONDS)


def test_a_session_is_good_for_one_admin_token_only():
    assert not session_is_good(session_value("u" * 43, "nonce", NOW), TOKEN, NOW)


@pytest.mark.parametrize("at", range(0, 100, 7))
def test_a_session_changed_anywhere_is_refused(at):
    value = session_value(TOKEN, "nonce", NOW)
    at %= len(value)
    changed = value[:at] + ("0" if value[at] != "0" else "1") + value[at + 1 :]
    assert not session_is_good(changed, TOKEN, NOW)


@pytest.mark.parametrize("value", ["", ".", "..", "x", "9999999999.a.", "9999999999..", "ä.ö.ü", "\udce4", "1e9.a.b"])
def test_what_is_no_session_is_refused_without_a_fuss(value):
    assert not session_is_good(value, TOKEN, NOW)


def test_each_sign_in_gets_a_session_of_its_own(owner):
    assert owner.new_session() != owner.new_session()


def test_a_session_outlives_a_restart(owner, clock):
    cookie = f"tavern_42069={owner.new_session()}"
    assert Owner(TOKEN, 42069, clock).session(cookie)


def test_the_cookie_of_another_port_is_not_ours(owner):
    value = owner.new_session()
    assert owner.session(f"tavern_42069={value}")
    assert not owner.session(f"tavern_42070={value}")


def test_a_cookie_planted_beside_ours_does_not_hide_it(owner):
    value = owner.new_session()
    assert owner.session(f"tavern_42069=planted; other=1; tavern_42069={value}; tavern_42069=") == value


def test_cookies_are_read_as_browsers_send_them():
    assert list(cookies_named("a", "a=1;b=2; a=x=y;  a ; aa=3")) == ["1", "x=y", ""]


def test_the_admin_token_and_the_session_open_the_door(owner):
    assert owner.refusal("", f"Bearer {TOKEN}") is None
    assert owner.refusal(f"tavern_42069={owner.new_session()}", "") is None
    assert status(owner.refusal("", "")) == 401
    assert status(owner.refusal("", "Bearer ä\udce4")) == 401


def test_an_empty_password_is_no_admin_token(owner):
    assert status(owner.refusal("", "Bearer ")) == 401
    assert status(owner.refusal("", "Basic")) == 401


def test_a_link_opens_once(owner):
    token = owner.new_link_token()
    assert owner.redeem_link(token) == "good"
    assert owner.redeem_link(token) == "spent"


def test_several_links_may_wait_at_once_in_any_order(owner):
    tokens = [owner.new_link_token() for _ in range(5)]
    assert [owner.redeem_link(token) for token in reversed(tokens)] == ["good"] * 5


def test_the_oldest_of_too_many_links_gives_way(owner):
    first = owner.new_link_token()
    others = [owner.new_link_token() for _ in range(OPEN_LINKS)]
    with pytest.raises(ProxyError) as refused:
        owner.redeem_link(first)
    assert refused.value.status == 401
    assert owner.redeem_link(others[0]) == "good"


def test_links_are_kept_hashed(owner):
    token = owner.new_link_token()
    assert token not in repr(vars(owner))


def test_of_a_thousand_guesses_995_are_refused_by_rate(owner, figure):
    answers = [status(owner.refusal("", f"Bearer guess{i}")) for i in range(1000)]
    assert answers.count(401) == FREE_TRIES
    assert answers.count(429) == 1000 - FREE_TRIES
    figure(f"1000 guesses at the admin token: {answers.count(429)} refused by rate")


def test_guessing_links_counts_like_guessing_tokens(owner):
    answers = []
    for i in range(20):
        with pytest.raises(ProxyError) as refused:
            owner.redeem_link(f"guess{i}")
        answers.append(refused.value.status)
    assert answers == [401] * FREE_TRIES + [429] * (20 - FREE_TRIES)


def test_the_right_token_always_passes(owner):
    link = owner.new_link_token()
    for i in range(100):
        owner.refusal("", f"Bearer guess{i}")
    assert owner.refusal("", f"Bearer {TOKEN}") is None
    assert owner.redeem_link(link) == "good"


def test_a_request_without_any_token_is_no_try(owner):
    assert {status(owner.refusal("", "")) for _ in range(50)} == {401}


def test_a_stale_session_is_no_try(owner):
    assert {status(owner.refusal("tavern_42069=stale", "")) for _ in range(50)} == {401}


def test_five_tries_a_minute_are_free_for_ever():
    tries, now = Tries(), NOW
    for _ in range(100):
        tries = tries.after_a_wrong_one(now)
        assert tries.refusal(now, "no").status == 401
        now += 12.1


def test_the_waits_grow_and_have_a_ceiling():
    tries, now, waits = Tries(), NOW, []
    for _ in range(9):
        while tries.refusal(now, "no").status == 401:
            tries = tries.after_a_wrong_one(now)
        waits.append(round(tries.blocked_until - now))
        now = tries.blocked_until
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def test_after_a_quiet_hour_the_waits_begin_anew():
    tries = Tries(blocked_until=NOW, wait=1920)
    now = NOW + LONGEST_WAIT + 1
    for _ in range(FREE_TRIES + 1):
        tries = tries.after_a_wrong_one(now)
    assert tries.wait == 60


def test_a_blocked_try_is_told_when_the_next_one_counts(owner, clock):
    for i in range(FREE_TRIES + 1):
        refusal = owner.refusal("", f"Bearer guess{i}")
    assert refusal.headers["retry-after"] == "61"
    clock.now += 30
    assert owner.refusal("", "Bearer x").headers["retry-after"] == "31"
    clock.now += 31
    assert status(owner.refusal("", "Bearer x")) == 401


def test_the_first_start_makes_a_private_token(tmp_path, clock):
    owner = Owner.at(tmp_path, 42069, clock)
    path = tmp_path / "admin_token"
    assert path.read_text().strip() == owner.admin_token
    assert len(owner.admin_token) >= 43  # 256 bits, six to a character
    assert owner.warnings == []
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_next_start_reads_it(tmp_path, clock):
    assert Owner.at(tmp_path, 1, clock).admin_token == Owner.at(tmp_path, 2, clock).admin_token


def test_two_first_starts_make_different_tokens(tmp_path, clock):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert Owner.at(tmp_path / "a", 1, clock).admin_token != Owner.at(tmp_path / "b", 1, clock).admin_token


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 20 + b"\n" + b"y" * 20, b"\xff" * 40, b"\0" * 40])
def test_a_damaged_token_is_set_aside_and_made_anew(tmp_path, clock, content):
    (tmp_path / "admin_token").write_bytes(content)
    owner = Owner.at(tmp_path, 42069, clock)
    assert len(owner.admin_token) >= 43
    assert "new one was made" in owner.warnings[0]
    aside = list(tmp_path.glob("admin_token.corrupt.*"))
    assert [path.read_bytes() for path in aside] == [content]
    assert Owner.at(tmp_path, 42069, clock).warnings == []


@pytest.mark.skipif(os.name != "posix", reason="rights are a POSIX matter")
def test_a_token_that_others_could_read_is_taken_back_with_a_warning(tmp_path, clock):
    token = Owner.at(tmp_path, 42069, clock).admin_token
    (tmp_path / "admin_token").chmod(0o644)
    owner = Owner.at(tmp_path, 42069, clock)
    assert owner.admin_token == token
    assert "other users" in owner.warnings[0]
    assert stat.S_IMODE((tmp_path / "admin_token").stat().st_mode) == 0o600


def test_a_symlink_in_place_of_the_token_is_not_followed(tmp_path, clock):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(TOKEN)
    (tmp_path / "admin_token").symlink_to(elsewhere)
    owner = Owner.at(tmp_path, 42069, clock)
    assert owner.admin_token != TOKEN
    assert not (tmp_path / "admin_token").is_symlink()
    assert elsewhere.read_text() == TOKEN


def test_a_folder_that_cannot_be_written_costs_only_the_file(tmp_path, clock):
    missing = tmp_path / "not" / "there"
    owner = Owner.at(missing, 42069, clock)
    assert owner.refusal("", f"Bearer {owner.admin_token}") is None
    assert "cannot be written" in owner.warnings[0]
