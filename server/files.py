"""Private files, written so that a crash or a full disk loses nothing and no other user learns anything."""

from __future__ import annotations

import errno
import glob
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
LOCK_WAIT = 30.0  # seconds; the longest holder renews a login: two calls of 12 s each, and a write
TEMPORARY = ".tavern-tmp"  # ends the name of a file that is not finished; nobody else's files are called so
POSIX = os.name == "posix"

# Windows has neither flag; O_BINARY exists only there. O_NONBLOCK: opening a named pipe must not wait for a writer.
READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)

Stamp = tuple[int, int, int]


class Damaged(Exception):
    """A file is there and can be read, but is not what it should be; the words say how."""


class Busy(Exception):
    """Another process held a file's lock for longer than we wait."""


def stamp(path: Path) -> Stamp | None:
    """What changes when a file is written or replaced; None when it is not there or out of reach."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_private(path: Path, *, follow: bool = False) -> bytes:
    """The bytes of a regular file of our own user (or root's). Symbolic links are refused unless `follow`.

    Raises FileNotFoundError, Damaged for anything that is no regular file, OSError when it may not be read.
    """
    try:
        handle = os.open(path, READ | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Damaged("is a symbolic link") from None
        if error.errno == errno.ENXIO or path.is_dir():  # a socket; Windows opens no folder
            raise Damaged("is not a regular file") from None
        raise
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise Damaged("is not a regular file")
        if POSIX and os.geteuid() not in (0, about.st_uid) and about.st_uid != 0:
            raise PermissionError(errno.EPERM, "belongs to another user")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def read_json_file(path: Path, *, follow: bool = False) -> dict[str, Any]:
    """The JSON object in a private file. Raises as `read_private`, and Damaged when it is no JSON object."""
    raw = read_private(path, follow=follow)
    if not raw.strip(b" \t\r\n\0"):
        raise Damaged("is empty")
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise Damaged("is not valid JSON") from None
    if not isinstance(value, dict):
        raise Damaged("is not a JSON object")
    return value


def write_private(path: Path, data: bytes, *, like: os.stat_result | None = None, keep_backup: bool = False) -> None:
    """Put `data` in place of `path` in one step: whoever reads sees the old file or the new one, whole.

    The temporary file lies in the same folder, is 0600 from birth, and is on the disk before it takes the name.
    Somebody else's file keeps the rights and the owner it was found with (`like`). With `keep_backup` the old file
    stays as `.bak`. Blocks: call it in a thread. Raises OSError; the old file then stands.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    handle = os.open(temporary, CREATE, PRIVATE_FILE)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if POSIX:
                os.fchmod(handle, stat.S_IMODE(like.st_mode) if like else PRIVATE_FILE)
                if like and os.geteuid() == 0:  # a container's root must not take the file from its owner
                    os.fchown(handle, like.st_uid, like.st_gid)
            os.fsync(handle)
        if keep_backup:
            back_up(path)
        replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def back_up(path: Path) -> None:
    """Keep the file as it stands under `.bak` too. A failure is logged: the new file matters more."""
    backup = path.with_name(path.name + ".bak")
    try:
        backup.unlink(missing_ok=True)
        try:
            os.link(path, backup)
        except FileNotFoundError:
            return  # nothing to keep yet
        except OSError:  # a file system without hard links
            write_private(backup, read_private(path))
    except (OSError, Damaged) as error:
        logger.warning("%s: no backup could be kept: %s", path.name, why(error))


def replace(source: Path, target: Path) -> None:
    """os.replace; on Windows it fails while another process has the file open, so it is tried for a second."""
    until = time.monotonic() + 1
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if POSIX or time.monotonic() > until:
                raise
            time.sleep(0.02)


def sync_folder(folder: Path) -> None:
    """Bring a rename to the disk. Windows has no such call, and some network drives refuse it."""
    if not POSIX:
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def set_aside(path: Path, now: float) -> Path:
    """Give a damaged file another name, `….corrupt.TIME`, so that it is neither used nor lost."""
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.name}.corrupt.{moment}")
    count = 1
    while os.path.lexists(aside):
        count += 1
        aside = path.with_name(f"{path.name}.corrupt.{moment}-{count}")
    os.rename(path, aside)
    return aside


def sweep(path: Path) -> None:
    """Remove what a killed writer of this file left behind. Only for who holds the file's lock."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}"):
        with suppress(OSError):
            leftover.unlink()


def private_folder(folder: Path) -> list[str]:
    """Make the folder, or mend one that others may read. Returns what the owner should know; raises OSError."""
    folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    return mend_rights(folder, PRIVATE_FOLDER)


def mend_rights(path: Path, mode: int = PRIVATE_FILE) -> list[str]:
    """Take a file or folder back from others who could read it. Returns what the owner should know."""
    if not POSIX:
        return []  # a Windows profile folder belongs to its user already
    about = os.stat(path, follow_symlinks=False)
    if stat.S_ISLNK(about.st_mode) or not stat.S_IMODE(about.st_mode) & 0o077:
        return []
    try:
        os.chmod(path, mode)
    except OSError:
        return [f"{path} can be read by other users of this machine. Make it yours alone: chmod {mode:o} {path}"]
    return [f"{path} could be read by other users of this machine; now it is yours alone."]


@asynccontextmanager
async def locked(path: Path, wait: float = LOCK_WAIT) -> AsyncIterator[None]:
    """Hold the lock beside `path` (an OS lock: the death of its holder frees it). Raises Busy, or OSError when no lock
    can be made there."""
    from filelock import AsyncFileLock, Timeout

    lock = AsyncFileLock(
        f"{path}.lock", timeout=wait, mode=PRIVATE_FILE, fallback_to_soft=False, preserve_lock_file=True
    )
    try:
        await lock.acquire()
    except Timeout:
        raise Busy(f"{path.name} is locked by another process") from None
    try:
        yield
    finally:
        await lock.release()


def may_be_replaced(path: Path) -> bool:
    """Whether a new file can take this one's place: its folder is writable, and it is not itself mounted.

    A single file mounted into a container cannot be replaced from within (EBUSY).
    """
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return False
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return not os.path.ismount(path)
    return str(path) not in mount_points(mounts)


def mount_points(mountinfo: str) -> set[str]:
    """The fifth field of each line (proc(5)); a blank in a path stands there as an octal escape."""
    lines = [line.split(" ") for line in mountinfo.splitlines()]
    return {fields[4].replace("\\040", " ") for fields in lines if len(fields) > 4}


def why(error: Exception) -> str:
    """An error's reason in a few words, without the path."""
    return (error.strerror or "failed").lower() if isinstance(error, OSError) else str(error)
