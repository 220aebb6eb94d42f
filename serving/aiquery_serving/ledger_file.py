"""The ledger's SQLite file, and its errors in plain words."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidTag

from aiquery_serving.errors import LedgerError
from aiquery_serving.ledger_rows import Seal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


SCHEMA_VERSION = 1
#: How long one process waits for another one's write.
BUSY_SECONDS = 10.0
#: How long one that works through the whole file lets others write in between.
PAUSE_SECONDS = 0.01
_PAGES_AT_ONCE = 2_000
_PROVEN = b"aiquery/ledger"

# No index on `key`: random keys in a tree make writing 5 to 15 times slower. Readers hold them in memory.
_SCHEMA = (
    # `edition` changes whenever rows go, `proof` is sealed with the key that seals the rows.
    "CREATE TABLE ledger (edition BLOB NOT NULL, proof BLOB NOT NULL)",
    """CREATE TABLE entries (
        id INTEGER PRIMARY KEY, key BLOB NOT NULL, written_ms INTEGER NOT NULL, endpoint TEXT NOT NULL,
        served_entity TEXT NOT NULL, failure TEXT, form INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL, attempts INTEGER NOT NULL, body BLOB NOT NULL)""",
)
_COLUMNS = "key, written_ms, endpoint, served_entity, failure, form, prompt_tokens, completion_tokens, attempts, body"
SELECT = f"SELECT {_COLUMNS} FROM entries WHERE id = ?"  # noqa: S608 - our own names
_VALUES = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
#: Rows of one INSERT. For each row of `executemany` a thread would wait for the interpreter again, behind a busy one.
_TOGETHER = (256, 64, 16, 4, 1)

_NEW = "move it and its '-wal' and '-shm' files aside to begin a new one"
_DAMAGED = (
    "The ledger '{path}' is damaged or is not a ledger ({reason}). Nothing in it was changed. Restore it from a"
    f" backup, or {_NEW}, which pays for its answers again."
)
_NOT_WRITABLE = (
    "The ledger '{path}' cannot be opened for writing ({reason}). Make the file and its folder writable, or choose"
    " another folder with AIQUERY_HOME."
)
_FULL = "The disk of the ledger '{path}' is full ({reason}). What was stored is safe. Free some space and try again."
_BUSY = "Another process has locked the ledger '{path}' for too long ({reason}). Try again, or end that process."
_OTHER = "The ledger '{path}' cannot be used: {reason}."
_CLOSED = "The ledger '{path}' is closed. Open it again."
_NEWER = (
    "The ledger '{path}' was written by a newer aiquery (schema {version}; this one knows schemas up to"
    f" {SCHEMA_VERSION}). Upgrade aiquery, or choose another folder with AIQUERY_HOME."
)
_OTHER_KEY = (
    "The ledger '{path}' was begun with another key, or with a key where none is given now, or the other way round."
    f" Open it as it was begun, or {_NEW}."
)

#: What SQLite's result codes mean to a user, by the beginnings of their names.
_SENTENCES = {
    _DAMAGED: ("SQLITE_CORRUPT", "SQLITE_NOTADB"),
    _NOT_WRITABLE: ("SQLITE_READONLY", "SQLITE_CANTOPEN"),
    _FULL: ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_WRITE"),
    _BUSY: ("SQLITE_BUSY",),
}


class LedgerFile:
    """One connection to the ledger's file, opened when first used, for any number of threads.

    A file that was moved, deleted or replaced meanwhile is noticed: the next use opens what is there then.
    """

    def __init__(self, path: Path | None, seal: Seal) -> None:
        self.path = path
        self._seal = seal
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._place: tuple[int, int] | None = None
        self._closed = False

    def __str__(self) -> str:
        return str(self.path or ":memory:")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection | None]:
        """Lend the connection for one consistent view of the rows; None when nothing was ever written.

        Raises:
            LedgerError: The file cannot be read.
        """
        with self._lock, self._translated():
            if self._look() is None:
                yield None
                return
            connection = self._connected()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.rollback()  # a commit would fail once more for a damaged row

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for one transaction: all of the block is on disk afterwards, or nothing.

        Raises:
            LedgerError: The file cannot be written. What was stored before is unchanged.
        """
        with self._lock, self._translated(), _transaction(connection := self._connected()):
            yield connection

    def give_back(self) -> None:
        """Give the room of deleted rows back to the disk, a little at a time so that others may write in between.

        Raises:
            LedgerError: The file cannot be written.
        """
        while self._free_pages():
            self._script(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")
            time.sleep(PAUSE_SECONDS)
        self._script("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file. Any later use raises LedgerError."""
        with self._lock:
            self._drop()
            self._closed = True

    def _free_pages(self) -> int:
        with self.read() as connection:
            return number(connection, "PRAGMA freelist_count") if connection else 0

    def _script(self, sql: str) -> None:
        with self._lock, self._translated():
            if self._look():
                self._connected().executescript(sql)  # `execute` would free one page only

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None or self._place != self._look():
            self._drop()
            self._connection = self._open()
            self._place = self._look()
        return self._connection

    def _look(self) -> tuple[int, int] | None:
        """Say which file is there now; None for none, or one that another process has only begun to make."""
        if self.path is None:
            return (0, 0) if self._connection else None
        with suppress(FileNotFoundError):
            found = self.path.stat()
            return (found.st_dev, found.st_ino) if found.st_size else None
        return None

    def _open(self) -> sqlite3.Connection:
        if self.path:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = self.path or ":memory:"
        connection = sqlite3.connect(place, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        if self.path and not self._look():
            # Still empty. SQLite's own files beside it (-wal, -shm) take its mode. Opening and closing it here would
            # give up the locks that this process has on it.
            self.path.chmod(0o600)
        # A damaged text must not fail the reading of all others.
        connection.text_factory = bytes
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        weakref.finalize(self, _close_in, os.getpid(), connection)
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Reading first: a damaged file or one from the future is left exactly as it is.
        version = number(connection, "PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise self._error(_NEWER, version=version)
        if not version:
            # Both count only before the first table; whoever comes second changes nothing.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            self._create(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = FAST")
        (proof,) = connection.execute("SELECT proof FROM ledger").fetchone()
        try:
            self._seal.open(proof, _PROVEN)
        except (InvalidTag, ValueError) as error:
            raise self._error(_OTHER_KEY) from error

    def _create(self, connection: sqlite3.Connection) -> None:
        with _transaction(connection):
            if number(connection, "PRAGMA user_version"):
                return
            for statement in _SCHEMA:
                connection.execute(statement)
            proof = self._seal.close(b"", _PROVEN)
            connection.execute("INSERT INTO ledger VALUES (randomblob(8), ?)", (proof,))
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _drop(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        if self._closed:
            raise self._error(_CLOSED)
        try:
            yield
        except sqlite3.Error as error:
            template = next((text for text, names in _SENTENCES.items() if _named(error, *names)), _OTHER)
            raise self._error(template, reason=error) from error
        except OSError as error:
            template = _FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else _NOT_WRITABLE
            raise self._error(template, reason=error.strerror) from error

    def _error(self, template: str, **facts: Any) -> LedgerError:
        return LedgerError(template.format(path=self, **facts))


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    with connection:  # commits, or rolls back
        yield


@contextmanager
def damage_passed_over() -> Iterator[None]:
    """Leave the block where SQLite finds the file damaged."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if not _named(error, "SQLITE_CORRUPT"):
            raise


def _named(error: sqlite3.Error, *beginnings: str) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith(beginnings)


def insert(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Store rows, in few statements."""
    start = 0
    for size in _TOGETHER:
        values = ", ".join([_VALUES] * size)
        while len(rows) - start >= size:
            flat = list(chain.from_iterable(rows[start : start + size]))
            connection.execute(f"INSERT INTO entries ({_COLUMNS}) VALUES {values}", flat)  # noqa: S608 - our own names
            start += size


def number(connection: sqlite3.Connection, sql: str) -> int:
    """Return the one number that a statement answers."""
    return int(connection.execute(sql).fetchone()[0])


def _close_in(process: int, connection: sqlite3.Connection) -> None:
    # What a fork inherited belongs to its parent.
    if os.getpid() == process:
        connection.close()
