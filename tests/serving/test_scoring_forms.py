"""The REST body of a custom model: four forms in, `predictions` out (contract D.1)."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import warnings

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

from aiquery_serving.entities.scoring import jsonable
from aiquery_serving.errors import InvalidRequestError, MalformedRequestError, ModelError


class Weigh(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params=None):
        if (model_input["n"] < 0).any():
            raise ValueError("no negative weights")
        return model_input["a"] * model_input["n"] * (params or {}).get("by", 1.0)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow would like type hints, and knows none for "anything"

    class Describe(mlflow.pyfunc.PythonModel):
        """Answers with what it got, so that nothing in between can hide."""

        def predict(self, context, model_input, params=None):
            return {"got": model_input, "params": params}


class Count(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[str]) -> list[int]:
        return [len(text) for text in model_input]


@pytest.fixture(scope="module")
def weigh(serve, sign):
    signed = sign({"a": "double", "n": "long"}, ["double"])
    signed.params = ParamSchema([ParamSpec("by", "double", 1.0)])
    return serve(Weigh(), signature=signed)


@pytest.fixture(scope="module")
def describe(serve):
    return serve(Describe())


FORMS = [
    {"dataframe_split": {"columns": ["a", "n"], "data": [[1.5, 2], [2, 3]]}},
    {"dataframe_split": {"columns": ["n", "a"], "data": [[2, 1.5], [3, 2]], "index": [7, 8]}},
    {"dataframe_records": [{"a": 1.5, "n": 2}, {"a": 2, "n": 3}]},
    {"instances": [{"a": 1.5, "n": 2}, {"a": 2, "n": 3}]},
    {"inputs": {"a": [1.5, 2], "n": [2, 3]}},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: next(iter(form)))
def test_all_four_forms_say_the_same(weigh, form):
    answer = weigh.query(form)
    assert json.loads(json.dumps(answer)) == answer
    values = [next(iter(p.values())) if isinstance(p, dict) else p for p in answer["predictions"]]
    assert values == [3.0, 6.0]


def test_params_and_the_envelope_are_no_input(weigh):
    envelope = {"client_request_id": "7", "usage_context": {"team": "x"}, "databricks_options": {}}
    answer = weigh.query({**FORMS[2], **envelope, "params": {"by": 10.0}})
    assert [next(iter(p.values())) for p in answer["predictions"]] == [30.0, 60.0]
    with pytest.raises(InvalidRequestError, match="by"):
        weigh.query({**FORMS[2], "params": {"by": "ten"}})


@pytest.mark.parametrize(
    ("payload", "error", "says"),
    [
        ({}, MalformedRequestError, "dataframe_split, dataframe_records, instances, inputs"),
        ({"rows": [1]}, MalformedRequestError, "input fields: ['rows']"),
        ({**FORMS[0], **FORMS[2]}, MalformedRequestError, "exactly one of the input fields"),
        ([{"a": 1}], MalformedRequestError, "Received a list."),
        ({"dataframe_split": [{"a": 1}]}, InvalidRequestError, "split format must be a dictionary. Got list"),
        ({"dataframe_split": {"columns": ["a"]}}, InvalidRequestError, "must have 'data' field"),
        ({"dataframe_split": {"data": [], "x": 1}}, InvalidRequestError, "must have 'data' field"),
        ({"dataframe_records": {"a": 1}}, InvalidRequestError, "records format must be a list"),
        ({"dataframe_records": [{"n": 1}]}, InvalidRequestError, "Model is missing inputs ['a']"),
        ({"dataframe_records": [{"n": 1}]}, InvalidRequestError, "Failed to predict data '"),
        ({"dataframe_records": [{"n": 1}]}, InvalidRequestError, "Failed to enforce schema of data"),
        ({"dataframe_records": [{"a": "x", "n": 1}]}, InvalidRequestError, "a"),
        ({"instances": [{"a": 1.0, "n": 1}, {"a": 1.0}]}, InvalidRequestError, "not the same"),
        ({"dataframe_records": [{"a": 1, "n": -1}]}, ModelError, "unexpected error while evaluating the model"),
        ({"dataframe_records": [{"a": 1, "n": -1}]}, ModelError, "ValueError: no negative weights"),
    ],
)
def test_wrong_bodies_get_the_errors_of_the_contract(weigh, payload, error, says):
    with pytest.raises(error) as caught:
        weigh.query(payload)
    assert type(caught.value) is error
    assert says in str(caught.value)
    assert caught.value.http_status == 400


def test_a_model_with_type_hints_takes_the_raw_inputs(serve):
    entity = serve(Count())
    assert entity.query({"inputs": ["a", "bcd"]}) == {"predictions": [1, 3]}
    with pytest.raises(InvalidRequestError, match="'inputs' key"):
        entity.query({"dataframe_records": [{"text": "a"}]})
    with pytest.raises(InvalidRequestError):
        entity.query({"inputs": [1]})


@pytest.mark.parametrize("key", ["messages", "prompt", "input"])
def test_an_llm_body_is_passed_as_it_is_and_its_answer_not_wrapped(describe, key):
    answer = describe.query({key: ["hi"], "temperature": 0.5, "client_request_id": "7"})
    assert answer["got"] == {key: ["hi"], "temperature": 0.5}


def test_keys_of_the_params_schema_become_params_in_an_llm_body(serve, sign):
    signed = sign({"prompt": "string"})
    signed.params = ParamSchema([ParamSpec("temperature", "double", 1.0)])
    entity = serve(Describe(), signature=signed)
    answer = entity.query({"prompt": "hi", "temperature": 0.5})
    assert answer["params"] == {"temperature": 0.5}
    assert answer["got"] == [{"prompt": "hi"}]


def test_tensors_travel_as_nested_lists(serve, sign):
    tensor = Schema([TensorSpec(np.dtype("float64"), (-1, 2))])

    class Double(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: np.ndarray, params=None):
            return model_input * 2

    entity = serve(Double(), signature=sign(tensor, tensor))
    for form in ("instances", "inputs"):
        assert entity.query({form: [[1.0, 2.0]]}) == {"predictions": [[2.0, 4.0]]}
    with pytest.raises(InvalidRequestError, match="does not match expected shape"):
        entity.query({"instances": [[1.0]]})


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (np.float32("nan"), None),
        (np.int64(7), 7),
        (np.array([1.0, np.nan]), [1.0, None]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([1.5, None, "x"], dtype=object), [1.5, None, "x"]),
        (np.array(["2026-01-02"], "datetime64[D]"), ["2026-01-02"]),
        (np.float64(1.5), 1.5),
        (pd.DataFrame({"a": [1, 2], "b": ["x", None]}), [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
        (pd.DataFrame({"a": [1.0, np.nan]}), [{"a": 1.0}, {"a": None}]),
        (pd.DataFrame({"t": [pd.Timestamp("2026-01-02"), pd.NaT]}), [{"t": "2026-01-02T00:00:00"}, {"t": None}]),
        (pd.Series([1, 2], name="y"), [{"y": 1}, {"y": 2}]),
        (pd.Series([1, 2]), [{"0": 1}, {"0": 2}]),
        ({"a": np.array([1]), 2: (3,)}, {"a": [1], "2": [3]}),
        (b"\x00\xff", "AP8="),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (decimal.Decimal("1.5"), 1.5),
        (pd.NA, None),
        (True, True),
        ("x", "x"),
        (None, None),
    ],
    ids=str,
)
def test_answers_become_plain_json(value, wanted):
    got = jsonable(value)
    assert got == wanted
    assert json.loads(json.dumps(got, allow_nan=False)) == wanted


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
    st.floats(width=32).map(np.float32), st.lists(st.floats()).map(np.array),
)  # fmt: skip
trees = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(trees)
def test_whatever_a_model_answers_can_be_written_as_json(tree):
    text = json.dumps(jsonable(tree), allow_nan=False)
    assert jsonable(json.loads(text)) == json.loads(text)
