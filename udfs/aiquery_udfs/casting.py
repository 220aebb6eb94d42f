"""Answers to values of the returnType: a language model's text, and a custom model's predictions.

An answer that does not fit is that row's error and NULL; it never spoils its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from aiquery_udfs.conversion import Converter, MisfitError, converter
from aiquery_udfs.errors import AiFunctionError, HttpParseCastError, HttpParseColumnsError
from aiquery_udfs.return_type import ReturnType

Misfits = dict[int, AiFunctionError]

_EXCERPT = 200
_AS_TEXT = ("JSON", "VARIANT")
_FENCE = "```"


def cast_text(texts: Sequence[str | None], kind: ReturnType) -> tuple[pa.Array, Misfits]:
    """Read the texts of a language model as `from_json` would.

    STRING stays as it is. Scalars are read from the trimmed text or a JSON scalar; STRUCT, ARRAY and MAP
    from JSON: missing fields are NULL, extra ones ignored. A fenced code block is not JSON (contract A.6.6).

    Returns:
        A column of `kind.arrow`, and the errors by row, whose values are NULL.
    """
    if kind.name == "VARCHAR":
        return pa.array(texts, pa.string()), {}
    read = _reader(kind)
    return _convert(texts, read, kind)


def cast_arrow(array: pa.Array, kind: ReturnType) -> tuple[pa.Array, Misfits]:
    """Cast a custom model's predictions, column-wise where every value fits.

    Numbers widen and narrow as long as no value changes; doubles may lose precision as FLOAT but not
    overflow. Text is read as in `cast_text`. A STRUCT is cast by field name.

    Returns:
        A column of `kind.arrow`, and the errors by row, whose values are NULL.
    """
    array = _plain(array)
    if array.type == kind.arrow and kind.name not in _AS_TEXT:
        return array, {}
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind.arrow), {}
    if pa.types.is_struct(array.type) and kind.name not in ("MAP", *_AS_TEXT):
        return _cast_struct(array, kind)
    if _is_text(array.type) and kind.name != "VARCHAR":
        return cast_text(array.to_pylist(), kind)
    if _holds_scalars(array) and not kind.is_nested and kind.name not in ("VARCHAR", *_AS_TEXT):
        array = pc.list_element(array, 0)
    whole = _cast_whole(array, kind)
    if whole is not None:
        return whole, {}
    return _convert(array.to_pylist(maps_as_pydicts="lossy"), converter(kind), kind)


def _plain(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _holds_scalars(array: pa.Array) -> bool:
    """Whether every list has one number: what networks give for one, an array of shape (rows, 1)."""
    if not (_is_list(array.type) and _is_number(array.type.value_type)):
        return False
    return bool(pc.all(pc.equal(pc.list_value_length(array), 1)).as_py())


def _cast_struct(array: pa.StructArray, kind: ReturnType) -> tuple[pa.Array, Misfits]:
    names = [field.name for field in array.type]
    if kind.name != "STRUCT":
        if len(names) == 1:
            return cast_arrow(array.flatten()[0], kind)
        return pa.nulls(len(array), kind.arrow), _columns_error(names, kind, len(array))
    columns = dict(zip(names, array.flatten(), strict=True))
    if columns.keys().isdisjoint(name for name, _ in kind.fields):
        return pa.nulls(len(array), kind.arrow), _columns_error(names, kind, len(array))
    misfits: Misfits = {}
    children = []
    for name, field in kind.fields:
        column = columns.get(name)
        child, wrong = (pa.nulls(len(array), field.arrow), {}) if column is None else cast_arrow(column, field)
        children.append(child)
        misfits = wrong | misfits
    empty = array.is_null().to_numpy(zero_copy_only=False)
    empty[list(misfits)] = True
    return pa.StructArray.from_arrays(children, fields=list(kind.arrow), mask=pa.array(empty)), misfits


def _columns_error(names: Sequence[str], kind: ReturnType, rows: int) -> Misfits:
    """Refuse all rows: a STRUCT that names none of the columns, or a type that has room for one."""
    listed = ", ".join(map(repr, names))
    text = (
        f"The model returns the columns {listed}, and the returnType {kind.sql} names none of them. Name the "
        "columns you want as the model spells them."
        if kind.name == "STRUCT"
        else f"The model returns {len(names)} columns ({listed}), but the returnType {kind.sql} has only one. "
        "Set a STRUCT with the columns you want as returnType."
    )
    return dict.fromkeys(range(rows), HttpParseColumnsError(text))


def _cast_whole(array: pa.Array, kind: ReturnType) -> pa.Array | None:
    """Cast a column at once; None if some value may not fit, or Arrow's rules are not SQL's."""
    if kind.is_nested or pa.types.is_nested(array.type):
        return _cast_list(array, kind)
    if not _alike(array, kind):
        return None
    if kind.name == "VARCHAR" and pa.types.is_floating(array.type):
        return _float_texts(array)
    # Arrow calls it unsafe to lose nanoseconds or, in FLOAT and DOUBLE, digits; SQL casts do both.
    lossy = pa.types.is_floating(kind.arrow) or pa.types.is_timestamp(kind.arrow)
    return _cast(array, kind.arrow, safe=not lossy)


def _alike(array: pa.Array, kind: ReturnType) -> bool:
    """Whether Arrow casts between the two as SQL does; 19724 for a date is not what anybody meant."""
    source, target = array.type, kind.arrow
    if kind.name == "VARCHAR":
        return _is_number(source) or _is_text(source) or pa.types.is_boolean(source)
    if kind.name == "BOOLEAN":
        return _only_zero_and_one(array)
    if pa.types.is_decimal(target):
        return kind.name == "DECIMAL" and _is_number(source)
    if _is_number(target):
        return _is_number(source) or pa.types.is_boolean(source)
    return bool(pa.types.is_timestamp(source) and pa.types.is_timestamp(target))


def _cast(array: pa.Array, target: pa.DataType, *, safe: bool) -> pa.Array | None:
    try:
        cast = array.cast(target, safe=safe)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    before, after = array, cast
    while pa.types.is_nested(after.type):
        before, after = before.flatten(), after.flatten()
    return None if _overflowed(before, after) else cast


def _float_texts(numbers: pa.Array) -> pa.Array:
    """Write numbers as SQL and JSON do: 1.0, where Arrow writes 1."""
    texts = numbers.cast(pa.string())
    is_bare = pc.match_substring_regex(texts, "^-?[0-9]+$")
    return pc.if_else(is_bare, pc.binary_join_element_wise(texts, ".0", ""), texts)


def _cast_list(array: pa.Array, kind: ReturnType) -> pa.Array | None:
    """Cast lists of numbers; Arrow takes care of offsets and NULLs."""
    source = array.type
    if kind.name not in ("LIST", "ARRAY") or not hasattr(source, "value_type"):
        return None
    if not (_is_number(source.value_type) and _is_number(kind.item.arrow)):
        return None
    return _cast(array, kind.arrow, safe=not pa.types.is_floating(kind.item.arrow))


def _overflowed(before: pa.Array, after: pa.Array) -> bool:
    """Whether a number became infinite by narrowing to FLOAT."""
    if not pa.types.is_float32(after.type) or pa.types.is_float32(before.type):
        return False
    return _finite(before) != _finite(after)


def _finite(numbers: pa.Array) -> int:
    if not pa.types.is_floating(numbers.type):
        return int(len(numbers) - numbers.null_count)
    return int(pc.sum(pc.is_finite(numbers)).as_py() or 0)


def _only_zero_and_one(array: pa.Array) -> bool:
    if pa.types.is_boolean(array.type):
        return True
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        return False
    known = pc.is_in(array, pa.array([0, 1]).cast(array.type), skip_nulls=True)
    return pc.all(pc.or_(known, array.is_null())).as_py() is not False


def _is_number(kind: pa.DataType) -> bool:
    return any(t(kind) for t in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal))


def _is_list(kind: pa.DataType) -> bool:
    return any(t(kind) for t in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_text(kind: pa.DataType) -> bool:
    return any(t(kind) for t in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _reader(kind: ReturnType) -> Converter:
    convert = converter(kind)
    if kind.name in _AS_TEXT:
        return _json_text
    if kind.is_nested:
        load = _loader(kind)
        return lambda text: convert(load(text))
    return lambda text: _read_scalar(text, convert)


def _read_scalar(text: str, convert: Converter) -> Any:
    text = text.strip()
    if text == "null":
        return None
    if text.startswith('"'):
        text = _load(text)
    return convert(text)


def _json_text(text: str) -> str:
    _load(text)
    return text.strip()


def _loader(kind: ReturnType) -> Converter:
    """Return a JSON parser that keeps every digit where the type can hold them."""
    if "DECIMAL" in kind.sql or "HUGEINT" in kind.sql:
        return _load_exactly
    return _load


def _load(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MisfitError(f"it is not JSON ({error})") from None


def _load_exactly(text: str) -> Any:
    _load(text)  # the standard library also takes NaN and the like
    return json.loads(text, parse_float=Decimal)


def _convert(values: Sequence[Any], read: Converter, kind: ReturnType) -> tuple[pa.Array, Misfits]:
    misfits: Misfits = {}
    found: list[Any] = []
    for row, value in enumerate(values):
        try:
            found.append(None if value is None else read(value))
        except MisfitError as error:
            misfits[row] = _misfit(value, str(error), kind)
            found.append(None)
    return pa.array(found, kind.arrow), misfits


def _misfit(value: Any, why: str, kind: ReturnType) -> HttpParseCastError:
    text = value if isinstance(value, str) else _shown(value)
    excerpt = text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"
    hint = "Ask the model for such a value, or set the returnType to what it gives."
    if text.lstrip().startswith(_FENCE):
        hint = (
            "The answer is fenced as a code block: ask for bare JSON, set responseFormat, or take the "
            "answer as a STRING and strip the fence."
        )
    return HttpParseCastError(
        f"The answer cannot be cast to the returnType {kind.sql}: {why}. {hint} Response JSON: {excerpt}"
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return str(value)
    try:
        return orjson.dumps(value, default=str).decode()
    except TypeError:
        return str(value)
