"""Measures what the proxy costs, in ratios within one run: python util/bench.py [LOAD …] [--rounds N] [--loop plain].

Each load is played against the upstream directly, through nginx (when installed), through a naive proxy, and through
Tavern Proxy with default settings, turn about, on loopback. CPU is that of the whole process between, per request or
event; added is the median time over going direct. Behind the loads come memory, start-up, the loop's lag under bodies
of 32 MiB, what becomes of a connection in a minute of silence, and the cache planner alone (bench_plan.py). Machines
are noisy: compare the columns of one run only. It needs Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bench_plan
from bench_servers import WORDS, length_of

from server.serve import spare_the_collector

TOP = Path(__file__).resolve().parent.parent
KEY = "sk-ant-api03-bench"
SERVE = [sys.executable, str(TOP / "util" / "bench_servers.py")]


@dataclass(frozen=True)
class Load:
    """`requests` in all over `connections`; a streamed one brings `events` deltas, `pause` seconds apart."""

    name: str
    body: Callable[[], dict[str, Any]]
    requests: int
    connections: int = 1
    events: int = 0
    pause: float = 0.0

    @property
    def units(self) -> int:
        """What the CPU is divided by: events of a stream, or requests."""
        return self.requests * max(self.events, 1)


def chat(size: int, messages: int = 2) -> dict[str, Any]:
    """A chat of about `size` bytes of prose."""
    each = max(size // max(messages, 1), 1)
    text = (WORDS * (each // len(WORDS) + 1))[:each]
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": f"{i} {text}"}]}
        for i in range(messages)
    ]
    if turns[-1]["role"] == "assistant":
        turns.append({"role": "user", "content": [{"type": "text", "text": "Go on."}]})
    return {"model": "claude-sonnet-4-6", "max_tokens": 300, "stream": False, "messages": turns}


def picture(size: int) -> dict[str, Any]:
    """A short chat with one PNG of `size` bytes of base64."""
    import base64
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = 600
    rows = b"".join(b"\0" + os.urandom(side * 3) for _ in range(side))
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )
    data = base64.b64encode(png).decode()
    body = chat(500)
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    body["messages"].append({"role": "user", "content": [block, {"type": "text", "text": f"Look ({size})."}]})
    return body


LOADS = (
    Load("2 KB, one connection", lambda: chat(1800), 1500),
    Load("2 KB, 256 connections", lambda: chat(1800), 4000, connections=256),
    Load("1 MB of prose in 230 messages", lambda: chat(1_000_000, 230), 60),
    Load("1.4 MB image", lambda: picture(1_400_000), 40),
    Load("300 paced events", lambda: {**chat(1800), "stream": True}, 8, connections=8, events=300, pause=0.02),
    Load("300 events at once", lambda: {**chat(1800), "stream": True}, 60, events=300),
    Load("1000 open streams", lambda: {**chat(1800), "stream": True}, 1000, connections=1000, events=50, pause=0.1),
)


NGINX = """daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 8192; }}
http {{ access_log off; client_body_temp_path {dir}/body; client_max_body_size 64m; client_body_buffer_size 4m;
 proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
 upstream up {{ server {upstream}; keepalive 2048; }}
 server {{ listen 127.0.0.1:{port} backlog=2048; keepalive_requests 100000;
  location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection "";
   proxy_buffering off; }} }} }}
"""


async def play(load: Load, port: int, raw: bytes) -> list[float]:
    """Seconds from sending each request to its first byte of body (of a stream), or to its end."""
    times: list[float] = []
    left = iter(range(load.requests))
    lines = (
        "POST /v1/messages HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"x-api-key: {KEY}",
        "anthropic-version: 2023-06-01",
        f"anthropic-user-profile-id: {load.events}/{load.pause}",
        "Content-Type: application/json",
        f"Content-Length: {len(raw)}",
        "\r\n",
    )
    head = "\r\n".join(lines).encode()

    async def one_connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
        for _ in left:
            begun = time.perf_counter()
            writer.write(head + raw)
            answer = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in answer.split(b"\r\n")[0]:
                raise RuntimeError(answer.decode() + (await reader.read(500)).decode())
            if b"transfer-encoding: chunked" not in answer.lower():
                await reader.readexactly(length_of(answer))
                times.append(time.perf_counter() - begun)
                continue
            first = True
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
                if first:
                    times.append(time.perf_counter() - begun)
                    first = False
            await reader.readline()
        writer.close()

    await asyncio.gather(*(one_connection() for _ in range(load.connections)))
    return times


def cpu(pid: int) -> float:
    """CPU seconds of a process and its children so far (Linux)."""
    total = 0.0
    for one in [pid, *children(pid)]:
        for thread in Path(f"/proc/{one}/task").iterdir():
            with suppress(OSError):  # a thread that ended meanwhile
                total += int((thread / "schedstat").read_text().split()[0]) / 1e9
    return total


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory(pid: int) -> float:
    """Resident MiB of a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"nothing listens at {port}")


