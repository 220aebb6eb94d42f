"""The words and marks of a DuckDB statement, and where they stand in its text."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NamedTuple

from aiquery_serving.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlglot.tokenizer_core import Token
    from sqlglot.tokens import Tokenizer

_OPENING, _CLOSING = {"(", "[", "{"}, {")", "]", "}"}
_WORD = re.compile(r"[^\W\d]\w*")


class Span(NamedTuple):
    """A part of a text: from `start` up to but not including `end`, in characters."""

    start: int
    end: int


class Piece(NamedTuple):
    """One token, and how many brackets are open around it.

    `word` is a keyword, plain name or mark, in capitals; `name` a plain or quoted name, in small letters. Each is
    empty where the token is none.
    """

    word: str
    name: str
    start: int
    end: int
    depth: int


def tokens_of(text: str) -> list[Token]:
    """Split a statement into sqlglot's tokens.

    Raises:
        InvalidRequestError: A string, a quoted name or a comment does not end.
    """
    from sqlglot.errors import TokenError

    try:
        return _tokenizer()(dialect="duckdb").tokenize(text)
    except TokenError as error:
        msg = "The SQL text cannot be read: a string, a quoted name or a comment in it does not end. Close it."
        raise InvalidRequestError(msg) from error


@functools.lru_cache(maxsize=16)
def pieces_of(text: str) -> tuple[Piece, ...]:
    """Split a statement into words and marks.

    Raises:
        InvalidRequestError: A string, a quoted name or a comment does not end.

    Examples:
        >>> [piece.word for piece in pieces_of("select 'a', b[1] -- c")]
        ['SELECT', '', ',', 'B', '[', '1', ']']
    """
    found, depth = [], 0
    for token in tokens_of(text):
        piece = _piece(text, token)
        depth -= piece.word in _CLOSING
        found.append(piece._replace(depth=depth))
        depth += piece.word in _OPENING
    return tuple(found)


def spliced(text: str, parts: Mapping[Span, str]) -> str:
    """Put other text in the place of some parts, and keep the rest.

    Examples:
        >>> spliced("a b", {Span(0, 1): "x", Span(3, 3): "!"})
        'x b!'
    """
    found, at = [], 0
    for span in sorted(parts):
        found += [text[at : span.start], parts[span]]
        at = span.end
    return "".join(found) + text[at:]


@functools.cache
def _tokenizer() -> type[Tokenizer]:
    """Return DuckDB's tokenizer, without its habit of taking EXPLAIN and others for one token up to a semicolon."""
    from sqlglot.dialects.duckdb import DuckDB

    class Whole(DuckDB.Tokenizer):
        COMMANDS = set()  # noqa: RUF012  # the class below reads it while it is made
        IDENTIFIERS = ['"', "`"]  # noqa: RUF012

    return Whole


def _piece(text: str, token: Token) -> Piece:
    raw = text[token.start : token.end + 1]
    quoted = raw[0] in '"`'
    is_string = len(raw) > 1 and raw[-1] in "'$"
    name = token.text if quoted or _WORD.fullmatch(raw) else ""
    return Piece("" if quoted or is_string else raw.upper(), name.lower(), token.start, token.end + 1, 0)
