"""The ledger: every answer that was paid for, found again by its content address, on disk before anybody sees it."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

from aiquery_serving.clock import SystemClock
from aiquery_serving.errors import LedgerError
from aiquery_serving.key_index import KeyIndex
from aiquery_serving.ledger_export import write_lines, write_parquet
from aiquery_serving.ledger_file import PAUSE_SECONDS, SELECT, LedgerFile, damage_passed_over, insert, number
from aiquery_serving.ledger_rows import Checksum, Cipher, Entry, Failure, Seal, to_entry, to_row

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from aiquery_serving.messages import Json

__all__ = ["Entry", "Failure", "Ledger"]

#: Entries that `recent` returns unless it is told otherwise.
MOST_RECENT = 100_000
_ROWS_READ = 1_000
_ROWS_DELETED = 10_000
_STATS = ("answers", "failures", "prompt_tokens", "completion_tokens", "bytes", "oldest_ms", "newest_ms")
_TOTALS = (
    "SELECT endpoint, served_entity, sum(failure IS NULL), sum(failure IS NOT NULL), sum(prompt_tokens),"
    " sum(completion_tokens), sum(length(body)), min(written_ms), max(written_ms)"
    " FROM entries GROUP BY endpoint, served_entity ORDER BY endpoint, served_entity"
)
_NEW_ROWS = " FROM entries WHERE id > ? ORDER BY id"
_RECENT = (
    "SELECT id FROM entries WHERE written_ms >= :since_ms AND (failure IS NOT NULL OR NOT :failed)"
    " AND (:endpoints IS NULL OR endpoint IN (SELECT value FROM json_each(:endpoints))) ORDER BY id DESC LIMIT :most"
)
_LAST = "SELECT coalesce(max(id), 0) FROM entries"
_DELETE = (
    "DELETE FROM entries WHERE id > :after AND id <= :after + :rows"
    " AND (:before_ms IS NULL OR written_ms < :before_ms) AND (:endpoint IS NULL OR endpoint = :endpoint)"
)

_log = logging.getLogger("aiquery.ledger")
_Waiting: TypeAlias = "tuple[tuple[Any, ...], asyncio.Future[None]]"


class Ledger:
    """A durable record of answers, in `ledger.db` in the workspace folder, shared by any number of processes.

    The file is made by the first write. Each row shows whether it was changed: a damaged one is counted in `damaged`,
    logged once, and treated as not there. A process that was forked begins with connections of its own.

    Args:
        folder: The workspace folder; None keeps everything in memory.
        cipher_key: 32 bytes that encrypt answers and error texts (AES-256-GCM); None stores them in clear.

    Raises:
        LedgerError: The key has not 32 bytes.
    """

    def __init__(self, folder: Path | None, *, cipher_key: bytes | None = None) -> None:
        self._path = folder.absolute() / "ledger.db" if folder else None
        self._seal: Seal = Checksum() if cipher_key is None else Cipher(cipher_key)
        self._mine = _Opened(self._path, self._seal)
        self._inherited: list[_Opened] = []

    def __repr__(self) -> str:
        return f"Ledger('{self._path or ':memory:'}')"

    @property
    def damaged(self) -> int:
        """How many damaged rows this process has met."""
        return len(self._opened.reader.damaged)

    def find(self, keys: Collection[bytes], *, since_ms: int | None = None) -> dict[bytes, Entry]:
        """Return the latest entry of each key that has one, whichever process wrote it. Any thread may call it.

        Args:
            keys: Content addresses, 16 bytes each.
            since_ms: Leave out keys whose latest entry is older, in milliseconds since 1970.

        Returns:
            Entries by key; vectors in them are read-only.

        Raises:
            LedgerError: The file cannot be read, or was encrypted with another key.
        """
        found = self._opened.reader.find(keys)
        return {key: entry for key, entry in found.items() if since_ms is None or entry.written_ms >= since_ms}

    async def write(self, entry: Entry) -> None:
        """Store an entry; it is on disk when this returns, together with all others that waited.

        A caller that is cancelled stops waiting; the entry is stored all the same.

        Raises:
            LedgerError: The entry is not stored; the message says why.
        """
        row = to_row(entry, self._seal, now_ms=SystemClock().epoch_ms())
        stored = asyncio.get_running_loop().create_future()
        self._opened.writer.put(row, stored)
        await stored

    def recent(
        self, *, since_ms: int, endpoints: Collection[str] = (), failed: bool = False, most: int = MOST_RECENT
    ) -> list[Entry]:
        """Return the entries that were written last, the latest first.

        Args:
            since_ms: No earlier ones, in milliseconds since 1970.
            endpoints: Only theirs, if there are any.
            failed: Only failures.
            most: How many at most.

        Raises:
            LedgerError: The file cannot be read.
        """
        names = orjson.dumps(list(endpoints)).decode() if endpoints else None
        wanted = {"since_ms": since_ms, "endpoints": names, "failed": failed, "most": most}
        return self._opened.reader.select(_RECENT, wanted)

    def stats(self) -> list[Json]:
        """Return what is stored per endpoint and served entity, in order of their names.

        Returns:
            Objects with endpoint, served_entity, answers, failures, prompt_tokens, completion_tokens, bytes (of
            answers and error texts as stored), oldest_ms and newest_ms (since 1970).

        Raises:
            LedgerError: The file cannot be read.
        """
        with self._opened.reader.file.read() as connection:
            return [_as_object(*row) for row in connection.execute(_TOTALS)] if connection else []

    def prune(self, *, before_ms: int | None = None, endpoint: str | None = None) -> int:
        """Delete entries and give their room back to the disk. Other processes may write meanwhile.

        Args:
            before_ms: Only entries written before, in milliseconds since 1970.
            endpoint: Only those of this endpoint. With neither argument all entries go.

        Returns:
            How many entries were deleted.

        Raises:
            LedgerError: The file cannot be written.
        """
        self.flush()
        file, wanted = self._opened.writer.file, {"before_ms": before_ms, "endpoint": endpoint}
        with file.read() as connection:
            last = number(connection, _LAST) if connection else 0
        count = sum(_delete(file, wanted, after) for after in range(0, last, _ROWS_DELETED))
        file.give_back()
        return count

    def export(self, path: Path) -> int:
        """Write all entries to a file that only its owner may read, in place of one that is there.

        The columns are key (hex), endpoint, served_entity, answer, vector, failure_kind, failure_message,
        prompt_tokens, completion_tokens, attempts and written_at (UTC). A lone surrogate in a text is spelled out.

        Args:
            path: Ending in `.jsonl` for JSON lines; Parquet otherwise.

        Returns:
            How many entries were written.

        Raises:
            LedgerError: The ledger cannot be read, or that file not be written.
        """
        self.flush()
        draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
        write = write_lines if path.suffix == ".jsonl" else write_parquet
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                count = write(file, self._opened.reader.entries())
            draft.replace(path)
        except OSError as error:
            raise LedgerError(f"The ledger cannot be exported to '{path}': {error}. Choose another place.") from error
        finally:
            with suppress(OSError):
                draft.unlink()
        return count

    def prepare(self) -> None:
        """Make the file and open it, so that the first answer does not wait for that.

        Raises:
            LedgerError: The file cannot be made or opened.
        """
        self._opened.writer.prepare()

    def flush(self) -> None:
        """Wait until all entries that were handed to `write` are on disk, or have failed."""
        self._opened.writer.flush()

    def close(self) -> None:
        """Store what still waits, end the thread and close the file. Any later use raises LedgerError."""
        self._opened.writer.close()
        self._opened.reader.file.close()

    @property
    def _opened(self) -> _Opened:
        """What this process has open: locks, threads and connections do not survive a fork."""
        if self._mine.process != os.getpid():
            self._inherited.append(self._mine)  # closing it would be felt by the parent
            self._mine = _Opened(self._path, self._seal)
        return self._mine


class _Opened:
    """What one process has open of a ledger: one connection that reads and one that writes."""

    def __init__(self, path: Path | None, seal: Seal) -> None:
        self.process = os.getpid()
        self.reader = _Reader(LedgerFile(path, seal), seal)
        # In memory, two connections would be two databases.
        self.writer = _Writer(LedgerFile(path, seal) if path else self.reader.file)


class _Reader:
    """Knows where the latest row of each key is, whoever wrote it, and reads rows."""

    def __init__(self, file: LedgerFile, seal: Seal) -> None:
        self.file = file
        self.damaged: set[int] = set()
        self._seal = seal
        self._ids = KeyIndex()
        self._seen = 0
        self._edition = b""

    def find(self, keys: Collection[bytes]) -> dict[bytes, Entry]:
        with self.file.read() as connection:
            if connection is None:
                return {}
            self._catch_up(connection)
            found = ((key, self._entry(connection, row_id)) for key, row_id in self._ids.find(list(keys)).items())
            return {key: entry for key, entry in found if entry and entry.key == key}

    def entries(self) -> Iterator[list[Entry]]:
        """Read all entries in the order in which they were written, some at a time."""
        after, page = 0, f"SELECT id{_NEW_ROWS} LIMIT ?"
        while True:
            with self.file.read() as connection:
                ids = [row[0] for row in connection.execute(page, (after, _ROWS_READ))] if connection else []
                read = (self._entry(connection, row_id) for row_id in ids) if connection else ()
                batch = [entry for entry in read if entry]
            if not ids:
                return
            after = ids[-1]
            yield batch

    def select(self, ids: str, wanted: Json) -> list[Entry]:
        """Read the entries whose ids a query yields."""
        with self.file.read() as connection:
            if connection is None:
                return []
            read = (self._entry(connection, row_id) for (row_id,) in connection.execute(ids, wanted).fetchall())
            return [entry for entry in read if entry]

    def _catch_up(self, connection: sqlite3.Connection) -> None:
        (edition,) = connection.execute("SELECT edition FROM ledger").fetchone()
        if edition != self._edition:  # rows went, or it is another file
            self._ids, self._seen, self._edition = KeyIndex(), 0, edition
        with damage_passed_over():
            self._ids.add(connection.execute(f"SELECT key, id{_NEW_ROWS}", (self._seen,)))
            self._seen = number(connection, _LAST)
            return
        ids = [row_id for (row_id,) in connection.execute(f"SELECT id{_NEW_ROWS}", (self._seen,))]
        for self._seen in ids:
            if entry := self._entry(connection, self._seen):
                self._ids.add([(entry.key, self._seen)])

    def _entry(self, connection: sqlite3.Connection, row_id: int) -> Entry | None:
        row = None
        with damage_passed_over():
            row = connection.execute(SELECT, (row_id,)).fetchone()
        entry = to_entry(row, self._seal) if row else None
        if entry is None:
            if not self.damaged:
                _log.warning(
                    "The ledger '%s' holds damaged rows (%d, for one): they are passed over.", self.file, row_id
                )
            self.damaged.add(row_id)
        return entry


class _Writer:
    """Commits all that waits at once, on a thread of its own; while it commits, others gather."""

    def __init__(self, file: LedgerFile) -> None:
        self.file = file
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._taken = self._settled = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def prepare(self) -> None:
        with self.file.write():
            pass

    def put(self, row: tuple[Any, ...], stored: asyncio.Future[None]) -> None:
        with self._changed:
            if self._closed:
                raise LedgerError(f"The ledger '{self.file}' is closed. Open it again.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="aiquery-ledger", daemon=True)
                self._thread.start()
            self._waiting.append((row, stored))
            self._taken += 1
            self._changed.notify_all()

    def flush(self) -> None:
        with self._changed:
            goal = self._taken
            self._changed.wait_for(lambda: self._settled >= goal)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()
        self.file.close()

    def _run(self) -> None:
        while batch := self._next():
            _settle(batch, self._commit([row for row, _ in batch]))
            with self._changed:
                self._settled += len(batch)
                self._changed.notify_all()

    def _next(self) -> list[_Waiting]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            batch, self._waiting = self._waiting, []
            return batch

    def _commit(self, rows: list[tuple[Any, ...]]) -> Exception | None:
        try:
            with self.file.write() as connection:
                insert(connection, rows)
        except Exception as error:  # noqa: BLE001 - those who wait get it
            return error
        return None


def _settle(batch: list[_Waiting], error: Exception | None) -> None:
    for loop, waiting in groupby((stored for _, stored in batch), key=lambda stored: stored.get_loop()):
        with suppress(RuntimeError):  # the loop is closed, so nobody waits
            loop.call_soon_threadsafe(_tell, list(waiting), error)


def _tell(waiting: list[asyncio.Future[None]], error: Exception | None) -> None:
    for stored in (one for one in waiting if not one.done()):  # the others were cancelled
        if error is None:
            stored.set_result(None)
        else:
            stored.set_exception(LedgerError(str(error)))  # one for each: raising adds to an error's traceback


def _delete(file: LedgerFile, wanted: Json, after: int) -> int:
    time.sleep(PAUSE_SECONDS)
    with file.write() as connection:
        count = connection.execute(_DELETE, {**wanted, "after": after, "rows": _ROWS_DELETED}).rowcount
        if count:
            connection.execute("UPDATE ledger SET edition = randomblob(8)")
    return count


def _as_object(endpoint: bytes, served_entity: bytes, *numbers: int) -> Json:
    names = {"endpoint": endpoint.decode(errors="replace"), "served_entity": served_entity.decode(errors="replace")}
    return {**names, **dict(zip(_STATS, numbers, strict=True))}
