"""The official snippets of contract A.12, each in DuckDB's spelling."""

from __future__ import annotations

import json

import duckdb
import pytest
from engine_endpoints import external

import aiquery

LLAMA = "databricks-meta-llama-3-3-70b-instruct"


@pytest.fixture
def world(custom_workspace, server):
    """The custom models of the suite and the hosted models that the snippets name."""
    hosted = {
        LLAMA: "llm/v1/chat",
        "databricks-gpt-oss-20b": "llm/v1/chat",
        "databricks-llama-4-maverick": "llm/v1/chat",
        "qa_bot": "llm/v1/chat",
        "databricks-gte-large-en": "llm/v1/embeddings",
    }
    for name, task in hosted.items():
        custom_workspace.create_endpoint(name, {"served_entities": [external(server, task, f"{name}-model")]})
    con = duckdb.connect()
    aiquery.register(con, workspace=custom_workspace)
    con.execute("CREATE TABLE articles AS SELECT i AS id, 'text ' || i AS text FROM range(3) t(i)")
    yield con
    con.close()
    for name in hosted:
        custom_workspace.delete_endpoint(name)


def test_1_a_constant_prompt(world):
    query = f"SELECT ai_query('{LLAMA}', 'Describe DuckDB in 30 words.') AS summary"
    assert world.sql(query).fetchall() == [("echo: Describe DuckDB in 30 words.",)]


def test_2_a_prompt_from_a_column(world):
    world.execute("CREATE TABLE trips AS SELECT 10001 + i AS pickup_zip FROM range(20) t(i)")
    query = f"SELECT *, ai_query('{LLAMA}', 'Name the US state for ZIP: ' || pickup_zip) FROM trips LIMIT 10"

    assert world.execute(query).fetchall()[0] == (10001, "echo: Name the US state for ZIP: 10001")


def test_3_a_sql_function_around_it(world):
    world.execute(
        f"CREATE TEMP MACRO correct_grammar(text) AS ai_query('{LLAMA}', concat('Correct this to standard English:\n', text))"
    )
    found = world.execute("SELECT * EXCLUDE (text), correct_grammar(text) AS text FROM articles ORDER BY id").fetchall()

    assert found[0] == (0, "echo: Correct this to standard English:\ntext 0")


def test_4_a_view(world):
    world.execute(f"CREATE VIEW answers AS SELECT ai_query('{LLAMA}', text) AS response FROM articles LIMIT 10")

    assert len(world.execute("FROM answers").fetchall()) == 3


def test_5_parameters(world, server):
    world.execute(
        f"SELECT ai_query('{LLAMA}', 'Summarize: ' || text, modelParameters => {{max_tokens: 100, temperature: 0.7}})"
        " FROM articles"
    ).fetchall()

    assert {(body["max_tokens"], body["temperature"]) for body in server.requests} == {(100, 0.7)}


def test_6_errors_beside_answers(world):
    query = f"SELECT ai_query('{LLAMA}', 'Summarize: ' || text, failOnError => false) FROM articles WHERE id = 1"

    assert world.execute(query).fetchall() == [({"result": "echo: Summarize: text 1", "errorMessage": None},)]


PAPER = "STRUCT<title:STRING, authors:ARRAY<STRING>, abstract:STRING, keywords:ARRAY<STRING>>"


def test_7_structure_as_a_type(world, server):
    query = f"""SELECT ai_query('databricks-gpt-oss-20b', 'Extract: ' || text,
                responseFormat => 'STRUCT<research_paper_extraction:{PAPER}>') FROM articles LIMIT 1"""

    ((answer,),) = world.execute(query).fetchall()

    assert set(json.loads(answer)) == {"title", "authors", "abstract", "keywords"}
    schema = server.requests[0]["response_format"]["json_schema"]
    assert schema["name"] == "research_paper_extraction"
    assert schema["strict"] is True


def test_8_structure_as_a_json_schema(world, server):
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    envelope = {"type": "json_schema", "json_schema": {"name": "paper", "schema": schema, "strict": True}}
    query = f"SELECT ai_query('databricks-gpt-oss-20b', text, responseFormat => '{json.dumps(envelope)}') FROM articles LIMIT 1"

    ((answer,),) = world.execute(query).fetchall()

    assert set(json.loads(answer)) == {"title"}
    assert server.requests[0]["response_format"] == envelope


