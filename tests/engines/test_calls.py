"""How often an endpoint is asked: once for a request, never while planning, in every kind of statement."""

from __future__ import annotations

import threading

import pytest


def prompts(server) -> list[str]:
    return [body["messages"][-1]["content"] for body in server.requests]


@pytest.mark.parametrize("rows", [0, 1, 2047, 2048, 2049])
def test_every_row_is_answered_in_its_place(con, server, rows):
    found = con.execute(f"SELECT i, ai_query('chat', 'row ' || i) FROM range({rows}) t(i)").fetchall()

    assert found == [(i, f"echo: row {i}") for i in range(rows)]
    assert len(server.requests) == rows


@pytest.mark.parametrize(
    "statement",
    [
        "EXPLAIN SELECT ai_query('chat', 'constant')",
        "EXPLAIN SELECT ai_query('chat', w) FROM one",
        "EXPLAIN SELECT ai_query('chat', w) FROM words WHERE ai_query('chat', w) = 'x'",
        "DESCRIBE SELECT ai_query('chat', 'constant')",
        "PREPARE p AS SELECT ai_query('chat', 'constant')",
        "PREPARE p AS SELECT ai_query('chat', w) FROM one",
        "CREATE VIEW v AS SELECT ai_query('chat', 'constant') AS answer FROM words",
    ],
)
def test_planning_asks_nothing(con, server, statement):
    con.execute("CREATE TABLE one AS SELECT 'w' AS w; CREATE TABLE words AS SELECT 'w' || i AS w FROM range(3) t(i)")

    con.execute(statement).fetchall()

    assert server.requests == []


def test_a_relation_asks_only_when_it_is_read(con, server):
    relation = con.sql("SELECT ai_query('chat', 'constant') AS answer")

    assert relation.types == ["VARCHAR"]
    assert server.requests == []
    assert relation.fetchall() == [("echo: constant",)]
    assert prompts(server) == ["constant"]


def test_a_prepared_statement_asks_at_every_execution(con, server):
    con.execute("PREPARE p AS SELECT ai_query('chat', 'constant')")

    for _ in range(2):
        assert con.execute("EXECUTE p").fetchall() == [("echo: constant",)]

    assert prompts(server) == ["constant", "constant"]


def test_parameters_of_a_prepared_statement_are_prompts(con, server):
    found = con.execute("SELECT ai_query('chat', $1) FROM range(3)", ["hi"]).fetchall()

    assert found == [("echo: hi",)] * 3
    assert prompts(server) == ["hi"]


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("SELECT ai_query('chat', w), upper(ai_query('chat', w)) FROM words", 10),
        ("SELECT ai_query('chat', w) FROM words WHERE ai_query('chat', w) LIKE '%w%'", 10),
        ("SELECT a FROM (SELECT ai_query('chat', w) a FROM words) WHERE a LIKE '%w%' AND a LIKE '%e%'", 10),
        ("SELECT w, ai_query('chat', w) FROM words ORDER BY i DESC LIMIT 4", 4),
        ("SELECT ai_query('chat', w) FROM words LIMIT 3", 3),
        ("SELECT ai_query('chat', w) FROM words WHERE i < 2 AND ai_query('chat', w) LIKE '%w%'", 2),
        ("SELECT ai_query('chat', 'same') FROM words", 1),
        ("SELECT ai_query('chat', 'd' || i % 3) FROM words", 3),
        ("SELECT count(*) FROM (SELECT ai_query('chat', w) FROM words)", 0),
        ("SELECT ai_query('chat', a.w) FROM words a JOIN words b USING (i)", 10),
        ("SELECT max(ai_query('chat', w)) OVER (), ai_query('chat', w) FROM words", 10),
    ],
)
def test_a_request_is_sent_once_and_only_when_its_row_is_wanted(con, server, query, asked):
    con.execute("CREATE TABLE words AS SELECT i, 'w' || i AS w FROM range(10) t(i)")

    con.execute(query).fetchall()

    assert len(prompts(server)) == asked


