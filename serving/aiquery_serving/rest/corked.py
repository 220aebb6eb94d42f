"""Writes that belong together as one: a reply's head and body leave in one packet.

Every write to a socket is a call of the system that may wake whoever reads; uvicorn makes two for each reply.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Corked(asyncio.Transport):
    """A transport that sends what was written to it once in a turn of the event loop.

    Args:
        transport: What really sends.
        loop: The event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send some bytes at the end of this turn."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(bytes(data))

    def close(self) -> None:
        """Send what is waiting, and hang up."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Hang up at once."""
        self._waiting.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """Say whether this was hung up, or is about to be."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Let the client wait."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the real transport knows of its socket."""
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Return the bytes that have not left yet."""
        return self._transport.get_write_buffer_size() + sum(map(len, self._waiting))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Say how many bytes may wait before the protocol is told to pause."""
        self._transport.set_write_buffer_limits(high, low)

    def _flush(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            # Who hung up meanwhile gets nothing any more; uvloop would raise.
            if not self._transport.is_closing():
                self._transport.write(b"".join(waiting))