def test_9_images(world, server, tmp_path):
    image = b"\x89PNG\r\n\x1a\n" + b"0" * 16
    (tmp_path / "cat.png").write_bytes(image)
    query = f"""SELECT ai_query('databricks-llama-4-maverick', 'what is this image about?', files => content)
                FROM read_blob('{tmp_path}/*.png')"""

    assert world.execute(query).fetchall() == [("echo: what is this image about?",)]
    text, picture = server.requests[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is this image about?"}
    assert picture["image_url"]["url"].startswith("data:image/png;base64,iVBORw0KGgo")


def test_10_a_custom_classifier(world):
    query = """SELECT ai_query(endpoint => 'spam-classification-endpoint',
                               request => {timestamp: '2026-01-01', sender: '555', text: body}, returnType => 'BOOLEAN')
               FROM (VALUES ('you win a prize'), ('see you at six')) inbox(body)"""

    assert world.execute(query).fetchall() == [(True,), (False,)]


def test_11_a_custom_forecast_over_whole_rows(world):
    world.execute("CREATE TABLE retail AS SELECT 1.0::DOUBLE AS a, 2.0::DOUBLE AS b, 'north' AS region")
    query = "SELECT ai_query('weekly-forecast', request => retail, returnType => 'FLOAT') FROM retail"

    assert world.execute(query).fetchall() == [(21.0,)]


def test_12_a_custom_language_model(world):
    query = """SELECT ai_query('custom-llama-chat', request => {messages: [{role: 'user', content: 'What is ML?'}]},
                               returnType => 'STRUCT<candidates:ARRAY<STRING>>')"""

    assert world.execute(query).fetchall() == [({"candidates": ["re: What is ML?"]},)]


@pytest.mark.parametrize(
    "call",
    [
        "ai_query('databricks-gte-large-en', text)",
        "ai_query('databricks-gte-large-en', text, returnType => 'ARRAY<FLOAT>')",
        "CAST(ai_query('databricks-gte-large-en', text) AS FLOAT[])",
    ],
)
def test_13_embeddings(world, call):
    from providers import vector

    assert world.execute(f"SELECT {call} FROM articles WHERE id = 2").fetchall() == [(vector("text 2"),)]


def test_14_a_table_from_a_batch(world):
    world.execute(f"""CREATE OR REPLACE TABLE out AS (SELECT id, AI_QUERY('{LLAMA}', concat('prompt', text),
                      modelParameters => {{max_tokens: 10, temperature: 0.1}}) AS response FROM articles LIMIT 2)""")

    assert world.execute("SELECT count(response) FROM out").fetchall() == [(2,)]


def test_15_an_expression_of_a_relation(world):
    found = world.table("articles").project(
        f"ai_query('{LLAMA}', concat('p', text), modelParameters => {{max_tokens: 10}}) AS out"
    )

    assert found.fetchall()[0] == ("echo: ptext 0",)


def test_16_the_spelling_of_2023(world):
    found = world.execute("SELECT ai_query('qa_bot', 'Write me a tweet', 'returnType', 'STRING')").fetchall()

    assert found == [("echo: Write me a tweet",)]


def test_17_splitting_off_failures(world):
    query = f"""SELECT id, r.result, r.errorMessage
                FROM (SELECT id, ai_query('{LLAMA}', text, failOnError => false) AS r FROM articles) ORDER BY id"""

    assert world.execute(query).fetchall()[1] == (1, "echo: text 1", None)


def test_18_structure_parsed(world):
    query = f"""SELECT from_json(ai_query('{LLAMA}', text, responseFormat => 'STRUCT<result:STRUCT<a:STRING,b:DOUBLE>>'),
                                 '{{"a": "VARCHAR", "b": "DOUBLE"}}') FROM articles WHERE id = 0"""

    assert world.execute(query).fetchall() == [({"a": "text 0", "b": 1.5},)]
