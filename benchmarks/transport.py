"""Which HTTP client carries the hot path: requests/s and CPU per request, with many in flight.

    python benchmarks/transport.py [--seconds 2] [--in-flight 64 256 1000] [--clients pyreqwest aiohttp]

Every client posts the same 1 KB of JSON over kept connections to a raw asyncio server in another process,
reads the 1 KB answer whole, and is measured in a process of its own. The machine's speed is in every
figure: compare rows of one run, not runs. Prints a table and, with `--json FILE`, writes it too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "serving"))

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "word " * 190}]}).encode()
ANSWER = json.dumps({"choices": [{"message": {"content": "word " * 190}}]}).encode()
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(ANSWER),
    ANSWER,
)
HEADERS = {"authorization": "Bearer sk-loopback", "content-type": "application/json"}

Post = Callable[[str], Awaitable[int]]


class Answering(asyncio.Protocol):
    """Answers each request as soon as its last byte is in; parses only its length."""

    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:") + 15
            size = int(head[at:].split(b"\r\n", 1)[0])
            if len(self.buffer) < end + 4 + size:
                return
            self.buffer = self.buffer[end + 4 + size :]
            self.transport.write(REPLY)


def new_loop():
    """Return uvloop's loop where it is installed, else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def serve(listening: socket.socket) -> None:
    """Serve for ever."""
    loop = new_loop()
    loop.run_until_complete(loop.create_server(Answering, sock=listening, backlog=4096))
    loop.run_forever()


@asynccontextmanager
async def aiohttp_client(in_flight: int):
    import aiohttp

    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def post(url: str) -> int:
            async with session.post(url, headers=HEADERS, data=BODY) as answer:
                return len(await answer.read())

        yield post


@asynccontextmanager
async def pyreqwest_client(_in_flight: int):
    from pyreqwest.client import ClientBuilder

    async with ClientBuilder().build() as client:

        async def post(url: str) -> int:
            request = client.post(url).headers(HEADERS).body_bytes(BODY).build()
            return len(await (await request.send()).bytes())

        yield post


@asynccontextmanager
async def wreq_client(_in_flight: int):
    import wreq

    client = wreq.Client()

    async def post(url: str) -> int:
        answer = await client.post(url, headers=HEADERS, body=BODY)
        return len(await answer.bytes())

    yield post


@asynccontextmanager
async def httpx_client(in_flight: int):
    import httpx

    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:

        async def post(url: str) -> int:
            return len((await client.post(url, headers=HEADERS, content=BODY)).content)

        yield post


@asynccontextmanager
async def transport_client(_in_flight: int):
    from aiquery_serving.entities.external.transport import HttpTransport

    transport = HttpTransport()

    async def post(url: str) -> int:
        return len((await transport.post(url, headers=HEADERS, body=BODY)).body)

    yield post
    await transport.close()


CLIENTS = {
    "pyreqwest": pyreqwest_client,
    "aiohttp": aiohttp_client,
    "wreq": wreq_client,
    "httpx": httpx_client,
    "aiquery": transport_client,
}


def cpu() -> float:
    """Return the CPU seconds of this process, all threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def load(post: Post, url: str, in_flight: int, seconds: float) -> tuple[int, float]:
    """Keep `in_flight` posts going; return how many ended and the seconds they took."""
    done, until = 0, time.perf_counter() + seconds

    async def one_after_another() -> None:
        nonlocal done
        while time.perf_counter() < until:
            assert await post(url) == len(ANSWER)
            done += 1

    start = time.perf_counter()
    await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
    return done, time.perf_counter() - start


async def measure(name: str, url: str, in_flight: int, seconds: float) -> tuple[float, float]:
    """Return requests per second and microseconds of CPU per request, after a warm-up."""
    async with CLIENTS[name](in_flight) as post:
        await load(post, url, in_flight, seconds / 4)
        before = cpu()
        done, took = await load(post, url, in_flight, seconds)
        return done / took, (cpu() - before) / done * 1e6


def child(name, url, in_flight, seconds, results) -> None:
    """Measure one client in this process."""
    loop = new_loop()
    try:
        results.put(loop.run_until_complete(measure(name, url, in_flight, seconds)))
    except ImportError as missing:
        results.put(str(missing))


def run(names, levels, seconds) -> list[dict[str, object]]:
    """Measure every client at every level against one server."""
    context = multiprocessing.get_context("spawn")
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/chat/completions"
    server = context.Process(target=serve, args=(listening,), daemon=True)
    server.start()
    rows = []
    for name in names:
        for in_flight in levels:
            results = context.Queue()
            process = context.Process(target=child, args=(name, url, in_flight, seconds, results))
            process.start()
            found = results.get()
            process.join()
            if isinstance(found, str):
                print(f"{name}: {found}")
                break
            rows.append({"client": name, "in_flight": in_flight, "rps": found[0], "cpu_us": found[1]})
            print(f"{name:12}{in_flight:>6} in flight{found[0]:>12,.0f}/s{found[1]:>8.0f} µs", flush=True)
    server.terminate()
    return rows


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--in-flight", type=int, nargs="+", default=[64, 256, 1000])
    options.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    rows = run(chosen.clients, chosen.in_flight, chosen.seconds)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
