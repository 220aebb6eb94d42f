"""From an Arrow batch to what a model takes: checked once per schema, copied once per batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from aiquery_serving.entities.columns import Reader, column_reader, natural_reader, nested_reader, tensor_reader
from aiquery_serving.entities.signature import Input, Inputs
from aiquery_serving.errors import InvalidRequestError

#: What an MLflow model takes: columns, one array, or an array per input name.
Frame: TypeAlias = "pd.DataFrame | np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]"
#: Turns batches of one Arrow schema into a model's input.
Plan: TypeAlias = Callable[[pa.RecordBatch], Frame]


def plan(inputs: Inputs | None, schema: pa.Schema) -> Plan:
    """Check that rows of this schema fit the model, and return how to hand them over.

    Columns are found by name, in any order, and extra ones are dropped. A model with exactly one
    input, or one that is not optional, takes a batch of exactly one column whatever its name; if the
    input is an object, the columns may also be its fields. Without a signature every column is handed
    over as it is.

    Raises:
        InvalidRequestError: An input is missing, or a column's type does not fit without loss.
    """
    if inputs is None:
        return _natural(schema)
    try:
        return _tensors(inputs, schema) if inputs.is_tensor else _columns(inputs, schema)
    except InvalidRequestError as error:
        _refuse(inputs, schema, error)


def _refuse(inputs: Inputs, schema: pa.Schema, error: Exception) -> NoReturn:
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
    raise InvalidRequestError(
        f"Failed to enforce schema of data '{columns}' with schema '{inputs.text}'. Error: {error}"
    ) from error


def _natural(schema: pa.Schema) -> Plan:
    readers = [natural_reader(field.name, field.type) for field in schema]
    return _frame(list(schema.names), range(len(schema)), readers)


def _columns(inputs: Inputs, schema: pa.Schema) -> Plan:
    if _are_fields(inputs, schema):
        return _object(inputs, schema)
    found = _located(inputs, schema)
    names = [i.name for i, _ in found] if inputs.named else [schema.names[at] for _, at in found]
    readers = [_reader(i, schema.field(at).type) for i, at in found]
    return _guarded(inputs, schema, _frame(names, [at for _, at in found], readers))


def _are_fields(inputs: Inputs, schema: pa.Schema) -> bool:
    """Whether the columns are the fields of the one object that the model takes, not the object itself."""
    kind = inputs.columns[0].type
    if (
        len(inputs.columns) > 1
        or kind is None
        or not pa.types.is_struct(kind)
        or inputs.columns[0].name in schema.names
    ):
        return False
    return len(schema) > 1 or schema.names[0] in [field.name for field in kind]


def _object(inputs: Inputs, schema: pa.Schema) -> Plan:
    column = inputs.columns[0]
    build = _frame([column.name], [0], [nested_reader(column.name, pa.struct(list(schema)), column.type)])

    def gather(rows: pa.RecordBatch) -> Frame:
        return build(pa.RecordBatch.from_arrays([rows.to_struct_array()], [column.name]))

    return _guarded(inputs, schema, gather)


def _reader(column: Input, source: pa.DataType) -> Reader:
    if column.type is None:
        return natural_reader(column.name, source)
    if pa.types.is_nested(column.type):
        return nested_reader(column.name, source, column.type)
    return column_reader(column.name, source, column.type, required=column.required)


def _guarded(inputs: Inputs, schema: pa.Schema, build: Plan) -> Plan:
    """Give what only the values can show (NULLs, overflow) the same words as a wrong schema."""

    def guarded(rows: pa.RecordBatch) -> Frame:
        try:
            return build(rows)
        except InvalidRequestError as error:
            _refuse(inputs, schema, error)

    return guarded


def _located(inputs: Inputs, schema: pa.Schema) -> list[tuple[Input, int]]:
    """Pair each input with the number of its column; optional inputs may have none."""
    if len(inputs.columns) == 1 and len(schema) == 1:
        return [(inputs.columns[0], 0)]
    if inputs.named and len(schema) == 1 and schema.names[0] not in [c.name for c in inputs.columns]:
        required = [column for column in inputs.columns if column.required]
        if len(required) == 1:
            return [(required[0], 0)]
    if not inputs.named:
        return _by_position(inputs, schema)
    _check_missing(inputs, schema)
    return [(column, schema.get_field_index(column.name)) for column in inputs.columns if column.name in schema.names]


def _by_position(inputs: Inputs, schema: pa.Schema) -> list[tuple[Input, int]]:
    if len(schema) < len(inputs.columns):
        raise InvalidRequestError(
            "Model inference is missing inputs. The model signature declares "
            f"{len(inputs.columns)} inputs but the provided value only has {len(schema)} inputs. "
            "Note: the inputs were not named in the signature so only their count can be verified."
        )
    return [(column, number) for number, column in enumerate(inputs.columns)]


def _check_missing(inputs: Inputs, schema: pa.Schema) -> None:
    missing = [c.name for c in inputs.columns if c.required and c.name not in schema.names]
    if missing:
        names = {column.name for column in inputs.columns}
        extra = [name for name in schema.names if name not in names]
        note = f" Note that there were extra inputs: {extra}." if extra else ""
        raise InvalidRequestError(f"Model is missing inputs {missing}.{note}")
    twice = [c.name for c in inputs.columns if schema.names.count(c.name) > 1]
    if twice:
        raise InvalidRequestError(f"Inputs {twice} are given more than once; name each input once.")


def _frame(names: list[str], places: Sequence[int], readers: Sequence[Reader]) -> Plan:
    dtypes = {reader.dtype for reader in readers}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    if dtype is not None:
        return _Block(pd.Index(names, dtype=object), tuple(places), tuple(readers), dtype)
    return _Mixed(names, tuple(places), tuple(readers))


@dataclass(frozen=True, slots=True)
class _Block:
    """Columns of one type: one array that the frame then owns, one copy in all."""

    names: pd.Index[Any]
    places: tuple[int, ...]
    readers: tuple[Reader, ...]
    dtype: np.dtype[Any]

    def __call__(self, rows: pa.RecordBatch) -> pd.DataFrame:
        # One row of the array per column: the layout pandas itself keeps, so it copies nothing.
        values = np.empty((len(self.readers), rows.num_rows), self.dtype)
        for row, (place, reader) in enumerate(zip(self.places, self.readers, strict=True)):
            values[row] = reader.read(rows.column(place))
        # Without its type said again, pandas 3 makes text `str`, with NaN for None.
        return pd.DataFrame(values.T, columns=self.names, dtype=self.dtype, copy=False)


@dataclass(frozen=True, slots=True)
class _Mixed:
    """Columns of several types."""

    names: list[str]
    places: tuple[int, ...]
    readers: tuple[Reader, ...]

    def __call__(self, rows: pa.RecordBatch) -> pd.DataFrame:
        # By number first: two columns may have one name.
        columns = {
            number: self._series(reader.read(rows.column(place)))
            for number, (place, reader) in enumerate(zip(self.places, self.readers, strict=True))
        }
        frame = pd.DataFrame(columns, index=pd.RangeIndex(rows.num_rows))
        frame.columns = pd.Index(self.names, dtype=object)
        return frame

    @staticmethod
    def _series(values: np.ndarray[Any, Any]) -> Any:
        # As above: text stays `object`, with None.
        return pd.Series(values, dtype=object, copy=False) if values.dtype == object else values


def _tensors(inputs: Inputs, schema: pa.Schema) -> Plan:
    if inputs.named:
        arrays = [(i.name, at, _tensor(i, schema.field(at).type)) for i, at in _located(inputs, schema)]
        return _guarded(inputs, schema, lambda rows: {name: read(rows.column(at)) for name, at, read in arrays})
    if len(schema) > 1:
        return _guarded(inputs, schema, _matrix(inputs.columns[0], schema))
    if len(schema) == 0:
        raise InvalidRequestError("the rows have no column; the model takes one array.")
    read = _tensor(inputs.columns[0], schema.field(0).type)
    return _guarded(inputs, schema, lambda rows: read(rows.column(0)))


def _tensor(column: Input, source: pa.DataType) -> Callable[[pa.Array], np.ndarray[Any, Any]]:
    return tensor_reader(column.name, source, column.type, column.shape or (-1,))


def _matrix(column: Input, schema: pa.Schema) -> Plan:
    """Put scalar columns side by side; a tensor has no names, so their order counts."""
    shape = column.shape or (-1,)
    if len(shape) != 2 or shape[1] not in {-1, len(schema)}:  # noqa: PLR2004 rows x columns
        raise InvalidRequestError(
            f"the model takes an array of shape {shape} and got {len(schema)} columns; give one "
            "column that holds a list per row, or one scalar column for each value of a row."
        )
    reads = [tensor_reader(f.name, f.type, column.type, (-1,)) for f in schema]

    def matrix(rows: pa.RecordBatch) -> np.ndarray[Any, Any]:
        first = reads[0](rows.column(0))
        values = np.empty((rows.num_rows, len(reads)), first.dtype)
        values[:, 0] = first
        for number in range(1, len(reads)):
            values[:, number] = reads[number](rows.column(number))
        return values

    return matrix
