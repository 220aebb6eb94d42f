"""Jobs: a query that ends with every row answered once, however often it is begun.

Theory of operation. A job is its query inside a COPY or a CREATE TABLE, with the ledger on: what was answered once
is found there when the job runs again, so a run that was killed or stopped is gone on with by beginning it anew. A
thread looks after each run: it keeps the workspace's record of the job, and ends the run when its deadline passes
or somebody cancels it.

A job that is waited for runs on the session's own connection and the caller's thread, where temporary tables and
Python variables can be seen. The others run on a cursor and a daemon thread: a program that ends cancels them,
rather than wait for hours; beginning them again goes on with them.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import re
import secrets
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias

import duckdb

from aiquery.job_order import Order, Purse, check_keys_exist, described, one_query
from aiquery.job_output import Columns, Output, check_keys, choose, discard
from aiquery.job_status import JobFailure, JobStatus, failures, in_short, status_of
from aiquery.progress import shown
from aiquery.snapshots import read
from aiquery_serving.budget import Spent
from aiquery_serving.errors import AiQueryError, InvalidRequestError, JobStoppedError
from aiquery_serving.job_log import JobRecord, State
from aiquery_udfs import connections, sql_text

if TYPE_CHECKING:
    from types import FrameType

    from aiquery.client import Workspace
    from aiquery_udfs.runs import Run

#: How often somebody looks after a run, in seconds: at its deadline, and whether it was cancelled.
LOOK_SECONDS: Final = 0.1
#: How often its record is updated, in seconds.
RECORD_SECONDS: Final = 1.0
#: How long a program that ends waits for its jobs to end, in seconds.
LEAVE_SECONDS: Final = 5.0
#: What DuckDB says before the text of an error of ours.
_PREFIX: Final = re.compile(r"^(?:\w+ )*Error: Python exception occurred while executing the UDF: (?:\w+: )?")

#: Runs a statement on a connection, and returns what its rows are fetched from.
Execute: TypeAlias = Callable[[str], duckdb.DuckDBPyConnection]

_log = logging.getLogger("aiquery.jobs")
_running: Final[weakref.WeakSet[Job]] = weakref.WeakSet()


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What one run of a job does, and on which connection."""

    handle: duckdb.DuckDBPyConnection
    execute: Execute
    query: str
    columns: Columns
    keys: tuple[str, ...]
    output: Output
    owns_handle: bool

    def do(self, run: Run, checked: Callable[[], None]) -> int:
        """Write the rows, check their keys, and publish them; returns how many they are."""
        known = connections.known(self.handle)
        assert known is not None  # noqa: S101 - a session's connections are
        before, known.run, known.parameters, known.thread = known.run, run, None, threading.get_ident()
        bar = "enable_progress_bar"  # DuckDB's own would be drawn into the output of the program
        ((drawn,),) = self.handle.execute(f"SELECT current_setting('{bar}')").fetchall()
        try:
            self.handle.execute(f"SET {bar} = false")
            ((rows,),) = self.execute(self.output.writing(self.query)).fetchall()
            checked()
            if self.keys:
                check_keys(self.handle, self.output, self.columns, self.keys)
                checked()
            self.output.publish(self.handle)
            return int(rows)
        finally:
            known.run = before
            discard(self.output.draft, self.handle)
            with suppress(duckdb.Error):
                self.handle.execute(f"SET {bar} = {drawn}")

    def interrupted_since(self, moment: float) -> bool:
        """Say whether somebody interrupted the connection after a moment, in monotonic seconds."""
        known = connections.known(self.handle)
        return known is not None and known.interrupted >= moment


