"""What every invocation used: recorded at once, written a little later, added up on request."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from dataclasses import asdict, dataclass, fields
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from aiquery_serving.errors import WorkspaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
    or the name of the error's class; `attempts` counts the first one too; `job` is empty for what was
    asked outside of any.
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
    job: str = ""


_COLUMNS = tuple(field.name for field in fields(Invocation))
_as_row = attrgetter(*_COLUMNS)
#: Rows of one statement, the most first. SQLite lets go of Python's lock, and takes it again, with every statement it
#: runs: row by row, that would cost the event loop more than the requests do. 999 values are what all of them take.
_AT_ONCE = (64, 8, 1)
_INSERTS = {
    rows: f"INSERT INTO usage ({', '.join(_COLUMNS)}) VALUES "  # noqa: S608 - the dataclass's own names
    + ", ".join([f"({', '.join('?' * len(_COLUMNS))})"] * rows)
    for rows in _AT_ONCE
}
_WANTED = (
    "(:endpoint IS NULL OR endpoint = :endpoint) AND (:since_ms IS NULL OR started_ms >= :since_ms)"
    " AND (:job IS NULL OR job = :job)"
)
_TOTALS = (
    "SELECT endpoint, served_entity, count(*), sum(rows), sum(status <> 'ok'), sum(prompt_tokens),"  # noqa: S608 - as above
    " sum(completion_tokens), sum(latency_ms) FROM usage"
    f" WHERE {_WANTED} GROUP BY endpoint, served_entity"
)
_ROWS = f"SELECT {', '.join(_COLUMNS)} FROM usage WHERE {_WANTED}"  # noqa: S608 - as above


@dataclass(frozen=True, slots=True)
class _Wish:
    """Which invocations are asked for; None means all."""

    endpoint: str | None
    since_ms: int | None
    job: str | None

    def fits(self, endpoint: str, started_ms: int, job: str) -> bool:
        """Say whether an invocation is among them."""
        return (
            self.endpoint in (None, endpoint)
            and (self.since_ms is None or started_ms >= self.since_ms)
            and self.job in (None, job)
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

    def add_all(self, others: _Totals, wish: _Wish, job: str) -> None:
        for (name, entity), total in others.items():
            if wish.fits(name, total.latest_ms, job):
                self.add(name, entity, total)

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
        self._counted: dict[str, _Totals] = {}  # by job
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

    def totals(self, endpoint: str | None = None, *, since_ms: int | None = None, job: str | None = None) -> list[Json]:
        """Return the sums per endpoint and served entity, in order of their names.

        Args:
            endpoint: Only this endpoint.
            since_ms: Only invocations that began then or later, in milliseconds since 1970.
            job: Only invocations of this job; `""` for those of none.

        Returns:
            Objects with endpoint, served_entity, calls, rows, errors, prompt_tokens,
            completion_tokens and mean_latency_ms. Invocations of other processes are included once
            they have written them.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        self.flush()
        wish = _Wish(endpoint, since_ms, job)
        with self._writing:
            sums = self._stored(wish)
            for call in self._held(wish):
                sums.count(call)
            for name, counted in self._counted.items():
                sums.add_all(counted, wish, name)
        return [_total_output(key, total) for key, total in sorted(sums.items())]

    def rows(
        self, since_ms: int | None = None, job: str | None = None, endpoint: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Return invocations one by one: the fields of `Invocation`, in their order.

        Arguments are those of `totals`. What could only be counted (see the class) is not among them.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        self.flush()
        wish = _Wish(endpoint, since_ms, job)
        with self._writing, self._store.read() as connection:
            stored: list[tuple[Any, ...]] = connection.execute(_ROWS, asdict(wish)).fetchall()
            return stored + [_as_row(call) for call in self._held(wish)]

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
            self._counted.setdefault(call.job, _Totals()).count(call)
        self._pending.extendleft(reversed(held[-MOST_HELD:]))
        if not self._warned:
            self._warned = True
            _log.warning("Usage is only counted in memory for now. %s", error)

    def _stored(self, wish: _Wish) -> _Totals:
        sums = _Totals()
        with self._store.read() as connection:
            for name, entity, *numbers in connection.execute(_TOTALS, asdict(wish)):
                sums.add(name, entity, _Total(*numbers))
        return sums

    def _held(self, wish: _Wish) -> list[Invocation]:
        return [call for call in tuple(self._pending) if wish.fits(call.endpoint, call.started_ms, call.job)]

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
            for part in _parts(rows):
                connection.execute(_INSERTS[len(part)], list(chain.from_iterable(part)))


def _parts(rows: list[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Cut rows into parts for which there is a statement."""
    start = 0
    while start < len(rows):
        size = next(size for size in _AT_ONCE if size <= len(rows) - start)
        yield rows[start : start + size]
        start += size


def _write_last(store: Store, pending: deque[Invocation]) -> None:
    last = _take(pending)
    try:
        _write(store, last)
    except WorkspaceError as error:
        _log.warning("The last %d invocations are not in the usage. %s", len(last), error)


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
