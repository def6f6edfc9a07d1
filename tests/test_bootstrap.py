"""Real starts in folders of their own, with run.sh, a lock of one tiny package and a stand-in for the server."""

import ast
import base64
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from util import sbom
from util.bootstrap import remedy

ROOT = Path(__file__).parent.parent
BASE_PYTHON = Path(sys._base_executable)
SERVER = """
import json, os, sys, tiny
print(json.dumps({"asked": sys.argv[1:], "pid": os.getpid(), "prefix": sys.prefix, "tiny": tiny.version}))
sys.exit(int(os.environ.get("CODE", "0")))
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="only on Linux and macOS: run.sh")


def wheel(folder, name, version, **files):
    """A package made on the spot; returns its line for a lock file."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {f"{name}/{stem}.py": text for stem, text in files.items()} | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {f: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for f, text in files.items()}
    record = "".join(f"{file},sha256={digest.decode().rstrip('=')},\n" for file, digest in digests.items())
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}).items():
            archive.writestr(file, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def tiny(wheels, version):
    return wheel(wheels, "tiny", version, __init__=f"version = {version!r}")


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Place:
    """A folder with the start files, beside it a PATH of its own and a folder of wheels to install from."""

    def __init__(self, parent, name="Größe & blank dir (x)!"):
        self.parent, self.root, self.bin, self.wheels = parent, parent / name, parent / "bin", parent / "wheels"
        self.venv = self.root / ".venv"

    def make(self):
        for folder in (self.root / "util", self.root / "server", self.bin, self.wheels):
            folder.mkdir(parents=True)
        shutil.copy(ROOT / "run.sh", self.root)
        shutil.copy(ROOT / "util" / "bootstrap.py", self.root / "util")
        (self.root / "server" / "__init__.py").touch()
        (self.root / "server" / "__main__.py").write_text(SERVER)
        self.lock(tiny(self.wheels, "1.0"))
        for tool in ("sh", "dirname", "cat"):
            (self.bin / tool).symlink_to(shutil.which(tool))
        (self.bin / "python3").symlink_to(BASE_PYTHON)
        return self

    def copy(self, parent):
        """The same, installed as it is, in another folder."""
        shutil.copytree(self.parent, parent, symlinks=True, dirs_exist_ok=True)
        return Place(parent, self.root.name)

    def lock(self, text):
        (self.root / "requirements.txt").write_text(text)
        (self.root / "requirements-dev.txt").write_text(text)

    def env(self, **more):
        here = {"PATH": str(self.bin), "HOME": str(self.parent), "PIP_CONFIG_FILE": os.devnull}
        return {**here, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), **more}

    @contextmanager
    def begin(self, *arguments, prefix=(), cwd="/", env=None):
        """A start that goes on meanwhile; whatever is left of it at the end of the block is killed."""
        process = subprocess.Popen(
            [*prefix, str(self.root / "run.sh"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=env or self.env(),
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run unattended
        )
        try:
            with process.stdout, process.stderr:
                yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start(self, *arguments, code=0, **how):
        """Runs to the end; `(what the server said, what stood before it, what went to stderr)`."""
        with self.begin(*arguments, **how) as process:
            out, err = process.communicate(timeout=240)
        assert process.returncode == code, out + err
        before, _, last = out.rstrip("\n").rpartition("\n")
        return (json.loads(last) if last.startswith("{") else None), before if last.startswith("{") else out, err


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "new").make()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def first_start(tmp_path_factory):
    """As it happens to a new user: packages come over HTTP, the current folder is another one."""
    place = Place(tmp_path_factory.mktemp("first") / "first").make()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=place.wheels)) as server:
        Thread(target=server.serve_forever).start()
        env = place.env(PIP_FIND_LINKS=f"http://127.0.0.1:{server.server_port}/")
        try:
            return place, place.start("demo", "two words", cwd=place.parent, env=env)
        finally:
            server.shutdown()


@pytest.fixture
def installed(first_start, tmp_path):
    return first_start[0].copy(tmp_path / "copy")


def no_wheels(place):
    """Nothing can be installed any more."""
    shutil.rmtree(place.wheels)


