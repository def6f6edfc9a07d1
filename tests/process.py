"""The program as a process of its own, for tests that look at it from outside."""

import asyncio
import os
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from tests.fakes import PATIENCE

TOP = Path(__file__).resolve().parent.parent


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Program:
    """A running `python -m server`: its port, and what it has said so far."""

    def __init__(self, process, port):
        self.process, self.port, self.said = process, port, ""
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self):
        while line := await self.process.stdout.readline():
            self.said += line.decode()

    async def says(self, words):
        async with asyncio.timeout(PATIENCE):
            while words not in self.said:
                assert self.process.returncode is None, self.said
                await asyncio.sleep(0.01)

    @property
    def about(self):
        return psutil.Process(self.process.pid)

    def signal(self, number):
        self.process.send_signal(number)

    async def ended(self):
        """The exit status, once all that was said has been read."""
        status = await asyncio.wait_for(self.process.wait(), PATIENCE)
        await self._listening
        return status


@asynccontextmanager
async def program(
    tmp_path, api_base_url="", *, stdout=asyncio.subprocess.PIPE, limit=None, environ=None, dev=True, **settings
):
    """The program on a free port, with warnings as errors and, if `dev`, development checks on; killed at the end."""
    port = settings.pop("port", None) or free_port()
    given = {"data_dir": tmp_path / "data", "auto_open_browser": "false", "api_base_url": api_base_url, **settings}
    if not api_base_url:
        given |= {"practice": "true"}
        del given["api_base_url"]
    environ = {
        **(environ or {}),
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONWARNINGS": "error",
        "PROXY_PORT": str(port),
    }
    environ |= {f"PROXY_{name.upper()}": str(value) for name, value in given.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *(("-X", "dev") if dev else ()), "-m", "server"),
        cwd=TOP,
        env=environ,
        stdout=stdout,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=limit,
    )
    made = Program(process, port) if stdout == asyncio.subprocess.PIPE else None
    try:
        if made is None:
            yield process, port
        else:
            await made.says("To stop:")
            yield made
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if made is not None:
            await made.ended()
