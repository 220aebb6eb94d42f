"""Makes calls wait for their turn: the asyncio side of learned limits, cool-downs and in-flight windows.

Everything here but `Turns` belongs to one event loop and needs no lock. Waiting calls stand in line
at a `Turnstile`. Only the first of a line is ever asked whether it may go, and one alarm per line
is set for when it may: a thousand waiting calls cost no more than one, keep their order, and never
wake together.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from aiquery_serving import holdups, traffic
from aiquery_serving.clock import Clock
from aiquery_serving.endpoint import Route
from aiquery_serving.errors import AiQueryError, ProviderRateLimitError, TooManyRequestsError
from aiquery_serving.limits import LearnedLimit
from aiquery_serving.messages import Allowance, LimitHint, Response
from aiquery_serving.retry import Cooldown, Window, terminal

#: An alarm is moved forward only for more than this, in seconds: clocks drift against sums of floats.
_EARLIER = 0.001

T = TypeVar("T")
P = TypeVar("P")


class Turns:
    """An endpoint's place in its schedule; any thread may take turns."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self.routes = routes
        self._table = traffic.schedule(routes)
        self._taken = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        """Take one turn: the index of its route."""
        return self._table[self._advance(1) % len(self._table)]

    def draw(self, count: int) -> NDArray[np.uint8]:
        """Take `count` turns: the index of each one's route."""
        return traffic.positions(self.routes, self._advance(count), count)

    def _advance(self, count: int) -> int:
        with self._lock:
            start = self._taken
            self._taken = start + count
        return start


class Turnstile(Generic[T, P]):
    """A line of calls, let through in order.

    Args:
        clock: Waits.
        ask: Returns the seconds until this call may go: 0.0 for now, infinity for "after news".
        take: Lets it go, and returns its pass.
        undo: Gives back a pass whose call was cancelled before it could use it.
    """

    def __init__(
        self,
        clock: Clock,
        ask: Callable[[T], float],
        take: Callable[[T], P],
        undo: Callable[[P], None],
    ) -> None:
        self._clock, self._ask, self._take, self._undo = clock, ask, take, undo
        self._line: deque[tuple[asyncio.Future[P], T]] = deque()
        self._alarm: asyncio.Task[None] | None = None
        self._alarm_at = math.inf

    @property
    def waiting(self) -> int:
        """How many calls stand in line."""
        return len(self._line)

    def first(self, most: int) -> list[T]:
        """Return the first calls that stand in line."""
        return [call for future, call in islice(self._line, most) if not future.done()]

    @property
    def opens_at(self) -> float:
        """When the first in line may go, by the clock; infinite while that takes news."""
        return self._alarm_at

    def free(self, call: T) -> bool:
        """Say whether a call that comes now may go at once."""
        return not self._line and self._ask(call) <= 0

    async def wait(self, call: T, *, first: bool = False) -> P:
        """Stand in line until the call may go; `first` for one that was let through before."""
        future: asyncio.Future[P] = asyncio.get_running_loop().create_future()
        place = (future, call)
        self._line.insert(0 if first else len(self._line), place)
        self.pump()
        try:
            return await future
        except asyncio.CancelledError:
            self._leave(place)
            raise

    def pump(self) -> None:
        """Let through whoever may go now; call it whenever there is news."""
        line = self._line
        while line:
            future, call = line[0]
            if future.done():
                line.popleft()
                continue
            wait = self._ask(call)
            if wait > 0:
                self._set_alarm(wait)
                return
            line.popleft()
            future.set_result(self._take(call))
        self._clear_alarm()

    def _leave(self, place: tuple[asyncio.Future[P], T]) -> None:
        future = place[0]
        if future.done() and not future.cancelled():
            self._undo(future.result())
        elif place in self._line:
            self._line.remove(place)
        self.pump()

    def _set_alarm(self, wait: float) -> None:
        at = self._clock.now() + wait
        if at < self._alarm_at - _EARLIER:
            self._clear_alarm()
            self._alarm_at = at
            self._alarm = asyncio.get_running_loop().create_task(self._ring(wait))

    async def _ring(self, wait: float) -> None:
        await self._clock.sleep(wait)
        self._alarm, self._alarm_at = None, math.inf
        self.pump()

    def _clear_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._alarm_at = None, math.inf


