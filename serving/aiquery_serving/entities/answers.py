"""From whatever a model returns to one Arrow array with an answer per row."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

from aiquery_serving.entities.scoring import jsonable
from aiquery_serving.errors import ModelError

_JSON = (str, int, float, bool, list, tuple, Mapping, type(None))
_PLAIN = (str, int, float, bool, bytes, type(None))


def answers(output: Any, rows: int, declared: pa.DataType | None) -> pa.Array:
    """Return one answer per row, of the declared type if the signature has one.

    Data frames and dicts of columns give their one column, or a struct of several; a two-dimensional
    array gives lists. None is NULL, and so is what pandas calls missing in text, nullable and object
    columns; NaN in numbers stays NaN. Numbers in numpy arrays are not copied.

    Raises:
        ModelError: The answers are not one per row, or do not fit the declared type.
    """
    try:
        return _counted(_fitted(_array(output, rows, declared), declared), rows)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        wanted = "one Arrow type" if declared is None else f"the signature's {declared}"
        raise ModelError(f"The model's answer ({_described(output)}) does not fit {wanted}: {error}") from error


def _counted(array: pa.Array, rows: int) -> pa.Array:
    if len(array) != rows:
        raise ModelError(f"The model gave {len(array)} answers for {rows} rows; predict() must return one per row.")
    return array


def _described(output: Any) -> str:
    shape = getattr(output, "shape", None)
    return type(output).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")


def _array(output: Any, rows: int, declared: pa.DataType | None) -> pa.Array:
    if isinstance(output, pd.DataFrame):
        columns = [_column(output.iloc[:, at]) for at in range(output.shape[1])]
        return _joined([str(name) for name in output.columns], columns, declared)
    if isinstance(output, np.ndarray):
        return _from_numpy(output, rows, declared)
    if isinstance(output, pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        return _column(output)
    if isinstance(output, list | tuple):
        return _from_list(output, declared)
    if isinstance(output, Mapping):
        return _from_dict(output, rows, declared)
    return _from_other(output, rows, declared)


def _from_other(output: Any, rows: int, declared: pa.DataType | None) -> pa.Array:
    if isinstance(output, pa.Array):
        return output
    if isinstance(output, pa.ChunkedArray):
        return output.combine_chunks()
    if hasattr(output, "toarray"):  # a scipy sparse matrix
        return _from_numpy(output.toarray(), rows, declared)
    if hasattr(output, "detach"):  # a torch tensor may hang on a graph or live on a GPU
        output = output.detach().cpu()
    if hasattr(output, "__array__"):
        return _from_numpy(np.asarray(output), rows, declared)
    if output is None:
        raise ModelError("The model returned None; predict() must return one answer per row.")
    return _one(output, rows, declared)


def _one(output: Any, rows: int, declared: pa.DataType | None) -> pa.Array:
    """Take a single value as the answer to a single row."""
    if rows != 1:
        raise ModelError(
            f"The model gave one {type(output).__name__} for {rows} rows; predict() must return one answer per row."
        )
    return _from_list([output], declared)


def _column(values: Any) -> pa.Array:
    if isinstance(values.dtype, np.dtype) and values.dtype != object:
        return _flat(values.to_numpy())
    array = pa.array(values, from_pandas=True)
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    is_category = pa.types.is_dictionary(array.type)
    return array.cast(array.type.value_type) if is_category else array


def _from_numpy(output: np.ndarray[Any, Any], rows: int, declared: pa.DataType | None) -> pa.Array:
    if output.ndim == 0:
        return _one(output.item(), rows, declared)
    if output.ndim == 1:
        return _flat(output)
    if declared is not None and pa.types.is_struct(declared):
        names = [declared.field(at).name for at in range(declared.num_fields)]
        if output.ndim == 2 and output.shape[1] == len(names):  # noqa: PLR2004 rows x columns
            return _joined(names, [_flat(output[:, at]) for at in range(len(names))], declared)
    wants_scalar = declared is not None and not pa.types.is_nested(declared)
    if wants_scalar and output.size == len(output):
        return _flat(output.reshape(-1))
    return _nested(output)


def _flat(values: np.ndarray[Any, Any]) -> pa.Array:
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    # An array of objects may hold None, NaN for missing text, lists: pandas' rules apply.
    return pa.array(values, from_pandas=values.dtype == object)


def _nested(values: np.ndarray[Any, Any]) -> pa.Array:
    array = _flat(np.ascontiguousarray(values).reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        count = int(np.prod(values.shape[:axis]))
        offsets = np.arange(count + 1, dtype=np.int32) * np.int32(values.shape[axis])
        array = pa.ListArray.from_arrays(pa.array(offsets), array)
    return array


def _from_list(output: Sequence[Any], declared: pa.DataType | None) -> pa.Array:
    # One look at the first answer: models give values of one kind.
    is_plain = type(next((v for v in output if v is not None), None)) in _PLAIN
    values = output if is_plain else [_plain(value) for value in output]
    if declared is not None:
        try:
            return pa.array(values, type=declared, from_pandas=False)
        except (pa.ArrowException, TypeError, ValueError):
            return pa.array(values)  # `_fitted` then says what is wrong, or casts it
    try:
        return pa.array(values)
    except pa.ArrowException:
        if not all(isinstance(value, _JSON) for value in values):
            raise
        return pa.array([_json_text(value) for value in values], pa.string())


def _json_text(value: Any) -> str | None:
    """Write a value as JSON: where every row's is of another type, that is the one type they share."""
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(jsonable(value)).decode()


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _from_dict(output: Mapping[Any, Any], rows: int, declared: pa.DataType | None) -> pa.Array:
    is_columns = output and all(_is_column(value) for value in output.values())
    if not is_columns:
        return _one(dict(output), rows, declared)
    columns = [_counted(_array(value, rows, None), rows) for value in output.values()]
    return _joined([str(name) for name in output], columns, declared)


def _is_column(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray | pd.Series) and np.ndim(value[:0]) > 0


def _joined(names: list[str], columns: list[pa.Array], declared: pa.DataType | None) -> pa.Array:
    wants_struct = declared is not None and pa.types.is_struct(declared)
    if len(columns) == 1 and not (wants_struct and not pa.types.is_struct(columns[0].type)):
        return columns[0]
    if not columns:
        raise ModelError("The model returned no column; predict() must return one answer per row.")
    return pa.StructArray.from_arrays(columns, names=names)


def _fitted(array: pa.Array, declared: pa.DataType | None) -> pa.Array:
    if declared is None or array.type == declared:
        return array
    if pa.types.is_struct(declared) and pa.types.is_struct(array.type):
        return _fitted_struct(array, declared)
    return array.cast(declared)


def _fitted_struct(array: pa.StructArray, declared: pa.StructType) -> pa.Array:
    """Give a struct the declared fields, by name and in the declared order."""
    given = [array.type.field(at).name for at in range(array.type.num_fields)]
    wanted = [declared.field(at) for at in range(declared.num_fields)]
    missing = [field.name for field in wanted if field.name not in given]
    if missing:
        raise ModelError(f"The model's answer has no {missing}, which its signature promises; it has {given}.")
    columns = array.flatten()
    fitted = [_fitted(columns[given.index(field.name)], field.type) for field in wanted]
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(fitted, fields=wanted, mask=mask)
