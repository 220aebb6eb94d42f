"""Runs what computes on processors on one thread of the process, whichever engine it is of.

PyTorch keeps a team of threads for every thread that computes. Two engines with a team each, on the same cores, make
each other's wait: three times as slow on two cores, even while only one of them has anything to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Processors:
    """One thread, started by the first who needs it, for work of several others, in the order in which it comes."""

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], T]) -> T:
        """Return what a function returns that is called there, or raise what it raises."""
        self._start()
        outcome: Future[T] = Future()
        self._work.put((work, outcome))
        return outcome.result()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="aiquery-processors", daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        while True:
            work, outcome = self._work.get()
            try:
                outcome.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                outcome.set_exception(error)
            del work, outcome  # what they hold may be a model that somebody wants to be rid of


#: This process's.
_processors = Processors()


def computed(device: str, work: Callable[[], T]) -> T:
    """Return what a function computes on a device: on processors where all such work is done, else right here."""
    return _processors.run(work) if device == "cpu" else work()
