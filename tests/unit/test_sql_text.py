"""What the text of a statement tells, and what is cut out of it."""

import contextlib
import time

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.errors import InvalidRequestError
from aiquery_udfs import sql_text


def found_calls(text):
    return [text[start:end] for start, end in sql_text.calls(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SELECT ai_query('m', a), AI_Query ('m', b)", ["ai_query", "AI_Query"]),
        ("SELECT ai_query\n /* why */ -- ai_query(\n ('m', a)", ["ai_query"]),
        ("SELECT \"ai_query\"('m', a), `ai_query`('m', b)", ['"ai_query"', "`ai_query`"]),
        ("SELECT ai_query('m', ai_query('n', a))", ["ai_query", "ai_query"]),
        ("SELECT 'ai_query(', \"ai_query(\" FROM t", []),
        ("SELECT 'it''s ai_query(', e'\\'ai_query(', x'00'", []),
        ("SELECT $$ ai_query( $$, $a$ $$ ai_query( $a$", []),
        ("SELECT 1 /* ai_query( /* ai_query( */ ai_query( */", []),
        ("SELECT ai_query, ai_query_2(1), my_ai_query(1) FROM ai_query", []),
        ("SELECT main.ai_query(1), 'm'.ai_query('x')", ["ai_query", "ai_query"]),
        ("SELECT '😀é', ai_query('m', 'ü') AS ñ", ["ai_query"]),
        ("EXPLAIN ANALYZE SELECT ai_query('m', ';')", ["ai_query"]),
        ("SELECT ai_query((((", ["ai_query"]),
        ("", []),
    ],
)
def test_calls_are_found_by_their_name_alone(text, found):
    assert found_calls(text) == found


def test_calls_are_numbered_and_the_rest_stays():
    text = "SELECT 'ai_query(' || ai_query('m', \"ai_query\"('n', '😀')) -- ai_query(x)\n;"

    assert sql_text.numbered(text) == (
        "SELECT 'ai_query(' || __aiquery_site_1('m', __aiquery_site_2('n', '😀')) -- ai_query(x)\n;"
    )


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("-- why\nSELECT a -- b\n FROM t; -- c", "SELECT a -- b\n FROM t"),
        ("WITH a AS (SELECT 1) FROM a;;", "WITH a AS (SELECT 1) FROM a"),
        ("FROM t", "FROM t"),
        ("TABLE t", "TABLE t"),
        ("VALUES (1)", "VALUES (1)"),
        ("PIVOT t ON a USING sum(b)", "PIVOT t ON a USING sum(b)"),
        ("(SELECT 1) UNION (SELECT 2)", "(SELECT 1) UNION (SELECT 2)"),
        ("WITH insert AS (SELECT 1), b(x) AS MATERIALIZED (SELECT 2) FROM b", "WITH insert AS (SELECT 1), b(x) AS MATERIALIZED (SELECT 2) FROM b"),
        ("WITH RECURSIVE r USING KEY (a) AS (SELECT 1) FROM r", "WITH RECURSIVE r USING KEY (a) AS (SELECT 1) FROM r"),
        ("CREATE TABLE u AS SELECT a", "SELECT a"),
        ("CREATE OR REPLACE TEMP TABLE IF NOT EXISTS a.b.u AS (FROM t)", "(FROM t)"),
        ('CREATE TABLE "as" AS WITH a AS (SELECT 1) FROM a', "WITH a AS (SELECT 1) FROM a"),
        ("CREATE TABLE u AS SELECT a WITH DATA", "SELECT a"),
        ("CREATE TABLE u AS SELECT a WITH NO DATA", None),
        ("CREATE TABLE u (a INT)", None),
        ("CREATE VIEW v AS SELECT a", None),
        ("CREATE MACRO m(a) AS (SELECT a)", None),
        ("INSERT INTO u SELECT a", "SELECT a"),
        ("INSERT OR REPLACE INTO u (a, b) BY NAME (FROM t) RETURNING a", "(FROM t)"),
        ("INSERT INTO u VALUES (1) ON CONFLICT DO NOTHING", "VALUES (1)"),
        ("INSERT INTO u SELECT a FROM t JOIN s ON t.a = s.a", "SELECT a FROM t JOIN s ON t.a = s.a"),
        ("INSERT INTO u WITH a AS (SELECT 1) FROM a", "WITH a AS (SELECT 1) FROM a"),
        ("WITH a AS (SELECT 1) INSERT INTO u (x) FROM a", "WITH a AS (SELECT 1) FROM a"),
        ("WITH a AS (SELECT 1) INSERT INTO u WITH b AS (SELECT 2) FROM b", None),
        ("INSERT INTO u DEFAULT VALUES", None),
        ("COPY (SELECT (a) FROM t) TO 'x.parquet' (FORMAT parquet)", "SELECT (a) FROM t"),
        ("COPY t TO 'x.csv'", None),
        ("COPY t (a) FROM 'x.csv'", None),
        ("EXPLAIN SELECT a", None),
        ("DESCRIBE SELECT a", None),
        ("SET a = 1", None),
        ("PREPARE p AS SELECT a", None),
        ("EXECUTE p(1)", None),
        ("UPDATE t SET a = 1", None),
        ("DELETE FROM t WHERE a", None),
        ("WITH a AS (SELECT 1) UPDATE t SET a = 1", None),
        ("MERGE INTO t USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE", None),
        ("SELECT 1; SELECT 2", None),
        ("-- nothing", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_rows_of_a_statement_are_cut_out_of_it(text, query):
    assert sql_text.rows_of(text) == query


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("SELECT 1;SELECT ';' ; ", ["SELECT 1", "SELECT ';'"]),
        ("-- a;b\nSELECT 1; /* ; */", ["-- a;b\nSELECT 1"]),
        ("EXPLAIN SELECT $$;$$; CALL f(';')", ["EXPLAIN SELECT $$;$$", "CALL f(';')"]),
        ("SELECT (1; SELECT 2)", ["SELECT (1", "SELECT 2)"]),
        (";;", []),
        ("", []),
    ],
)
def test_statements_are_split_at_semicolons(text, parts):
    assert sql_text.statements(text) == parts


