"""The program as a process: how it starts, what it says, how it ends."""

import errno
import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from server.start import unusable
from tests.fakes import PATIENCE

TOP = Path(__file__).resolve().parent.parent


@pytest.fixture
def environ(tmp_path):
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PROXY_DATA_DIR": str(tmp_path / "data"),
        "PROXY_PORT": str(free_port()),
        "PROXY_AUTO_OPEN_BROWSER": "false",
        "PROXY_PRACTICE": "true",
        "PYTHONWARNINGS": "error",
    }


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Process:
    """`python -m server`, and what it has said so far."""

    def __init__(self, environ, *arguments):
        self.port = environ["PROXY_PORT"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "server", *arguments],
            cwd=TOP,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self.said += line

    def wait_for(self, words):
        end = time.monotonic() + PATIENCE
        while words not in self.said:
            assert time.monotonic() < end, f"never said “{words}”: {self.said}"
            time.sleep(0.01)
        return self

    def get(self, path, host="127.0.0.1"):
        with urllib.request.urlopen(f"http://{host}:{self.port}{path}", timeout=PATIENCE) as answer:
            return json.load(answer)

    def signal(self, number):
        self._process.send_signal(number)

    def end(self):
        """The exit status, once it has ended by itself."""
        status = self._process.wait(PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # a browser it may have started
        self._reader.join()
        self._process.stdout.close()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self.end()


def run(environ, *arguments):
    """What a command says, and its exit status."""
    with Process(environ, *arguments) as process:
        status = process.end()
        return status, process.said


def test_the_start_says_what_to_type_where_and_warns_of_nothing(environ):
    with Process(environ, "demo") as process:
        process.wait_for("To stop:")
        port = environ["PROXY_PORT"]
        assert f"Proxy Server URL   http://localhost:{port}/v1" in process.said
        assert re.search(rf"http://localhost:{port}/auth/login\?token=\S{{20,}}", process.said)
        assert "PRACTICE MODE" in process.said
        assert "warn" not in process.said.lower()
        assert process.get("/health")["practice"] is True
        process.signal(signal.SIGTERM)
        assert process.end() == 0


def warnings_in(said):
    return [line.partition("WARNING ")[2] for line in said.splitlines() if "WARNING " in line]


def test_the_start_tells_each_thing_that_is_wrong_once(environ, tmp_path):
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    for name in ("admin_token", "state.sqlite", "tokens.json"):
        (data / name).write_text("{ broken")
    settings = {**environ, "PROXY_PRACTICE": "false", "PROXY_RECORD_TRACE": "true"}
    told = "data could be read", "admin_token holds no", "state.sqlite was", "tokens.json is not", "record_trace is on"
    for more in (told, ("record_trace is on", "tokens.json was written by a newer Tavern Proxy")):
        with Process(settings) as process:
            process.wait_for("To stop:").signal(signal.SIGTERM)
            assert process.end() == 0
            warned = warnings_in(process.said)
        assert len(warned) == len(more), process.said
        assert all(any(words in warning for warning in warned) for words in more)
        (data / "tokens.json").write_text('{"version": 99}')
        (data / "tokens.json").chmod(0o600)


def test_the_second_proxy_on_a_data_folder_says_that_it_is_not_alone(environ):
    with Process(environ) as one:
        one.wait_for("To stop:")
        with Process({**environ, "PROXY_PORT": str(free_port())}) as two:
            two.wait_for("To stop:")
            assert [warning[:42] for warning in warnings_in(two.said)] == ["Another Tavern Proxy uses the same data fo"]
        one.signal(signal.SIGTERM)
        assert one.end() == 0
        assert warnings_in(one.said) == []
    with Process(environ) as three:
        three.wait_for("To stop:")
        assert warnings_in(three.said) == []


def there_is(address):
    """Whether this computer has that IPv6 address; many containers have none."""
    try:
        socket.create_server((address, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_it_answers_on_both_families_of_localhost(environ):
    with Process(environ) as process:
        process.wait_for("To stop:")
        assert process.get("/health")["status"] == "ok"
        if there_is("::1"):
            assert process.get("/health", "[::1]")["status"] == "ok"


def test_where_one_family_cannot_be_had_it_answers_on_the_other(environ):
    """Here since somebody else has the port there; a computer without IPv6 refuses the socket in the same way."""
    with ExitStack() as stack:
        if there_is("::1"):
            port = int(environ["PROXY_PORT"])
            stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6))
        process = stack.enter_context(Process(environ)).wait_for("To stop:")
        assert process.get("/health")["status"] == "ok"
        assert "Traceback" not in process.said


def test_ctrl_c_ends_it_in_good_order(environ):
    with Process(environ) as process:
        process.wait_for("To stop:").signal(signal.SIGINT)
        assert process.end() == 0
        assert process.said.rstrip().endswith("Stopped.")
        assert "Traceback" not in process.said


def ask(process, max_tokens=200):
    body = {"model": "claude-sonnet-4-6", "max_tokens": max_tokens, "stream": True}
    body["messages"] = [{"role": "user", "content": "Hello"}]
    request = urllib.request.Request(f"http://127.0.0.1:{process.port}/v1/messages", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    return urllib.request.urlopen(request, timeout=PATIENCE)


def test_a_stream_that_is_open_at_the_signal_is_finished_first(environ):
    with Process(environ) as process:
        process.wait_for("To stop:")
        with ask(process) as reply:
            first = reply.readline()
            process.signal(signal.SIGTERM)
            process.wait_for("Stopping when 1 open reply has ended")
            rest = reply.read()
        assert process.end() == 0
        assert b"message_start" in first
        assert b"message_stop" in rest


def test_a_second_signal_leaves_at_once(environ):
    with Process(environ) as process:
        process.wait_for("To stop:")
        with ask(process) as reply:
            reply.readline()
            process.signal(signal.SIGTERM)
            process.wait_for("Stopping when")
            process.signal(signal.SIGTERM)
            assert process.end() == 0
            with pytest.raises(http.client.IncompleteRead):
                reply.read()


def test_a_taken_port_is_told_in_one_line(environ):
    with socket.create_server(("127.0.0.1", int(environ["PROXY_PORT"]))):
        status, said = run(environ)
    assert status == 1
    assert said.splitlines() == [
        f"Cannot start. Port {environ['PROXY_PORT']} at 127.0.0.1 is taken by another program. "
        "To use another port, set port=… in server/config.txt."
    ]


def test_a_port_taken_by_another_of_ours_is_recognised(environ):
    with Process(environ) as process:
        process.wait_for("To stop:")
        status, said = run(environ)
    assert status == 1
    assert "taken by another Tavern Proxy: use that one" in said


def test_beyond_loopback_without_a_key_the_start_is_refused_with_the_remedy(environ):
    for required in ("auto", "false"):
        status, said = run({**environ, "PROXY_HOST": "0.0.0.0", "PROXY_REQUIRE_CLIENT_KEY": required})
        assert status == 1
        assert len(said.splitlines()) == 1
        assert "make a key on the page Keys" in said


def test_a_container_makes_its_first_key_and_asks_for_it(environ, tmp_path):
    settings = {**environ, "PROXY_HOST": "0.0.0.0", "PROXY_MAKE_FIRST_KEY": "true"}
    with Process(settings) as process:
        process.wait_for("To stop:")
        key = (tmp_path / "data" / "first_client_key").read_text().strip()
        assert key not in process.said
        assert "first_client_key" in process.said
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(process)
        assert caught.value.code == 401
        caught.value.close()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("PROXY_PORT", "many", "environment variable PROXY_PORT: port must be a whole number"),
        ("PROXY_PROT", "1", "Did you mean “port”?"),
        ("PROXY_HOST", "no.such.host.invalid", "is no address of this computer"),
        ("PROXY_SKIP_STEPS", "fit_sampling,fit_smapling", "there is no step “fit_smapling”"),
    ],
)
def test_a_bad_setting_is_told_in_one_line_without_a_traceback(environ, key, value, words):
    status, said = run({**environ, key: value})
    assert status == 1
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_data_folder_that_cannot_be_used_is_told_with_the_remedy(environ, tmp_path):
    (tmp_path / "data").write_text("a file in its place")
    status, said = run(environ)
    assert status == 1
    assert "data folder" in said
    assert "data_dir" in said
    assert "Traceback" not in said


