"""The dashboard's pages before the whole program: what they tell of real requests, and to whom."""

import asyncio
import json
import re
import time
from dataclasses import fields
from datetime import timedelta
from html import unescape

import aiohttp
import pytest

from server.config import Config, config_text
from server.days import day_of
from server.pages import figures, page, plot
from server.pages.requests import compare
from server.pages.settings import SECRET as SECRET_SETTINGS
from server.receipt import Bodies
from tests.fakes import PATIENCE, PLAIN, error, plain, reply_events, stream
from tests.running import running

pytestmark = pytest.mark.anyio

SECRET = "The lantern stands in the third window."


async def see(proxy, path):
    """A page as the owner's browser gets it."""
    headers = {"Authorization": f"Bearer {proxy.parts.owner.admin_token}", "Accept": "text/html"}
    answer = await proxy.send("GET", path, headers=headers)
    return answer.status, unescape(answer.raw.decode())


def chat(text=SECRET, **other):
    return {"messages": [{"role": "user", "content": text}], **other}


# The requests


async def test_a_request_is_told_as_a_story(proxy):
    answer = await proxy.ask(temperature=1.0, top_p=0.9, system="You are Tamsin.")
    status, text = await see(proxy, f"/requests/{answer.headers['x-receipt']}")
    assert status == 200
    for sign in ("you, on this computer", "the request's own key", "claude-sonnet-4-6", "23 tokens", "3 tokens"):
        assert sign in text
    for change in (await proxy.receipts())[0]["changes"]:
        assert change["name"] in text
    assert "temperature" in text
    for sign in ("<strong>11</strong> read", "<strong>5</strong> written", "<strong>7</strong> at the plain price"):
        assert sign in text
    assert "Without the cache" in text


async def test_a_failed_request_is_listed_with_its_status_what_it_means_and_no_price(proxy, anthropic):
    anthropic.will(error(404, "not_found_error", "model: claude-none"))
    await proxy.ask()
    _, text = await see(proxy, "/requests")
    assert "error 404 <small>There is no such model, persona or address.</small>" in text
    assert '<td class="cost none">–</td>' in text
    _, text = await see(proxy, f"/requests/{(await proxy.receipts())[0]['id']}")
    assert "no use was reported" in text
    assert "0 tokens" not in text
    assert "unknown" not in text


async def test_a_request_refused_by_the_proxy_itself_went_nowhere(proxy):
    answer = await proxy.ask(headers={})
    _, text = await see(proxy, f"/requests/{answer.headers['x-receipt']}")
    assert answer.status == 401
    assert "went nowhere" in text


async def test_an_unknown_request_is_404_in_words(proxy):
    status, text = await see(proxy, "/requests/req_none")
    assert status == 404
    assert "not kept any more" in text


async def test_the_list_shows_a_hundred_and_all_on_demand(proxy):
    for _ in range(102):
        await proxy.ask()
    _, text = await see(proxy, "/requests")
    assert text.count('<td class="when">') == 100
    assert "/requests?show=all" in text
    _, text = await see(proxy, "/requests?show=all")
    assert text.count('<td class="when">') == 102
    assert "/requests?show=all" not in text


# Their text


async def test_by_default_no_text_is_kept(proxy):
    answer = await proxy.ask(**chat())
    _, text = await see(proxy, f"/requests/{answer.headers['x-receipt']}")
    assert "keep_bodies_in_memory" in text
    assert SECRET not in text


async def test_the_text_of_the_last_requests_is_compared_where_the_owner_wants_it(tmp_path, anthropic, caplog):
    caplog.set_level("DEBUG")
    async with running(tmp_path, anthropic.url, keep_bodies_in_memory=2) as proxy:
        ids = [
            (await proxy.ask(**chat(f"{SECRET} {i}", temperature=1.0, top_p=0.9))).headers["x-receipt"]
            for i in range(3)
        ]
        pages = [(await see(proxy, f"/requests/{one}"))[1] for one in ids]
        assert [SECRET in text for text in pages] == [False, True, True]
        assert "not in memory any more" in pages[0]
        assert f"{SECRET} 2" in pages[2]
        assert f"{SECRET} 1" not in pages[2]
        assert re.search(r"<del>.*temperature", pages[2])
        stranger = await proxy.send("GET", f"/requests/{ids[2]}", headers={"Accept": "text/html"})
        assert (stranger.status, SECRET.encode() in stranger.raw) == (401, False)
        assert SECRET not in json.dumps(await proxy.receipts())
        assert SECRET not in (await see(proxy, "/requests"))[1]
    assert SECRET not in caplog.text
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


