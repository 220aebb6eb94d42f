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
import math
import signal
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, Final, TypeVar

import duckdb
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from aiquery_serving.errors import CancelledCallError
from aiquery_udfs import rows
from aiquery_udfs.errors import PlanTimeError
from aiquery_udfs.planning import planning, task_loop
from aiquery_udfs.statements import Statements

if TYPE_CHECKING:
    from types import FrameType

    from aiquery_udfs.execution import Cancelled, Execution

_ARGUMENTS: Final = (
    "{connection}::BIGINT, concat(endpoint), concat(returnType), concat(failOnError), typeof(request), "
    "concat(to_json(modelParameters)), concat(responseFormat), typeof(files)"
)
_AI_QUERY: Final = """
CREATE OR REPLACE TEMP MACRO ai_query(
    endpoint, request, returnType := NULL, failOnError := true,
    modelParameters := NULL, responseFormat := NULL, files := NULL
) AS cast_to_type(
    struct_extract(
        {name}_answer({connection}::BIGINT, txid_current()::BIGINT, {name}_call({arguments}), request, files,
                      CASE WHEN {name}_split(concat(endpoint)) THEN hash(request) END),
        {name}_family({arguments})),
    from_json('null', {name}_structure({arguments})))
"""
_AI_SERVED_ENTITY: Final = """
CREATE OR REPLACE TEMP MACRO ai_served_entity(endpoint, request) AS
    {name}_served({connection}::BIGINT, txid_current()::BIGINT, concat(endpoint), request, hash(request))
"""

T = TypeVar("T")

#: How long after a failure chunks of the same statement may still begin, before DuckDB knows of it.
FAILURE_SECONDS: Final = 0.5
_numbers = itertools.count(1)


@dataclass(eq=False)
class _Connection:
    """What we know of one DuckDB connection: which it is, and how often its statement was stopped."""

    number: int
    engine: _Engine
    stops: int = 0
    interrupted: float = -math.inf
    failed: tuple[int, float] | None = None

    def interrupt(self) -> None:
        """Stop whatever the connection's statement waits for."""
        self.stops += 1
        self.interrupted = time.monotonic()

    def binding(self) -> Cancelled:
        """Return what says whether the binding of a statement was interrupted.

        DuckDB tries a binding that failed once more, so an interrupt holds for a moment.
        """
        before = self.stops
        return lambda: self.stops != before or time.monotonic() < self.interrupted + FAILURE_SECONDS

    def begin(self, transaction: int, count: int) -> int:
        """Let a chunk of rows begin, and return what `stops` is while nobody stopped it.

        Raises:
            CancelledCallError: Another chunk of the statement failed just now, which DuckDB has not noticed yet.
        """
        if count == 1:
            # After a failure, a single row is TRY at work: the statement goes on.
            self.failed = None
        if self.failed is not None and self.failed[0] == transaction and time.monotonic() < self.failed[1]:
            raise CancelledCallError("Another row of the statement failed; this one was not asked.")
        return self.stops

    def fail(self, transaction: int) -> None:
        """Stop the chunks that DuckDB's other threads are at: it waits for them to report the error."""
        self.stops += 1
        self.failed = (transaction, time.monotonic() + FAILURE_SECONDS)


_connections: Final[weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, _Connection]] = weakref.WeakKeyDictionary()
_engines: Final[weakref.WeakValueDictionary[int, _Engine]] = weakref.WeakValueDictionary()


def register(connection: duckdb.DuckDBPyConnection, execution: Execution) -> None:
    """Make `ai_query` and `ai_served_entity` available on a connection and its cursors.

    Registering again replaces the workspace behind them. Nothing is written to the database file.

    Args:
        connection: Any DuckDB 2.x connection, of memory or of a file, read-only ones included.
        execution: What answers the requests.
    """
    _watch_connections()
    _watch_interrupts()
    task_loop()
    engine = _engines.get(id(execution))
    if engine is None:
        engine = _engines[id(execution)] = _Engine(execution)
    _install(engine, connection)


