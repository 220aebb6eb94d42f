"""The event loop on which every request of the process runs, and how an engine's thread waits for it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final, TypeAlias, TypeVar

from aiquery_serving.errors import CancelledCallError

#: How often a waiting engine thread looks at its cancel flag, in seconds.
SLICE: Final = 0.05

T = TypeVar("T")
#: Says whether the caller does not want the answers any more.
Cancelled: TypeAlias = Callable[[], bool]


def never() -> bool:
    """Want the answers, however long they take."""
    return False


class EngineThread:
    """The event loop on which every request of this process runs; started at first use."""

    def __init__(self) -> None:
        # Reentrant: a signal handler may ask for the loop on a thread that is asking already.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop, starting its thread when there is none (or after a fork)."""
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                self._loop, self._pid = _new_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name="aiquery-engine", daemon=True).start()
            return self._loop

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop())

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have a function called on the loop soon, from any thread."""
        self.loop().call_soon_threadsafe(function, *arguments)

    def run(self, work: Coroutine[Any, Any, T], cancelled: Cancelled | None = None) -> T:
        """Wait for a coroutine in slices, so that `cancelled` and Ctrl-C end the wait.

        Raises:
            CancelledCallError: `cancelled` said so; the coroutine was cancelled too.
        """
        future = self.submit(work)
        try:
            while True:
                try:
                    return future.result(SLICE)
                except FutureTimeoutError:
                    if future.done():
                        raise
                if cancelled is not None and cancelled():
                    msg = "The query was interrupted; requests that were under way are cancelled."
                    raise CancelledCallError(msg)
        except BaseException:
            future.cancel()
            raise


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's loop where there is one (not on Windows): it carries a fifth more requests."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


#: The one engine thread of the process, shared by every workspace and connection.
engine_thread: Final = EngineThread()
