"""The official snippets of contract A.12, as they are written there, through the dialect."""

from __future__ import annotations

import json

import duckdb
import pytest
from engine_endpoints import external
from providers import vector

import aiquery
from aiquery_udfs.dialect import to_duckdb

LLAMA = "databricks-meta-llama-3-3-70b-instruct"
HOSTED = {
    LLAMA: "llm/v1/chat",
    "databricks-gpt-oss-20b": "llm/v1/chat",
    "databricks-llama-4-maverick": "llm/v1/chat",
    "ep": "llm/v1/chat",
    "qa_bot": "llm/v1/chat",
    "databricks-gte-large-en": "llm/v1/embeddings",
}
TABLES = """
ATTACH ':memory:' AS samples;
CREATE SCHEMA samples.nyctaxi;
CREATE TABLE samples.nyctaxi.trips AS SELECT 10001 + i AS pickup_zip FROM range(20) t(i);
CREATE TABLE articles AS SELECT i AS id, 'text ' || i AS text, 'text ' || i AS abstract FROM range(3) t(i);
CREATE TABLE inbox_messages AS
    SELECT '2026-01-01' AS timestamp, '555' AS from_number, unnest(['you win a prize', 'see you at six']) AS text;
CREATE TABLE retail_revenue AS SELECT 1.0::DOUBLE AS a, 2.0::DOUBLE AS b, 'north' AS region;
"""


@pytest.fixture
def world(custom_workspace, server):
    """The models and tables that the snippets name."""
    for name, task in HOSTED.items():
        custom_workspace.create_endpoint(name, {"served_entities": [external(server, task, f"{name}-model")]})
    con = duckdb.connect()
    aiquery.register(con, workspace=custom_workspace)
    con.execute(TABLES)
    yield con
    con.close()
    for name in HOSTED:
        custom_workspace.delete_endpoint(name)


@pytest.fixture
def run(world):
    return lambda text: world.execute(to_duckdb(text)).fetchall()


def test_1_a_constant_prompt(run):
    query = f"SELECT ai_query('{LLAMA}', 'Describe Databricks SQL in 30 words.') AS summary"

    assert run(query) == [("echo: Describe Databricks SQL in 30 words.",)]


def test_2_a_prompt_from_a_column(run):
    query = "SELECT *, ai_query('ep', 'Name the US state for ZIP: ' || pickup_zip) FROM samples.nyctaxi.trips LIMIT 10"

    assert run(query)[0] == (10001, "echo: Name the US state for ZIP: 10001")


def test_3_a_function_and_its_permission(run):
    found = run(r"""
        CREATE FUNCTION correct_grammar(text STRING) RETURNS STRING
            RETURN ai_query('ep', CONCAT('Correct this to standard English:\n', text));
        GRANT EXECUTE ON correct_grammar TO ds;
        SELECT * EXCEPT(text, abstract), correct_grammar(text) AS text FROM articles ORDER BY id""")

    assert found[0] == (0, "echo: Correct this to standard English:\ntext 0")


def test_3_a_function_is_there_for_cursors_too(world, run):
    run("CREATE FUNCTION ask(text STRING) RETURNS STRING RETURN ai_query('ep', text)")

    assert world.cursor().execute("SELECT ask('again'), ask(7)").fetchall() == [("echo: again", "echo: 7")]


def test_3_a_function_has_defaults_and_types(run):
    run("CREATE OR REPLACE FUNCTION part(x INT, n INT DEFAULT '2') RETURNS INT RETURN x + n")

    assert run("SELECT part('1'), part('1', n => 4)") == [(3, 5)]


def test_3_a_function_may_take_any_argument_of_ai_query(run, server):
    run("""CREATE FUNCTION ask(model STRING, text STRING, most INT) RETURNS STRING
           RETURN ai_query(model, text, modelParameters => named_struct('max_tokens', most))""")

    assert run("SELECT ask('ep', text, 5), ask('ep', NULL, 5) FROM articles WHERE id = 0") == [("echo: text 0", None)]
    assert [body["max_tokens"] for body in server.requests] == [5]


def test_3_a_function_may_give_rows(run):
    run("""CREATE TEMPORARY FUNCTION asked(least INT) RETURNS TABLE(id INT, answer STRING)
           RETURN SELECT id, ai_query('ep', text) AS answer FROM articles WHERE id >= least""")

    assert run("SELECT * FROM asked(2)") == [(2, "echo: text 2")]


