"""The workspace's SQLite file: its folder, its schema, and its errors in plain words."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiquery_serving.errors import WorkspaceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The path that means "keep everything in memory".
MEMORY = ":memory:"
#: How long one process waits for another one's write.
BUSY_SECONDS = 10.0

_FIRST_SCHEMA = """
CREATE TABLE endpoints (name TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE, document TEXT NOT NULL);

-- Other processes watch this one number. Triggers count, so that no writer can forget to.
CREATE TABLE endpoints_revision (number INTEGER NOT NULL);
INSERT INTO endpoints_revision VALUES (0);
CREATE TRIGGER endpoints_insert AFTER INSERT ON endpoints
    BEGIN UPDATE endpoints_revision SET number = number + 1; END;
CREATE TRIGGER endpoints_update AFTER UPDATE ON endpoints
    BEGIN UPDATE endpoints_revision SET number = number + 1; END;
CREATE TRIGGER endpoints_delete AFTER DELETE ON endpoints
    BEGIN UPDATE endpoints_revision SET number = number + 1; END;

CREATE TABLE secrets (
    scope TEXT NOT NULL, key TEXT NOT NULL, owner TEXT NOT NULL, sealed BLOB NOT NULL,
    PRIMARY KEY (scope, key)
);

CREATE TABLE usage (
    endpoint TEXT NOT NULL, served_entity TEXT NOT NULL, config_version INTEGER NOT NULL,
    started_ms INTEGER NOT NULL, latency_ms REAL NOT NULL, rows INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    status TEXT NOT NULL, attempts INTEGER NOT NULL, caller TEXT NOT NULL
);
"""

_JOBS_IN_USAGE = "ALTER TABLE usage ADD COLUMN job TEXT NOT NULL DEFAULT '';\n"

_JOBS = """
CREATE TABLE jobs (
    name TEXT PRIMARY KEY, sql TEXT NOT NULL, output TEXT NOT NULL, draft TEXT NOT NULL, run TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL, rows INTEGER NOT NULL, known INTEGER NOT NULL,
    answered INTEGER NOT NULL, from_ledger INTEGER NOT NULL, failed INTEGER NOT NULL, in_flight INTEGER NOT NULL,
    calls INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    cost REAL NOT NULL, cost_known INTEGER NOT NULL, endpoints TEXT NOT NULL, failures TEXT NOT NULL,
    created_ms INTEGER NOT NULL, started_ms INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL, pid INTEGER NOT NULL, host TEXT NOT NULL
);
"""

_ACCESS = """
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, digest BLOB NOT NULL, kind TEXT NOT NULL, principal TEXT NOT NULL, comment TEXT NOT NULL,
    created_ms INTEGER NOT NULL, expires_ms INTEGER
);
CREATE TABLE members (group_name TEXT NOT NULL, principal TEXT NOT NULL, PRIMARY KEY (group_name, principal));
CREATE TABLE permissions (
    endpoint_id TEXT NOT NULL, kind TEXT NOT NULL, principal TEXT NOT NULL, level TEXT NOT NULL,
    PRIMARY KEY (endpoint_id, kind, principal)
);

-- As with endpoints: other processes watch one number.
CREATE TABLE access_revision (number INTEGER NOT NULL);
INSERT INTO access_revision VALUES (0);
CREATE TRIGGER tokens_insert AFTER INSERT ON tokens BEGIN UPDATE access_revision SET number = number + 1; END;
CREATE TRIGGER tokens_update AFTER UPDATE ON tokens BEGIN UPDATE access_revision SET number = number + 1; END;
CREATE TRIGGER tokens_delete AFTER DELETE ON tokens BEGIN UPDATE access_revision SET number = number + 1; END;
CREATE TRIGGER members_insert AFTER INSERT ON members BEGIN UPDATE access_revision SET number = number + 1; END;
CREATE TRIGGER members_update AFTER UPDATE ON members BEGIN UPDATE access_revision SET number = number + 1; END;
CREATE TRIGGER members_delete AFTER DELETE ON members BEGIN UPDATE access_revision SET number = number + 1; END;
CREATE TRIGGER permissions_insert AFTER INSERT ON permissions
    BEGIN UPDATE access_revision SET number = number + 1; END;
CREATE TRIGGER permissions_update AFTER UPDATE ON permissions
    BEGIN UPDATE access_revision SET number = number + 1; END;
CREATE TRIGGER permissions_delete AFTER DELETE ON permissions
    BEGIN UPDATE access_revision SET number = number + 1; END;

CREATE TABLE connections (name TEXT PRIMARY KEY, creator TEXT NOT NULL, document TEXT NOT NULL);

