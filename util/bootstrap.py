"""Starts the proxy, after installing what it needs into .venv: run.sh and run.bat call this with their arguments.

The standard library must do. On a Python older than 3.11 the file must still be read and answer with a sentence, so it
keeps to the grammar of Python 3.6.

`.venv/ready` is written when an installation is complete: the Python it is for and the fingerprint of the lock that is
in place. It is taken away before anything is changed, so a `.venv` without it is a torn one and is made anew.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit(
        "Python %d.%d is too old: Tavern Proxy needs 3.11 or newer.\n"  # noqa: UP031
        "Get one from https://www.python.org/downloads/ and start again." % sys.version_info[:2]
    )

import contextlib
import errno
import hashlib
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
READY = VENV / "ready"
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
RUNTIME = ROOT / "requirements.txt"
DEVELOPMENT = ROOT / "requirements-dev.txt"  # holds all of RUNTIME too, at the same versions
SILLYTAVERN = ROOT / "tests" / "sillytavern"

# What the last words of pip, venv or the system mean, and what helps; the first that fits is taken.
REMEDIES = (
    (r"No space left|Errno 28|disk is full|not enough space", "The disk is full. Make some room and start again."),
    (
        r"ProxyError|Cannot connect to proxy|Tunnel connection failed",
        "The network's proxy refused the way. Check HTTPS_PROXY (or ask whoever runs the network), then start again.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "The download was not trusted. A virus scanner or company network may stand in between, "
        "or the computer's clock is wrong. Mend that and start again.",
    ),
    (
        r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|Connection refused|"
        r"Network is unreachable|name resolution|getaddrinfo failed|timed out",
        "The internet cannot be reached. It is needed to install, not later: connect and start again.",
    ),
    (
        r"DO NOT MATCH THE HASHES",
        "A download came damaged and was thrown away. Start again; if it stays so, do not use this network.",
    ),
    (
        r"No matching distribution|Failed building wheel|subprocess-exited-with-error|Could not build",
        "A package is not ready-made for this Python and this kind of computer. Install Python 3.13 "
        "(on Windows the one for x64), delete the folder .venv and start again.",
    ),
    (
        r"Read-only file system|Permission denied|Access is denied|Errno 13|WinError 5\b|WinError 32\b",
        f"The folder {ROOT} cannot be written to. Close a proxy that still runs from it, or move the folder to a place "
        "of your own, like Documents, and start again.",
    ),
)


def remedy(words: str) -> str:
    """What a person can do about a failed installation that ended with these words."""
    return next((what for pattern, what in REMEDIES if re.search(pattern, words)), "Start again to have another try.")


def stamp(lock: Path) -> str:
    """What `.venv/ready` holds when `lock` is installed for this Python."""
    return f"{sys.implementation.cache_tag} {hashlib.sha256(lock.read_bytes()).hexdigest()}\n"


def ready() -> str:
    """The stamp of what is installed; blank for a torn or missing `.venv`."""
    return READY.read_text() if READY.exists() else ""


def say(text: str = "", end: str = "\n") -> None:
    print(text, end=end, flush=True)


def fail(happened: str, words: str) -> NoReturn:
    """Ends with what happened, the end of what the tool said, and what helps."""
    chatter = r"\s*($|Ignoring|Collecting|Downloading|Using cached|Requirement already|Looking in)"
    told = [line.rstrip() for line in words.splitlines() if not re.match(chatter, line)][-5:]
    sys.exit("\n".join(["", happened, *(f"  | {line[:200]}" for line in told), "", remedy(words)]))


def try_lock(file: int) -> bool:
    """Takes the lock on an open file unless another process has it; it ends with the file."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


@contextlib.contextmanager
def alone() -> Iterator[int]:
    """One process at a time changes `.venv`; a second start waits for the first. Yields the locked file."""
    with (ROOT / ".venv.lock").open("a") as file:
        if not try_lock(file.fileno()):
            say("Another start is installing; waiting for it to finish...")
            while not try_lock(file.fileno()):
                time.sleep(0.2)
        yield file.fileno()


def child(
    command: Sequence[str], lock: int, env: Mapping[str, str] = os.environ, cwd: Path = ROOT
) -> subprocess.Popen[str]:
    """A program whose words are read; it holds the lock too, in case it outlives this process."""
    keep: Sequence[int] = () if sys.platform == "win32" else (lock,)
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=env,
        cwd=cwd,
        pass_fds=keep,
    )


def whole() -> bool:
    """Whether `.venv` is complete, seen from outside, and its Python still works and is the one it was made for."""
    try:
        asked = [str(PYTHON), "-I", "-S", "-c", "import sys; print(sys.implementation.cache_tag)"]
        tag = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return False
    return ready().startswith(f"{tag} ")


def make_venv() -> None:
    """Makes `.venv`, anew where a torn or broken one stands; its packages come next, from its own Python."""
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        major, minor = sys.version_info[:2]
        debian = shutil.which("apt-get") is not None
        sys.exit(
            f"Python {major}.{minor} on this computer lacks the part that installs packages. "
            + (f"Type this, then start again:\n\n  sudo apt install python{major}.{minor}-venv\n" if debian else "")
            + ("" if debian else "Install the whole of Python (https://www.python.org/downloads/) and start again.")
        )
    with alone() as lock:
        if whole():
            return  # the other start has done it
        say("Setting up Tavern Proxy. This happens once, takes about half a minute and needs the internet.")
        READY.unlink(missing_ok=True)
        for command in (
            [sys.executable, "-I", "-m", "venv", "--without-pip", "--clear", str(VENV)],
            [str(PYTHON), "-I", "-m", "ensurepip", "--default-pip"],
        ):
            with child(command, lock) as making:
                words, _ = making.communicate()
            if making.returncode:
                fail("Python could not make the folder .venv. It said:", words)
        READY.write_text(f"{sys.implementation.cache_tag} nothing yet\n")


