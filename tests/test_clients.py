import sqlite3
import statistics
import time
from contextlib import closing

import pytest

from server.budget import Limits
from server.cache_helps import NO_HELPS, CacheHelps
from server.clients import KEYS_LOST, OWNER, PREFIX, Client, ClientKeys, required
from server.doctor import Finding, database
from server.errors import ProxyError
from server.models import Models


@pytest.fixture
def keys(tmp_path):
    made = ClientKeys(tmp_path)
    yield made
    made.close()


def test_a_key_is_found_by_itself_alone(keys):
    row, key = keys.make("tablet")
    _, other = keys.make("phone")
    assert keys.find(key).name == "tablet"
    assert keys.find(other).name == "phone"
    for wrong in (key[:-1], key + "x", key.swapcase(), "x" + key[1:], key[:13], "", "anything", "pä\udce4ss"):
        assert keys.find(wrong) is None
    assert row["ends_with"] == key[-4:]


def test_a_key_is_random_and_nowhere_on_disk(keys, tmp_path):
    made = [keys.make("x")[1] for _ in range(20)]
    assert len(set(made)) == 20
    assert all(len(key) >= 43 + len("tavern-") for key in made)
    disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(key.encode() in disk for key in made)


def test_a_wrong_key_takes_the_same_time_wherever_it_is_wrong(keys, figure):
    """The figures tell how alike; here, that the first byte and the last one are looked at in the same way."""
    _, key = keys.make("tablet")
    end = len(PREFIX)
    wrong = {"first": key[:end] + ("A" if key[end] != "A" else "B") + key[end + 1 :], "last": key[:-1] + "~"}
    took = {name: [] for name in wrong}
    for _ in range(10_000):
        for name, secret in wrong.items():
            began = time.perf_counter_ns()
            assert keys.find(secret) is None
            took[name].append(time.perf_counter_ns() - began)
    first, last = (statistics.median(took[name]) / 1e3 for name in ("first", "last"))
    figure(f"a client key wrong in its first byte is refused in {first:.1f} µs, in its last in {last:.1f} µs (medians)")


def test_a_revoked_key_opens_nothing_at_once_also_for_another_process(keys, tmp_path):
    row, key = keys.make("tablet")
    other = ClientKeys(tmp_path)
    assert other.find(key) is not None
    assert keys.revoke(row["id"])
    assert other.find(key) is None
    assert not keys.revoke(row["id"])
    other.close()


def test_last_use_is_noted(tmp_path):
    now = [1000.0]
    keys = ClientKeys(tmp_path, clock=lambda: now[0])
    _, key = keys.make("tablet")
    assert keys.rows()[0]["last_used_at"] is None
    keys.find(key)
    assert keys.rows()[0]["last_used_at"] == "1970-01-01T00:16:40Z"
    now[0] += 3600
    keys.find(key)
    assert keys.rows()[0]["last_used_at"] == "1970-01-01T01:16:40Z"
    keys.close()