def test_files_of_another_user_are_told_from_a_full_disk(tmp_path):
    database = tmp_path / "state.sqlite"
    database.touch()
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db, pytest.raises(sqlite3.Error) as kept:
        db.execute("CREATE TABLE t (x)")
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "first_client_key"))
    full = sqlite3.OperationalError("database or disk is full")
    for error, path in ((kept.value, database), (denied, tmp_path / "first_client_key")):
        said = str(unusable(database, error))
        assert said.startswith(f"{path} cannot be used (")
        assert "Give it to the user who runs the proxy" in said
        assert "room" not in said
    assert "Make room on the disk" in str(unusable(database, full))


def test_open_shows_a_link_that_signs_the_owner_in(environ):
    with Process(environ) as process:
        process.wait_for("To stop:")
        status, said = run({**environ, "BROWSER": "true"}, "open")
        assert status == 0
        link = re.search(r"http://localhost:\d+/auth/login\?token=\S+", said)[0]
        with urllib.request.urlopen(link, timeout=PATIENCE) as page:
            assert f"tavern_{process.port}" in page.headers["Set-Cookie"]


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_a_proxy_that_listens_elsewhere_is_found_there(environ, host):
    if not can_listen(host):
        pytest.skip(f"{host} is no address of this machine")
    environ |= {"PROXY_HOST": host, "BROWSER": "true"}
    with Process(environ) as process:
        process.wait_for("To stop:")
        for said in (process.said, run(environ, "open")[1]):
            link = re.search(r"http://\S+/auth/login\?token=\S+", said)[0]
            with urllib.request.urlopen(link, timeout=PATIENCE) as page:
                assert f"tavern_{process.port}" in page.headers["Set-Cookie"]
        assert "taken by another Tavern Proxy" in run(environ)[1]