def test_4_a_materialized_view_asks_once(run, server):
    run("""CREATE MATERIALIZED VIEW answers TBLPROPERTIES('pipelines.channel'='PREVIEW')
           AS SELECT ai_query("ep", text) AS response FROM articles LIMIT 10""")

    assert run("SELECT response FROM answers") == run("SELECT response FROM answers")
    assert len(server.requests) == 3


def test_5_parameters(run, server):
    run("""SELECT ai_query("ep", "Summarize: " || text,
                           modelParameters => named_struct('max_tokens',100,'temperature',0.7)) FROM articles""")

    assert {(body["max_tokens"], body["temperature"]) for body in server.requests} == {(100, 0.7)}


def test_6_errors_beside_answers(run):
    query = """SELECT ai_query("ep", "Summarize: " || text, failOnError => false) FROM articles WHERE id = 1"""

    assert run(query) == [({"result": "echo: Summarize: text 1", "errorMessage": None},)]


PAPER = "STRUCT<title:STRING, authors:ARRAY<STRING>, abstract:STRING, keywords:ARRAY<STRING>>"


def test_7_structure_as_a_type(run, server):
    query = f"""SELECT ai_query("databricks-gpt-oss-20b", "Extract…: " || abstract,
                responseFormat => 'STRUCT<research_paper_extraction:{PAPER}>') FROM articles LIMIT 1"""

    ((answer,),) = run(query)

    assert set(json.loads(answer)) == {"title", "authors", "abstract", "keywords"}
    assert server.requests[0]["response_format"]["json_schema"]["name"] == "research_paper_extraction"


def test_8_structure_as_a_json_schema(run, server):
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    paper = {"name": "research_paper_extraction", "schema": schema, "strict": True}
    envelope = {"type": "json_schema", "json_schema": paper}

    run(f"""SELECT ai_query("databricks-gpt-oss-20b", "Extract…: " || abstract,
            responseFormat => '{json.dumps(envelope)}') FROM articles LIMIT 1""")

    assert server.requests[0]["response_format"] == envelope


@pytest.mark.parametrize("path", ["{}", "{}/", "{}/*.png", "{}/cat.png"])
def test_9_images(run, server, tmp_path, path):
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 16)

    found = run(f"""SELECT path, ai_query('databricks-llama-4-maverick', 'what is this image about?', files => content)
                    FROM READ_FILES('{path.format(tmp_path)}', format => 'binaryFile')""")

    assert [(name.endswith("cat.png"), answer) for name, answer in found] == [(True, "echo: what is this image about?")]
    picture = server.requests[0]["messages"][0]["content"][1]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,iVBORw0KGgo")


