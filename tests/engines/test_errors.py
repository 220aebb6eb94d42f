"""Bad input: each gets a sentence that names the thing and the way out, and loses nothing."""

from __future__ import annotations

import re

import duckdb
import pytest
from providers import drop, html, no_choices, out_of_quota, status, too_many, truncate, wrong_count

BIND = [
    ("ai_query('nope', 'x')", r"REMOTE_FUNCTION_HTTP_FAILED_ERROR.*404.*Endpoint with name 'nope' does not exist\."),
    ("ai_query('', 'x')", r"AI_INVALID_ARGUMENT_VALUE_ERROR.*endpoint.*name of a serving endpoint"),
    ("ai_query(NULL, 'x')", r"AI_INVALID_ARGUMENT_VALUE_ERROR.*endpoint.*name of a serving endpoint"),
    ("ai_query('chat', 5)", r"AI_FUNCTION_UNSUPPORTED_REQUEST.*INTEGER"),
    ("ai_query('chat', {a: 1})", r"AI_FUNCTION_UNSUPPORTED_REQUEST.*STRUCT"),
    ("ai_query('chat', 'x', returnType => 'StringType')", r"AI_FUNCTION_UNSUPPORTED_RETURN_TYPE"),
    ("ai_query('chat', 'x', returnType => 'STRUCT<a:')", r"AI_FUNCTION_UNSUPPORTED_RETURN_TYPE"),
    ("ai_query('chat', 'x', failOnError => 'maybe')", r"'maybe'.*failOnError"),
    (
        "ai_query('chat', 'x', responseFormat => 'STRUCT<a: INT, b: INT>')",
        r"Only one field is allowed on the top-level",
    ),
    ("ai_query('chat', 'x', responseFormat => 'STRUCT<a: ARRAY<INT>>')", r"StructType.*ArrayType"),
    ("ai_query('chat', 'x', responseFormat => '{\"type\": \"object\"}')", r"AI_FUNCTION_UNSUPPORTED_RESPONSE_FORMAT"),
    ("ai_query('completions', 'x', responseFormat => '{\"type\": \"json_object\"}')", r"STRUCTURED_OUTPUT"),
    ("ai_query('chat', 'x', modelParameters => {messages: 'x'})", r"FOUND_RESERVED_PARAMETER_NAME"),
    ("ai_query('chat', 'x', modelParameters => {max_tokens: -1})", r"INVALID_NUMERIC_PARAMETER"),
    ("ai_query('chat', 'x', modelParameters => {max_tokens: 'many'})", r"INVALID_PARAMETER_DATA_TYPE"),
    ("ai_query('chat', 'x', modelParameters => {colour: 'red'})", r"UNSUPPORTED_MODEL_PARAMETER.*\"colour\""),
]
BIND_CUSTOM = [
    ("ai_query('weekly-forecast', {a: 1, b: 2}, modelParameters => {max_tokens: 1})", "UNSUPPORTED_ENDPOINT_TYPE"),
    ("ai_query('weekly-forecast', {a: 1})", r"\bb\b"),
    ("ai_query('weekly-forecast', {a: 1, b: 'x'})", r"\bb\b"),
    (
        "ai_query('custom-llama-chat', {messages: [{role: 'user', content: 'x'}]})",
        "AI_FUNCTION_MODEL_SCHEMA_PARSE_ERROR",
    ),
    ("ai_query('twins', 3.0, returnType => 'STRING')", "AI_FUNCTION_HTTP_PARSE_COLUMNS_ERROR"),
    ("ai_query('upper', 'x', returnType => 'INT')", "AI_FUNCTION_HTTP_PARSE_CAST_ERROR"),
]


@pytest.mark.parametrize(("call", "sentence"), BIND)
def test_a_wrong_call_fails_and_sends_nothing(con, server, call, sentence):
    with pytest.raises(duckdb.Error, match=f"(?s){sentence}"):
        con.execute(f"SELECT {call}").fetchall()

    assert server.requests == []
    assert con.execute("SELECT ai_query('chat', 'still here')").fetchall() == [("echo: still here",)]


@pytest.mark.parametrize(("call", "sentence"), BIND_CUSTOM)
def test_a_wrong_call_of_a_custom_model_fails(custom, call, sentence):
    with pytest.raises(duckdb.Error, match=f"(?s){sentence}"):
        custom.execute(f"SELECT {call}").fetchall()


@pytest.mark.parametrize(
    "call",
    [
        "ai_query(w, w)",
        "ai_query('chat', w, returnType => w)",
        "ai_query('chat', w, failOnError => w = 'x')",
        "ai_query('chat', w, modelParameters => {stop: w})",
    ],
)
def test_what_must_be_constant_may_not_be_a_column(con, server, call):
    with pytest.raises(duckdb.Error, match="must be a constant"):
        con.execute(f"SELECT {call} FROM (VALUES ('chat'), ('b')) t(w)").fetchall()

    assert server.requests == []


FAULTS = [
    (html, "AI_FUNCTION_(INVALID_HTTP_RESPONSE|JSON_PARSE_ERROR)"),
    (truncate, "AI_FUNCTION_(INVALID_HTTP_RESPONSE|JSON_PARSE_ERROR)"),
    (no_choices, "AI_FUNCTION_INVALID_HTTP_RESPONSE"),
    (status(400, "no such thing"), "no such thing"),
    (status(401, "bad key"), "4(01|03)"),
    (out_of_quota, "no credit"),
]


