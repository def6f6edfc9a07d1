"""Whether README.md tells the truth: its commands, addresses, files, messages and examples."""

import ast
import json
import re
from pathlib import Path

import pytest
from aiohttp import web

from server.__main__ import COMMANDS
from server.app import build
from server.config import Config
from server.presets import SETTINGS, TEXTS, Personas, read_persona
from server.rewrite import BESIDE, STEPS, step_name
from util import docs

TOP = Path(__file__).parent.parent
README = (TOP / "README.md").read_text(encoding="utf-8")
TEXTS_OF_OURS = {
    path.name: path.read_text(encoding="utf-8")
    for path in [*TOP.glob("*.md"), *TOP.glob("docs/**/*.md"), *TOP.glob("presets/*.json")]
}


def section(title):
    """The text below a heading, up to the next of its rank."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |^#{{1,2}} |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README has no section “{title}”"
    return found[2]


# Commands and files


def test_every_command_it_tells_exists():
    told = set(re.findall(r"(?:`|^    |: )(?:\./run\.sh|run\.bat) ([a-z]+)", README, re.MULTILINE))
    assert told
    assert told <= set(COMMANDS)


def test_every_command_is_told_in_its_table():
    for name in COMMANDS:
        assert f"`./run.sh {name}`" in section("Commands") or name == "start"


def test_every_file_and_picture_it_points_to_is_there():
    targets = re.findall(r"\]\(([^)#\s]+)\)", README) + re.findall(r'src="([^"]+)"', README)
    assert "docs/pictures/chat.png" in targets
    missing = [target for target in targets if not target.startswith("https://") and not (TOP / target).exists()]
    assert missing == []


def test_every_script_and_folder_it_names_is_there():
    named = re.findall(r"`((?:server|util|presets|tests|docs)/[\w/.-]*)`", README)
    named += re.findall(r"(?<![\w/.])(util/\w+\.py)", README)
    assert named
    examples = {"presets/ruth.json"}
    assert [name for name in named if name not in examples and not (TOP / name).exists()] == []


def test_links_within_it_lead_to_headings():
    def anchor(title):
        return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")

    anchors = {anchor(title) for title in re.findall(r"^#+ (.+)$", README, re.MULTILINE)}
    links = re.findall(r"\]\(#([^)]+)\)", README)
    assert links
    assert set(links) <= anchors


def test_the_address_it_tells_has_the_default_port():
    ports = set(re.findall(r"(?:localhost|127\.0\.0\.1|tavern-proxy|192\.168\.[\d.]+):(\d+)", README))
    assert ports == {str(Config().port)}


# Settings, steps, addresses


@pytest.mark.parametrize("name", Config.__dataclass_fields__)
def test_every_setting_is_told(name):
    assert f"| `{name}` |" in section("Settings")


def test_every_setting_it_speaks_of_exists():
    told = set(re.findall(r"setting `(\w+)`", README)) | {
        name.lower() for name in re.findall(r"PROXY_([A-Z_]+)", README)
    }
    assert told
    assert told <= set(Config.__dataclass_fields__)


def test_every_step_is_told_in_order():
    rows = re.findall(r"^\| `(\w+)` \|", section("What it changes in a request, and why"), re.MULTILINE)
    assert rows == [*(step_name(step) for step in STEPS), *BESIDE]


@pytest.fixture
async def routes(tmp_path):
    """(method, path) of each route of the running program."""
    runner = web.AppRunner(build(Config(data_dir=tmp_path, practice=True), Config().port).app)
    await runner.setup()
    yield {(route.method, route.resource.canonical) for route in runner.app.router.routes() if route.method != "HEAD"}
    await runner.cleanup()


@pytest.mark.anyio
async def test_every_route_of_the_program_is_told(routes):
    assert ("POST", "/v1/messages") in routes
    parts_of_pages, any_other = {"/static/{name}", "/favicon.ico"}, {"/{path}"}
    untold = {(method, path) for method, path in routes if path not in parts_of_pages | any_other} - told_routes()
    assert untold == set()


@pytest.mark.anyio
async def test_every_address_it_tells_is_served(routes):
    told = {(method, path) for method, path in told_routes() if not path.startswith("/v1")}  # those have a door for all
    assert told - routes == set()


def told_routes():
    """(method, path) for each address in the two tables; a method holds until the next is named."""
    told = set()
    for row in re.findall(r"^\| (.+?) \| .+ \|$", section("Addresses"), re.MULTILINE):
        methods, fresh = [], False
        for word in re.findall(r"\b(?:GET|POST|PUT|PATCH|DELETE)\b|/[\w/{}.-]*", row):
            if word[0] != "/":
                methods = [*(methods if fresh else []), word]
                fresh = True
            else:
                told |= {(method, word.rstrip("…")) for method in methods}
                fresh = False
    return told


# The contract with front ends, row by row


@pytest.mark.parametrize(
    "address",
    [
        "/v1/messages",
        "/v1/{persona}/messages",
        "/count_tokens",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/{persona}/models",
        "/health",
        "?beta=true",
        "x-receipt",
    ],
)
def test_every_address_for_front_ends_is_told(address):
    assert address in section("Addresses")


# Messages


def strings_of(folder):
    """Every text constant of the code, the parts of f-strings joined by their holes."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "…".join(part.value for part in node.values if isinstance(part, ast.Constant))