def test_the_differing_lines_are_marked_and_pictures_are_their_length():
    asked = {"model": "m", "top_k": 1, "messages": [{"source": {"type": "base64", "data": "A" * 1000}}]}
    texts = compare(Bodies(asked, {key: value for key, value in asked.items() if key != "top_k"}))
    assert [line for line in texts.changed if line[0] in "+-"] == [("-", '  "top_k": 1,')]
    assert "… 1,000 characters …" in texts.asked
    assert "AAAA" not in texts.asked
    same = compare(Bodies(asked, dict(asked)))
    assert same.changed == ()


# The personas


PERSONA = {"name": "Tamsin", "description": "Keeps the lamps.", "system": "You are Tamsin, who keeps the lamps."}


@pytest.fixture
def presets(proxy):
    return proxy.parts.app[page.PERSONAS]


async def put(proxy, name, persona):
    text = persona if isinstance(persona, bytes) else json.dumps(persona).encode()
    headers = {"Authorization": f"Bearer {proxy.parts.owner.admin_token}", "Content-Type": "application/json"}
    return await proxy.send("PUT", f"/api/personas/{name}", headers=headers, data=text)


async def test_a_persona_is_written_shown_changed_and_deleted(proxy, presets):
    assert (await put(proxy, "tamsin", PERSONA)).json == {"name": "tamsin", "title": "Tamsin"}
    status, text = await see(proxy, "/personas")
    assert status == 200
    for sign in ("Tamsin", "Keeps the lamps.", f"http://127.0.0.1:{proxy.port}/v1/tamsin"):
        assert sign in text
    assert "who keeps the lamps." in (await see(proxy, "/personas/tamsin"))[1]
    await put(proxy, "tamsin", {**PERSONA, "description": "Lights the lamps."})
    assert presets.get("tamsin").description == "Lights the lamps."
    assert (await proxy.owner("DELETE", "/api/personas/tamsin")).status == 204
    assert presets.all() == []
    assert (await proxy.owner("DELETE", "/api/personas/tamsin")).status == 404
    assert (await see(proxy, "/personas/tamsin"))[0] == 404


@pytest.mark.parametrize(
    ("name", "persona", "why"),
    [
        ("messages", PERSONA, "API's own addresses"),
        ("a.b", PERSONA, "letters, digits"),
        ("..%2Fserver", PERSONA, "letters, digits"),
        ("tamsin", {"system": ""}, "needs a “system” text"),
        ("tamsin", {**PERSONA, "settings": {"temperature": 3}}, "a number from 0 to 1"),
        ("tamsin", b"{", "is not valid JSON"),
        ("tamsin", b"\xff", "not UTF-8"),
    ],
)
async def test_a_persona_that_would_not_work_is_refused_and_nothing_is_written(
    proxy, presets, tmp_path, name, persona, why
):
    answer = await put(proxy, name, persona)
    assert answer.status == 400
    assert why in answer.message
    assert list((tmp_path / "own" / "presets").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["..%2Fsecret", "..%2f..%2Fsecret", "%2e%2e%2fsecret", "..%5Csecret", "presets%2Ftamsin"]
)
async def test_no_name_leads_out_of_the_folder(proxy, tmp_path, name):
    secret = tmp_path / "own" / "secret.json"
    secret.write_text('{"token": "sk-ant-oat01-somebody"}')
    status, text = await see(proxy, f"/personas/{name}")
    assert status in (400, 404)
    assert "sk-ant" not in text
    for method in ("POST", "PUT", "DELETE"):
        answer = await proxy.owner(method, f"/api/personas/{name}", json=PERSONA)
        assert answer.status in (400, 404)
    assert secret.read_text() == '{"token": "sk-ant-oat01-somebody"}'
    assert list((tmp_path / "own" / "presets").iterdir()) == []