def can_listen(host):
    with suppress(OSError), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as made:
        made.bind((host, 0))
        return True
    return False


def test_open_without_a_running_proxy_says_so(environ):
    status, said = run(environ, "open")
    assert status == 1
    assert "Start it first" in said


def test_a_browser_that_hangs_or_fails_does_not_hold_up_the_start(environ, tmp_path):
    slow = tmp_path / "slow-browser"
    slow.write_text("#!/bin/sh\nsleep 600\n")
    slow.chmod(0o755)
    for browser in (str(slow), "/bin/false"):
        settings = {**environ, "PROXY_PRACTICE": "false", "PROXY_AUTO_OPEN_BROWSER": "true", "BROWSER": browser}
        with Process(settings) as process:
            process.wait_for("To stop:")
            assert process.get("/health")["status"] == "ok"
            process.signal(signal.SIGTERM)
            assert process.end() == 0


def test_help_lists_every_command():
    status, said = run({"PATH": os.environ["PATH"], "PROXY_PORT": "0"}, "--help")
    assert status == 0
    for command in ("demo", "open", "doctor", "test", "fix", "--help"):
        assert command in said


@pytest.mark.parametrize("command", ["doctor", "--help", "--version", "open"])
def test_a_command_whose_reader_has_gone_ends_quietly(environ, command):
    """As in `./run.sh doctor | head -3`."""
    with ExitStack() as stack:
        if command == "open":
            stack.enter_context(Process(environ)).wait_for("To stop:")
        reader, writer = os.pipe()
        os.close(reader)
        ended = subprocess.run(
            [sys.executable, "-m", "server", command],
            cwd=TOP,
            env={**environ, "BROWSER": "true"},
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
        os.close(writer)
    assert ended.stderr == b""
    assert ended.returncode == 1


def test_doctor_finds_nothing_wrong_on_a_good_machine(environ):
    status, said = run(environ, "doctor")
    assert status == 0, said
    assert "All is well." in said


def test_doctor_reads_a_data_folder_that_is_named_from_where_one_stands(environ, tmp_path):
    near = {**environ, "PROXY_DATA_DIR": os.path.relpath(tmp_path / "data", TOP)}
    with Process(near) as process:
        process.wait_for("To stop:")
        status, said = run(near, "doctor")
    assert status == 0, said
    assert "The client keys and books can be read." in said


def test_doctor_tells_practice_from_play(environ):
    _, said = run(environ, "doctor")
    assert "Practice mode is on" in said.splitlines()[1]
    with Process(environ) as demo:
        demo.wait_for("To stop:")
        _, said = run({**environ, "PROXY_PRACTICE": "false"}, "doctor")
        assert "is running at port" in said
        assert "in practice mode" in said
        demo.signal(signal.SIGTERM)
        assert demo.end() == 0


def test_doctor_says_what_is_wrong_and_what_to_do(environ):
    settings = {**environ, "PROXY_PRACTICE": "false", "PROXY_API_BASE_URL": "http://127.0.0.1:9"}
    with socket.create_server(("127.0.0.1", int(environ["PROXY_PORT"]))):
        status, said = run(settings, "doctor")
    assert status == 1
    assert "is taken by another program" in said
    assert "cannot be reached" in said
    assert "2 things to mend." in said