def test_every_message_it_explains_is_one_the_program_says():
    said = "\n".join([*strings_of(TOP / "server"), (TOP / "run.sh").read_text(encoding="utf-8")])
    rows = re.findall(r"^\| ([^|]*“[^|]+) \|", section("When something goes wrong"), re.MULTILINE)
    quoted = [re.search(r"“(.+)”", row)[1] for row in rows]
    assert len(quoted) > 15
    assert [words for words in quoted if words not in said] == []


# What others had


def test_each_feature_of_earlier_proxies_names_tests_that_exist():
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| (.+) \|$", section("If you come from another proxy"), re.MULTILINE)[1:]
    named = {feature: re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests) for feature, tests in rows}
    for feature in ("several accounts", "refresh on demand", "the last refresh error", "health", "revoking a key"):
        assert feature in named
    assert [feature for feature, tests in named.items() if not tests] == []
    missing = [test for tests in named.values() for test in tests if not is_test(*test)]
    assert missing == []


def is_test(file, name):
    return bool(
        re.search(rf"^(?:async )?def {name}\(", (TOP / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)
    )


# Personas


def test_every_persona_that_ships_is_introduced():
    rows = re.findall(r"^\| `/v1/(\w+)` \| (\w+)", section("Personas"), re.MULTILINE)
    assert dict(rows) == {persona.name: persona.title for persona in Personas(TOP / "presets").all()}


def test_the_example_of_a_persona_can_be_used_as_it_is():
    example = re.search(r"```json\n(.+?)```", section("Personas"), re.DOTALL)[1]
    persona = read_persona("ruth", example)
    assert persona.title == "Ruth"
    assert set(json.loads(example)) >= {"name", "description", "system", "suffix", "suffix_thinking", "settings"}


def test_every_field_of_a_persona_is_told():
    rows = "".join(re.findall(r"^\| `.+$", section("Write your own"), re.MULTILINE))
    assert [name for name in (*TEXTS, "name", "settings", *SETTINGS) if f"`{name}`" not in rows] == []


# Manners


@pytest.mark.parametrize("name", TEXTS_OF_OURS)
def test_texts_are_tidy(name):
    text = TEXTS_OF_OURS[name]
    assert text.endswith("\n")
    assert [line for line in text.split("\n") if line != line.rstrip()] == []
    assert not re.search(r"\b(TODO|FIXME|XXX)\b|^[A-Z]{4,}$", text, re.MULTILINE)


def test_the_generated_tables_stand_where_they_belong():
    for name, title in {
        "commands": "Commands",
        "settings": "Settings",
        "steps": "What it changes in a request, and why",
        "rooms": "How it works",
    }.items():
        assert docs.PARTS[name]() in section(title)
