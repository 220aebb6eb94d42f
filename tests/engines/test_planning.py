"""DuckDB plans and executes; `planning` tells which, whatever door the statement came through."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest
from duckdb.func import FunctionNullHandling, PythonUDFType

from aiquery_udfs.planning import planning, task_loop


@pytest.fixture
def watched():
    task_loop()
    seen: list[str] = []

    def watch(column: pa.ChunkedArray) -> pa.ChunkedArray:
        if len(column) == 1 and planning():
            seen.append("planned")
            raise ValueError("not now")
        seen.append("executed")
        return column

    with duckdb.connect() as con:
        con.create_function(
            "watch", watch, ["VARCHAR"], "VARCHAR",
            type=PythonUDFType.ARROW, null_handling=FunctionNullHandling.SPECIAL,
        )  # fmt: skip
        con.execute(
            "CREATE TABLE one AS SELECT 'a' AS w; CREATE TABLE many AS SELECT 'w' || i AS w FROM range(2049) t(i)"
        )
        yield con, seen


@pytest.mark.parametrize(
    "statement",
    [
        "EXPLAIN SELECT watch('x')",
        "EXPLAIN SELECT watch(w) FROM one",
        "PREPARE p AS SELECT watch('x')",
        "EXPLAIN FROM many WHERE watch('x') = w",
    ],
)
@pytest.mark.parametrize("threads", [1, 4])
def test_what_only_plans_never_executes(watched, statement, threads):
    con, seen = watched
    con.execute(f"SET threads = {threads}")

    for _ in range(20):
        con.execute(statement).fetchall()

    assert set(seen) <= {"planned"}


@pytest.mark.parametrize(
    "query",
    [
        "SELECT watch('x')",
        "SELECT watch(w) FROM one",
        "SELECT watch(w) FROM many",
        "SELECT watch(w) FROM one WHERE watch(w) = 'a'",
        "SELECT max(watch(w)) OVER () FROM one",
        "SELECT list_transform(['a'], lambda w: watch(w))",
        "SELECT watch(watch('x'))",
        "SELECT watch(max(w)) FROM many",
        "SELECT (SELECT watch('x'))",
        "SELECT watch(w) FROM unnest(['a']) t(w)",
    ],
)
@pytest.mark.parametrize(
    "read",
    [
        lambda con, query: con.execute(query).fetchall(),
        lambda con, query: con.sql(query).fetchall(),
        lambda con, query: con.sql(query).to_arrow_table(),
        lambda con, query: con.sql(query).df(),
        lambda con, query: con.execute(f"CREATE OR REPLACE TABLE made AS {query}").fetchall(),
        lambda con, query: con.cursor().execute(query).fetchall(),
    ],
    ids=["execute", "sql", "arrow", "pandas", "table", "cursor"],
)
@pytest.mark.parametrize("threads", [1, 4])
def test_what_executes_is_never_taken_for_planning(watched, query, read, threads):
    con, seen = watched
    con.execute(f"SET threads = {threads}")

    for _ in range(5):
        seen.clear()
        read(con, query)  # raises if an executed call was taken for a planned one
        assert "executed" in seen


def test_what_is_learned_does_not_depend_on_who_asks_first():
    task_loop.cache_clear()
    found = []
    with duckdb.connect() as con:
        con.create_function("learn", lambda text: found.append(task_loop()) or text, ["VARCHAR"], "VARCHAR")
        con.execute("SELECT learn('x' || i) FROM range(1) t(i)").fetchall()
    inside = found[0]
    task_loop.cache_clear()

    assert task_loop() == inside
    assert inside
