"""Deadlines that are nearly always met: thousands of them a second on one timer of the event loop.

All that wait for one `Deadlines` wait equally long, so the first that began is the first that is due: setting and
lifting one is an entry in a dict, where a timer of its own costs as much as parsing the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Deadlines:
    """Calls back after one and the same delay whoever is not gone by then. Belongs to one event loop.

    Args:
        seconds: The delay.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: dict[object, tuple[float, Callable[[], object]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def set(self, call: Callable[[], object]) -> object:
        """Have something called after the delay; returns what `lift` takes."""
        loop = asyncio.get_running_loop()
        mark = object()
        self._waiting[mark] = loop.time() + self.seconds, call
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._due, loop)
        return mark

    def lift(self, mark: object) -> None:
        """Call nothing any more, if nothing was called yet."""
        self._waiting.pop(mark, None)

    def _due(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        due = []
        for mark, (at, call) in self._waiting.items():
            if at > now:
                break
            due.append((mark, call))
        for mark, call in due:
            del self._waiting[mark]
            call()
        first = next(iter(self._waiting.values()), None)
        self._timer = None if first is None else loop.call_at(first[0], self._due, loop)


class Within:
    """Runs its `with` block, which may await, until a deadline.

    Args:
        deadlines: Says how long.

    Raises:
        TimeoutError: It took longer; what it awaited was cancelled.
    """

    __slots__ = ("_cancelling", "_deadlines", "_late", "_mark", "_task")

    _task: asyncio.Task[object]

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._late = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        self._task, self._cancelling = task, task.cancelling()
        self._mark = self._deadlines.set(self._expire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadlines.lift(self._mark)
        if self._late and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _expire(self) -> None:
        self._late = True
        self._task.cancel()
