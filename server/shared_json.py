"""A JSON file that other processes write too: what the disk holds, and our edits that are not saved yet, on top."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from server import files
from server.files import Busy, Damaged, why

logger = logging.getLogger(__name__)

Document = Mapping[str, Any]
Edit = Callable[[Document], Document]  # pure: it is run again on whatever the file holds by the time it is saved


def document_after(edits: Iterable[Edit], document: Document) -> Document:
    for edit in edits:
        document = edit(document)
    return document


def anything_goes(document: Document) -> str:
    return ""


class SharedJson:
    """One such file. `document` is what holds now for this process; `edit` changes it at once, `save` the disk too.

    A file of our own (`ours`) keeps a `.bak` and is mended when damaged. Somebody else's is never touched but to save
    an edit, keeps its rights, and a damaged one is waited for: its owner may be in the middle of writing it.
    `check` raises Damaged, or returns why the file must not be written ("" if it may).
    All state changes in the event loop; threads only read and write.
    """

    def __init__(
        self,
        path: Path,
        *,
        ours: bool,
        check: Callable[[Document], str] = anything_goes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.document: Document = {}
        self.closed = ""  # why it must not be written, however well it reads
        self.unreadable = ""  # why the last look failed; until one succeeds, memory stands for the disk
        self.unsaved = ""  # why the last save failed
        self.notes: list[str] = []  # what happened to the file, for the owner
        self._ours = ours
        self._check = check
        self._clock = clock
        self._disk: Document = {}
        self._stamp: files.Stamp | None = None
        self._seen = False  # it has been read well, or found missing, at least once
        self._edits: list[Edit] = []
        self._forget = False  # the backup holds what the owner took out
        self._owed = False  # the file was damaged: what we know must go to the disk, edited or not
        self._looking = asyncio.Lock()

    @property
    def wants_saving(self) -> bool:
        return bool(self._edits or self._owed) and not self.closed

    def edit(self, change: Edit, *, forget: bool = False) -> None:
        """Change the document now; `save` brings it to the disk. With `forget` the backup goes then."""
        self._edits.append(change)
        self._forget |= forget
        self._apply()

    async def look(self) -> None:
        """Read the file again if it changed since. Costs one stat when it has not."""
        if self._is_current():
            return
        async with self._looking:
            if not self._is_current():
                await self.reload()

    async def reload(self, *, mend: bool = False) -> None:
        """Read the file. `mend` is for who holds the lock: a damaged file of ours is set aside, and what we knew, or
        else its backup, takes its place. Without it a damaged file changes nothing here."""
        stamp = files.stamp(self.path)
        try:
            found, closed = await asyncio.to_thread(self._read, self.path)
        except FileNotFoundError:
            self.closed, self.unreadable = "", ""
            folder_is_there = self.path.parent.is_dir()  # a drive or mount that went away empties nothing
            if not self._owed and (folder_is_there or not self._seen):
                self._take({}, None)
        except Damaged as error:
            self._owed = self._ours
            if self._ours and mend:
                await self._mend(str(error))
            if not self._ours:
                self._cannot_read(f"{self.path} {error}")
        except OSError as error:
            self._cannot_read(f"{self.path} cannot be read: {why(error)}. Make it readable for your user again.")
        else:
            if closed and closed != self.closed:
                logger.warning(closed)
            self.closed, self.unreadable, self._owed = closed, "", False
            self._take(found, stamp)
            if self._ours:
                self._note(await asyncio.to_thread(files.mend_rights, self.path))

    @asynccontextmanager
    async def lock(self, wait: float = files.LOCK_WAIT) -> AsyncIterator[None]:
        """Hold the lock beside the file. Raises Busy; and OSError where somebody else's folder lets us make none.

        A folder of our own that cannot be written holds nothing to guard: then we go on from memory, without a lock.
        """
        async with AsyncExitStack() as held:
            try:
                await held.enter_async_context(files.locked(self._target(), wait))
            except OSError:
                if not self._ours:
                    raise
            yield

    async def save(self, wait: float = files.LOCK_WAIT) -> bool:
        """Take the lock and bring all edits to the disk. False if that failed: `unsaved` says why, and they stay."""
        try:
            async with self.lock(wait):
                return await self.save_locked()
        except (Busy, OSError) as error:
            self._fail(why(error))
            return False

    async def save_locked(self) -> bool:
        """The same, for who holds the lock: read what others wrote meanwhile, edit that, write it."""
        await self.reload(mend=True)
        edits = tuple(self._edits)
        wanted, forget = document_after(edits, self._disk), self._forget
        if self.closed or self.unreadable:
            self._fail(self.closed or self.unreadable)
            return False
        if self._owed or forget or wanted != self._disk:
            try:
                stamp = await asyncio.to_thread(self._write, wanted, forget)
            except OSError as error:
                self._fail(why(error))
                return False
            self._disk, self._stamp, self._seen = wanted, stamp, True
        self._edits = self._edits[len(edits) :]
        self._owed, self._forget, self.unsaved = False, False, ""
        self._apply()
        return True

    def _is_current(self) -> bool:
        settled = self._seen and not self.closed and not self.unreadable
        return settled and files.stamp(self.path) == self._stamp

    def _take(self, document: Document, stamp: files.Stamp | None) -> None:
        self._disk, self._stamp, self._seen = document, stamp, True
        self._apply()

    def _apply(self) -> None:
        self.document = document_after(self._edits, self._disk)

    def _cannot_read(self, words: str) -> None:
        if words != self.unreadable:
            logger.warning(words)
        self.unreadable = words

    def _fail(self, reason: str) -> None:
        if reason not in (self.unsaved, self.closed, self.unreadable):  # those have been told
            logger.warning("%s could not be saved: %s. Trying again.", self.path, reason)
        self.unsaved = reason

    def _note(self, sentences: list[str]) -> None:
        for sentence in sentences:
            logger.warning(sentence)
            self.notes.append(sentence)

    async def _mend(self, wrong: str) -> None:
        try:
            aside = await asyncio.to_thread(files.set_aside, self.path, self._clock())
        except OSError as error:
            self.closed = f"{self.path} {wrong} and cannot be moved out of the way: {why(error)}. Please remove it."
            logger.warning(self.closed)
            return
        rescued, source = self._disk, "what this proxy still knew is used instead"
        if not self._seen:
            try:
                backup = self.path.with_name(self.path.name + ".bak")
                (rescued, _), source = await asyncio.to_thread(self._read, backup), "its backup is used instead"
            except (OSError, Damaged):
                rescued, source, self._owed = {}, "sign in again", False
        self._note([f"{self.path.name} {wrong}. It was set aside as {aside.name}; {source}."])
        self._take(rescued, None)

    def _read(self, path: Path) -> tuple[Document, str]:
        found = files.read_json_file(path, follow=not self._ours)
        return found, self._check(found)

    def _target(self) -> Path:
        """The file that is really written: the one behind a symbolic link, where it is not ours."""
        return self.path if self._ours else self.path.resolve()

    def _write(self, document: Document, forget: bool) -> files.Stamp | None:
        path = self._target()
        text = json.dumps(document, ensure_ascii=False, indent=2 if self._ours else None)
        data = text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes its JSON escape again
        if self._ours:
            files.write_private(path, data, keep_backup=not forget)
            if forget:
                path.with_name(path.name + ".bak").unlink(missing_ok=True)
        else:
            files.write_private(path, data, like=path.stat())
        return files.stamp(self.path)
