"""Arrow columns to requests, and answers to Arrow columns: NULLs, duplicates, failOnError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import orjson
import pyarrow as pa
import xxhash

from aiquery_serving.errors import AiQueryError, CancelledCallError, WorkspaceError
from aiquery_serving.messages import EMBEDDINGS
from aiquery_udfs.arguments import BoundCall
from aiquery_udfs.casting import cast_arrow, cast_text
from aiquery_udfs.errors import AiFunctionError, from_gateway
from aiquery_udfs.return_type import ReturnType

# DuckDB fixes a Python function's return type when it is registered, while the type of ai_query depends on
# its arguments. So our function returns one STRUCT with a child per family of types, of which the macro
# picks one when the statement is bound. A VARIANT alone could hold everything, at twice the cost for
# numbers and 26 times for embeddings.
_ERRORS: Final = ("errorMessage", pa.string())
_PLAIN: Final[dict[str, tuple[str, pa.DataType]]] = {
    "s": ("VARCHAR", pa.string()),
    "i": ("BIGINT", pa.int64()),
    "d": ("DOUBLE", pa.float64()),
    "f": ("FLOAT[]", pa.list_(pa.float32())),
    "v": ("VARIANT", pa.string()),
}
_FAMILIES: Final[dict[str, tuple[str, pa.DataType]]] = _PLAIN | {
    f"{tag}e": (
        f"STRUCT(result {sql}, errorMessage VARCHAR)",
        pa.struct([("result", arrow), _ERRORS]),
    )
    for tag, (sql, arrow) in _PLAIN.items()
}
#: Why a row has no answer, in SQL and in Arrow.
ERROR_TYPE: Final = "STRUCT(class VARCHAR, message VARCHAR, attempts INTEGER)"
ERROR_ARROW: Final = pa.struct([("class", pa.string()), ("message", pa.string()), ("attempts", pa.int32())])
#: The identity of a row's request; None for a NULL row, which is answered NULL and never sent; or why the
#: row makes no request.
RowKey: TypeAlias = bytes | AiFunctionError | None
#: The SQL type of everything ai_query can answer, before the macro picks a child and casts it.
ANSWER_TYPE: Final = "STRUCT(" + ", ".join(f"{tag} {sql}" for tag, (sql, _) in _FAMILIES.items()) + ")"


def family(arrow: pa.DataType, *, fail_on_error: bool) -> str:
    """Return the child of `ANSWER_TYPE` that holds values of a type.

    Examples:
        >>> family(pa.int32(), fail_on_error=True), family(pa.list_(pa.float32()), fail_on_error=False)
        ('i', 'fe')
    """
    return _plain_family(arrow) + ("" if fail_on_error else "e")


def _plain_family(arrow: pa.DataType) -> str:
    if pa.types.is_string(arrow):
        return "s"
    if pa.types.is_boolean(arrow) or (pa.types.is_integer(arrow) and not pa.types.is_uint64(arrow)):
        return "i"
    if pa.types.is_floating(arrow):
        return "d"
    if pa.types.is_list(arrow) and pa.types.is_float32(arrow.value_type):
        return "f"
    return "v"


def identity(call: BoundCall, body: Mapping[str, Any]) -> bytes:
    """Return what makes a request the same request: 16 bytes of its endpoint and its body."""
    return xxhash.xxh3_128_digest(call.endpoint.encode() + b"\0" + orjson.dumps(body, option=orjson.OPT_SORT_KEYS))


def route_key(text: str) -> bytes:
    """Return what a row draws its served entity by: its request, whatever the parameters."""
    return xxhash.xxh3_64_digest(text.encode())


def requests(
    call: BoundCall, prompts: pa.Array, files: pa.Array | None
) -> tuple[list[RowKey], dict[bytes, tuple[dict[str, Any], bytes]]]:
    """Turn rows into request bodies.

    Returns:
        The key of each row, and the distinct bodies with their route keys, by identity.

    Raises:
        AiFunctionError: A row makes no request, and `failOnError` is true.
    """
    texts: list[str | None] = prompts.to_pylist()
    images: Sequence[bytes | None] = files.to_pylist() if files is not None else [None] * len(texts)
    keys: list[RowKey] = []
    bodies: dict[bytes, tuple[dict[str, Any], bytes]] = {}
    for text, image in zip(texts, images, strict=True):
        if text is None:
            keys.append(None)
            continue
        try:
            body = call.body(text, image)
        except AiFunctionError as error:
            if call.fail_on_error:
                raise
            keys.append(error)
            continue
        key = identity(call, body)
        if key not in bodies:
            bodies[key] = body, route_key(text)
        keys.append(key)
    return keys, bodies


def text_column(call: BoundCall, keys: Sequence[RowKey], answers: Mapping[bytes, Any]) -> pa.Array:
    """Return the answer column of chat and completions rows."""
    found, errors = _found(keys, answers)
    values, misfits = cast_text(found, call.return_type)
    return answer_column(call, values, {**errors, **misfits})


def embedding_column(call: BoundCall, keys: Sequence[RowKey], answers: Mapping[bytes, Any]) -> pa.Array:
    """Return the answer column of embeddings rows."""
    vectors, errors = _found(keys, answers)
    lengths = [0 if vector is None else len(vector) for vector in vectors]
    present = [vector for vector in vectors if vector is not None]
    flat = np.concatenate(present) if present else np.empty(0, np.float32)
    array = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()),
        pa.array(flat, pa.float32()),
        mask=pa.array([vector is None for vector in vectors], pa.bool_()),
    )
    values, misfits = cast_arrow(array, call.return_type)
    return answer_column(call, values, {**errors, **misfits})


def failure_column(errors: Mapping[int, Exception], count: int) -> pa.Array:
    """Return why each row has no answer: its error's class, text and attempts, or NULL where there is one."""
    values: list[dict[str, Any] | None] = [None] * count
    for row, error in errors.items():
        said, attempts = ai_error(error), getattr(error, "attempts", 0)
        values[row] = {"class": type(error).__name__, "message": str(said), "attempts": attempts}
    return pa.array(values, ERROR_ARROW)


