"""Which request bodies of a custom model can be one body, and how its answer is taken apart again.

Bodies are merged as they are, row after row, so that MLflow reads the merged one with its own rules. What
those rules make of a column depends on all its values: only bodies with the same columns, and cells of the
same JSON types in each, are put together. Each then means what it means alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, TypeAlias

from aiquery_serving.entities.scoring import ENVELOPE
from aiquery_serving.messages import Json

#: What bodies must have in common: the form, the columns, and the types of the cells.
Shape: TypeAlias = "tuple[str, tuple[str, ...], tuple[type, ...]]"

_CELLS = frozenset({str, int, float, bool, type(None)})
_ROW_FORMS = ("dataframe_split", "dataframe_records", "instances")


def is_mergeable(metadata: Any) -> bool:
    """Whether the model that an MLflow `Model` describes takes named columns of scalars, each cell read by itself."""
    from mlflow.types.schema import DataType

    schema = metadata.get_input_schema()
    if schema is None or metadata._is_signature_from_type_hint() or not schema.has_input_names():  # noqa: SLF001
        return False
    # What a date's text means is guessed from the first one of its column.
    kinds = schema.input_types()
    return all(isinstance(kind, DataType) and kind is not DataType.datetime for kind in kinds)


def shape_of(body: Mapping[str, Any]) -> tuple[Shape, int] | None:
    """Return what a body must have in common with others to be merged, and its rows; None if it goes alone.

    Examples:
        >>> shape_of({"dataframe_records": [{"a": 1, "b": "x"}]})
        (('dataframe_records', ('a', 'b'), (<class 'int'>, <class 'str'>)), 1)
        >>> shape_of({"dataframe_records": [{"a": 1}], "params": {"top": 3}}) is None
        True
    """
    forms = [name for name in body if name not in ENVELOPE]
    if len(forms) != 1 or forms[0] not in _ROW_FORMS:
        return None
    (form,) = forms
    named = _split(body[form]) if form == "dataframe_split" else _records(body[form])
    if named is None:
        return None
    columns, rows = named
    types = _types(rows)
    if types is None or len(types) != len(columns):
        return None
    return (form, columns, types), len(rows)


def merged(shape: Shape, bodies: Sequence[Mapping[str, Any]]) -> Json:
    """Return the rows of bodies of one shape as one body.

    Examples:
        >>> bodies = [{"dataframe_records": [{"a": 1}]}, {"dataframe_records": [{"a": 2}]}]
        >>> merged(("dataframe_records", ("a",), (int,)), bodies)
        {'dataframe_records': [{'a': 1}, {'a': 2}]}
    """
    form, columns, _ = shape
    if form == "dataframe_split":
        rows = chain.from_iterable(body[form]["data"] for body in bodies)
        return {form: {"columns": list(columns), "data": list(rows)}}
    return {form: list(chain.from_iterable(body[form] for body in bodies))}


def parted(answer: Json, counts: Sequence[int]) -> list[Json] | None:
    """Return each body's share of an answer; None if it is not one prediction per row.

    Examples:
        >>> parted({"predictions": [1, 2, 3]}, [1, 2])
        [{'predictions': [1]}, {'predictions': [2, 3]}]
    """
    if not is_per_row(answer, sum(counts)):
        return None
    predictions = answer["predictions"]
    return [{"predictions": predictions[start:end]} for start, end in pairwise(accumulate(counts, initial=0))]


def is_per_row(answer: Json, rows: int) -> bool:
    """Whether an answer is one prediction for each of that many rows."""
    predictions = answer.get("predictions")
    return isinstance(predictions, list) and len(predictions) == rows


def _split(value: Any) -> tuple[tuple[str, ...], Sequence[Sequence[Any]]] | None:
    # An index is the rows' own: a merged one could have labels twice.
    if not isinstance(value, dict) or value.keys() != {"columns", "data"}:
        return None
    columns, rows = value["columns"], value["data"]
    if not _is_list_of(str, columns) or not _is_list_of(list, rows):
        return None
    return tuple(columns), rows


def _records(value: Any) -> tuple[tuple[str, ...], Sequence[Sequence[Any]]] | None:
    if not _is_list_of(dict, value):
        return None
    columns = tuple(value[0])
    if any(tuple(row) != columns for row in value):
        return None
    return columns, [tuple(row.values()) for row in value]


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is kind for item in value)


def _types(rows: Sequence[Sequence[Any]]) -> tuple[type, ...] | None:
    """Return the types that every row's cells have; None if rows differ, or a cell holds more than a scalar."""
    first, *others = rows
    types = tuple(map(type, first))
    if not _CELLS.issuperset(types) or any(tuple(map(type, row)) != types for row in others):
        return None
    return types