async def test_a_new_persona_never_takes_the_place_of_another(proxy, presets):
    await put(proxy, "tamsin", PERSONA)
    answer = await proxy.owner("POST", "/api/personas/Tamsin", json={**PERSONA, "name": "Other"})
    assert answer.status == 409
    assert presets.get("tamsin").title == "Tamsin"
    assert (await proxy.owner("POST", "/api/personas/brindle", json=PERSONA)).status == 200


async def test_a_damaged_file_is_named_with_its_problem_and_can_be_mended(proxy, tmp_path):
    file = tmp_path / "own" / "presets" / "Tamsin.json"
    file.write_text('{"system": "You are Tamsin", }')
    _, text = await see(proxy, "/personas")
    assert text.count("presets/Tamsin.json is not valid JSON") == 1
    assert 'href="/personas/Tamsin"' in text
    _, text = await see(proxy, "/personas/Tamsin")
    assert '{"system": "You are Tamsin", }' in text
    assert text.count("is not valid JSON") == 1
    assert (await put(proxy, "Tamsin", PERSONA)).status == 200
    assert [path.name for path in file.parent.iterdir()] == ["Tamsin.json"]
    assert json.loads(file.read_text()) == PERSONA


# The settings


@pytest.fixture
def config_txt(tmp_path, proxy):
    file = tmp_path / "own" / "config.txt"
    file.write_text(config_text())
    return file


async def patch(proxy, **changes):
    return await proxy.owner("PATCH", "/api/settings", json=changes)


async def test_every_setting_is_shown_with_its_meaning_and_where_it_comes_from(proxy, config_txt, tmp_path):
    config_txt.write_text("default_model=claude-haiku-4-5  # mine\n")
    (tmp_path / "own" / ".env").write_text("PROXY_LOG_LEVEL=DEBUG\n")
    status, text = await see(proxy, "/settings")
    assert status == 200
    for field in fields(Config):
        assert f"<code>{field.name}</code>" in text
        assert field.metadata["meaning"] in text
    assert "from config.txt, line 1" in text
    assert "from .env, line 1" in text
    assert "Start the proxy again" in text


async def test_a_secret_setting_is_shown_by_its_end_alone(tmp_path, anthropic):
    named = {field.name for field in fields(Config) if field.name.endswith(("_token", "_secret", "_password"))}
    assert named == SECRET_SETTINGS
    async with running(tmp_path, anthropic.url, metrics_token="a-long-token-in-force-1234") as proxy:
        (tmp_path / "own" / "config.txt").write_text("metrics_token=another-long-token-5678\n")
        _, text = await see(proxy, "/settings")
        assert "…1234" in text
        assert "…5678" in text
        assert "long-token" not in text
        assert (await patch(proxy, metrics_token="a-token-of-my-own-9999")).status == 403


async def test_a_setting_is_changed_in_its_line_and_holds_from_the_next_start(proxy, config_txt):
    answer = await patch(proxy, cache_planner="false", default_model="claude-sonnet-5")
    assert answer.json == {"restart_needed": True}
    loaded = Config.load(config_txt, config_txt.with_name("none"), {})
    assert (loaded.cache_planner, loaded.default_model) == (False, "claude-sonnet-5")
    assert config_txt.read_text().count("\n") == config_text().count("\n")
    assert sorted(path.name for path in config_txt.parent.iterdir()) == ["config.txt", "presets"]
    assert "Until the next start:" in (await see(proxy, "/settings"))[1]


@pytest.mark.parametrize(
    ("changes", "status", "why"),
    [
        ({"skip_steps": "fit_smapling"}, 400, "config.txt, line"),
        ({"port": "many"}, 400, "config.txt, line 4: port must be a whole number"),
        ({"keep_bodies_in_memory": "500"}, 400, "must be between 0 and 100"),
        ({"default_model": "a # b"}, 400, "cannot be written into config.txt"),
        ({"default_model": 5}, 400, "must be sent as text"),
        ({"api_base_url": "https://elsewhere.example"}, 403, "by hand"),
        ({"oauth_token_url": "https://elsewhere.example"}, 403, "by hand"),
        ({"host": "0.0.0.0"}, 403, "by hand"),
        ({"nothing": "1"}, 400, "there is no such field"),
        ({}, 400, "Nothing to change"),
    ],
)
async def test_a_setting_that_would_not_work_is_refused_and_the_file_stays(proxy, config_txt, changes, status, why):
    answer = await patch(proxy, **changes)
    assert answer.status == status
    assert why in answer.message
    assert config_txt.read_text() == config_text()
    assert sorted(path.name for path in config_txt.parent.iterdir()) == ["config.txt", "presets"]


