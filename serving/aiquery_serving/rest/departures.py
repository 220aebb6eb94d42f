"""Clients that go away while they are being answered: what is still under way for them is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Self

from aiquery_serving.errors import CancelledCallError

if TYPE_CHECKING:
    from types import TracebackType

    from aiquery_serving.rest.bodies import Receive

#: How long an answer takes before anybody looks, in seconds: most are there earlier, and looking costs.
UNWATCHED: Final = 0.05


class Attended:
    """Runs its `with` block only while the client is there.

    Args:
        receive: Says when the client goes away; the request has been read.

    Raises:
        CancelledCallError: The client went away; what the block awaited was cancelled.
    """

    __slots__ = ("_gone", "_receive", "_task", "_timer", "_watch")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(loop)
        self._timer = loop.call_later(UNWATCHED, self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._gone and kind is asyncio.CancelledError and self._task is not None:
            self._task.uncancel()
            raise CancelledCallError("The client went away before its answer was complete.")

    def _begin(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._task is not None:
            self._task.cancel()
