"""The syntax tree of a query, the calls of `ai_query` in it, and what stands around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiquery_udfs.sql_tokens import tokens_of

if TYPE_CHECKING:
    from sqlglot import exp


def tree_of(query: str) -> exp.Expr | None:
    """Return the tree of a query, without brackets around it; None for what sqlglot cannot read.

    Neither is there one for pipes (`FROM t |> …`), which sqlglot turns into other queries.

    Raises:
        InvalidRequestError: A string, a quoted name or a comment does not end.
    """
    from sqlglot.dialects.duckdb import DuckDB
    from sqlglot.errors import SqlglotError

    tokens = tokens_of(query)
    if any(token.text == "|>" for token in tokens):
        return None
    try:
        (tree,) = DuckDB().parser().parse(tokens, query) or [None]
    except (SqlglotError, RecursionError):
        return None
    return tree.unnest() if tree else None


def sites_of(tree: exp.Expr) -> list[exp.Expr]:
    """Return the calls of `ai_query`, in the order of the text; `position` says where each stands."""
    from sqlglot import exp

    found = (node for node in tree.find_all(exp.Anonymous) if node.name.lower() == "ai_query")
    return sorted(found, key=position)


def position(site: exp.Expr) -> int:
    """Return where the name of a call begins in the text."""
    return int(site.meta["start"])


def above(query: exp.Expr, site: exp.Expr) -> list[exp.Expr]:
    """Return what stands around a call, from inside out, up to but not including the query."""
    found, node = [], site.parent
    while node is not None and node is not query:
        found.append(node)
        node = node.parent
    return found


def item(query: exp.Expr, site: exp.Expr) -> exp.Expr:
    """Return the part of a query that holds a call: an item of its select list, or a clause."""
    return [site, *above(query, site)][-1]


def is_listed(query: exp.Expr, site: exp.Expr) -> bool:
    """Say whether a call stands in the select list of a query, at any depth."""
    from sqlglot import exp

    return isinstance(query, exp.Select) and item(query, site).arg_key == "expressions"


def is_lazy(node: exp.Expr) -> bool:
    """Say whether an expression may leave out some of what stands in it, or is none that surely does not."""
    from sqlglot import exp

    lazy = (exp.Connector, exp.Case, exp.If, exp.Coalesce, exp.Nullif, exp.Nvl2, exp.DecodeCase, exp.Try, exp.UDTF)
    eager = (exp.Alias, exp.Unary, exp.Dot, exp.Bracket, exp.Binary, exp.Func)
    return isinstance(node, lazy) or not isinstance(node, eager)
