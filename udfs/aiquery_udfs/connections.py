"""What we know of DuckDB connections: their cursors, their interrupts, and what a session wants of each.

DuckDB gives no hook for either, but its connection class can be extended: a TEMP macro does not exist on a cursor,
and a running function does not learn of an interrupt.
"""

from __future__ import annotations

import atexit
import itertools
import math
import signal
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import duckdb

from aiquery_serving.errors import CancelledCallError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    import pyarrow as pa

    from aiquery_udfs.engine_thread import Cancelled
    from aiquery_udfs.look_ahead import LookAhead
    from aiquery_udfs.runs import Run

#: How long after a failure chunks of the same statement may still begin, before DuckDB knows of it.
FAILURE_SECONDS: Final = 0.5
_numbers = itertools.count(1)


class Installer(Protocol):
    """Makes the SQL functions of one workspace known on a connection."""

    def install(self, handle: duckdb.DuckDBPyConnection, like: Connection | None = None) -> Connection:
        """Define the functions on a connection; a cursor wants what its parent wanted."""
        ...

    def record(self, handle: duckdb.DuckDBPyConnection, recorder: Recorder) -> None:
        """Let a connection only note what it would ask."""
        ...

    def define_site(self, handle: duckdb.DuckDBPyConnection, site: int) -> None:
        """Define `ai_query` once more, under a name that tells which call of a statement it is."""
        ...

    def drop_site(self, handle: duckdb.DuckDBPyConnection, site: int) -> None:
        """Forget what `define_site` defined."""
        ...


class Chunk(NamedTuple):
    """One chunk of rows of one call: the call's number, and its columns."""

    call: int
    request: pa.Array
    files: pa.Array
    hashes: pa.Array


class Recorder(Protocol):
    """Stands in for the answers of a connection: notes what its statement would ask."""

    def answer(self, ask: Callable[..., pa.Array], site: int, chunk: Chunk) -> pa.Array:
        """Note one chunk of rows of one place in the statement, and return the column to go on with.

        `ask` is what would have answered, `site` the number of the call in the statement, or 0.
        """
        ...


class Ahead(Protocol):
    """Looks ahead of the statements of a connection."""

    def meet(self, transaction: int, count: int) -> LookAhead | None:
        """Take note of a chunk of rows, and return what is ahead of it."""
        ...

    def rehearse(self, handle: duckdb.DuckDBPyConnection, text: str) -> None:
        """Note what a statement will ask, on its own connection and before it runs."""
        ...

    def stop(self) -> None:
        """Look no further ahead of the statement that runs."""
        ...

    def close(self) -> None:
        """Stop, and leave nothing open beside the connection."""
        ...


@dataclass(eq=False)
class Connection:
    """One DuckDB connection: which it is, how often its statement was stopped, and what it wants.

    `run` is what its statements want beside their SQL; `recorder` takes the place of answers; `ahead` looks ahead
    of its statements; `parameters` are those of a prepared statement, where they are known; `preview` is the most
    rows that may be asked while a relation is only shown.
    """

    number: int
    engine: Installer
    handle: weakref.ref[duckdb.DuckDBPyConnection]
    #: The search path it had when it was enrolled.
    schema: str = ""
    stops: int = 0
    interrupted: float = -math.inf
    failed: tuple[int, float] | None = None
    run: Run | None = None
    recorder: Recorder | None = None
    ahead: Ahead | None = None
    looks_ahead: bool = False
    parameters: object = None
    #: The thread that runs its statements, where that is known, and the tables that were registered by name.
    thread: int = 0
    registered: dict[str, object] = field(default_factory=dict)
    preview: int | None = None

    @property
    def looking(self) -> Ahead | None:
        """What looks ahead of its statements now: nothing while a relation is only shown."""
        return self.ahead if self.looks_ahead and self.preview is None else None

    def interrupt(self) -> None:
        """Stop whatever the connection's statement waits for."""
        self.stops += 1
        self.interrupted = time.monotonic()
        self._stop_looking()

    def closing(self) -> None:
        """Leave nothing open beside the connection."""
        if self.ahead is not None:
            self.ahead.close()

    def exiting(self, *_: object) -> None:
        """Leave nothing open beside the connection: DuckDB's own `__exit__` calls no `close` that can be watched."""
        self.closing()

    def registers(self, view_name: str, table: object = None, *_: Any, **options: Any) -> None:
        """Remember a table that is registered by name."""
        self.registered[view_name] = options.get("python_object", table)

    def unregisters(self, view_name: str) -> None:
        """Forget a table that was registered by name."""
        self.registered.pop(view_name, None)

    def binding(self) -> Cancelled:
        """Return what says whether the binding of a statement was interrupted.

        DuckDB tries a binding that failed once more, so an interrupt holds for a moment.
        """
        before = self.stops
        return lambda: self.stops != before or time.monotonic() < self.interrupted + FAILURE_SECONDS

    def begin(self, transaction: int, count: int) -> int:
        """Let a chunk of rows begin, and return what `stops` is while nobody stopped it.

        Raises:
            CancelledCallError: Another chunk of the statement failed just now, which DuckDB has not noticed yet.
        """
        if count == 1:
            # After a failure, a single row is TRY at work: the statement goes on.
            self.failed = None
        if self.failed is not None and self.failed[0] == transaction and time.monotonic() < self.failed[1]:
            raise CancelledCallError("Another row of the statement failed; this one was not asked.")
        return self.stops

    def fail(self, transaction: int) -> None:
        """Stop the chunks that DuckDB's other threads are at: it waits for them to report the error."""
        self.stops += 1
        self.failed = (transaction, time.monotonic() + FAILURE_SECONDS)
        self._stop_looking()

    def _stop_looking(self) -> None:
        if self.ahead is not None:
            self.ahead.stop()


