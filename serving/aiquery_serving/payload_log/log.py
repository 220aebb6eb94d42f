"""What endpoints were asked and answered: noted at once, written a little later, read by SQL."""

from __future__ import annotations

import logging
import shutil
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from aiquery_serving.clock import Clock
from aiquery_serving.payload_log.files import PayloadFiles, write_empty
from aiquery_serving.payload_log.rows import PayloadRow, table

#: Seconds between two writes, and rows that do not wait for them.
FLUSH_SECONDS: Final = 2.0
MANY_ROWS: Final = 500
#: Rounds without anything to write after which the writing thread ends.
IDLE_ROUNDS: Final = 5
#: Rows held while the workspace cannot be written, and by a workspace in memory.
MOST_HELD: Final = 10_000

_log = logging.getLogger("aiquery.payloads")
_endpoint_id = attrgetter("endpoint_id")


class PayloadLog:
    """The inference tables of a workspace.

    `record` appends to a queue; a thread that lives while there is something to write makes a file per endpoint of it
    every few seconds. While nothing can be written (a full disk, say) no request fails: one warning is logged, and the
    newest rows wait in memory. A workspace without a folder keeps the newest rows in memory only.

    Args:
        folder: The workspace's folder, or None for a workspace in memory.
        clock: Tells the time.
    """

    def __init__(self, folder: Path | None, clock: Clock) -> None:
        self._folder = folder / "payloads" if folder else None
        self._clock = clock
        self._pending: deque[PayloadRow] = deque(maxlen=None if folder else MOST_HELD)
        self._writing = threading.Lock()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake, self._stop = threading.Event(), False
        self._warned = False
        self._forgotten: set[str] = set()
        # A program that just ends has its last seconds written too.
        self._at_exit = weakref.finalize(self, _write_last, self._folder, self._pending, clock)

    def record(self, row: PayloadRow) -> None:
        """Note a request that has ended. Never waits, never fails; any thread may call it."""
        if row.endpoint_id in self._forgotten:
            return
        self._pending.append(row)
        if self._folder is None:
            return
        if self._thread is None:
            self._start()
        if len(self._pending) == MANY_ROWS:
            self._wake.set()

    def flush(self) -> None:
        """Write what was noted so far. Never fails: what cannot be written is tried again."""
        if self._folder is None:
            return
        with self._writing:
            held = _take(self._pending)
            try:
                while held:
                    endpoint_id, rows = _first(held)
                    _write(self._folder, endpoint_id, rows, self._clock.epoch_ms())
                    held = [row for row in held if row.endpoint_id != endpoint_id]
            except OSError as error:
                self._hold(held, error)
            else:
                self._warned = False

    def files(self, endpoint_id: str) -> list[Path]:
        """Return the files that hold all rows of an endpoint, those of other processes too; at least one.

        Raises:
            OSError: The workspace cannot be read.
            ValueError: The workspace is in memory: see `table`.
        """
        if self._folder is None:
            raise ValueError("a workspace in memory has no files of payloads")
        self.flush()
        folder = self._folder / endpoint_id
        return [folder / name for name in PayloadFiles(folder).names()] or [self._empty()]

    def table(self, endpoint_id: str) -> pa.Table:
        """Return all rows of an endpoint, oldest first.

        Raises:
            OSError: The workspace cannot be read.
        """
        if self._folder is None:
            return table(row for row in tuple(self._pending) if row.endpoint_id == endpoint_id)
        rows = pa.concat_tables([pq.read_table(path) for path in self.files(endpoint_id)])
        return rows.replace_schema_metadata().sort_by("request_time")

    def forget(self, endpoint_id: str) -> None:
        """Remove all rows of an endpoint that was deleted. Never fails: what cannot be removed now stays."""
        self._forgotten.add(endpoint_id)  # requests that are still on their way leave nothing either
        with self._writing:
            kept = [row for row in _take(self._pending) if row.endpoint_id != endpoint_id]
            self._pending.extendleft(reversed(kept))
            if self._folder is not None:
                shutil.rmtree(self._folder / endpoint_id, ignore_errors=True)

    def close(self) -> None:
        """Write what is left and end the thread."""
        self._stop = True
        self._wake.set()
        with self._guard:  # whoever is making a thread starts it before this is ours
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.flush()
        self._at_exit()

    def _empty(self) -> Path:
        assert self._folder is not None  # noqa: S101 - no caller's doing
        path = self._folder / "empty.parquet"
        if not path.exists():
            write_empty(path)
        return path

    def _hold(self, held: list[PayloadRow], error: OSError) -> None:
        lost = len(held) - MOST_HELD
        self._pending.extendleft(reversed(held[-MOST_HELD:]))
        if not self._warned:
            self._warned = True
            _log.warning("Payloads are only held in memory for now, the newest %d. %s", MOST_HELD, error)
        if lost > 0:
            _log.debug("%d payloads are lost.", lost)

    def _start(self) -> None:
        with self._guard:
            if self._thread is None and not self._stop:
                self._thread = threading.Thread(target=self._run, name="aiquery-payloads", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        try:
            self._write_for_a_while()
        finally:
            # First the name, then the look: whoever records in between starts a new thread.
            self._thread = None
        if self._pending and not self._stop:
            self._start()

    def _write_for_a_while(self) -> None:
        idle = 0
        while idle < IDLE_ROUNDS and not self._stop:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            idle = 0 if self._pending else idle + 1
            if self._pending:
                self.flush()


def _take(pending: deque[PayloadRow]) -> list[PayloadRow]:
    # Others only append meanwhile, so what `len` promises is there.
    return [pending.popleft() for _ in range(len(pending))]


def _first(held: list[PayloadRow]) -> tuple[str, list[PayloadRow]]:
    endpoint_id = held[0].endpoint_id
    return endpoint_id, [row for row in held if row.endpoint_id == endpoint_id]


def _write(folder: Path, endpoint_id: str, rows: Iterable[PayloadRow], now_ms: int) -> None:
    files = PayloadFiles(folder / endpoint_id)
    files.write(table(rows), now_ms)
    with suppress(OSError, pa.ArrowException):  # merging is only for tidiness
        files.tidy(now_ms)


def _write_last(folder: Path | None, pending: deque[PayloadRow], clock: Clock) -> None:
    last = _take(pending) if folder else []
    try:
        for endpoint_id, rows in groupby(sorted(last, key=_endpoint_id), key=_endpoint_id):
            _write(folder, endpoint_id, rows, clock.epoch_ms())  # type: ignore[arg-type]  # there is none without folder
    except OSError as error:
        _log.warning("The last %d payloads are not logged. %s", len(last), error)
