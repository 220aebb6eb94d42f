"""`ai_query` on a stock DuckDB connection and its cursors.

Theory of operation. DuckDB's Python functions have neither named arguments nor a return type that depends on
arguments; macros have both. So `ai_query` is a macro around one Arrow function: `structure` and `family` are
folded by the binder, which lets Python choose the SQL type of each call, and `answer` sends the requests. The
macro is TEMP (nothing of ours stays in a database file) and made again on every cursor.

DuckDB evaluates a function of constants while it *plans*, so that EXPLAIN would spend money. An error at that
moment is swallowed and the call is left for execution, hence `answer` refuses to work then (see `planning`).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, Final, TypeVar

import duckdb
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from aiquery_udfs import connections, rows
from aiquery_udfs.connections import Chunk, Connection, Recorder
from aiquery_udfs.errors import PlanTimeError
from aiquery_udfs.planning import planning, task_loop
from aiquery_udfs.previews import check_preview, watch_previews
from aiquery_udfs.shadow import Follower
from aiquery_udfs.statements import Statements

if TYPE_CHECKING:
    from aiquery_udfs.execution import Execution

_ARGUMENTS: Final = (
    "{connection}::BIGINT, concat(endpoint), concat(returnType), concat(failOnError), typeof(coalesce(request, NULL)), "
    "concat(to_json(modelParameters)), concat(responseFormat), typeof(coalesce(files, NULL))"
)
_PARAMETERS: Final = """
    endpoint, request, returnType := NULL, failOnError := true,
    modelParameters := NULL, responseFormat := NULL, files := NULL
"""
_ASKED: Final = """
    {connection}::BIGINT, txid_current()::BIGINT, {name}_call({arguments}), request, files,
    CASE WHEN {name}_split(concat(endpoint)) THEN hash(request) END
"""
_AI_QUERY: Final = (
    "CREATE OR REPLACE TEMP MACRO {macro}(" + _PARAMETERS + ") AS cast_to_type("
    "struct_extract({name}_answer(" + _ASKED + "), {name}_family({arguments})),"
    "from_json('null', {name}_structure({arguments})))"
)
_AI_ERROR: Final = "CREATE OR REPLACE TEMP MACRO {macro}(" + _PARAMETERS + ") AS {name}_error(" + _ASKED + ")"
_AI_SERVED_ENTITY: Final = """
CREATE OR REPLACE TEMP MACRO {macro}(endpoint, request) AS
    {name}_served({connection}::BIGINT, txid_current()::BIGINT, concat(endpoint), request, hash(request))
