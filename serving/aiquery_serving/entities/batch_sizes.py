"""Learns how many rows of a model are worth predicting at once."""

from __future__ import annotations

#: The most rows of requests that came apart in one batch, whatever it would gain.
MOST_ROWS = 1024
#: Twice the rows a batch pay when they make this many times the rows a second.
_PAYS = 1.25
#: Batches after a step back before the next step forward; four times as many after each further one.
_HOLD = 32
#: How much the latest batch counts against those before it.
_NEW = 0.5


class BatchSizes:
    """How many rows a batch may have: doubled for as long as twice the rows take clearly less than twice the time.

    A model that computes row by row thus gets each request alone, one that works on whole columns all
    that wait.

    Attributes:
        most: The most rows of one batch now, a power of two.

    Examples:
        >>> sizes = BatchSizes()
        >>> for _ in range(3):
        ...     sizes.learn(1, seconds=0.002)
        >>> sizes.learn(2, seconds=0.002)
        >>> sizes.most
        4
        >>> sizes.learn(4, seconds=0.008)
        >>> sizes.most
        2
    """

    __slots__ = ("_held", "_hold", "_speeds", "_warm", "most")

    def __init__(self) -> None:
        self.most = 1
        self._warm = False
        self._held = 0
        self._hold = _HOLD
        #: Rows a second of batches with 1, 2, 3-4, 5-8, … rows.
        self._speeds: dict[int, float] = {}

    def learn(self, rows: int, seconds: float) -> None:
        """Note that a batch took that long. The first one tells nothing: models load much when first asked."""
        if not self._warm:
            self._warm = True
            return
        size = _power(rows)
        speed = rows / max(seconds, 1e-9)
        self._speeds[size] = speed + (1 - _NEW) * (self._speeds.get(size, speed) - speed)
        if size == self.most:
            self._step()

    def _step(self) -> None:
        pays = self.most > 1 and self._speeds[self.most] >= _PAYS * self._speeds.get(self.most // 2, 0)
        if self.most > 1 and not pays:
            self.most //= 2
            self._held, self._hold = self._hold, 4 * self._hold
        elif self._held:
            self._held -= 1
        else:
            self.most = min(2 * self.most, MOST_ROWS)
        if pays:
            self._hold = _HOLD


def _power(rows: int) -> int:
    """Return the power of two that is not below a number of rows."""
    return 1 << max(rows - 1, 0).bit_length()
