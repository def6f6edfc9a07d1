"""The real SillyTavern, driven in a real browser, chats through the real proxy: what a player gets to see."""

from __future__ import annotations

import json
import os
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.sillytavern import tavern as st
from tests.sillytavern.tavern import Tavern

TOP = Path(__file__).parent.parent
PERSONAS = sorted(path.stem for path in (TOP / "presets").glob("*.json"))
KEY = "sk-ant-api03-test-key-of-a-guest-0123456789-AbCd"
WORDS = ["The", "lamps", "along", "the", "harbour", "burn", "low", "and", "steady", "tonight", ".", ""]

pytestmark = [pytest.mark.sillytavern, pytest.mark.skipif(bool(st.missing()), reason=st.missing())]


@dataclass(frozen=True)
class Proxy:
    """The proxy as a process of its own."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def receipt(self) -> dict[str, Any]:
        """The newest receipt, as its owner reads it."""
        token = (self.folder / "data" / "admin_token").read_text().strip()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/requests?limit=1", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)["requests"][0]


@contextmanager
def proxy(folder: Path, **settings: str) -> Iterator[Proxy]:
    port = st.free_port()
    (folder / "home").mkdir(parents=True)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "PROXY_PORT": str(port),
        "PROXY_DATA_DIR": str(folder / "data"),
        "PROXY_AUTO_OPEN_BROWSER": "false",
        **settings,
    }
    command = (sys.executable, "-m", "server")
    with st.serving(command, f"http://127.0.0.1:{port}/health", folder / "proxy.log", env, TOP):
        yield Proxy(port, folder)


class Upstream(ThreadingHTTPServer):
    """An upstream that refuses as it is told; with no refusal left it tells a story until the listener hangs up."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Storyteller)
        self.refusals: deque[tuple[int, dict[str, Any]]] = deque()
        self.keys: list[str | None] = []
        self.left = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Storyteller(BaseHTTPRequestHandler):
    server: Upstream

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.keys.append(self.headers["x-api-key"])
        if self.server.refusals:
            status, error = self.server.refusals.popleft()
            return self.refuse(status, {"type": "error", "error": error, "request_id": "req_test"})
        return self.tell()

    def refuse(self, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def tell(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        usage = {"input_tokens": 9, "output_tokens": 1}
        message = {"id": "msg_story", "type": "message", "role": "assistant", "model": "claude-sonnet-5", "content": []}
        try:
            self.event({"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}})
            self.event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
            for n in range(600):
                delta = {"type": "text_delta", "text": WORDS[n % len(WORDS)] + " "}
                self.event({"type": "content_block_delta", "index": 0, "delta": delta})
                if self.server.left.wait(0.1):
                    break
        except OSError:
            self.server.left.set()

    def event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode())

    def log_message(self, *_: Any) -> None:
        """Nothing: the test's output stays readable."""


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that answers from the built-in practice upstream."""
    with proxy(tmp_path_factory.mktemp("practice"), PROXY_PRACTICE="true") as running:
        yield running


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def relayed(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    """A proxy before `upstream`, with no account of its own."""
    with proxy(tmp_path_factory.mktemp("relayed"), PROXY_API_BASE_URL=upstream.url) as running:
        yield running


@pytest.fixture(scope="module")
def tavern(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tavern]:
    with st.chromium() as browser, st.tavern(tmp_path_factory.mktemp("sillytavern"), browser) as player:
        player.talk_to("Tamsin")
        yield player


@pytest.fixture
def player(tavern: Tavern, practice: Proxy) -> Tavern:
    """A player at the beginning of a new chat, connected, who likes short replies."""
    tavern.connect(practice.url)
    tavern.choose_model("claude-sonnet-4-5")
    tavern.stream(True)
    tavern.reply_length(40)
    tavern.use_system_prompt(False)
    tavern.temperature(1)
    tavern.reasoning_effort("Auto")
    tavern.start_reply_with("")
    tavern.start_new_chat()
    return tavern


def test_connect_turns_the_lamp_green(tavern, practice):
    assert tavern.connect(practice.url) == 'Key saved; press "Test Message" to verify.'


def test_hello_is_answered_while_one_watches(player, practice):
    player.choose_model("claude-sonnet-5")
    player.reply_length(300)
    player.begin("Hello")
    begun = player.read_while_streaming()
    reply = player.read_to_the_end()
    assert reply.startswith(begun)
    assert len(reply) > len(begun)
    assert "practice" in reply.lower()
    assert "practice thoughts" in player.thoughts()
    assert player.shown() == ["Hello", reply]
    assert player.toasts() == []
    assert practice.receipt()["status"] == 200


def test_a_second_message_is_answered_too(player):
    first = player.send("Hello")
    second = player.send("And what then?")
    assert second
    assert player.shown() == ["Hello", first, "And what then?", second]


def test_a_persona_answers_at_its_own_address(player, practice):
    persona = PERSONAS[0]
    player.connect(f"{practice.url}/{persona}")
    assert player.send("Hello")
    receipt = practice.receipt()
    assert receipt["persona"] == persona
    assert "add_persona" in [change["name"] for change in receipt["changes"]]


def test_a_swipe_brings_a_second_reply(player):
    player.send("Hello")
    assert player.swipes() == "1/1"
    assert player.swipe()
    assert player.swipes() == "2/2"


def test_regenerate_brings_one_reply_in_place_of_the_last(player):
    player.send("Hello")
    reply = player.regenerate()
    assert player.shown() == ["Hello", reply]


def test_continue_makes_the_reply_longer(player):
    reply = player.send("Hello")
    longer = player.carry_on()
    assert longer.startswith(reply)
    assert len(longer) > len(reply)


def test_stop_keeps_what_was_written_and_ends_the_upstream(player, relayed, upstream):
    upstream.left.clear()
    player.connect(relayed.url, KEY)
    player.begin("Tell me a long story.")
    begun = player.read_while_streaming()
    assert not upstream.left.is_set()
    kept = player.stop()
    assert upstream.left.wait(10), "the upstream goes on writing for nobody"
    assert kept.startswith(begun)
    assert player.shown()[-1] == kept
    assert player.toasts() == []
    assert relayed.receipt()["ended"] == "client_left"


def test_an_unknown_persona_is_told_with_the_known_ones(player, practice):
    player.connect(f"{practice.url}/nobody")
    toast = player.send_in_vain("Hello")
    known = ", ".join(PERSONAS)
    assert toast.title == "Chat Completion API"
    assert toast.text == f"There is no persona “nobody”. Known personas: {known}. Correct the end of the proxy URL."


@pytest.mark.parametrize(
    ("status", "type_", "words", "advice"),
    [
        (
            529,
            "overloaded_error",
            "Overloaded",
            "Claude is overloaded, not you: send again in a minute or choose another model.",
        ),
        (
            429,
            "rate_limit_error",
            "Number of requests has exceeded your rate limit",
            "This rate limit is reached: wait a minute, then send again.",
        ),
    ],
)
def test_an_upstream_error_is_read_in_its_own_words_with_what_to_do(
    player, relayed, upstream, status, type_, words, advice
):
    upstream.keys.clear()
    upstream.refusals.extend([(status, {"type": type_, "message": words})] * 5)
    player.connect(relayed.url, KEY)
    toast = player.send_in_vain("Hello")
    upstream.refusals.clear()
    assert (toast.title, toast.text) == ("Chat Completion API", f"{words}. {advice}")
    assert set(upstream.keys) == {KEY}
    assert relayed.receipt()["status"] == status


def test_after_an_error_the_same_chat_goes_on(player, practice):
    player.connect(f"{practice.url}/nobody")
    player.send_in_vain("Hello")
    player.connect(practice.url)
    reply = player.send("Once more")
    assert player.shown() == ["Hello", "Once more", reply]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/v1/",
        "http://127.0.0.1:{port}",
        "http://127.0.0.1:{port}/",
        "http://127.0.0.1:{port}/v1/messages",
        "http://localhost:{port}/v1",
        " http://127.0.0.1:{port}/v1 ",
    ],
)
def test_addresses_as_people_type_them_work(player, practice, url):
    player.connect(url.format(port=practice.port))
    assert player.send("Hello")


def test_test_message_works_with_streaming_off(player):
    player.stream(False)
    toast = player.test_message()
    assert (toast.kind, toast.text) == ("success", "API connection successful!")


def test_a_reply_without_streaming_is_shown(player):
    player.stream(False)
    assert "practice" in player.send("Hello").lower()


@pytest.mark.parametrize("model", ["claude-fable-5-1", "claude-sonnet-4-5"])
@pytest.mark.parametrize(("effort", "streaming"), [("Auto", False), ("High", True), ("Maximum", False)])
def test_prefill_effort_and_system_prompt_suit_the_newest_and_an_old_model(player, model, effort, streaming):
    player.choose_model(model)
    player.stream(streaming)
    player.reply_length(300)
    player.use_system_prompt(True)
    player.reasoning_effort(effort)
    player.start_reply_with("The lamp")
    assert player.send("Hello")


def test_a_temperature_beside_adaptive_thinking_which_the_api_refuses_does_no_harm(player, practice):
    player.choose_model("claude-sonnet-4-6")
    player.stream(False)
    player.reply_length(300)
    player.temperature(0.9)
    player.reasoning_effort("High")
    assert player.send("Hello")
    assert "practice thoughts" in player.thoughts()
    assert "fit_sampling" in [change["name"] for change in practice.receipt()["changes"]]


def test_a_retired_model_is_told_with_what_to_do(player):
    player.choose_model("claude-opus-4-0")
    toast = player.send_in_vain("Hello")
    assert toast.text.startswith("Claude Opus 4 was retired on 15 June 2026. Choose ")


def test_what_is_said_and_the_password_stay_out_of_the_proxys_files(player, relayed, upstream):
    upstream.refusals.extend([(529, {"type": "overloaded_error", "message": "Overloaded"})] * 5)
    player.connect(relayed.url, KEY)
    player.send_in_vain("The marmalade is hidden behind the clock")
    upstream.refusals.clear()
    files = [path for path in relayed.folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        written = path.read_bytes()
        assert b"marmalade" not in written, path
        assert KEY.encode() not in written, path
