"""Signing in: PKCE and state, one use, one browser, ten minutes, over a restart, and a word for each mishap."""

import asyncio
import json
import stat
from urllib.parse import parse_qs, urlsplit

import pytest

from server.errors import ProxyError
from server.signin import LIFE, MOST, SignIn, SignInFailed, authorize_url, challenge, new_secret, split_code
from tests.pools import needs_posix, settings

pytestmark = pytest.mark.anyio

USUAL = settings("https://console.anthropic.com/v1/oauth/token")


@pytest.fixture
def signin(tmp_path, oauth, clock):
    return SignIn(tmp_path, settings(oauth.url), clock)


def query(attempt):
    return {name: values[0] for name, values in parse_qs(urlsplit(attempt.authorize_url).query).items()}


def allow(oauth, attempt):
    """What the authorize page does when the person allows it: a code, bound to the challenge."""
    return oauth.issue_code(query(attempt)["code_challenge"])


# ---- functions over values


def test_the_challenge_is_that_of_rfc_7636_appendix_b():
    assert challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_secrets_have_256_bits_in_unreserved_characters():
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(len(text) == 43 and set(text) <= set(UNRESERVED) for text in made)


UNRESERVED = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"


def test_the_authorize_address_asks_for_everything_pkce_needs():
    address = urlsplit(authorize_url(USUAL, "the-state", "v" * 43))
    assert f"{address.scheme}://{address.netloc}{address.path}" == USUAL.authorize_url
    assert {name: values for name, (values,) in parse_qs(address.query).items()} == {
        "code": "true",
        "client_id": "the-client",
        "response_type": "code",
        "redirect_uri": USUAL.redirect_uri,
        "scope": "user:profile user:inference",
        "code_challenge": challenge("v" * 43),
        "code_challenge_method": "S256",
        "state": "the-state",
    }
    assert "+" not in address.query


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_a_loopback_redirect_asks_for_no_page_that_shows_the_code(host):
    here = settings(USUAL.token_url, redirect_uri=f"http://{host}:42069/auth/callback")
    assert "code=true" not in authorize_url(here, "the-state", "v" * 43)


@pytest.mark.parametrize(
    ("pasted", "code", "state"),
    [
        ("abc#xyz", "abc", "xyz"),
        ("  abc#xyz\n", "abc", "xyz"),
        ("abc\r\n#xyz", "abc", "xyz"),
        ("abc", "abc", ""),
        ("#xyz", "", "xyz"),
        ("", "", ""),
        ("abc#x#y", "abc", "x#y"),
        ("http://localhost:42069/auth/callback?code=abc&state=xyz", "abc", "xyz"),
        ("https://console.anthropic.com/oauth/code/callback?code=abc%23xyz", "abc", "xyz"),
        ("https://console.anthropic.com/oauth/code/callback?code=abc#xyz", "abc", "xyz"),
        ("https://[bad", "", ""),
    ],
)
def test_what_people_paste_is_understood(pasted, code, state):
    assert split_code(pasted) == (code, state)


# ---- the way that works


async def test_a_code_becomes_tokens(signin, oauth, clock):
    attempt = signin.start("browser")
    tokens = await signin.finish(allow(oauth, attempt), attempt.state, "browser")
    assert tokens.access_token in oauth.access
    assert tokens.expires_at == clock.now + oauth.lifetime
    assert tokens.label == "barliman@inn.example"
    ((asked, _, _),) = oauth.seen
    assert {**asked, "code": "", "code_verifier": ""} == {
        "grant_type": "authorization_code",
        "code": "",
        "state": attempt.state,
        "client_id": "the-client",
        "redirect_uri": USUAL.redirect_uri,
        "code_verifier": "",
    }
    assert challenge(asked["code_verifier"]) == query(attempt)["code_challenge"]


async def test_the_owners_session_may_vouch_for_the_browser(signin, oauth):
    attempt = signin.start("browser")
    await signin.finish(allow(oauth, attempt), attempt.state, None)
    assert oauth.exchanges == 1


async def test_a_sign_in_goes_on_after_a_restart(signin, oauth, tmp_path, clock):
    attempt = signin.start("browser")
    after = SignIn(tmp_path, settings(oauth.url), clock)
    assert (await after.finish(allow(oauth, attempt), attempt.state, "browser")).access_token in oauth.access