@contextmanager
def process(port: int, command: Sequence[str], **environ: str) -> Iterator[int]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | environ
    running = subprocess.Popen(command, cwd=TOP, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield running.pid
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(40)


def product(loop: str) -> list[str]:
    """The command that runs Tavern Proxy, without uvloop if the loop is to be the plain one."""
    if loop != "plain":
        return [sys.executable, "-m", "server"]
    plainly = "import sys; sys.modules['uvloop'] = None; from server.__main__ import main; sys.exit(main())"
    return [sys.executable, "-c", plainly]


def settings(port: int, upstream: int, folder: str) -> dict[str, str]:
    """The defaults, but for where things are."""
    return {
        "PROXY_PORT": str(port),
        "PROXY_DATA_DIR": str(Path(folder) / f"data-{port}"),
        "PROXY_API_BASE_URL": f"http://127.0.0.1:{upstream}",
        "PROXY_AUTO_OPEN_BROWSER": "false",
        "HOME": folder,
    }


def contestants(
    stack: ExitStack, upstream: int, folder: str, only: Sequence[str], loop: str
) -> dict[str, tuple[int, int]]:
    """`{name: (port, pid)}` of everything that can be compared on this machine."""
    found: dict[str, tuple[int, int]] = {}
    if shutil.which("nginx") and "nginx" in only:
        port = free_port()
        config = Path(folder) / "nginx.conf"
        config.write_text(NGINX.format(dir=folder, port=port, upstream=f"127.0.0.1:{upstream}"))
        found["nginx"] = (port, stack.enter_context(process(port, ["nginx", "-c", str(config), "-p", folder])))
    if "naive" in only:
        port = free_port()
        command = [*SERVE, "naive", str(port), f"http://127.0.0.1:{upstream}"]
        found["naive"] = (port, stack.enter_context(process(port, command)))
    port = free_port()
    running = process(port, product(loop), **settings(port, upstream, folder))
    found["tavern"] = (port, stack.enter_context(running))
    return found


def measure(load: Load, direct: int, others: dict[str, tuple[int, int]], rounds: int) -> dict[str, Any]:
    """One load against everything, turn about: CPU per unit in µs, median time in ms."""
    raw = json.dumps(load.body()).encode()
    spent: dict[str, list[float]] = {name: [] for name in others}
    took: dict[str, list[float]] = {name: [] for name in ("direct", *others)}
    for _ in range(rounds):
        took["direct"] += asyncio.run(play(load, direct, raw))
        for name, (port, pid) in others.items():
            before = cpu(pid)
            took[name] += asyncio.run(play(load, port, raw))
            spent[name].append((cpu(pid) - before) / load.units * 1e6)
    return {
        "load": load.name,
        "unit": "event" if load.events else "request",
        "cpu_us": {name: statistics.median(values) for name, values in spent.items()},
        "ms": {name: statistics.median(values) * 1000 for name, values in took.items()},
        "memory_mib": memory(others["tavern"][1]),
    }


def show(row: dict[str, Any]) -> str:
    cpu_us, ms = row["cpu_us"], row["ms"]
    base = cpu_us.get("nginx") or 0.0
    cells = [f"{row['load']:32}", f"{cpu_us['tavern']:9.0f} µs/{row['unit']:8}"]
    cells.append(f"× nginx {cpu_us['tavern'] / base:6.1f}" if base else "× nginx      –")
    cells.append(f"× naive {cpu_us['tavern'] / cpu_us['naive']:5.2f}" if cpu_us.get("naive") else "× naive     –")
    cells.append(f"added {ms['tavern'] - ms['direct']:7.2f} ms (× direct {ms['tavern'] / ms['direct']:.1f})")
    cells.append(f"{row['memory_mib']:5.0f} MiB")
    return "  ".join(cells)


def start_up(loop: str, upstream: int, folder: str) -> str:
    """CPU from the start to the first answer, against importing the web framework alone."""
    ours, imports = [], []
    for _ in range(5):
        port = free_port()
        with process(port, product(loop), **settings(port, upstream, folder)) as pid:
            ask(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            ours.append(cpu(pid))
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", "import aiohttp.web"], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        imports.append(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime)
    ratio = statistics.median(ours) / statistics.median(imports)
    return f"CPU to the first answer: {statistics.median(ours):.2f} s, × import aiohttp.web {ratio:.2f}"


def ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(request)
        return connection.recv(65536)


def memories(loop: str, upstream: int, folder: str) -> str:
    """Resident memory of a process that has answered one request, and what a thousand open streams add."""
    port = free_port()
    load = next(load for load in LOADS if load.name == "1000 open streams")
    raw = json.dumps(load.body()).encode()
    with process(port, product(loop), **settings(port, upstream, folder)) as pid:
        asyncio.run(play(replace(load, requests=1, connections=1, events=1), port, raw))
        rest, most = memory(pid), 0.0

        async def watched() -> None:
            nonlocal most
            playing = asyncio.create_task(play(load, port, raw))
            while not playing.done():
                most = max(most, memory(pid))
                await asyncio.sleep(0.1)
            await playing

        asyncio.run(watched())
    return f"memory at rest: {rest:.0f} MiB; per open stream: {(most - rest) * 1024 / load.connections:.0f} KiB"


def silence(loop: str, upstream: int, folder: str, seconds: float) -> str:
    """How many upstream connections there are before a first turn, and how many are new in one after a silence."""
    port = free_port()
    raw = json.dumps(chat(1800)).encode()
    others = connections_to(upstream)
    with process(port, product(loop), **settings(port, upstream, folder)):
        time.sleep(0.5)
        before = connections_to(upstream) - others
        asyncio.run(play(replace(LOADS[0], requests=1), port, raw))
        first = connections_to(upstream) - others
        time.sleep(seconds)
        asyncio.run(play(replace(LOADS[0], requests=1), port, raw))
        second = connections_to(upstream) - others
    return (
        f"connections waiting before the first turn: {len(before)}, opened by it: {len(first - before)}, "
        f"by one after {seconds:.0f} s of silence: {len(second - first)}"
    )


def connections_to(port: int) -> set[str]:
    """The local ends of the established connections to a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "01" and row[2].endswith(f":{port:04X}")}


def lag(loop: str, upstream: int, folder: str) -> str:
    """How late the event loop's timers are while bodies of 32 MiB pass."""
    port = free_port()
    body = chat(31 * 2**20, 400)
    load = Load("32 MiB", lambda: body, 6, connections=2)
    command = [*SERVE, "probed", str(port), str(upstream), folder, loop]
    with process(port, command):
        asyncio.run(play(load, port, json.dumps(body).encode()))
    late = sorted(json.loads((Path(folder) / "lag.json").read_text()))
    p99, worst = late[int(len(late) * 0.99)] * 1000, late[-1] * 1000
    return f"loop lag with bodies of 32 MiB: p99 {p99:.0f} ms, at most {worst:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("load", nargs="*", help="words of the loads to play (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="nginx,naive", help="what to compare with")
    parser.add_argument("--loop", choices=("fastest", "plain"), default="fastest", help="plain: without uvloop")
    parser.add_argument("--silence", type=float, default=60, help="seconds between two turns; 0 leaves it out")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    chosen = [load for load in LOADS if not given.load or any(word in load.name for word in given.load)]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        direct = free_port()
        stack.enter_context(process(direct, [*SERVE, "upstream", str(direct)]))
        others = contestants(stack, direct, folder, given.only.split(","), given.loop)
        for load in chosen:
            row = measure(load, direct, others, given.rounds)
            print(json.dumps(row) if given.json else show(row), flush=True)
        if given.load or given.json:
            return
        print(memories(given.loop, direct, folder), flush=True)
        print(start_up(given.loop, direct, folder), flush=True)
        print(lag(given.loop, direct, folder), flush=True)
        if given.silence:
            print(silence(given.loop, direct, folder, given.silence), flush=True)
    spare_the_collector()
    for line in bench_plan.report():
        print(line, flush=True)


if __name__ == "__main__":
    main()
