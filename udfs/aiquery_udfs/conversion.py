"""One value of an answer to one value of a type, or the reason why it does not fit."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any, TypeAlias

import orjson

from aiquery_udfs.return_type import ReturnType

Converter: TypeAlias = Callable[[Any], Any]

_SHOWN = 60
_FLOAT_MAX = 3.4028235677973366e38
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity)|nan", re.IGNORECASE | re.ASCII)
_TRUTHS = dict.fromkeys(("true", "t", "yes", "y", "1"), True) | dict.fromkeys(("false", "f", "no", "n", "0"), False)
#: Beyond any double; a guard against answers such as 1e999999999.
_MAX_EXPONENT = 350
#: Wide enough for the 38 digits of a DECIMAL and all the zeros a float's exponent can stand for.
_EXACT = Context(prec=400)
_BITS = {"TINYINT": 8, "SMALLINT": 16, "INTEGER": 32, "BIGINT": 64}


class MisfitError(Exception):
    """A value does not fit a type; the text says why, after "it" or the value."""


def converter(kind: ReturnType) -> Converter:
    """Return the function that turns a JSON or Python value into a value of a type.

    None stays None. The function raises `MisfitError` for a value that does not fit.

    Examples:
        >>> from aiquery_udfs.return_type import parse
        >>> converter(parse("STRUCT<a: INT, b: STRING>"))({"a": "4", "c": 1})
        {'a': 4, 'b': None}
    """
    convert = _nested(kind) if kind.is_nested else _scalar(kind)
    return lambda value: None if value is None else convert(value)


def _nested(kind: ReturnType) -> Converter:
    match kind.name:
        case "STRUCT":
            return _struct({name: converter(field) for name, field in kind.fields})
        case "MAP":
            (_, key), (_, value) = kind.fields
            return _map(converter(key), converter(value))
    return _list(converter(kind.item), kind.parameters[0] if kind.parameters else None)


def _struct(fields: Mapping[str, Converter]) -> Converter:
    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise MisfitError(f"{_show(value)} is not an object")
        return {n: _inside(f"field {n!r}", c, value.get(n)) for n, c in fields.items()}

    return convert


def _list(item: Converter, size: int | None) -> Converter:
    def convert(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise MisfitError(f"{_show(value)} is not a list")
        if size is not None and len(value) != size:
            raise MisfitError(f"it has {len(value)} elements, not {size}")
        return [_inside(f"element {at}", item, element) for at, element in enumerate(value)]

    return convert


def _map(key: Converter, item: Converter) -> Converter:
    def convert(value: Any) -> list[tuple[Any, Any]]:
        if not isinstance(value, dict):
            raise MisfitError(f"{_show(value)} is not an object")
        return [(_inside("a key", key, k), _inside(f"key {k!r}", item, v)) for k, v in value.items()]

    return convert


def _inside(where: str, convert: Converter, value: Any) -> Any:
    try:
        return convert(value)
    except MisfitError as error:
        raise MisfitError(f"in {where}, {error}") from None


def _scalar(kind: ReturnType) -> Converter:
    if kind.name in _BITS:
        top = 1 << (_BITS[kind.name] - 1)
        return _integer(-top, top - 1)
    if kind.name.startswith("U") and kind.name[1:] in _BITS:
        return _integer(0, (1 << _BITS[kind.name[1:]]) - 1)
    if kind.name == "DECIMAL":
        return _decimal(*kind.parameters)
    return _PLAIN[kind.name]


def _integer(lowest: int, highest: int) -> Converter:
    def convert(value: Any) -> int:
        number = _number(value, "whole number")
        if not number.is_finite() or number != number.to_integral_value():
            raise MisfitError(f"{_show(value)} is not a whole number")
        if not lowest <= number <= highest:
            raise MisfitError(f"{_show(value)} is not between {lowest} and {highest}")
        return int(number)

    return convert


def _floating(highest: float) -> Converter:
    def convert(value: Any) -> float:
        if isinstance(value, float):
            number, finite = value, math.isfinite(value)
        else:
            exact = _number(value, "number")
            number, finite = float(exact), exact.is_finite()
        if finite and abs(number) >= highest:
            raise MisfitError(f"{_show(value)} is too large")
        return number

    return convert


def _decimal(precision: int, scale: int) -> Converter:
    step = Decimal(1).scaleb(-scale)

    def convert(value: Any) -> Decimal:
        number = _number(value, "number")
        if not number.is_finite():
            raise MisfitError(f"{_show(value)} is not a number")
        rounded = number.quantize(step, ROUND_HALF_UP, _EXACT)
        if abs(rounded).scaleb(scale, _EXACT) >= Decimal(10) ** precision:
            raise MisfitError(f"{_show(value)} has more than {precision - scale} digits before the point")
        return rounded

    return convert


def _number(value: Any, what: str) -> Decimal:
    """Read a number exactly; a string may hold one, as SQL casts allow."""
    number: Decimal | None = None
    if isinstance(value, Decimal):
        number = value
    elif isinstance(value, int) and not isinstance(value, bool):
        number = Decimal(value)
    elif isinstance(value, float):
        number = Decimal(repr(value))
    elif isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        number = Decimal(value.strip())
    if number is None:
        raise MisfitError(f"{_show(value)} is not a {what}")
    if number and number.is_finite() and abs(number.adjusted()) > _MAX_EXPONENT:
        raise MisfitError(f"{_show(value)} is out of range")
    return number


def _boolean(value: Any) -> bool:
    truth = _TRUTHS.get(value.strip().lower()) if isinstance(value, str) else None
    if isinstance(value, bool) or (isinstance(value, int | float | Decimal) and value in (0, 1)):
        truth = bool(value)
    if truth is None:
        raise MisfitError(f"{_show(value)} is neither true nor false")
    return truth


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if not isinstance(value, str):
        return str(value) if isinstance(value, date | time | Decimal | float) else _json(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MisfitError("it holds half of a surrogate pair") from None
    return value


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:  # an integer of more than 64 bits, or half a surrogate pair
        return json.dumps(value, default=_plain, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _blob(value: Any) -> bytes:
    """Take bytes as they are and text as base64, the way JSON carries bytes."""
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise MisfitError(f"{_show(value)} is not base64 text") from None


def _uuid(value: Any) -> str:
    try:
        return str(uuid.UUID(str(value).strip()))
    except ValueError:
        raise MisfitError(f"{_show(value)} is not a UUID") from None


def _date(value: Any) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    moment = _moment(value, "date (YYYY-MM-DD)")
    if moment.time() != time():
        raise MisfitError(f"{_show(value)} has a time of day")
    return moment.date()


def _time(value: Any) -> time:
    if isinstance(value, time):
        return value
    try:
        return time.fromisoformat(value.strip())
    except (AttributeError, ValueError):
        raise MisfitError(f"{_show(value)} is not a time (HH:MM:SS)") from None


def _timestamp(value: Any) -> datetime:
    """Give wall-clock time; an answer with an offset is told in UTC."""
    moment = _moment(value, "timestamp (YYYY-MM-DD HH:MM:SS)")
    return _in_utc(moment).replace(tzinfo=None) if moment.tzinfo else moment


def _instant(value: Any) -> datetime:
    moment = _moment(value, "timestamp (YYYY-MM-DD HH:MM:SS+00:00)")
    return _in_utc(moment) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise MisfitError(f"{_show(moment)} is out of range") from None


def _moment(value: Any, what: str) -> datetime:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime.combine(value, time())
    try:
        return datetime.fromisoformat(value.strip())
    except (AttributeError, ValueError):
        raise MisfitError(f"{_show(value)} is not a {what}") from None


def _show(value: Any) -> str:
    text = repr(value) if isinstance(value, str | float) else _json(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


_PLAIN: Mapping[str, Converter] = {
    "HUGEINT": _integer(1 - 10**38, 10**38 - 1),
    "FLOAT": _floating(_FLOAT_MAX),
    "DOUBLE": _floating(math.inf),
    "BOOLEAN": _boolean,
    "VARCHAR": _text,
    "JSON": _json,
    "VARIANT": _json,
    "BLOB": _blob,
    "UUID": _uuid,
    "DATE": _date,
    "TIME": _time,
    "TIMESTAMP": _timestamp,
    "TIMESTAMP WITH TIME ZONE": _instant,
}
