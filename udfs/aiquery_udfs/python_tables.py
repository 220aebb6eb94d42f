"""Finds the Python tables that a statement reads by name, so that another cursor can read them as well."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

import duckdb

from aiquery_udfs.connections import Connection

#: Types that can be read twice, and at once; a stream or a generator cannot.
_TABLES: Final = frozenset(
    {("pyarrow", "Table"), ("pyarrow", "FileSystemDataset"), ("pandas", "DataFrame"), ("polars", "DataFrame")}
)
_UNKNOWN: Final = re.compile(r"Table with name (\S+) does not exist")
#: Tables of one statement that are looked for.
_MOST: Final = 32


def bind(handle: duckdb.DuckDBPyConnection, text: str, parameters: object, original: Connection) -> Any:
    """Return the relation of a text on another cursor, which gets the Python tables that its original can see.

    Raises:
        duckdb.Error: The text cannot be bound there all the same.
    """
    for _ in range(_MOST):
        try:
            return handle.sql(text, params=parameters)
        except duckdb.CatalogException as error:
            missing = _UNKNOWN.search(str(error))
            table = _find(missing[1], original) if missing else None
            if missing is None or table is None:
                raise
            handle.register(missing[1], table)
    return handle.sql(text, params=parameters)


def _find(name: str, original: Connection) -> object | None:
    """Return what a name means where the statement was run: a registered table, or a variable on its thread."""
    places: Iterator[Any] = iter([original.registered, *_scopes(sys._current_frames().get(original.thread))])  # noqa: SLF001 - the documented way to another thread's variables
    found = (scope[name] for scope in places if name in scope)
    return next((table for table in found if _is_table(table)), None)


def _scopes(frame: FrameType | None) -> Iterator[Any]:
    while frame is not None:
        yield frame.f_locals
        yield frame.f_globals
        frame = frame.f_back


def _is_table(value: object) -> bool:
    kind = type(value)
    return (kind.__module__.partition(".")[0], kind.__name__) in _TABLES
