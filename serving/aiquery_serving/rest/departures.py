"""Clients that go away while they are being answered: what is still under way for them is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Self

from aiquery_serving.errors import CancelledCallError

if TYPE_CHECKING:
    from types import TracebackType

    from aiquery_serving.rest.bodies import Receive
    from aiquery_serving.rest.deadlines import Deadlines

#: How long an answer takes before anybody looks, in seconds.
UNWATCHED: Final = 0.05


class Attended:
    """Runs its `with` block only while the client is there.

    Args:
        receive: Says when the client goes away; the request has been read.
        patience: Says when somebody begins to look: most answers are there earlier, and looking costs.

    Raises:
        CancelledCallError: The client went away; what the block awaited was cancelled.
    """

    __slots__ = ("_gone", "_mark", "_patience", "_receive", "_task", "_watch")

    def __init__(self, receive: Receive, patience: Deadlines) -> None:
        self._receive, self._patience = receive, patience
        self._gone = False
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._mark = self._patience.set(self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patience.lift(self._mark)
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