class Permit:
    """The right to one call at a served entity, and what has to be given back after it."""

    __slots__ = ("calls", "probe", "spent", "tokens")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.probe = False
        self.calls: list[float] | None = None
        self.spent: list[float] | None = None


class Lane:
    """The way to one served entity: how many calls are in flight, and what holds up the next.

    Holds the in-flight window, the cool-down and what headers taught about the provider's limits.
    """

    #: Seconds for which a refused key or an empty account answers for later calls, unsent.
    PAUSE = 2.0

    def __init__(self, name: str, concurrency: int, clock: Clock) -> None:
        self.name, self._clock = name, clock
        self.window = Window(concurrency)
        self.cooldown = Cooldown()
        self.in_flight = 0
        self._tokens_in_flight = 0
        # The first calls go before the first headers come, and count all the same.
        self._calls: LearnedLimit | None = LearnedLimit()
        self._tokens: LearnedLimit | None = LearnedLimit()
        self._taught = False
        self._refusal: AiQueryError | None = None
        self._refused_until = 0.0
        self._pause_status = 0
        self._line: Turnstile[Callable[[], int], Permit] = Turnstile(clock, self._ask, self._take, self.unused)

    async def enter(self, size: Callable[[], int], *, patient: bool, again: bool = False) -> Permit:
        """Wait for the right to call.

        Args:
            size: Estimates the tokens the call may use. Asked when its turn comes, and only if the provider
                limits tokens: a call that stood in line from the start is sized by what was learned since.
            patient: Whether to wait for the provider's limits; a full window is always waited for.
            again: Whether the call was here before; then it goes first.

        Raises:
            ProviderError: The provider refuses our key or account for now.
            TooManyRequestsError: The provider's limits are used up and the caller does not wait.
        """
        line = self._line
        if line.free(size):
            permit = self._take(size)
        else:
            if not patient:
                self._check_open(self._sized(size))
            permit = await line.wait(size, first=again)
        if self._refusal is not None:
            self._check_refusal(permit)
        return permit

    def blocked(self, tokens: int) -> float:
        """Return the seconds for which the provider's limits hold up the next call; 0.0 if not."""
        now = self._clock.now()
        wait = self.cooldown.wait(now)
        if self._calls is not None:
            wait = max(wait, self._calls.wait(now))
        if self._tokens is not None:
            wait = max(wait, self._tokens.wait(now, tokens))
        return wait

    def answered(self, permit: Permit, response: Response) -> None:
        """Note an answer, and learn from it."""
        self._leave(permit, response.usage.total_tokens or None)
        self.window.answered()
        if permit.probe:
            self.cooldown.answered(probe=True)
        if response.hint is not None or not self._taught:
            self._learn(response.hint or _SILENT)
        if self._line.waiting:
            self._line.pump()

    def failed(self, permit: Permit, error: AiQueryError) -> None:
        """Note a failure: it may mean that others have to wait, or need not be sent."""
        self._leave(permit)
        now = self._clock.now()
        if isinstance(error, ProviderRateLimitError) or (error.retryable and error.retry_after):
            if not self.cooldown.closed or permit.probe:
                self.window.refused()
            self.cooldown.refused(now, error.retry_after, probe=permit.probe)
            self._pause_status = error.http_status
        elif error.retryable:
            self.cooldown.abandoned(probe=permit.probe)
        else:
            # The provider did look at the call: it is not busy any more.
            self.cooldown.answered(probe=permit.probe)
        hint = getattr(error, "hint", None)
        if isinstance(hint, LimitHint):
            self._learn(_without_remaining(hint))
        if terminal(error):
            self._refusal, self._refused_until = error, now + self.PAUSE
        self._line.pump()

    def cancelled(self, permit: Permit) -> None:
        """Give back the right of a call that was stopped."""
        self._leave(permit)
        self.cooldown.abandoned(probe=permit.probe)
        self._line.pump()

    def unused(self, permit: Permit) -> None:
        """Give back the right of a call that was not sent: the provider will not count it."""
        if self._calls is not None and permit.calls is not None:
            self._calls.unsent(permit.calls)
        if self._tokens is not None and permit.spent is not None:
            self._tokens.unsent(permit.spent)
        permit.calls = permit.spent = None
        self.cancelled(permit)

    def holdup(self) -> str | None:
        """Say in words what calls stand in line for, if any do. Only reads: any thread may ask."""
        if not self._line.waiting:
            return None
        if self.in_flight >= int(self.window.size):
            return holdups.full(self.in_flight)
        now = self._clock.now()
        if self.cooldown.closed:
            return holdups.cooling(self._pause_status, self.cooldown.closed_until - now)
        return holdups.silent(self.name, self._line.opens_at - now)

    def _sized(self, size: Callable[[], int]) -> int:
        return size() if self._taught and self._tokens is not None else 0

    def _ask(self, size: Callable[[], int]) -> float:
        if self.in_flight >= int(self.window.size):
            return math.inf
        if not self._taught and not self.cooldown.closed:
            return 0.0
        return self.blocked(self._sized(size))

    def _take(self, size: Callable[[], int]) -> Permit:
        tokens = self._sized(size)
        permit = Permit(tokens)
        self.in_flight += 1
        self._tokens_in_flight += tokens
        if self.cooldown.closed:
            permit.probe = self.cooldown.enter()
        if self._calls is not None:
            permit.calls = self._calls.sent(self._clock.now())
        if self._tokens is not None:
            permit.spent = self._tokens.sent(self._clock.now(), tokens)
        return permit

    def _leave(self, permit: Permit, used: int | None = None) -> None:
        self.in_flight -= 1
        self._tokens_in_flight -= permit.tokens
        if self._calls is not None and permit.calls is not None:
            self._calls.finish(permit.calls, self._clock.now())
        if self._tokens is not None and permit.spent is not None:
            self._tokens.finish(permit.spent, self._clock.now(), used)

    def _learn(self, hint: LimitHint) -> None:
        """Learn from headers; after an answer without any, stop counting what cannot matter."""
        now = self._clock.now()
        self._taught = True
        self._calls = _learned(self._calls, hint.requests, now, self.in_flight)
        self._tokens = _learned(self._tokens, hint.tokens, now, self._tokens_in_flight)

    def _check_open(self, tokens: int) -> None:
        wait = self.blocked(tokens)
        if 0 < wait < math.inf:
            raise TooManyRequestsError(
                f"The provider of served entity '{self.name}' allows no more calls for "
                f"{wait:.1f} seconds: send the request again then.",
                retry_after=wait,
            )

    def _check_refusal(self, permit: Permit) -> None:
        refusal = self._refusal
        if refusal is None or self._clock.now() >= self._refused_until:
            self._refusal = None
            return
        self.cancelled(permit)
        # A copy: one exception raised by many calls would collect all their tracebacks.
        raise type(refusal)(str(refusal))


_SILENT = LimitHint()


def _without_remaining(hint: LimitHint) -> LimitHint:
    """Keep the limit and the period of a refusal's headers: its cool-down already says when to go on."""
    calls, tokens = hint.requests, hint.tokens
    return LimitHint(
        requests=calls and Allowance(limit=calls.limit, reset_after=calls.reset_after),
        tokens=tokens and Allowance(limit=tokens.limit, reset_after=tokens.reset_after),
    )


def _learned(
    known: LearnedLimit | None, allowance: Allowance | None, now: float, in_flight: int
) -> LearnedLimit | None:
    if allowance is None:
        return known if known is not None and known.taught else None
    known = known or LearnedLimit()
    known.observe(allowance, now, in_flight)
    return known
