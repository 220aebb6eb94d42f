"""The file in which the processes of a workspace keep what each holds of shared rate limits.

A file of its own, `limits.db`, rather than a table of the workspace: what it holds matters for a minute,
so it is never flushed to the disk, and nobody who stores something else stands in its way. Nobody ever
waits for its lock here.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aiquery_serving.errors import WorkspaceError
from aiquery_serving.shares import Demand, Grant
from aiquery_serving.store import create_private

#: The schema's version; another one's file is left alone.
VERSION = 1
#: Milliseconds after which nothing counts any more, whatever the period.
_FORGOTTEN_MS = 3_600_000

_SCHEMA = f"""
CREATE TABLE grants (
    window TEXT, lease TEXT, owner TEXT NOT NULL, calls INTEGER NOT NULL, tokens INTEGER NOT NULL,
    last_ms INTEGER NOT NULL, PRIMARY KEY (window, lease)
) WITHOUT ROWID;
CREATE TABLE demands (
    window TEXT, owner TEXT, since_ms INTEGER NOT NULL, calls INTEGER NOT NULL, tokens INTEGER NOT NULL,
    first INTEGER NOT NULL, seen_ms INTEGER NOT NULL, PRIMARY KEY (window, owner)
) WITHOUT ROWID;
PRAGMA user_version = {VERSION}"""


class LeaseFile:
    """The file's tables: grants and demands by window, which is one limit as it counts one caller.

    Opened at the first transaction. For one thread at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "limits.db"
        self._connection: sqlite3.Connection | None = None

    @contextmanager
    def transaction(self, now_ms: int) -> Iterator[None]:
        """Have the file to ourselves: all of the block is stored, or nothing.

        Raises:
            BlockingIOError: Another process has it just now. Ask again in some milliseconds.
            WorkspaceError: The file cannot be used.
        """
        try:
            connection = self._connection = self._connection or self._open(now_ms)
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            meant = self._meant(error)
            if isinstance(meant, WorkspaceError):
                self.close()
            raise meant from error

    def grants(self, window: str, after_ms: int) -> list[Grant]:
        """Return the grants that may still count, and drop the others."""
        self._execute("DELETE FROM grants WHERE window = ? AND last_ms <= ?", window, after_ms)
        found = self._execute("SELECT owner, calls, tokens, last_ms FROM grants WHERE window = ?", window)
        return [Grant(*row) for row in found]

    def put_back(self, window: str, latest_ms: int) -> None:
        """Mend grants from a future that cannot be: the machine's clock was set back."""
        self._execute("UPDATE grants SET last_ms = ?2 WHERE window = ?1 AND last_ms > ?2", window, latest_ms)

    def demands(self, window: str, owner: str, since_ms: int, until_ms: int) -> list[Demand]:
        """Return what others wait for, as far as they have said so in that time."""
        found = self._execute(
            "SELECT owner, since_ms, calls, tokens, first FROM demands"
            " WHERE window = ? AND owner <> ? AND seen_ms BETWEEN ? AND ?",
            window, owner, since_ms, until_ms,
        )  # fmt: skip
        return [Demand(*row) for row in found]

    def post(self, window: str, lease: str, grant: Grant) -> None:
        """Store a grant, or what has become of it."""
        self._execute("INSERT OR REPLACE INTO grants VALUES (?, ?, ?, ?, ?, ?)", window, lease, *grant)

    def demand(self, window: str, demand: Demand, now_ms: int) -> None:
        """Store what its owner waits for; nothing when it waits for no calls."""
        if demand.calls:
            self._execute("INSERT OR REPLACE INTO demands VALUES (?, ?, ?, ?, ?, ?, ?)", window, *demand, now_ms)
        else:
            self._execute("DELETE FROM demands WHERE window = ? AND owner = ?", window, demand.owner)

    def close(self) -> None:
        """Close the file; the next transaction opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _execute(self, sql: str, *values: object) -> Iterable[tuple[Any, ...]]:
        assert self._connection is not None, "only inside a transaction"  # noqa: S101 - no caller's doing
        return self._connection.execute(sql, values)

    def _open(self, now_ms: int) -> sqlite3.Connection:
        # It names callers, so it is for its owner alone, as the workspace is.
        create_private(self.path)
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(connection, now_ms)
        except BaseException:
            connection.close()
            raise
        weakref.finalize(self, connection.close)
        return connection

    def _prepare(self, connection: sqlite3.Connection, now_ms: int) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA wal_autocheckpoint = 100")
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"it was written by another version of aiquery, with schema {version}")
        for statement in _SCHEMA.split(";") if version == 0 else ():
            connection.execute(statement)
        for column, table in (("last_ms", "grants"), ("seen_ms", "demands")):
            connection.execute(f"DELETE FROM {table} WHERE {column} <= ?", (now_ms - _FORGOTTEN_MS,))  # noqa: S608 - the names above
        connection.execute("COMMIT")

    def _meant(self, error: sqlite3.Error | OSError) -> Exception:
        if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return BlockingIOError(f"'{self.path}' is locked by another process")
        return WorkspaceError(
            f"'{self.path}' cannot be used ({error}). It only holds what was sent in the last minute: with no process"
            " using the workspace it can be deleted."
        )
