"""Fakes for the tests of programs that use aiquery, and for its own: a clock and a model by script."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any, TypeAlias

from aiquery_serving.messages import CHAT, Json, Response

Scripted: TypeAlias = Response | Exception | str


class ManualClock:
    """A clock that stands still until told, or until everybody waits for it.

    Args:
        start: The seconds it shows at first.
        automatic: Move on to the next sleeper's time once the event loop has nothing else to do. Turn it
            off to move time with `advance` alone, or when work runs on other threads.

    Examples:
        >>> clock = ManualClock()
        >>> asyncio.run(clock.sleep(3600))
        >>> clock.now()
        3600.0
    """

    #: Turns of the event loop without a new sleeper after which everybody is taken to wait.
    QUIET_TURNS = 50
    #: What `epoch_ms` shows at 0 seconds.
    EPOCH_MS = 1_700_000_000_000

    def __init__(self, start: float = 0.0, *, automatic: bool = True) -> None:
        self._now = start
        self._automatic = automatic
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._watching = False
        self._quiet = 0

    def now(self) -> float:
        """Return the seconds it shows."""
        return self._now

    def epoch_ms(self) -> int:
        """Return the same as a wall clock would, in milliseconds since 1970."""
        return self.EPOCH_MS + int(self._now * 1000)

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has moved on by `seconds`."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._numbers), done))
        self._quiet = 0
        if self._automatic and not self._watching:
            self._watching = True
            loop.call_soon(self._watch, loop)
        await done

    async def advance(self, seconds: float) -> None:
        """Move on, waking sleepers in order; each wakes at its own time and may sleep again."""
        until = self._now + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= until:
            self._wake_next()
            await self._settle()
        self._now = until

    async def _settle(self) -> None:
        for _ in range(self.QUIET_TURNS):
            await asyncio.sleep(0)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._quiet += 1
        if self._quiet > self.QUIET_TURNS:
            self._quiet = 0
            self._wake_next()
        self._watching = bool(self._sleepers)
        if self._watching:
            loop.call_soon(self._watch, loop)

    def _wake_next(self) -> None:
        """Move to the next sleeper that still waits; those that gave up do not move time."""
        while self._sleepers:
            due, _, done = heapq.heappop(self._sleepers)
            if not done.done():
                self._now = max(self._now, due)
                done.set_result(None)
                return


class ScriptedEntity:
    """A served entity that answers from a script and remembers what it was asked.

    Args:
        script: A function of the request body, or answers in order, the last of which repeats. An answer is a
            `Response`, an error to raise, or the text of a chat message.
        task: Its task.
        clock: Takes `latency` seconds of this clock for every answer.
        latency: Seconds.

    Examples:
        >>> entity = ScriptedEntity(["Yes."])
        >>> asyncio.run(entity.send({"messages": []})).body["choices"][0]["message"]["content"]
        'Yes.'
    """

    def __init__(
        self,
        script: Callable[[Mapping[str, Any]], Scripted] | Iterable[Scripted],
        *,
        task: str = CHAT,
        clock: ManualClock | None = None,
        latency: float = 0.0,
    ) -> None:
        self.task = task
        self._script = script if callable(script) else _in_order(list(script))
        self._clock, self._latency = clock, latency
        #: The request bodies, in the order in which they came.
        self.asked: list[Json] = []
        #: When they came, by the clock.
        self.asked_at: list[float] = []
        self.in_flight = 0
        #: The most requests that were in flight at once.
        self.most_in_flight = 0
        self.closed = False

    async def send(self, body: Mapping[str, Any]) -> Response:
        """Answer as the script says."""
        self.asked.append(dict(body))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(body)
        finally:
            self.in_flight -= 1

    async def _answer(self, body: Mapping[str, Any]) -> Response:
        if self._clock is not None:
            self.asked_at.append(self._clock.now())
        answer = self._script(body)
        if self._clock is not None and self._latency:
            await self._clock.sleep(self._latency)
        if isinstance(answer, Exception):
            raise answer
        return chat_response(answer) if isinstance(answer, str) else answer

    async def close(self) -> None:
        """Note that connections were given back."""
        self.closed = True


def _in_order(answers: list[Scripted]) -> Callable[[Mapping[str, Any]], Scripted]:
    left = iter(answers)
    return lambda _: next(left, answers[-1])


def chat_response(text: str) -> Response:
    """Return a chat answer with that text."""
    message = {"role": "assistant", "content": text}
    return Response(
        body={
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
    )
