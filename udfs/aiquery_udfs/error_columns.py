"""The columns that say why an `ai_query` of a query gave no answer: what to add to its select lists, and where."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from aiquery_udfs.sql_tokens import Piece, Span, pieces_of
from aiquery_udfs.sql_tree import above, is_lazy, is_listed, position, sites_of, tree_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlglot import exp

#: How a select list may be part of a query when one more column of it does no harm: the kind above, and its part.
_WIDENING: Final = {
    ("CTE", "this"),
    ("With", "expressions"),
    ("Select", "with_"),
    ("Select", "from_"),
    ("Select", "joins"),
    ("From", "this"),
    ("Join", "this"),
    ("Subquery", "this"),
}
#: The place of `failOnError` among the arguments without a name.
_FAIL_ON_ERROR: Final = 3
#: Clauses that make one row of several.
_FOLDING: Final = ("distinct", "group", "having")
#: Functions that sqlglot does not know, and that are no aggregates.
_SCALAR: Final = {"ai_query", "from_json"}
#: Functions whose second value is another one than the first: asking again would be another request.
_DRAWN: Final = {"RANDOM", "UUID", "UUIDV4", "UUIDV7", "GEN_RANDOM_UUID", "NEXTVAL"}
_CLAUSES: Final = {
    "FROM", "WHERE", "GROUP", "HAVING", "WINDOW", "QUALIFY", "ORDER", "LIMIT", "OFFSET", "FETCH", "USING",
}  # fmt: skip
#: Words before which a clause's word is none: `IS DISTINCT FROM`, `WITHIN GROUP`, `AS limit`, `t.offset`.
_NOT_BEFORE_CLAUSES: Final = {"DISTINCT", "WITHIN", "AS", "."}


def error_columns(query: str) -> dict[Span, str]:
    """Return what to add to the select lists of a query, and where; nothing for a query that cannot be read.

    Raises:
        InvalidRequestError: A string, a quoted name or a comment does not end.
    """
    tree, pieces = tree_of(query), pieces_of(query)
    places = {piece.start: at for at, piece in enumerate(pieces)}
    taken = {piece.name for piece in pieces}
    added: dict[Span, str] = {}
    for sites in _by_list(tree) if tree else []:
        columns = [_column(query, pieces, places[position(site)], site, taken) for site in sites]
        last = _last_of_list(pieces, places[position(sites[0])])
        added[Span(last.end, last.end)] = _joined(last, [column for column in columns if column])
    return added


def _by_list(tree: exp.Expr) -> list[list[exp.Expr]]:
    """Return the calls that are asked for each row of a select list which takes more columns, list by list."""
    lists: dict[int, list[exp.Expr]] = {}
    for site in sites_of(tree):
        select = _select(site)
        if select is not None:
            lists.setdefault(id(select), []).append(site)
    return list(lists.values())


def _column(query: str, pieces: Sequence[Piece], at: int, site: exp.Expr, taken: set[str]) -> str:
    """Return the column with the error of one call; nothing when it cannot be asked for."""
    from sqlglot import exp

    inside = _inside(pieces, at + 1)
    if not _can_be_asked_again(site, pieces[at - 1], inside):
        return ""
    given = site.find_ancestor(exp.Alias)
    name = _new_name(given.alias if given else "ai_query", taken)
    return f" ai_error({query[inside[0].start : inside[-1].end]}) AS {name}"


def _joined(last: Piece, columns: list[str]) -> str:
    """Return columns as they follow the last word or mark of a select list, which may be a comma."""
    return ("" if last.word == "," or not columns else ",") + ",".join(columns)


def _select(site: exp.Expr) -> exp.Expr | None:
    """Return the query in whose list a call stands, if it is asked for each of its rows and takes a column."""
    from sqlglot import exp

    select = site.find_ancestor(exp.Select)
    if select is None or not is_listed(select, site) or any(select.args.get(part) for part in _FOLDING):
        return None
    around = [site, *above(select, site)]
    is_certain = all(_evaluates(node, part) for part, node in itertools.pairwise(around))
    return select if is_certain and _can_be_wider(select) else None


def _evaluates(node: exp.Expr, part: exp.Expr) -> bool:
    """Say whether an expression evaluates a part for each row, once."""
    from sqlglot import exp

    if isinstance(node, exp.Coalesce):
        return part.arg_key == "this"
    if isinstance(node, exp.Anonymous):
        return node.name.lower() in _SCALAR
    return not is_lazy(node) and not isinstance(node, exp.AggFunc)


def _can_be_wider(select: exp.Expr) -> bool:
    """Say whether a select list is that of the whole query, or of a part that may have one more column."""
    from sqlglot import exp

    node, is_inner = select, False
    while node.parent is not None:
        if (type(node.parent).__name__, node.arg_key) not in _WIDENING:
            return False
        node = node.parent
        is_inner = is_inner or isinstance(node, exp.Select)
    return not is_inner or not _takes_all_columns(node)


def _takes_all_columns(tree: exp.Expr) -> bool:
    """Say whether one more column of a part of a query may change what the query means."""
    from sqlglot import exp

    stars = (star for star in tree.find_all(exp.Star, exp.Columns) if not isinstance(star.parent, exp.Count))
    lists = [star.parent.parent if isinstance(star.parent, exp.Column) else star.parent for star in stars]
    parts = {part.alias.lower() for part in tree.find_all(exp.CTE, exp.Subquery)}
    return (
        tree.find(exp.SetOperation, exp.Pivot) is not None
        or any(join.args.get("method") for join in tree.find_all(exp.Join))
        or any(not isinstance(node, exp.Select) or any(map(node.args.get, _FOLDING)) for node in lists)
        or any(not column.table and column.name.lower() in parts for column in tree.find_all(exp.Column))
    )


def _inside(pieces: Sequence[Piece], start: int) -> Sequence[Piece]:
    """Return what stands between a bracket and the one that closes it."""
    end = start + 1
    while pieces[end].depth > pieces[start].depth:
        end += 1
    return pieces[start + 1 : end]


def _can_be_asked_again(site: exp.Expr, before: Piece, inside: Sequence[Piece]) -> bool:
    """Say whether a call's arguments, written again, are the same request, and its answer leaves the error out."""
    words = {piece.word for piece in inside}
    return bool(inside) and before.word != "." and "?" not in words and not words & _DRAWN and not _is_lenient(site)


