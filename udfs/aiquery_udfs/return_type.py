"""The type of an answer: read from Databricks or DuckDB type text, written for DuckDB and Arrow.

The grammar is our own because a returnType must be refused when it is wrong: general SQL parsers read `INT)`,
`STRUCT<a: INT` or `STRUCT<a: Nonsense>` without complaint, and cost 100 ms to import while the query binds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from aiquery_udfs.errors import UnsupportedReturnTypeError
from aiquery_udfs.type_tokens import Token, refuse, tokens_of

_MAX_DEPTH = 64
_MAX_PRECISION = 38
#: DuckDB's default; Databricks' DECIMAL(10,0) would silently drop the fraction of an answer.
_DEFAULT_DECIMAL = (18, 3)

_ARROW: Mapping[str, pa.DataType] = {
    "BOOLEAN": pa.bool_(),
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "UTINYINT": pa.uint8(),
    "USMALLINT": pa.uint16(),
    "UINTEGER": pa.uint32(),
    "UBIGINT": pa.uint64(),
    "HUGEINT": pa.decimal128(_MAX_PRECISION, 0),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "VARCHAR": pa.string(),
    "BLOB": pa.binary(),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", "UTC"),
    "UUID": pa.string(),
    "JSON": pa.string(),
    # Not what STRING is, so that the two can be told apart.
    "VARIANT": pa.large_string(),
}
_SPELLINGS: Mapping[str, str] = {name: name for name in _ARROW} | {
    "BOOL": "BOOLEAN", "LOGICAL": "BOOLEAN",
    "BYTE": "TINYINT", "INT1": "TINYINT", "SHORT": "SMALLINT", "INT2": "SMALLINT",
    "INT": "INTEGER", "INT4": "INTEGER", "LONG": "BIGINT", "INT8": "BIGINT",
    "UINT8": "UTINYINT", "UINT16": "USMALLINT", "UINT32": "UINTEGER", "UINT64": "UBIGINT",
    "REAL": "FLOAT", "FLOAT4": "FLOAT", "FLOAT8": "DOUBLE", "DOUBLE PRECISION": "DOUBLE",
    "STRING": "VARCHAR", "TEXT": "VARCHAR", "CHAR": "VARCHAR", "BPCHAR": "VARCHAR",
    "BINARY": "BLOB", "VARBINARY": "BLOB", "BYTEA": "BLOB", "BYTES": "BLOB",
    "DATETIME": "TIMESTAMP", "TIMESTAMP_NTZ": "TIMESTAMP", "TIMESTAMP_US": "TIMESTAMP",
    "TIMESTAMP WITHOUT TIME ZONE": "TIMESTAMP",
    "TIMESTAMPTZ": "TIMESTAMP WITH TIME ZONE", "TIMESTAMP_LTZ": "TIMESTAMP WITH TIME ZONE",
}  # fmt: skip
_MULTI_WORD = tuple(tuple(name.split()) for name in _SPELLINGS if " " in name)
_DECIMALS = {"DECIMAL", "NUMERIC", "DEC"}
_CLOSING = {"<": ">", "(": ")"}


@dataclass(frozen=True, slots=True)
class ReturnType:
    """A type, as a tree.

    `name` is DuckDB's own (`INTEGER`, `DECIMAL`, `LIST`, `ARRAY`, `MAP`, `STRUCT`, …); `parameters` are the
    numbers of DECIMAL and ARRAY; `fields` are a STRUCT's names and types, a MAP's `key` and `value`, or the
    one `item` of LIST and ARRAY.
    """

    name: str
    parameters: tuple[int, ...] = ()
    fields: tuple[tuple[str, ReturnType], ...] = ()

    @property
    def sql(self) -> str:
        """The type as DuckDB writes it."""
        match self.name:
            case "LIST":
                return f"{self.item.sql}[]"
            case "ARRAY":
                return f"{self.item.sql}[{self.parameters[0]}]"
            case "MAP":
                return f"MAP({', '.join(kind.sql for _, kind in self.fields)})"
            case "STRUCT":
                return f"STRUCT({', '.join(f'{_quote(n)} {kind.sql}' for n, kind in self.fields)})"
            case "DECIMAL":
                return f"DECIMAL({self.parameters[0]},{self.parameters[1]})"
        return self.name

    @property
    def arrow(self) -> pa.DataType:
        """The Arrow type of a column of such values; JSON and VARIANT travel as JSON text."""
        match self.name:
            case "LIST":
                return pa.list_(self.item.arrow)
            case "ARRAY":
                return pa.list_(self.item.arrow, self.parameters[0])
            case "MAP":
                return pa.map_(*(kind.arrow for _, kind in self.fields))
            case "STRUCT":
                return pa.struct([(name, kind.arrow) for name, kind in self.fields])
            case "DECIMAL":
                return pa.decimal128(*self.parameters)
        return _ARROW[self.name]

    @property
    def item(self) -> ReturnType:
        """The type of a list's elements."""
        return self.fields[0][1]

    @property
    def is_nested(self) -> bool:
        """Whether a value is written as a JSON object or list."""
        return bool(self.fields)

    def __str__(self) -> str:
        return self.sql