"""
_MACROS: Final = {"ai_query": _AI_QUERY, "ai_error": _AI_ERROR, "ai_served_entity": _AI_SERVED_ENTITY}

T = TypeVar("T")

#: A macro knows its connection and, in a shadow, which call of the statement it is: one number holds both.
_SITES: Final = 1 << 32
#: What `sql_text.numbered` calls them.
_SITE: Final = "__aiquery_site_"
_numbers = itertools.count(1)
_engines: Final[weakref.WeakValueDictionary[int, _Engine]] = weakref.WeakValueDictionary()


def register(connection: duckdb.DuckDBPyConnection, execution: Execution, *, look_ahead: bool = False) -> Connection:
    """Make `ai_query`, `ai_error` and `ai_served_entity` available on a connection and its cursors.

    Registering again replaces the workspace behind them. Nothing is written to the database file.

    Args:
        connection: Any DuckDB 2.x connection, of memory or of a file, read-only ones included.
        execution: What answers the requests.
        look_ahead: Whether statements are looked ahead of (see `shadow`): turns DuckDB's query log on.
    """
    connections.watch_connections()
    connections.watch_interrupts()
    watch_previews()
    task_loop()
    engine = _engines.get(id(execution))
    if engine is None:
        engine = _engines[id(execution)] = _Engine(execution)
    known = engine.install(connection)
    if look_ahead:
        connection.execute("CALL enable_logging('QueryLog')")
    known.looks_ahead = look_ahead
    return known


class _Engine:
    """The SQL functions of one workspace."""

    def __init__(self, execution: Execution) -> None:
        self.name = f"__aiquery_{next(_numbers)}"
        self.execution = execution
        self.statements = Statements(execution)
        self.connections: weakref.WeakValueDictionary[int, Connection] = weakref.WeakValueDictionary()

    def install(self, handle: duckdb.DuckDBPyConnection, like: Connection | None = None) -> Connection:
        """Define the functions on a connection; a cursor wants what its parent wanted."""
        known = connections.enroll(handle, self)
        self.connections[known.number] = known
        known.ahead = Follower(known, self.execution, self.statements)
        if like is not None:
            known.run, known.looks_ahead = like.run, like.looks_ahead
        self._define(handle, known)
        return known

    def record(self, handle: duckdb.DuckDBPyConnection, recorder: Recorder) -> None:
        """Let a connection only note what it would ask."""
        known = connections.enroll(handle, self)
        known.recorder, known.looks_ahead = recorder, False

    def define_site(self, handle: duckdb.DuckDBPyConnection, site: int) -> None:
        """Define `ai_query` once more, under a name that tells which call of a statement it is."""
        self._macro(handle, f"{_SITE}{site}", _AI_QUERY, connections.enroll(handle, self).number, site)

    def drop_site(self, handle: duckdb.DuckDBPyConnection, site: int) -> None:
        """Forget what `define_site` defined."""
        handle.execute(f"DROP MACRO IF EXISTS {_SITE}{site}")

    def _define(self, handle: duckdb.DuckDBPyConnection, known: Connection) -> None:
        """Create the functions, where the database has not got them, and the connection's macros."""
        found = handle.execute(
            "SELECT count(*) FROM duckdb_functions() WHERE function_name = ?", [f"{self.name}_answer"]
        ).fetchall()
        if found == [(0,)]:
            self._create_functions(handle)
        for macro, text in _MACROS.items():
            self._macro(handle, macro, text, known.number)

    def _macro(self, handle: duckdb.DuckDBPyConnection, macro: str, text: str, number: int, site: int = 0) -> None:
        place = site * _SITES + number
        arguments = _ARGUMENTS.format(connection=place)
        handle.execute(text.format(macro=macro, name=self.name, connection=place, arguments=arguments))

    def _create_functions(self, handle: duckdb.DuckDBPyConnection) -> None:
        texts = ["VARCHAR"] * 7

        def native(name: str, function: Callable[..., Any], types: list[str], result: str) -> None:
            handle.create_function(
                f"{self.name}_{name}", _of(len(types), function), types, result,  # type: ignore[arg-type]  # type text is taken
                null_handling=FunctionNullHandling.SPECIAL,
            )  # fmt: skip

        native("structure", self._binder(self.statements.structure), ["BIGINT", *texts], "VARCHAR")
        native("family", self._binder(self.statements.family), ["BIGINT", *texts], "VARCHAR")
        native("call", self._binder(self.statements.call), ["BIGINT", *texts], "BIGINT")
        native("split", self.statements.is_split, ["VARCHAR"], "BOOLEAN")
        for name, function, result in (
            ("answer", _of(6, _arrow(self.answer)), rows.ANSWER_TYPE),
            ("error", _of(6, _arrow(self.error)), rows.ERROR_TYPE),
            ("served", _of(5, _arrow(self.served)), "VARCHAR"),
        ):
            # No parameter types: `request` may be of any type.
            handle.create_function(
                f"{self.name}_{name}", function, None, result,
                type=PythonUDFType.ARROW, null_handling=FunctionNullHandling.SPECIAL,
            )  # fmt: skip

    def _binder(self, function: Callable[..., T]) -> Callable[..., T]:
        """Let a function that binds a call stop when its connection is interrupted: a model may load for long."""

        def bound(place: int, *arguments: str) -> T:
            return function(arguments, cancelled=self.connections[place % _SITES].binding())

        return bound

    def answer(self, place: int, transaction: int, *chunk: pa.Array) -> pa.Array:
        """Answer one chunk of rows: call, request, files, hashes."""
        return self._asked(self.statements.answer, place, transaction, *chunk)

    def error(self, place: int, transaction: int, *chunk: pa.Array) -> pa.Array:
        """Say of one chunk of rows why they have no answer: call, request, files, hashes."""
        return self._asked(self.statements.failures, place, transaction, *chunk)

    def _asked(self, ask: Callable[..., pa.Array], place: int, transaction: int, *chunk: pa.Array) -> pa.Array:
        call, request, files, hashes = chunk
        _refuse_planning(request)
        site, number = divmod(place, _SITES)
        known = self.connections[number]
        if known.recorder is not None:
            return known.recorder.answer(ask, site, Chunk(call[0].as_py(), request, files, hashes))
        check_preview(known, len(request))
        before = known.begin(transaction, len(request))
        ahead = None
        if known.looking and not self.statements.is_custom(call[0].as_py()):
            ahead = known.looking.meet(transaction, len(request))
        try:
            with nullcontext() if ahead is None else ahead.attended():
                return ask(
                    call[0].as_py(), request, files, hashes, query=(number, transaction),
                    cancelled=lambda: known.stops != before, run=known.run, ahead=ahead,
                )  # fmt: skip
        except BaseException:
            known.fail(transaction)
            raise

    def served(self, place: int, transaction: int, *chunk: pa.Array) -> pa.Array:
        """Name the served entity of each row of a chunk: endpoint, request, hashes."""
        endpoint, request, hashes = chunk
        _refuse_planning(request)
        query = (place % _SITES, transaction)
        return self.statements.served(endpoint[0].as_py(), request, hashes, query=query)


def _refuse_planning(request: pa.Array) -> None:
    if len(request) == 1 and planning():
        msg = (
            "ai_query cannot be evaluated while a statement is planned, as VALUES, LIMIT and the arguments of "
            "EXECUTE and of table functions are: use it in a SELECT, as in INSERT INTO t SELECT ai_query(...)."
        )
        raise PlanTimeError(msg)


def _arrow(method: Callable[..., pa.Array]) -> Callable[..., pa.Array]:
    """Hand a method its connection and transaction as numbers, and the other columns as arrays."""

    def spread(*columns: pa.ChunkedArray) -> pa.Array:
        arrays = [column.combine_chunks() for column in columns]
        return method(arrays[0][0].as_py(), arrays[1][0].as_py(), *arrays[2:])

    return spread


def _of(arity: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function as many plain parameters as DuckDB is to count."""

    def plain(*arguments: Any) -> Any:
        return function(*arguments)

    names = (f"argument_{number}" for number in range(arity))
    parameters = [Parameter(name, Parameter.POSITIONAL_ONLY) for name in names]
    plain.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return plain
