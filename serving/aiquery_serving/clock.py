"""The one place where time comes from."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time and waits."""

    def now(self) -> float:
        """Return seconds that only ever grow, for measuring spans."""
        ...

    def epoch_ms(self) -> int:
        """Return the wall clock in milliseconds since 1970, for records."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait, without holding up the loop."""
        ...


class SystemClock:
    """The clock of the machine."""

    def now(self) -> float:
        """Return the monotonic clock in seconds."""
        return time.monotonic()

    def epoch_ms(self) -> int:
        """Return the wall clock in milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        """Wait on the running event loop."""
        await asyncio.sleep(seconds)
