"""What every invocation used: recorded at once, written a little later, added up on request."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING

from aiquery_serving.errors import WorkspaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aiquery_serving.messages import Json
    from aiquery_serving.store import Store

#: Seconds between two writes.
FLUSH_SECONDS = 0.5
#: Rounds without anything to write after which the writing thread ends.
IDLE_ROUNDS = 10
#: Invocations held in memory while the workspace cannot be written; older ones are only counted.
MOST_HELD = 10_000
#: The status of an invocation that was answered.
OK = "ok"

_log = logging.getLogger("aiquery.usage")


@dataclass(frozen=True, slots=True)
class Invocation:
    """One invocation of a served entity, as it ended.

    `started_ms` is the wall clock in milliseconds since 1970, `latency_ms` a span; `status` is "ok"
    or the name of the error's class; `attempts` counts the first one too.
    """

    endpoint: str
    served_entity: str
    config_version: int
    started_ms: int
    latency_ms: float
    rows: int
    prompt_tokens: int
    completion_tokens: int
    status: str
    attempts: int
    caller: str


_COLUMNS = tuple(field.name for field in fields(Invocation))
_as_row = attrgetter(*_COLUMNS)
_INSERT = f"INSERT INTO usage ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608 - the dataclass's own names
_TOTALS = (
    "SELECT endpoint, served_entity, count(*), sum(rows), sum(status <> 'ok'), sum(prompt_tokens),"
    " sum(completion_tokens), sum(latency_ms) FROM usage"
    " WHERE (:endpoint IS NULL OR endpoint = :endpoint) AND (:since_ms IS NULL OR started_ms >= :since_ms)"
    " GROUP BY endpoint, served_entity"
)


@dataclass(slots=True)
class _Total:
    """The sums of one served entity."""

    calls: int = 0
    rows: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_ms: float = 0.0
    #: When the latest of the calls began.
    latest_ms: int = 0

    def add(self, other: _Total) -> None:
        self.calls += other.calls
        self.rows += other.rows
        self.errors += other.errors
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.latency_ms += other.latency_ms
        self.latest_ms = max(self.latest_ms, other.latest_ms)


class _Totals(dict[tuple[str, str], _Total]):
    """Sums per endpoint and served entity."""

    def add(self, endpoint: str, served_entity: str, total: _Total) -> None:
        self.setdefault((endpoint, served_entity), _Total()).add(total)

    def count(self, call: Invocation) -> None:
        one = _Total(
            1,
            call.rows,
            int(call.status != OK),
            call.prompt_tokens,
            call.completion_tokens,
            call.latency_ms,
            call.started_ms,
        )
        self.add(call.endpoint, call.served_entity, one)


class UsageLog:
    """Records invocations without making anybody wait, and adds them up over all processes.

    `record` appends to a queue; a thread that lives while there is something to write empties it
    twice a second. While the workspace cannot be written (a full disk, say) nothing fails: one
    warning is logged, the newest invocations wait in memory for room and older ones are counted.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: deque[Invocation] = deque()
        self._writing = threading.Lock()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._counted = _Totals()
        self._warned = False
        self._watchers: tuple[Callable[[Invocation], None], ...] = ()
        # A program that just ends has its last half second written too.
        self._at_exit = weakref.finalize(self, _write_last, store, self._pending)

    def record(self, invocation: Invocation) -> None:
        """Note an invocation. Never waits, never fails; any thread may call it."""
        self._pending.append(invocation)
        if self._thread is None:
            self._start()
        for watcher in self._watchers:
            _tell(watcher, invocation)

    def subscribe(self, watcher: Callable[[Invocation], None]) -> Callable[[], None]:
        """Call a function with every invocation that this process records from now on.

        It is called where the invocation is recorded, so it has to be quick. What it raises is
        logged, and fails nobody.

        Returns:
            What ends this.
        """
        with self._guard:
            self._watchers = (*self._watchers, watcher)

        def unsubscribe() -> None:
            with self._guard:
                self._watchers = tuple(one for one in self._watchers if one is not watcher)

        return unsubscribe

    def flush(self) -> None:
        """Write what was recorded so far, in one transaction.

        Never fails: what cannot be written stays counted in memory and is tried again.
        """
        with self._writing:
            held = _take(self._pending)
            try:
                _write(self._store, held)
            except WorkspaceError as error:
                self._hold(held, error)
            else:
                self._warned = False

    def totals(self, endpoint: str | None = None, *, since_ms: int | None = None) -> list[Json]:
        """Return the sums per endpoint and served entity, in order of their names.

        Args:
            endpoint: Only this endpoint.
            since_ms: Only invocations that began then or later, in milliseconds since 1970.

        Returns:
            Objects with endpoint, served_entity, calls, rows, errors, prompt_tokens,
            completion_tokens and mean_latency_ms. Invocations of other processes are included once
            they have written them.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        self.flush()
        with self._writing:
            sums = self._stored(endpoint, since_ms)
            for call in tuple(self._pending):
                if _wanted(call.endpoint, call.started_ms, endpoint, since_ms):
                    sums.count(call)
            for (name, entity), total in self._counted.items():
                if _wanted(name, total.latest_ms, endpoint, since_ms):
                    sums.add(name, entity, total)
        return [_total_output(key, total) for key, total in sorted(sums.items())]

    def close(self) -> None:
        """Write what is left and end the thread. The store stays open."""
        self._stop.set()
        with self._guard:  # whoever is making a thread starts it before this is ours
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.flush()
        self._at_exit.detach()

    def _hold(self, held: list[Invocation], error: WorkspaceError) -> None:
        for call in held[:-MOST_HELD]:
            self._counted.count(call)
        self._pending.extendleft(reversed(held[-MOST_HELD:]))
        if not self._warned:
            self._warned = True
            _log.warning("Usage is only counted in memory for now. %s", error)

    def _stored(self, endpoint: str | None, since_ms: int | None) -> _Totals:
        sums, wanted = _Totals(), {"endpoint": endpoint, "since_ms": since_ms}
        with self._store.read() as connection:
            for name, entity, *numbers in connection.execute(_TOTALS, wanted):
                sums.add(name, entity, _Total(*numbers))
        return sums

    def _start(self) -> None:
        with self._guard:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="aiquery-usage", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        idle = 0
        while idle < IDLE_ROUNDS and not self._stop.wait(FLUSH_SECONDS):
            idle = 0 if self._pending else idle + 1
            if self._pending:
                self.flush()
        # First the name, then the look: whoever records in between starts a new thread.
        self._thread = None
        if self._pending:
            self._start()


def _tell(watcher: Callable[[Invocation], None], invocation: Invocation) -> None:
    try:
        watcher(invocation)
    except Exception:  # noqa: BLE001 - somebody else's code; the invocation has already happened
        _log.exception("A watcher of the usage failed.")


def _take(pending: deque[Invocation]) -> list[Invocation]:
    # Others only append meanwhile, so what `len` promises is there.
    return [pending.popleft() for _ in range(len(pending))]


def _write(store: Store, calls: Iterable[Invocation]) -> None:
    rows = [_as_row(call) for call in calls]
    if rows:
        with store.write() as connection:
            connection.executemany(_INSERT, rows)


def _write_last(store: Store, pending: deque[Invocation]) -> None:
    last = _take(pending)
    try:
        _write(store, last)
    except WorkspaceError as error:
        _log.warning("The last %d invocations are not in the usage. %s", len(last), error)


def _wanted(name: str, started_ms: int, endpoint: str | None, since_ms: int | None) -> bool:
    return endpoint in (None, name) and (since_ms is None or started_ms >= since_ms)


def _total_output(key: tuple[str, str], total: _Total) -> Json:
    return {
        "endpoint": key[0],
        "served_entity": key[1],
        "calls": total.calls,
        "rows": total.rows,
        "errors": total.errors,
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "mean_latency_ms": total.latency_ms / total.calls,
    }