@pytest.mark.parametrize("demo", [True, False])
async def test_the_demo_asks_for_no_restart_where_nothing_was_changed(tmp_path, anthropic, demo):
    """It runs in practice mode whatever the settings say."""
    async with running(tmp_path, anthropic.url, practice=demo) as proxy:
        own = {"auto_open_browser": "false", "claude_config_dir": tmp_path / "home" / "claude"}
        own |= {"api_base_url": anthropic.url, "data_dir": tmp_path / "data", "cache_planner": str(demo).lower()}
        (tmp_path / "own" / "config.txt").write_text("".join(f"{key}={value}\n" for key, value in own.items()))
        _, text = await see(proxy, "/settings")
        assert ('id="waiting" role="status" hidden' in text) is demo


async def test_what_is_set_elsewhere_is_changed_there(proxy, config_txt, tmp_path):
    (tmp_path / "own" / ".env").write_text("PROXY_LOG_LEVEL=DEBUG\n")
    answer = await patch(proxy, log_level="INFO")
    assert answer.status == 409
    assert ".env, line 1" in answer.message


async def test_a_config_txt_that_cannot_be_read_is_said_on_the_page(proxy, config_txt):
    config_txt.write_text("port\n")
    status, text = await see(proxy, "/settings")
    assert status == 200
    assert "expected key=value" in text


# The doctor


async def test_the_doctor_looks_at_everything(proxy):
    answer = await proxy.owner("GET", "/api/doctor")
    assert answer.status == 200
    said = [finding["what"] for finding in answer.json["findings"]]
    assert {finding["mark"] for finding in answer.json["findings"]} <= {"ok", "note", "bad"}
    assert any("The settings can be read" in what for what in said)
    assert any("Nobody is signed in yet" in what for what in said)
    assert any("answers." in what for what in said)
    assert (await see(proxy, "/doctor"))[0] == 200


async def test_a_look_at_the_doctor_does_not_fill_the_log(tmp_path, anthropic, caplog):
    (tmp_path / "ruth.json").write_text('{"system": 5')
    async with running(tmp_path, anthropic.url, presets=tmp_path) as proxy:
        for _ in range(2):
            told = (await proxy.owner("GET", "/api/doctor")).json["findings"]
            assert any(finding["what"].startswith("presets/ruth.json is not") for finding in told)
    logged = [words for words in caplog.messages if "ruth.json" in words]
    assert len(set(logged)) == 1
    assert len(logged) == 2, "once by the program, once by the page of the tests' own folder"


# Keys and their holders


async def make_key(proxy, **given):
    return (await proxy.owner("POST", "/api/keys", json={"name": "Robin", **given})).json


async def ask_me(proxy, key, **options):
    """The page of a key's holder, who has no cookie."""
    answer = await proxy.send("POST", "/me", json={"key": key}, **options)
    return answer.status, unescape(answer.raw.decode())


@pytest.fixture
async def shared(proxy):
    await proxy.parts.accounts.add_api_key("sk-ant-api03-an-account-of-the-tests", "Shared account")


async def test_a_holder_sees_what_is_left_and_what_was_used(proxy, shared):
    key = await make_key(proxy, limits={"usd_per_day": 2, "requests_per_minute": 30}, models=["claude-sonnet-4-6"])
    await proxy.ask(headers={"x-api-key": key["key"]})
    status, text = await ask_me(proxy, key["key"])
    assert status == 200
    for sign in ("Robin", "Money today", "of $2.00", "30 requests a minute at most", "claude-sonnet-4-6", "<dd>1</dd>"):
        assert sign in text
    for secret in (key["key"], "Shared account", "/accounts", "by-account"):
        assert secret not in text


