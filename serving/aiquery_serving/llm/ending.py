"""Ends what computes before the interpreter ends: PyTorch aborts a process that stops one of its threads midway."""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import Final, Protocol
from weakref import WeakKeyDictionary, WeakSet

#: Seconds that all threads together have; a large model on a CPU takes as long for one prompt.
_PATIENCE: Final = 10.0


class Closable(Protocol):
    """Something that can be given back, more than once."""

    def close(self) -> None:
        """Give it back."""
        ...


#: In the order in which they came: what loads others is closed before they are.
_open: WeakKeyDictionary[Closable, None] = WeakKeyDictionary()
_threads: WeakSet[threading.Thread] = WeakSet()
_process = os.getpid()


def close_before_exit(computing: Closable) -> None:
    """Close something, if it is still there, when the process is about to end."""
    _open[computing] = None


def await_before_exit(thread: threading.Thread) -> None:
    """Wait for a thread when the process is about to end and all is closed."""
    _threads.add(thread)


@atexit.register
def _end() -> None:
    if os.getpid() != _process:  # nothing computes in a fork, and what was open belongs to another process
        return
    for computing in [*_open]:
        computing.close()
    until = time.monotonic() + _PATIENCE
    for thread in [*_threads]:
        thread.join(max(until - time.monotonic(), 0))
