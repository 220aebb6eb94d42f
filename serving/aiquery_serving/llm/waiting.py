"""Says who of those that wait goes next: urgent ones before batch work, kin together, else who came first.

Those go first that had waited for another one to compute what they share: it is in memory now. Two are kin when at
least half of the one's prompt is in the other's. Nobody is forgotten over it: every eighth place goes to whoever came
first of all, who is urgent from then on.
"""

from __future__ import annotations

import heapq

from aiquery_serving.llm.sequence import Sequence

#: One of so many places goes to whoever came first.
TURN = 8


class _Queue:
    """Sequences of one kind in order of arrival, found by their kin, too."""

    def __init__(self) -> None:
        self._arrivals: list[int] = []  # a heap; of some that have left, too
        self._queued: dict[int, Sequence] = {}
        self._kin: dict[bytes, dict[Sequence, None]] = {}
        self._woken: dict[Sequence, None] = {}

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, sequence: Sequence, *, woken: bool = False) -> None:
        if woken:
            self._woken[sequence] = None
        heapq.heappush(self._arrivals, sequence.arrival)
        self._queued[sequence.arrival] = sequence
        if sequence.keys:
            self._kin.setdefault(_half(sequence), {})[sequence] = None

    def discard(self, sequence: Sequence) -> None:
        self._woken.pop(sequence, None)
        if self._queued.pop(sequence.arrival, None) and sequence.keys:
            kin = self._kin[_half(sequence)]
            del kin[sequence]
            if not kin:
                del self._kin[_half(sequence)]

    def oldest(self) -> Sequence | None:
        while self._arrivals and self._arrivals[0] not in self._queued:
            heapq.heappop(self._arrivals)
        return self._queued[self._arrivals[0]] if self._arrivals else None

    def kin(self, keys: list[bytes]) -> Sequence | None:
        """Return one that was woken, or that has most in common with a prompt of these keys."""
        groups = (self._kin[key] for key in reversed(keys) if key in self._kin)
        return next(iter(self._woken or next(groups, {})), None)


class Waiting:
    """Sequences that wait for a place, or for another one to compute what they share."""

    def __init__(self) -> None:
        self._urgent, self._batch = _Queue(), _Queue()
        self._parked: dict[bytes, dict[Sequence, None]] = {}
        self._parked_at: dict[Sequence, bytes] = {}
        self._given = 0
        self._last: list[bytes] = []

    def __len__(self) -> int:
        return len(self._urgent) + len(self._batch) + len(self._parked_at)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait; it keeps its place in the order of arrival."""
        self._queue(sequence).add(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Let a sequence wait no more; one that does not wait is none of our business."""
        key = self._parked_at.pop(sequence, None)
        if key is None:
            self._queue(sequence).discard(sequence)
        else:
            del self._parked[key][sequence]

    def next(self) -> Sequence | None:
        """Return who goes next, of those that nobody computes for; it waits on until it is taken."""
        overdue = self._given % TURN == TURN - 1
        if overdue:
            self._hurry()
        queue = self._urgent or self._batch
        return (None if overdue else queue.kin(self._last)) or queue.oldest()

    def take(self, sequence: Sequence) -> None:
        """Give a place to a sequence that waits; its kin are next."""
        self.discard(sequence)
        self._given += 1
        self._last = sequence.keys

    def park(self, sequence: Sequence, key: bytes) -> None:
        """Let a sequence wait until the block of that key is there."""
        self.discard(sequence)
        self._parked.setdefault(key, {})[sequence] = None
        self._parked_at[sequence] = key

    def wake(self, key: bytes) -> None:
        """Let those go on that waited for that block."""
        for sequence in self._parked.pop(key, ()):
            del self._parked_at[sequence]
            self._queue(sequence).add(sequence, woken=True)

    def _hurry(self) -> None:
        """Make batch work urgent that came before all that is."""
        late, urgent = self._batch.oldest(), self._urgent.oldest()
        if late and urgent and late.arrival < urgent.arrival:
            self._batch.discard(late)
            late.urgent = True
            self._urgent.add(late)

    def _queue(self, sequence: Sequence) -> _Queue:
        return self._urgent if sequence.urgent else self._batch


def _half(sequence: Sequence) -> bytes:
    """Return the key of the half of its prompt."""
    return sequence.keys[(len(sequence.keys) - 1) // 2]