def test_the_database_is_the_owners_alone(keys, tmp_path):
    assert (tmp_path / "state.sqlite").stat().st_mode & 0o077 == 0
    with closing(sqlite3.connect(tmp_path / "state.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM client_keys").fetchone() == (0,)


@pytest.mark.parametrize(
    ("setting", "any_key", "beyond", "needed"),
    [
        ("auto", False, False, False),
        ("auto", True, False, True),
        ("auto", False, True, True),
        ("true", False, False, True),
        ("false", True, False, False),
        ("false", True, True, True),
    ],
)
def test_when_a_key_is_required(setting, any_key, beyond, needed):
    assert required(setting, any_key, beyond) is needed


def test_where_none_is_needed_anybody_here_is_the_owner_and_a_key_still_counts(tmp_path):
    with closing(ClientKeys(tmp_path, require="false")) as keys:
        _, key = keys.make("tablet")
        assert keys.authenticate({}) == OWNER
        assert not keys.authenticate({"x-api-key": key}).own


def test_where_one_is_needed_only_a_key_of_ours_opens(keys):
    _, key = keys.make("tablet")
    assert keys.authenticate({"authorization": f"Bearer {key}"}).name == "tablet"
    with pytest.raises(ProxyError) as caught:
        keys.authenticate({"x-api-key": "anything"})
    assert caught.value.status == 401


def test_a_containers_first_key_is_made_once_and_can_be_shown_until_it_is_revoked(keys, tmp_path):
    assert keys.first_key() == ""
    key = keys.first_key(make=True)
    assert keys.find(key) is not None
    assert keys.first_key(make=True) == key == keys.first_key()
    assert (tmp_path / "first_client_key").stat().st_mode & 0o077 == 0
    keys.make("another")
    keys.revoke(keys.rows()[0]["id"])
    assert keys.first_key(make=True) == ""


def test_a_containers_first_key_that_cannot_be_read_stops_nothing(keys, tmp_path):
    (tmp_path / "first_client_key").write_bytes(b"\xd0\xff\x00")
    assert keys.first_key() == ""
    assert keys.find(keys.first_key(make=True)).name == "first key"


@pytest.mark.parametrize("from_byte", [0, 4096])
def test_a_damaged_database_is_set_aside_with_a_message_and_work_goes_on(tmp_path, from_byte):
    keys = ClientKeys(tmp_path)
    for number in range(100):
        keys.make(f"key {number}")
    keys.close()
    good = (tmp_path / "state.sqlite").read_bytes()
    (tmp_path / "state.sqlite").write_bytes(good[:from_byte] + b"\xff" * (len(good) - from_byte))
    keys = ClientKeys(tmp_path)
    assert [words[:22] for words in keys.warnings] == ["state.sqlite was damag", "The client keys are go"]
    assert keys.find(keys.make("tablet")[1]) is not None
    keys.close()
    assert any(b"\xff" * 4096 in path.read_bytes() for path in tmp_path.iterdir() if "corrupt" in path.name)


@pytest.fixture(params=["deleted", "emptied", "damaged"])
def lose(request, tmp_path):
    """Loses the database, as a person, a full disk or a bad one does."""

    def lose():
        for path in tmp_path.glob("state.sqlite*"):
            path.unlink()
        if request.param != "deleted":
            (tmp_path / "state.sqlite").write_bytes(b"" if request.param == "emptied" else b"\xff" * 4096)

    return lose


def test_where_keys_were_in_use_one_is_asked_for_when_their_database_is_lost(tmp_path, lose):
    with closing(ClientKeys(tmp_path)) as keys:
        keys.make("tablet")
    lose()
    for _ in range(2):
        with closing(ClientKeys(tmp_path)) as keys:
            assert KEYS_LOST in keys.warnings
            assert database(tmp_path) == Finding("bad", KEYS_LOST)
            with pytest.raises(ProxyError, match="has lost its client keys"):
                keys.authenticate({"x-api-key": "anything"})
    with closing(ClientKeys(tmp_path, require="false")) as keys:
        assert KEYS_LOST not in keys.warnings
        assert keys.authenticate({}) == OWNER
    with closing(ClientKeys(tmp_path)) as keys:
        row, key = keys.make("phone")
        assert keys.authenticate({"x-api-key": key}).name == "phone"
        assert KEYS_LOST not in keys.warnings
        assert database(tmp_path).mark == "ok"
        keys.revoke(row["id"])
        assert keys.authenticate({}) == OWNER
    with closing(ClientKeys(tmp_path)) as keys:
        assert keys.authenticate({}) == OWNER


def test_where_there_was_no_key_a_lost_database_is_told_and_closes_nothing(tmp_path, lose):
    ClientKeys(tmp_path).close()
    (tmp_path / "admin_token").write_text("as after any start")
    lose()
    with closing(ClientKeys(tmp_path)) as keys:
        assert [words.endswith("The books begin anew.") for words in keys.warnings] == [True]
        assert keys.authenticate({}) == OWNER


def test_a_containers_first_key_is_made_anew_when_it_is_lost(tmp_path, lose):
    with closing(ClientKeys(tmp_path)) as keys:
        old = keys.first_key(make=True)
    lose()
    with closing(ClientKeys(tmp_path)) as keys:
        assert keys.first_key(make=True) not in ("", old)
        assert KEYS_LOST not in keys.warnings


def test_the_doctor_says_that_the_database_is_damaged_and_changes_nothing(tmp_path):
    assert database(tmp_path).mark == "ok"
    (tmp_path / "state.sqlite").write_bytes(b"\xff" * 4096)
    found = database(tmp_path)
    assert found.mark == "bad"
    assert "sets the file aside" in found.what
    assert [path.name for path in tmp_path.iterdir()] == ["state.sqlite"]


def test_while_the_keys_cannot_be_read_one_is_asked_for(tmp_path):
    keys = ClientKeys(tmp_path)
    keys.make("tablet")
    keys.close()
    assert keys.any()


# -- what a key may use


def test_a_key_carries_its_limits_models_and_personas_over_a_restart(keys, tmp_path):
    _, key = keys.make("tablet", limits=Limits(usd_per_day=1.5), models=["claude-sonnet-4-6"], personas=["brindle"])
    other = ClientKeys(tmp_path)
    found = other.find(key)
    assert (found.limits, found.models, found.personas) == (
        Limits(usd_per_day=1.5),
        ("claude-sonnet-4-6",),
        ("brindle",),
    )
    assert found.is_limited
    assert not other.find(other.make("phone")[1]).is_limited
    other.close()


def test_a_keys_cache_helps_are_kept(keys, tmp_path):
    _, phone = keys.make("phone")
    _, tablet = keys.make("tablet", helps=CacheHelps(cache_late_lore=True))
    again = ClientKeys(tmp_path)
    assert (again.find(phone).helps, again.find(tablet).helps) == (NO_HELPS, CacheHelps(cache_late_lore=True))
    again.close()


def test_a_change_is_in_force_at_once_and_leaves_the_rest(keys):
    row, key = keys.make("tablet", limits=Limits(usd_per_day=1.5), models=["a"])
    assert keys.update(row["id"], limits=Limits(tokens_per_day=5))["limits"]["tokens_per_day"] == 5
    assert keys.update(row["id"], name="phone", own=True)["name"] == "phone"
    found = keys.find(key)
    assert (found.name, found.own, found.limits, found.models) == ("phone", True, Limits(tokens_per_day=5), ("a",))
    with pytest.raises(ProxyError, match="no such key"):
        keys.update("key_of_nobody", name="x")


def test_models_are_compared_by_what_they_are_not_by_their_spelling():
    client, models = Client("k", models=("opus-4.5", "llama-7b")), Models.load()
    for name in ("claude-opus-4-5", "anthropic/claude-opus-4.5", "claude-opus-4-5-20251101", "llama-7b"):
        client.check_model(name, models)
    with pytest.raises(ProxyError, match=r"may not use claude-opus-5\. Choose one of these") as caught:
        client.check_model("claude-opus-5", models)
    assert caught.value.status == 403
    OWNER.check_model("anything", models)


@pytest.mark.parametrize(
    "further",
    [
        {"fallbacks": [{"model": "claude-opus-5"}]},
        {"fallbacks": ["claude-opus-5"]},
        {"fallbacks": "default"},
        {"tools": [{"name": "dice"}, {"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-5"}]},
    ],
)
def test_a_key_for_certain_models_reaches_no_other_by_a_request_that_names_several(further):
    client, models = Client("k", models=("opus-4.5",)), Models.load()
    body = {"model": "claude-opus-4-5", "tools": [{"name": "dice"}], "fallbacks": [{"model": "opus-4.5"}]}
    client.check_models(body, models)
    with pytest.raises(ProxyError, match="may not use"):
        client.check_models({**body, **further}, models)
    OWNER.check_models({**body, **further}, models)
