"""Where the rows of a job go: a file or a table, drafted beside its place and moved there when it is whole."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import duckdb

from aiquery_serving.errors import InvalidRequestError

#: What each kind of file is to `COPY ... TO`.
_FORMATS: Final = {
    ".parquet": "FORMAT parquet, USE_TMP_FILE false",
    ".csv": "FORMAT csv, HEADER true, USE_TMP_FILE false",
    ".jsonl": "FORMAT json, USE_TMP_FILE false",
    ".ndjson": "FORMAT json, USE_TMP_FILE false",
    ".json": "FORMAT json, ARRAY true, USE_TMP_FILE false",
}
#: One name of a table, plain or quoted.
_NAME: Final = r'(?:[^\W\d]\w*|"(?:[^"]|"")+")'
_TABLE: Final = re.compile(rf"{_NAME}(?:\.{_NAME}){{0,2}}")
#: Keys that a message names at most.
_NAMED: Final = 5

#: The columns of a query, by name, with their types.
Columns: TypeAlias = dict[str, str]


class Output(Protocol):
    """One place for rows. `draft` is where they are until they are whole."""

    @property
    def draft(self) -> str:
        """Where unfinished rows are: a path, or a table as SQL names it."""
        ...

    def exists(self, handle: duckdb.DuckDBPyConnection) -> bool:
        """Say whether something is at the output's place."""
        ...

    def check(self, handle: duckdb.DuckDBPyConnection) -> None:
        """Make sure that it can be written, before anything is paid for.

        Raises:
            InvalidRequestError: It cannot.
        """
        ...

    def writing(self, query: str) -> str:
        """Return the statement that writes the draft."""
        ...

    def reading(self, columns: Columns) -> str:
        """Return what reads the draft, for a FROM clause; numbers and dates of text files are texts."""
        ...

    def publish(self, handle: duckdb.DuckDBPyConnection) -> None:
        """Put the draft into its place, all at once."""
        ...


class FileOutput:
    """A Parquet, CSV or JSON file.

    Args:
        path: The file.
        token: Tells the drafts of different runs apart.

    Raises:
        InvalidRequestError: It is no kind of file that can be written.
    """

    def __init__(self, path: Path, token: str) -> None:
        self._path = path.absolute()
        self._draft = self._path.with_name(f"{path.name}.{token}.partial")
        self._format = _FORMATS.get(path.suffix.lower(), "")
        if not self._format:
            raise InvalidRequestError(
                f"The output '{path}' is no kind of file that a job can write. Let its name end in {_either(_FORMATS)}."
            )
        if self._path.is_dir():
            raise InvalidRequestError(f"The output '{path}' is a folder. Name a file in it.")

    def __str__(self) -> str:
        return str(self._path)

    @property
    def draft(self) -> str:
        """The path of the unfinished file."""
        return str(self._draft)

    def exists(self, _: duckdb.DuckDBPyConnection) -> bool:
        """Say whether something is at the output's place."""
        return self._path.exists()

    def check(self, _: duckdb.DuckDBPyConnection) -> None:
        """Make sure that the folder can be written."""
        try:
            with self._draft.open("xb"):
                pass
        except OSError as error:
            raise InvalidRequestError(
                f"The output '{self}' cannot be written ({error.strerror}). Choose another place, or make its folder"
                " and let yourself write there."
            ) from error

    def writing(self, query: str) -> str:
        """Return the statement that writes the draft."""
        return f"COPY (\n{query}\n) TO {_text(self.draft)} ({self._format})"

    def reading(self, columns: Columns) -> str:
        """Return what reads the draft, for a FROM clause."""
        types = "{" + ", ".join(f"{_text(name)}: 'VARCHAR'" for name in columns) + "}"
        if "csv" in self._format:
            dialect = """auto_detect=false, delim=',', quote='"', escape='"', allow_quoted_nulls=false"""
            return f"read_csv({_text(self.draft)}, header=true, columns={types}, {dialect})"
        if "json" in self._format:
            shape = "array" if "ARRAY" in self._format else "newline_delimited"
            return f"read_json({_text(self.draft)}, format='{shape}', columns={types})"
        return f"read_parquet({_text(self.draft)})"

    def publish(self, _: duckdb.DuckDBPyConnection) -> None:
        """Put the draft into its place, all at once, also if the machine loses its power."""
        _sync(self._draft)
        self._draft.replace(self._path)
        _sync(self._path.parent)