def _is_lenient(site: exp.Expr) -> bool:
    """Say whether a call has `failOnError => false`, by name or by position."""
    from sqlglot import exp

    for place, argument in enumerate(site.expressions):
        is_named = isinstance(argument, (exp.Kwarg, exp.PropertyEQ))
        value = argument.expression if is_named else argument
        is_meant = argument.name.lower() == "failonerror" if is_named else place == _FAIL_ON_ERROR
        if is_meant and isinstance(value, exp.Boolean) and not value.this:
            return True
    return False


def _new_name(alias: str, taken: set[str]) -> str:
    """Return the name of an error's column, and note that it is taken."""
    endings = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
    name = next(name for ending in endings if (name := f"{alias}_error{ending}").lower() not in taken)
    taken.add(name.lower())
    return name if name.isidentifier() else '"' + name.replace('"', '""') + '"'


def _last_of_list(pieces: Sequence[Piece], site: int) -> Piece:
    """Return the last word or mark of the select list that a call stands in, comments left out."""
    at, depth = site, pieces[site].depth
    while pieces[at].word != "SELECT" or pieces[at].depth != depth:
        at -= 1
        depth = min(depth, pieces[at].depth)
    while at + 1 < len(pieces) and pieces[at + 1].depth >= depth and not _begins_clause(pieces[at : at + 2], depth):
        at += 1
    return pieces[at]


def _begins_clause(pair: Sequence[Piece], depth: int) -> bool:
    before, piece = pair
    return piece.depth == depth and piece.word in _CLAUSES and before.word not in _NOT_BEFORE_CLAUSES
