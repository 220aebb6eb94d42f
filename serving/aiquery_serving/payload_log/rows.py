"""One request and its answer as a row of an inference table, with the columns that Databricks gives these tables."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import orjson
import pyarrow as pa

#: Bytes of JSON that are logged at most of a request, and of its answer.
MOST_BYTES: Final = 1_048_576
_DAY_MS: Final = 86_400_000
_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY

SCHEMA: Final = pa.schema(
    [
        ("request_date", pa.date32()),
        ("databricks_request_id", pa.string()),
        ("client_request_id", pa.string()),
        ("request_time", pa.timestamp("ms", "UTC")),
        ("status_code", pa.int32()),
        ("sampling_fraction", pa.float64()),
        ("execution_duration_ms", pa.int64()),
        ("request", pa.string()),
        ("response", pa.string()),
        ("served_entity_id", pa.string()),
        ("served_entity_name", pa.string()),
        ("requester", pa.string()),
        ("logging_error_codes", pa.list_(pa.string())),
    ]
)


def _new_id() -> str:
    return str(uuid4())


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadRow:
    """One request as it ended.

    `request_time_ms` is in milliseconds since 1970. `request` and `response` are JSON objects, or their text; nobody
    may change them any more. `request_id` is made up when nobody has given one.
    """

    endpoint_id: str
    request_time_ms: int
    status_code: int
    execution_duration_ms: float
    request: Mapping[str, Any] | bytes | str
    response: Mapping[str, Any] | bytes | str | None
    served_entity: str = ""
    requester: str = ""
    request_id: str = field(default_factory=_new_id)


def table(rows: Iterable[PayloadRow]) -> pa.Table:
    """Return rows as a table of `SCHEMA`."""
    return pa.Table.from_pylist([_members(row) for row in rows], schema=SCHEMA)


def _members(row: PayloadRow) -> dict[str, Any]:
    request, response = _text(row.request), _text(row.response)
    codes = [
        code
        for code, text in (("MAX_REQUEST_SIZE_EXCEEDED", request), ("MAX_RESPONSE_SIZE_EXCEEDED", response))
        if text is not None and len(text) > MOST_BYTES
    ]
    return {
        "request_date": row.request_time_ms // _DAY_MS,
        "databricks_request_id": row.request_id,
        "client_request_id": _client_request_id(row.request),
        "request_time": row.request_time_ms,
        "status_code": row.status_code,
        "sampling_fraction": 1.0,
        "execution_duration_ms": round(row.execution_duration_ms),
        "request": _logged(request),
        "response": _logged(response),
        "served_entity_id": f"{row.endpoint_id}/{row.served_entity}" if row.served_entity else None,
        "served_entity_name": row.served_entity or None,
        "requester": row.requester or None,
        "logging_error_codes": codes or None,
    }


def _text(payload: Mapping[str, Any] | bytes | str | None) -> bytes | None:
    if payload is None or isinstance(payload, bytes):
        return payload
    if isinstance(payload, str):
        return payload.encode("utf-8", "replace")
    try:
        return orjson.dumps(payload, default=repr, option=_OPTIONS)
    except TypeError:  # nested too deep, or half a surrogate pair: logged in a form that can be
        return reprlib.repr(payload).encode("utf-8", "replace")


def _logged(text: bytes | None) -> str | None:
    return None if text is None or len(text) > MOST_BYTES else text.decode("utf-8", "replace")


def _client_request_id(request: Mapping[str, Any] | bytes | str) -> str | None:
    given = request.get("client_request_id") if isinstance(request, Mapping) else None
    return given.encode("utf-8", "replace").decode() if isinstance(given, str) else None
