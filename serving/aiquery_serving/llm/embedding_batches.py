"""Decides which texts are embedded together: of like length, the longest first, those that somebody waits for first."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

Caller = TypeVar("Caller", bound=Hashable)

#: Runs' worth of texts that are sorted at once: enough to find like ones, and nobody waits for more than these.
PLANNED_RUNS = 32


@dataclass(frozen=True, slots=True)
class RunSizes:
    """How large a run of the model may be.

    Attributes:
        most_tokens: The most tokens, padding included; a longer text runs alone.
        run_cost: What a run costs beside its tokens, as tokens: more padding than this makes another run cheaper.
    """

    most_tokens: int
    run_cost: int


class Text(NamedTuple, Generic[Caller]):
    """One text that waits: whose, which of theirs, and how many tokens it has."""

    caller: Caller
    row: int
    length: int


def runs(lengths: Sequence[int], sizes: RunSizes) -> Iterator[list[int]]:
    """Split texts into runs of like length.

    Args:
        lengths: Tokens of each text.
        sizes: How large a run may be.

    Yields:
        Indexes of `lengths`, each once, the longest text first, so that a lack of memory shows at once.

    Examples:
        >>> list(runs([3, 9, 4, 9, 3], RunSizes(most_tokens=18, run_cost=2)))
        [[1, 3], [2, 0, 4]]
    """
    run: list[int] = []
    padding = 0
    for text in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        longest = lengths[run[0]] if run else 0
        more = longest - lengths[text] if run else 0
        if run and (longest * (len(run) + 1) > sizes.most_tokens or padding + more > sizes.run_cost):
            yield run
            run, padding, more = [], 0, 0
        run.append(text)
        padding += more
    if run:
        yield run


@dataclass(slots=True)
class _Lane(Generic[Caller]):
    """Texts of one urgency: those that have arrived, and the runs that are planned."""

    arrived: deque[Text[Caller]] = field(default_factory=deque)
    planned: deque[list[Text[Caller]]] = field(default_factory=deque)

    def next_run(self, sizes: RunSizes) -> list[Text[Caller]]:
        if not self.planned:
            self._plan(sizes)
        return self.planned.popleft() if self.planned else []

    def _plan(self, sizes: RunSizes) -> None:
        texts, room = [], PLANNED_RUNS * sizes.most_tokens
        while self.arrived and room > 0:
            texts.append(self.arrived.popleft())
            room -= texts[-1].length
        lengths = [text.length for text in texts]
        self.planned.extend([texts[index] for index in run] for run in runs(lengths, sizes))


class TextQueue(Generic[Caller]):
    """Texts that wait to be embedded.

    What arrives meanwhile is planned when what was planned before has run, so that no text waits for ever
    behind longer ones. Batch work runs while nothing else waits.

    Examples:
        >>> queue = TextQueue(RunSizes(most_tokens=20, run_cost=2))
        >>> queue.add("job", [5, 9], batch=True)
        >>> queue.add("user", [7], batch=False)
        >>> [[(text.caller, text.row) for text in queue.next_run()] for _ in range(3)]
        [[('user', 0)], [('job', 1)], [('job', 0)]]
    """

    def __init__(self, sizes: RunSizes) -> None:
        self._sizes = sizes
        self._lanes: tuple[_Lane[Caller], _Lane[Caller]] = (_Lane(), _Lane())
        self._waiting: dict[Caller, int] = {}

    def add(self, caller: Caller, lengths: Sequence[int], *, batch: bool) -> None:
        """Let a caller's texts wait; a caller adds once, and is dropped when it has its answer."""
        self._waiting[caller] = len(lengths)
        self._lanes[batch].arrived.extend(Text(caller, row, length) for row, length in enumerate(lengths))

    def drop(self, caller: Caller) -> None:
        """Forget what still waits of a caller's texts."""
        self._waiting.pop(caller, None)

    def next_run(self) -> list[Text[Caller]]:
        """Take the texts to embed next, the longest first; none if nothing waits."""
        for lane in self._lanes:
            while run := lane.next_run(self._sizes):
                if wanted := [text for text in run if text.caller in self._waiting]:
                    self._take(wanted)
                    return wanted
        return []

    def _take(self, run: Sequence[Text[Caller]]) -> None:
        for text in run:
            self._waiting[text.caller] -= 1

    @property
    def waiting(self) -> int:
        """How many texts wait."""
        return sum(self._waiting.values())
