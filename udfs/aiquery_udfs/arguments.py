"""ai_query's arguments, checked once when the statement is bound: the one border of SQL's spellings.

Everything behind it speaks Python's names and knows that the arguments fit the endpoint (contract A.14).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from aiquery_serving.endpoint import Kind
from aiquery_serving.messages import CHAT, COMPLETIONS, EMBEDDINGS, Json
from aiquery_udfs import model_parameters, response_format, return_type
from aiquery_udfs.errors import (
    ModelSchemaParseError,
    StructuredOutputError,
    UnsupportedRequestError,
    UnsupportedReturnTypeError,
)
from aiquery_udfs.payloads import answer_text, check_whole, request_body
from aiquery_udfs.return_type import EMBEDDING, STRING, ReturnType
from aiquery_udfs.type_tokens import struct_fields

__all__ = ["BoundCall", "EndpointInfo", "answer_text", "bind", "check_whole"]

#: What DuckDB's `typeof(NULL)` says.
_NULL_TYPES = ('"NULL"', "NULL")
_VECTOR_ITEMS = ("FLOAT", "DOUBLE")
_NUMERIC = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT|U?INTEGER|FLOAT|DOUBLE|BIGNUM|BOOLEAN|DECIMAL\(.*\)")
_TEXT = re.compile(r"VARCHAR|ENUM\(.*\)", re.DOTALL)
#: Types that DuckDB hands over in an encoding of its own. Names and the values of an ENUM are skipped.
_ENCODED = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\b(VARIANT|UHUGEINT|BIGNUM|BIT|GEOMETRY)\b(?=\s*(?:[,()\[]|$))"""
)
_LIST = re.compile(r".*\[\d*\]", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointInfo:
    """What binding a call needs to know of its endpoint.

    `task` is None for custom models; `model_names` are those of the external models; `input_schema` and
    `output_type` are a custom model's signature, where it has one: nullable inputs are optional, and an
    input of Arrow's null type takes anything.
    """

    name: str
    kind: Kind
    task: str | None = None
    model_names: tuple[str, ...] = ()
    input_schema: pa.Schema | None = None
    output_type: pa.DataType | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundCall:
    """One ai_query of a statement, with everything settled that is the same for all rows.

    `parameters` hold the implicit temperature; `response_format` is the REST API's object.
    """

    endpoint: str
    kind: Kind
    task: str | None
    return_type: ReturnType
    fail_on_error: bool
    parameters: Mapping[str, Any]
    response_format: Mapping[str, Any] | None = None

    def body(self, prompt: str, image: bytes | None = None) -> Json:
        """Return the body that asks for one row's answer, of an endpoint with a task.

        Raises:
            UnsupportedRequestError: The image is not PNG, JPEG, GIF or WebP.
        """
        options = self.parameters
        if self.response_format is not None:
            options = {**options, "response_format": self.response_format}
        return request_body(self.task or CHAT, prompt, image, options)


def bind(
    endpoint: EndpointInfo,
    request_type: str,
    *,
    return_type: str | None,
    fail_on_error: bool | None,
    model_parameters_json: str | None,
    response_format: str | None,
    has_files: bool,
) -> BoundCall:
    """Check a call's arguments against its endpoint.

    Args:
        endpoint: The endpoint that the first argument names.
        request_type: DuckDB's `typeof(request)`.
        return_type: Type text, or None for the endpoint's own type.
        fail_on_error: None counts as true.
        model_parameters_json: The STRUCT as JSON, or None.
        response_format: DDL or JSON text, or None.
        has_files: Whether the argument `files` is given.

    Raises:
        AiFunctionError: The condition of contract A.9 that names the wrong argument.
    """
    _check_request(endpoint, request_type)
    if has_files and endpoint.task != CHAT:
        raise _only_chat(endpoint, "files", UnsupportedRequestError)
    return BoundCall(
        endpoint=endpoint.name,
        kind=endpoint.kind,
        task=endpoint.task,
        return_type=_return_type(endpoint, return_type),
        fail_on_error=fail_on_error is not False,
        parameters=_parameters(endpoint, model_parameters_json),
        response_format=_response_format(endpoint, response_format),
    )


def _parameters(endpoint: EndpointInfo, text: str | None) -> dict[str, Any]:
    is_custom = endpoint.kind is Kind.CUSTOM
    given = model_parameters.parse(text, endpoint=endpoint.name, task=endpoint.task, is_custom=is_custom)
    if endpoint.task not in (CHAT, COMPLETIONS):
        return given
    return model_parameters.implicit_temperature(given, endpoint.model_names) | given


def _response_format(endpoint: EndpointInfo, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    if endpoint.task != CHAT:
        raise _only_chat(endpoint, "responseFormat", StructuredOutputError)
    return response_format.parse(text)


def _only_chat(
    endpoint: EndpointInfo,
    argument: str,
    condition: type[StructuredOutputError | UnsupportedRequestError],
) -> StructuredOutputError | UnsupportedRequestError:
    served = f"the task {endpoint.task}" if endpoint.task else "custom models"
    return condition(
        f'The argument {argument} is only for endpoints with the task {CHAT}, but "{endpoint.name}" '
        f"serves {served}. Leave {argument} out, or name a chat endpoint."
    )


def _return_type(endpoint: EndpointInfo, text: str | None) -> ReturnType:
    if text is not None:
        given = return_type.parse(text)
        if endpoint.task == EMBEDDINGS and not _is_vector(given):
            raise UnsupportedReturnTypeError(
                f'The returnType {given.sql} is not supported: endpoint "{endpoint.name}" answers with '
                "embeddings. Write returnType => 'ARRAY<FLOAT>', or leave it out."
            )
        return given
    if endpoint.task == EMBEDDINGS:
        return EMBEDDING
    return STRING if endpoint.task else _signature_type(endpoint)


def _is_vector(kind: ReturnType) -> bool:
    return kind.name in ("LIST", "ARRAY") and kind.item.name in _VECTOR_ITEMS


def _signature_type(endpoint: EndpointInfo) -> ReturnType:
    try:
        if endpoint.output_type is not None:
            return return_type.from_arrow(endpoint.output_type)
        reason = "its model's signature does not say"
    except UnsupportedReturnTypeError as error:
        reason = error.message
    raise ModelSchemaParseError(
        f'The type that endpoint "{endpoint.name}" returns is not known: {reason}. Set it yourself, for '
        "example returnType => 'DOUBLE', or log the model with a signature that names its outputs."
    )


def _check_request(endpoint: EndpointInfo, request_type: str) -> None:
    if request_type in _NULL_TYPES:
        return
    if endpoint.kind is not Kind.CUSTOM:
        if request_type != "VARCHAR":
            raise UnsupportedRequestError(
                f'The request of serving endpoint "{endpoint.name}" must be of type STRING, but found '
                f"{request_type}. Supported types: STRING. Write CAST(request AS STRING)."
            )
        return
    _refuse_encodings(endpoint, request_type)
    if endpoint.input_schema is not None and len(endpoint.input_schema):
        _check_inputs(endpoint.name, endpoint.input_schema, request_type)


def _refuse_encodings(endpoint: EndpointInfo, request_type: str) -> None:
    """Refuse types whose values would reach a model as DuckDB's own bytes, or as another number."""
    fields = struct_fields(request_type)
    names = endpoint.input_schema.names if endpoint.input_schema is not None else []
    is_named = fields is not None and any(name in fields for name in names)
    taken = [kind for name, kind in (fields or {"": request_type}).items() if not is_named or name in names]
    strange = next((found[1] for kind in taken for found in _ENCODED.finditer(kind) if found[1]), None)
    if strange is not None:
        raise UnsupportedRequestError(
            f'The request of serving endpoint "{endpoint.name}" is of type {request_type}, and a model would not '
            f"see the value of a {strange}. Cast it to the type that the model takes, as in CAST(value AS DOUBLE)."
        )


def _check_inputs(endpoint: str, schema: pa.Schema, request_type: str) -> None:
    fields = struct_fields(request_type)
    if fields is None or (len(schema) == 1 and _family(schema[0].type) == "object"):
        _check_single(endpoint, schema, request_type, is_struct=fields is not None)
        return
    if schema.names == [str(number) for number in range(len(schema))]:
        return  # the signature names nothing: columns count by position
    missing = [f.name for f in schema if f.name not in fields and not f.nullable]
    if missing:
        raise UnsupportedRequestError(
            f'The request of serving endpoint "{endpoint}" misses the inputs {_listed(missing)}. The model '
            f"takes {_signature(schema)}; the request has {_listed(list(fields))}."
            + (" Mind capital letters: they count." if _folded(missing) & _folded(list(fields)) else "")
        )
    for field in schema:
        if field.name in fields and not _fits(fields[field.name], field.type):
            raise _mismatch(endpoint, field, fields[field.name])


def _check_single(endpoint: str, schema: pa.Schema, request_type: str, *, is_struct: bool) -> None:
    """Check a request that is one value, not one field per input."""
    required = [field for field in schema if not field.nullable] or list(schema)
    if len(required) > 1:
        example = ", ".join(f"{_identifier(field.name)} := …" for field in required)
        raise UnsupportedRequestError(
            f'The request of serving endpoint "{endpoint}" must be a STRUCT, but found {request_type}. The '
            f"model takes {_signature(schema)}. Write struct_pack({example})."
        )
    if not is_struct and not _fits(request_type, required[0].type):
        raise _mismatch(endpoint, required[0], request_type)


def _identifier(name: str) -> str:
    """Write a name as SQL takes it."""
    return name if name.isidentifier() else '"' + name.replace('"', '""') + '"'


def _mismatch(endpoint: str, field: pa.Field, found: str) -> UnsupportedRequestError:
    wanted = _sql(field.type)
    is_number = field.name.isdigit()  # the signature names nothing
    what = "The request" if is_number else f"The input {field.name!r}"
    column = field.name if field.name.isidentifier() else "…"
    return UnsupportedRequestError(
        f'{what} of serving endpoint "{endpoint}" must be of type {wanted}, but found {found}. '
        f"Write CAST({column} AS {wanted})."
    )


def _fits(found: str, wanted: pa.DataType) -> bool:
    """Whether a value might do; the model itself enforces its signature on the rows."""
    families = {_family_of_text(found), _family(wanted)}
    return "any" in families or len(families) == 1


def _family_of_text(text: str) -> str:
    if struct_fields(text) is not None:
        return "object"
    for pattern, family in ((_LIST, "list"), (_NUMERIC, "number"), (_TEXT, "text")):
        if pattern.fullmatch(text):
            return family
    return "any"


def _family(kind: pa.DataType) -> str:
    tests = (
        (pa.types.is_struct, "object"),
        (pa.types.is_list, "list"),
        (pa.types.is_fixed_size_list, "list"),
        (pa.types.is_integer, "number"),
        (pa.types.is_floating, "number"),
        (pa.types.is_boolean, "number"),
        (pa.types.is_string, "text"),
    )
    return next((family for test, family in tests if test(kind)), "any")


def _signature(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {_sql(field.type)}{' (optional)' if field.nullable else ''}" for field in schema)


def _sql(kind: pa.DataType) -> str:
    return "anything" if pa.types.is_null(kind) else return_type.from_arrow(kind).sql


def _folded(names: list[str]) -> set[str]:
    return {name.casefold() for name in names}


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))
