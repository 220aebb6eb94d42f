"""One Arrow column as the numpy array that a model takes, by safe casts only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aiquery_serving.errors import InvalidRequestError

Read: TypeAlias = Callable[[pa.Array], "np.ndarray[Any, Any]"]


@dataclass(frozen=True, slots=True)
class Reader:
    """How one column is read.

    `dtype` is set if every batch gives values of that type, so that columns may share one array.
    """

    read: Read
    dtype: np.dtype[Any] | None = None


def column_reader(name: str, source: pa.DataType, target: pa.DataType, *, required: bool) -> Reader:
    """Return how a column of type `source` becomes the signature's `target`.

    NULL becomes NaN, NaT, or None for text, binary and boolean. An integer cannot be NULL: for an
    input that is not required the column then becomes float64 with NaN, as pandas has it.

    Numbers become smaller types as long as every value fits: SQL writes a count as BIGINT and 0.5 as a
    decimal, whatever the model was trained on. Only a float's last digits may get lost.

    Raises:
        InvalidRequestError: The values are of another kind: text for numbers, fractions for integers.
    """
    _check_safe(name, source, target)
    prepare = _caster(name, source, target)
    if pa.types.is_integer(target):
        dtype = np.dtype(target.to_pandas_dtype()) if required else None
        return Reader(lambda column: _integers(name, prepare(column), required=required), dtype)
    return Reader(lambda column: _numpy(prepare(column)), _lasting_dtype(target))


def natural_reader(name: str, source: pa.DataType) -> Reader:
    """Return how a column is read when no signature says what the model wants.

    Numbers keep their type (NULL makes an integer column float64), decimals become double, dates
    become datetimes, and nested values become Python lists and dicts.
    """
    plain = source.value_type if pa.types.is_dictionary(source) else source
    if pa.types.is_nested(plain):
        return nested_reader(name, plain, None)
    target = _natural_type(plain)
    prepare = _caster(name, source, target)
    return Reader(lambda column: _numpy(prepare(column)), _lasting_dtype(target))


def nested_reader(name: str, source: pa.DataType, target: pa.DataType | None) -> Reader:
    """Return how lists, structs and maps become Python objects whose numbers are of the signature's types.

    Decimals that the signature says nothing of become doubles. What does not fit is left as it is, for
    MLflow's own check to name the place.

    Raises:
        InvalidRequestError: When read, for NULL in a list of text, which MLflow would make the letter `n`.
    """
    wanted = _aligned(source, target)
    prepare = _caster(name, source, wanted)
    box = _boxer(target)
    holds_texts = target is not None and _is_text(_innermost(target)) and _is_list(target)

    def read(column: pa.Array) -> np.ndarray[Any, Any]:
        if holds_texts:
            _check_no_gaps(name, column)
        values = objects(prepare(column))
        if box is not None:
            for row, value in enumerate(values):
                values[row] = box(value)
        return values

    return Reader(read, np.dtype(object))


def python_values(column: pa.Array, target: pa.DataType | None) -> list[Any]:
    """Return the rows as Python has them, numbers as the target wants them: whole, or floating.

    Raises:
        InvalidRequestError: A number does not fit its type.
    """
    prepare = _caster("request", column.type, _aligned(column.type, target))
    values: list[Any] = prepare(column).to_pylist(maps_as_pydicts="lossy")
    return values


def tensor_reader(name: str, source: pa.DataType, element: pa.DataType | None, shape: tuple[int, ...]) -> Read:
    """Return how a column becomes an array of `shape`, the rows being its first dimension.

    The column holds a list per row (nested as deep as need be, or flat), or a scalar per row for a
    one-dimensional array. Elements may lose float precision, as MLflow has it for tensors.

    Raises:
        InvalidRequestError: The elements are of another kind.
    """
    inner = _innermost(source)
    target = element if element is not None else _natural_type(inner)
    _check_safe(name, inner, target)
    prepare = _caster(name, inner, target)

    def read(column: pa.Array) -> np.ndarray[Any, Any]:
        count = len(column)
        values = prepare(_flattened(name, column))
        array = _integers(name, values, required=True) if _is_int(target) else _numpy(values)
        # The rows' own memory is read-only; a tensor is the model's to change.
        own = array if array.flags.writeable else array.copy()
        return _shaped(name, own, (count, *shape[1:]))

    return read


def objects(column: pa.Array) -> np.ndarray[Any, Any]:
    """Return nested values as Python objects, one per row."""
    values = np.empty(len(column), dtype=object)
    # "Lossy" is about keys that appear twice, which no map of DuckDB's has.
    for row, value in enumerate(column.to_pylist(maps_as_pydicts="lossy")):
        values[row] = value
    return values


def _lasting_dtype(target: pa.DataType) -> np.dtype[Any] | None:
    """Return the numpy type that a column has with NULLs and without; None if they differ."""
    if pa.types.is_floating(target):
        dtype: np.dtype[Any] = np.dtype(target.to_pandas_dtype())
        return dtype
    # MLflow's text type is `object` with None.
    is_object = pa.types.is_string(target) or pa.types.is_binary(target)
    return np.dtype(object) if is_object else None


def _natural_type(source: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(source):
        return _natural_type(source.value_type)
    if pa.types.is_decimal(source) or pa.types.is_null(source):
        return pa.float64()
    if pa.types.is_date(source) or pa.types.is_timestamp(source):
        return pa.timestamp("ns", getattr(source, "tz", None))
    if _is_text(source):
        return pa.string()
    return source


def _is_int(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _check_safe(name: str, source: pa.DataType, target: pa.DataType) -> None:
    if pa.types.is_dictionary(source):
        source = source.value_type
    if pa.types.is_null(source) or _is_safe(source, target):
        return
    raise InvalidRequestError(
        f"Incompatible input types for column {name}. Can not safely convert {source} to {target}"
        f"{_way_out(source, target)}"
    )


def _way_out(source: pa.DataType, target: pa.DataType) -> str:
    if pa.types.is_timestamp(source) and pa.types.is_timestamp(target):
        return ", because it has a time zone; convert it to a TIMESTAMP without one in the query."
    return "; cast the column in the query if that is what you mean."


def _is_safe(source: pa.DataType, target: pa.DataType) -> bool:
    # Whether the values fit is for the cast to say: it refuses what it cannot hold exactly.
    is_exact = pa.types.is_integer(source) or pa.types.is_decimal(source)
    if pa.types.is_integer(target):
        return bool(is_exact)
    if pa.types.is_floating(target):
        return bool(is_exact or pa.types.is_floating(source))
    if pa.types.is_timestamp(target):
        is_naive = pa.types.is_timestamp(source) and source.tz is None
        return bool(is_naive or pa.types.is_date(source))
    if pa.types.is_string(target):
        return _is_text(source)
    if pa.types.is_binary(target):
        return _is_binary(source)
    return bool(source == target)


def _caster(name: str, source: pa.DataType, target: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    if source == target:
        return lambda column: column
    narrows = pa.types.is_floating(source) and pa.types.is_floating(target)

    def cast(column: pa.Array) -> pa.Array:
        try:
            return column.cast(target, safe=not narrows)
        except pa.ArrowInvalid as error:
            raise InvalidRequestError(
                f"Incompatible input types for column {name}. Can not safely convert {source} to {target}: {error}"
            ) from error

    return cast


def _numpy(column: pa.Array) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = column.to_numpy(zero_copy_only=False)
    return values


def _integers(name: str, column: pa.Array, *, required: bool) -> np.ndarray[Any, Any]:
    if column.null_count and required:
        raise InvalidRequestError(
            f"Incompatible input types for column {name}. It has {column.null_count} NULLs and the "
            "model takes integers, which cannot be missing; replace them with coalesce(), filter "
            "them out, or log the model with a double for that column."
        )
    return _numpy(column)


def _innermost(kind: pa.DataType) -> pa.DataType:
    while _is_list(kind):
        kind = kind.value_type
    return kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _aligned(source: pa.DataType, target: pa.DataType | None) -> pa.DataType:
    """Return the type of the same shape as `source` whose scalars are those of `target`, where they fit."""
    if pa.types.is_dictionary(source):
        source = source.value_type
    if target is not None and pa.types.is_null(target):
        target = None  # that may be anything
    if _is_list(source):
        item = target.value_type if target is not None and _is_list(target) else None
        return pa.list_(_aligned(source.value_type, item))
    if pa.types.is_map(source):
        item = target.item_type if target is not None and pa.types.is_map(target) else None
        return pa.map_(source.key_type, _aligned(source.item_type, item))
    if pa.types.is_struct(source):
        return pa.struct([(field.name, _aligned(field.type, _child(target, field.name))) for field in source])
    if target is None or pa.types.is_nested(target):
        return pa.float64() if pa.types.is_decimal(source) else source
    return target if _is_safe(source, target) else source


def _child(target: pa.DataType | None, name: str) -> pa.DataType | None:
    """Return the type that a target says one field of a struct has; a map's values all have one type."""
    if target is not None and pa.types.is_map(target):
        return target.item_type
    if target is None or not pa.types.is_struct(target) or target.get_field_index(name) < 0:
        return None
    return target.field(name).type