class Job:
    """A job that was begun: how far it is, and the ways to stop it. Any thread may use it."""

    def __init__(self, work: _Work, record: JobRecord, run: Run, workspace: Workspace, seconds: float) -> None:
        self._work, self._record, self._run, self._workspace = work, record, run, workspace
        self._began = time.monotonic()
        self._deadline = math.inf if math.isnan(seconds) else self._began + seconds
        self._wish: tuple[State, str] | None = None
        self._error: BaseException | None = None
        self._ctrl_c = self._unrecorded = False
        self._worked, self._done = threading.Event(), threading.Event()

    def __repr__(self) -> str:
        return f"Job({self.name!r}, {self.status().state!r})"

    @property
    def name(self) -> str:
        """What the job is called in `ai_jobs()` and in the usage."""
        return self._record.name

    @property
    def result(self) -> str:
        """What came of it in a sentence or two, and how to go on."""
        return self.status().result

    def status(self) -> JobStatus:
        """Return how far the job is."""
        if self._done.is_set():
            return status_of(self._record, now_ms=self._record.ended_ms)
        waiting_for = read(self._run, self._workspace.gateway, time.monotonic()).waiting_for
        return status_of(self._counted(), now_ms=_epoch_ms(), waiting_for=waiting_for)

    def pause(self) -> None:
        """Send nothing new until `resume`; what is under way is waited for."""
        self._run.paused.set()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._run.paused.clear()

    def cancel(self) -> None:
        """End the job within a second; what was answered stays in the ledger."""
        self._end("cancelled", "It was cancelled.")

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Wait until the job ends, for `timeout` seconds at most, and return how far it is. Ctrl-C cancels it.

        Raises:
            duckdb.Error: The job failed: its query did, or the writing of its output.
            AiQueryError: The job failed: its key does not tell its rows apart, for one.
        """
        try:
            self._done.wait(timeout)
        except KeyboardInterrupt:
            self._end("cancelled", "Ctrl-C was pressed.")
            self._done.wait(LEAVE_SECONDS)
            raise
        status = self.status()
        if self._ctrl_c:
            raise KeyboardInterrupt from self._error
        if status.state == "failed" and self._error is not None:
            raise self._error
        return status

    def errors(self) -> list[JobFailure]:
        """Return why requests of the job failed, the most frequent reason first.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        return failures(self._counted(), self._workspace.ledger)

    def run(self, *, progress: bool | None = None) -> None:
        """Do the job's work, on this thread; `wait` tells what came of it."""
        _running.add(self)
        keeper = threading.Thread(target=self._keep, name="aiquery-job", daemon=True)
        keeper.start()
        ended: tuple[State, str] = "finished", ""
        rows = None
        try:
            with self._noticing_ctrl_c(), shown(self._run, self._workspace.gateway, enabled=progress):
                rows = self._work.do(self._run, self._check)
        except BaseException as error:  # noqa: BLE001 - `wait` raises it
            self._error, ended = error, self._verdict(error)
        self._worked.set()
        keeper.join()
        self._close(ended, rows)

    def _close(self, ended: tuple[State, str], rows: int | None) -> None:
        last = self._counted()
        state, reason = ended
        last = replace(last, state=state, reason=reason, rows=last.rows if rows is None else rows, in_flight=0)
        self._record = replace(last, ended_ms=_epoch_ms())
        try:
            if last.failed:
                self._record = replace(self._record, failures=in_short(self.errors()))
            self._workspace.job_log.update(self._record)
        except AiQueryError as error:
            _log.warning("The end of the job '%s' is not recorded. %s", self.name, error)
        finally:
            if self._work.owns_handle:
                self._work.handle.close()
            _running.discard(self)
            self._done.set()

    def _verdict(self, error: BaseException) -> tuple[State, str]:
        """Say what an error made of the run."""
        meter = self._run.meter
        if self._wish is not None:
            return self._wish
        if isinstance(meter, Purse) and meter.refusal is not None:
            return "stopped", str(meter.refusal)
        if self._work.interrupted_since(self._began):
            return "cancelled", "Its connection was interrupted."
        return "failed", _PREFIX.sub("", str(error)).strip()

    def _end(self, state: State, reason: str) -> None:
        """Have the run end soon; the first who wants so names the reason."""
        self._wish = self._wish or (state, reason)

    def _check(self) -> None:
        if self._wish is not None:
            raise JobStoppedError(self._wish[1])

    def _keep(self) -> None:
        """Look after the run until it has worked."""
        recorded = self._began
        while not self._worked.wait(LOOK_SECONDS):
            now = time.monotonic()
            if now >= self._deadline:
                self._end("stopped", "Its deadline has passed.")
            if self._wish is not None:
                self._work.handle.interrupt()
            if now >= recorded + RECORD_SECONDS:
                recorded = now
                self._keep_record()

    def _keep_record(self) -> None:
        try:
            if not self._workspace.job_log.update(self._counted()):
                self._end("cancelled", "Another run of the job has begun.")
        except AiQueryError as error:
            level = logging.DEBUG if self._unrecorded else logging.WARNING
            _log.log(level, "How far the job '%s' is cannot be recorded for now. %s", self.name, error)
            self._unrecorded = True

    def _counted(self) -> JobRecord:
        """Return the record of this moment."""
        if self._done.is_set():
            return self._record
        tally, spent = self._run.tally, self._run.meter.spent if self._run.meter is not None else Spent()
        return replace(
            self._record,
            state="paused" if self._run.paused.is_set() else "running",
            rows=tally.rows, known=max(tally.known, tally.answered + tally.in_flight), answered=tally.answered,
            from_ledger=tally.from_ledger, failed=tally.failed, in_flight=self._run.in_flight, calls=spent.calls,
            prompt_tokens=spent.prompt_tokens, completion_tokens=spent.completion_tokens, cost=spent.cost,
            cost_known=spent.cost_known, endpoints=json.dumps(sorted(tally.endpoints)),
        )  # fmt: skip

    @contextmanager
    def _noticing_ctrl_c(self) -> Iterator[None]:
        """Notice Ctrl-C, which DuckDB turns into errors of its own."""
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return

        def pressed(number: int, frame: FrameType | None) -> None:
            self._ctrl_c = True
            self._end("cancelled", "Ctrl-C was pressed.")
            before(number, frame)

        signal.signal(signal.SIGINT, pressed)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def begin(
    connection: duckdb.DuckDBPyConnection,
    workspace: Workspace,
    order: Order,
    *,
    execute: Execute,
    wait: bool = True,
    progress: bool | None = None,
) -> Job:
    """Begin a job, or go on with one; see `Session.job`.

    Args:
        connection: A session's.
        workspace: Where its endpoints, its ledger and the record of its jobs are.
        order: What is to be done.
        execute: Runs a statement on the connection.
        wait: Return when it has ended.
        progress: Whether to show how far it is; by default, where somebody looks.
    """
    workspace.ledger.prepare()
    if wait:
        job = _prepared(connection, workspace, order, execute, owns_handle=False)
        job.run(progress=progress)
        job.wait()
        return job
    handle = _cursor(connection)
    job = _prepared(handle, workspace, order, handle.execute, owns_handle=True)
    threading.Thread(target=job.run, kwargs={"progress": progress}, name="aiquery-job", daemon=True).start()
    return job