async def test_a_holder_sees_nothing_of_others(proxy, shared):
    mine, theirs = await make_key(proxy), await make_key(proxy, name="Kim")
    await proxy.ask(headers={"x-api-key": theirs["key"]})
    _, text = await ask_me(proxy, mine["key"])
    assert "Kim" not in text
    assert "Nothing was spent in this time." in text
    assert "This key has no limits." in text


@pytest.mark.parametrize("key", ["", "anything", "tavern-nonsense", None, 5])
async def test_a_wrong_key_is_told_so(proxy, key):
    answer = await proxy.send("POST", "/me", json={"key": key})
    assert answer.status == 401
    assert "no key of this proxy" in answer.message


async def test_a_key_taken_back_shows_nothing_any_more(proxy):
    key = await make_key(proxy)
    await proxy.owner("DELETE", f"/api/keys/{key['id']}")
    assert (await ask_me(proxy, key["key"]))[0] == 401


async def test_a_foreign_page_cannot_ask_for_a_holder(proxy):
    key = (await make_key(proxy))["key"]
    foreign = [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}]
    for headers in foreign:
        assert (await ask_me(proxy, key, headers=headers))[0] == 403
    answer = await proxy.send("POST", "/me", data=f"key={key}", headers={"Content-Type": "text/plain"})
    assert answer.status == 415


async def test_the_keys_page_shows_limits_and_use(proxy, shared):
    key = await make_key(proxy, limits={"tokens_per_day": 1000}, personas=["tamsin"])
    await proxy.ask(headers={"x-api-key": key["key"]}, path="/v1/messages")
    _, text = await see(proxy, "/keys")
    for sign in ("Tokens today", "of 1,000", "tamsin", 'value="1000"', f"http://127.0.0.1:{proxy.port}/me"):
        assert sign in text
    assert key["key"] not in text


# Spending and chats


async def test_spending_tells_what_was_paid_and_what_the_cache_saved(proxy, anthropic):
    for model in ("claude-sonnet-4-6", "claude-sonnet-4-6", "claude-haiku-4-5"):
        anthropic.will(plain({**PLAIN, "model": model}))
        await proxy.ask(model=model)
    rows = (await proxy.owner("GET", "/api/usage?by=day")).json["rows"]
    status, text = await see(proxy, "/spending")
    assert status == 200
    for sign in (
        figures.money(rows[0]["usd"]),
        "claude-sonnet-4-6",
        "claude-haiku-4-5",
        "By account",
        "you, on this computer",
    ):
        assert sign in text
    assert re.search(r"<dt>Requests</dt><dd>3</dd>", text)
    assert text.count('<svg class="plot"') == 2
    assert f"/api/usage.csv?by=day&from={day_of(time.time()) - timedelta(days=29)}" in text.replace("&amp;", "&")
    assert "style=" not in text


async def test_a_model_of_unknown_price_is_said_and_not_counted_as_free(proxy, anthropic):
    anthropic.will(plain({**PLAIN, "model": "mystery-1"}))
    await proxy.ask(model="mystery-1")
    _, text = await see(proxy, "/spending")
    assert "Requests to models whose price is not known: 1." in text
    assert re.search(r"<dt>Paid</dt><dd>unknown</dd>", text)


@pytest.mark.parametrize(
    ("read", "written", "bar", "words"),
    [
        (0, 0, "100 % plain", "not cached"),
        (0, 900, "90 % written, 10 % plain", "90 % written"),
        (700, 200, "70 % read, 20 % written, 10 % plain", "70 % read"),
        (900, 0, "90 % read, 10 % plain", "90 % read"),
    ],
)
async def test_the_last_turns_say_what_the_cache_did_and_nothing_it_did_not(
    proxy, anthropic, read, written, bar, words
):
    usage = {"input_tokens": 1000 - read - written, "output_tokens": 3}
    usage |= {"cache_creation_input_tokens": written, "cache_read_input_tokens": read}
    anthropic.will(plain({**PLAIN, "usage": usage}))
    await proxy.ask()
    for path in ("/", "/requests"):
        _, text = await see(proxy, path)
        assert re.findall(r'role="img" aria-label="(.+?)"', text) == [bar]
        assert f"<small>{words}</small>" in text