-- What served entities said: `kind` is build (while loading) or serve.
CREATE TABLE served_log (
    endpoint_id TEXT NOT NULL, served_entity TEXT NOT NULL, kind TEXT NOT NULL, at_ms INTEGER NOT NULL,
    line TEXT NOT NULL
);
CREATE INDEX served_log_by_entity ON served_log (endpoint_id, served_entity, kind, at_ms);
"""

_FOUNDATION = """
-- Names that stand for models which are not registered: a folder, a hub's name, or a registered model and version.
CREATE TABLE model_aliases (name TEXT PRIMARY KEY, source TEXT NOT NULL, version TEXT NOT NULL);
-- Tokens per second of one replica of a model on a device: what was told once stays so.
CREATE TABLE throughput_chunks (
    model TEXT NOT NULL, device TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (model, device)
);
"""

#: One script per schema version. Only ever append: files of every older version are out there.
MIGRATIONS = (_FIRST_SCHEMA, _JOBS_IN_USAGE, _JOBS, _ACCESS, _FOUNDATION)

_DAMAGED = (
    "The workspace file '{path}' is damaged or is not a workspace ({reason}). Nothing in it was"
    " changed. Restore it from a backup, or move it aside to start with an empty workspace."
)
_NOT_WRITABLE = (
    "The workspace folder '{folder}' cannot be written ({reason}). Make it writable, or choose"
    " another folder with AIQUERY_HOME."
)
_FULL = (
    "The disk that holds the workspace file '{path}' is full ({reason}). What was stored before is"
    " still there. Free some space and try again."
)
_BUSY = (
    f"The workspace file '{{path}}' has been locked by another process for {BUSY_SECONDS:g} s"
    " ({reason}). Try again, or end that process."
)
_CLOSED = "The workspace '{path}' is closed. Open it again."
_OTHER = "The workspace file '{path}' cannot be used: {reason}."

#: What SQLite's result codes mean to a user; the first prefix that fits counts.
_SENTENCES: tuple[tuple[str, str], ...] = (
    ("SQLITE_CORRUPT", _DAMAGED),
    ("SQLITE_NOTADB", _DAMAGED),
    ("SQLITE_READONLY", _NOT_WRITABLE),
    ("SQLITE_CANTOPEN", _NOT_WRITABLE),
    ("SQLITE_PERM", _NOT_WRITABLE),
    ("SQLITE_FULL", _FULL),
    # The shared-memory file could not grow: SQLite's other way to meet a full disk.
    ("SQLITE_IOERR_SHMSIZE", _FULL),
    ("SQLITE_IOERR_WRITE", _FULL),
    ("SQLITE_BUSY", _BUSY),
    ("SQLITE_LOCKED", _BUSY),
)


class Store:
    """The workspace's SQLite database, for any number of threads and processes.

    One connection behind a lock: SQLite has one writer at a time anyway, and a reader's statements
    here take microseconds.

    Args:
        folder: The workspace folder, made (mode 0700) when missing; None or `:memory:` keeps
            everything in this object.

    Raises:
        WorkspaceError: The folder or the file in it cannot be used; the message says why.
    """

    def __init__(self, folder: Path | str | None) -> None:
        in_memory = folder is None or str(folder) == MEMORY
        self.folder: Path | None = None if in_memory else Path(folder or "").absolute()
        self.path: Path | None = self.folder / "workspace.db" if self.folder else None
        self._lock = threading.RLock()
        if self.folder:
            _make_folder(self.folder)
        with self._translated():
            self._connection = self._open()
        weakref.finalize(self, self._connection.close)

    def __repr__(self) -> str:
        return f"Store('{self.path or MEMORY}')"

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for reading.

        Raises:
            WorkspaceError: SQLite cannot read the file.
        """
        with self._lock, self._translated():
            yield self._connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for one transaction: all of the block is stored, or nothing.

        A block inside another one joins the outer transaction.

        Raises:
            WorkspaceError: SQLite cannot write the file. What was stored before is unchanged.
        """
        with self._lock, self._translated():
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.commit()
            except BaseException:
                with suppress(sqlite3.Error):
                    self._connection.rollback()
                raise

    def glance(self, sql: str) -> tuple[Any, ...] | None:
        """Return the first row of a query, or None when another thread is using the store.

        Never waits for another thread, so that an event loop may call it.

        Raises:
            WorkspaceError: SQLite cannot read the file.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            with self._translated():
                row: tuple[Any, ...] | None = self._connection.execute(sql).fetchone()
                return row
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the file. Any later use raises WorkspaceError."""
        with self._lock, self._translated():
            self._connection.close()

    def _open(self) -> sqlite3.Connection:
        if self.path:
            create_private(self.path)
        connection = sqlite3.connect(
            self.path or MEMORY,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Reading first: a damaged file or one from the future is left exactly as it is.
        self._refuse_newer(_schema_version(connection))
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if _schema_version(connection) < len(MIGRATIONS):
            self._migrate(connection)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have come first.
            version = _schema_version(connection)
            self._refuse_newer(version)
            for statement in _statements(MIGRATIONS[version:]):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            connection.commit()
        except BaseException:
            with suppress(sqlite3.Error):
                connection.rollback()
            raise

    def _refuse_newer(self, version: int) -> None:
        if version > len(MIGRATIONS):
            raise WorkspaceError(
                f"The workspace file '{self.path}' was written by a newer aiquery (schema"
                f" {version}; this one knows schemas up to {len(MIGRATIONS)}). Upgrade aiquery,"
                " or choose another folder with AIQUERY_HOME."
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise WorkspaceError(self._sentence(error)) from error
        except OSError as error:
            if self.folder is None or error.filename != str(self.path):
                raise
            raise WorkspaceError(_folder_sentence(self.folder, error)) from error

    def _sentence(self, error: sqlite3.Error) -> str:
        name = getattr(error, "sqlite_errorname", "")
        template = next((text for prefix, text in _SENTENCES if name.startswith(prefix)), _OTHER)
        if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
            template = _CLOSED
        return template.format(path=self.path or MEMORY, folder=self.folder, reason=error)


def create_private(path: Path) -> None:
    """Make an empty file that only its owner can read, where there is none; SQLite's own beside it take its mode.

    One that is there is not touched: closing it would give up the locks that this process has on it.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _statements(scripts: Sequence[str]) -> Iterator[str]:
    """Cut scripts into statements: `executescript` would commit before it begins."""
    statement = ""
    for line in "".join(scripts).splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _schema_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _make_folder(folder: Path) -> None:
    try:
        if folder.is_dir():
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A workspace inside somebody's repository must not be committed with its keys.
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as error:
        raise WorkspaceError(_folder_sentence(folder, error)) from error


def _folder_sentence(folder: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"The workspace '{folder}' is not a folder ({reason}). Name a folder, or a path where one can be made."
    return _NOT_WRITABLE.format(folder=folder, reason=reason)
