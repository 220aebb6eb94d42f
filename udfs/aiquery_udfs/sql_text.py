"""What the text of a DuckDB statement tells: where it calls `ai_query`, which part of it yields rows, and how.

Text is cut and spliced, never written anew, so that what runs is what the user wrote. Tokens and trees are sqlglot's;
sqlglot is no validator, so whatever a caller does with what is found here must be safe for a text that is wrong.
Macros and views are not looked into: what they call is not in the text.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from aiquery_serving.errors import InvalidRequestError
from aiquery_udfs.error_columns import error_columns
from aiquery_udfs.sql_tokens import Piece, Span, pieces_of, spliced
from aiquery_udfs.sql_tree import above, is_lazy, is_listed, item, sites_of, tree_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlglot import exp

_QUERY: Final = {"SELECT", "WITH", "FROM", "VALUES", "TABLE", "PIVOT", "PIVOT_WIDER", "UNPIVOT", "PIVOT_LONGER"}
_CREATE: Final = {"CREATE", "OR", "REPLACE", "TEMP", "TEMPORARY", "LOCAL", "GLOBAL", "UNLOGGED"}
_AFTER_CTE_COLUMNS: Final = {"AS", "USING", ","}
_LIMITS: Final = {"LIMIT", "FETCH", "TOP", "SAMPLE", "TABLESAMPLE"}
#: Words that are calls without parentheses, or draw rows, and the functions that do the same.
_BARE: Final = {
    "CURRENT_DATE": "current_date",
    "CURRENT_TIME": "get_current_time",
    "CURRENT_TIMESTAMP": "get_current_timestamp",
    "LOCALTIME": "get_current_time",
    "LOCALTIMESTAMP": "get_current_timestamp",
    "SAMPLE": "random",
    "TABLESAMPLE": "random",
}


def calls(text: str) -> list[Span]:
    """Return where the name `ai_query` stands that is called.

    Raises:
        InvalidRequestError: The text has a string, a quoted name or a comment that does not end. So it is for all of
            this module but `independent`, `projected` and `with_errors`, which never raise.

    Examples:
        >>> calls("SELECT ai_query('m', 'ai_query(x)') -- ai_query(y)")
        [Span(start=7, end=15)]
    """
    return [Span(piece.start, piece.end) for piece, after in pairwise(pieces_of(text)) if _is_call(piece, after)]


def numbered(text: str) -> str:
    """Return the text with the k-th `ai_query` called `__aiquery_site_k`, from 1.

    Examples:
        >>> numbered("SELECT ai_query('m', a), AI_QUERY('m', b)")
        "SELECT __aiquery_site_1('m', a), __aiquery_site_2('m', b)"
    """
    names = {span: f"__aiquery_site_{number}" for number, span in enumerate(calls(text), 1)}
    return spliced(text, names)


def statements(text: str) -> list[str]:
    r"""Split a text at the semicolons between its statements; those without a word are left out.

    Examples:
        >>> statements("SELECT ';'; -- next\nSELECT 2;")
        ["SELECT ';'", '-- next\nSELECT 2']
    """
    found, start, wordless = [], 0, True
    for piece in pieces_of(text):
        if piece.word != ";":
            wordless = False
            continue
        if not wordless:
            found.append(text[start : piece.start].strip())
        start, wordless = piece.end, True
    return found if wordless else [*found, text[start:].strip()]


def rows_of(text: str) -> str | None:
    """Return the query in one statement whose rows `ai_query` is asked for.

    That is a query itself, or what stands in CREATE TABLE AS, INSERT or COPY TO. None for all others, for several
    statements, and where it cannot be cut out.

    Examples:
        >>> rows_of("CREATE TABLE u AS (SELECT a FROM t);")
        '(SELECT a FROM t)'
        >>> rows_of("UPDATE t SET a = 1") is None
        True
    """
    return "".join(text[start:end] for start, end in _row_parts(text)) or None


def has_limit(text: str) -> bool:
    """Say whether a query may stop before it has read all rows, anywhere in it."""
    return any(piece.word in _LIMITS for piece in pieces_of(text))


def names(text: str) -> set[str]:
    """Return the names of all functions that are called, in small letters; keywords before a bracket come along.

    Keywords that call a function (`CURRENT_TIMESTAMP`) count as it, and sampling as `random`.

    Examples:
        >>> sorted(names('SELECT lower("Upper"(a)), current_date'))
        ['current_date', 'lower', 'upper']
    """
    pieces = pieces_of(text)
    called = {piece.name for piece, after in pairwise(pieces) if after.word == "(" and piece.name}
    return called | {_BARE[piece.word] for piece in pieces if piece.word in _BARE}


def independent(text: str) -> bool:
    """Say whether it is certain that no answer decides if, or what, another `ai_query` of the statement is asked.

    So it is for one call, unless it may be asked again with its own answer, and for calls that stand in one select
    list under nothing but casts, fields and functions that need all their arguments.
    """
    tree, sites = _query(text)
    if tree is None or _may_repeat(tree, sites):
        return False
    return len(sites) == 1 or (
        not tree.args.get("distinct")
        and all(is_listed(tree, site) and all(map(_needs_all, above(tree, site))) for site in sites)
        and not _names(tree, _aliases(tree, sites))
        and not any(map(_is_by_position, (tree.args.get("group"), tree.args.get("order"))))
    )


def projected(text: str) -> bool:
    """Say whether it is certain that no answer decides which rows a query yields: calls only add columns to them."""
    from sqlglot import exp

    tree, sites = _query(text)
    if tree is None or tree.args.get("distinct"):
        return False
    around = [node for site in sites for node in above(tree, site)]
    conditions = (tree.args.get(clause) for clause in ("where", "having", "qualify"))
    return (
        all(is_listed(tree, site) for site in sites)
        and not any(isinstance(node, (exp.Query, exp.UDTF)) for node in around)
        and not any(_names(part, _aliases(tree, sites)) for part in conditions if part)
    )


def with_errors(text: str) -> str:
    """Return a statement whose select lists say of each answer in them why it is missing, where it is.

    Each `ai_query(…) AS a` gets its `ai_error(…) AS a_error` at the end of the list. A call that is not asked for
    every row, one whose error is in its answer (`failOnError => false`), and a list that cannot take another column
    stay as they are; so does a statement whose columns are fixed (INSERT) and one that cannot be read.

    Examples:
        >>> with_errors("SELECT ai_query('m', q) AS a FROM t")
        "SELECT ai_query('m', q) AS a, ai_error('m', q) AS a_error FROM t"
    """
    parts = _row_parts(text) if _is_whole(text) else []
    if len(parts) != 1 or any(piece.word == "INSERT" and piece.depth == 0 for piece in pieces_of(text)):
        return text
    ((start, end),) = parts
    query = text[start:end]
    wider = spliced(query, error_columns(query))
    return text[:start] + wider + text[end:] if tree_of(wider) else text


def _is_call(piece: Piece, after: Piece) -> bool:
    return piece.name == "ai_query" and after.word == "("


def _row_parts(text: str) -> list[Span]:
    """Return the parts of a statement that make up the query for its rows."""
    pieces = list(pieces_of(text))
    while pieces and pieces[-1].word == ";":
        del pieces[-1]
    words = [piece.word for piece in pieces]
    if not pieces or ";" in words:
        return []
    verb = _verb(pieces)
    if words[verb] == "INSERT":
        query = _inserted(pieces[verb:])
        if verb and query:
            return [] if _starts(query, {"WITH"}) else [Span(pieces[0].start, pieces[verb].start), *_whole(query)]
        return _whole(query)
    if words[0] == "CREATE":
        return _whole(_created(pieces))
    if words[0] == "COPY":
        return _whole(_copied(pieces))
    return _whole(pieces) if words[verb] in _QUERY | {"("} else []


def _whole(query: Sequence[Piece]) -> list[Span]:
    """Return where a query stands, if it is one."""
    return [Span(query[0].start, query[-1].end)] if _starts(query, _QUERY) else []


def _starts(pieces: Sequence[Piece], words: set[str]) -> bool:
    return next((piece.word for piece in pieces if piece.word != "("), "") in words


def _verb(pieces: Sequence[Piece]) -> int:
    """Return the place of the word that says what a statement does, after its common table expressions."""
    if pieces[0].word != "WITH":
        return 0
    for at, (before, piece) in enumerate(pairwise(pieces), 1):
        if before.word == ")" and before.depth == 0 and piece.word not in _AFTER_CTE_COLUMNS:
            return at
    return 0


def _inserted(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """Return the query of an INSERT."""
    outer = [at for at, piece in enumerate(pieces) if piece.depth == 0]
    start = next((at for at in outer if pieces[at].word in _QUERY or _opens_query(pieces[at:])), len(pieces))
    ends = (at for at in outer if at > start and _ends_insert(pieces[at:]))
    return [] if pieces[start - 1].word == "DEFAULT" else pieces[start : next(ends, len(pieces))]


def _opens_query(pieces: Sequence[Piece]) -> bool:
    return pieces[0].word == "(" and _starts(pieces, _QUERY)


def _ends_insert(pieces: Sequence[Piece]) -> bool:
    words = [piece.word for piece in pieces[:2]]
    return words[0] == "RETURNING" or words == ["ON", "CONFLICT"]


def _created(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """Return the query of CREATE TABLE AS, unless it is to yield no rows."""
    kind = next((piece.word for piece in pieces if piece.word not in _CREATE), "")
    start = next((at for at, piece in enumerate(pieces) if piece.word == "AS" and piece.depth == 0), len(pieces))
    query, tail = pieces[start + 1 :], [piece.word for piece in pieces[-3:]]
    if kind != "TABLE" or tail == ["WITH", "NO", "DATA"]:
        return []
    return query[:-2] if tail[-2:] == ["WITH", "DATA"] else query


def _copied(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """Return the query of COPY (query) TO."""
    end = next((at for at, piece in enumerate(pieces) if piece.word == ")" and piece.depth == 0), len(pieces))
    is_query = len(pieces) > end + 1 and pieces[1].word == "(" and pieces[end + 1].word == "TO"
    return pieces[2:end] if is_query else []


def _is_whole(text: str) -> bool:
    """Say whether all that a text begins to quote ends in it."""
    try:
        pieces_of(text)
    except InvalidRequestError:
        return False
    return True


def _query(text: str) -> tuple[exp.Expr | None, list[exp.Expr]]:
    """Return the tree of a statement's query and its calls, where the tree shows all of them."""
    query = rows_of(text) if _is_whole(text) else None
    tree = tree_of(query) if query else None
    sites = sites_of(tree) if tree else []
    return (tree, sites) if sites and len(sites) == len(calls(text)) else (None, [])