STRING = ReturnType("VARCHAR")
EMBEDDING = ReturnType("LIST", fields=(("item", ReturnType("FLOAT")),))


@lru_cache(maxsize=256)
def parse(text: str) -> ReturnType:
    """Read type text in Databricks' or DuckDB's spelling, or a bare list of fields.

    Raises:
        UnsupportedReturnTypeError: The text is not one whole SQL type.

    Examples:
        >>> parse("STRUCT<a: INT, b: ARRAY<STRING>>").sql
        'STRUCT("a" INTEGER, "b" VARCHAR[])'
        >>> parse("a INT, `the b` FLOAT[]").sql
        'STRUCT("a" INTEGER, "the b" FLOAT[])'
    """
    tokens = tokens_of(text)
    try:
        return _Parser(text, tokens).whole_type()
    except UnsupportedReturnTypeError:
        if len(tokens) > 1 and tokens[0].is_name and (tokens[1].is_name or tokens[1].text == ":"):
            return _Parser(text, tokens).whole_fields()
        raise


def from_arrow(kind: pa.DataType) -> ReturnType:
    """Return the SQL type of an Arrow column.

    Raises:
        UnsupportedReturnTypeError: SQL answers have no such type.
    """
    if pa.types.is_dictionary(kind):
        return from_arrow(kind.value_type)
    if pa.types.is_struct(kind) and kind.num_fields:
        return ReturnType("STRUCT", fields=tuple((f.name, from_arrow(f.type)) for f in kind))
    if pa.types.is_map(kind):
        pair = (("key", from_arrow(kind.key_type)), ("value", from_arrow(kind.item_type)))
        return ReturnType("MAP", fields=pair)
    if pa.types.is_fixed_size_list(kind) and kind.list_size:
        return ReturnType("ARRAY", (kind.list_size,), (("item", from_arrow(kind.value_type)),))
    if _is_list(kind):
        return ReturnType("LIST", fields=(("item", from_arrow(kind.value_type)),))
    return _scalar_from_arrow(kind)


def structure(kind: ReturnType, fail_on_error: bool) -> str:
    """Return the JSON text from which DuckDB's `from_json('null', …)` takes ai_query's type."""
    if fail_on_error:
        return json.dumps(kind.sql)
    return json.dumps({"result": kind.sql, "errorMessage": "VARCHAR"})