@pytest.mark.parametrize(
    "text",
    ["SELECT 1 LIMIT 1", "SELECT * FROM (FROM t limit 3)", "FROM t FETCH FIRST 3 ROWS ONLY", "FROM t USING SAMPLE 10%", "FROM t TABLESAMPLE 3"],
)  # fmt: skip
def test_a_query_that_may_stop_early_is_known(text):
    assert sql_text.has_limit(text)


@pytest.mark.parametrize("text", ["SELECT 'LIMIT 3'", 'SELECT "limit"', "SELECT 1 -- LIMIT 1", "SELECT limits FROM t"])
def test_a_query_without_limit_is_known(text):
    assert not sql_text.has_limit(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("SELECT Lower (a), s.\"Upper\"(b), 'random()', a.trim()", {"lower", "upper", "trim"}),
        (
            "SELECT CURRENT_DATE, current_timestamp, localtime",
            {"current_date", "get_current_timestamp", "get_current_time"},
        ),
        ("FROM t USING SAMPLE 3", {"random"}),
        ("SELECT now FROM t", set()),
    ],
)
def test_names_of_functions(text, names):
    assert sql_text.names(text) == names


A, B = "ai_query('m', a)", "ai_query('m', b)"
INDEPENDENT = [
    f"SELECT {A} FROM t",
    f"SELECT a FROM t WHERE {A} = 'x' LIMIT 3",
    f"SELECT CASE WHEN {A} THEN 1 END",
    f"SELECT {A}, {B} FROM t",
    f"SELECT {A} AS x, upper({B}) AS y FROM t WHERE a > 1 ORDER BY a LIMIT 3",
    f"SELECT CAST({A} AS INT), ({B}).r, {B}['r'], {B}::INT + 1, {{'a': {A}}} FROM t",
    f"SELECT max({A}), concat({A}, {B}) FROM t GROUP BY a",
    "SELECT \"ai_query\"('m', a), `ai_query`('m', `b c`) FROM t",
    f"FROM t SELECT {A}, {B}",
    f"CREATE TABLE u AS (SELECT {A}, {B} FROM t)",
    f"SELECT {A}, {B} FROM (SELECT DISTINCT a, b FROM t LIMIT 3)",
    "SELECT ai_query('m', (SELECT max(a) FROM t)), ai_query('m', list_transform(l, x -> x + 1)::TEXT) FROM t",
]
DEPENDENT = [
    f"SELECT ai_query('m', {A}) FROM t",
    f"SELECT {A} AS x, ai_query('m', x) FROM t",
    f"SELECT {A} AS x, {B} FROM t WHERE X = 'y'",
    f"SELECT {A} AS x, {B} FROM t ORDER BY x LIMIT 3",
    f"SELECT {A} AS x, {B}, x.y FROM t",
    f"SELECT {A}, {B} FROM t ORDER BY 1 LIMIT 3",
    f"SELECT {A}, {B} FROM t ORDER BY ALL LIMIT 3",
    f"SELECT {A}, {B} FROM t GROUP BY ALL",
    f"SELECT DISTINCT {A}, {B} FROM t LIMIT 3",
    f"SELECT {A} FROM t WHERE {B} = 'x'",
    f"SELECT {A} FROM t QUALIFY {B} = 'x'",
    f"SELECT a, max({A}) FROM t GROUP BY a HAVING max({B}) > 1",
    f"SELECT {A} FROM t JOIN u ON {B} = u.b",
    f"SELECT CASE WHEN c THEN {A} ELSE {B} END FROM t",
    f"SELECT coalesce({A}, {B}) FROM t",
    f"SELECT {A} AND {B} FROM t",
    f"SELECT if({A}, {B}, 1) FROM t",
    f"SELECT my_macro({A}, {B}) FROM t",
    f"SELECT try({A}), {B} FROM t",
    f"SELECT unnest({A}), {B} FROM t",
    f"SELECT {A} IN ({B}) FROM t",
    f"SELECT {A}, (SELECT {B}) FROM t",
    f"SELECT {A} FROM t UNION ALL SELECT {B} FROM t",
    f"WITH c AS (SELECT {A} AS x FROM t) SELECT {B} FROM c",
    "SELECT list_reduce(l, (x, y) -> ai_query('m', x || y)) FROM t",
    "SELECT [ai_query('m', x) for x in l] FROM t",
    "WITH RECURSIVE r AS (SELECT 'a' AS a UNION ALL SELECT ai_query('m', a) FROM r) FROM r",
    f"FROM t |> SELECT {A}",
    "SELECT my_macro_around_ai_query(a) FROM t",
    f"UPDATE t SET a = {A}",
    f"SELECT {A} FROM t WHERE",
    f"SELECT {A}, {B}; SELECT {A}",
    "SELECT ai_query((((",
    "SELECT " + "(" * 3000 + A + ")" * 3000,
]


