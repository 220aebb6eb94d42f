"""SQL in Databricks' spelling, written for DuckDB.

sqlglot reads and writes the statements; what it does not know is here: whole rows as `struct(*)`, schemas in
`from_json`, `x:path`, `format_string`, READ_FILES, functions, materialized views, permissions. Type text in
arguments of `ai_query` stays as it is: `return_type` reads both spellings.

- A function becomes a macro of the same database, as it would stay there in Databricks. Its parameters are cast
  where they are used, because a typed macro of DuckDB takes no other type; so is its result.
- A materialized view becomes a table: its answers are asked for once and kept, where a view would ask at each read.
- GRANT and REVOKE become a remark, since DuckDB has no users. Where and how Databricks keeps a table (USING,
  LOCATION, TBLPROPERTIES, COMMENT, …) is left out.
"""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Final

from aiquery_serving.errors import InvalidRequestError
from aiquery_udfs import return_type
from aiquery_udfs.errors import UnsupportedReturnTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlglot import exp
    from sqlglot.errors import ParseError
    from sqlglot.parser import Parser

DIALECTS: Final = ("databricks", "duckdb")
_NO_USERS: Final = "SELECT 'DuckDB has no users: permissions have no effect here.' AS note"
_WAY_OUT: Final = "Write the statement in DuckDB's own spelling, with dialect='duckdb'."
#: READ_FILES' columns for binary files, from those of DuckDB's read_blob.
_BINARY_FILES: Final = (
    "SELECT filename AS path, last_modified AS modificationTime, size AS length, content"
    " FROM read_blob([{path}, {path} || '/*'])"
)
#: A percent sign, or the place of a value in a format text, with its kind.
_PLACE: Final = re.compile(r"%(?:%|[-#+ 0,(]*\d*(?:\.\d+)?([a-zA-Z]))")
#: What EXPLAIN may say before its statement in Databricks alone.
_EXPLAINED: Final = {"EXTENDED", "FORMATTED", "COST", "CODEGEN"}


def to_duckdb(text: str, dialect: str = "databricks") -> str:
    """Write SQL text, of one or more statements, in DuckDB's spelling.

    Args:
        text: The statements.
        dialect: `databricks`, or `duckdb` for text that is returned as it is.

    Raises:
        InvalidRequestError: The dialect is unknown, the text cannot be read, or it asks for what DuckDB has not got.

    Examples:
        >>> to_duckdb('SELECT ai_query("m", named_struct("a", a), returnType => "ARRAY<INT>")')
        "SELECT ai_query('m', {'a': a}, returnType => 'ARRAY<INT>')"
    """
    if dialect not in DIALECTS:
        raise InvalidRequestError(f"There is no SQL dialect {dialect!r}. Choose one of {', '.join(DIALECTS)}.")
    if dialect == "duckdb":
        return text
    try:
        return ";\n".join(_written(statement) for statement in _statements(text))
    except RecursionError as error:
        raise InvalidRequestError("The Databricks SQL is nested too deep to be read. Split the statement.") from error


def _statements(text: str) -> list[exp.Expr]:
    from sqlglot.dialects.databricks import Databricks
    from sqlglot.errors import ParseError, TokenError

    try:
        found = _parser()(dialect=Databricks()).parse(Databricks().tokenize(text), text)
    except TokenError as error:
        msg = "The Databricks SQL cannot be read: a string, a quoted name or a comment in it does not end. Close it."
        raise InvalidRequestError(msg) from error
    except ParseError as error:
        raise InvalidRequestError(_unreadable(error)) from error
    return [statement for statement in found if statement is not None]


@functools.cache
def _parser() -> type[Parser]:
    """Return a parser that logs nothing of statements it knows by name only, such as SHOW."""
    from sqlglot.parsers.databricks import DatabricksParser

    class Quiet(DatabricksParser):
        def _warn_unsupported(self) -> None:
            pass

    return Quiet


def _unreadable(error: ParseError) -> str:
    place = error.errors[0]
    near = (place.get("highlight") or "the end").strip()
    return (
        f"The Databricks SQL cannot be read at line {place.get('line')}, column {place.get('col')}, near {near!r}. "
        "Correct it there, or write the statement in DuckDB's own spelling, with dialect='duckdb'."
    )


