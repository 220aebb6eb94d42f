"""`ai_query` as a Polars expression: eager, lazy, and in the streaming engine.

Theory of operation. A call is bound when its expression is built, so that a frame's schema is known before anything
runs, and once more with the type that its rows turn out to have. Polars hands over a whole column, or in the
streaming engine morsels of it, from several threads. Those that are evaluated at the same time remember together
what they have asked (an `_Evaluation`), and slices of a column are offered ahead, as far as the endpoint takes them.

The expression is elementwise, so that it streams, and so that `head` and filters on other columns go first. But
Polars would also merge `filter(cheap).filter(ai)` into one condition, and ask for all rows: `_GATE` keeps it from it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import polars as pl
import pyarrow as pa

from aiquery_serving.errors import AiQueryError, CancelledCallError
from aiquery_udfs import rows
from aiquery_udfs.errors import InvalidArgumentError, UnsupportedRequestError, UnsupportedReturnTypeError
from aiquery_udfs.execution import Execution
from aiquery_udfs.look_ahead import LookAhead
from aiquery_udfs.memo import Memo, QueryId
from aiquery_udfs.return_type import ReturnType, from_arrow, parse
from aiquery_udfs.runs import Run
from aiquery_udfs.statements import Statements

#: Rows of which requests are made at once; a custom model gets all rows.
SLICE_ROWS: Final = 2048
#: Bytes of answers that an evaluation remembers, for duplicates and for what was asked ahead.
MEMO_BYTES: Final = 64 * 1024 * 1024
#: How long Ctrl-C waits for Polars' other threads to leave, in seconds: they must not outlive Python.
LEAVE_SECONDS: Final = 0.5

#: The only query of an evaluation's own memo.
_QUERY: Final[QueryId] = (0, 0)
#: What might fail is not moved before a filter that it came after. This might, as far as Polars can tell.
_GATE: Final = pl.lit([0], dtype=pl.List(pl.Int8)).list.get(0, null_on_oob=False)
#: A function of Polars, which raises KeyboardInterrupt after Ctrl-C: Python's own handler has to wait for Polars.
_PROBE: Final = pl.Series([0])

#: What DuckDB's `typeof` says of NULL: whatever is asked with it, fits.
_UNKNOWN: Final = '"NULL"'
_NOTHING: Final = pa.nulls(0, pa.string())
_SCALARS: Final[Mapping[type[pl.DataType], str]] = {
    pl.Boolean: "BOOLEAN",
    pl.Int8: "TINYINT", pl.Int16: "SMALLINT", pl.Int32: "INTEGER", pl.Int64: "BIGINT", pl.Int128: "HUGEINT",
    pl.UInt8: "UTINYINT", pl.UInt16: "USMALLINT", pl.UInt32: "UINTEGER", pl.UInt64: "UBIGINT",
    pl.Float32: "FLOAT", pl.Float64: "DOUBLE",
    pl.String: "VARCHAR", pl.Binary: "BLOB", pl.Date: "DATE", pl.Time: "TIME",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The arguments of a call that are the same for all rows; `return_type` is SQL type text."""

    endpoint: str
    return_type: str = ""
    fail_on_error: bool = True
    model_parameters: Mapping[str, Any] = field(default_factory=dict)
    response_format: str | Mapping[str, Any] = ""

    def texts(self, request: str, files: str) -> tuple[str, ...]:
        """Return the arguments as a statement spells them, with the types of `request` and `files`."""
        fails = str(self.fail_on_error).lower()
        parameters = _json("modelParameters", self.model_parameters) if self.model_parameters else ""
        form = self.response_format
        response_format = form if isinstance(form, str) else _json("responseFormat", form)
        return self.endpoint, self.return_type, fails, request, parameters, response_format, files


