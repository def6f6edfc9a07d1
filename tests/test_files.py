"""Private files: whole or not at all, for their owner alone, and never lost."""

import asyncio
import json
import os
import signal
import stat
import threading
from pathlib import Path
from random import Random

import pytest

from server.files import (
    Busy,
    Damaged,
    locked,
    may_be_replaced,
    mend_rights,
    mount_points,
    private_folder,
    read_json_file,
    read_private,
    set_aside,
    stamp,
    sweep,
    write_private,
)
from tests.pools import NOBODY, NOW, as_plain_user, needs_posix, open_to_all, python

pytestmark = pytest.mark.anyio


def mode(path):
    return stat.S_IMODE(path.stat(follow_symlinks=False).st_mode)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_whole_and_its_last_generation_kept(tmp_path):
    path = tmp_path / "tokens.json"
    for text in (b"one", b"two", b"three"):
        write_private(path, text, keep_backup=True)
    assert path.read_bytes() == b"three"
    assert (tmp_path / "tokens.json.bak").read_bytes() == b"two"
    assert names(tmp_path) == ["tokens.json", "tokens.json.bak"]


def test_without_keep_backup_there_is_none(tmp_path):
    write_private(tmp_path / "admin_token", b"one")
    write_private(tmp_path / "admin_token", b"two")
    assert names(tmp_path) == ["admin_token"]


def test_a_backup_that_is_still_a_link_to_the_file_itself_becomes_one_of_its_own(tmp_path):
    path = tmp_path / "tokens.json"
    path.write_bytes(b"one")
    os.link(path, tmp_path / "tokens.json.bak")
    write_private(path, b"two", keep_backup=True)
    assert names(tmp_path) == ["tokens.json", "tokens.json.bak"]
    assert (tmp_path / "tokens.json.bak").read_bytes() == b"one"


@needs_posix
def test_a_file_is_0600_from_birth_whatever_the_umask(tmp_path):
    """A thread watches every name that appears in the folder while files are written under umask 000."""
    seen, done = set(), threading.Event()

    def watch():
        while not done.is_set():
            with os.scandir(tmp_path) as found:
                for entry in found:
                    try:
                        seen.add(stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode))
                    except FileNotFoundError:
                        continue

    old = os.umask(0)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for i in range(200):
            write_private(tmp_path / "tokens.json", b"x" * (i + 1), keep_backup=True)
    finally:
        done.set()
        watcher.join()
        os.umask(old)
    assert seen == {0o600}


@needs_posix
@pytest.mark.parametrize("wanted", [0o600, 0o640, 0o644])
def test_somebody_elses_file_keeps_its_rights(tmp_path, wanted):
    path = tmp_path / ".credentials.json"
    path.write_bytes(b"one")
    path.chmod(wanted)
    write_private(path, b"two", like=path.stat())
    assert (path.read_bytes(), mode(path)) == (b"two", wanted)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only on Linux and macOS as root: changing owners")