@pytest.mark.parametrize("text", INDEPENDENT)
def test_calls_that_surely_do_not_depend_on_each_other(text):
    assert sql_text.independent(text)


@pytest.mark.parametrize("text", DEPENDENT)
def test_calls_that_may_depend_on_each_other(text):
    assert not sql_text.independent(text)


@pytest.mark.parametrize(
    "text",
    [
        f"SELECT {A} FROM t LIMIT 3",
        f"SELECT CASE WHEN {A} THEN {B} END AS x FROM t ORDER BY x LIMIT 3",
        f"SELECT ai_query('m', {A}) FROM t WHERE a > 1 LIMIT 3",
    ],
)
def test_answers_that_only_add_columns(text):
    assert sql_text.projected(text)


@pytest.mark.parametrize(
    "text",
    [
        f"SELECT a FROM t WHERE {A} = 'x' LIMIT 3",
        f"SELECT {A} AS x FROM t WHERE x = 'y' LIMIT 3",
        f"SELECT {A} AS x FROM t QUALIFY row_number() OVER (PARTITION BY x) = 1 LIMIT 3",
        f"SELECT DISTINCT {A} FROM t LIMIT 3",
        f"SELECT unnest({A}) FROM t LIMIT 3",
        f"SELECT x FROM (SELECT {A} AS x FROM t) WHERE x = 'y' LIMIT 3",
        f"SELECT {A} FROM t UNION SELECT {B} FROM t LIMIT 3",
        f"SELECT (SELECT {A} LIMIT 1) FROM t",
        "SELECT a FROM t LIMIT 3",
    ],
)
def test_answers_that_may_decide_which_rows_there_are(text):
    assert not sql_text.projected(text)