def ai_query(
    execution: Execution,
    endpoint: str,
    request: pl.Expr | str,
    *,
    return_dtype: pl.DataType | type[pl.DataType] | type | str | None = None,
    fail_on_error: bool = True,
    model_parameters: Mapping[str, Any] | None = None,
    response_format: str | Mapping[str, Any] | None = None,
    files: pl.Expr | str | None = None,
    run: Run | None = None,
) -> pl.Expr:
    """Return the expression that asks an endpoint for every row of another.

    Args:
        execution: What answers the requests.
        endpoint: The endpoint's name.
        request: What to ask; a column's name stands for the column.
        return_dtype: The type of the answers, as Polars or SQL writes it; by default the endpoint's own.
        fail_on_error: Raise a row's error, or else return `Struct(result, errorMessage)`.
        model_parameters: Of the model, `temperature` for one.
        response_format: DDL, JSON text or JSON schema that the answers follow.
        files: One image a row, as bytes.
        run: What the expression asks for beside its arguments.

    Raises:
        AiFunctionError: An argument is wrong, or there is no such endpoint.
    """
    wanted = None if return_dtype is None or isinstance(return_dtype, str) else _normal(return_dtype)
    arguments = Arguments(
        endpoint=endpoint,
        return_type=_sql_text(wanted) if wanted is not None else str(return_dtype or ""),
        fail_on_error=fail_on_error,
        model_parameters=model_parameters or {},
        response_format=response_format or "",
    )
    statements = Statements(execution)
    number = statements.call(arguments.texts(_UNKNOWN, _UNKNOWN if files is None else "BLOB"))
    call, _ = statements.requests(number, _NOTHING, _NOTHING)
    asked = _Asked(execution, arguments, run, _Answers(call.return_type, wanted, is_lenient=not fail_on_error))
    columns = [request] if files is None else [request, files]
    return pl.map_batches([*columns, _GATE], asked, return_dtype=asked.answers.dtype, is_elementwise=True)


class _Asked:
    """What Polars calls with rows, from any of its threads."""

    def __init__(self, execution: Execution, arguments: Arguments, run: Run | None, answers: _Answers) -> None:
        self.answers = answers
        self._execution, self._arguments, self._run = execution, arguments, run
        self._evaluation: _Evaluation | None = None

    def __call__(self, columns: Sequence[pl.Series]) -> pl.Series:
        request, *files = _as_long(columns[:-1])
        if request.is_empty():  # Polars tries functions with nothing at times
            return self.answers.series(request.name, [])
        with self._joined() as evaluation:
            answers = list(evaluation.answer(self._arguments, request, files[0] if files else None))
        return self.answers.series(request.name, answers)

    @contextmanager
    def _joined(self) -> Iterator[_Evaluation]:
        """Take part in the evaluation that is under way, or begin one; the last to leave ends it."""
        with _changed:
            if self._evaluation is None:
                self._evaluation = _Evaluation(self._execution, self._run)
            evaluation = self._evaluation
            _threads[evaluation] += 1
        interrupted = False
        try:
            yield evaluation
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            self._forget(evaluation)
            evaluation.fail(error)
            raise
        finally:
            self._left(evaluation)
            if interrupted:
                _interrupt_others()

    def _left(self, evaluation: _Evaluation) -> None:
        with _changed:
            _threads[evaluation] -= 1
            if not _threads[evaluation]:
                del _threads[evaluation]
                self._forget(evaluation)
                evaluation.ahead.close()
            _changed.notify_all()

    def _forget(self, evaluation: _Evaluation) -> None:
        if self._evaluation is evaluation:
            self._evaluation = None


#: How many of Polars' threads are in each evaluation now.
_threads: Final[Counter[_Evaluation]] = Counter()
_changed: Final = threading.Condition(threading.RLock())


def _interrupt_others() -> None:
    """Let Ctrl-C end every evaluation, whichever thread has learnt of it."""
    with _changed:
        for evaluation in list(_threads):
            evaluation.fail(KeyboardInterrupt())
        _changed.wait_for(lambda: not _threads, LEAVE_SECONDS)


