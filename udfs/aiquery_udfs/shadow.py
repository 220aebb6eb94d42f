"""Runs a statement's own text ahead of it, on another cursor, to learn which requests are coming.

Theory of operation. DuckDB hands a Python function 2,048 rows at a time and waits for each chunk. So while a
statement waits for its first answers, the part of it that yields rows runs again beside it, where `ai_query` only
notes its requests and answers NULL at once; `LookAhead` starts them as its endpoints can take them. DuckDB's own
optimiser thus decides what is called, and the user's SQL is never changed. An answer that is not known yet is
NULL, so that it lets no row pass a condition. Where one `ai_query` may decide what another is asked, a shadow of
its own notes each of them in turn: the second knows the first one's answers, the third those of both.

All of it is an optimisation: what cannot be run beside the statement (temporary tables, an open transaction,
random inputs, statements with effects) runs without it. The statement's text comes from DuckDB's query log.
"""

from __future__ import annotations

import logging
import re
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import duckdb
import pyarrow as pa

from aiquery_serving.errors import AiQueryError, CancelledCallError
from aiquery_udfs import rows, sql_text
from aiquery_udfs.look_ahead import LookAhead
from aiquery_udfs.python_tables import bind

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiquery_udfs.connections import Chunk, Connection
    from aiquery_udfs.execution import Execution
    from aiquery_udfs.statements import Statements

#: Rows of a full chunk of DuckDB.
CHUNK: Final = 2048
#: Shadows of one statement at most: so many calls deep it is looked ahead.
PASSES: Final = 4
#: How often a shadow looks whether its statement still runs, in seconds.
SLICE: Final = 0.05
#: How long closing a connection waits for its shadows, in seconds.
CLOSE_SECONDS: Final = 1.0
#: Functions that DuckDB calls volatile or bound to one query, and that say the same in a shadow.
_HARMLESS: Final = frozenset({
    "current_database", "current_schema", "current_schemas", "current_setting", "error", "in_search_path", "stats",
    "txid_current", "vector_type",
})  # fmt: skip
#: What must not be read twice.
_ONCE: Final = ("/dev/stdin", "/dev/fd/", "'-'")

_log = logging.getLogger("aiquery.look_ahead")


class Follower:
    """Looks ahead of the statements of one connection, one at a time."""

    def __init__(self, connection: Connection, execution: Execution, statements: Statements) -> None:
        self._connection, self._execution, self._statements = connection, execution, statements
        # Reentrant: Ctrl-C stops it from a signal handler, which may run on a thread that is in here.
        self._guard = threading.RLock()
        self._transaction = -1
        self._chunks = 0
        self._shadow: Shadow | None = None
        self._rehearsed: Shadow | None = None

    def meet(self, transaction: int, count: int) -> LookAhead | None:
        """Take note of a chunk of rows, and return what is ahead of it.

        A statement with a single chunk needs no shadow: it starts with the first full chunk or with the second.
        """
        with self._guard:
            if self._rehearsed is not None:
                self._end()
                self._shadow, self._rehearsed = self._rehearsed, None
                self._shadow.ahead.query = self._connection.number, transaction
                self._transaction = transaction
            if transaction != self._transaction:
                self._end()
                self._transaction, self._chunks = transaction, 0
            self._chunks += 1
            if self._shadow is None and (count >= CHUNK or self._chunks > 1):
                ahead = LookAhead(self._execution, (self._connection.number, transaction), self._connection.run)
                self._shadow = Shadow(self._connection, self._statements, ahead)
                self._shadow.start()
            return self._shadow.ahead if self._shadow is not None else None

    def rehearse(self, handle: duckdb.DuckDBPyConnection, text: str) -> None:
        """Note what a statement will ask, on its own connection and before it runs: it alone may see its rows.

        That is so in an open transaction, and with temporary tables. Nothing is sent before the statement waits.
        """
        part = sql_text.rows_of(text)
        if part is None or not repeatable(handle, part):
            return
        ahead = LookAhead(self._execution, (self._connection.number, -1), self._connection.run, whole=True)
        shadow = Shadow(self._connection, self._statements, ahead)
        shadow.rehearse(handle, part)
        self._rehearsed = shadow

    def stop(self) -> None:
        """Look no further ahead of the statement that runs."""
        with self._guard:
            if self._shadow is not None:
                self._shadow.stop()

    def close(self) -> None:
        """Stop, and wait a moment for the cursors beside the connection to be closed."""
        self.stop()
        if self._shadow is not None:
            self._shadow.join(CLOSE_SECONDS)

    def _end(self) -> None:
        if self._shadow is not None:
            self._shadow.stop()
        self._shadow = None


