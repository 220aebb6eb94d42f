"""A small HTTP/1.1 server on a free loopback port, in a thread of its own.

It knows requests and replies, connections and delays, and no provider. A reply may be late, cut off
or withheld, which is what a real network does to a client. Answers thousands of requests a second.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Self, TypeAlias

_END = b"\r\n\r\n"
_PHRASES = {int(status): status.phrase for status in HTTPStatus} | {529: "Overloaded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client sent; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What to send back: after `delay` seconds, and only the first `keep` bytes of the body.

    A `keep` under the body's length closes the connection there, although content-length promised more;
    `dropped` closes it without a single byte. With `packets` the body comes in these pieces instead, one
    HTTP chunk each, with `pause` seconds after each.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    keep: int | None = None
    dropped: bool = False
    packets: tuple[bytes, ...] | None = None
    pause: float = 0.0


Answer: TypeAlias = Callable[[Request], Reply]


@dataclass(slots=True)
class Traffic:
    """What the server has seen so far."""

    connections: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    abandoned: int = 0


class LoopbackServer:
    """Serves `answer` on `http://127.0.0.1:port` while its `with` block lasts.

    Examples:
        >>> with LoopbackServer(lambda request: Reply(body=b"hi")) as server:
        ...     server.origin.startswith("http://127.0.0.1:")
        True
    """

    def __init__(self, answer: Answer, *, tls: ssl.SSLContext | None = None) -> None:
        self.traffic = Traffic()
        self._tls = tls
        self.port = 0
        self._answer = answer
        self._listening = threading.Event()
        self._connections: set[_Connection] = set()

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="loopback-server", daemon=True)
        self._thread.start()
        self._listening.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await self._loop.create_server(
            lambda: _Connection(self._loop, self._answer, self.traffic, self._connections),
            "127.0.0.1",
            0,
            backlog=4096,
            ssl=self._tls,
        )
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._stop.wait()
        # Connections that are being made just now are tasks. A closed server cannot make them, and leaks their
        # sockets; once made they can be closed.
        while len(asyncio.all_tasks(self._loop)) > 1:  # noqa: ASYNC110 - nobody sets an event when one is made
            await asyncio.sleep(0)
        server.close()
        for _ in range(100):
            await asyncio.sleep(0.01)
            making = len(asyncio.all_tasks(self._loop)) > 1
            for connection in list(self._connections):
                connection.abort()
            if not making and not self._connections:
                break


class _Connection(asyncio.Protocol):
    """One client connection: a request at a time, kept alive."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        answer: Answer,
        traffic: Traffic,
        connections: set[_Connection],
    ) -> None:
        self._loop = loop
        self._answer = answer
        self._traffic = traffic
        self._connections = connections
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._pending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._traffic.connections += 1
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
            self._traffic.in_flight -= 1
            self._traffic.abandoned += 1

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._pending is None and (request := self._next()) is not None:
            self._begin(request)

    def _next(self) -> Request | None:
        end = self._buffer.find(_END)
        if end < 0:
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        start = end + len(_END)
        stop = start + int(headers.get("content-length", "0"))
        if len(self._buffer) < stop:
            return None
        method, path, _ = first.split(" ", 2)
        body, self._buffer = self._buffer[start:stop], self._buffer[stop:]
        return Request(method=method, path=path, headers=headers, body=body)

    def _begin(self, request: Request) -> None:
        traffic = self._traffic
        traffic.in_flight += 1
        traffic.max_in_flight = max(traffic.max_in_flight, traffic.in_flight)
        reply = self._answer(request)
        if reply.delay > 0:
            self._pending = self._loop.call_later(reply.delay, self._finish_late, reply)
        else:
            self._finish(reply)

    def _finish_late(self, reply: Reply) -> None:
        self._pending = None
        self._finish(reply)
        self.data_received(b"")

    def _finish(self, reply: Reply) -> None:
        assert self._transport is not None
        if reply.packets is not None and not reply.dropped:
            self._transport.write(_head(reply, {"transfer-encoding": "chunked"}))
            self._send(iter(_kept(reply.packets, reply.keep)), reply)
            return
        self._traffic.in_flight -= 1
        if reply.dropped:
            self._transport.abort()
            return
        self._transport.write(_head(reply, {"content-length": str(len(reply.body))}) + reply.body[: reply.keep])
        if reply.keep is not None:
            self._transport.close()

    def _send(self, packets: Iterator[bytes], reply: Reply) -> None:
        """Send packets until one is followed by a pause; end the body after the last."""
        assert self._transport is not None
        for packet in packets:
            self._transport.write(b"%x\r\n%b\r\n" % (len(packet), packet))
            if reply.pause > 0:
                self._pending = self._loop.call_later(reply.pause, self._send_late, packets, reply)
                return
        self._traffic.in_flight -= 1
        if reply.keep is None:
            self._transport.write(b"0\r\n\r\n")
        else:
            self._transport.close()

    def _send_late(self, packets: Iterator[bytes], reply: Reply) -> None:
        self._pending = None
        self._send(packets, reply)
        self.data_received(b"")


def _kept(packets: Iterable[bytes], keep: int | None) -> Iterator[bytes]:
    """Return the packets, or as many as hold the first `keep` bytes."""
    left = sys.maxsize if keep is None else keep
    for packet in packets:
        if part := packet[:left]:
            left -= len(part)
            yield part


def _head(reply: Reply, framing: Mapping[str, str]) -> bytes:
    headers = {"content-type": "application/json", **reply.headers, **framing}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {reply.status} {_PHRASES.get(reply.status, 'Status')}\r\n{lines}\r\n".encode("latin-1")
