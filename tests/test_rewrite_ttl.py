import pytest

from server.rewrite.ttl import strip_ttl
from tests.shapes import marked
from tests.steps import asked, details, knowing, text, user

BODY = {
    "cache_control": {"type": "ephemeral", "ttl": "1h"},
    "tools": [marked({"name": "x"}, "1h")],
    "system": [marked(text("Be kind."), "5m"), text("x")],
    "messages": [user(marked(text("Hello"), "5m"))],
}


@pytest.mark.parametrize(
    ("kind", "mode", "goes"),
    [
        ("subscription", "auto", True),
        ("api_key", "auto", False),
        ("api_key", "true", True),
        ("subscription", "false", False),
    ],
)
def test_ttl_goes_where_it_is_not_allowed(kind, mode, goes):
    sent = strip_ttl(asked(**BODY), knowing(kind, strip_cache_ttl=mode))
    assert ("ttl" in str(sent.body)) != goes
    assert str(sent.body).count("ephemeral") == 4
    assert details(sent) == (["Took ttl out of 4 cache marks."] if goes else [])