class Shadow:
    """What runs ahead of one statement."""

    def __init__(self, connection: Connection, statements: Statements, ahead: LookAhead) -> None:
        self.statements, self.ahead = statements, ahead
        self._connection = connection
        self._guard = threading.Lock()
        self._sites: list[int] = []
        self._running: list[duckdb.DuckDBPyConnection] = []
        self._threads: list[threading.Thread] = []
        self._settings: list[str] = []
        self._depth = 1
        self._text = ""
        self._calls = 0
        self._independent = False

    @property
    def ended(self) -> bool:
        """Whether nobody needs to know more."""
        return self.ahead.closed

    def start(self) -> None:
        """Begin on a thread of its own."""
        self._spawn(self._run, 0)

    def stop(self) -> None:
        """End all passes, and what was started and nobody waits for."""
        self.ahead.close()
        for handle in list(self._running):
            with suppress(duckdb.Error):
                handle.interrupt()

    def join(self, timeout: float) -> None:
        """Wait for the passes to end, at most so many seconds each."""
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(timeout)

    def rank(self, site: int) -> int:
        """Return the place of a call in the order in which the statement needs their answers."""
        with self._guard:
            if self._independent:
                return -1
            if site not in self._sites:
                self._sites.append(site)
            return self._sites.index(site)

    def deepen(self, level: int) -> None:
        """Note calls of the next rank as well: a pass has begun to know those of this one."""
        with self._guard:
            due = self._depth == level + 1 < min(PASSES, self._calls) and not self._independent
            if due and not self.ended and not self.ahead.whole:
                self._depth += 1
                self._spawn(self._run, level + 1)

    def rehearse(self, handle: duckdb.DuckDBPyConnection, part: str) -> None:
        """Note what a text asks, on a connection that does nothing else now."""
        self._take(part)
        known = self._connection
        known.recorder = Pass(self, 0)
        try:
            self._drain(handle)
        finally:
            known.recorder = None
            for site in range(1, self._calls + 1):
                known.engine.drop_site(handle, site)

    def _spawn(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=self._guarded, args=(work, *arguments), name="aiquery-shadow", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except (duckdb.Error, AiQueryError) as error:
            # The statement itself runs on, and says whatever there is to say.
            _log.debug("No look-ahead from here on: %s", error)
        except Exception:  # noqa: BLE001 - an optimisation must fail nobody
            if not self.ended:
                _log.exception("The look-ahead of a statement failed; the statement goes on without.")

    def _run(self, level: int) -> None:
        parent = self._connection.handle()
        if parent is None:
            return
        with parent.cursor() as handle:
            self._connection.engine.record(handle, Pass(self, level))
            self._running.append(handle)
            try:
                if level or self._read(handle):
                    self._settle_in(handle)
                    self._drain(handle)
            finally:
                self._running.remove(handle)

    def _read(self, handle: duckdb.DuckDBPyConnection) -> bool:
        """Take what DuckDB's query log says of the statement; returns whether it can be run beside itself."""
        text, self._settings = _statement(handle, self._connection, self.ahead.query[1])
        part = sql_text.rows_of(text) if text is not None else None
        if part is None or not repeatable(handle, part):
            return False
        self._take(part)
        return True

    def _take(self, part: str) -> None:
        self._text, self._calls = sql_text.numbered(part), len(sql_text.calls(part))
        self._independent = sql_text.independent(part)
        if sql_text.has_limit(part) and not sql_text.projected(part):
            self.ahead.limit()

    def _settle_in(self, handle: duckdb.DuckDBPyConnection) -> None:
        for setting in self._settings:
            handle.execute(setting)

    def _drain(self, handle: duckdb.DuckDBPyConnection) -> None:
        for site in range(1, self._calls + 1):
            self._connection.engine.define_site(handle, site)
        relation = bind(handle, self._text, self._connection.parameters, self._connection)
        for _ in relation.to_arrow_reader(CHUNK):
            if self.ended:
                return


class Pass:
    """One run of a shadow: notes the calls of one rank, and knows the answers of those before."""

    def __init__(self, shadow: Shadow, level: int) -> None:
        self._shadow, self._level = shadow, level

    def answer(self, ask: Callable[..., pa.Array], site: int, chunk: Chunk) -> pa.Array:
        """Note one chunk of rows, or wait for its answers; see `connections.Recorder`."""
        shadow, statements = self._shadow, self._shadow.statements
        count = len(chunk.request)
        if statements.is_custom(chunk.call):
            return ask(*chunk, query=shadow.ahead.query, cancelled=lambda: shadow.ended)
        if ask == statements.failures:
            return pa.nulls(count, rows.ERROR_ARROW)
        rank = shadow.rank(site or -1 - chunk.call)
        if rank > self._level:
            return statements.pending(chunk.call, count)
        bound, requests = statements.requests(chunk.call, chunk.request, chunk.files)
        if self._make_room():
            shadow.ahead.offer(bound, requests)
        if rank < 0 or rank == self._level:
            shadow.deepen(self._level)
            return statements.pending(chunk.call, count)
        return self._settled(chunk)

    def _make_room(self) -> bool:
        """Wait for room; a rehearsal has nobody to wait for, and notes no more when there is none."""
        shadow = self._shadow
        while not shadow.ahead.room(0 if shadow.ahead.whole else SLICE):
            if shadow.ahead.whole:
                return False
            if shadow.ended or shadow.ahead.deserted:
                shadow.ahead.close()
                raise CancelledCallError("The statement that this one looked ahead of has ended.")
        return True

    def _settled(self, chunk: Chunk) -> pa.Array:
        while not self._shadow.ended:
            column = self._shadow.statements.settled(chunk.call, chunk.request, chunk.files, self._shadow.ahead.query)
            if column is not None:
                return column
            self._shadow.ahead.pause(SLICE)
        raise CancelledCallError("The statement that this one looked ahead of has ended.")


def _statement(
    handle: duckdb.DuckDBPyConnection, connection: Connection, transaction: int
) -> tuple[str | None, list[str]]:
    """Return the text of the statement that runs, and the settings its connection has made before.

    In a transaction of several statements others may have changed what only they can see: then there is none.
    """
    logged = handle.execute(
        "SELECT message, connection_id FROM duckdb_logs WHERE type = 'QueryLog' AND transaction_id = ?", [transaction]
    ).fetchall()
    if len(logged) != 1:
        return None, []
    (text, number) = logged[0]
    settings = handle.execute(
        "SELECT message FROM duckdb_logs WHERE type = 'QueryLog' AND connection_id = ?"
        r" AND regexp_matches(message, '^\s*(use|set|reset)\s', 'i') ORDER BY query_id", [number],
    ).fetchall()  # fmt: skip
    path = [f"SET search_path = '{connection.schema}'"] if connection.schema else []
    return text, [*path, *(setting for (setting,) in settings)]


def repeatable(handle: duckdb.DuckDBPyConnection, text: str) -> bool:
    """Say whether a text yields the same rows when it is run twice at once."""
    if any(once in text for once in _ONCE):
        return False
    fickle = handle.execute(
        "SELECT DISTINCT lower(function_name) FROM duckdb_functions()"
        " WHERE stability IN ('VOLATILE', 'CONSISTENT_WITHIN_QUERY')"
    ).fetchall()
    return sql_text.names(_spelled_out(handle, text)).isdisjoint({name for (name,) in fickle} - _HARMLESS)


def _spelled_out(handle: duckdb.DuckDBPyConnection, text: str) -> str:
    """Return a text with the definitions of the views and macros that it may name, or that those may name."""
    unnamed = handle.execute(
        "SELECT view_name, sql FROM duckdb_views() WHERE NOT internal UNION ALL"
        " SELECT function_name, macro_definition FROM duckdb_functions()"
        " WHERE macro_definition IS NOT NULL AND NOT internal"
    ).fetchall()
    spelled, named = [], [text]
    while named:
        spelled += named
        words = _words(" ".join(spelled))
        named = [definition for name, definition in unnamed if words >= _words(name)]
        unnamed = [one for one in unnamed if one[1] not in named]
    return ";".join(spelled)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