def end_all(jobs: Iterable[Job]) -> None:
    """Cancel jobs, and wait a little until they have ended."""
    waiting = list(jobs)
    for job in waiting:
        job.cancel()
    until = time.monotonic() + LEAVE_SECONDS
    for job in waiting:
        with suppress(duckdb.Error, AiQueryError):
            job.wait(max(0.0, until - time.monotonic()))


def _prepared(
    handle: duckdb.DuckDBPyConnection, workspace: Workspace, order: Order, execute: Execute, *, owns_handle: bool
) -> Job:
    """Check all that can be checked before anything is paid for, and record that the job begins."""
    token = secrets.token_hex(4)
    output = choose(order.output, token, handle)
    query = one_query(handle, order.sql)
    text, columns = _with_errors(handle, query) if order.on_error == "record" else (query, described(handle, query))
    check_keys_exist(order.key, columns)
    name = order.called(query, str(output))
    run = order.run(workspace.prices, name)
    _refuse_overwriting(output, query, handle, workspace, overwrite=order.overwrite)
    job = JobRecord(name=name, sql=query, output=str(output), draft=output.draft, run=token)
    output.check(handle)
    try:
        record, before = workspace.job_log.begin(job)
    except AiQueryError:
        discard(output.draft, handle)
        raise
    if before is not None:
        discard(before.draft, handle)
    work = _Work(
        handle=handle, execute=execute, query=text, columns=columns, keys=order.key, output=output,
        owns_handle=owns_handle,
    )  # fmt: skip
    return Job(work, record, run, workspace, order.seconds_left(datetime.now(UTC)))


def _with_errors(handle: duckdb.DuckDBPyConnection, query: str) -> tuple[str, Columns]:
    """Return a query that also tells why rows failed, where its shape lets it."""
    text = sql_text.with_errors(query)
    try:
        return text, described(handle, text)
    except duckdb.Error:
        return query, described(handle, query)


def _refuse_overwriting(
    output: Output, query: str, handle: duckdb.DuckDBPyConnection, workspace: Workspace, *, overwrite: bool
) -> None:
    if overwrite or not output.exists(handle):
        return
    writer = workspace.job_log.writer(str(output))
    if writer is None or writer.sql != query:
        whose = f"the job '{writer.name}', whose query is another," if writer else "no job of this workspace"
        raise InvalidRequestError(
            f"The output exists, and {whose} wrote it: {output}. Say overwrite=True to replace it, or choose another."
        )


def _cursor(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """Return a cursor that finds the same tables."""
    handle = connection.cursor()
    ((path,),) = connection.execute("SELECT current_setting('search_path')").fetchall()
    if path:
        handle.execute("SET search_path = $1", [path])
    return handle


def _epoch_ms() -> int:
    return time.time_ns() // 1_000_000


@atexit.register
def _end_running() -> None:
    end_all(_running)