def _install(engine: _Engine, handle: duckdb.DuckDBPyConnection) -> None:
    known = _connections.get(handle)
    if known is None:
        known = _connections[handle] = _Connection(next(_numbers), engine)
    known.engine = engine
    engine.connections[known.number] = known
    engine.define(handle, known.number)


class _Engine:
    """The SQL functions of one workspace."""

    def __init__(self, execution: Execution) -> None:
        self.name = f"__aiquery_{next(_numbers)}"
        self.statements = Statements(execution)
        self.connections: dict[int, _Connection] = {}

    def define(self, handle: duckdb.DuckDBPyConnection, connection: int) -> None:
        """Create the functions, where the database has not got them, and the connection's macros."""
        known = handle.execute(
            "SELECT count(*) FROM duckdb_functions() WHERE function_name = ?",
            [f"{self.name}_answer"],
        ).fetchall()
        if known == [(0,)]:
            self._create_functions(handle)
        for macro in (_AI_QUERY, _AI_SERVED_ENTITY):
            arguments = _ARGUMENTS.format(connection=connection)
            handle.execute(macro.format(name=self.name, connection=connection, arguments=arguments))

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
            ("served", _of(5, _arrow(self.served)), "VARCHAR"),
        ):
            # No parameter types: `request` may be of any type.
            handle.create_function(
                f"{self.name}_{name}", function, None, result,
                type=PythonUDFType.ARROW, null_handling=FunctionNullHandling.SPECIAL,
            )  # fmt: skip

    def _binder(self, function: Callable[..., T]) -> Callable[..., T]:
        """Let a function that binds a call stop when its connection is interrupted: a model may load for long."""

        def bound(connection: int, *arguments: str) -> T:
            return function(arguments, cancelled=self.connections[connection].binding())

        return bound

    def answer(self, connection: int, transaction: int, *chunk: pa.Array) -> pa.Array:
        """Answer one chunk of rows: call, request, files, hashes."""
        call, request, files, hashes = chunk
        _refuse_planning(request)
        known = self.connections[connection]
        before = known.begin(transaction, len(request))
        try:
            return self.statements.answer(
                call[0].as_py(),
                request,
                files,
                hashes,
                query=(connection, transaction),
                cancelled=lambda: known.stops != before,
            )
        except BaseException:
            known.fail(transaction)
            raise

    def served(self, connection: int, transaction: int, *chunk: pa.Array) -> pa.Array:
        """Name the served entity of each row of a chunk: endpoint, request, hashes."""
        endpoint, request, hashes = chunk
        _refuse_planning(request)
        return self.statements.served(endpoint[0].as_py(), request, hashes, query=(connection, transaction))


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


def _watch_connections() -> None:
    """See cursors and interrupts: DuckDB gives no hook, but its connection class can be extended.

    A TEMP macro does not exist on a cursor, and a running function does not learn of an interrupt.
    """
    kind = duckdb.DuckDBPyConnection
    if getattr(kind.cursor, "of_aiquery", False):
        return
    cursor, interrupt = kind.cursor, kind.interrupt

    def watched_cursor(self: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        handle = cursor(self)
        known = _connections.get(self)
        if known is not None:
            _install(known.engine, handle)
        return handle

    def watched_interrupt(self: duckdb.DuckDBPyConnection) -> None:
        known = _connections.get(self)
        if known is not None:
            known.interrupt()
        interrupt(self)

    watched_cursor.__doc__, watched_interrupt.__doc__ = cursor.__doc__, interrupt.__doc__
    watched_cursor.of_aiquery = True  # type: ignore[attr-defined]
    kind.cursor = kind.duplicate = watched_cursor  # type: ignore[method-assign]
    kind.interrupt = watched_interrupt  # type: ignore[method-assign]


def _watch_interrupts() -> None:
    """Let Ctrl-C end the waits of every connection, then do what it did before.

    Python runs signal handlers in the main thread, which may be waiting inside DuckDB for another thread.
    """
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(before) or getattr(before, "of_aiquery", False):
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        for known in list(_connections.values()):
            known.interrupt()
        before(number, frame)

    interrupted.of_aiquery = True  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, interrupted)
