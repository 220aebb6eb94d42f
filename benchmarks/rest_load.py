"""A closed loop of HTTP clients and a provider that costs next to nothing, for `rest`; each in its own process."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

_END = b"\r\n\r\n"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "x" * 700}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 20, "completion_tokens": 100, "total_tokens": 120},
    }
).encode()
_REPLY = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n\r\n".encode() + ANSWER


class _Messages(asyncio.Protocol):
    """Cuts a stream of bytes into HTTP messages with a content-length."""

    transport: asyncio.Transport

    def connection_made(self, transport) -> None:
        self.transport, self._buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(_END)) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            size = 0 if at < 0 else int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self._buffer) < end + 4 + size:
                return
            self._buffer = self._buffer[end + 4 + size :]
            self.message(head)

    def message(self, head: bytes) -> None:
        raise NotImplementedError


class Provider(_Messages):
    """Answers every request at once with the same chat completion."""

    def message(self, head: bytes) -> None:
        self.transport.write(_REPLY)


class Client(_Messages):
    """Sends the next request when the last one was answered."""

    def __init__(self, request: bytes, spans: list[float], failed: list[bytes]) -> None:
        self._request, self._spans, self._failed = request, spans, failed
        self._since = 0.0

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._send()

    def message(self, head: bytes) -> None:
        self._spans.append(time.perf_counter() - self._since)
        if b" 200 " not in head[:15]:
            self._failed.append(head[:40])
        self._send()

    def _send(self) -> None:
        self._since = time.perf_counter()
        self.transport.write(self._request)


async def load(port: int, path: str, body: bytes, clients: int, seconds: float) -> dict[str, float]:
    """Return requests/s and percentiles of latency in ms, after half a second of warming up."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer any\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    spans: list[float] = []
    failed: list[bytes] = []
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: Client(head.encode() + body, spans, failed), "127.0.0.1", port)
        for _ in range(clients)
    ]
    await asyncio.sleep(0.5)
    spans.clear()
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    took, counted = time.perf_counter() - began, sorted(spans)
    for transport, _ in made:
        transport.abort()
    at = lambda share: counted[min(int(len(counted) * share), len(counted) - 1)] * 1000 if counted else 0.0  # noqa: E731
    return {
        "requests": len(counted),
        "requests/s": len(counted) / took,
        "p50 ms": at(0.5),
        "p99 ms": at(0.99),
        "failed": len(failed),
    }


async def provide(port: int) -> None:
    """Serve the provider until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "provide":
        uvloop.run(provide(int(sys.argv[2])))
    else:
        port, path, clients, seconds = int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
        print(json.dumps(uvloop.run(load(port, path, sys.stdin.buffer.read(), clients, seconds))))