def test_9_files_have_the_columns_of_databricks(world, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    files = world.sql(to_duckdb(f"SELECT * FROM READ_FILES('{tmp_path}', format => 'binaryFile')"))

    assert files.columns == ["path", "modificationTime", "length", "content"]
    assert files.project("length, content").fetchall() == [(3, b"abc")]


def test_10_a_custom_classifier(run):
    found = run("""SELECT text, ai_query(endpoint => 'spam-classification-endpoint', request => named_struct(
                       'timestamp', timestamp, 'sender', from_number, 'text', text), returnType => 'BOOLEAN') AS is_spam
                   FROM inbox_messages LIMIT 10""")

    assert found == [("you win a prize", True), ("see you at six", False)]


@pytest.mark.parametrize("request_", ["struct(*)", "struct(retail_revenue.*)", "struct(a, b, region)"])
def test_11_a_custom_forecast_over_whole_rows(run, request_):
    query = "SELECT ai_query('weekly-forecast', request => {}, returnType => 'FLOAT') AS revenue FROM retail_revenue"

    assert run(query.format(request_)) == [(21.0,)]


def test_12_a_custom_language_model(run):
    found = run("""SELECT ai_query('custom-llama-chat', request => named_struct('messages',
                       array(named_struct('role','user','content','What is ML?'))),
                       returnType => 'STRUCT<candidates:ARRAY<STRING>>')""")

    assert found == [({"candidates": ["re: What is ML?"]},)]


@pytest.mark.parametrize(
    "call",
    [
        "ai_query('databricks-gte-large-en', text)",
        "ai_query('databricks-gte-large-en', text, returnType => 'ARRAY<FLOAT>')",
        "CAST(ai_query('databricks-gte-large-en', text) AS ARRAY<FLOAT>)",
    ],
)
def test_13_embeddings(run, call):
    assert run(f"SELECT text, {call} AS embedding FROM articles WHERE id = 2") == [("text 2", vector("text 2"))]


@pytest.mark.parametrize("prompt", ['CONCAT("prompt", text)', '"prompt" || text', 'format_string("prompt%s", text)'])
def test_14_a_table_from_a_batch(run, prompt):
    run(f"""CREATE OR REPLACE TABLE out AS (SELECT id, AI_QUERY("ep", {prompt},
            modelParameters => named_struct('max_tokens', 10, 'temperature', 0.1)) AS response FROM articles LIMIT 2)""")

    assert run("SELECT response FROM out ORDER BY id") == [("echo: prompttext 0",), ("echo: prompttext 1",)]


def test_15_an_expression(run, server):
    expression = "ai_query('ep', CONCAT('p', text), modelParameters => named_struct('max_tokens', 10)) AS out"

    assert run(f"SELECT {expression} FROM articles")[0] == ("echo: ptext 0",)
    assert server.requests[0]["max_tokens"] == 10


def test_16_the_spelling_of_2023(run):
    assert run("SELECT ai_query('qa_bot', 'Write me a tweet…', 'returnType','STRING')") == [
        ("echo: Write me a tweet…",)
    ]


def test_16_the_spelling_of_2023_with_a_struct(run):
    found = run("""SELECT ai_query('spam-classification-endpoint',
                   named_struct('timestamp', '', 'sender', '', 'text', 'you win a prize'), 'returnType','BOOLEAN')""")

    assert found == [(True,)]


def test_17_splitting_off_failures(run):
    found = run("""SELECT id, r.result, r.errorMessage
                   FROM (SELECT id, ai_query('ep', text, failOnError => false) AS r FROM articles) ORDER BY id""")

    assert found[1] == (1, "echo: text 1", None)


def test_18_structure_parsed(run):
    found = run("""SELECT from_json(ai_query('ep', text, responseFormat => 'STRUCT<result:STRUCT<a:STRING,b:DOUBLE>>'),
                                    'STRUCT<a:STRING,b:DOUBLE>') FROM articles WHERE id = 0""")

    assert found == [({"a": "text 0", "b": 1.5},)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            """from_json('{"a":1,"b":[{"c":"2026-01-02"}]}', 'a INT, b ARRAY<STRUCT<c: DATE>>').b[0].c::string""",
            "2026-01-02",
        ),
        ("""from_json('{"a":1}', 'MAP<STRING,INT>')['a']""", 1),
        ("from_json('no json', 'a INT')", None),
        ("""from_json('{"a":"x"}', 'a INT').a""", None),
        ("""'{"a":{"b":["x","y"]}}':a.b[1]""", "y"),
        ("""'{"n":"3"}':n::int + 1""", 4),
        ("format_string('%s|%5.1f|%d|%s%%', 1.5, 2.25, 3, NULL)", "1.5|  2.2|3|null%"),
        ("size(array(1, 2)) + element_at(array(1, 2), 1)", 3),
        (r"'it\'s'", "it's"),
        ("transform(array(1, 2), x -> x + 1)", [2, 3]),
        ("named_struct('a', 1).a", 1),
    ],
)
def test_what_stands_around_ai_query_has_databricks_values(run, text, found):
    assert run(f"SELECT {text}") == [(found,)]


def test_rows_as_databricks_spells_them(run):
    run("CREATE TABLE docs (id INT COMMENT 'key', tags ARRAY<STRING>, body STRING) USING DELTA COMMENT 'all'")
    run("""INSERT INTO docs VALUES (1, array('x', 'y'), '{"k": 1}'), (2, array('z'), "{}")""")

    assert run("SELECT id, tag FROM docs LATERAL VIEW explode(tags) t AS tag ORDER BY tag") == [
        (1, "x"),
        (1, "y"),
        (2, "z"),
    ]
    latest = "SELECT id FROM docs QUALIFY row_number() OVER (PARTITION BY size(tags) > 0 ORDER BY id DESC) = 1"
    assert run(latest) == [(2,)]
    assert run("SELECT id FROM docs WHERE body:k = 1") == [(1,)]


def test_a_permission_leaves_a_remark(run):
    ((note,),) = run("GRANT SELECT ON TABLE articles TO `ada@example.com`")

    assert "no users" in note