class _Evaluation:
    """All rows of one expression that are evaluated at the same time: what they share is asked once."""

    def __init__(self, execution: Execution, run: Run | None) -> None:
        # Calls under way are shared with everybody; what was answered is forgotten with the evaluation.
        execution = copy(execution)
        execution.memo = Memo(MEMO_BYTES)
        self.statements = Statements(execution)
        self.ahead = _ColumnAhead(execution, _QUERY, run)
        self._run = run
        self._failure: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Stop all threads, with the error of the first that failed."""
        self._failure = self._failure or error
        self.ahead.close()

    def answer(self, arguments: Arguments, request: pl.Series, files: pl.Series | None) -> Iterator[pa.Array]:
        """Yield the answers to a column, a struct array of `rows.ANSWER_TYPE` for each slice of it."""
        asked, images = _arrow(request), _images(files, len(request))
        try:
            number = self.statements.call(
                arguments.texts(_type_text(request), _type_text(files)), cancelled=self._cancelled
            )
            if self.statements.is_custom(number):
                yield self._ask(number, asked, images, self._hashes(arguments.endpoint, request))
            else:
                yield from self._in_slices(number, asked, images)
        except CancelledCallError as error:
            raise self._failure or error from None
        except AiQueryError as error:
            raise rows.ai_error(error) from error

    def _in_slices(self, number: int, request: pa.Array, images: pa.Array) -> Iterator[pa.Array]:
        offered = 0
        nothing = pa.nulls(SLICE_ROWS)
        with self.ahead.attended():
            for start in range(0, len(request), SLICE_ROWS):
                # The next slice is always known: the last answers of this one must not leave the endpoint idle.
                while offered < len(request) and (offered <= start + SLICE_ROWS or self.ahead.room(0)):
                    part = slice(offered, offered + SLICE_ROWS)
                    self.ahead.offer(*self.statements.requests(number, request[part], images[part]))
                    offered += SLICE_ROWS
                part = slice(start, start + SLICE_ROWS)
                yield self._ask(number, request[part], images[part], nothing)

    def _ask(self, number: int, request: pa.Array, images: pa.Array, hashes: pa.Array) -> pa.Array:
        return self.statements.answer(
            number, request, images, hashes, query=_QUERY, cancelled=self._cancelled, run=self._run, ahead=self.ahead
        )

    def _hashes(self, endpoint: str, request: pl.Series) -> pa.Array:
        """Return what gives the same request the same served entity, where there are several."""
        split = self.statements.is_split(endpoint)
        return request.hash().to_arrow() if split else pa.nulls(len(request))

    def _cancelled(self) -> bool:
        _PROBE.sum()
        return self._failure is not None


class _ColumnAhead(LookAhead):
    """The requests of columns that are all there: what is offered is always asked, however rarely it is new."""

    def used(self, keys: Iterable[bytes]) -> None:
        """Note that some answers have been taken; any thread."""
        super().used(keys)
        self._misses = 0


class _Answers:
    """The type of the answers: `kind` as SQL knows it, `dtype` as Polars does."""

    def __init__(self, kind: ReturnType, wanted: pl.DataType | None, *, is_lenient: bool) -> None:
        result = wanted or _empty(kind.arrow).dtype
        self._kind, self._is_lenient = kind, is_lenient
        self.dtype = pl.Struct({"result": result, "errorMessage": pl.String}) if is_lenient else result

    def series(self, name: str, answers: Sequence[pa.Array]) -> pl.Series:
        """Return the column of answers that come as struct arrays of `rows.ANSWER_TYPE`."""
        if not answers:
            return pl.Series(name, [], dtype=self.dtype)
        values = pl.Series(name, pa.chunked_array([self._values(part) for part in answers]))
        return values if values.dtype == self.dtype else values.cast(self.dtype)

    def _values(self, answers: pa.Array) -> pa.Array:
        kind = self._kind.arrow
        found = answers.field(rows.family(kind, fail_on_error=not self._is_lenient))
        if not self._is_lenient:
            return found.cast(kind)
        result, errors = found.flatten()
        return pa.StructArray.from_arrays([result.cast(kind), errors], ["result", "errorMessage"])


def _json(argument: str, value: object) -> str:
    try:
        return orjson.dumps(dict(value) if isinstance(value, Mapping) else value).decode()
    except TypeError:
        raise InvalidArgumentError(argument, repr(value), ("a dict of what JSON can hold",)) from None


def _as_long(columns: Sequence[pl.Series]) -> list[pl.Series]:
    """Repeat literals, which come as one value, for every row."""
    lengths = [len(column) for column in columns]
    longest = 0 if 0 in lengths else max(lengths)
    return [column if len(column) == longest else column.new_from_index(0, longest) for column in columns]


def _arrow(request: pl.Series) -> pa.Array:
    """Return a column in Arrow, numbers without copying them."""
    if isinstance(request.dtype, (pl.Categorical, pl.Enum)):
        request = request.cast(pl.String)
    try:
        if not request.dtype.is_object():
            return request.to_arrow(compat_level=pl.CompatLevel.oldest())
    except pa.ArrowException:
        pass
    raise UnsupportedRequestError(
        f"A request of type {request.dtype} cannot be handed to an endpoint. Cast it to a type that the endpoint takes."
    )


def _images(files: pl.Series | None, count: int) -> pa.Array:
    if files is None or files.dtype != pl.Binary:
        return pa.nulls(count)
    return files.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.binary())


def _type_text(column: pl.Series | None) -> str:
    """Return the type of a column as DuckDB's `typeof` would, or as Polars where SQL has none."""
    if column is None or column.dtype == pl.Null:
        return _UNKNOWN
    try:
        return from_arrow(_arrow(column.clear()).type).sql
    except UnsupportedReturnTypeError:
        return str(column.dtype)


