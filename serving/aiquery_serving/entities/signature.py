"""What a model's MLflow signature says about its rows and its answers, in Arrow's types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

#: MLflow's scalar types, by name, as columns of rows.
_SCALARS: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "integer": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "datetime": pa.timestamp("ns"),
}
#: The same as answers: SQL engines keep microseconds.
_ANSWER_SCALARS = {**_SCALARS, "datetime": pa.timestamp("us")}


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a model: a column, or a tensor if `shape` is set.

    `type` is the Arrow type of a column, or of a tensor's elements; None takes anything.
    `shape` counts the rows as its first dimension and leaves open dimensions at -1.
    """

    name: str
    type: pa.DataType | None
    required: bool = True
    shape: tuple[int, ...] | None = None

    @property
    def arrow(self) -> pa.DataType:
        """The type of one row's value; Arrow's null type stands for anything."""
        element = self.type if self.type is not None else pa.null()
        return _listed(element, len(self.shape) - 1 if self.shape else 0)


@dataclass(frozen=True, slots=True)
class Inputs:
    """All inputs of a model, in the signature's order.

    `named` is False if the signature gives no names: columns then count by position and `Input.name`
    is their number. `text` is the signature as MLflow writes it, for errors.
    """

    columns: tuple[Input, ...]
    named: bool
    text: str

    @property
    def is_tensor(self) -> bool:
        """Whether the model takes arrays instead of a data frame."""
        return any(column.shape is not None for column in self.columns)

    @property
    def is_flat(self) -> bool:
        """Whether every input is a plain scalar column, or a tensor of scalars."""
        return all(c.type is not None and not pa.types.is_nested(c.type) for c in self.columns)

    def schema(self) -> pa.Schema:
        """Return the inputs as an Arrow schema; optional inputs are nullable."""
        return pa.schema([_field(c.name, c.arrow, required=c.required) for c in self.columns])


def inputs_of(schema: Any) -> Inputs | None:
    """Read the inputs of an MLflow `Schema`; None for no schema or an empty one."""
    specs = list(schema.inputs) if schema is not None else []
    if not specs:
        return None
    columns = tuple(_input(spec, str(number)) for number, spec in enumerate(specs))
    return Inputs(columns, named=specs[0].name is not None, text=str(schema))


def properties_of(schema: Any) -> pa.Schema | None:
    """Return the fields of the one object that a type-hinted model takes per row.

    None if the model's one input is not an object whose fields are all known.
    """
    from mlflow.types.schema import Object

    specs = list(schema.inputs) if schema is not None else []
    if len(specs) != 1 or not isinstance(specs[0].type, Object):
        return None
    properties = specs[0].type.properties
    types = [_arrow(p.dtype, _SCALARS) or pa.null() for p in properties]
    return pa.schema([_field(p.name, kind, required=p.required) for p, kind in zip(properties, types, strict=True)])


def output_type(schema: Any) -> pa.DataType | None:
    """Return the type of one answer, or None if the signature leaves any part of it open.

    One output gives its own type, several give a struct in the signature's order.
    """
    specs = list(schema.inputs) if schema is not None else []
    outputs = [(s.name or str(number), _answer_type(s)) for number, s in enumerate(specs)]
    if not outputs:
        return None
    return outputs[0][1] if len(outputs) == 1 else _struct(outputs)


def _field(name: str, kind: pa.DataType, *, required: bool) -> pa.Field:
    # Arrow's null type, which stands for anything here, has to be nullable.
    return pa.field(name, kind, nullable=not required or pa.types.is_null(kind))


def _input(spec: Any, number: str) -> Input:
    name = spec.name if spec.name is not None else number
    required = getattr(spec, "required", True)
    if _is_tensor(spec):
        return Input(name, _element(spec.type), required, tuple(spec.shape))
    return Input(name, _arrow(spec.type, _SCALARS), required)


def _answer_type(spec: Any) -> pa.DataType | None:
    if _is_tensor(spec):
        element = _element(spec.type)
        return None if element is None else _listed(element, len(spec.shape) - 1)
    return _arrow(spec.type, _ANSWER_SCALARS)


def _is_tensor(spec: Any) -> bool:
    return hasattr(spec, "shape")


def _element(dtype: np.dtype[Any]) -> pa.DataType | None:
    """Return a tensor element's type; None for `object`, which may hold anything."""
    kinds = {"U": pa.string(), "S": pa.binary(), "M": pa.timestamp("ns")}
    if dtype.kind in kinds:
        return kinds[dtype.kind]
    try:
        return pa.from_numpy_dtype(dtype)
    except pa.ArrowNotImplementedError:
        return None


def _arrow(kind: Any, scalars: dict[str, pa.DataType]) -> pa.DataType | None:
    """Translate an MLflow column type; None if any part of it may be anything."""
    from mlflow.types.schema import Array, DataType, Map, Object

    if isinstance(kind, DataType):
        return scalars[kind.name]
    if isinstance(kind, Array):
        return _wrapped(pa.list_, _arrow(kind.dtype, scalars))
    if isinstance(kind, Map):
        return _wrapped(lambda value: pa.map_(pa.string(), value), _arrow(kind.value_type, scalars))
    if isinstance(kind, Object):
        return _struct([(p.name, _arrow(p.dtype, scalars)) for p in kind.properties])
    return None


def _wrapped(wrap: Callable[[pa.DataType], pa.DataType], inner: pa.DataType | None) -> pa.DataType | None:
    return None if inner is None else wrap(inner)


def _struct(fields: Sequence[tuple[str, pa.DataType | None]]) -> pa.DataType | None:
    known = [(name, kind) for name, kind in fields if kind is not None]
    return pa.struct(known) if len(known) == len(fields) else None


def _listed(element: pa.DataType, depth: int) -> pa.DataType:
    for _ in range(depth):
        element = pa.list_(element)
    return element
