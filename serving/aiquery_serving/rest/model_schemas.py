"""MLflow signatures as JSON schemas of requests and answers (contract D.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aiquery_serving.messages import Json
from aiquery_serving.rest.openapi_schemas import ANYTHING, COUNT, SWITCH, TEXT, many, record

_NUMBER: Final = {"type": "number"}
#: MLflow's scalar types, by name.
_SCALARS: Final[dict[str, Json]] = {
    "boolean": SWITCH,
    "integer": COUNT,
    "long": COUNT,
    "float": _NUMBER,
    "double": _NUMBER,
    "string": TEXT,
    "binary": {**TEXT, "contentEncoding": "base64"},
    "datetime": {**TEXT, "format": "date-time"},
}
_MESSAGES = "messages"


def request_schema(signature: Any) -> Json:
    """Return the schema of a query to a model: any of the four forms, and a bare object for chat models.

    Args:
        signature: An MLflow `ModelSignature`, or None.
    """
    columns = _columns(signature.inputs if signature is not None else None)
    row = _row(columns)
    forms = {
        "dataframe_split": record(
            {"columns": many({"anyOf": [TEXT, COUNT]}), "data": many(many(ANYTHING))}, {"index": many(ANYTHING)}
        ),
        "dataframe_records": many(row),
        "instances": many({"anyOf": [row, {"type": "array"}, *_alone(columns)]}),
        "inputs": {"anyOf": [_by_column(columns), {"type": "array"}]},
    }
    params = {"params": _params(signature), "client_request_id": TEXT}
    bodies = [record({name: schema}, params, open_to=True) for name, schema in forms.items()]
    return {"anyOf": [*bodies, row] if signature is None or _MESSAGES in columns else bodies}


def answer_schema(signature: Any) -> Json:
    """Return the schema of a model's answer.

    Args:
        signature: An MLflow `ModelSignature`, or None.
    """
    declared = _columns(signature.outputs if signature is not None else None)
    if not declared:
        return {"type": "object"}
    # What is missing, or is no number that JSON has, is null.
    columns = {name: ({"anyOf": [schema, {"type": "null"}]}, needed) for name, (schema, needed) in declared.items()}
    row = _row(columns)
    predictions = many({"anyOf": [row, *_alone(columns)]} if len(columns) == 1 else row)
    return record({"predictions": predictions}, open_to=True)


def _columns(schema: Any) -> dict[str, tuple[Json, bool]]:
    """Return each column's schema, and whether it has to be there; by number where columns have no names."""
    specs = list(schema.inputs) if schema is not None else []
    return {
        str(number) if spec.name is None else spec.name: (_column(spec), getattr(spec, "required", True))
        for number, spec in enumerate(specs)
    }


def _row(columns: dict[str, tuple[Json, bool]]) -> Json:
    required = {name: schema for name, (schema, is_required) in columns.items() if is_required}
    optional = {name: schema for name, (schema, is_required) in columns.items() if not is_required}
    return record(required, optional, open_to=True)


def _by_column(columns: dict[str, tuple[Json, bool]]) -> Json:
    # A tensor is sent whole; and one row may stand for all.
    properties: dict[str, Json] = {name: {"anyOf": [many(schema), schema]} for name, (schema, _) in columns.items()}
    return record({}, properties, open_to=True)


def _alone(columns: dict[str, tuple[Json, bool]]) -> list[Json]:
    """Return what stands for a row of one column."""
    return [schema for schema, _ in columns.values()] if len(columns) == 1 else []


def _params(signature: Any) -> Json:
    specs = list(signature.params.params) if signature is not None and signature.params is not None else []
    known = {spec.name: many(_type(spec.dtype)) if spec.shape else _type(spec.dtype) for spec in specs}
    return record({}, known, open_to=True)


def _column(spec: Any) -> Json:
    shape = getattr(spec, "shape", None)
    if shape is None:
        return _type(spec.type)
    schema: Json = TEXT if spec.type.kind in "OSU" else SWITCH if spec.type.kind == "b" else _NUMBER
    for _ in shape[1:]:
        schema = many(schema)
    return schema


def _type(kind: Any) -> Json:
    name = getattr(kind, "name", "")
    if name in _SCALARS:
        return _SCALARS[name]
    return _NESTED.get(type(kind).__name__, lambda _: ANYTHING)(kind)


def _object(kind: Any) -> Json:
    required = {part.name: _type(part.dtype) for part in kind.properties if part.required}
    optional = {part.name: _type(part.dtype) for part in kind.properties if not part.required}
    return record(required, optional, open_to=True)


_NESTED: Final[dict[str, Callable[[Any], Json]]] = {
    "Array": lambda kind: many(_type(kind.dtype)),
    "Map": lambda kind: {"type": "object", "additionalProperties": _type(kind.value_type)},
    "Object": _object,
}
