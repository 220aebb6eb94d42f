"""A model's signature as JSON schemas: what the model takes fits them, and what it cannot take does not."""

from __future__ import annotations

import warnings

import jsonschema_rs
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns while it imports itself
    from mlflow.models import ModelSignature

from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Map, Object, Property

from aiquery_serving.rest.model_schemas import answer_schema, request_schema

D, S, L = DataType.double, DataType.string, DataType.long
TABLE = ModelSignature(
    Schema([ColSpec(D, "a"), ColSpec(S, "b", required=False)]),
    Schema([ColSpec(D)]),
    ParamSchema([ParamSpec("top_n", L, 3)]),
)
TENSOR = ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 2))]), Schema([ColSpec(S, "x"), ColSpec(L, "n")]))
MESSAGE = Object([Property("role", S), Property("content", S, required=False)])
CHAT = ModelSignature(Schema([ColSpec(Array(MESSAGE), "messages"), ColSpec(Map(AnyType()), "more", required=False)]))


def fits(schema, value):
    return jsonschema_rs.is_valid(schema, value)


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"], [2, "y"]]}},
        {"dataframe_records": [{"a": 1, "b": "x"}, {"a": 2}]},
        {"instances": [{"a": 1}, {"a": 2}]},
        {"instances": [[1, 2], [3, 4]]},
        {"inputs": {"a": [1, 2], "b": ["x", "y"]}},
        {"inputs": [[1, 2], [3, 4]]},
        {"dataframe_records": [{"a": 1}], "params": {"top_n": 3}, "client_request_id": "r-1"},
    ],
)
def test_the_four_forms_of_the_contract_fit(body):
    assert fits(request_schema(TABLE), body)
    assert fits(request_schema(None), body)


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [{"a": "x"}]},
        {"dataframe_records": [{"b": "x"}]},
        {"dataframe_records": {"a": 1}},
        {"dataframe_split": {"data": [[1]]}},
        {"inputs": {"a": ["x"]}},
        {"instances": [{"a": 1}], "params": {"top_n": "many"}},
        {"rows": []},
    ],
)
def test_what_the_model_cannot_take_does_not_fit(body):
    assert not fits(request_schema(TABLE), body)


def test_tensors_are_lists_in_lists():
    assert fits(request_schema(TENSOR), {"inputs": [[1.0, 2.0], [3.0, 4.0]]})
    assert fits(request_schema(TENSOR), {"instances": [[1.0, 2.0]]})


def test_a_model_of_messages_takes_them_bare():
    assert fits(request_schema(CHAT), {"messages": [{"role": "user", "content": "hi"}], "more": {"a": 1}})
    assert not fits(request_schema(CHAT), {"messages": [{"content": "hi"}]})


@pytest.mark.parametrize(
    ("signature", "answer", "does_fit"),
    [
        (TABLE, {"predictions": [1.5, 2]}, True),
        (TABLE, {"predictions": ["x"]}, False),
        (TABLE, {"predictions": 1}, False),
        (TENSOR, {"predictions": [{"x": "a", "n": 1}]}, True),
        (TENSOR, {"predictions": [{"x": "a"}]}, False),
        (CHAT, {"choices": []}, True),
        (None, {"predictions": {"any": "thing"}}, True),
    ],
)
def test_answers_are_described_by_what_the_signature_says_of_them(signature, answer, does_fit):
    assert fits(answer_schema(signature), answer) is does_fit
