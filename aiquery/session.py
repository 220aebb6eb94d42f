"""A session: a DuckDB connection that looks ahead over whole queries, explains what they would cost, and runs jobs."""

from __future__ import annotations

import os
import re
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Self

import duckdb

from aiquery import live_views
from aiquery.client import Workspace
from aiquery.progress import following
from aiquery_serving.budget import Tab
from aiquery_serving.errors import AiQueryError, InvalidRequestError
from aiquery_udfs import duckdb_engine, sql_text
from aiquery_udfs.runs import Reuse, Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from types import TracebackType

    from aiquery.explanations import Explanation
    from aiquery.job_order import OnError
    from aiquery.jobs import Job

Cache = Literal["off", "reuse"]


def connect(
    database: str | os.PathLike[str] = ":memory:",
    *,
    workspace: Workspace | None = None,
    read_only: bool = False,
    config: dict[str, Any] | None = None,
    look_ahead: bool = True,
    cache: Cache = "off",
    max_age: float | None = None,
    progress: bool | None = None,
) -> Session:
    """Open a DuckDB database in a session that knows `ai_query`.

    Args:
        database: The file, or `:memory:`.
        workspace: Where the endpoints are; by default the one that `Workspace()` opens, closed with the session.
        read_only: Open the file for reading only.
        config: DuckDB's settings.
        look_ahead: Keep endpoints busy over the whole of a query.
        cache: `reuse` keeps answers in the workspace's ledger and takes from there what was asked before.
        max_age: The age in seconds beyond which `reuse` asks again.
        progress: Whether to show how far a query is when it takes over two seconds; by default, where somebody looks.

    Raises:
        InvalidRequestError: `cache` is neither `off` nor `reuse`.
        WorkspaceError: The workspace cannot be opened.
    """
    if cache not in ("off", "reuse"):
        raise InvalidRequestError(f"The cache of a session is 'off' or 'reuse', not {cache!r}.")
    handle = duckdb.connect(os.fspath(database), read_only=read_only, config=config or {})
    opened = workspace if workspace is not None else Workspace()
    run = Run(reuse=Reuse(max_age_s=max_age) if cache == "reuse" else None, meter=Tab(opened.prices))
    if run.reuse is not None:
        opened.ledger.prepare()
    return Session(handle, opened, run, look_ahead=look_ahead, owns=workspace is None, progress=progress)


