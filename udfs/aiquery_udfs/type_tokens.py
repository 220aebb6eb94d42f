"""The words and marks of SQL type text, in Databricks' or DuckDB's spelling."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aiquery_udfs.errors import UnsupportedReturnTypeError

_TOKEN = re.compile(
    r'\s*(?:(?P<word>\w+)|(?P<quoted>"(?:[^"]|"")+"|`(?:[^`]|``)+`)|(?P<string>\'(?:[^\']|\'\')*\')'
    r"|(?P<mark>[<>(),:\[\]]))"
)

#: `STRUCT`, `(`, a name, a type, `)`.
_SHORTEST_STRUCT = 5


@dataclass(frozen=True, slots=True)
class Token:
    """One word, quoted name, string or mark of a type text, and where it stands."""

    text: str
    kind: str
    start: int
    end: int

    @property
    def is_name(self) -> bool:
        """Whether a field may be called so."""
        return self.kind in ("word", "quoted")

    @property
    def keyword(self) -> str:
        """The word in capitals; empty for anything that is not a plain word."""
        return self.text.upper() if self.kind == "word" else ""

    @property
    def name(self) -> str:
        """The field name that the token spells, without its quotes."""
        if self.kind != "quoted":
            return self.text
        return self.text[1:-1].replace(self.text[0] * 2, self.text[0])


def tokens_of(text: str) -> list[Token]:
    """Split type text into tokens.

    Raises:
        UnsupportedReturnTypeError: Something in the text belongs to no type.
    """
    found: list[Token] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise refuse(text, f"it cannot be read from {text[at : at + 20].strip()!r} on")
        kind = str(match.lastgroup)
        found.append(Token(match[kind], kind, match.start(kind), match.end()))
        at = match.end()
    return found


def struct_fields(text: str) -> dict[str, str] | None:
    """Return the field names of a DuckDB STRUCT type and their type text; None for another type.

    Types that a returnType cannot have (ENUM, INTERVAL, …) are fine here.

    Examples:
        >>> struct_fields('STRUCT(a INTEGER, "b c" DECIMAL(9, 2)[])')
        {'a': 'INTEGER', 'b c': 'DECIMAL(9, 2)[]'}
    """
    try:
        tokens = tokens_of(text)
    except UnsupportedReturnTypeError:
        return None
    if len(tokens) < _SHORTEST_STRUCT or tokens[0].keyword != "STRUCT" or tokens[-1].text != ")":
        return None
    fields, depth, start = {}, 0, 2
    for at, token in enumerate(tokens):
        depth += (token.text in ("(", "[")) - (token.text in (")", "]"))
        if (token.text == "," and depth == 1) or (at == len(tokens) - 1 and depth == 0):
            fields[tokens[start].name] = text[tokens[start].end : token.start].strip()
            start = at + 1
    return fields


def refuse(text: str, why: str) -> UnsupportedReturnTypeError:
    """Return the error that says why a text is no returnType."""
    return UnsupportedReturnTypeError(
        f"The returnType {text!r} is not supported: {why}. Write SQL type text such as 'STRING', "
        "'DOUBLE', 'ARRAY<FLOAT>' or 'STRUCT<a: INT, b: STRING>'."
    )
