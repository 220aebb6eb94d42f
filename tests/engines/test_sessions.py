"""Sessions: what only they can see is looked ahead of too, and what was answered before is not asked again."""

from __future__ import annotations

import duckdb
import pandas as pd
import pyarrow as pa
import pytest

import aiquery
from aiquery import AiQueryError


@pytest.fixture
def session(workspace):
    with aiquery.connect(workspace=workspace, progress=False) as opened:
        yield opened


#: The first chunk of rows asks five things, one of them slow; the second asks fifty others.
TWO_CHUNKS = "SELECT CASE WHEN i < 2048 THEN 'slow' || i % 5 ELSE 'next' || i % 50 END AS w FROM range(2148) t(i)"


@pytest.fixture
def answered(server, workspace):
    """How long each answer took, and how many requests had come by then: `slow0` takes its time."""
    done = []
    server.delay = lambda body: 0.7 if "slow0" in str(body) else 0.0
    workspace.watch(lambda one: done.append((one.latency_ms, len(server.requests))))
    return done


def looked_ahead(server, answered) -> bool:
    """Say whether all that the second chunk asks had come before the first chunk's slow answer."""
    return len(server.requests) == 55 and max(answered)[1] == 55


def test_a_query_is_looked_ahead_of(server, session, answered):
    session.execute(f"CREATE TABLE t AS {TWO_CHUNKS}")
    rows = session.sql("SELECT w, ai_query('chat', w) FROM t").fetchall()

    assert rows == [(w, f"echo: {w}") for (w,) in session.execute("SELECT w FROM t").fetchall()]
    assert looked_ahead(server, answered)


def test_without_look_ahead_chunks_wait_for_each_other(server, workspace, answered):
    with aiquery.connect(workspace=workspace, look_ahead=False, progress=False) as plain:
        plain.execute(f"CREATE TABLE t AS {TWO_CHUNKS}")
        plain.sql("SELECT w, ai_query('chat', w) FROM t").fetchall()

    assert len(server.requests) == 55
    assert max(answered)[1] == 5


def test_a_stock_connection_is_looked_ahead_of_when_it_is_wanted(server, workspace, answered):
    con = duckdb.connect()
    aiquery.register(con, workspace, look_ahead=True)
    con.execute(f"CREATE TABLE t AS {TWO_CHUNKS}")
    con.execute("SELECT w, ai_query('chat', w) FROM t").fetchall()
    con.close()

    assert looked_ahead(server, answered)


@pytest.mark.parametrize("frame", [pd.DataFrame, pa.table], ids=["pandas", "pyarrow"])
@pytest.mark.parametrize("how", ["sql", "execute", "register"])
def test_tables_of_python_are_looked_ahead_of(server, session, answered, frame, how):
    words = [w for (w,) in session.execute(TWO_CHUNKS).fetchall()]
    mine = frame({"w": words})
    if how == "register":
        session.register("theirs", mine)
    query = f"SELECT ai_query('chat', w) FROM {'theirs' if how == 'register' else 'mine'}"
    rows = session.sql(query).fetchall() if how == "sql" else session.execute(query).fetchall()

    assert rows == [(f"echo: {w}",) for w in words]
    assert looked_ahead(server, answered)


def test_temporary_tables_are_looked_ahead_of(server, session, answered):
    session.execute(f"CREATE TEMP TABLE t AS {TWO_CHUNKS}")
    session.execute("SELECT ai_query('chat', w) FROM t").fetchall()

    assert looked_ahead(server, answered)


def test_in_a_transaction_only_what_it_sees_is_asked(server, session, answered):
    session.execute(f"CREATE TABLE t AS {TWO_CHUNKS}; INSERT INTO t SELECT 'gone' || i FROM range(3000) r(i)")
    session.execute("BEGIN")
    session.execute("DELETE FROM t WHERE w LIKE 'gone%'")
    session.execute("SELECT ai_query('chat', w) FROM t").fetchall()
    session.execute("ROLLBACK")

    assert looked_ahead(server, answered)


def test_parameters_are_looked_ahead_of(server, session, answered):
    session.execute(f"CREATE TABLE t AS {TWO_CHUNKS}")
    session.execute("SELECT ai_query('chat', w) FROM t WHERE w <> $1", ["nothing"]).fetchall()

    assert looked_ahead(server, answered)