_known: Final[weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, Connection]] = weakref.WeakKeyDictionary()


def known(handle: duckdb.DuckDBPyConnection) -> Connection | None:
    """Return what is known of a connection, if anything is."""
    return _known.get(handle)


def enroll(handle: duckdb.DuckDBPyConnection, engine: Installer) -> Connection:
    """Return what is known of a connection, which belongs to this engine from now on."""
    found = _known.get(handle)
    if found is None:
        (schema,) = handle.execute("SELECT current_setting('search_path')").fetchone() or ("",)
        found = _known[handle] = Connection(next(_numbers), engine, weakref.ref(handle), schema)
    found.engine = engine
    return found


@atexit.register
def _close_all() -> None:
    """End what still runs before Python does: DuckDB's threads would call functions that are gone, and crash."""
    for handle in list(_known):
        with suppress(duckdb.Error):  # it is closed already, or a thread of the user's is inside DuckDB now
            handle.interrupt()
            handle.close()


def watch_connections() -> None:
    """See cursors, interrupts and registered tables of every connection from now on."""
    kind = duckdb.DuckDBPyConnection
    if getattr(kind.cursor, "of_aiquery", False):
        return
    kind.cursor = kind.duplicate = _after(kind.cursor, _installed)  # type: ignore[method-assign]
    kind.interrupt = _before(kind.interrupt, Connection.interrupt)  # type: ignore[method-assign]
    kind.close = _before(kind.close, Connection.closing)  # type: ignore[method-assign]
    kind.__exit__ = _before(kind.__exit__, Connection.exiting)  # type: ignore[method-assign]
    kind.register = _before(kind.register, Connection.registers)  # type: ignore[method-assign]
    kind.unregister = _before(kind.unregister, Connection.unregisters)  # type: ignore[method-assign]


def _installed(parent: Connection, handle: duckdb.DuckDBPyConnection) -> None:
    parent.engine.install(handle, parent)


def _before(method: Callable[..., Any], first: Callable[..., None]) -> Callable[..., Any]:
    """Let a connection that is known take note of a call before it happens."""

    @wraps(method)
    def watched(self: duckdb.DuckDBPyConnection, *arguments: Any, **options: Any) -> Any:
        found = _known.get(self)
        if found is not None:
            first(found, *arguments, **options)
        return method(self, *arguments, **options)

    watched.of_aiquery = True  # type: ignore[attr-defined]
    return watched


def _after(method: Callable[..., Any], then: Callable[..., None]) -> Callable[..., Any]:
    """Let a connection that is known take note of what a call returned."""

    @wraps(method)
    def watched(self: duckdb.DuckDBPyConnection) -> Any:
        result = method(self)
        found = _known.get(self)
        if found is not None:
            then(found, result)
        return result

    watched.of_aiquery = True  # type: ignore[attr-defined]
    return watched


def watch_interrupts() -> None:
    """Let Ctrl-C end the waits of every connection, then do what it did before.

    Python runs signal handlers in the main thread, which may be waiting inside DuckDB for another thread.
    """
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(before) or getattr(before, "of_aiquery", False):
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        for found in list(_known.values()):
            found.interrupt()
        before(number, frame)

    interrupted.of_aiquery = True  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, interrupted)
