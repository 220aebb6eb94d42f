"""Decides who may spend a throughput in tokens per second: interactive callers first, batch work what they leave.

Theory of operation. One bucket fills at the rate and holds a second's worth; whoever goes takes the tokens that they
are expected to use, and what they really used is settled later. A call larger than the bucket goes when it is full,
and leaves it in debt. Batch work takes nothing of the bucket's lower half, so that an interactive call of that size
goes at once, however much batch work waits; that costs no throughput, for the bucket fills as fast half full. Where
interactive callers want everything, batch work is still owed its reservation: a claim grows at that part of the rate,
and once it covers the next batch call, that call goes before anybody else. With bursts, what overflows a full bucket is
saved, up to some seconds' worth of the most that is provisioned, for interactive callers to spend on top.

While the throughput does not flow, because the model is not loaded yet, nothing fills: a bucket's worth of calls may
go to load it, and the others wait for news.
"""

from __future__ import annotations

import math
from typing import Final

#: The part of the rate that batch work is owed when interactive callers want everything.
BATCH_SHARE: Final = 0.25
#: Seconds of the rate that the bucket holds, and of these the seconds that are for interactive callers alone.
DEPTH: Final = 1.0
HEADROOM: Final = 0.5
#: Seconds of the most that is provisioned that idle times save for spikes.
BURST_SECONDS: Final = 5.0
#: Less than this many tokens is nothing: sums of floats are not exact.
_NOTHING: Final = 1e-6


class Taken:
    """What one call took: tokens, for batch work or not, and whether out of what batch work is owed."""

    __slots__ = ("batch", "owed", "tokens")

    def __init__(self, tokens: float, *, batch: bool, owed: bool) -> None:
        self.tokens, self.batch, self.owed = tokens, batch, owed


class Sharing:
    """A throughput, and who may spend it. Starts with a full bucket.

    Args:
        now: The time, in seconds.
        rate: Tokens per second.
        burst: The most tokens that idle times may save.

    Examples:
        >>> sharing = Sharing(0.0, 1000)
        >>> sharing.wait(0.0, 500, batch=True), sharing.wait(0.0, 600, batch=True), sharing.wait(0.0, 600, batch=False)
        (0.0, 0.0, 0.0)
        >>> taken = sharing.take(0.0, 500, batch=True)
        >>> sharing.wait(0.0, 400, batch=True), sharing.wait(0.0, 400, batch=False)
        (0.4, 0.0)
    """

    __slots__ = ("_at", "_claim", "_level", "_saved", "burst", "flowing", "rate")

    def __init__(self, now: float, rate: float, *, burst: float = 0.0) -> None:
        self._at = now
        self.rate, self.burst = rate, burst
        self.flowing = True
        self._level = self._depth
        self._claim = self._enough_claimed
        self._saved = 0.0

    def scale(self, now: float, rate: float, *, burst: float = 0.0) -> None:
        """Go on at another rate. A rate that comes from nothing finds a full bucket, as after any idle time."""
        self._fill(now)
        asleep = self.rate == 0
        self.rate, self.burst = rate, burst
        self._level = self._depth if asleep else min(self._level, self._depth)
        self._claim = min(self._claim, self._most_claimed)
        self._saved = min(self._saved, burst)

    def flow(self, now: float, *, flowing: bool) -> None:
        """Note whether tokens flow from now on."""
        self._fill(now)
        self.flowing = flowing

    def wait(self, now: float, tokens: float, *, batch: bool, rival: float | None = None) -> float:
        """Return the seconds until a call may go: 0.0 for now, infinity for "after news".

        Args:
            now: The time.
            tokens: What the call is expected to use.
            batch: Whether it is batch work.
            rival: What the first that waits of the other kind is expected to use, if any does.
        """
        self._fill(now)
        if not self.rate:
            return math.inf
        return self._batch_wait(tokens, rival) if batch else self._interactive_wait(tokens, rival)

    def take(self, now: float, tokens: float, *, batch: bool) -> Taken:
        """Let a call go."""
        self._fill(now)
        taken = Taken(tokens, batch=batch, owed=batch and self._owed_in(tokens) <= 0)
        if batch:
            # What batch work takes of the leftovers counts towards what it is owed, but is no debt.
            self._claim = self._claim - tokens if taken.owed else max(min(self._claim, 0.0), self._claim - tokens)
        else:
            lent = min(self._saved, max(0.0, tokens - max(0.0, self._level)))
            self._saved -= lent
            self._level += lent
        self._level -= tokens
        return taken

    def settle(self, taken: Taken, now: float, actual: float) -> None:
        """Correct what a call took to what it used."""
        self._fill(now)
        back, taken.tokens = taken.tokens - actual, actual
        self._add(back)
        if taken.owed:
            self._claim = min(self._most_claimed, self._claim + back)

    def delay(self, tokens: float, *, rival: bool) -> float:
        """Return the seconds that interactive calls of so many tokens in all take to go, `rival` if batch work waits.

        As of the last time that was told.
        """
        rate = self.rate * (1 - BATCH_SHARE * rival)
        return max(0.0, tokens - self._level - self._saved) / rate if rate else math.inf

    @property
    def _depth(self) -> float:
        return self.rate * DEPTH

    @property
    def _enough_claimed(self) -> float:
        """The claim that is enough for a call however large."""
        return self._depth * BATCH_SHARE

    @property
    def _most_claimed(self) -> float:
        """The most that is claimed: what is due waits up to a bucket's worth, and loses nothing meanwhile."""
        return 2 * self._enough_claimed

    def _fill(self, now: float) -> None:
        passed, self._at = max(0.0, now - self._at), max(now, self._at)
        if self.flowing and passed:
            self._add(passed * self.rate)
            self._claim = min(self._most_claimed, self._claim + passed * self.rate * BATCH_SHARE)

    def _add(self, tokens: float) -> None:
        level = self._level + tokens
        self._level = min(level, self._depth)
        self._saved = min(self.burst, self._saved + (level - self._level))

    def _interactive_wait(self, tokens: float, rival: float | None) -> float:
        owed = min(rival, self._depth) if rival is not None and self._owed_in(rival) <= 0 else 0.0
        return self._until(min(tokens, self._depth) + owed - self._saved)

    def _batch_wait(self, tokens: float, rival: float | None) -> float:
        owed = max(self._owed_in(tokens), self._until(min(tokens, self._depth)))
        if rival is not None:
            return owed
        return min(owed, self._until(min(tokens + self.rate * HEADROOM, self._depth)))

    def _owed_in(self, tokens: float) -> float:
        """Return the seconds until a batch call is owed its turn."""
        return self._seconds(min(tokens, self._enough_claimed) - self._claim, self.rate * BATCH_SHARE)

    def _until(self, level: float) -> float:
        return self._seconds(level - self._level, self.rate)

    def _seconds(self, missing: float, rate: float) -> float:
        if missing <= _NOTHING:
            return 0.0
        return missing / rate if self.flowing else math.inf