async def test_two_sign_ins_in_two_tabs_do_not_disturb_each_other(signin, oauth):
    one, other = signin.start("browser"), signin.start("browser")
    for attempt in (other, one):
        await signin.finish(allow(oauth, attempt), attempt.state, "browser")
    assert oauth.exchanges == 2


# ---- the ways that do not: nothing is asked of the endpoint


async def failing(signin, code, state, browser="browser"):
    with pytest.raises(SignInFailed) as raised:
        await signin.finish(code, state, browser)
    assert isinstance(raised.value, ProxyError)
    return raised.value


async def test_an_unknown_state_is_refused_without_a_call(signin, oauth):
    attempt = signin.start("browser")
    code = allow(oauth, attempt)
    for state in ("", "x", attempt.state[:-1], attempt.state + "x", attempt.state.swapcase(), "ä", "\ud800"):
        assert (await failing(signin, code, state)).why == "unknown"
    assert oauth.seen == []


@pytest.mark.parametrize("browser", ["", "another", "browser ", "BROWSER"])
async def test_another_browser_is_refused_without_a_call_and_the_right_one_still_served(signin, oauth, browser):
    attempt = signin.start("browser")
    code = allow(oauth, attempt)
    found = await failing(signin, code, attempt.state, browser)
    assert (found.why, found.status, oauth.seen) == ("other_browser", 403, [])
    await signin.finish(code, attempt.state, "browser")


async def test_an_attempt_older_than_ten_minutes_has_expired(signin, oauth, clock):
    attempt = signin.start("browser")
    clock.now += LIFE
    assert (await failing(signin, allow(oauth, attempt), attempt.state)).why == "expired"
    assert oauth.seen == []


async def test_a_state_works_once(signin, oauth, tmp_path, clock):
    attempt = signin.start("browser")
    await signin.finish(allow(oauth, attempt), attempt.state, "browser")
    assert (await failing(signin, allow(oauth, attempt), attempt.state)).why == "used"
    after = SignIn(tmp_path, settings(oauth.url), clock)
    assert (await failing(after, allow(oauth, attempt), attempt.state)).why == "used"
    assert len(oauth.seen) == 1


async def test_a_double_click_sends_the_code_once(signin, oauth):
    attempt = signin.start("browser")
    code = allow(oauth, attempt)
    ends = await asyncio.gather(
        *(signin.finish(code, attempt.state, "browser") for _ in range(5)), return_exceptions=True
    )
    assert [getattr(end, "why", "signed in") for end in ends] == ["signed in", *["used"] * 4]
    assert len(oauth.seen) == 1


@pytest.mark.parametrize("code", ["", "a b", "a\x00b", "ä", "x" * 16_385])
async def test_what_cannot_be_a_code_is_told_so_and_may_be_pasted_again(signin, oauth, code):
    attempt = signin.start("browser")
    assert (await failing(signin, code, attempt.state)).why == "wrong_code"
    assert oauth.seen == []
    await signin.finish(allow(oauth, attempt), attempt.state, "browser")


async def test_a_person_who_says_no_changes_nothing(signin):
    attempt = signin.start("browser")
    assert signin.deny("access_denied", attempt.state).why == "denied"
    assert signin.deny("server_error", "unknown").why == "refused"


async def test_a_denied_attempt_cannot_be_redeemed_any_more(signin, oauth):
    attempt = signin.start("browser")
    signin.deny("access_denied", attempt.state)
    assert (await failing(signin, allow(oauth, attempt), attempt.state)).why == "used"


# ---- the endpoint refuses, or is not there


async def test_a_wrong_code_is_told_so_and_ends_the_attempt(signin, oauth):
    attempt = signin.start("browser")
    assert (await failing(signin, "code-of-nobody", attempt.state)).why == "wrong_code"
    assert (await failing(signin, allow(oauth, attempt), attempt.state)).why == "used"


async def test_a_code_of_another_sign_in_does_not_fit_the_verifier(signin, oauth):
    """Login CSRF: the attacker's own code, brought into the victim's attempt, has another challenge."""
    attempt = signin.start("browser")
    foreign = oauth.issue_code(challenge("a" * 43))
    assert (await failing(signin, foreign, attempt.state)).why == "wrong_code"
    assert oauth.exchanges == 0