def row_errors(call: BoundCall, keys: Sequence[RowKey], answers: Mapping[bytes, Any]) -> dict[int, Exception]:
    """Return the errors of chat, completions and embeddings rows by their number, misfits of a type included."""
    found, errors = _found(keys, answers)
    if call.task == EMBEDDINGS:
        return dict(errors)
    return {**errors, **cast_text(found, call.return_type)[1]}


def _found(keys: Sequence[RowKey], answers: Mapping[bytes, Any]) -> tuple[list[Any], dict[int, AiQueryError]]:
    """Return each row's answer or None, and the errors by row."""
    found = [answers[key] if isinstance(key, bytes) else key for key in keys]
    errors = {row: value for row, value in enumerate(found) if isinstance(value, AiQueryError)}
    return [None if isinstance(value, AiQueryError) else value for value in found], errors


def prediction_column(
    call: BoundCall, predictions: pa.Array, errors: Mapping[int, Exception] | None = None
) -> pa.Array:
    """Return the answer column of a custom model's predictions."""
    values, misfits = cast_arrow(predictions, call.return_type)
    return answer_column(call, values, {**(errors or {}), **misfits})


def answer_column(call: BoundCall, values: pa.Array, errors: Mapping[int, Exception]) -> pa.Array:
    """Wrap values, and the errors that stand in for some of them, as `failOnError` says.

    Raises:
        AiFunctionError: The first row's error, when `failOnError` is true.
    """
    if errors and call.fail_on_error:
        raise ai_error(errors[min(errors)])
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8()).cast(pa.int64())
    values = _with_json(values, call.return_type)
    tag = family(call.return_type.arrow, fail_on_error=call.fail_on_error)
    if not call.fail_on_error:
        values = _with_errors(values, errors)
    return _only_child(values, tag)


def without_errors(call: BoundCall, answers: pa.Array) -> pa.Array:
    """Return the column of a call that fails on errors, made of answers that carry them: NULL where one failed."""
    tag = family(call.return_type.arrow, fail_on_error=False)
    values = answers.field(tag).field("result")
    return _only_child(values, family(call.return_type.arrow, fail_on_error=True))


def error_texts(call: BoundCall, answers: pa.Array) -> dict[int, str]:
    """Return the error messages in a column of answers that carry them, by row."""
    tag = family(call.return_type.arrow, fail_on_error=False)
    texts = answers.field(tag).field("errorMessage").to_pylist()
    return {row: text for row, text in enumerate(texts) if text is not None}


def misfits(
    call: BoundCall, keys: Sequence[RowKey], answers: Mapping[bytes, Any], column: pa.Array
) -> Iterator[bytes]:  # fmt: skip
    """Return the requests whose answers are no errors, and became some in a column that carries errors."""
    for row in error_texts(call, column):
        key = keys[row]
        if isinstance(key, bytes) and not isinstance(answers[key], AiQueryError):
            yield key


def _only_child(values: pa.Array, tag: str) -> pa.Array:
    # Arrow's null type costs DuckDB less than empty columns of each child's own.
    nothing = pa.nulls(len(values))
    children = [values if name == tag else nothing for name in _FAMILIES]
    return pa.StructArray.from_arrays(children, list(_FAMILIES))


def _with_json(values: pa.Array, kind: ReturnType) -> pa.Array:
    """Tell DuckDB which texts inside a value are JSON, or it would keep them as text in a VARIANT.

    A JSON answer as a whole travels as the text it is, which keeps every digit of its numbers.
    """
    if kind.name == "JSON" or not ("JSON" in kind.sql or "VARIANT" in kind.sql):
        return values
    return values.cast(_json_type(kind))


def _json_type(kind: ReturnType) -> pa.DataType:
    match kind.name:
        case "LIST":
            return pa.list_(_json_type(kind.item))
        case "ARRAY":
            return pa.list_(_json_type(kind.item), kind.parameters[0])
        case "MAP":
            return pa.map_(*(_json_type(field) for _, field in kind.fields))
        case "STRUCT":
            return pa.struct([(name, _json_type(field)) for name, field in kind.fields])
    return pa.json_(kind.arrow) if kind.name in ("JSON", "VARIANT") else kind.arrow


def ai_error(error: Exception) -> Exception:
    """Return an error as ai_query words it.

    What is not the endpoint's doing stays what it is: a bug, an interrupt, a workspace that cannot be used.
    """
    if isinstance(error, (AiFunctionError, CancelledCallError, WorkspaceError)):
        return error
    return from_gateway(error) if isinstance(error, AiQueryError) else error


def _with_errors(values: pa.Array, errors: Mapping[int, Exception]) -> pa.Array:
    texts: list[str | None] = [None] * len(values)
    for row, error in errors.items():
        texts[row] = str(ai_error(error))
    return pa.StructArray.from_arrays([values, pa.array(texts, pa.string())], ["result", "errorMessage"])
