"""Custom models against the SQL that people write: counts, literals, whole objects, agents and their answers."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import duckdb
import mlflow
import numpy as np
import pandas as pd
import pydantic
import pytest
from custom_models import logging_into
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.agent import ChatAgentMessage, ChatAgentResponse
from mlflow.types.schema import Array, Map, Object, Property

import aiquery

D = DataType
PERSON = Object([Property("age", D.long), Property("name", D.string, required=False)])
FLOATS, TEXTS = Schema([ColSpec(D.double)]), Schema([ColSpec(D.string)])
INPUTS = {
    "integer": [ColSpec(D.integer, "x")],
    "long": [ColSpec(D.long, "x")],
    "single": [ColSpec(D.float, "x")],
    "anything": [ColSpec(D.double, "a b"), ColSpec(D.string, 'q"ü', required=False)],
    "singles": [ColSpec(Array(D.float), "x")],
    "integers": [ColSpec(Array(D.integer), "x")],
    "doubles": [ColSpec(Array(D.double), "x")],
    "words": [ColSpec(Array(D.string), "x")],
    "prices": [ColSpec(Map(D.double), "x")],
    "person": [ColSpec(PERSON, "x")],
}


class Record(pydantic.BaseModel):
    a: int
    b: str | None = None
    c: float = 0.5


def models():
    """Return models and signatures by name; local classes travel into the registry by value."""

    class Types(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return [repr(row.to_dict()) for _, row in model_input.astype(object).iterrows()]

    class Sums(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return np.asarray(model_input).sum(axis=1, keepdims=True)

    class Says(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            names = {"n": len(model_input), "np": np, "pd": pd}
            return eval(model_input.iloc[0, 0], names)

    class Hinted(mlflow.pyfunc.PythonModel):
        def predict(self, model_input: list[Record]) -> list[float]:
            return [record.a + record.c for record in model_input]

    class Total(mlflow.pyfunc.PythonModel):
        def predict(self, model_input: list[list[float]]) -> list[float]:
            return [sum(values) for values in model_input]

    class Agent(mlflow.pyfunc.ChatAgent):
        def predict(self, messages, context=None, custom_inputs=None):
            text = f"re: {messages[-1].content}"
            return ChatAgentResponse(messages=[ChatAgentMessage(role="assistant", content=text, id="1")])

    tensor = ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, 3))]), Schema([TensorSpec(np.dtype("float32"), (-1, 1))])
    )
    return {name: (Types(), ModelSignature(Schema(inputs), TEXTS)) for name, inputs in INPUTS.items()} | {
        "bare": (Types(), None),
        "tensor": (Sums(), tensor),
        "says": (Says(), None),
        "hinted": (Hinted(), None),
        "total": (Total(), None),
        "agent": (Agent(), None),
    }


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    with aiquery.Workspace(tmp_path_factory.mktemp("hostile") / "workspace") as opened:
        for name, (model, signature) in models().items():
            given = {"pip_requirements": []} | ({} if signature is None else {"signature": signature})
            with logging_into(opened):
                mlflow.pyfunc.log_model(name="model", python_model=model, registered_model_name=f"h.{name}", **given)
            entity = {"entity_name": f"h.{name}", "entity_version": "1"}
            opened.create_endpoint(name, {"served_entities": [entity]})
        yield opened


@pytest.fixture
def con(workspace):
    connection = duckdb.connect()
    aiquery.register(connection, workspace=workspace)
    connection.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
    yield connection
    connection.close()


def value(con, call):
    return con.execute(f"SELECT {call}").fetchone()[0]


@pytest.mark.parametrize(
    ("call", "seen"),
    [
        # count(*) and read_csv give BIGINT, sum() HUGEINT, a literal DECIMAL or INTEGER, arithmetic DOUBLE.
        ("ai_query('integer', 7::BIGINT)", "{'x': 7}"),
        ("ai_query('long', 7::HUGEINT)", "{'x': 7}"),
        ("ai_query('long', 7::UBIGINT)", "{'x': 7}"),
        ("ai_query('single', 3)", "{'x': 3.0}"),
        ("ai_query('single', 0.1::DOUBLE)", "{'x': 0.10000000149011612}"),
        ("ai_query('anything', {'a b': 1.5, 'q\"ü': 'x'})", "{'a b': 1.5, 'q\"ü': 'x'}"),
        ("ai_query('anything', {'a b': 1.5, 'q\"ü': 'ok'::mood})", "{'a b': 1.5, 'q\"ü': 'ok'}"),
        # One input is required, so one value is enough.
        ("ai_query('anything', 1.5)", "{'a b': 1.5}"),
        ("ai_query('doubles', [1, 2])", "{'x': [1.0, 2.0]}"),
        ("ai_query('doubles', [1.5, 2.5])", "{'x': [1.5, 2.5]}"),
        ("ai_query('doubles', [1, 2]::INT[2])", "{'x': [1.0, 2.0]}"),
        ("ai_query('singles', [1.5, 2.5])", "{'x': [1.5, 2.5]}"),
        ("ai_query('singles', [1.5, 2.5]::FLOAT[])", "{'x': [1.5, 2.5]}"),
        ("ai_query('integers', [1, 2])", "{'x': [1, 2]}"),
        ("ai_query('prices', MAP {'k': 1})", "{'x': {'k': np.float64(1.0)}}"),
        ("ai_query('person', {x: {age: 1, name: 'x'}})", "{'x': {'age': np.int64(1), 'name': 'x'}}"),
        # The model's one input is an object: its fields may be the request.
        ("ai_query('person', {age: 1, name: 'x'})", "{'x': {'age': np.int64(1), 'name': 'x'}}"),
        ("ai_query('person', {age: 1})", "{'x': {'age': np.int64(1)}}"),
        ("ai_query('bare', {x: [1.5, 2.5]}, returnType => 'STRING')", "{'x': [1.5, 2.5]}"),
        ("ai_query('bare', {x: {d: 1.5, m: MAP {'k': 1.5}}}, 'STRING')", "{'x': {'d': 1.5, 'm': {'k': 1.5}}}"),
        ("ai_query('bare', {VARIANT: 1}, 'STRING')", "{'VARIANT': 1}"),
        ("ai_query('bare', {x: ['ok'::mood]}, 'STRING')", "{'x': ['ok']}"),
    ],
)
def test_values_reach_the_model_as_its_signature_wants_them(con, call, seen):
    assert value(con, call) == seen


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("ai_query('integer', 3000000000)", r"convert int64 to int32: Integer value 3000000000 not in range"),
        ("ai_query('long', 1.5)", "would cause data loss"),
        ("ai_query('long', 1.5::DOUBLE)", "Can not safely convert double to int64; cast the column in the query"),
        ("ai_query('words', ['a', NULL])", r"has 1 NULLs inside its lists.*list_filter"),
        ("ai_query('tensor', {v: NULL})", "1 NULLs instead of lists"),
        ("ai_query('tensor', 1.0)", r"The request of serving endpoint .* must be of type FLOAT\[\].*CAST\(… AS FLOAT"),
        ("ai_query('anything', {'a b': 'x'})", r"The input 'a b' .* Write CAST\(… AS DOUBLE\)"),
        ("ai_query('bare', '1'::VARIANT, 'STRING')", r"would not see the value of a VARIANT.*CAST\(value AS DOUBLE\)"),
        ("ai_query('long', {x: '1'::VARIANT})", "would not see the value of a VARIANT"),
        ("ai_query('long', 340282366920938463463374607431768211455::UHUGEINT)", "value of a UHUGEINT"),
        ("ai_query('bare', {x: [1::BIGNUM]}, 'STRING')", "value of a BIGNUM"),
        ("ai_query('bare', {moment: TIMESTAMP '1500-01-01'}, 'STRING')", "column moment.*out of bounds"),
        ("ai_query('agent', {msgs: 1})", r"fields \['msgs'\], and the agent takes a STRUCT with the field 'messages'"),
        ("ai_query('anything', {'A b': 1.5})", r"misses the inputs 'a b'.* has 'A b'\. Mind capital letters"),
        ("ai_query('hinted', {b: 'x'})", r"misses the inputs 'a'.*c DOUBLE \(optional\)"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(con, call, sentence):
    with pytest.raises(duckdb.Error, match=f"(?s){sentence}"):
        value(con, call)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("ai_query('hinted', {a: 1})", 1.5),
        ("ai_query('hinted', {a: 1.0, c: 2})", 3.0),
        ("ai_query('total', [1, 2])", 3.0),
        ("ai_query('total', [1.5, 2.5])", 4.0),
        ("ai_query('agent', 'hi', 'STRUCT<messages: ARRAY<STRUCT<content: STRING>>>').messages[1].content", "re: hi"),
        ("ai_query('agent', {messages: [{role: 'user', content: 'hi'}]})->>'$.messages[0].content'", "re: hi"),
        ("ai_query('tensor', [1, 2, 3])", [6.0]),
        ("ai_query('tensor', [1, 2, 3], returnType => 'DOUBLE')", 6.0),
        ("ai_query('tensor', {a: 1, b: 2, c: 3}, returnType => 'INT')", 6),
    ],
)
def test_hints_agents_and_tensors_take_what_sql_has(con, call, answer):
    assert value(con, call) == answer


@pytest.mark.parametrize(
    ("output", "kind", "answer"),
    [
        ("np.array([1.0] * n)", "STRING", "1.0"),
        ("np.array([1e300] * n)", "STRING", "1e+300"),
        ("np.array([0.1] * n, 'f4')", "STRING", "0.1"),
        ("[b'hi'] * n", "STRING", "aGk="),
        ("[b'hi'] * n", "BINARY", b"hi"),
        ("['2024-01-01'] * n", "DATE", dt.date(2024, 1, 1)),
        ("np.array([1.5] * n)", "DECIMAL(5, 2)", Decimal("1.50")),
        ("[{'a': 1}] * n", "MAP<STRING, INT>", {"a": 1}),
        ("[{'a': 1}] * n", "VARIANT", {"a": 1}),
        ("[{'a': [1, {'b': None}]}] * n", "JSON", '{"a":[1,{"b":null}]}'),
        ("[{'a': {'b': [1]}}] * n", "STRUCT<a: STRUCT<b: ARRAY<DOUBLE>>>", {"a": {"b": [1.0]}}),
        ("[None] * n", "STRUCT<a: INT>", None),
    ],
)
@pytest.mark.parametrize("fail_on_error", ["true", "false"])
def test_answers_become_the_return_type(con, output, kind, answer, fail_on_error):
    output = output.replace("'", "''")
    query = f"SELECT ai_query('says', {{x: '{output}'}}, '{kind}', {fail_on_error}) FROM range(2)"

    wanted = answer if fail_on_error == "true" else {"result": answer, "errorMessage": None}
    assert con.execute(query).fetchall() == [(wanted,)] * 2


@pytest.mark.parametrize(
    ("output", "kind", "sentence"),
    [
        ("np.array([np.nan] * n)", "INT", "nan is not a whole number.*Response JSON: nan"),
        ("pd.DataFrame({'p': [1.0] * n, 'q': [2] * n})", "STRUCT<P: INT>", r"columns 'p', 'q', and .* names none"),
        ("np.ones((n, 2))", "DOUBLE", r"\[1.0,1.0\] is not a number"),
        ("[1] * (n + 1)", "INT", "gave 2 answers for 1 rows"),
    ],
)
def test_an_answer_that_does_not_fit_says_why(con, output, kind, sentence):
    output = output.replace("'", "''")
    with pytest.raises(duckdb.Error, match=f"(?s){sentence}"):
        con.execute(f"SELECT ai_query('says', {{x: '{output}'}}, '{kind}')").fetchall()


def test_answers_of_several_types_are_each_rows_own(con):
    output = "[{''a'': 1} if row % 2 else {''a'': ''s''} for row in range(n)]"
    con.execute(f"CREATE TABLE t AS SELECT '{output}' AS x FROM range(4)")

    query = "SELECT ai_query('says', {x: x}, 'STRUCT<a: STRING>').a FROM t"
    assert con.execute(query).fetchall() == [("s",), ("1",), ("s",), ("1",)]


@pytest.mark.parametrize("rows", [0, 1, 2047, 2048, 2049, 5000])
def test_rows_and_their_order_survive_nulls_and_duplicates(con, rows):
    query = f"""
    SELECT i, ai_query('total', CASE WHEN i % 3 > 0 THEN [i % 7, 0.5] END) FROM range({rows}) t(i)
    """
    wanted = [(i, i % 7 + 0.5 if i % 3 else None) for i in range(rows)]

    assert con.execute(query).fetchall() == wanted
