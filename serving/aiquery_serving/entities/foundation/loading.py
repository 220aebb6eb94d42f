"""Something dear that is loaded by who needs it first, shared by all, and given up when nobody needs it for long."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, Protocol, TypeVar

from aiquery_serving.errors import AiQueryError, ModelError, OverloadedError
from aiquery_serving.llm.ending import await_before_exit, close_before_exit

#: The longest wait before a load that keeps failing is tried again, in seconds.
_LONGEST_WAIT: Final = 60.0


class Closable(Protocol):
    """Something that can be given back."""

    def close(self) -> None:
        """Give memory back, within a second. From any thread; once more does nothing."""
        ...


T = TypeVar("T", bound=Closable)


def reload_wait(failures: int) -> float:
    """Return the seconds before a load is tried again that has failed so often in a row.

    Examples:
        >>> [reload_wait(failures) for failures in (1, 2, 3, 9)]
        [1.0, 2.0, 4.0, 60.0]
    """
    return min(2.0 ** min(failures - 1, 10), _LONGEST_WAIT)


class OnDemand(Generic[T]):
    """A place for one loaded thing. From any thread, and from any event loop.

    While it is loading, everybody waits for the same load. Two are never in memory at once.

    Args:
        load: Loads it; called on a thread, and may raise anything.
        name: What errors call it.
        idle_seconds: Give it up when nobody has needed it for so long; None keeps it.
        say: Told in a line when it is given up.
        now: Seconds that only grow.
    """

    def __init__(
        self,
        load: Callable[[], T],
        *,
        name: str,
        idle_seconds: float | None = None,
        say: Callable[[str], None] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._name = name
        self._idle_seconds = idle_seconds
        self._say = say
        self._now = now
        self._lock = threading.Lock()
        #: Held by whoever loads, or gives memory back.
        self._memory = threading.RLock()
        self._held: Future[T] | None = None
        self._leaving: list[T] = []
        self._users = 0
        self._used = 0.0
        self._failures = 0
        self._failure: tuple[float, str] = (0.0, "")
        self._retired = False
        self._end = threading.Event()
        self._process = os.getpid()
        close_before_exit(self)
        if idle_seconds is not None:
            self._on_a_thread("idle", self._watch_idle, idle_seconds)

    @property
    def loaded(self) -> T | None:
        """What is loaded now, if anything is."""
        held = self._held
        return held.result() if held is not None and held.done() and held.exception() is None else None

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[T]:
        """Hold what is loaded, loaded first if need be.

        Raises:
            ModelError: It does not load, or did not a moment ago.
            OverloadedError: It was taken out of service.
        """
        held = self._enter()
        try:
            yield held.result() if held.done() else await asyncio.wrap_future(held)
        finally:
            self._leave()

    def load(self) -> None:
        """Load it now, if it is not, and wait for that.

        Raises:
            As `lent`.
        """
        held = self._enter()
        try:
            held.result()
        finally:
            self._leave()

    def discard(self, lost: T) -> None:
        """Give up something that works no more; who comes next has it loaded anew."""
        with self._lock:
            if self.loaded is lost:
                self._let_go()

    def rest(self) -> None:
        """Give it up if nobody has needed it for `idle_seconds`."""
        seconds = self._idle_seconds or 0
        with self._lock:
            idle = self.loaded is not None and not self._users and self._now() - self._used >= seconds
            if idle:
                self._let_go()
        if idle:
            self._clear()
            self._say(f"Unloaded: nobody has asked for {seconds:.0f} s.")

    def retire(self, *, at_once: bool = False) -> None:
        """Give it up for good as soon as nobody holds it, or now."""
        with self._lock:
            self._retired = True
            busy = self._users > 0
        if at_once or not busy:
            self.close()

    def close(self) -> None:
        """Give it up for good; who still holds it gets errors from it."""
        self._end.set()
        with self._lock:
            self._let_go()
        self._clear()

    def _enter(self) -> Future[T]:
        if os.getpid() != self._process:
            raise ModelError(
                f"Model {self._name!r} belongs to the process that this one was forked from. Open a workspace here, or"
                " begin processes by spawn."
            )
        with self._lock:
            if self._end.is_set():
                raise _out_of_service(self._name)
            if self._held is None:
                again_at, reason = self._failure
                if self._now() < again_at:
                    raise ModelError(reason)
                self._held = Future()
                self._held.set_running_or_notify_cancel()  # who waits for it and is cancelled does not cancel it
                self._on_a_thread("load", self._fill, self._held)
            self._users += 1
            return self._held

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            self._used = self._now()
            done = self._retired and not self._users
        if done:
            self._on_a_thread("close", self.close)  # an event loop has no second to spare

    def _fill(self, held: Future[T]) -> None:
        try:
            with self._memory:
                self._clear()
                thing = self._load()
        except BaseException as error:  # noqa: BLE001 - loading runs what libraries like
            self._fail(held, error)
            return
        with self._lock:
            wanted = self._held is held
            if wanted:
                self._failures, self._used = 0, self._now()
                held.set_result(thing)
        if not wanted:  # it was given up while it was loading
            thing.close()
            held.set_exception(_out_of_service(self._name))

    def _fail(self, held: Future[T], error: BaseException) -> None:
        reason = str(error) if isinstance(error, AiQueryError) else f"{type(error).__name__}: {error}"
        failure = ModelError(f"Model {self._name!r} could not be loaded: {reason}")
        failure.__cause__ = error
        with self._lock:
            self._failures += 1
            self._failure = (self._now() + reload_wait(self._failures), str(failure))
            if self._held is held:
                self._held = None
        held.set_exception(failure)

    def _let_go(self) -> None:
        """Let nobody come in any more to what is held; `_clear` gives its memory back. With the lock taken."""
        if (thing := self.loaded) is not None:
            self._leaving.append(thing)
        self._held = None

    def _clear(self) -> None:
        if not self._leaving:
            return  # and do not wait for a load under way
        with self._memory:
            while self._leaving:
                self._leaving.pop().close()

    def _watch_idle(self, seconds: float) -> None:
        while not self._end.wait(seconds / 4):
            self.rest()

    def _on_a_thread(self, purpose: str, work: Callable[..., None], *arguments: Any) -> None:
        name = f"aiquery-{purpose}-{self._name}"
        thread = threading.Thread(target=work, args=arguments, name=name, daemon=True)
        thread.start()
        await_before_exit(thread)


def _out_of_service(name: str) -> OverloadedError:
    return OverloadedError(f"Model {name!r} was taken out of service before it answered. Ask again.")