class SilentIndex:
    """A package index that takes a call and never answers."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.settimeout(240)
        self.calls = []

    def env(self, place):
        env = place.env(PIP_INDEX_URL=f"http://127.0.0.1:{self.socket.getsockname()[1]}/simple/")
        return {key: value for key, value in env.items() if key not in ("PIP_NO_INDEX", "PIP_FIND_LINKS")}

    def wait_for_a_call(self):
        self.calls.append(self.socket.accept()[0])

    def close(self):
        for each in (self.socket, *self.calls):
            each.close()


@pytest.fixture
def silent_index():
    index = SilentIndex()
    yield index
    index.close()


# --- starting


def test_the_first_start_shows_each_package_and_ends_in_the_server(first_start):
    place, (said, before, err) = first_start
    assert said["asked"] == ["demo", "two words"]
    assert said["tiny"] == "1.0"
    assert Path(said["prefix"]).samefile(place.venv)
    assert "1 of 1  tiny 1.0" in before
    assert err == ""


def test_a_second_start_goes_straight_to_the_server_in_the_same_process_without_network(installed):
    no_wheels(installed)
    (installed.bin / "python3").unlink()  # nor is another Python asked
    with installed.begin("open") as process:
        out, _ = process.communicate(timeout=240)
    assert json.loads(out) | {"prefix": ""} == {"asked": ["open"], "pid": process.pid, "prefix": "", "tiny": "1.0"}


def test_the_exit_code_of_the_server_is_passed_on(installed):
    installed.start(env=installed.env(CODE="7"), code=7)


def test_a_moved_folder_starts_without_network(installed):
    no_wheels(installed)
    moved = Place(installed.parent, "anderswo – elsewhere")
    installed.root.rename(moved.root)
    said, before, _ = moved.start()
    assert (Path(said["prefix"]).samefile(moved.venv), before) == (True, "")


def test_bootstrap_alone_finds_the_installed_python(installed):
    no_wheels(installed)
    command = [BASE_PYTHON, installed.root / "util" / "bootstrap.py", "x"]
    ran = subprocess.run(command, env=installed.env(), capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["asked"] == ["x"]


# --- mending


def test_a_changed_lock_is_installed(installed):
    installed.lock(tiny(installed.wheels, "2.0"))
    said, before, _ = installed.start()
    assert said["tiny"] == "2.0"
    assert "Setting up" not in before  # the rest stays as it is


def test_a_torn_installation_is_made_anew(installed):
    (installed.venv / "ready").unlink()
    (package,) = installed.venv.glob("lib/*/site-packages/tiny/__init__.py")
    package.unlink()  # pip believes that it is there
    said, before, _ = installed.start()
    assert said["tiny"] == "1.0"
    assert "Setting up" in before


@pytest.mark.parametrize(("end", "words"), [(signal.SIGKILL, ""), (signal.SIGINT, "\nStopped.\n")])
def test_an_installation_ended_in_the_middle_is_made_anew(place, silent_index, end, words):
    with place.begin(env=silent_index.env(place)) as process:
        silent_index.wait_for_a_call()
        os.killpg(process.pid, end)
        _, err = process.communicate(timeout=240)
    assert (process.returncode != 0, err) == (True, words)
    assert not (place.venv / "ready").exists()
    assert place.start()[0]["tiny"] == "1.0"


def test_a_changed_lock_interrupted_in_the_middle_is_made_anew(installed, silent_index):
    installed.lock(tiny(installed.wheels, "2.0"))
    with installed.begin(env=silent_index.env(installed)) as process:
        silent_index.wait_for_a_call()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=240)
    said, before, _ = installed.start()
    assert said["tiny"] == "2.0"
    assert "Setting up" in before


def test_a_removed_interpreter_is_replaced(installed):
    python = installed.venv / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python")
    assert installed.start()[0]["tiny"] == "1.0"


def test_an_installation_for_another_python_version_is_made_anew(installed):
    ready = installed.venv / "ready"
    ready.write_text(re.sub(r"^\S+", "cpython-310", ready.read_text()))
    said, before, _ = installed.start()
    assert said["tiny"] == "1.0"
    assert "Setting up" in before


# --- two at once


def test_two_first_starts_at_once_both_work(place):
    with place.begin("one") as one, place.begin("two") as two:
        outs = [process.communicate(timeout=240)[0] for process in (one, two)]
    assert [json.loads(out.splitlines()[-1])["asked"] for out in outs] == [["one"], ["two"]]
    assert "".join(outs).count("Setting up") == 1


def test_a_second_start_waits_for_an_installer_that_outlived_its_start(place, silent_index):
    with place.begin(env=silent_index.env(place)) as first:
        silent_index.wait_for_a_call()
        first.kill()  # not its pip, which still has hold of .venv
        with place.begin() as second:
            assert second.stdout.readline() == "Another start is installing; waiting for it to finish...\n"
            silent_index.close()
            out, _ = second.communicate(timeout=240)
    assert json.loads(out.splitlines()[-1])["tiny"] == "1.0"


# --- what stands in the way


def test_without_network_the_first_start_says_so_and_the_next_one_with_network_works(place, silent_index):
    env = silent_index.env(place)
    silent_index.close()  # nobody listens there now
    said, _, err = place.start(env=env, code=1)
    assert said is None
    assert "The internet cannot be reached." in err
    assert len(err.splitlines()) < 12
    assert place.start()[0]["tiny"] == "1.0"


def test_a_download_with_another_hash_is_not_installed(place):
    place.lock(re.sub(r"sha256:\w+", "sha256:" + "0" * 64, (place.root / "requirements.txt").read_text()))
    said, _, err = place.start(code=1)
    assert said is None
    assert "A download came damaged" in err


def test_a_package_without_a_hash_is_not_installed(place):
    place.lock("tiny==1.0\n")
    said, _, err = place.start(code=1)
    assert said is None
    assert "all requirements must have their versions pinned" in err or "Hashes are required" in err


def test_a_folder_that_cannot_be_written_to_is_named_with_what_to_do(place):
    prefix = ()
    if os.geteuid() == 0:  # root may write anywhere, unless it gives that right away
        if not shutil.which("setpriv"):
            pytest.skip("setpriv is not installed")
        prefix = (shutil.which("setpriv"), "--bounding-set=-dac_override,-dac_read_search")
    place.root.chmod(0o555)
    try:
        said, _, err = place.start(prefix=prefix, code=1)
    finally:
        place.root.chmod(0o755)
    assert said is None
    assert f"The folder {place.root} cannot be written to." in err


def test_without_any_python_the_remedy_is_printed(place):
    (place.bin / "python3").unlink()
    _, _, err = place.start(code=1)
    assert "needs Python 3.11 or newer, and found none on this computer" in err
    assert "sudo apt install python3 python3-venv" in err


def stand_in(place, twist):
    """Puts a `python3` on the PATH that is the real one after a twist."""
    (place.bin / "python3").unlink()
    shim = place.parent / "shim.py"
    shim.write_text(
        f"import runpy, sys\n{twist}\n"
        "sys.argv = [a for a in sys.argv[1:] if a not in ('-I', '-S')]\n"
        "if sys.argv[0] == '--version': print('Python %d.%d.%d' % sys.version_info[:3])\n"
        "elif sys.argv[0] == '-c': exec(sys.argv[1])\n"
        "else: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script(place.bin / "python3", f'#!/bin/sh\nexec "{BASE_PYTHON}" "{shim}" "$@"\n')


OLD = "sys.version_info = (3, 8, 18, 'final', 0)"


def test_where_the_only_python_is_too_old_its_version_and_the_remedy_are_printed(place):
    stand_in(place, OLD)
    _, _, err = place.start(code=1)
    assert "needs Python 3.11 or newer, and found Python 3.8.18 on this computer" in err


def test_bootstrap_on_a_python_that_is_too_old_says_so(place):
    stand_in(place, OLD)
    command = [place.bin / "python3", place.root / "util" / "bootstrap.py"]
    ran = subprocess.run(command, env=place.env(), capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.startswith("Python 3.8 is too old: Tavern Proxy needs 3.11 or newer.\n")


def test_bootstrap_keeps_to_the_grammar_of_python_3_6():
    ast.parse((ROOT / "util" / "bootstrap.py").read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("debian", [True, False])
def test_a_python_without_venv_gets_the_exact_remedy(place, debian):
    stand_in(place, "sys.modules['ensurepip'] = None")
    if debian:
        script(place.bin / "apt-get", "#!/bin/sh\nexit 1\n")
    _, _, err = place.start(code=1)
    package = f"sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    assert (package in err, "https://www.python.org/downloads/" in err) == (debian, not debian)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full."),
        ("ProxyError('Cannot connect to proxy.', NewConnectionError(", "Check HTTPS_PROXY"),
        ("SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "virus scanner"),
        ('NameResolutionError("Failed to resolve\nERROR: No matching distribution found', "internet cannot be reached"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "came damaged"),
        ("ERROR: No matching distribution found for orjson==9", "Install Python 3.13"),
        ("[WinError 5] Access is denied: 'C:\\\\x'", "cannot be written to"),
        ("something unheard of", "Start again"),
    ],
)
def test_the_words_of_a_failure_lead_to_its_remedy(words, what):
    assert what in remedy(words)


# --- test and fix


@pytest.fixture
def with_tools(installed):
    """The development lock holds stand-ins for the tools that print what they were asked; ruff is never content."""
    told = "import sys; print('ran', *sys.argv[1:]); sys.exit({})"
    locked = [wheel(installed.wheels, name, "1.0", __main__=told.format(0)) for name in ("mypy", "pytest")]
    locked += [wheel(installed.wheels, "ruff", "1.0", __main__=told.format("'check' in sys.argv"))]
    runtime = (installed.root / "requirements.txt").read_text()
    (installed.root / "requirements-dev.txt").write_text(runtime + "".join(locked))
    return installed


def test_the_test_command_installs_its_tools_and_runs_every_check_even_after_one_failed(with_tools):
    _, out, _ = with_tools.start("test", "-k", "one thing", code=1)
    ran = [line for line in out.splitlines() if line.startswith("ran")]
    assert ran == ["ran format --check", "ran check", "ran server util", "ran -k one thing"]
    assert out.endswith("=== FAILED: lint\n")


def test_the_fix_command_formats_and_mends(with_tools):
    _, out, _ = with_tools.start("fix", code=1)
    assert [line for line in out.splitlines() if line.startswith("ran")] == ["ran format", "ran check --fix"]


@pytest.mark.parametrize("command", ["test", "fix"])
def test_who_asks_a_command_for_help_sets_nothing_off(with_tools, command):
    _, out, _ = with_tools.start(command, "--help")
    assert "ran" not in out


def test_after_the_tests_a_plain_start_installs_nothing(with_tools):
    with_tools.start("fix", code=1)
    no_wheels(with_tools)
    assert with_tools.start()[1] == ""


def test_the_test_command_installs_sillytavern_once_for_each_lock(with_tools):
    folder = with_tools.root / "tests" / "sillytavern"
    folder.mkdir(parents=True)
    script(
        with_tools.bin / "npm", f'#!/bin/sh\necho "$@" >> "{folder}/asked"\n"{shutil.which("mkdir")}" -p node_modules\n'
    )
    for lock in ("{}", "{}", "{ }"):
        (folder / "package-lock.json").write_text(lock)
        with_tools.start("test", code=1)
    assert (folder / "asked").read_text().splitlines() == ["ci", "ci"]


def test_where_sillytavern_cannot_be_installed_the_tests_run_without_it(with_tools):
    folder = with_tools.root / "tests" / "sillytavern"
    folder.mkdir(parents=True)
    (folder / "package-lock.json").write_text("{}")
    script(with_tools.bin / "npm", "#!/bin/sh\necho no way there\nexit 1\n")
    _, out, _ = with_tools.start("test", code=1)
    assert "the tests with it are left out. npm said:\nno way there" in out
    assert "ran server util" in out


# --- the files themselves


def pins(name):
    """`{package: (version, its hashes)}` of a lock file; every line of it must be such a pin."""
    lines = re.sub(r"\\\n|#.*", "", (ROOT / name).read_text()).split("\n")
    parts = [
        re.fullmatch(r"([\w-]+)==([\w.]+)( ;.*?)?((?: +--hash=sha256:\w{64})+) *", line)
        for line in lines
        if line.strip()
    ]
    return {part[1]: (part[2], frozenset(part[4].split())) for part in parts}


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_every_package_asked_for_is_locked_with_hashes(name):
    asked = re.findall(r"^[\w-]+", (ROOT / f"{name}.in").read_text(), re.MULTILINE)
    assert set(asked) - {"-r"} <= pins(f"{name}.txt").keys()


def test_the_development_lock_holds_all_of_the_other_at_the_same_versions():
    assert pins("requirements.txt").items() <= pins("requirements-dev.txt").items()


def test_the_sbom_names_the_locked_packages_and_no_others():
    bom = json.loads(sbom.SBOM.read_text())
    listed = {
        package["name"]: (package["version"], {f"--hash=sha256:{one['content']}" for one in package["hashes"]})
        for package in bom["components"]
    }
    assert listed == pins("requirements.txt")
    (whole,) = (
        one["dependsOn"] for one in bom["dependencies"] if one["ref"] == bom["metadata"]["component"]["bom-ref"]
    )
    assert set(whole) == set(re.findall(r"^[\w-]+", (ROOT / "requirements.in").read_text(), re.MULTILINE))
    assert sbom.made(sbom.LOCK.read_text()) == sbom.SBOM.read_text(), "run .venv/bin/python util/sbom.py"


def test_run_sh_is_plain_posix_shell():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", ROOT / "run.sh", ROOT / "util" / "lock.sh", ROOT / ".ci" / "run"], check=True)


def test_run_bat_is_plain_ascii_with_windows_line_ends():
    lines = (ROOT / "run.bat").read_bytes().decode("ascii").split("\n")
    assert all(line.endswith("\r") for line in lines[:-1])
    assert lines[-1] == ""


def test_the_window_of_run_bat_stays_open_on_an_error_and_names_the_remedy():
    text = (ROOT / "run.bat").read_text()
    assert text.endswith('if not "%code%"=="0" pause\nexit /b %code%\n')
    assert 'tick "Add python.exe to PATH"' in text
    assert set(re.findall(r"goto (\w+)", text)) <= set(re.findall(r"^:(\w+)", text, re.MULTILINE))
