"""Decides how much of a provisioned throughput is scaled to now: whole chunks, up within seconds, down after minutes.

Theory of operation. A few times a second the load says what it needs: what was used lately at four fifths of the
capacity, and what waits within a few seconds. The rate rises to the least of what the last seconds needed, so that a
moment's peak moves nothing, and falls to the most of what the last minutes needed, so that it does not fall into a
pause between two bursts. From nothing it rises at once. Between events nothing has to happen: what an idle time means
is found out by whoever asks next.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import takewhile
from typing import Final

from aiquery_serving.throughput.chunks import Provision

#: A need has to last for this many seconds to scale up, and for this many without it to scale down.
UP_SECONDS: Final = 2.0
DOWN_SECONDS: Final = 120.0
#: The part of the capacity that is to be used at most.
TARGET: Final = 0.8
#: Seconds in which what waits should have gone, and over which use is averaged.
DRAIN_SECONDS: Final = 5.0
SPAN: Final = 5.0
#: Seconds between two looks at the load.
_GRAIN: Final = 0.25


class Scaling:
    """The tokens per second that a served entity has now, between the bounds it is told.

    Args:
        bounds: What is provisioned; it begins at the minimum.

    Examples:
        >>> bounds = Provision(minimum=0, maximum=2940, chunk=980)
        >>> scaling = Scaling(bounds)
        >>> scaling.look(0.0, bounds), scaling.look(60.0, bounds, waiting=400)
        (0, 980)
        >>> [scaling.look(second, bounds, waiting=99_000) for second in (61.0, 62.0, 63.0)]
        [980, 980, 2940]
        >>> scaling.look(90.0, bounds), scaling.look(240.0, bounds)
        (2940, 0)
    """

    __slots__ = ("_looked", "_needed", "_used", "rate")

    def __init__(self, bounds: Provision) -> None:
        self.rate = bounds.minimum
        self._used: deque[list[float]] = deque()
        self._needed: deque[tuple[float, int]] = deque()
        self._looked = -math.inf

    def used(self, now: float, tokens: float) -> None:
        """Count tokens that a call took, or the correction of what one did."""
        if self._used and now - self._used[-1][0] < _GRAIN:
            self._used[-1][1] += tokens
        else:
            self._used.append([now, tokens])

    def look(self, now: float, bounds: Provision, *, waiting: float = 0.0, busy: bool = False) -> int:
        """Return the rate from now on.

        Args:
            now: The time.
            bounds: What is provisioned now.
            waiting: The tokens of calls that wait to go.
            busy: Whether calls are under way; then the rate is not 0.
        """
        asleep = self.rate == 0 and waiting > 0
        if asleep or not bounds.minimum <= self.rate <= bounds.maximum or now - self._looked >= _GRAIN:
            self._looked = now
            needed = self._need(now, bounds, waiting, busy=busy)
            self._needed.append((now, needed))
            self.rate = max(bounds.minimum, min(bounds.maximum, needed if asleep else self._damped(now)))
        return self.rate

    def _need(self, now: float, bounds: Provision, waiting: float, *, busy: bool) -> int:
        """Return what the load needs, in whole chunks."""
        while self._used and self._used[0][0] <= now - SPAN:
            self._used.popleft()
        using = max(0.0, sum(tokens for _, tokens in self._used)) / SPAN
        load = using / TARGET + waiting / DRAIN_SECONDS
        chunks = math.ceil(load / bounds.chunk)
        return bounds.chunk * max(chunks, int(busy))

    def _damped(self, now: float) -> int:
        """Return the rate that lies between what was needed all the while, and what was needed at all."""
        while self._needed[0][0] <= now - DOWN_SECONDS:
            self._needed.popleft()
        most = max(needed for _, needed in self._needed)
        return min(max(self.rate, self._lasting(now)), most)

    def _lasting(self, now: float) -> int:
        """Return the least that was needed in the last seconds, or what was needed before them if nobody looked."""
        looks = list(takewhile(lambda look: look[0] > now - UP_SECONDS, reversed(self._needed)))
        before = self._needed[-len(looks) - 1][1] if len(looks) < len(self._needed) else 0
        return min(before, *(needed for _, needed in looks))