def install(lock_file: Path) -> None:
    """Makes the packages of a lock file the installed ones; every download must match its hash."""
    with alone() as lock:
        if ready() in (stamp(lock_file), stamp(DEVELOPMENT)):
            return  # the other start has done it
        say("Installing packages:")
        READY.unlink(missing_ok=True)
        command = [sys.executable, "-I", "-m", "pip", "install", "--require-hashes", "--no-input", "--retries=2"]
        command += ["--disable-pip-version-check", "--progress-bar=off", "--no-color", "--requirement", str(lock_file)]
        with child(command, lock, {**os.environ, "PIP_USER": "0", "PYTHONUTF8": "1"}) as pip:
            words = follow(pip, len(re.findall(r"^\w.*==", lock_file.read_text(encoding="utf-8"), re.MULTILINE)))
        if pip.returncode:
            fail("The packages could not be installed. The installer said:", words)
        READY.write_text(stamp(lock_file))
        step("all installed.")
        say()


def follow(pip: "subprocess.Popen[str]", total: int) -> str:
    """Shows pip's progress, a line per package, and returns all it said."""
    words, done = [], 0
    assert pip.stdout is not None  # noqa: S101
    for line in pip.stdout:
        words.append(line)
        package = re.match(r"(?:Collecting|Requirement already satisfied:) ([^\s;]+)==([^\s;]+)", line)
        if line.startswith("Ignoring "):  # meant for another system
            total -= 1
        elif package:
            done += 1
            step(f"{done:2} of {total}  {package[1]} {package[2]}")
        elif line.startswith("Installing collected"):
            step("unpacking them...")
        elif "Retrying (" in line:
            step("no answer yet, trying again...")
    return "".join(words)


def step(words: str) -> None:
    """One line of progress: on a terminal each takes the place of the one before."""
    if sys.stdout.isatty():
        say(f"  {words}".ljust(70), end="\r")
    else:
        say(f"  {words}")


def go_on_with(python: str | Path, arguments: Sequence[str]) -> NoReturn:
    """Starts this file again, with another Python."""
    command = [str(python), __file__, *arguments]
    if sys.platform != "win32":
        os.execv(python, command)  # noqa: S606
    process = subprocess.Popen(command)  # Windows has no exec that waits
    while process.poll() is None:
        with contextlib.suppress(KeyboardInterrupt):  # the child got the Ctrl+C as well, and ends in its own way
            process.wait()
    sys.exit(process.returncode)


def serve() -> None:
    """`python -m server`, in this very process."""
    sys.path[0] = str(ROOT)
    runpy.run_module("server", run_name="__main__", alter_sys=True)


def install_sillytavern() -> None:
    """The Node packages of the tests with the real SillyTavern; without them those tests are left out, by name."""
    lock_file, done = SILLYTAVERN / "package-lock.json", SILLYTAVERN / "node_modules" / "ready"
    npm = shutil.which("npm")
    if not (lock_file.exists() and npm) or (done.exists() and done.read_text() == stamp(lock_file)):
        return
    say("Installing SillyTavern, for the tests with it...")
    with alone() as lock, child([npm, "ci"], lock, cwd=SILLYTAVERN) as installing:
        words, _ = installing.communicate()
    if installing.returncode:
        say(f"That failed, so the tests with it are left out. npm said:\n{words}")
    else:
        done.write_text(stamp(lock_file))


def run_all(steps: Mapping[str, Sequence[str]]) -> int:
    """Runs each step, whatever became of those before; 1 if any failed."""
    failed = []
    for title, arguments in steps.items():
        say(f"\n=== {title}: {' '.join(arguments)}")
        if subprocess.call([sys.executable, "-m", *arguments], cwd=ROOT):
            failed.append(title)
    say(f"\n=== FAILED: {', '.join(failed)}" if failed else f"\n=== all fine: {', '.join(steps)}")
    return 1 if failed else 0


def test(arguments: Sequence[str]) -> int:
    install_sillytavern()
    return run_all(
        {
            "format": ["ruff", "format", "--check"],
            "lint": ["ruff", "check"],
            "types": ["mypy", "server", "util"],
            "tests": ["pytest", *arguments],
        }
    )


def fix(_: Sequence[str]) -> int:
    return run_all({"format": ["ruff", "format"], "lint": ["ruff", "check", "--fix"]})


def prepare(lock_file: Path, arguments: Sequence[str]) -> None:
    """Returns once this process runs on a complete `.venv`; on the way there, this file is started anew."""
    inside = VENV.exists() and Path(sys.prefix).samefile(VENV)
    if not inside:
        if not whole():
            make_venv()
        go_on_with(PYTHON, arguments)
    if not ready().startswith(f"{sys.implementation.cache_tag} "):
        # torn, or the system has replaced the Python it was made for
        go_on_with(sys._base_executable, arguments)  # type: ignore[attr-defined]
    if ready() not in (stamp(lock_file), stamp(DEVELOPMENT)):
        install(lock_file)
        go_on_with(PYTHON, arguments)


def main(arguments: Sequence[str]) -> None:
    asks_for_help = "-h" in arguments or "--help" in arguments  # which the server's own command line gives
    ours = None if asks_for_help else {"test": test, "fix": fix}.get(arguments[0] if arguments else "")
    try:
        prepare(DEVELOPMENT if ours else RUNTIME, arguments)
    except OSError as error:
        sys.exit(f"\nThe set-up stopped: {error}\n\n{remedy(str(error))}")
    if ours:
        sys.exit(ours(arguments[1:]))
    serve()


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # an odd letter in a path ends no start
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