E_A, E_B = "ai_error('m', a)", "ai_error('m', b)"
WIDER = [
    (f"SELECT {A} AS r FROM t", f"SELECT {A} AS r, {E_A} AS r_error FROM t"),
    (f"SELECT {A} AS r, b -- c\nFROM t;", f"SELECT {A} AS r, b, {E_A} AS r_error -- c\nFROM t;"),
    (f"SELECT {A}, {B} FROM t", f"SELECT {A}, {B}, {E_A} AS ai_query_error, {E_B} AS ai_query_error_2 FROM t"),
    (f"SELECT {A} AS a, b AS A_ERROR FROM t", f"SELECT {A} AS a, b AS A_ERROR, {E_A} AS a_error_2 FROM t"),
    (f'SELECT {A} AS "my r", FROM t', f'SELECT {A} AS "my r", {E_A} AS "my r_error" FROM t'),
    (f"SELECT r: {A}::INT, {B} IS DISTINCT FROM 'x' AS s FROM t",
     f"SELECT r: {A}::INT, {B} IS DISTINCT FROM 'x' AS s, {E_A} AS r_error, {E_B} AS s_error FROM t"),
    (f'SELECT {A} AS "limit", 1 AS from FROM t', f'SELECT {A} AS "limit", 1 AS from, {E_A} AS limit_error FROM t'),
    (f"FROM t SELECT {A} AS r WHERE a > ''", f"FROM t SELECT {A} AS r, {E_A} AS r_error WHERE a > ''"),
    (f"SELECT coalesce({A}, 'none') AS r FROM t", f"SELECT coalesce({A}, 'none') AS r, {E_A} AS r_error FROM t"),
    (f"SELECT ai_query('n', {A}) AS r FROM t", f"SELECT ai_query('n', {A}) AS r, ai_error('n', {A}) AS r_error, {E_A} AS r_error_2 FROM t"),
    (f"SELECT * FROM (SELECT a, {A} AS r FROM t) WHERE r > ''", f"SELECT * FROM (SELECT a, {A} AS r, {E_A} AS r_error FROM t) WHERE r > ''"),
    (f"WITH c AS (SELECT {A} AS r FROM t LIMIT 3) SELECT r FROM c", f"WITH c AS (SELECT {A} AS r, {E_A} AS r_error FROM t LIMIT 3) SELECT r FROM c"),
    (f"SELECT {A} AS r FROM (FROM t UNION ALL FROM t)", f"SELECT {A} AS r, {E_A} AS r_error FROM (FROM t UNION ALL FROM t)"),
    (f"CREATE TABLE u AS (SELECT {A} AS r FROM t)", f"CREATE TABLE u AS (SELECT {A} AS r, {E_A} AS r_error FROM t)"),
    ("SELECT ai_query('m', /* ( */ a, returnType := 'INT') AS r FROM t",
     "SELECT ai_query('m', /* ( */ a, returnType := 'INT') AS r, ai_error('m', /* ( */ a, returnType := 'INT') AS r_error FROM t"),
    (f"SELECT {A} AS r, ai_query('m', b, failOnError => false) AS s FROM t",
     f"SELECT {A} AS r, ai_query('m', b, failOnError => false) AS s, {E_A} AS r_error FROM t"),
    (f"SELECT {A} AS é FROM t", f"SELECT {A} AS é, {E_A} AS é_error FROM t"),
]  # fmt: skip
AS_WIDE = [
    "SELECT ai_query('m', a, failonerror := FALSE) AS r FROM t",
    "SELECT ai_query('m', a, 'INT', false) AS r FROM t",
    f"SELECT CASE WHEN a > '' THEN {A} END AS r FROM t",
    f"SELECT coalesce(a, {A}) AS r FROM t",
    f"SELECT max({A}) AS r FROM t",
    f"SELECT kurtosis_pop({A}) AS r FROM t",
    f"SELECT DISTINCT {A} AS r FROM t",
    f"SELECT {A} AS r FROM t GROUP BY ALL",
    f"SELECT {A} AS r FROM t UNION ALL SELECT b FROM t",
    f"SELECT DISTINCT * FROM (SELECT {A} AS r FROM t)",
    f"WITH c AS (SELECT {A} AS r FROM t) FROM c UNION ALL FROM c",
    f"WITH c AS (SELECT {A} AS r FROM t) SELECT to_json(c) FROM c",
    f"SELECT struct_pack(*COLUMNS(*)) FROM (SELECT {A} AS r FROM t)",
    f"SELECT a IN (SELECT {A} FROM t) FROM t",
    f"SELECT (SELECT {A}) FROM t",
    f"SELECT a FROM t WHERE {A} > ''",
    "SELECT ai_query('m', a || random()) AS r FROM t",
    "SELECT ai_query('m', ?) AS r FROM t",
    "SELECT 'm'.ai_query(a) AS r FROM t",
    f"INSERT INTO u SELECT {A} FROM t",
    f"WITH c AS (FROM t) INSERT INTO u SELECT {A} FROM c",
    f"CREATE VIEW v AS SELECT {A} AS r FROM t",
    "SELECT ai_query('m', a",
    "SELECT 'ai_query('",
]