def _empty(kind: pa.DataType) -> pl.Series:
    return pl.Series(pa.array([], kind))


def _normal(dtype: pl.DataType | type[pl.DataType] | type) -> pl.DataType:
    """Return a type with all its parameters: Polars takes `pl.Datetime` and `int` as well."""
    try:
        return pl.Series([], dtype=dtype).dtype  # type: ignore[arg-type]  # Python's types are taken too
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise UnsupportedReturnTypeError(
            f"The return_dtype {dtype!r} is not supported: it is no type of Polars. Write pl.String, pl.Float64 or "
            "pl.Struct({'a': pl.Int64}), or SQL type text such as 'STRUCT<a: INT>'."
        ) from error


def _sql_text(dtype: pl.DataType) -> str:
    return _return_type(dtype).sql


def _return_type(dtype: pl.DataType) -> ReturnType:
    """Return the SQL type of a type of Polars.

    Raises:
        UnsupportedReturnTypeError: SQL answers have no such type.

    Examples:
        >>> _return_type(pl.Struct({"a": pl.List(pl.Int8), "b": pl.Decimal(9, 2)})).sql
        'STRUCT("a" TINYINT[], "b" DECIMAL(9,2))'
    """
    match dtype:
        case pl.List():
            return ReturnType("LIST", fields=(("item", _inner(dtype.inner)),))
        case pl.Array():
            return ReturnType("ARRAY", (dtype.size,), (("item", _inner(dtype.inner)),))
        case pl.Struct() if dtype.fields:
            return ReturnType("STRUCT", fields=tuple((one.name, _inner(one.dtype)) for one in dtype.fields))
        case pl.Decimal(precision=int(precision), scale=scale):
            return ReturnType("DECIMAL", (precision, scale))
        case pl.Datetime() if dtype.time_unit != "ns":
            return parse("TIMESTAMPTZ" if dtype.time_zone else "TIMESTAMP")
    name = _SCALARS.get(type(dtype))
    if name is None:
        raise UnsupportedReturnTypeError(
            f"The return_dtype {dtype} is not supported: an answer has no such type. Ask for pl.String, or for "
            "pl.Datetime('us') rather than nanoseconds, and cast the answer."
        )
    return ReturnType(name)


def _inner(dtype: Any) -> ReturnType:
    return _return_type(_normal(dtype))