async def test_nothing_spent_is_said(proxy):
    for days in ("7", "30", "90", "all", "nonsense"):
        status, text = await see(proxy, f"/spending?days={days}")
        assert status == 200
        assert "Nothing was spent in this time." in text


async def test_a_chat_is_listed_by_its_time_and_by_its_name_once_it_has_one(proxy):
    story = [{"role": "user", "content": SECRET}]
    for i in range(3):
        await proxy.ask(messages=story)
        story += [{"role": "assistant", "content": f"Line {i}"}, {"role": "user", "content": f"And then, {i}?"}]
    (chat,) = (await proxy.owner("GET", "/api/chats")).json["chats"]
    _, text = await see(proxy, "/chats")
    assert f'id="{chat["id"]}"' in text
    assert "Begun" in text
    assert "<dt>Requests</dt><dd>3</dd>" in text
    await proxy.owner("PATCH", f"/api/chats/{chat['id']}", json={"name": "The third window"})
    _, text = await see(proxy, "/chats")
    assert "<h2>The third window</h2>" in text
    assert SECRET not in text


async def test_a_chats_sums_are_split_by_the_personas_it_was_played_with(tmp_path, anthropic):
    presets = tmp_path / "presets"
    presets.mkdir()
    (presets / "ruth.json").write_text('{"name": "Ruth Alder", "suffix": "(Slowly.)"}')
    (presets / "sam.json").write_text('{"suffix": "(Quickly.)"}')
    async with running(tmp_path, anthropic.url, presets=presets) as proxy:
        for path in ("/v1/messages", "/v1/ruth/messages", "/v1/Ruth/messages", "/v1/sam/messages"):
            await proxy.ask(path, **chat())
        await proxy.ask("/v1/ruth/messages", **chat("Another story."))
        listed = (await proxy.owner("GET", "/api/chats")).json["chats"]
        other, split = sorted(listed, key=lambda row: row["requests"])
        told = {part["persona"]: part["requests"] for part in split["personas"]}
        assert told == {None: 1, "ruth": 2, "sam": 1}
        for name in ("requests", "usd", "usd_without_cache", "cache_hits", "cache_read_tokens"):
            assert sum(part[name] for part in split["personas"]) == pytest.approx(split[name])
        _, text = await see(proxy, "/chats")
        _, spending = await see(proxy, "/spending")
    assert [part["persona"] for part in other["personas"]] == ["ruth"]
    assert "<dt>Persona</dt><dd>Ruth Alder</dd>" in text
    by_persona = text[text.index("By persona") : text.index("Chat by chat")]
    for words in (by_persona, spending[spending.index("By persona") :]):
        assert re.findall(r"<span>(.+?)</span>", words) == ["Ruth Alder", "no persona", "Sam"]
        assert re.findall(r"(\d) requests? · \d+ % cache hits", words) == ["3", "1", "1"]
    assert SECRET not in text


async def test_without_personas_none_are_told(proxy):
    await proxy.ask()
    _, text = await see(proxy, "/chats")
    assert "By persona" not in text


