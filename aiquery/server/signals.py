"""Signals to a program that serves: the first ends it gently, the second at once."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: What ends a program, on any system.
ENDING: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP") if hasattr(signal, name)
)  # fmt: skip


@contextmanager
def handled(actions: Mapping[int, Callable[[], None] | signal.Handlers]) -> Iterator[None]:
    """Have signals call functions within the `with` block, on the main thread."""
    before = {number: signal.signal(number, _handler(action)) for number, action in actions.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def counted(first: Callable[[], None], then: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls one function the first time, and another from then on."""
    calls: list[None] = []

    def called() -> None:
        calls.append(None)
        (first if len(calls) == 1 else then)()

    return called


def _handler(action: Callable[[], None] | signal.Handlers) -> Any:
    if isinstance(action, signal.Handlers):
        return action
    return lambda _number, _frame: action()
