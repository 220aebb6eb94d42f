"""`aiquery query` and `aiquery sql`."""

from __future__ import annotations

import csv
import io
import json

import pytest

HELLO = json.dumps({"messages": [{"role": "user", "content": "Hi"}]})


def said(result):
    return json.loads(result.stdout)["choices"][0]["message"]["content"]


def test_a_request_is_given_in_place_in_a_file_or_on_standard_input(cli, gpt, tmp_path):
    (tmp_path / "request.json").write_text(HELLO)

    for given, stdin in ((HELLO, None), (f"@{tmp_path}/request.json", None), ("-", HELLO)):
        assert said(cli("query", "gpt", "--input", given, given=stdin)) == "echo: Hi"


def test_a_served_entity_can_be_named(cli, gpt):
    assert said(cli("query", "gpt", "-i", HELLO, "--served-entity", "only")) == "echo: Hi"
    cli("query", "gpt", "-i", HELLO, "--served-entity", "nobody", code=3)


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        ("Hi", 2, "this is not JSON"),
        ("[1]", 2, "this is no JSON object"),
        ("@nowhere.json", 3, "'nowhere.json': No such file or directory."),
        ("{}", 1, "refuses the request"),
    ],
)
def test_a_bad_request_says_what_is_wrong(cli, gpt, given, code, told):
    assert told in cli("query", "gpt", "-i", given, code=code).stderr


def test_an_unknown_endpoint_is_not_found(cli):
    assert cli("query", "nope", "-i", "{}", code=3).stderr == "Error: Endpoint with name 'nope' does not exist.\n"


def test_rows_come_as_a_table_as_json_lines_and_as_csv(cli, gpt):
    statement = "SELECT i, ai_query('gpt', 'n' || i) AS answer FROM range(3) t(i)"

    table = cli("sql", statement).stdout.splitlines()
    lines = [json.loads(line) for line in cli("sql", statement, "--output", "json").stdout.splitlines()]
    rows = list(csv.reader(io.StringIO(cli("sql", statement, "--output", "csv").stdout)))

    assert [line.split() for line in table[2:]] == [["0", "echo:", "n0"], ["1", "echo:", "n1"], ["2", "echo:", "n2"]]
    assert lines == [{"i": i, "answer": f"echo: n{i}"} for i in range(3)]
    assert rows == [["i", "answer"], *([str(i), f"echo: n{i}"] for i in range(3))]


def test_every_type_has_a_json_of_its_own(cli):
    statement = """SELECT 1.5 AS d, 2::HUGEINT * 9223372036854775807 AS h, 'nan'::DOUBLE AS n, 'ab'::BLOB AS b,
        {'x': [1, NULL]} AS s, MAP {1: 'one'} AS m, DATE '2024-01-31' AS t, INTERVAL 1 DAY AS i, NULL AS z, 1 AS d"""
    assert json.loads(cli("sql", statement, "--output", "json").stdout) == {
        "d": 1.5, "h": 18446744073709551614, "n": None, "b": "YWI=", "s": {"x": [1, None]}, "m": {"1": "one"},
        "t": "2024-01-31", "i": "1 day, 0:00:00", "z": None, "d_1": 1,
    }  # fmt: skip


def test_a_long_table_is_cut_and_says_so_while_programs_get_all(cli):
    result = cli("sql", "FROM range(300)", "--max-rows", 10)
    assert len(result.stdout.splitlines()) == 12
    assert "first 10 rows" in result.stderr
    assert len(cli("sql", "FROM range(300)", "--output", "csv").stdout.splitlines()) == 301
    assert cli("sql", "FROM range(300)", "--max-rows", 300).stderr == ""


def test_quiet_says_nothing_beside_the_result(cli):
    assert cli("sql", "FROM range(300)", "--max-rows", 10, "--quiet").stderr == ""


def test_a_database_file_is_kept(cli, tmp_path):
    db = ("--db", tmp_path / "my.db")
    assert cli("sql", "CREATE TABLE t (a INT)", *db, "--output", "csv").stdout == ""
    cli("sql", "INSERT INTO t VALUES (1), (2)", *db)
    assert cli("sql", "FROM t", *db, "--output", "csv").stdout == "a\n1\n2\n"
    assert "read-only mode" in cli("sql", "INSERT INTO t VALUES (3)", *db, "--read-only", code=1).stderr


def test_a_statement_is_given_in_a_file_or_on_standard_input(cli, tmp_path):
    (tmp_path / "q.sql").write_text("SELECT 1 AS a;\nSELECT 2 AS b;\n")
    assert cli("sql", f"@{tmp_path}/q.sql", "--output", "csv").stdout == "b\n2\n"
    assert cli("sql", "-", "--output", "csv", given="SELECT 3 AS c").stdout == "c\n3\n"
    assert "there is no statement" in cli("sql", " ", code=2).stderr


def test_variables_of_the_program_are_no_tables(cli):
    assert "Table with name text does not exist" in cli("sql", "FROM text", code=1).stderr


def test_reuse_asks_the_provider_once(cli, gpt):
    for _ in range(2):
        cli("sql", "SELECT ai_query('gpt', 'once')", "--cache", "reuse")
    assert len(gpt.requests) == 1
    cli("sql", "SELECT ai_query('gpt', 'once')")
    assert len(gpt.requests) == 2


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("SELEC 1", 'Error: Parser Error: syntax error at or near "SELEC"'),
        ("SELECT ai_query('nope', 'x')", "Error: [REMOTE_FUNCTION_HTTP_FAILED_ERROR] The remote HTTP request failed"),
    ],
)
def test_an_error_is_told_without_pythons_words(cli, statement, told):
    result = cli("sql", statement, code=1)
    assert result.stderr.startswith(told)
    assert "Traceback" not in result.stderr
    assert "UDF" not in result.stderr