def test_the_rehearsal_leaves_nothing_behind(session):
    session.execute(f"CREATE TEMP TABLE t AS {TWO_CHUNKS}")
    before = session.execute("SELECT count(*) FROM duckdb_functions()").fetchall()
    session.execute("SELECT ai_query('chat', w) FROM t").fetchall()

    assert session.execute("SELECT count(*) FROM duckdb_functions()").fetchall() == before


def test_the_ledger_is_off_until_it_is_wanted(server, session):
    query = "SELECT ai_query('chat', 'w' || i % 10) FROM range(100) t(i)"
    session.execute(query).fetchall()
    session.execute(query).fetchall()

    assert len(server.requests) == 20


def test_what_was_answered_before_is_reused_where_that_is_wanted(server, workspace):
    query = "SELECT ai_query('chat', 'w' || i % 10) FROM range(3000) t(i)"
    for _ in range(2):
        with aiquery.connect(workspace=workspace, cache="reuse", progress=False) as session:
            rows = session.execute(query).fetchall()

    assert rows == [(f"echo: w{i % 10}",) for i in range(3000)]
    assert len(server.requests) == 10
    assert (session.run.tally.from_ledger, session.run.meter.spent.calls) == (10, 0)


@pytest.mark.parametrize(
    "other",
    [
        "ai_query('chat', w || '!')",
        "ai_query('chat', w, modelParameters => {'max_tokens': 7})",
        "ai_query('chat', w, modelParameters => {'temperature': 0.5})",
    ],
)
def test_another_prompt_or_parameter_is_asked_anew(server, workspace, other):
    with aiquery.connect(workspace=workspace, cache="reuse", progress=False) as session:
        session.execute("SELECT ai_query('chat', w) FROM (VALUES ('a')) t(w)").fetchall()
        session.execute(f"SELECT {other} FROM (VALUES ('a')) t(w)").fetchall()

    assert len(server.requests) == 2


def test_too_old_answers_are_asked_anew(server, workspace):
    for _ in range(2):
        with aiquery.connect(workspace=workspace, cache="reuse", max_age=-1.0, progress=False) as session:
            session.execute("SELECT ai_query('chat', w) FROM (VALUES ('a')) t(w)").fetchall()

    assert len(server.requests) == 2


def test_a_session_is_its_connection_for_all_else(session):
    assert session.table_function("range", [3]).fetchall() == [(0,), (1,), (2,)]


def test_a_cache_that_does_not_exist_is_refused(workspace):
    with pytest.raises(AiQueryError, match="'off' or 'reuse', not 'on'"):
        aiquery.connect(workspace=workspace, cache="on")


def test_a_dialect_that_does_not_exist_is_refused(session):
    with pytest.raises(AiQueryError, match="oracle"):
        session.sql("SELECT 1", dialect="oracle")


class TestShowingARelation:
    def test_a_small_one_is_shown_whole(self, server, session):
        text = repr(session.sql("SELECT ai_query('chat', 'w' || i) AS a FROM range(100) t(i)"))

        assert "100 rows" in text
        assert len(server.requests) == 100

    def test_a_large_one_is_shown_in_part_and_says_so(self, server, session):
        text = repr(session.sql("SELECT ai_query('chat', 'w' || i) AS a FROM range(101) t(i)"))

        assert "the first 20 rows" in text
        assert len(server.requests) == 20

    def test_one_that_seldom_passes_its_condition_is_not_searched_for_rows(self, server, session):
        text = repr(session.sql("SELECT i FROM range(9000) t(i) WHERE ai_query('chat', 'w' || i) = 'never'"))

        assert "Showing this relation would ask a model for many rows" in text
        assert len(server.requests) == 2048

    def test_show_prints_the_same(self, server, session, capsys):
        session.sql("SELECT ai_query('chat', 'w' || i) AS a FROM range(5000) t(i)").show()

        assert "the first 20 rows" in capsys.readouterr().out
        assert len(server.requests) == 20

    def test_a_relation_without_models_is_shown_as_ever(self, session):
        assert "20 shown" in repr(session.sql("SELECT i FROM range(5000) t(i)"))