async def test_older_requests_are_told_from_the_books_after_a_restart(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as proxy:
        request_id = (await proxy.ask(temperature=1.0, top_p=0.9)).headers["x-receipt"]
    async with running(tmp_path, anthropic.url) as proxy:
        assert request_id in (await see(proxy, "/requests"))[1]
        status, text = await see(proxy, f"/requests/{request_id}")
        assert status == 200
        assert "1 changes. What each was is told until" in text
        assert "23 tokens" in text


@pytest.mark.parametrize(
    ("most", "ticks"),
    [
        (0, [0, 1]),
        (1, [0, 0.25, 0.5, 0.75, 1]),
        (0.013, [0, 0.005, 0.01, 0.015]),
        (9.7, [0, 2.5, 5, 7.5, 10]),
        (41, [0, 20, 40, 60]),
        (1234, [0, 500, 1000, 1500]),
    ],
)
def test_the_marks_of_a_plot_are_round_and_reach_above_it(most, ticks):
    assert plot.ticks(most) == pytest.approx(ticks)


def test_a_plot_carries_no_style_and_no_more_labels_than_fit():
    days = [f"2026-10-{day:02d}" for day in range(1, 32)]
    series = [("Paid", [0.1 * i for i in range(31)], "var(--written)")]
    drawn = plot.columns(days, series, size=plot.NARROW, label=lambda day: day[8:], value=figures.money)
    assert drawn.count("<rect") >= 31
    assert "style=" not in drawn
    assert re.findall(r">(\d\d)</text>", drawn) == ["01", "07", "13", "19", "25", "31"]


# Live


async def test_an_open_page_is_told_of_a_request_and_ends_with_the_program(tmp_path, anthropic):
    async with running(tmp_path, anthropic.url) as proxy:
        headers = {"Authorization": f"Bearer {proxy.parts.owner.admin_token}"}
        session = aiohttp.ClientSession()
        answer = await session.get(f"{proxy.url}/api/live", headers=headers)
        assert answer.content_type == "text/event-stream"
        assert await answer.content.readuntil(b"\n\n") == b": still here\n\n"
        await proxy.ask()
        assert b"event: changed\ndata: {}\n\n" in await answer.content.readuntil(b"data: {}\n\n")
    rest = await answer.content.read()
    assert re.sub(rb"event: (changed|progress)\ndata: \{.*\}\n\n", b"", rest) == b""
    await session.close()


async def test_a_reply_is_told_of_while_it_is_written_by_numbers_alone(proxy, anthropic):
    gate, told = asyncio.Event(), b""
    first, *rest = reply_events("Once upon ", "a time")
    anthropic.will(stream(first, *rest[:2], gate=gate, last=b"".join(rest[2:])))
    headers = {"Authorization": f"Bearer {proxy.parts.owner.admin_token}"}
    async with asyncio.timeout(PATIENCE), proxy.session.get(f"{proxy.url}/api/live", headers=headers) as answer:
        asking = asyncio.create_task(proxy.ask(stream=True, messages=[{"role": "user", "content": "Tell me a secret"}]))
        while b"3 events so far" not in told:
            told += await answer.content.readuntil(b"\n\n")
        shown = (await see(proxy, "/"))[1]
        assert re.search(r"<strong>claude-sonnet-4-6</strong>.*?, 3 events so far</span>", shown, re.DOTALL)
        gate.set()
        assert (await asking).status == 200
        told += await answer.content.readuntil(b"event: changed\ndata: {}\n\n")
    assert "events so far" not in (await see(proxy, "/"))[1]
    for words in ("Once upon", "secret"):
        assert words not in shown + told.decode()


async def test_an_open_page_is_told_of_an_account_that_changed(proxy):
    headers = {"Authorization": f"Bearer {proxy.parts.owner.admin_token}"}
    async with proxy.session.get(f"{proxy.url}/api/live", headers=headers) as answer:
        await answer.content.readuntil(b"\n\n")
        await proxy.parts.accounts.add_api_key("sk-ant-api03-another-key-of-the-tests", "Another")
        assert await answer.content.readuntil(b"\n\n") == b"event: changed\ndata: {}\n\n"


async def test_a_page_hears_of_a_stream_when_it_has_ended(proxy, anthropic):
    anthropic.will(stream())
    await proxy.ask(stream=True)
    assert (await see(proxy, "/"))[1].count('<td class="when">') == 1


# Figures


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        (None, "unknown"),
        (0, "0 ¢"),
        (0.00001, "under 0.1 ¢"),
        (0.0131, "1.3 ¢"),
        (0.0996, "10 ¢"),
        (0.62, "62 ¢"),
        (0.996, "$1.00"),
        (1234.5, "$1,234.50"),
        (-0.02, "−2.0 ¢"),
    ],
)
def test_money_is_cents_below_a_dollar(usd, shown):
    assert figures.money(usd) == shown


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(0, 0, "0 %"), (0, 5, "0 %"), (1, 1000, "1 %"), (999, 1000, "99 %"), (5, 5, "100 %"), (1, 3, "33 %")],
)
def test_a_share_is_none_or_all_only_when_it_is(part, whole, shown):
    assert figures.share(part, whole) == shown


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [(None, "–"), (840, "0.8 s"), (12_300, "12 s"), (100_000, "2 min"), (3_000_000, "50 min"), (9_000_000, "2.5 h")],
)
def test_a_span_is_seconds_minutes_or_hours(milliseconds, shown):
    assert figures.span(milliseconds) == shown
