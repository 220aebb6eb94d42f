"""`aiquery query` and `aiquery sql`: ask one endpoint something, or run a statement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from aiquery.cli import inputs, output
from aiquery.cli.commands import Options, command

if TYPE_CHECKING:
    import duckdb

    from aiquery.client import Workspace
    from aiquery.session import Session

_EXAMPLE: Final = '{"messages": [{"role": "user", "content": "Hello"}]}'
#: The columns of a statement that yields no rows, CREATE TABLE for one.
_NO_ROWS: Final = ["Count"]
#: Rows that are fetched at once.
_CHUNK: Final = 1024
#: How often a statement that is to end is told so, in seconds.
_NAP_SECONDS: Final = 0.05

T = TypeVar("T")


class Dialect(StrEnum):
    """Whose SQL a statement is."""

    DUCKDB = "duckdb"
    DATABRICKS = "databricks"


class Cache(StrEnum):
    """Whether a statement uses the ledger."""

    OFF = "off"
    REUSE = "reuse"


Database = Annotated[str, typer.Option("--db", metavar="FILE", help="A DuckDB file. Default: in memory.")]
DialectOption = Annotated[Dialect, typer.Option("--dialect", help="Whose SQL it is.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(app, "query", no_args_is_help=True)(query)
    command(app, "sql", no_args_is_help=True)(sql)


def query(
    options: Options,
    endpoint: Annotated[str, typer.Argument(help="The endpoint.")],
    *,
    given: Annotated[
        str, typer.Option("--input", "-i", metavar="JSON|@FILE|-", help="The request body: in place, a file, or stdin.")
    ],
    served_entity: Annotated[
        str | None, typer.Option("--served-entity", help="Ask this one, whatever the traffic split says.")
    ] = None,
) -> None:
    """Send one request to an endpoint and print the answer, in the REST API's JSON.

    Examples:
      aiquery query gpt --input '{"messages": [{"role": "user", "content": "Hi"}]}'
      aiquery query iris --input @rows.json
    """
    body = inputs.json_object(given, "--input", _EXAMPLE)
    with options.opened() as workspace:
        answer = workspace.query(endpoint, body, served_entity, wait=True)
    output.document(answer, options.output)


def sql(
    options: Options,
    statement: Annotated[str, typer.Argument(metavar="SQL|@FILE|-", help="Statements: in place, a file, or stdin.")],
    *,
    db: Database = ":memory:",
    read_only: Annotated[bool, typer.Option("--read-only", help="Open the file for reading only.")] = False,
    dialect: DialectOption = Dialect.DUCKDB,
    cache: Annotated[Cache, typer.Option(help="`reuse` keeps answers, and takes those that were kept.")] = Cache.OFF,
    max_rows: Annotated[int, typer.Option(min=1, help="The most rows of a table; JSON and CSV have all.")] = 200,
) -> None:
    """Run SQL with ai_query, and print the rows of its last statement.

    JSON is one object a line.

    Examples:
      aiquery sql "SELECT ai_query('gpt', 'Say hello')"
      aiquery sql "SELECT * FROM 'reviews.parquet'" --output csv > reviews.csv
      aiquery sql @report.sql --db my.db --dialect databricks
    """
    text = inputs.text_of(statement)
    if not text.strip():
        raise typer.BadParameter("there is no statement in it.", param_hint="SQL")
    with (
        options.opened() as workspace,
        session_of(options, workspace, db, cache=cache.value, read_only=read_only) as session,
    ):
        whole = interruptible(session, lambda: _printed(session, text, dialect, options.output, most=max_rows))
    if not whole:
        options.note(f"These are the first {max_rows} rows. For all: --max-rows, or --output csv or json.")


def _printed(session: Session, text: str, dialect: Dialect, kind: output.Format, *, most: int) -> bool:
    """Print what a statement yields, and say whether that was all."""
    cursor = session.execute(text, dialect=dialect.value)
    columns, found = [column[0] for column in cursor.description or ()], _rows(cursor)
    first = next(found, None)
    if first is None and columns in ([], _NO_ROWS):
        return True
    return output.rows(columns, chain([first] if first else [], found), kind, most=most)


def _rows(cursor: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while found := cursor.fetchmany(_CHUNK):
        yield from found


@contextmanager
def session_of(
    options: Options, workspace: Workspace, db: str, *, cache: str = "off", read_only: bool = False
) -> Iterator[Session]:
    """Open a database in a session that sees none of this program's own variables."""
    from aiquery.session import connect

    with connect(
        db, workspace=workspace, read_only=read_only, cache=Cache(cache).value, progress=options.progress
    ) as session:
        session.connection.execute("SET python_enable_replacements = false")
        yield session


def interruptible(session: Session, work: Callable[[], T]) -> T:
    """Do something with a session that Ctrl-C ends: DuckDB does not look for it while it computes."""
    with ThreadPoolExecutor(1, "aiquery-cli") as thread:
        future = thread.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            while wait([future], timeout=_NAP_SECONDS).not_done:
                session.interrupt()
            raise