def _aliases(tree: exp.Expr, sites: list[exp.Expr]) -> set[str]:
    return {item(tree, site).alias.lower() for site in sites} - {""}


def _names(part: exp.Expr, aliases: set[str]) -> bool:
    """Say whether a part of a query uses one of some names, and does not only give it."""
    from sqlglot import exp

    used = (node.name.lower() for node in part.find_all(exp.Identifier) if node.arg_key != "alias")
    return not aliases.isdisjoint(used)


def _is_by_position(clause: exp.Expr | None) -> bool:
    """Say whether GROUP BY or ORDER BY takes items of the select list by number, or all."""
    from sqlglot import exp

    if clause is None:
        return False
    keys = [key.this if isinstance(key, exp.Ordered) else key for key in clause.expressions]
    return bool(clause.args.get("all")) or any(isinstance(key, (exp.Literal, exp.Var)) for key in keys)


def _may_repeat(tree: exp.Expr, sites: list[exp.Expr]) -> bool:
    """Say whether a call may be asked with its own answer: in a recursion, or in a lambda that folds a list."""
    from sqlglot import exp

    recursive = any(part.args.get("recursive") for part in tree.find_all(exp.With))
    return recursive or any(site.find_ancestor(exp.Lambda, exp.Comprehension) for site in sites)


def _needs_all(node: exp.Expr) -> bool:
    """Say whether an expression evaluates all that stands in it; of an unknown function, what it is given alone."""
    from sqlglot import exp

    return not is_lazy(node) and (not isinstance(node, exp.Anonymous) or len(sites_of(node)) == 1)