@pytest.mark.parametrize(("text", "wider"), WIDER)
def test_errors_stand_at_the_end_of_the_list(text, wider):
    assert sql_text.with_errors(text) == wider


@pytest.mark.parametrize("text", AS_WIDE)
def test_a_list_that_takes_no_error_stays_as_it_is(text):
    assert sql_text.with_errors(text) == text


@pytest.fixture(scope="module")
def duck():
    """A DuckDB whose `ai_query` gives the request back, and whose `ai_error` never has anything to say."""
    with duckdb.connect() as con:
        con.execute("CREATE TABLE t AS SELECT 'p' AS a, 'q' AS b, '1' AS c")
        parameters = "endpoint, request, returnType := NULL, failOnError := true"
        con.execute(f"CREATE MACRO ai_query({parameters}) AS request")
        con.execute(f"CREATE MACRO ai_error({parameters}) AS CASE WHEN request IS NULL THEN 'no request' END")
        yield con


@pytest.mark.parametrize(
    ("text", "wider"), [pair for pair in WIDER if "::INT" not in pair[0] and "CREATE" not in pair[0]]
)
def test_errors_add_columns_and_change_nothing_else(duck, text, wider):
    plain, added = duck.sql(text), duck.sql(wider)
    names = [name for name in added.columns if name not in plain.columns]

    assert all("_error" in name for name in names)
    assert added.project(", ".join(f'"{name}"' for name in plain.columns)).fetchall() == plain.fetchall()


UNENDED = ["SELECT ai_query('a", 'SELECT "a', "SELECT $$ a", "SELECT 1 /* a", "SELECT `a"]


@pytest.mark.parametrize("text", UNENDED)
@pytest.mark.parametrize(
    "read", [sql_text.calls, sql_text.rows_of, sql_text.names, sql_text.has_limit, sql_text.statements]
)
def test_text_that_does_not_end_is_refused(text, read):
    with pytest.raises(InvalidRequestError, match="does not end"):
        read(text)


@pytest.mark.parametrize("text", UNENDED)
def test_nothing_is_certain_of_text_that_does_not_end(text):
    assert not sql_text.independent(text)
    assert not sql_text.projected(text)
    assert sql_text.with_errors(text) == text


WORDS = [
    *(
        "SELECT",
        "WITH",
        "FROM",
        "INSERT INTO",
        "CREATE TABLE",
        "COPY",
        "AS",
        "ai_query",
        "ai_query('m', a)",
        "LIMIT",
        "t",
    ),
    *("(", ")", "[", "]", "{", "}", ",", ";", "'", '"', "$$", "--", "/*", "*/", "*", "\n", "\\", "é", "."),
]


@given(st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(InvalidRequestError):
        parts = sql_text.statements(text)
        assert all(part in text for part in parts)
        assert sql_text.numbered(text).count("__aiquery_site_") == len(sql_text.calls(text))
        rows = sql_text.rows_of(text)
        assert rows is None or sql_text.rows_of(rows) == rows
    assert sql_text.independent(text) in (True, False)
    assert sql_text.projected(text) in (True, False)
    assert len(sql_text.with_errors(text)) >= len(text)


@given(st.text(max_size=40), st.text(max_size=40))
def test_what_is_quoted_is_never_a_call(comment, string):
    quoted = string.replace("'", "''").replace("\0", "")
    text = f"SELECT ai_query('m', '{quoted} ai_query(') /* {comment.replace('*', '').replace('/', '')} ai_query( */"

    assert sql_text.calls(text) == [sql_text.Span(7, 15)]


def test_long_texts_are_read_in_seconds():
    text = "SELECT " + ", ".join(f"ai_query('m', c{number}) AS r{number}" for number in range(3500)) + " FROM t"
    started = time.perf_counter()

    assert len(text) > 100_000
    assert sql_text.independent(text)
    assert sql_text.with_errors(text).count("ai_error") == 3500
    assert time.perf_counter() - started < 20
