"""Keeps a relation that is only shown from asking models for the ten thousand rows DuckDB would fetch for that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import duckdb

from aiquery_udfs import connections
from aiquery_udfs.connections import Connection
from aiquery_udfs.errors import PreviewError

#: A relation that asks for so many rows at most is shown whole, as any other.
WHOLE_ROWS: Final = 100
#: Otherwise so many rows are shown,
SHOWN_ROWS: Final = 20
#: if no more than this many have to be asked for them.
MOST_ROWS: Final = 2048
_NOTE: Final = f"  (the first {SHOWN_ROWS} rows: fetchall(), df() and their like ask for all)\n"
_TOO_MANY: Final = (
    "Showing this relation would ask a model for many rows. Call fetchall(), df() or another method that returns its"
    " rows to run it whole, or limit() it first."
)
_TEXTS: Final = ("__repr__", "__str__", "preview")

T = TypeVar("T")


def check_preview(connection: Connection, count: int) -> None:
    """Count rows against what may be asked to show a relation.

    Raises:
        PreviewError: They are too many.
    """
    if connection.preview is None:
        return
    connection.preview -= count
    if connection.preview < 0:
        raise PreviewError(_TOO_MANY)


def watch_previews() -> None:
    """See from now on when relations are only shown."""
    kind = duckdb.DuckDBPyRelation
    if getattr(kind.__repr__, "of_aiquery", False):
        return
    for name in _TEXTS:
        setattr(kind, name, _previewed(getattr(kind, name), _noted, _TOO_MANY))
    kind._repr_mimebundle_ = _previewed(kind._repr_mimebundle_, _same, {"text/plain": _TOO_MANY})  # type: ignore[method-assign]
    kind.show = _previewed(kind.show, _printed, None)  # type: ignore[method-assign]


def _noted(text: str) -> str:
    return text + _NOTE


def _same(bundle: Any) -> Any:
    return bundle


def _printed(_: None) -> None:
    print(_NOTE)  # noqa: T201 - as the table above it was printed


def _previewed(method: Callable[..., T], in_part: Callable[[T], T], instead: T) -> Callable[..., T]:
    """Let a method that shows a relation ask for few rows: for all of a small one, for the first of another."""

    def shown(self: duckdb.DuckDBPyRelation, *arguments: Any, **options: Any) -> T:
        handle = getattr(self, "_con", None)
        known = connections.known(handle) if handle is not None else None
        if known is None or known.preview is not None:
            return method(self, *arguments, **options)
        with _unless_too_many(), _at_most(known, WHOLE_ROWS):
            return method(self, *arguments, **options)
        with _unless_too_many(), _at_most(known, MOST_ROWS):
            return in_part(method(self.limit(SHOWN_ROWS), *arguments, **options))
        return instead

    shown.__doc__, shown.__name__ = method.__doc__, method.__name__
    shown.of_aiquery = True  # type: ignore[attr-defined]
    return shown


@contextmanager
def _unless_too_many() -> Iterator[None]:
    """Go on after the block when DuckDB reports that showing a relation would ask for too much."""
    try:
        yield
    except duckdb.Error as error:
        if PreviewError.__name__ not in str(error):
            raise


@contextmanager
def _at_most(connection: Connection, rows: int) -> Iterator[None]:
    connection.preview = rows
    try:
        yield
    finally:
        connection.preview = None
