"""The `responseFormat` argument: DDL or JSON text to the REST API's `response_format` (contract A.6)."""

from __future__ import annotations

from typing import Any

import orjson

from aiquery_udfs.errors import (
    InvalidResponseFormatError,
    ResponseFormatDdlError,
    ResponseFormatJsonError,
    UnsupportedReturnTypeError,
)
from aiquery_udfs.return_type import ReturnType
from aiquery_udfs.return_type import parse as parse_type

_TYPES = ("text", "json_object", "json_schema")
_SAMPLES = {
    "json_object": '{"type":"json_object"}',
    "json_schema": '{"type":"json_schema","json_schema":{"name":"…","schema":{…},"strict":true}}',
}
_INTEGERS = (
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
)
#: What JSON Schema calls a scalar; every other one is written as a string.
_SCALARS = (
    {"BOOLEAN": "boolean"}
    | dict.fromkeys(_INTEGERS, "integer")
    | dict.fromkeys(("FLOAT", "DOUBLE", "DECIMAL"), "number")
)
#: What the condition's message calls a field that is no STRUCT.
_CLASS_NAMES = {
    "LIST": "ArrayType",
    "ARRAY": "ArrayType",
    "MAP": "MapType",
    "VARCHAR": "StringType",
    "TINYINT": "ByteType",
    "SMALLINT": "ShortType",
    "BIGINT": "LongType",
    "BLOB": "BinaryType",
}
_DDL_SAMPLE = "'STRUCT<answer: STRUCT<title: STRING, year: INT>>'"


def parse(text: str) -> dict[str, Any] | None:
    """Return the `response_format` to send; None for plain text, which needs none.

    Raises:
        InvalidResponseFormatError: The text is neither JSON nor DDL.
        ResponseFormatDdlError: The DDL is not one top-level field of type STRUCT.
        ResponseFormatJsonError: The JSON's `type` is not one of the three that exist.

    Examples:
        >>> parse("STRUCT<book: STRUCT<year: INT>>")["json_schema"]["schema"]["properties"]
        {'year': {'type': 'integer'}}
    """
    bare = text.strip()
    if bare.lower() == "text":
        return None
    if bare.lower() in _TYPES:
        raise InvalidResponseFormatError(
            f"The responseFormat {text!r} is only the name of one. Write it as a JSON object: "
            f"'{_SAMPLES[bare.lower()]}'."
        )
    return _from_json(bare) if bare.startswith(("{", "[")) else _from_ddl(bare)


def json_schema(kind: ReturnType) -> dict[str, Any]:
    """Return the JSON Schema that describes a value of a type."""
    if not kind.is_nested:
        anything = kind.name in ("JSON", "VARIANT")
        return {} if anything else {"type": _SCALARS.get(kind.name, "string")}
    match kind.name:
        case "MAP":
            return {"type": "object", "additionalProperties": json_schema(kind.fields[1][1])}
        case "STRUCT":
            return {
                "type": "object",
                "properties": {name: json_schema(field) for name, field in kind.fields},
                "required": [name for name, _ in kind.fields],
                "additionalProperties": False,
            }
    return {"type": "array", "items": json_schema(kind.item)}


def _from_json(text: str) -> dict[str, Any] | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidResponseFormatError(
            f"The responseFormat is not a valid JSON string: {error}. Write an object such as "
            '\'{"type":"json_object"}\'.'
        ) from None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in _TYPES:
        raise ResponseFormatJsonError(
            f"The responseFormat has an unsupported type: {kind!r}. Supported types: "
            f"{', '.join(_TYPES)}. A JSON Schema goes into the envelope "
            '\'{"type":"json_schema","json_schema":{"name":…,"schema":{…},"strict":true}}\'.'
        )
    if kind == "text":
        return None
    if kind == "json_schema":
        _check_envelope(value.get("json_schema"))
    return dict(value)


def _check_envelope(envelope: Any) -> None:
    given = envelope if isinstance(envelope, dict) else {}
    for name, kind, article in (("name", str, "a string"), ("schema", dict, "an object")):
        if not given.get(name) or not isinstance(given[name], kind):
            raise InvalidResponseFormatError(
                f"The responseFormat is not a valid JSON string: json_schema.{name} must be {article}. "
                'Write \'{"type":"json_schema","json_schema":{"name":"…","schema":{…}}}\'.'
            )


def _from_ddl(text: str) -> dict[str, Any]:
    name, kind = _only_field(text)
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "schema": json_schema(kind), "strict": True},
    }


def _only_field(text: str) -> tuple[str, ReturnType]:
    try:
        whole = parse_type(text)
    except UnsupportedReturnTypeError as error:
        reason = error.message.replace("returnType", "text")
        raise InvalidResponseFormatError(
            f"The responseFormat is not a valid DDL string: {reason} As a responseFormat, for example {_DDL_SAMPLE}."
        ) from None
    if whole.name != "STRUCT":
        raise ResponseFormatDdlError(
            f"The responseFormat {text!r} should be StructType, but found: {_class_name(whole)}. "
            f"Write one named field, for example {_DDL_SAMPLE}."
        )
    if len(whole.fields) > 1:
        raise ResponseFormatDdlError(
            f"The responseFormat {text!r} has {len(whole.fields)} fields. Only one field is allowed on "
            f"the top-level. Wrap them in one named STRUCT, for example {_DDL_SAMPLE}."
        )
    name, kind = whole.fields[0]
    if kind.name != "STRUCT":
        raise ResponseFormatDdlError(
            f"The top-level field `{name}` should be StructType, but found: {_class_name(kind)}. "
            f"Make it a STRUCT, for example {_DDL_SAMPLE}."
        )
    return name, kind


def _class_name(kind: ReturnType) -> str:
    return _CLASS_NAMES.get(kind.name, f"{kind.name.split()[0].capitalize()}Type")
