"""The opt-in cache helps: chosen by the client key, else by the persona, else by the settings."""

import json

import pytest

from server.cache_helps import NO_HELPS, CacheHelps
from tests.running import running

LORE = "cache_late_lore"
PINGS = "cache_keepalive_pings"


def test_what_is_not_chosen_is_left_to_the_next():
    key, persona = CacheHelps(cache_late_lore=False), CacheHelps(cache_late_lore=True, cache_keepalive_pings=0)
    settings = CacheHelps(False, True, 5)
    assert key.over(persona).over(settings) == CacheHelps(False, True, 0)
    assert NO_HELPS.over(settings) == settings == settings.over(persona)


@pytest.mark.parametrize(
    "given",
    [None, {}, {LORE: True}, {"cache_steady_window": False, PINGS: 100}, {LORE: None, PINGS: 0}],
    ids=str,
)
def test_helps_are_read_as_they_were_given(given):
    read = CacheHelps.of(given)
    assert {name: value for name, value in read.public().items() if name in (given or {})} == (given or {})
    assert CacheHelps.of(read.public()) == read


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "it must be an object"),
        (True, "it must be an object"),
        ({"late_lore": True}, "with cache_late_lore, cache_steady_window, cache_keepalive_pings at most"),
        ({LORE: 1}, "cache_late_lore must be true, false or null"),
        ({"cache_steady_window": "true"}, "cache_steady_window must be true, false or null"),
        *(
            ({PINGS: value}, "cache_keepalive_pings must be a whole number from 0 to 100")
            for value in (-1, 101, 1.0, True, "3", float("nan"))
        ),
    ],
    ids=str,
)
def test_anything_else_is_refused_in_words(given, why):
    with pytest.raises(ValueError, match=why):
        CacheHelps.of(given)


# On the road


async def make_key(proxy, **fields):
    made = await proxy.owner("POST", "/api/keys", json={"name": "tablet", "own": True, **fields})
    assert made.status == 201, made.raw
    return made.json


def with_lore(line):
    """A chat with this line of lore in front of its character, long enough to be cached."""
    head = [f"Rule {i}: the rain on the harbour is never mentioned twice. " * 20 for i in range(4)]
    return {
        "system": [{"type": "text", "text": text} for text in (head[0], line, *head[1:])],
        "messages": [{"role": "user", "content": "Good evening."}],
    }


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("setting", "persona", "key", "moves"),
    [
        (False, None, None, False),
        (True, None, None, True),
        (False, True, None, True),
        (True, False, None, False),
        (False, None, True, True),
        (True, True, False, False),
        (False, False, True, True),
    ],
)
async def test_the_key_goes_before_the_persona_and_the_persona_before_the_settings(
    tmp_path, anthropic, setting, persona, key, moves
):
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "ruth.json").write_text(json.dumps({"suffix": "(Slowly.)", "helps": {LORE: persona}}))
    async with running(tmp_path, anthropic.url, presets=presets, **{LORE: setting}) as proxy:
        await proxy.sign_in()
        made = await make_key(proxy, helps={LORE: key})
        asked = {"path": "/v1/ruth/messages", "headers": {"x-api-key": made["key"]}}
        for line in ("The fishmonger has a wooden leg.", "The bell-founder is left-handed."):
            assert (await proxy.ask(**asked, **with_lore(line))).status == 200
        changes = (await proxy.receipts())[0]["changes"]
    assert (LORE in [change["name"] for change in changes]) is moves
    assert ("bell-founder" in json.dumps(anthropic.seen[-1].body["system"])) is not moves


@pytest.mark.anyio
async def test_the_helps_of_a_key_are_listed_and_changed_one_by_one(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as proxy:
        made = await make_key(proxy, helps={LORE: True, PINGS: 2})
        assert made["helps"] == {LORE: True, "cache_steady_window": None, PINGS: 2}
        path = f"/api/keys/{made['id']}"
        changed = await proxy.owner("PATCH", path, json={"helps": {PINGS: None, "cache_steady_window": False}})
        assert changed.json["helps"] == {LORE: True, "cache_steady_window": False, PINGS: None}
        assert (await proxy.owner("PATCH", path, json={"helps": None})).json["helps"] == NO_HELPS.public()
        for helps in ({PINGS: 101}, {"lore": True}, []):
            refused = await proxy.owner("PATCH", path, json={"helps": helps})
            assert (refused.status, refused.message[:6]) == (400, "helps:")
            assert (await proxy.owner("POST", "/api/keys", json={"name": "x", "helps": helps})).status == 400
        assert (await proxy.owner("GET", "/api/keys")).json["keys"][0]["helps"] == NO_HELPS.public()