def _boxer(target: pa.DataType | None) -> Callable[[Any], Any] | None:
    """Return what makes Python numbers those of a type that Python has not got; None for nothing to do.

    MLflow takes a Python float for a double and refuses it as a float.
    """
    if target is None:
        return None
    if target in _BOXES:
        scalar = _BOXES[target]
        return lambda value: value if value is None else scalar(value)
    if _is_list(target):
        item = _boxer(target.value_type)
        return item and (lambda value: [item(v) for v in value] if isinstance(value, list) else value)
    if pa.types.is_map(target):
        value_of = _boxer(target.item_type)
        return value_of and (lambda value: {k: value_of(v) for k, v in value.items()} if value else value)
    if pa.types.is_struct(target):
        boxes = {field.name: box for field in target if (box := _boxer(field.type)) is not None}
        return _fields_boxer(boxes) if boxes else None
    return None


def _fields_boxer(boxes: Mapping[str, Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def box(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: boxes[name](item) if name in boxes else item for name, item in value.items()}

    return box


def _number_box(kind: type[np.generic], *taken: type) -> Callable[[Any], Any]:
    return lambda value: kind(value) if type(value) in taken else value


_BOXES: Mapping[pa.DataType, Callable[[Any], Any]] = {
    pa.float32(): _number_box(np.float32, float),
    pa.int32(): _number_box(np.int32, int),
}


def _check_no_gaps(name: str, column: pa.Array) -> None:
    while _is_list(column.type):
        column = column.flatten()
    if column.null_count:
        raise InvalidRequestError(
            f"Column {name} has {column.null_count} NULLs inside its lists, and the model takes lists of text "
            "without gaps; filter them out, for example with list_filter()."
        )


def _flattened(name: str, column: pa.Array) -> pa.Array:
    if pa.types.is_null(column.type):
        raise InvalidRequestError(f"Column {name} has {len(column)} NULLs instead of lists. Filter those rows out.")
    while _is_list(column.type):
        if column.null_count:
            raise InvalidRequestError(
                f"Column {name} has {column.null_count} NULL lists; an array cannot have gaps. Filter those rows out."
            )
        lengths = pc.min_max(pc.list_value_length(column)).as_py()
        if lengths["min"] != lengths["max"]:
            raise InvalidRequestError(
                f"Column {name} has lists of {lengths['min']} to {lengths['max']} values; the "
                "model takes an array, so every row needs the same number."
            )
        column = column.flatten()
    return column


def _shaped(name: str, values: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    try:
        return values.reshape(shape)
    except ValueError:
        per_row = len(values) // shape[0]
        raise InvalidRequestError(
            f"Shape of input ({shape[0]}, {per_row}) in column {name} does not match expected shape {(-1, *shape[1:])}."
        ) from None