def test_root_gives_a_file_back_to_its_owner(tmp_path):
    path = tmp_path / ".credentials.json"
    path.write_bytes(b"one")
    os.chown(path, NOBODY, NOBODY)
    write_private(path, b"two", like=path.stat())
    assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "tokens.json").mkdir()
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
        write_private(tmp_path / "tokens.json", b"two")
    assert names(tmp_path) == ["tokens.json"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from server.files import write_private
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_private(path, b"x" * 5000, keep_backup=True)
except OSError:
    print("refused")
"""


@needs_posix
def test_a_disk_that_fills_up_while_writing_never_shortens_the_old_file(tmp_path):
    write_private(tmp_path / "tokens.json", b"one")
    with python(FULL_DISK, tmp_path / "tokens.json") as child:
        assert child.communicate(timeout=240) == ("refused\n", "")
    assert (tmp_path / "tokens.json").read_bytes() == b"one"
    assert names(tmp_path) == ["tokens.json"]


WRITE_FOR_EVER = """
import json, sys
from pathlib import Path
from server.files import write_private
path, i = Path(sys.argv[1]), 0
print("ready", flush=True)
while True:
    i += 1
    write_private(path, json.dumps({"n": i, "fill": "x" * 20000}).encode(), keep_backup=True)
"""


@needs_posix
@pytest.mark.parametrize("kills", [25, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_a_writer_killed_at_any_moment_leaves_a_file_that_loads(tmp_path, figure, kills):
    path, random, last = tmp_path / "tokens.json", Random(7), 0
    write_private(path, b'{"n": 0, "fill": ""}')
    for _ in range(kills):
        with python(WRITE_FOR_EVER, path) as child:
            assert child.stdout.readline() == "ready\n"
            threading.Event().wait(random.uniform(0, 0.03))
            child.send_signal(signal.SIGKILL)
        found = read_json_file(path)
        assert found["fill"] in ("", "x" * 20000)
        assert mode(path) == 0o600
        left = [name for name in names(tmp_path) if name not in ("tokens.json", "tokens.json.bak")]
        assert len(left) <= 1
        assert all(mode(tmp_path / name) == 0o600 for name in left)
        if (tmp_path / "tokens.json.bak").exists():
            assert read_json_file(tmp_path / "tokens.json.bak")["fill"] in ("", "x" * 20000)
        sweep(path)
        assert [name for name in names(tmp_path) if name not in ("tokens.json", "tokens.json.bak")] == []
        last = max(last, found["n"])
    assert last > 0  # the children did write
    figure(f"kill -9 at random moments of writing: {kills} of {kills} files load and are 0600")


def test_sweeping_takes_leftovers_of_this_file_only(tmp_path):
    for name in (".tokens.json.0a0a0a0a.tavern-tmp", ".tokens.jsonx.0a.tavern-tmp", ".tokens.json.swp", "tokens.json"):
        (tmp_path / name).touch()
    sweep(tmp_path / "tokens.json")
    assert names(tmp_path) == [".tokens.json.swp", ".tokens.jsonx.0a.tavern-tmp", "tokens.json"]


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is empty"),
        (b"\0" * 4096, "is empty"),
        (b"{", "is not valid JSON"),
        (b'{"a": 1}}', "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"null", "is not a JSON object"),
        (b"[1]", "is not a JSON object"),
        (b'"text"', "is not a JSON object"),
    ],
)
def test_what_is_no_json_object_is_damaged(tmp_path, raw, says):
    path = tmp_path / "tokens.json"
    path.write_bytes(raw)
    with pytest.raises(Damaged, match=f"^{says}$"):
        read_json_file(path)


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "tokens.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json_file(tmp_path / "tokens.json") == {"a": 1}


@needs_posix
def test_a_link_a_folder_and_a_pipe_are_refused(tmp_path):
    (tmp_path / "real").write_bytes(b"{}")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, says in {"link": "symbolic link", "folder": "regular file|folder", "pipe": "regular file"}.items():
        with pytest.raises(Damaged, match=says):
            read_private(tmp_path / name)
    assert read_private(tmp_path / "link", follow=True) == b"{}"
    with pytest.raises(FileNotFoundError):
        read_private(tmp_path / "nothing")


READ_IT = """
import sys
from pathlib import Path
from server.files import read_private
try:
    read_private(Path(sys.argv[1]))
except PermissionError as error:
    print(error.strerror)
"""


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only on Linux and macOS as root: changing owners")
def test_a_file_of_another_user_is_not_trusted(tmp_path):
    """Somebody who may write in a shared folder could plant a sign-in of theirs."""
    path = tmp_path / "tokens.json"
    path.write_bytes(b"{}")
    path.chmod(0o644)
    os.chown(path, NOBODY - 1, NOBODY - 1)
    open_to_all(tmp_path)
    assert as_plain_user(READ_IT, path) == "belongs to another user\n"


def test_damaged_files_are_set_aside_under_names_of_their_own(tmp_path):
    for text in ("one", "two", "three"):
        (tmp_path / "tokens.json").write_text(text)
        set_aside(tmp_path / "tokens.json", NOW)
    aside = [name for name in names(tmp_path) if ".corrupt." in name]
    assert aside == [f"tokens.json.corrupt.20261118T110640Z{suffix}" for suffix in ("", "-2", "-3")]
    assert sorted((tmp_path / name).read_text() for name in aside) == ["one", "three", "two"]


@needs_posix
def test_a_folder_is_made_for_its_owner_alone_and_mended_with_a_word(tmp_path):
    folder = tmp_path / "a" / "data"
    assert private_folder(folder) == []
    assert mode(folder) == 0o700
    folder.chmod(0o755)
    assert private_folder(folder) == [f"{folder} could be read by other users of this machine; now it is yours alone."]
    assert mode(folder) == 0o700


@needs_posix
def test_wider_rights_of_a_file_are_mended_with_a_word(tmp_path):
    path = tmp_path / "tokens.json"
    path.touch(0o644)
    path.chmod(0o644)
    assert len(mend_rights(path)) == 1
    assert (mode(path), mend_rights(path)) == (0o600, [])


def test_a_stamp_changes_with_every_write(tmp_path):
    path = tmp_path / "tokens.json"
    stamps = [stamp(path)]
    for _ in range(5):
        write_private(path, b"same")
        stamps.append(stamp(path))
    assert stamps[0] is None
    assert len(set(stamps)) == 6


async def test_a_lock_keeps_a_second_one_out_until_it_is_given_back(tmp_path):
    path = tmp_path / "tokens.json"
    async with locked(path):
        with pytest.raises(Busy):
            async with locked(path, wait=0.1):
                pass
        waiting = asyncio.create_task(enter(path))
        await asyncio.sleep(0)
    assert await waiting == "in"
    assert mode(tmp_path / "tokens.json.lock") == 0o600 or os.name == "nt"


async def enter(path):
    async with locked(path):
        return "in"


HOLD_LOCK = """
import asyncio, sys
from pathlib import Path
from server.files import locked
async def main():
    async with locked(Path(sys.argv[1])):
        print("held", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_the_death_of_a_holder_frees_its_lock(tmp_path):
    path = tmp_path / "tokens.json"
    with python(HOLD_LOCK, path) as child:
        assert await asyncio.to_thread(child.stdout.readline) == "held\n"
        with pytest.raises(Busy):
            async with locked(path, wait=0.1):
                pass
        child.kill()
    assert await enter(path) == "in"


def test_a_single_file_mounted_into_a_container_is_recognised():
    """Two lines as Docker makes them for `-v ~/.claude/.credentials.json:…`, one with a blank in the path."""
    lines = [
        "1 0 0:53 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/a:/b",
        "2 1 8:1 /home/me/c.json /home/app/.claude/.credentials.json rw,relatime - ext4 /dev/sda1 rw",
        r"3 1 8:1 /home/me/c.json /home/an\040app/c.json rw,relatime - ext4 /dev/sda1 rw",
        "",
    ]
    found = mount_points("\n".join(lines))
    assert found == {"/", "/home/app/.claude/.credentials.json", "/home/an app/c.json"}
    if os.path.exists("/proc/self/mountinfo"):
        assert not may_be_replaced(Path("/proc"))


TRY_IT = """
import asyncio, json, sys
from pathlib import Path
from server.files import locked, may_be_replaced
async def main():
    path = Path(sys.argv[1])
    try:
        async with locked(path):
            lock = "held"
    except OSError:
        lock = "refused"
    print(json.dumps([may_be_replaced(path), lock]))
asyncio.run(main())
"""


@needs_posix
async def test_a_folder_that_cannot_be_written_is_known_before_anything_is_spent(tmp_path):
    folder = tmp_path / "claude"
    folder.mkdir()
    (folder / ".credentials.json").write_bytes(b"{}")
    assert may_be_replaced(folder / ".credentials.json")
    folder.chmod(0o555)
    open_to_all(tmp_path)
    out = await asyncio.to_thread(as_plain_user, TRY_IT, folder / ".credentials.json")
    assert json.loads(out) == [False, "refused"]
