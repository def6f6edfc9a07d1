"""util/bearer_token.py as a person runs it: the token alone on stdout, or a sentence and status 1."""

import asyncio
import os
import subprocess
import sys
import time

import pytest

from tests.pools import TOP, Clock, login, make_pool, started, stored

pytestmark = pytest.mark.anyio

SCRIPT = TOP / "util" / "bearer_token.py"


async def run(folder, oauth, *args, **environ):
    """(status, stdout, stderr) of the script, started from a folder of no meaning."""
    settings = {
        "PROXY_DATA_DIR": str(folder / "data"),
        "PROXY_OAUTH_TOKEN_URL": oauth.url,
        "PROXY_CLAUDE_CONFIG_DIR": str(folder / "claude"),
        "PROXY_FALLBACK_TO_CLAUDE_CODE": "ask",
        "ANTHROPIC_CONFIG_DIR": str(folder / "ant"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        *args,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **settings, **environ},
        cwd=folder,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def sign_in(folder, oauth, **changes):
    """As on a day long before, so that this pool sees nothing to renew."""
    async with started(make_pool(folder, oauth.url, Clock(time.time() - 10**6))) as pool:
        await pool.add_oauth(login(oauth, time.time, **changes))


async def test_it_prints_the_token_and_nothing_else(tmp_path, oauth):
    await sign_in(tmp_path, oauth)
    token = stored(tmp_path)["accounts"][0]["access_token"]
    assert await run(tmp_path, oauth) == (0, f"{token}\n", "")
    assert oauth.seen == []


async def test_it_renews_an_ended_token_and_stores_it_whatever_the_proxy_variables_say(tmp_path, oauth):
    await sign_in(tmp_path, oauth, lifetime=-60)
    nowhere = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9")
    status, out, err = await run(tmp_path, oauth, **nowhere)
    assert (status, err) == (0, "")
    assert out.strip() in oauth.access
    assert stored(tmp_path)["accounts"][0]["access_token"] == out.strip()
    assert (oauth.refreshes, oauth.reuses) == (1, 0)


async def test_at_the_same_moment_as_the_proxy_and_others_the_token_is_renewed_once(tmp_path, oauth):
    await sign_in(tmp_path, oauth, lifetime=-60)
    oauth.delay = 0.3
    async with started(make_pool(tmp_path, oauth.url, time.time)) as pool:
        credentials, *runs = await asyncio.gather(
            asyncio.gather(*(pool.credential() for _ in range(50))), *(run(tmp_path, oauth) for _ in range(3))
        )
    tokens = {credential.secret for credential in credentials} | {out.strip() for _, out, _ in runs}
    assert [(status, err) for status, _, err in runs] == [(0, "")] * 3
    assert len(tokens) == 1
    assert tokens <= oauth.access
    assert (oauth.refreshes, oauth.reuses) == (1, 0)


async def test_with_an_api_key_only_it_says_to_paste_the_key_itself(tmp_path, oauth):
    async with started(make_pool(tmp_path, oauth.url)) as pool:
        await pool.add_api_key("sk-ant-api03-secret")
    status, out, err = await run(tmp_path, oauth)
    assert (status, out) == (1, "")
    assert "Paste the API key itself" in err
    assert "sk-ant-api03-secret" not in err


async def test_with_nobody_signed_in_it_says_how_to(tmp_path, oauth):
    status, out, err = await run(tmp_path, oauth)
    assert (status, out) == (1, "")
    assert "sign in" in err
    assert len(err.strip().splitlines()) == 1


async def test_with_an_ended_login_it_says_to_sign_in_again(tmp_path, oauth):
    await sign_in(tmp_path, oauth, lifetime=-60)
    oauth.refresh.clear()
    status, out, err = await run(tmp_path, oauth)
    assert (status, out) == (1, "")
    assert "sign in again" in err
    assert "Traceback" not in err


async def test_a_mistake_in_the_settings_is_told_in_one_line(tmp_path, oauth):
    status, out, err = await run(tmp_path, oauth, PROXY_PORT="many")
    assert (status, out) == (1, "")
    assert "PROXY_PORT" in err
    assert len(err.strip().splitlines()) == 1


async def test_asked_for_help_it_says_its_use(tmp_path, oauth):
    status, out, _ = await run(tmp_path, oauth, "--help")
    assert status == 0
    assert "python util/bearer_token.py" in out
