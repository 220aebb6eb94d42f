"""The ledger's SQLite file: an entry as a sealed row, the file of such rows, and its errors in plain words."""

from __future__ import annotations

import errno
import os
import sqlite3
import struct
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xxhash
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aiquery_serving.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

KEY_BYTES = 16
CIPHER_KEY_BYTES = 32
SCHEMA_VERSION = 1
#: How long one process waits for another one's write.
BUSY_SECONDS = 10.0
#: How long one that works through the whole file lets others write in between.
PAUSE_SECONDS = 0.01
_PAGES_AT_ONCE = 2_000
_DIGEST_BYTES, _NONCE_BYTES = 8, 12
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
INSERT = f"INSERT INTO entries ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608

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


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer: the name of the error's class, and its text."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One answer that was paid for, or the failure that was.

    `key` is the caller's content address, 16 bytes. `answer` is a text, a vector of shape `(n,)`, or None for a NULL
    or a failure. `written_ms` is the wall clock in milliseconds since 1970; 0 is replaced when the entry is written.
    """

    key: bytes
    endpoint: str
    served_entity: str
    answer: str | NDArray[np.float32] | None
    failure: Failure | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1
    written_ms: int = 0


class Checksum:
    """Leaves bodies in clear, with a checksum over all fields of the row behind."""

    def close(self, body: bytes, header: bytes) -> bytes:
        """Return what is stored for the body of a row with that header."""
        return body + xxhash.xxh3_64_digest(header + body)

    def open(self, sealed: bytes, header: bytes) -> bytes:
        """Return the body; raise ValueError when it or the header is another."""
        body = sealed[:-_DIGEST_BYTES]
        if sealed != self.close(body, header):
            raise ValueError("The checksum is another.")
        return body


class Cipher:
    """Encrypts bodies with AES-256-GCM, bound to the other fields of their rows."""

    def __init__(self, key: bytes) -> None:
        if len(key) != CIPHER_KEY_BYTES:
            raise LedgerError(f"The key of the ledger needs {CIPHER_KEY_BYTES} bytes, got {len(key)}.")
        self._cipher = AESGCM(key)

    def close(self, body: bytes, header: bytes) -> bytes:
        """Return what is stored for the body of a row with that header."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, body, header)

    def open(self, sealed: bytes, header: bytes) -> bytes:
        """Return the body; raise InvalidTag or ValueError when it, the header or the key is another."""
        return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], header)


#: What makes a row show that it was changed.
Seal: TypeAlias = Checksum | Cipher

_NOTHING, _TEXT, _VECTOR, _FAILURE = range(4)
_FIXED = struct.Struct("<16sqBqqq")


def to_row(entry: Entry, seal: Seal, *, now_ms: int) -> tuple[Any, ...]:
    """Return an entry as a row; `now_ms` (since 1970) dates an entry without a time.

    Raises:
        LedgerError: The entry holds what no ledger can hold; the message says what.
    """
    if len(entry.key) != KEY_BYTES:
        raise LedgerError(f"The key of a ledger entry has {KEY_BYTES} bytes, not {len(entry.key)}.")
    if entry.failure and entry.answer is not None:
        raise LedgerError("A ledger entry holds an answer or a failure, not both.")
    form, body = _body(entry)
    failure = entry.failure.kind if entry.failure else None
    start = (entry.key, entry.written_ms or now_ms)
    numbers = (form, entry.prompt_tokens, entry.completion_tokens, entry.attempts)
    try:
        names = [name.encode() for name in (entry.endpoint, entry.served_entity, failure or "")]
        sealed = seal.close(body, _header(start, names, numbers))
    except (UnicodeEncodeError, struct.error) as error:
        raise LedgerError(f"The ledger cannot hold an entry of the endpoint {entry.endpoint!a}: {error}.") from error
    return (*start, entry.endpoint, entry.served_entity, failure, *numbers, sealed)


def to_entry(row: tuple[Any, ...], seal: Seal) -> Entry | None:
    """Return the entry of a row whose texts are bytes, or None for a damaged row."""
    try:
        key, written_ms, endpoint, served_entity, kind, form, prompt_tokens, completion_tokens, attempts, sealed = row
        numbers = (form, prompt_tokens, completion_tokens, attempts)
        body = seal.open(sealed, _header((key, written_ms), [endpoint, served_entity, kind or b""], numbers))
        text = "" if form == _VECTOR else body.decode("utf-8", "surrogatepass")
        return Entry(
            key=key,
            endpoint=endpoint.decode(),
            served_entity=served_entity.decode(),
            answer=np.frombuffer(body, "<f4") if form == _VECTOR else text if form == _TEXT else None,
            failure=Failure(kind.decode(), text) if form == _FAILURE else None,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            attempts=attempts,
            written_ms=written_ms,
        )
    except (InvalidTag, ValueError, TypeError, AttributeError, struct.error):
        return None


def _header(start: tuple[bytes, int], names: list[bytes], numbers: tuple[int, int, int, int]) -> bytes:
    return _FIXED.pack(*start, *numbers) + b"\0".join(names)


def _body(entry: Entry) -> tuple[int, bytes]:
    if entry.failure:
        return _FAILURE, entry.failure.message.encode("utf-8", "surrogatepass")
    if entry.answer is None:
        return _NOTHING, b""
    if isinstance(entry.answer, str):
        return _TEXT, entry.answer.encode("utf-8", "surrogatepass")
    if entry.answer.dtype != "float32" or entry.answer.ndim != 1:
        raise LedgerError("The vector of a ledger entry has one dimension of float32.")
    return _VECTOR, entry.answer.astype("<f4", copy=False).tobytes()


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


def number(connection: sqlite3.Connection, sql: str) -> int:
    """Return the one number that a statement answers."""
    return int(connection.execute(sql).fetchone()[0])


def _close_in(process: int, connection: sqlite3.Connection) -> None:
    # What a fork inherited belongs to its parent.
    if os.getpid() == process:
        connection.close()
