"""The Parquet files of one inference table: written whole, merged when they become many, read by anybody.

A file appears under its name only when it is complete. One that was merged into another stays for a minute, because a
query may be about to read it; the other names it in its footer, so that nobody reads both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from aiquery_serving.payload_log.rows import SCHEMA

#: As many small files are merged into one.
MANY: Final = 16
#: Bytes from which on a file is left as it is.
LARGE: Final = 16 * 1024 * 1024
#: Milliseconds that a merged file stays for the queries that have found it.
GRACE_MS: Final = 60_000
#: Milliseconds after which whoever was merging must have died.
STALE_MS: Final = 600_000
_ROWS_AT_ONCE: Final = 1_000
_REPLACES: Final = b"aiquery.replaces"


class PayloadFiles:
    """The folder of one inference table. Any process may write to it, and several threads.

    Raises:
        OSError: From every method: the folder cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, rows: pa.Table, now_ms: int) -> None:
        """Store rows in a file of their own."""
        _make_private(self.folder)
        _write([rows], self.folder / _name(now_ms), replaces=())

    def names(self) -> list[str]:
        """Return the names of the files that together hold every row once, oldest first."""
        replaces = self._replaces()
        gone = {old for names in replaces.values() for old in names}
        return [name for name in replaces if name not in gone]

    def tidy(self, now_ms: int) -> None:
        """Merge small files when there are many, and remove those whose rows are elsewhere."""
        if sum(1 for _ in self._found()) < MANY:
            return
        with self._alone(now_ms) as alone:
            if alone:
                self._remove_merged(now_ms)
                self._merge(now_ms)

    def _merge(self, now_ms: int) -> None:
        small = [name for name in self.names() if (self.folder / name).stat().st_size < LARGE]
        if len(small) >= MANY:
            rows = _batches([self.folder / name for name in small])
            _write(rows, self.folder / _name(now_ms), replaces=small)

    def _remove_merged(self, now_ms: int) -> None:
        # Oldest first: what a merged file replaces goes before it does.
        for name, merged in self._replaces().items():
            if _written_ms(name) < now_ms - GRACE_MS:
                for old in merged:
                    (self.folder / old).unlink(missing_ok=True)

    def _replaces(self) -> dict[str, list[str]]:
        """Return for each file which others were merged into it, in order of their names."""
        found = {}
        for path in self._found():
            with suppress(FileNotFoundError):  # another process removed it just now
                found[path.name] = orjson.loads((pq.read_schema(path).metadata or {}).get(_REPLACES, b"[]"))
        return found

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    @contextmanager
    def _alone(self, now_ms: int) -> Iterator[bool]:
        """Say whether no other process merges here, and keep it so."""
        lock = self.folder / "merging"
        with suppress(FileNotFoundError):
            if lock.stat().st_mtime_ns // 1_000_000 < now_ms - STALE_MS:
                lock.unlink()
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            yield False
            return
        try:
            yield True
        finally:
            lock.unlink(missing_ok=True)


def write_empty(path: Path) -> None:
    """Store a file without rows, for queries of tables that have none yet."""
    _make_private(path.parent)
    _write([SCHEMA.empty_table()], path, replaces=())


def _make_private(folder: Path) -> None:
    if not folder.parent.exists():
        _make_private(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def _write(tables: Iterable[pa.Table], path: Path, replaces: Iterable[str]) -> None:
    draft = path.with_suffix(f".{uuid4().hex}")
    metadata: Mapping[bytes, bytes] = {_REPLACES: orjson.dumps(list(replaces))}
    try:
        with (
            os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
            pq.ParquetWriter(file, SCHEMA.with_metadata(metadata), compression="zstd") as writer,
        ):
            for table in tables:
                writer.write_table(table.replace_schema_metadata(metadata))
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _batches(paths: Iterable[Path]) -> Iterator[pa.Table]:
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                yield pa.Table.from_batches([batch])


def _name(now_ms: int) -> str:
    # Names sort by time, and no two processes make the same.
    return f"{now_ms:015d}-{uuid4().hex[:12]}.parquet"


def _written_ms(name: str) -> int:
    return int(name.partition("-")[0])
