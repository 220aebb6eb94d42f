"""Lets so many through at once, on one event loop; the others stand in line."""

from __future__ import annotations

import asyncio
from collections import deque


class Gate:
    """A semaphore whose size may be another one each time it is asked."""

    def __init__(self) -> None:
        self._inside = 0
        self._line: deque[asyncio.Future[None]] = deque()

    async def enter(self, most: int) -> None:
        """Wait until fewer than `most` are inside."""
        while self._inside >= most:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._line.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place in self._line:
                    self._line.remove(place)
                else:  # it was called, and goes away all the same
                    self._call_next()
                raise
        self._inside += 1

    def leave(self) -> None:
        """Make room for the next."""
        self._inside -= 1
        self._call_next()

    def _call_next(self) -> None:
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return
