"""The checks of the gate: tables of what may come in."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from server import guard
from server.guard import Audience, Rules, audience_of

PORT = 42069
ADMIN = "a" * 43
HOME = {"host": f"localhost:{PORT}"}
LISTED = "https://risuai.xyz"


def headers(*pairs, **named):
    """As aiohttp hands them over; pairs for names that come twice."""
    return CIMultiDictProxy(CIMultiDict([*pairs, *((k.replace("_", "-"), v) for k, v in named.items())]))


def status(error):
    return error and error.status


# Host


@pytest.fixture
def rules():
    return Rules.of(PORT, "192.168.7.5", ["my-pc.local", "Tavern.example:8080"], [LISTED, "http://localhost:8000"])


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost",
        "127.0.0.1",
        "[::1]",
        "192.168.7.5",
        "my-pc.local",
        "MY-PC.local",
        *(f"{name}:{PORT}" for name in ("localhost", "LOCALHOST", "127.0.0.1", "[::1]", "192.168.7.5", "my-pc.local")),
        "tavern.example:8080",
    ],
)
def test_names_of_this_server_are_answered(rules, host):
    assert guard.wrong_host(rules, headers(host=host), "/v1/messages") is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil-localhost",
        "localhost.",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "127.0.0.2",
        "0.0.0.0",
        f"0.0.0.0:{PORT}",
        "[::]",
        "[::ffff:127.0.0.1]",
        "::1",
        "other.local",
        "192.168.7.6",
        "localhost:80",
        "localhost:",
        f"localhost:{PORT}0",
        f"user@localhost:{PORT}",
        f"localhost:{PORT}/",
        f"localhost:{PORT} ",
        f" localhost:{PORT}",
        "tavern.example",
        f"tavern.example:{PORT}",
        "",
        "localhost\udce4",
    ],
)
def test_any_other_name_is_refused_naming_the_setting_and_the_address_that_is_ours(rules, host):
    error = guard.wrong_host(rules, headers(host=host), "/v1/messages")
    assert (error.status, error.type) == (403, "permission_error")
    assert "allowed_hosts" in error.message
    assert f"Use http://localhost:{PORT}," in error.message


def test_a_request_has_exactly_one_host(rules):
    assert status(guard.wrong_host(rules, headers(), "/")) == 400
    assert status(guard.wrong_host(rules, headers(("Host", "localhost"), ("Host", "localhost")), "/")) == 400


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        (f"http://localhost:{PORT}/v1/messages", f"localhost:{PORT}", None),
        (f"http://LOCALHOST:{PORT}/v1/messages", f"localhost:{PORT}", None),
        (f"http://localhost:{PORT}?x", f"localhost:{PORT}", None),
        ("http://evil.example/v1/messages", "evil.example", 403),
        ("http://evil.example/v1/messages", f"localhost:{PORT}", 400),
        (f"http://user@localhost:{PORT}/", f"localhost:{PORT}", 400),
        (f"localhost:{PORT}", f"localhost:{PORT}", 400),
        ("", f"localhost:{PORT}", 400),
        ("//evil.example/v1/messages", f"localhost:{PORT}", None),
    ],
)
def test_a_target_in_absolute_form_must_name_the_host_it_came_to(rules, target, host, expected):
    assert status(guard.wrong_host(rules, headers(host=host), target)) == expected


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_listening_everywhere_adds_no_name(host):
    assert Rules.of(PORT, host).hosts == Rules.of(PORT).hosts
    assert len(Rules.of(PORT).hosts) == 6


def test_an_ipv6_address_is_answered_in_brackets():
    rules = Rules.of(PORT, "fd12::7", ["fd12::8"])
    for name in ("[fd12::7]", "[fd12::8]"):
        assert guard.wrong_host(rules, headers(host=name), "/") is None
        assert guard.wrong_host(rules, headers(host=f"{name}:{PORT}"), "/") is None
    assert status(guard.wrong_host(rules, headers(host="fd12::7"), "/")) == 403


# Origin


@pytest.mark.parametrize("audience", Audience)
def test_no_origin_and_our_own_are_served(rules, audience):
    assert guard.foreign_origin(rules, audience, headers(**HOME)) is None
    assert guard.foreign_origin(rules, audience, headers(**HOME, origin=f"http://localhost:{PORT}")) is None


@pytest.mark.parametrize("audience", Audience)
@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        f"https://localhost:{PORT}",
        "http://localhost",
        "http://localhost:8001",
        f"http://127.0.0.1:{PORT}",
        f"http://localhost:{PORT}0",
        f"http://localhost:{PORT}/",
        f"http://localhost.evil.example:{PORT}",
        f"http://evil-localhost:{PORT}",
        f"http://user@localhost:{PORT}",
        f"HTTP://localhost:{PORT}",
        "file://",
        "chrome-extension://abcdefghijklmnop",
        "https://risuai.xyz.evil.example",
        "http://risuai.xyz",
        "https://risuai.xyz:443",
        f"{LISTED}, {LISTED}",
    ],
)
def test_any_other_origin_is_refused(rules, audience, origin):
    error = guard.foreign_origin(rules, audience, headers(**HOME, origin=origin))
    assert (error.status, error.type) == (403, "permission_error")


def test_two_origins_are_refused_even_if_both_are_fine(rules):
    own = ("Origin", f"http://localhost:{PORT}")
    assert status(guard.foreign_origin(rules, Audience.FRONT, headers(own, own, **HOME))) == 403


@pytest.mark.parametrize("origin", [LISTED, "http://localhost:8000"])
def test_a_listed_page_may_chat_but_not_touch_what_is_the_owners(rules, origin):
    given = headers(**HOME, origin=origin)
    assert guard.foreign_origin(rules, Audience.FRONT, given) is None
    assert status(guard.foreign_origin(rules, Audience.OWNER, given)) == 403
    assert status(guard.foreign_origin(rules, Audience.PAGE, given)) == 403


def test_our_own_page_behind_tls_is_served_when_both_its_names_are_listed():
    rules = Rules.of(PORT, "", ["tavern.example"], ["https://tavern.example"])
    given = headers(host="tavern.example", origin="https://tavern.example")
    assert guard.foreign_origin(rules, Audience.OWNER, given) is None
    without = Rules.of(PORT, "", ["tavern.example"])
    assert status(guard.foreign_origin(without, Audience.OWNER, given)) == 403


# Sec-Fetch


def fetch(site=None, mode=None, dest=None, **more):
    named = {"sec_fetch_site": site, "sec_fetch_mode": mode, "sec_fetch_dest": dest}
    return headers(**HOME, **{k: v for k, v in named.items() if v is not None}, **more)


@pytest.mark.parametrize("audience", Audience)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("site", "mode"),
    [
        (None, None),  # curl, node-fetch
        (None, "cors"),  # Node's own fetch
        ("same-origin", "cors"),
        ("same-origin", "navigate"),
        ("none", "navigate"),
        ("none", "cors"),
    ],
)
def test_what_our_pages_and_programs_send_is_served(rules, audience, method, site, mode):
    assert guard.foreign_fetch(rules, audience, method, fetch(site, mode)) is None


@pytest.mark.parametrize("audience", [Audience.FRONT, Audience.OWNER])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    ("site", "mode"),
    [
        ("cross-site", None),
        ("same-site", None),
        ("cross-site", "cors"),
        ("same-site", "cors"),
        ("cross-site", "navigate"),
        (None, "no-cors"),
        ("none", "no-cors"),
        ("same-origin", "no-cors"),
        ("cross-site", "no-cors"),
    ],
)
def test_a_page_from_elsewhere_is_refused_on_the_api(rules, audience, method, site, mode):
    assert status(guard.foreign_fetch(rules, audience, method, fetch(site, mode, "empty"))) == 403


@pytest.mark.parametrize("audience", [Audience.PAGE, Audience.OPEN])
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_may_be_opened_from_elsewhere_but_not_framed_or_fetched(rules, audience, site):
    def refused(method, mode, dest):
        return status(guard.foreign_fetch(rules, audience, method, fetch(site, mode, dest)))

    assert refused("GET", "navigate", "document") is None
    assert refused("POST", "navigate", "document") == 403
    assert refused("GET", "navigate", "iframe") == 403
    assert refused("GET", "no-cors", "script") == 403
    assert refused("GET", "cors", "empty") == 403


def test_our_pages_load_their_own_style_and_pictures(rules):
    assert guard.foreign_fetch(rules, Audience.OPEN, "GET", fetch("same-origin", "no-cors", "style")) is None


def test_a_listed_page_is_served_although_it_is_cross_site(rules):
    given = fetch("cross-site", "cors", origin=LISTED)
    assert guard.foreign_fetch(rules, Audience.FRONT, "POST", given) is None
    assert (
        status(guard.foreign_fetch(rules, Audience.FRONT, "POST", fetch("cross-site", "no-cors", origin=LISTED))) == 403
    )


# Content type, doubled headers


@pytest.mark.parametrize(
    "given",
    [
        "application/json",
        "Application/JSON; charset=UTF-8",
        "application/json;charset=utf-8",
        'application/json; charset="utf-8"',
        "application/json; charset=utf8",
        "application/json ; odd=1",
    ],
)
def test_json_in_utf_8_is_taken(given):
    assert guard.wrong_type(headers(content_type=given)) is None


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/ json",
        "aplication/json",
        "application/json, text/plain",
        "application/json; charset=latin-1",
        "application/json; charset=utf-16",
        "application/json; charset=utf-8; charset=latin-1",
    ],
)
def test_any_other_type_is_a_415(given):
    error = guard.wrong_type(headers() if given is None else headers(content_type=given))
    assert (error.status, error.type) == (415, "invalid_request_error")
    assert "application/json" in error.message


@pytest.mark.parametrize("name", ["x-api-key", "X-API-Key", "Authorization", "content-type"])
def test_a_header_that_comes_twice_is_refused(name):
    assert status(guard.doubled(headers((name, "a"), (name.upper(), "a")))) == 400
    assert guard.doubled(headers((name, "a"))) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/messages", True),
        ("//messages", True),
        ("/v1//messages/", True),
        ("/v1/maren/messages", True),
        ("/v1/messages/count_tokens", True),
        ("/v1/messages/batches", False),
        ("/v1/files", False),
        ("/v1/models", False),
    ],
)
def test_chat_routes_are_known_in_all_their_spellings(path, expected):
    assert guard.is_chat(path) is expected


@pytest.mark.parametrize(
    ("canonical", "audience"),
    [
        ("/", Audience.PAGE),
        ("/auth/login", Audience.OPEN),
        ("/auth/callback", Audience.OPEN),
        ("/auth/status", Audience.OPEN),
        ("/health", Audience.OPEN),
        ("/static/{name}", Audience.OPEN),
        ("/auth/start", Audience.OWNER),
        ("/auth/logout", Audience.OWNER),
        ("/api/accounts/{id}", Audience.OWNER),
        ("/api/requests", Audience.OWNER),
        ("/api/keys", Audience.OWNER),
        ("/api/me", Audience.FRONT),
        ("/metrics", Audience.OPEN),
        ("/v1/messages", Audience.FRONT),
        ("/{path}", Audience.FRONT),
        ("", Audience.FRONT),
    ],
)
def test_each_route_has_its_audience(canonical, audience):
    assert audience_of(canonical) is audience