def _written(statement: exp.Expr) -> str:
    """Write one statement."""
    from sqlglot import exp

    changes = _changes()
    for node in reversed(list(statement.walk())):
        if type(node) in changes and node is not statement:
            node.replace(changes[type(node)](node))
    if isinstance(statement, (exp.Grant, exp.Revoke)):
        return _NO_USERS
    if isinstance(statement, exp.Command):
        return _command(statement)
    if isinstance(statement, exp.Create):
        return _function(statement) if statement.kind == "FUNCTION" else _sql(_relation(statement))
    if isinstance(statement, exp.Insert) and statement.args.get("overwrite"):
        raise InvalidRequestError("DuckDB has no INSERT OVERWRITE. Use DELETE FROM or TRUNCATE, and then INSERT INTO.")
    if isinstance(statement, exp.Use):
        statement.set("kind", None)
    return _sql(statement)


def _sql(node: exp.Expr) -> str:
    from sqlglot.errors import ErrorLevel, UnsupportedError

    try:
        return node.sql("duckdb", normalize_functions=False, unsupported_level=ErrorLevel.RAISE)
    except UnsupportedError as error:
        raise InvalidRequestError(f"DuckDB has nothing like it: {error}. {_WAY_OUT}") from error


def _changes() -> dict[type[exp.Expr], Callable[..., exp.Expr]]:
    """Return what is written in another way inside of statements."""
    from sqlglot import exp

    return {
        exp.Format: _printed,
        exp.FromJson: _from_json,
        exp.JSONExtract: _by_path,
        exp.Stream: lambda stream: stream.this,
        exp.Struct: _struct,
        exp.Table: _files,
    }


def _struct(node: exp.Struct) -> exp.Expr:
    """Write `struct(*)` with the names of the columns."""
    from sqlglot import exp

    if not any(part.is_star for part in node.expressions):
        return node
    parts = [exp.Columns(this=part, unpack=True) if part.is_star else part for part in node.expressions]
    return exp.Anonymous(this="struct_pack", expressions=parts)


def _by_path(node: exp.JSONExtract) -> exp.Expr:
    """Write `x:path` so that it gives text without quotes, as for a STRING in Databricks."""
    from sqlglot import exp

    if not node.args.get("variant_extract"):
        return node
    return exp.JSONExtractScalar(this=node.this, expression=node.expression)


def _from_json(node: exp.FromJson) -> exp.Expr:
    """Write the schema as DuckDB's structure; text that is no JSON gives NULL, which is Databricks' mode PERMISSIVE."""
    from sqlglot import exp

    schema = node.expression
    if not (isinstance(schema, exp.Literal) and schema.is_string) or node.args.get("options"):
        msg = "from_json takes two arguments here, the second of them a schema as text such as 'a INT, b STRING'."
        raise InvalidRequestError(f"{msg} {_WAY_OUT}")
    try:
        structure = json.dumps(return_type.parse(schema.name).sql, ensure_ascii=False)
    except UnsupportedReturnTypeError as error:
        msg = f"The schema {schema.name!r} of from_json cannot be used. {error.message}"
        raise InvalidRequestError(msg) from error
    checked = exp.TryCast(this=node.this, to=exp.DataType.build("JSON"))
    return exp.Anonymous(this="from_json", expressions=[checked, exp.Literal.string(structure)])


def _printed(node: exp.Format) -> exp.Expr:
    """Write `format_string` as printf, whose `%s` takes nothing but text."""
    from sqlglot import exp

    values = list(node.expressions)
    places = [match[1] for match in _PLACE.finditer(node.this.name) if match[1]] if node.this.is_string else []
    for at, kind in enumerate(places[: len(values)]):
        if kind == "s":
            text = exp.Cast(this=values[at].copy(), to=exp.DataType.build("TEXT"))
            values[at] = exp.Coalesce(this=text, expressions=[exp.Literal.string("null")])
    return exp.Anonymous(this="printf", expressions=[node.this, *values])


