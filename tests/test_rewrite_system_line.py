import pytest

from server.rewrite.system_line import add_system_line
from tests.steps import asked, knowing, text

LINE = "You are Claude Code, Anthropic's official CLI for Claude."


@pytest.mark.parametrize(
    ("system", "wanted"),
    [
        ({}, [text(LINE)]),
        ({"system": None}, [text(LINE)]),
        ({"system": "Be kind."}, [text(LINE), text("Be kind.")]),
        ({"system": [text("Be kind.")]}, [text(LINE), text("Be kind.")]),
        ({"system": [text("Be kind."), text(f" {LINE} "), text(LINE)]}, [text(f" {LINE} "), text("Be kind.")]),
        ({"system": LINE}, LINE),
    ],
)
def test_the_line_stands_first_and_once(system, wanted):
    sent = add_system_line(asked(**system), knowing("subscription", required_system_line=LINE))
    assert sent.body["system"] == wanted


@pytest.mark.parametrize(("kind", "line"), [("api_key", LINE), ("platform", LINE), ("subscription", "")])
def test_nobody_else_gets_it(kind, line):
    request = asked(system="Be kind.")
    assert add_system_line(request, knowing(kind, required_system_line=line)) is request
