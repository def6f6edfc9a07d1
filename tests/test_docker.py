"""The container's files say what they must. No container is run here, but its health check is."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

import server
from server.config import Config

ROOT = Path(__file__).parent.parent


def stages():
    """The Dockerfile as a list of stages, each a list of `(INSTRUCTION, what follows)`."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    instructions = [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]
    starts = [number for number, (name, _) in enumerate(instructions) if name == "FROM"]
    return [instructions[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def told(stage, name):
    return [rest for instruction, rest in stage if instruction == name]


BUILD, IMAGE = stages()


def environment():
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(told(IMAGE, "ENV"))))


def compose():
    """docker-compose.yml's lines without comments: `{line}` for entries, `{(key, line)}` for those in a list."""
    found, key = set(), ""
    for line in (ROOT / "docker-compose.yml").read_text().splitlines():
        line = line.split(" #")[0].strip().strip('"')
        if line.startswith("- "):
            found.add((key, line[2:].strip('"')))
        elif line and not line.startswith("#"):
            key = line.removesuffix(":")
            found.add(line)
    return found


def test_both_stages_stand_on_the_same_pinned_slim_python():
    bases = {rest.split()[0] for stage in (BUILD, IMAGE) for rest in told(stage, "FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.1[1-4]-slim-\w+", bases.pop())


def test_the_packages_are_installed_from_the_lock_with_hashes_and_no_installer_runs_in_the_image():
    (install,) = told(BUILD, "RUN")
    assert "install --require-hashes --only-binary=:all:" in install
    assert install.endswith("-r requirements.txt")
    assert not re.search(r"pip|apt|curl|wget", " ".join(told(IMAGE, "RUN")))


def test_the_server_runs_as_a_fixed_user_without_rights():
    assert IMAGE[-1][0] == "ENTRYPOINT"
    (user,) = told(IMAGE, "USER")
    uid, gid = user.split(":")
    assert int(uid) == int(gid) > 1000
    assert f"--uid {uid} " in " ".join(told(IMAGE, "RUN"))


def test_the_entry_point_is_the_server_itself_so_that_it_receives_the_signal_to_stop():
    assert [json.loads(rest) for rest in told(IMAGE, "ENTRYPOINT")] == [["python", "-m", "server"]]
    assert not told(IMAGE, "CMD")


def test_the_image_itself_says_that_it_listens_beyond_loopback_and_where_data_lies():
    said = {key: value for key, value in environment().items() if key.startswith("PROXY_")}
    assert said == {
        "PROXY_HOST": "0.0.0.0",
        "PROXY_DATA_DIR": "/data",
        "PROXY_AUTO_OPEN_BROWSER": "false",
        "PROXY_MAKE_FIRST_KEY": "true",
    }
    assert told(IMAGE, "VOLUME") == ["/data"]


def test_every_setting_named_in_the_files_exists():
    text = (ROOT / "Dockerfile").read_text() + (ROOT / "docker-compose.yml").read_text()
    named = {name.lower() for name in re.findall(r"PROXY_([A-Z_]+[A-Z])", text)}
    assert named >= {"host", "data_dir"}
    assert named <= {field.name for field in fields(Config)}


def test_the_label_tells_the_version():
    (label,) = told(IMAGE, "LABEL")
    assert f'org.opencontainers.image.version="{server.__version__}"' in label


def test_only_what_the_image_needs_is_sent_to_the_builder_and_all_of_it_exists():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {rest.split()[0] for stage in (BUILD, IMAGE) for rest in told(stage, "COPY") if "--from" not in rest}
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    assert sent == copied
    assert [name for name in sent if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)], ids=["healthy", "failing", "gone"])
def test_the_health_check_tells_a_healthy_server_from_others(status, code):
    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    (check,) = told(IMAGE, "HEALTHCHECK")
    python, *arguments = json.loads(check.partition("CMD ")[2])
    assert python == "python"
    with HTTPServer(("127.0.0.1", 0), Health) as web:
        port = web.server_port
        if status:
            Thread(target=web.handle_request, daemon=True).start()
        else:
            web.server_close()
        ran = subprocess.run([sys.executable, *arguments], env={"PROXY_PORT": str(port)}, capture_output=True)
    assert ran.returncode == code


def test_compose_publishes_to_this_computer_alone():
    assert [entry for entry in compose() if entry[0] == "ports"] == [("ports", "127.0.0.1:42069:42069")]
    assert not [line for line in compose() if re.match("network_mode|privileged", str(line))]


def test_compose_gives_no_rights_and_keeps_data_in_a_volume():
    assert compose() >= {
        "read_only: true",
        "restart: unless-stopped",
        ("cap_drop", "ALL"),
        ("security_opt", "no-new-privileges:true"),
        ("tmpfs", "/tmp"),
        ("volumes", "data:/data"),
    }
