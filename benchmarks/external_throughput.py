"""10,000 distinct prompts through ai_query, against a bare aiohttp gather loop, in one run.

The provider is a raw asyncio server in a process of its own, at 0 and at 100 ms; both sides keep 256 requests in
flight. A fresh set of prompts is used every time, and the best of three runs counts on each side.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import aiohttp
import orjson

from benchmarks.report import report
from benchmarks.setting import connected

PROMPTS = 10_000
IN_FLIGHT = 256
RUNS = 3

_BODY = json.dumps({
    "id": "chatcmpl-0", "object": "chat.completion", "created": 1, "model": "gpt-4o",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 120}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 120, "total_tokens": 140},
}).encode()  # fmt: skip
_REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


class Provider(asyncio.Protocol):
    """Answers every request alike, `delay` seconds after its last byte."""

    def __init__(self, loop: asyncio.AbstractEventLoop, delay: float) -> None:
        self.loop, self.delay, self.buffer = loop, delay, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:") + 15
            stop = end + 4 + int(head[at:].split(b"\r\n", 1)[0])
            if len(self.buffer) < stop:
                return
            self.buffer = self.buffer[stop:]
            if delay := self.wait():
                self.loop.call_later(delay, self.answer)
            else:
                self.answer()

    def wait(self) -> float:
        return self.delay

    def answer(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_REPLY)


def serve(kind: type[Provider], delay: float, pipe: Connection) -> None:
    """Run a provider and tell its port."""
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: kind(loop, delay), "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def provider(delay: float, kind: type[Provider] = Provider) -> Iterator[str]:
    """Start a provider process and yield its base URL."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(kind, delay, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.terminate()
        process.join()


async def gather_loop(url: str, prompts: list[str]) -> list[str]:
    """Ask as a careful person would by hand: one session, a bounded pool, gather."""

    async def ask(prompt: str) -> str:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": prompt}], "temperature": 0.0}
        async with session.post(f"{url}/chat/completions", data=orjson.dumps(body), headers=headers) as response:
            return orjson.loads(await response.read())["choices"][0]["message"]["content"]

    headers = {"authorization": "Bearer sk-x", "content-type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:
        return await asyncio.gather(*map(ask, prompts))


_numbers = itertools.count()


def best(work: Callable[[int], int]) -> float:
    """Return the most rows a second of a few runs; `work` gets a number that makes its prompts new."""
    rates = []
    for _ in range(RUNS):
        started = time.perf_counter()
        rows = work(next(_numbers))
        rates.append(rows / (time.perf_counter() - started))
    return max(rates)


def measure(delay: float) -> dict:
    def bare(number: int) -> int:
        return len(asyncio.run(gather_loop(url, [f"prompt {number} {i}" for i in range(PROMPTS)])))

    def ours(number: int) -> int:
        query = f"SELECT ai_query('chat', 'prompt {number} ' || i) FROM range({PROMPTS}) t(i)"
        return len(con.execute(query).fetchall())

    with provider(delay) as url, connected(url, IN_FLIGHT) as con:
        ours(next(_numbers))  # connections are opened, as they are in the bare loop's first run
        by_hand, through = best(bare), best(ours)
    return {
        "provider": f"{delay * 1000:.0f} ms",
        "gather loop rows/s": by_hand,
        "ai_query rows/s": through,
        "ratio": through / by_hand,
    }


def main() -> None:
    rows = [measure(0.0), measure(0.1)]
    aims = [(f"{row['provider']}: >= 0.9 of the bare loop", row["ratio"] >= 0.9) for row in rows]
    report("external_throughput", rows, aims)
