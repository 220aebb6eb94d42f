"""Databricks' text to DuckDB's."""

import pytest

from aiquery_serving.errors import InvalidRequestError
from aiquery_udfs.dialect import to_duckdb


@pytest.mark.parametrize(
    ("databricks", "duckdb"),
    [
        ('SELECT ai_query("m", `my col`)', "SELECT ai_query('m', \"my col\")"),
        (
            "SELECT AI_QUERY('m', q, failOnError => false).result",
            "SELECT AI_QUERY('m', q, failOnError => FALSE).result",
        ),
        (
            "SELECT ai_query('m', q, returnType => 'STRUCT<a: INT>')",
            "SELECT ai_query('m', q, returnType => 'STRUCT<a: INT>')",
        ),
        ("SELECT ai_query('m', q, 'returnType', 'STRING')", "SELECT ai_query('m', q, 'returnType', 'STRING')"),
        ("SELECT named_struct('a', 1, 'b', array(x))", "SELECT {'a': 1, 'b': [x]}"),
        ("SELECT struct(a, t.b, c AS d) FROM t", "SELECT {'a': a, 'b': t.b, 'd': c} FROM t"),
        ("SELECT struct(*) FROM t", "SELECT struct_pack(*COLUMNS(*)) FROM t"),
        ("SELECT struct(t.*, 1 AS one) FROM t", "SELECT struct_pack(*COLUMNS(t.*), one := 1) FROM t"),
        ("SELECT CAST(x AS STRUCT<a: INT, b: ARRAY<STRING>>)", "SELECT CAST(x AS STRUCT(a INT, b TEXT[]))"),
        ("SELECT * EXCEPT(a) FROM t", "SELECT * EXCLUDE (a) FROM t"),
        ("SELECT concat(a, b), a || b", "SELECT a || b, a || b"),
        ("SELECT x:a.b::int", "SELECT CAST(x ->> '$.a.b' AS INT)"),
        ("SELECT a FROM t LATERAL VIEW explode(l) u AS a", "SELECT a FROM t CROSS JOIN UNNEST(l) AS u(a)"),
        ("SELECT x FROM main.shop.t", "SELECT x FROM main.shop.t"),
        ("SELECT `end`, offset FROM t", 'SELECT "end", "offset" FROM t'),
        ("CREATE OR REPLACE TABLE o AS (SELECT 1 AS a)", "CREATE OR REPLACE TABLE o AS (SELECT 1 AS a)"),
        ("CREATE TABLE o (a STRING COMMENT 'x') USING DELTA", "CREATE TABLE o (a TEXT)"),
        (
            "CREATE OR REPLACE VIEW v (a COMMENT 'x') COMMENT 'y' AS SELECT 1",
            "CREATE OR REPLACE VIEW v (a) AS SELECT 1",
        ),
        ("CREATE MATERIALIZED VIEW v TBLPROPERTIES('a'='b') AS SELECT 1 AS a", "CREATE TABLE v AS SELECT 1 AS a"),
        ("CREATE OR REFRESH MATERIALIZED VIEW v AS SELECT 1 AS a", "CREATE OR REPLACE TABLE v AS SELECT 1 AS a"),
        (
            "CREATE OR REFRESH STREAMING TABLE v AS SELECT a FROM STREAM t",
            "CREATE OR REPLACE TABLE v AS SELECT a FROM t",
        ),
        (
            "CREATE OR REPLACE FUNCTION d.f(a STRING, b INT DEFAULT 3) RETURNS STRING COMMENT 'x' RETURN a",
            "CREATE OR REPLACE MACRO d.f(a, b := 3) AS CAST(CAST(COALESCE(a, NULL) AS TEXT) AS TEXT)",
        ),
        ("CREATE TEMPORARY FUNCTION f() RETURN SELECT 1", "CREATE TEMP MACRO f() AS (SELECT 1)"),
        ("CREATE FUNCTION IF NOT EXISTS f() RETURN 1", "CREATE MACRO IF NOT EXISTS f() AS 1"),
        ("CREATE FUNCTION f() RETURNS TABLE(a INT) RETURN SELECT 1 AS a", "CREATE MACRO f() AS TABLE SELECT 1 AS a"),
        ("GRANT EXECUTE ON FUNCTION f TO ds", "SELECT 'DuckDB has no users: permissions have no effect here.' AS note"),
        ("USE CATALOG main", "USE main"),
        ("SHOW TABLES", "SHOW TABLES"),
        ('EXPLAIN EXTENDED SELECT "a;b"', "EXPLAIN SELECT 'a;b'"),
        ('SELECT 1; ;\nSELECT ";" -- end', "SELECT 1;\nSELECT ';' /* end */"),
        ("SELECT a FROM t WHERE b = :least", "SELECT a FROM t WHERE b = $least"),
        ("SELECT '😀é' AS `ü`", "SELECT '😀é' AS \"ü\""),
        ("", ""),
    ],
)
def test_databricks_text_becomes_duckdbs(databricks, duckdb):
    assert to_duckdb(databricks) == duckdb


@pytest.mark.parametrize(
    ("schema", "structure"),
    [
        ("a STRING, b DOUBLE", r'"STRUCT(\"a\" VARCHAR, \"b\" DOUBLE)"'),
        ("STRUCT<a: ARRAY<STRUCT<`b c`: INT>>>", r'"STRUCT(\"a\" STRUCT(\"b c\" INTEGER)[])"'),
        ("ARRAY<STRING>", '"VARCHAR[]"'),
        ("MAP<STRING, INT>", '"MAP(VARCHAR, INTEGER)"'),
    ],
)
def test_a_schema_becomes_a_structure(schema, structure):
    text = to_duckdb(f"SELECT from_json(x, '{schema}')")

    assert text == f"SELECT from_json(TRY_CAST(x AS JSON), '{structure}')"


def test_duckdbs_own_text_stays_as_it_is():
    text = 'FROM t  SELECT "a" -- \'not closed'

    assert to_duckdb(text, dialect="duckdb") == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("SELECT a\nFROM t WHERE", "line 2, column 12, near 'WHERE'"),
        ("SELECT (a", "line 1, column 9"),
        ("SELECT 'a", "does not end"),
        ("SELECT from_json(x, 'a INT)')", "there is ')' after the end of the type"),
        ("SELECT from_json(x, schema_of(y))", "a schema as text"),
        ("SELECT from_json(x, 'a INT', map('mode', 'FAILFAST'))", "takes two arguments"),
        ("SELECT * FROM READ_FILES('/x', format => 'csv')", "read_csv"),
        ("SELECT * FROM READ_FILES('/x')", "format => 'binaryFile'"),
        ("CREATE FUNCTION f(x INT) RETURNS INT LANGUAGE PYTHON AS $$ return x $$", "f is not written in SQL"),
        ("INSERT OVERWRITE t SELECT 1", "TRUNCATE"),
        ("SELECT " + "(" * 3000 + "1" + ")" * 3000, "nested too deep"),
    ],
)
def test_what_cannot_be_written_is_refused_with_the_place_and_a_way_out(text, reason):
    with pytest.raises(InvalidRequestError) as refused:
        to_duckdb(text)

    assert reason in str(refused.value)


def test_an_unknown_dialect_names_the_known():
    with pytest.raises(InvalidRequestError, match=r"'spark'\. Choose one of databricks, duckdb"):
        to_duckdb("SELECT 1", dialect="spark")


def test_statements_known_by_name_only_are_not_logged(caplog):
    to_duckdb("SHOW TABLES")

    assert not caplog.records