class TableOutput:
    """A table of the session's database.

    Args:
        name: As SQL names it, with its schema and database or without.
        token: Tells the drafts of different runs apart.
        handle: The connection whose database it is in.
    """

    def __init__(self, name: str, token: str, handle: duckdb.DuckDBPyConnection) -> None:
        *self._place, self._name = (_unquoted(part) for part in re.findall(_NAME, name))
        self._token = token
        path = _database_file(handle, self._place[0] if len(self._place) == 2 else None)  # noqa: PLR2004 - database.schema
        self._text = f"table {'.'.join((*self._place, self._name))}" + (f" of {path}" if path else "")

    def __str__(self) -> str:
        return self._text

    @property
    def draft(self) -> str:
        """The name of the unfinished table."""
        return self._named(f"{self._name}_partial_{self._token}")

    def exists(self, handle: duckdb.DuckDBPyConnection) -> bool:
        """Say whether a table or a view has its name."""
        place = self._place[-1] if self._place else None
        where = "list_contains([table_schema, table_catalog], coalesce($place, current_schema()))"
        sql = f"SELECT count(*) FROM information_schema.tables WHERE lower(table_name) = lower($name) AND {where}"  # noqa: S608
        return _one(handle, sql, {"name": self._name, "place": place}) != (0,)

    def check(self, handle: duckdb.DuckDBPyConnection) -> None:
        """Make sure that its schema exists and no transaction is open; DuckDB itself looks at the rest in time."""
        schemas = "SELECT unnest([lower(schema_name), lower(catalog_name)]) FROM information_schema.schemata"
        missing = {part.lower() for part in self._place}.difference(
            name for (name,) in handle.execute(schemas).fetchall()
        )
        if missing:
            raise InvalidRequestError(
                f"There is no schema '{min(missing)}' for {self}. Create it, or name a file that ends in"
                f" {_either(_FORMATS)}."
            )
        try:
            handle.execute("BEGIN")
        except duckdb.TransactionException as error:
            raise InvalidRequestError(
                "A job cannot write a table while the connection is in a transaction. COMMIT it first."
            ) from error
        handle.execute("ROLLBACK")

    def writing(self, query: str) -> str:
        """Return the statement that writes the draft."""
        return f"CREATE TABLE {self.draft} AS (\n{query}\n)"

    def reading(self, _: Columns) -> str:
        """Return what reads the draft, for a FROM clause."""
        return self.draft

    def publish(self, handle: duckdb.DuckDBPyConnection) -> None:
        """Put the draft into its place, all at once."""
        handle.execute("BEGIN")
        try:
            handle.execute(f"DROP TABLE IF EXISTS {self._named(self._name)}")
            handle.execute(f"ALTER TABLE {self.draft} RENAME TO {_identifier(self._name)}")
            handle.execute("COMMIT")
        except duckdb.Error:
            handle.execute("ROLLBACK")
            raise

    def _named(self, name: str) -> str:
        return ".".join(map(_identifier, (*self._place, name)))


def choose(output: str | os.PathLike[str], token: str, handle: duckdb.DuckDBPyConnection) -> Output:
    """Return the output that a text or a path names.

    A text is a file when it ends as one that can be written, or has a `/`; otherwise it names a table.

    Raises:
        InvalidRequestError: It names neither.
    """
    text = os.fspath(output)
    if "://" in text:
        raise InvalidRequestError(f"The output of a job is a local file or a table, not '{text}'. Copy it there later.")
    is_file = not isinstance(output, str) or os.sep in text or Path(text).suffix.lower() in _FORMATS
    if is_file:
        return FileOutput(Path(text), token)
    if _TABLE.fullmatch(text):
        return TableOutput(text, token, handle)
    raise InvalidRequestError(
        f"The output {text!r} is neither a file that ends in {_either(_FORMATS)} nor the name of a table."
    )


def check_keys(handle: duckdb.DuckDBPyConnection, output: Output, columns: Columns, keys: Sequence[str]) -> None:
    """Make sure that the key columns of a draft tell its rows apart.

    Raises:
        InvalidRequestError: Some keys are there more than once, or are NULL; the message names a few.
    """
    names = [_identifier(key) for key in keys]
    null = " OR ".join(f"{name} IS NULL" for name in names)
    found = handle.execute(
        f"SELECT {', '.join(names)}, count(*) FROM {output.reading(columns)}"  # noqa: S608 - quoted identifiers
        f" GROUP BY ALL HAVING count(*) > 1 OR {null} ORDER BY ALL LIMIT {_NAMED}"
    ).fetchall()
    if found:
        raise InvalidRequestError(
            f"The key ({', '.join(keys)}) does not tell the rows of the job apart: {'; '.join(map(_told, found))}."
            f" Nothing was written to {output}. Choose other key columns, or none; no answer is asked for again."
        )


def discard(draft: str, handle: duckdb.DuckDBPyConnection) -> None:
    """Remove what a run left unfinished, if it is there."""
    with suppress(OSError, duckdb.Error):
        if draft.endswith(".partial"):
            Path(draft).unlink(missing_ok=True)
        elif draft:
            handle.execute(f"DROP TABLE IF EXISTS {draft}")


def _told(row: tuple[object, ...]) -> str:
    *values, count = row
    key = ", ".join("NULL" if value is None else str(value) for value in values)
    return f"{key} ({count} {'row' if count == 1 else 'rows'})"


def _database_file(handle: duckdb.DuckDBPyConnection, name: str | None) -> object:
    sql = "SELECT path FROM duckdb_databases() WHERE database_name = coalesce(?, current_database())"
    found = handle.execute(sql, [name]).fetchall()
    return found[0][0] if found else None


def _one(handle: duckdb.DuckDBPyConnection, sql: str, parameters: object = None) -> tuple[object, ...]:
    return handle.execute(sql, parameters).fetchall()[0]


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _either(names: Sequence[str] | dict[str, str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"
