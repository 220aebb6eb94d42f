"""Custom models in SQL: types from signatures, shares of a split, NULLs, rows on which a model raises."""

from __future__ import annotations

import threading

import custom_models
import numpy as np
import pytest

SPLIT = """
SELECT i, ai_query('split', {a: i::DOUBLE, b: 0.0}) AS answer,
       ai_served_entity('split', {a: i::DOUBLE, b: 0.0}) AS entity
FROM range({rows}) t(i)
"""


@pytest.mark.parametrize("rows", [0, 1, 2047, 2048, 2049])
def test_a_struct_becomes_the_models_columns(custom, rows):
    query = f"SELECT ai_query('weekly-forecast', {{b: i::DOUBLE, a: 1.0::DOUBLE}}) FROM range({rows}) t(i)"

    assert custom.execute(query).fetchall() == [(1.0 + 10 * i,) for i in range(rows)]


@pytest.mark.parametrize(
    ("call", "kind", "value"),
    [
        ("ai_query('weekly-forecast', {a: 1.5, b: 2})", "DOUBLE", 21.5),
        ("ai_query('weekly-forecast', {a: 1, b: 2, unused: 'x'})", "DOUBLE", 21.0),
        ("ai_query('twins', 3.0)", 'STRUCT(half DOUBLE, "name" VARCHAR)', {"half": 1.5, "name": "n3"}),
        ("ai_query('twins', {x: 3.0}).half", "DOUBLE", 1.5),
        ("ai_query('upper', 'abc')", "VARCHAR", "ABC"),
        ("ai_query('upper', {text: 'abc'})", "VARCHAR", "ABC"),
        ("ai_query('upper', NULL)", "VARCHAR", None),
        ("ai_query('weekly-forecast', {a: 1, b: 2}, returnType => 'INT')", "INTEGER", 21),
        ("ai_query('weekly-forecast', {a: 1, b: 2}, returnType => 'DECIMAL(9,2)')", "DECIMAL(9,2)", 21),
        ("ai_query('weekly-forecast', {a: 1, b: 2}, 'FLOAT')", "FLOAT", 21.0),
        (
            "ai_query('weekly-forecast', {a: 1, b: 2}, failOnError => false)",
            "STRUCT(result DOUBLE, errorMessage VARCHAR)",
            {"result": 21.0, "errorMessage": None},
        ),
        (
            (
                "ai_query('custom-llama-chat', {messages: [{role: 'user', content: 'hi'}]},"
                " returnType => 'STRUCT<candidates: ARRAY<STRING>>')"
            ),
            "STRUCT(candidates VARCHAR[])",
            {"candidates": ["re: hi"]},
        ),
    ],
)
def test_the_type_is_the_signatures_or_the_one_that_was_asked_for(custom, call, kind, value):
    relation = custom.sql(f"SELECT {call} AS answer")

    assert str(relation.types[0]) == kind
    assert relation.fetchall() == [(value,)]


def test_null_rows_are_null_and_never_reach_the_model(custom):
    query = "SELECT ai_query('weekly-forecast', CASE WHEN i % 2 = 0 THEN {a: i::DOUBLE, b: 0.0} END) FROM range(5) t(i)"

    assert custom.execute(query).fetchall() == [(0.0,), (None,), (2.0,), (None,), (4.0,)]


@pytest.mark.parametrize("rows", [10, 2047, 2048, 2049, 6000])
def test_a_split_is_exact_within_one_call(custom, rows):
    found = custom.execute(SPLIT.replace("{rows}", str(rows))).fetchall()

    assert all(answer == (i if entity == "current" else -i) for i, answer, entity in found)
    share = sum(entity == "challenger" for _, _, entity in found)
    assert abs(share - rows * 0.1) <= 1


def test_a_row_keeps_its_served_entity_when_duckdb_evaluates_it_twice(custom):
    query = """
    SELECT answer FROM (SELECT ai_query('split', {a: i::DOUBLE, b: 0.0}) AS answer FROM range(1, 5000) t(i))
    WHERE answer > 0 AND answer < 4000
    """

    found = [answer for (answer,) in custom.execute(query).fetchall()]

    assert found
    assert all(0 < answer < 4000 for answer in found)