@pytest.mark.parametrize(("fault", "sentence"), FAULTS)
def test_an_unusable_answer_is_the_rows_own_error(con, server, fault, sentence):
    server.fault = fault
    server.fault_when = lambda body: body["messages"][0]["content"] == "n3"

    found = con.execute("SELECT i, ai_query('chat', 'n' || i, failOnError => false) AS r FROM range(6) t(i)").fetchall()

    for i, answer in found:
        if i == 3:
            assert answer["result"] is None
            assert re.search(sentence, answer["errorMessage"])
        else:
            assert answer == {"result": f"echo: n{i}", "errorMessage": None}
    with pytest.raises(duckdb.Error, match=sentence):
        con.execute("SELECT ai_query('chat', 'n' || i) FROM range(6) t(i)").fetchall()


@pytest.mark.parametrize("fault", [status(500), status(503), status(408), too_many(0.05), drop])
def test_passing_trouble_is_ridden_out(con, server, fault):
    server.script.extend([fault] * 3)

    found = con.execute("SELECT ai_query('chat', 'n' || i) FROM range(20) t(i)").fetchall()

    assert found == [(f"echo: n{i}",) for i in range(20)]


def test_the_wrong_number_of_embeddings_is_an_error_of_its_rows(con, server):
    server.fault = wrong_count

    found = con.execute("SELECT ai_query('embeddings', 't' || i, failOnError => false) FROM range(3) t(i)").fetchall()

    assert [answer["result"] for (answer,) in found] == [None] * 3
    assert all("AI_FUNCTION_INVALID_HTTP_RESPONSE" in answer["errorMessage"] for (answer,) in found)


def test_one_input_that_the_provider_refuses_costs_its_neighbours_nothing(con, server):
    server.max_chars = 50
    query = """SELECT i, ai_query('embeddings', CASE WHEN i = 17 THEN repeat('long', 100) ELSE 't' || i END,
                                  failOnError => false) FROM range(100) t(i)"""

    found = dict(con.execute(query).fetchall())

    assert found[17]["result"] is None
    assert found[17]["errorMessage"]
    assert all(found[i]["result"] is not None for i in range(100) if i != 17)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("42", "INT", 42),
        ("true", "BOOLEAN", True),
        ('{"a": 1, "b": ["x"]}', "STRUCT<a: INT, b: ARRAY<STRING>>", {"a": 1, "b": ["x"]}),
        ('{"a": 1, "b": ["x"]}', "a INT, b ARRAY<STRING>", {"a": 1, "b": ["x"]}),
        ("[1.5, 2]", "ARRAY<FLOAT>", [1.5, 2.0]),
        ('{"k": 1}', "MAP<STRING, INT>", {"k": 1}),
    ],
)
def test_an_answers_text_becomes_the_type_that_was_asked_for(con, server, text, kind, value):
    server.answer = lambda prompt: prompt

    assert con.execute(f"SELECT ai_query('chat', '{text}', returnType => '{kind}')").fetchall() == [(value,)]


def test_an_answer_that_does_not_fit_fails_its_row(con, server):
    server.answer = lambda prompt: prompt
    query = "SELECT ai_query('chat', w, returnType => 'INT', failOnError => false) FROM (VALUES ('7'), ('seven')) t(w)"

    (good,), (bad,) = con.execute(query).fetchall()

    assert good == {"result": 7, "errorMessage": None}
    assert bad["result"] is None
    assert "AI_FUNCTION_HTTP_PARSE_CAST_ERROR" in bad["errorMessage"]
    assert "seven" in bad["errorMessage"]


def test_huge_and_odd_texts_come_through(con):
    texts = ["x" * 1_000_000, "naïve 漢字 🦆", 'quote " and \\ backslash', "line\nbreak", "\x00"]
    con.execute("CREATE TABLE texts(i INT, t VARCHAR)")
    con.executemany("INSERT INTO texts VALUES (?, ?)", list(enumerate(texts)))

    found = con.execute("SELECT ai_query('chat', t) FROM texts ORDER BY i").fetchall()

    assert found == [(f"echo: {text}",) for text in texts]


def test_no_error_shows_the_key(con, server):
    from providers import KEY

    server.fault = status(401, f"Incorrect API key provided: {KEY}")

    with pytest.raises(duckdb.Error) as caught:
        con.execute("SELECT ai_query('chat', 'x')").fetchall()

    assert KEY not in str(caught.value)


def test_try_gives_null_for_the_rows_that_fail_and_keeps_what_was_answered(con, server):
    server.fault = status(400, "no")
    server.fault_when = lambda body: body["messages"][0]["content"] in {"n7", "n2060"}

    found = con.execute("SELECT i, TRY(ai_query('chat', 'n' || i)) FROM range(2100) t(i)").fetchall()

    assert found == [(i, None if i in {7, 2060} else f"echo: n{i}") for i in range(2100)]
    assert len(server.requests) <= 2100 + 2 * 256  # what was in flight when a row failed is asked again
