"""The workspace's record of jobs: what each is to do, how far it came, and whether its process still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from aiquery_serving.clock import SystemClock
from aiquery_serving.errors import InvalidRequestError

if TYPE_CHECKING:
    import sqlite3

    from aiquery_serving.store import Store

#: What becomes of a job; `interrupted` is one whose process died.
State: TypeAlias = Literal["running", "paused", "finished", "failed", "stopped", "cancelled", "interrupted"]
#: A process that lives updates its jobs every second. After so long without, another one has got its number.
SILENCE_MS: Final = 30_000
_UNDER_WAY: Final = ("running", "paused")
#: The runs that this process has under way; an earlier one may have had its number.
_own: Final[set[str]] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job, as its latest run left it.

    `output` says where its rows go, `draft` where they are until they are whole, `run` which run this is.
    Times are milliseconds since 1970; `ended_ms` is 0 while it runs, `created_ms` the start of its first run.
    `rows` counts rows, `known` to `in_flight` distinct requests; `cost` is in dollars, a lower bound unless
    `cost_known`. `endpoints` and `failures` are JSON.
    """

    name: str
    sql: str
    output: str
    draft: str
    run: str
    state: State = "running"
    reason: str = ""
    rows: int = 0
    known: int = 0
    answered: int = 0
    from_ledger: int = 0
    failed: int = 0
    in_flight: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    cost_known: bool = True
    endpoints: str = "[]"
    failures: str = "[]"
    created_ms: int = 0
    started_ms: int = 0
    updated_ms: int = 0
    ended_ms: int = 0
    pid: int = 0
    host: str = ""


_COLUMNS: Final = tuple(field.name for field in fields(JobRecord))
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM jobs ORDER BY started_ms DESC, name"  # noqa: S608 - the dataclass's own names
_PUT: Final = f"INSERT OR REPLACE INTO jobs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
_UPDATE: Final = f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in _COLUMNS)} WHERE name = ? AND run = ?"  # noqa: S608


class JobLog:
    """Keeps the latest run of every job of a workspace, for all processes to see."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._clock = SystemClock()

    def begin(self, job: JobRecord) -> tuple[JobRecord, JobRecord | None]:
        """Record that a run of a job begins.

        Returns:
            The record, with its process and times, and that of the job's run before this one.

        Raises:
            InvalidRequestError: The job is under way, or another one with the same output.
            WorkspaceError: The workspace cannot be written.
        """
        now = self._clock.epoch_ms()
        with self._store.write() as connection:
            others = self._read(connection)
            for other in others:
                if other.state in _UNDER_WAY and (other.name == job.name or other.output == job.output):
                    raise InvalidRequestError(_busy(other))
            before = next((other for other in others if other.name == job.name), None)
            same = before is not None and (before.sql, before.output) == (job.sql, job.output)
            created = before.created_ms if before is not None and same else now
            begun = replace(
                job, created_ms=created, started_ms=now, updated_ms=now, pid=os.getpid(), host=socket.gethostname()
            )
            connection.execute(_PUT, astuple(begun))
            _own.add(begun.run)
        return begun, before

    def update(self, job: JobRecord) -> bool:
        """Record how far a run is; says False when another run of the job has begun since.

        Raises:
            WorkspaceError: The workspace cannot be written.
        """
        now = self._clock.epoch_ms()
        if job.state not in _UNDER_WAY:
            job = replace(job, ended_ms=now)
            _own.discard(job.run)
        with self._store.write() as connection:
            values = (*astuple(replace(job, updated_ms=now)), job.name, job.run)
            return connection.execute(_UPDATE, values).rowcount == 1

    def all(self) -> list[JobRecord]:
        """Return every job, the one that began last first.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        with self._store.read() as connection:
            return self._read(connection)

    def find(self, name: str) -> JobRecord | None:
        """Return the job of that name, if there is one."""
        return next((job for job in self.all() if job.name == name), None)

    def writer(self, output: str) -> JobRecord | None:
        """Return the job that was the last to begin writing an output, if one was."""
        return next((job for job in self.all() if job.output == output), None)

    def _read(self, connection: sqlite3.Connection) -> list[JobRecord]:
        found = [JobRecord(**dict(zip(_COLUMNS, row, strict=True))) for row in connection.execute(_SELECT)]
        return [self._seen(replace(job, cost_known=bool(job.cost_known))) for job in found]

    def _seen(self, job: JobRecord) -> JobRecord:
        """Return a job with the state that it really has."""
        if job.state not in _UNDER_WAY or self._lives(job):
            return job
        return replace(job, state="interrupted", reason="Its process ended. Run it again to go on.", in_flight=0)

    def _lives(self, job: JobRecord) -> bool:
        if self._clock.epoch_ms() - job.updated_ms > SILENCE_MS:
            return False
        if job.host != socket.gethostname():
            return True
        return job.run in _own if job.pid == os.getpid() else _process_lives(job.pid)


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _busy(job: JobRecord) -> str:
    return (
        f"The job '{job.name}', which writes {job.output}, is {job.state} in process {job.pid} on '{job.host}'."
        " Wait for it, or cancel it, before you begin it anew."
    )