def test_rows_on_which_the_model_raises_fail_alone(custom):
    query = "SELECT i, ai_query('grumpy', i::DOUBLE, failOnError => false) FROM range(2500) t(i)"

    found = dict(custom.execute(query).fetchall())

    bad = found.pop(13)
    assert bad["result"] is None
    assert "thirteen brings bad luck" in bad["errorMessage"]
    assert found == {i: {"result": 2.0 * i, "errorMessage": None} for i in range(2500) if i != 13}


def test_a_model_that_raises_fails_the_query(custom):
    with pytest.raises(Exception, match="thirteen brings bad luck"):
        custom.execute("SELECT ai_query('grumpy', i::DOUBLE) FROM range(20) t(i)").fetchall()


def test_an_update_moves_the_shares_and_loses_no_row(custom_workspace, custom):
    answered = []

    def ask():
        cursor = custom.cursor()
        for _ in range(5):
            answered.extend(cursor.execute(SPLIT.replace("{rows}", "5000")).fetchall())

    thread = threading.Thread(target=ask)
    thread.start()
    custom_workspace.update_endpoint_config("split", custom_models.split(50, 50))
    custom_workspace.wait("split", 60)
    thread.join()
    found = custom.execute(SPLIT.replace("{rows}", "5000")).fetchall()
    custom_workspace.update_endpoint_config("split", custom_models.split(90, 10))
    custom_workspace.wait("split", 60)

    assert len(answered) == 25_000
    assert all(abs(answer) == i for i, answer, _ in answered)
    assert abs(sum(entity == "challenger" for _, _, entity in found) - 2500) <= 1


def test_every_call_is_recorded_with_the_entity_that_answered(custom_workspace, custom):
    def rows():
        totals = [row for row in custom_workspace.usage() if row["endpoint"] == "split"]
        return {row["served_entity"]: row["rows"] for row in totals}

    before = rows()
    custom.execute("SELECT ai_query('split', {a: i::DOUBLE, b: 1.0}) FROM range(1000) t(i)").fetchall()
    after = rows()

    asked = {name: count - before.get(name, 0) for name, count in after.items()}
    assert sum(asked.values()) == 1000
    assert abs(asked["challenger"] - 100) <= 1


def test_all_columns_of_a_table_are_the_request(custom):
    custom.execute("CREATE TABLE t AS SELECT i AS id, i::DOUBLE AS a, 2.0::DOUBLE AS b FROM range(3) t(i)")

    whole = custom.execute("SELECT ai_query('weekly-forecast', t) FROM t").fetchall()
    some = custom.execute("SELECT ai_query('weekly-forecast', struct_pack(*columns(* EXCLUDE id))) FROM t").fetchall()

    assert whole == some == [(20.0,), (21.0,), (22.0,)]


def test_many_rows_cost_no_python_object_each(custom):
    found = custom.execute(
        "SELECT sum(ai_query('weekly-forecast', {a: i::DOUBLE, b: 0.0})) FROM range(200000) t(i)"
    ).fetchone()

    assert np.isclose(found[0], 200_000 * 199_999 / 2)


def test_a_statement_prepared_before_the_split_follows_it(custom_workspace, custom):
    models = custom_models.split(90, 10)
    only = {"served_entities": models["served_entities"][:1]}
    custom_workspace.create_endpoint("later", only)
    custom.execute("PREPARE p AS SELECT ai_query('later', {a: i::DOUBLE, b: 0.0}) FROM range(1, 1001) t(i)")
    before = custom.execute("EXECUTE p").fetchall()

    custom_workspace.update_endpoint_config("later", models)
    custom_workspace.wait("later", 60)
    after = custom.execute("EXECUTE p").fetchall()

    assert sum(answer < 0 for (answer,) in before) == 0
    assert abs(sum(answer < 0 for (answer,) in after) - 100) <= 1