class Session:
    """A DuckDB connection with a workspace. What is not defined here is the connection's own."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        workspace: Workspace,
        run: Run,
        *,
        look_ahead: bool,
        owns: bool,
        progress: bool | None,
    ) -> None:
        self.connection, self.workspace, self.run = connection, workspace, run
        self._owns, self._shows = owns, progress
        self._progress = following(run, workspace.gateway, enabled=progress)
        if self._progress is not None:
            weakref.finalize(self, self._progress.stop)
            connection.execute("SET enable_progress_bar = false")  # DuckDB's own would be drawn over ours
        self._known = duckdb_engine.register(connection, workspace.execution, look_ahead=look_ahead)
        self._known.run = run
        # This class stands between DuckDB and the variables that a query names.
        connection.execute("SET python_scan_all_frames = true")
        # DuckDB runs ahead of its reader by so much: rows come sooner, and a reader that stops has asked for less.
        connection.execute("SET streaming_buffer_size = '256KB'")
        live_views.register(connection, workspace)
        self._jobs: weakref.WeakSet[Job] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"Session({self.workspace!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def sql(self, query: str, *, dialect: str = "duckdb", params: object = None) -> duckdb.DuckDBPyRelation:
        """Return the relation of a query; it runs when its rows are read, with its requests looked ahead of.

        Args:
            query: One statement.
            dialect: `databricks` takes Databricks SQL (contract A.12).
            params: Values of its parameters.
        """
        self._known.parameters, self._known.thread = params, threading.get_ident()
        self._show_progress()
        return self.connection.sql(self._text(query, dialect), params=params)

    def execute(self, query: str, parameters: object = None, *, dialect: str = "duckdb") -> duckdb.DuckDBPyConnection:
        """Run statements, and return the connection to fetch the rows of the last one from."""
        self._known.parameters, self._known.thread = parameters, threading.get_ident()
        self._show_progress()
        text = self._text(query, dialect)
        self._rehearse(text)
        return self.connection.execute(text, parameters)

    def explain_ai(self, query: str, *, params: object = None, dialect: str = "duckdb") -> Explanation:
        """Say what a statement would ask, cost and take. Nothing is sent, and nothing is changed.

        Args:
            query: A query, or a CREATE TABLE AS, INSERT or COPY of one.
            params: Values of its parameters.
            dialect: `databricks` takes Databricks SQL (contract A.12).

        Returns:
            The rows, requests, tokens, dollars and seconds of each `ai_query` in it; shown, it is a table.

        Raises:
            InvalidRequestError: The text is no such statement, or more than one.
            duckdb.Error: The statement is wrong, or fails.
        """
        from aiquery.explain import explain

        return explain(self._known, self.workspace, self._text(query, dialect), params)

    def job(
        self,
        sql: str,
        output: str | os.PathLike[str],
        *,
        key: str | Sequence[str] | None = None,
        name: str | None = None,
        on_error: OnError = "fail",
        retry_failed: bool | None = None,
        max_cost: float | None = None,
        max_tokens: int | None = None,
        max_calls: int | None = None,
        deadline: float | datetime | None = None,
        max_age: float | None = None,
        dialect: str = "duckdb",
        overwrite: bool = False,
        wait: bool = True,
        progress: bool | None = None,
    ) -> Job:
        """Run a query whose answers are kept, and write its rows whole or not at all; again, it goes on.

        Args:
            sql: One query; its rows keep their order.
            output: A file that ends in .parquet, .csv, .jsonl or .json, or the name of a table.
            key: Columns that must tell the rows of the output apart.
            name: What it is called; by default something made of its output and its query.
            on_error: `fail` ends it at the first row that fails. `record` gives such rows NULL, and says why in a
                column `<name>_error` beside, where the query's shape lets it.
            retry_failed: Ask again what failed in an earlier run; by default when `on_error` is `fail`.
            max_cost: Dollars that it may cost at most.
            max_tokens: Tokens, in and out, that it may use at most.
            max_calls: Calls that it may make at most.
            deadline: When it ends at the latest, in seconds from now or as a moment.
            max_age: The age in seconds beyond which answers of the ledger are not taken.
            dialect: `databricks` takes Databricks SQL (contract A.12).
            overwrite: Replace an output that something else has written.
            wait: Return when it has ended. Otherwise it runs beside, where only what is in the database (no
                temporary table, no Python variable) can be seen, and is cancelled when the program ends.
            progress: Whether to show how far it is when it takes over two seconds; by default, as the session does.

        Returns:
            The job. One that its budget or deadline ended is `stopped`; its `result` says how to go on.

        Raises:
            InvalidRequestError: It cannot be run so, or its key does not tell its rows apart; the message says why.
            duckdb.Error: The query is wrong or fails, or its output cannot be written.
            KeyboardInterrupt: Ctrl-C cancelled it.
        """
        from aiquery.job_order import Order, keys_of
        from aiquery.jobs import begin

        order = Order(
            sql=self._text(sql, dialect), output=output, key=keys_of(key), name=name, on_error=on_error,
            retry_failed=retry_failed, max_cost=max_cost, max_tokens=max_tokens, max_calls=max_calls,
            deadline=deadline, max_age=max_age, overwrite=overwrite,
        )  # fmt: skip
        shows = self._shows if progress is None else progress
        job = begin(self.connection, self.workspace, order, execute=self.execute, wait=wait, progress=shows)
        self._jobs.add(job)
        return job

    def _show_progress(self) -> None:
        if self._progress is not None:
            self._progress.start()

    def _rehearse(self, text: str) -> None:
        """Look ahead of a statement whose rows only this connection can see."""
        ahead = self._known.looking
        if ahead is None:
            return
        with suppress(duckdb.Error, AiQueryError):  # the statement itself says what is wrong
            if sql_text.calls(text) and (self._in_transaction() or self._names_own(text)):
                ahead.rehearse(self.connection, text)

    def _in_transaction(self) -> bool:
        numbers = [self.connection.execute("SELECT txid_current()").fetchall() for _ in range(2)]
        return numbers[0] == numbers[1]

    def _names_own(self, text: str) -> bool:
        own = self.connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE temporary AND NOT internal"
            " UNION ALL SELECT view_name FROM duckdb_views() WHERE temporary AND NOT internal"
        ).fetchall()
        words = set(re.findall(r"\w+", text.lower()))
        return any(words.issuperset(re.findall(r"\w+", name.lower())) for (name,) in own)

    def interrupt(self) -> None:
        """Stop what runs: nothing more is sent, and calls that wait return at once."""
        self.connection.interrupt()

    def close(self) -> None:
        """Cancel its jobs, and close the connection and the workspace that was opened with it."""
        if self._jobs:
            from aiquery.jobs import end_all

            end_all(self._jobs)
        if self._progress is not None:
            self._progress.stop()
        self.connection.close()
        if self._owns:
            self.workspace.close()

    def _text(self, query: str, dialect: str) -> str:
        if dialect == "duckdb":
            return query
        from aiquery_udfs.dialect import to_duckdb

        return to_duckdb(query, dialect)