class _Parser:
    """Recursive descent over the tokens of one type text."""

    def __init__(self, text: str, tokens: list[Token]) -> None:
        self._text = text
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def whole_type(self) -> ReturnType:
        kind = self._type()
        self._end()
        return kind

    def whole_fields(self) -> ReturnType:
        kind = self._struct_of(closing="")
        self._end()
        return kind

    def _type(self) -> ReturnType:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise refuse(self._text[:80], f"it is nested more than {_MAX_DEPTH} deep")
        kind = self._suffixed(self._base())
        self._depth -= 1
        return kind

    def _base(self) -> ReturnType:
        token = self._next()
        match token.keyword:
            case "STRUCT" | "ROW":
                return self._struct_of(self._open(token))
            case "ARRAY" | "LIST":
                (item,) = self._types(token, count=1)
                return ReturnType("LIST", fields=(("item", item),))
            case "MAP":
                key, value = self._types(token, count=2)
                return ReturnType("MAP", fields=(("key", key), ("value", value)))
        if token.keyword in _DECIMALS:
            return self._decimal()
        return self._scalar(token)

    def _scalar(self, token: Token) -> ReturnType:
        spelling = token.keyword
        for words in _MULTI_WORD:
            if self._words(len(words) - 1) == words[1:] and words[0] == spelling:
                self._at += len(words) - 1
                spelling = " ".join(words)
                break
        name = _SPELLINGS.get(spelling)
        if name is None:
            raise refuse(self._text, _unknown(token))
        if name == "VARCHAR":
            self._numbers()  # a length means nothing to DuckDB
        return ReturnType(name)

    def _decimal(self) -> ReturnType:
        numbers = self._numbers()
        precision, scale = (*numbers, 0)[:2] if numbers else _DEFAULT_DECIMAL
        if len(numbers) > 2 or not 1 <= precision <= _MAX_PRECISION or scale > precision:  # noqa: PLR2004  # DECIMAL(p, s)
            raise refuse(self._text, "DECIMAL takes a precision of 1 to 38 and a scale up to it")
        return ReturnType("DECIMAL", (precision, scale))

    def _suffixed(self, kind: ReturnType) -> ReturnType:
        while self._peek() == "[":
            self._at += 1
            size = self._number() if self._peek() != "]" else None
            self._expect("]")
            item = (("item", kind),)
            kind = ReturnType("ARRAY", (size,), item) if size else ReturnType("LIST", fields=item)
        return kind

    def _struct_of(self, closing: str) -> ReturnType:
        fields: dict[str, ReturnType] = {}
        while not fields or self._take(","):
            name, kind = self._field()
            if name.lower() in map(str.lower, fields):
                raise refuse(self._text, f"the field {name!r} appears twice")
            fields[name] = kind
        if closing:
            self._expect(closing)
        return ReturnType("STRUCT", fields=tuple(fields.items()))

    def _field(self) -> tuple[str, ReturnType]:
        token = self._next()
        if not token.is_name:
            raise refuse(self._text, f"a field name is missing before {token.text!r}")
        self._take(":")
        kind = self._type()
        if self._words(2) == ("NOT", "NULL"):
            self._at += 2
        if self._words(1) == ("COMMENT",):
            self._at += 2
        return token.name, kind

    def _types(self, owner: Token, count: int) -> list[ReturnType]:
        closing = self._open(owner)
        found = [self._type()]
        while self._take(","):
            found.append(self._type())
        self._expect(closing)
        if len(found) != count:
            raise refuse(self._text, f"{owner.keyword} takes {count} type(s), got {len(found)}")
        return found

    def _numbers(self) -> tuple[int, ...]:
        if not self._take("("):
            return ()
        found = [self._number()]
        while self._take(","):
            found.append(self._number())
        self._expect(")")
        return tuple(found)

    def _number(self) -> int:
        token = self._next()
        if not (token.text.isascii() and token.text.isdigit() and len(token.text) < 6):  # noqa: PLR2004  # DuckDB's array sizes
            raise refuse(self._text, f"a number should stand where {token.text!r} is")
        return int(token.text)

    def _open(self, owner: Token) -> str:
        mark = self._peek()
        if mark not in _CLOSING:
            raise refuse(self._text, f"{owner.keyword} must say of what, as in {_SAMPLE[owner.keyword]}")
        self._at += 1
        return _CLOSING[mark]

    def _peek(self) -> str:
        return self._tokens[self._at].text if self._at < len(self._tokens) else ""

    def _words(self, count: int) -> tuple[str, ...]:
        return tuple(token.keyword for token in self._tokens[self._at : self._at + count])

    def _next(self) -> Token:
        if self._at >= len(self._tokens):
            raise refuse(self._text, "it ends too early" if self._tokens else "it is empty")
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, mark: str) -> bool:
        taken = self._peek() == mark
        self._at += taken
        return taken

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            found = repr(self._peek()) if self._peek() else "the end"
            raise refuse(self._text, f"{mark!r} is missing before {found}")

    def _end(self) -> None:
        if self._at < len(self._tokens):
            raise refuse(self._text, f"there is {self._peek()!r} after the end of the type")


_SAMPLE = {
    "STRUCT": "STRUCT<a: INT>",
    "ROW": "STRUCT<a: INT>",
    "ARRAY": "ARRAY<FLOAT>",
    "LIST": "ARRAY<FLOAT>",
    "MAP": "MAP<STRING, INT>",
}


def _unknown(token: Token) -> str:
    if token.kind == "word" and token.text.endswith("Type"):
        return f"{token.text} is the name of a class, not of an SQL type"
    return f"there is no type {token.text!r}"


def _quote(name: str) -> str:
    """Quote always: which words are reserved is DuckDB's to change."""
    return '"' + name.replace('"', '""') + '"'


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view)
    return any(test(kind) for test in tests)


_FROM_ARROW: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_null, "VARCHAR"),
    (pa.types.is_string, "VARCHAR"),
    (pa.types.is_large_string, "VARCHAR"),
    (pa.types.is_string_view, "VARCHAR"),
    (pa.types.is_binary, "BLOB"),
    (pa.types.is_large_binary, "BLOB"),
    (pa.types.is_binary_view, "BLOB"),
    (pa.types.is_fixed_size_binary, "BLOB"),
    (pa.types.is_float16, "FLOAT"),
    (pa.types.is_date, "DATE"),
    (pa.types.is_time, "TIME"),
)
_BY_ARROW = {kind: name for name, kind in _ARROW.items() if name not in ("JSON", "VARIANT", "UUID", "HUGEINT")}


def _scalar_from_arrow(kind: pa.DataType) -> ReturnType:
    if kind in _BY_ARROW:
        return ReturnType(_BY_ARROW[kind])
    if pa.types.is_decimal(kind) and kind.precision <= _MAX_PRECISION and kind.scale >= 0:
        return ReturnType("DECIMAL", (kind.precision, kind.scale))
    if pa.types.is_timestamp(kind):
        return ReturnType("TIMESTAMP WITH TIME ZONE" if kind.tz else "TIMESTAMP")
    for test, name in _FROM_ARROW:
        if test(kind):
            return ReturnType(name)
    raise UnsupportedReturnTypeError(
        f"The model's output type {kind} has no SQL type. Set returnType, for example returnType => 'STRING'."
    )