def _files(node: exp.Table) -> exp.Expr:
    """Write READ_FILES of binary files, with Databricks' names of the columns."""
    import sqlglot
    from sqlglot import exp

    if not isinstance(node.this, exp.Anonymous) or node.this.name.lower() != "read_files":
        return node
    path, *options = node.this.expressions
    given = {option.name.lower(): option.expression.name for option in options if isinstance(option, exp.Kwarg)}
    if len(given) != len(options) or {name: value.lower() for name, value in given.items()} != {"format": "binaryfile"}:
        msg = "READ_FILES is known here with format => 'binaryFile' and no other option."
        raise InvalidRequestError(f"{msg} For other files call DuckDB's read_csv, read_json or read_parquet.")
    query = sqlglot.parse_one(_BINARY_FILES.format(path=_sql(path)), read="duckdb")
    return exp.Subquery(this=query, alias=node.args.get("alias"))


def _relation(create: exp.Create) -> exp.Create:
    """Leave out of CREATE what DuckDB does not keep, and make a materialized view a table."""
    from sqlglot import exp

    for constraint in list(create.find_all(exp.ColumnConstraint)):
        if isinstance(constraint.kind, exp.CommentColumnConstraint):
            constraint.pop()
    properties = create.args.get("properties")
    stored = {type(one) for one in properties.expressions} if properties else set()
    if stored & {exp.MaterializedProperty, exp.StreamingTableProperty}:
        create.set("kind", "TABLE")
    create.set("replace", bool(create.args.get("replace") or create.args.get("refresh")))
    create.set("refresh", None)
    kept = [exp.TemporaryProperty()] if exp.TemporaryProperty in stored else []
    create.set("properties", exp.Properties(expressions=kept) if kept else None)
    if create.expression and isinstance(create.this, exp.Schema):
        create.this.set("expressions", [column.this for column in create.this.expressions])
    return create


def _function(create: exp.Create) -> str:
    """Write CREATE FUNCTION as CREATE MACRO."""
    from sqlglot import exp

    name, body = create.this.this, create.expression
    if not isinstance(body, exp.Return):
        msg = f"The function {_sql(name)} is not written in SQL: give it a RETURN, or make it known in Python."
        raise InvalidRequestError(f"{msg} DuckDB's create_function does that.")
    properties = create.args.get("properties")
    stated = {type(one): one for one in (properties.expressions if properties else [])}
    words = ["CREATE", *(["OR REPLACE"] if create.args.get("replace") else [])]
    words += ["TEMP"] if exp.TemporaryProperty in stated else []
    words += ["MACRO", *(["IF NOT EXISTS"] if create.args.get("exists") else [])]
    _cast_parameters(create)
    parameters = ", ".join(map(_parameter, create.this.expressions))
    return f"{' '.join(words)} {_sql(name)}({parameters}) AS {_body(body.this, stated.get(exp.ReturnsProperty))}"


def _cast_parameters(create: exp.Create) -> None:
    """Cast the parameters in a function's body.

    Through COALESCE, which DuckDB cannot bind while their values are unknown: otherwise it takes the macro's body for
    final, and finds that `ai_query` has no constant endpoint.
    """
    from sqlglot import exp

    kinds = {column.name.lower(): column.args["kind"] for column in create.this.expressions}
    for column in list(create.expression.find_all(exp.Column)):
        if not column.table and column.name.lower() in kinds:
            unknown = exp.Coalesce(this=column.copy(), expressions=[exp.Null()])
            column.replace(exp.Cast(this=unknown, to=kinds[column.name.lower()].copy()))


def _parameter(column: exp.ColumnDef) -> str:
    from sqlglot import exp

    default = column.find(exp.DefaultColumnConstraint)
    return _sql(column.this) + (f" := {_sql(default.this)}" if default else "")


def _body(body: exp.Expr, returns: exp.Expr | None) -> str:
    from sqlglot import exp

    if returns is not None and returns.args.get("is_table"):
        return f"TABLE {_sql(body)}"
    value = exp.Subquery(this=body) if isinstance(body, exp.Select) else body
    return _sql(exp.Cast(this=value, to=returns.this) if returns is not None else value)


def _command(command: exp.Command) -> str:
    """Write a statement that sqlglot knows by name only: EXPLAIN with its query, others as they are."""
    rest = command.expression.name if command.expression else ""
    words = rest.split(maxsplit=1)
    if command.name != "EXPLAIN" or not words:
        return f"{command.name} {rest}".strip()
    query = words[1] if words[0].upper() in _EXPLAINED else rest
    return f"EXPLAIN {to_duckdb(query)}"
