"""The chats on the road: counted, and brought to an end in good order when the proxy stops."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from server.errors import ProxyError
from server.guard import CLOSE
from server.reply import Stream


class Traffic:
    """Requests from the door until their reply has ended."""

    def __init__(self) -> None:
        self._closing = self._stopped = False
        self._busy = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._waiting: set[asyncio.Task[Any]] = set()  # whose answer has not begun
        self._streams: set[Stream] = set()

    @property
    def busy(self) -> int:
        return self._busy

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around the whole of a request, in its task. Raises ProxyError 503 when the proxy stops, at the beginning or
        as long as no answer has begun."""
        task = this_task()
        self._busy += 1
        self._quiet.clear()
        self._waiting.add(task)
        try:
            if self._closing:
                raise stopping()
            yield
        except asyncio.CancelledError:
            if not (self._stopped and task in self._waiting):
                raise
            task.uncancel()
            raise stopping() from None
        finally:
            self._waiting.discard(task)
            self._busy -= 1
            if not self._busy:
                self._quiet.set()

    @contextmanager
    def streaming(self, stream: Stream) -> Iterator[None]:
        """Around the sending of a streamed reply, in the request's task."""
        self._waiting.discard(this_task())
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)

    async def drain(self, patience: float) -> None:
        """Refuse what comes from now on, let what is on the road finish, then end it with a word."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._quiet.wait()
        for stream in self._streams:
            stream.interrupt("the proxy was stopped")
        self._stopped = True
        for task in self._waiting:
            task.cancel()


def this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a handler runs in a task")
    return task


def stopping() -> ProxyError:
    return ProxyError(503, "The proxy is being stopped. Start it again, then send again.", headers=CLOSE)