@pytest.mark.parametrize(
    ("statements", "check"),
    [
        (["CREATE TABLE out AS SELECT ai_query('chat', w) a FROM words"], "FROM out"),
        (["CREATE TABLE out(a VARCHAR)", "INSERT INTO out SELECT ai_query('chat', w) FROM words"], "FROM out"),
        (["COPY (SELECT ai_query('chat', w) a FROM words) TO '{tmp}/out.parquet'"], "FROM '{tmp}/out.parquet'"),
        (["CREATE VIEW out AS SELECT ai_query('chat', w) a FROM words"], "FROM out"),
        (["CREATE TABLE out AS SELECT w AS a FROM words", "UPDATE out SET a = ai_query('chat', a)"], "FROM out"),
        (["BEGIN", "CREATE TABLE out AS SELECT ai_query('chat', w) a FROM words", "COMMIT"], "FROM out"),
        (
            ["CREATE TABLE out AS SELECT w, '' AS a FROM words",
             "MERGE INTO out USING words USING (w) WHEN MATCHED THEN UPDATE SET a = ai_query('chat', words.w)"],
            "SELECT a FROM out",
        ),
    ],
)  # fmt: skip
def test_statements_of_every_kind_ask_once_a_row(con, server, tmp_path, statements, check):
    con.execute("CREATE TABLE words AS SELECT 'w' || i AS w FROM range(2049) t(i)")

    for statement in statements:
        con.execute(statement.format(tmp=tmp_path))
    found = con.execute(check.format(tmp=tmp_path)).fetchall()

    assert sorted(found) == sorted((f"echo: w{i}",) for i in range(2049))
    assert len(server.requests) == 2049


def test_cursors_and_threads_ask_side_by_side(con, server):
    def ask(number):
        cursor = con.cursor()
        found[number] = cursor.execute(f"SELECT ai_query('chat', '{number}:' || i) FROM range(300) t(i)").fetchall()

    found = {}
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {number: [(f"echo: {number}:{i}",) for i in range(300)] for number in range(4)}
    assert len(server.requests) == 1200


def test_identical_requests_in_flight_share_one_call(con, server):
    server.delay = 0.3
    threads = [
        threading.Thread(target=lambda: con.cursor().execute("SELECT ai_query('chat', 'same')").fetchall())
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert prompts(server) == ["same"]


def test_the_temperature_is_zero_unless_it_is_said(con, server):
    con.execute(
        "SELECT ai_query('chat', 'a'), ai_query('chat', 'b', modelParameters => {temperature: 0.7, max_tokens: 5})"
    )
    con.fetchall()

    by_prompt = {body["messages"][0]["content"]: body for body in server.requests}
    assert by_prompt["a"] == {
        "model": "gpt-4o", "messages": [{"role": "user", "content": "a"}], "temperature": 0.0,
    }  # fmt: skip
    assert (by_prompt["b"]["temperature"], by_prompt["b"]["max_tokens"]) == (0.7, 5)


@pytest.mark.parametrize("rows", [1, 39, 40, 41, 100])
def test_embeddings_are_packed_forty_a_request(con, server, rows):
    from providers import vector

    found = con.execute(f"SELECT ai_query('embeddings', 't' || i) FROM range({rows}) t(i)").fetchall()

    assert found == [(vector(f"t{i}"),) for i in range(rows)]
    sizes = sorted(len(body["input"]) for body in server.requests)
    assert sizes == sorted([40] * (rows // 40) + ([rows % 40] if rows % 40 else []))


def test_an_embedding_is_a_list_of_floats(con):
    assert con.sql("SELECT ai_query('embeddings', 'x')").types == ["FLOAT[]"]
    assert con.sql("SELECT ai_query('embeddings', NULL)").fetchall() == [(None,)]


def test_nothing_of_ours_stays_in_a_database_file(workspace, tmp_path, server):
    import duckdb

    import aiquery

    file = tmp_path / "mine.db"
    with duckdb.connect(file) as con:
        aiquery.register(con, workspace=workspace)
        con.execute("CREATE SCHEMA other; USE other")
        assert con.execute("SELECT ai_query('chat', 'x')").fetchall() == [("echo: x",)]
        with con.cursor() as cursor:
            assert cursor.execute("SELECT ai_query('chat', 'y')").fetchall() == [("echo: y",)]
    with duckdb.connect(file) as con:
        names = "SELECT function_name FROM duckdb_functions() WHERE function_name LIKE '%ai%query%'"
        assert con.execute(names).fetchall() == []


def test_two_workspaces_may_serve_two_connections_of_one_database(workspace, con, server):
    import aiquery

    with aiquery.Workspace(":memory:") as other:
        second = con.cursor()
        aiquery.register(second, workspace=other)

        with pytest.raises(Exception, match="Endpoint with name 'chat' does not exist"):
            second.execute("SELECT ai_query('chat', 'x')").fetchall()
        assert con.execute("SELECT ai_query('chat', 'x')").fetchall() == [("echo: x",)]
        second.close()