async def test_a_refusal_is_told_in_the_endpoints_words(signin, oauth):
    attempt = signin.start("browser")
    oauth.odd.append((403, json.dumps({"error": "access_denied", "error_description": "Not on this plan"}), {}))
    found = await failing(signin, allow(oauth, attempt), attempt.state)
    assert found.why == "refused"
    assert "Not on this plan" in found.message


@pytest.mark.parametrize("answer", [(500, "oops", {}), (429, "{}", {}), (200, "<html>", {}), (200, "{}", {})])
async def test_an_endpoint_that_stumbles_is_told_apart_from_a_refusal(signin, oauth, answer):
    attempt = signin.start("browser")
    oauth.odd.append(answer)
    found = await failing(signin, allow(oauth, attempt), attempt.state)
    assert (found.why, found.status, len(oauth.seen)) == ("unreachable", 502, 1)


async def test_a_lost_answer_is_not_asked_for_again_because_a_code_goes_out_once(signin, oauth):
    attempt = signin.start("browser")
    oauth.drop_answers = 1
    assert (await failing(signin, allow(oauth, attempt), attempt.state)).why == "unreachable"
    assert len(oauth.seen) == 1
    assert (await failing(signin, allow(oauth, attempt), attempt.state)).why == "used"


async def test_without_a_connection_nothing_was_sent_and_the_same_code_may_be_tried_again(tmp_path, oauth, clock):
    offline = SignIn(tmp_path, settings("http://127.0.0.1:9/v1/oauth/token"), clock)
    attempt = offline.start("browser")
    code = allow(oauth, attempt)
    found = await failing(offline, code, attempt.state)
    assert (found.why, found.status) == ("unreachable", 503)
    online = SignIn(tmp_path, settings(oauth.url), clock)
    assert (await online.finish(code, attempt.state, "browser")).access_token in oauth.access


# ---- what is kept


@needs_posix
async def test_the_file_of_attempts_is_private_and_holds_no_browser_and_no_code(signin, oauth, tmp_path):
    attempt = signin.start("the-cookie-of-this-browser")
    code = allow(oauth, attempt)
    await signin.finish(code, attempt.state, "the-cookie-of-this-browser")
    path = tmp_path / "signin.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert "the-cookie" not in text
    assert code not in text
    assert "sk-ant" not in text


async def test_old_attempts_are_forgotten_and_never_too_many_kept(signin, tmp_path, clock):
    for _ in range(3 * MOST):
        clock.now += 1
        signin.start("browser")
    assert len(json.loads((tmp_path / "signin.json").read_bytes())["attempts"]) == MOST
    clock.now += 3 * LIFE
    signin.start("browser")
    assert len(json.loads((tmp_path / "signin.json").read_bytes())["attempts"]) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b'{"attempts": 7}', b'{"attempts": [7, {"state": 1}, null]}'])
async def test_a_damaged_file_of_attempts_only_means_starting_again(tmp_path, oauth, clock, damage):
    (tmp_path / "signin.json").write_bytes(damage)
    signin = SignIn(tmp_path, settings(oauth.url), clock)
    assert (await failing(signin, "code", "state")).why == "unknown"
    attempt = signin.start("browser")
    await signin.finish(allow(oauth, attempt), attempt.state, "browser")


async def test_a_folder_that_cannot_be_written_does_not_hinder_a_sign_in(tmp_path, oauth, clock, caplog):
    (tmp_path / "data").write_text("a file where the folder should be")
    signin = SignIn(tmp_path / "data", settings(oauth.url), clock)
    attempt = signin.start("browser")
    await signin.finish(allow(oauth, attempt), attempt.state, "browser")
    assert "would not outlive a restart" in caplog.text


async def test_nothing_secret_stands_in_an_error_or_a_log_line(signin, oauth, caplog):
    caplog.set_level("DEBUG")
    attempt = signin.start("browser")
    code = allow(oauth, attempt)
    tokens = await signin.finish(code, attempt.state, "browser")
    told = f"{caplog.text} {await failing(signin, code, attempt.state)!r} {tokens!r}"
    verifier = oauth.seen[0][0]["code_verifier"]
    for secret in (code, attempt.state, verifier, tokens.access_token, tokens.refresh_token):
        assert secret not in told
