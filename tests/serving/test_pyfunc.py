"""Arrow rows in, Arrow answers out, through real models from a real registry."""

from __future__ import annotations

import decimal
import json
import logging
import os
import sys
import threading

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow as pa
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.types import Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Map, Object, Property

from aiquery_serving.entities.pyfunc import load_pyfunc
from aiquery_serving.errors import InvalidRequestError, ModelError
from aiquery_serving.messages import BatchEntity

SIZES = (0, 1, 2047, 2048, 2049)
ABCD = dict.fromkeys("abcd", "double")


def doubles(count: int, names: str = "abcd") -> pa.RecordBatch:
    draw = np.random.default_rng(7)
    return pa.record_batch({name: draw.normal(size=count) for name in names})


class Answering(mlflow.pyfunc.PythonModel):
    """Answers with what a function makes of the model input."""

    def __init__(self, answer):
        self.answer = answer

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return self.answer(model_input)


@pytest.fixture(scope="module")
def echo(serve, sign):
    """Make models that show their input: one per signature."""
    made = {}

    def make(**columns):
        key = tuple(columns.items())
        if key not in made:
            made[key] = serve(Answering(lambda frame: seen.append(frame) or [0] * len(frame)), signature=sign(columns))
        return made[key]

    seen: list[pd.DataFrame] = []

    def show(rows, **columns):
        entity = make(**columns)
        entity._model._model_impl.python_model.answer = lambda frame: seen.append(frame) or [0] * len(frame)
        entity.predict(rows)
        return seen.pop()

    return show


# --- the flavours ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(serve):
    import mlflow.sklearn
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression

    frame = doubles(500).to_pandas()
    target = (frame["a"] + frame["b"] > 0).astype("int64")
    model = LogisticRegression().fit(frame, target)
    entity = serve(
        model,
        log_model=mlflow.sklearn.log_model,
        signature=infer_signature(frame, model.predict(frame)),
        serialization_format="cloudpickle",
    )
    return entity, model


@pytest.mark.parametrize("count", SIZES)
def test_scikit_learn_gives_what_it_gives_directly(classifier, count):
    entity, model = classifier
    rows = doubles(count)
    answers = entity.predict(rows)
    assert answers.type == entity.output_type == pa.list_(pa.int64()) or answers.type == pa.int64()
    assert len(answers) == count
    if count:
        assert answers.to_pylist() == model.predict(rows.to_pandas()).tolist()


def test_an_entity_is_a_batch_entity(classifier):
    entity, _ = classifier
    assert isinstance(entity, BatchEntity)
    assert entity.input_schema == pa.schema([pa.field(n, pa.float64(), nullable=False) for n in "abcd"])
    assert entity.output_type == pa.int64()


def test_xgboost_gives_what_it_gives_directly(serve):
    mlflow_xgboost = pytest.importorskip("mlflow.xgboost")
    xgboost = pytest.importorskip("xgboost")
    from mlflow.models import infer_signature

    frame = doubles(200).to_pandas()
    model = xgboost.XGBRegressor(n_estimators=5, max_depth=2, n_jobs=1).fit(frame, frame["a"])
    entity = serve(
        model,
        log_model=mlflow_xgboost.log_model,
        signature=infer_signature(frame, model.predict(frame)),
    )
    rows = doubles(2049)
    answers = entity.predict(rows)
    assert answers.type == pa.float32()
    np.testing.assert_array_equal(answers.to_numpy(), model.predict(rows.to_pandas()))


def test_torch_takes_a_list_per_row_and_a_column_per_value(serve):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: its models are NOT tested")
    import mlflow.pytorch
    from mlflow.models import ModelSignature

    torch.manual_seed(7)
    model = torch.nn.Linear(4, 2)
    tensors = ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, 4))]), Schema([TensorSpec(np.dtype("float32"), (-1, 2))])
    )
    entity = serve(model, log_model=mlflow.pytorch.log_model, signature=tensors, serialization_format="pickle")
    rows = doubles(2049)
    values = np.column_stack([rows[name] for name in "abcd"])
    with torch.no_grad():
        wanted = model(torch.from_numpy(values.astype("float32"))).numpy()
    lists = pa.record_batch({"anything": pa.array(list(values))})
    for given_rows in (rows, lists):
        answers = entity.predict(given_rows)
        assert answers.type == entity.output_type == pa.list_(pa.float32())
        np.testing.assert_allclose(np.stack(answers.to_numpy(zero_copy_only=False)), wanted, rtol=1e-5)
    with pytest.raises(InvalidRequestError, match="does not match expected shape"):
        entity.predict(pa.record_batch({"x": [[1.0, 2.0, 3.0]]}))
    with pytest.raises(InvalidRequestError, match="got 3 columns"):
        entity.predict(doubles(2, "abc"))


# --- type hints and agents ------------------------------------------------------------------------


def test_a_model_with_text_hints_takes_any_single_column(serve):
    class Shout(mlflow.pyfunc.PythonModel):
        def predict(self, model_input: list[str]) -> list[str]:
            return [text.upper() for text in model_input]

    entity = serve(Shout())
    assert entity.output_type == pa.string()
    for name in ("request", "", "text"):
        assert entity.predict(pa.record_batch({name: ["a", "b"]})).to_pylist() == ["A", "B"]
    enum = pa.array(["x", "y"]).dictionary_encode()
    assert entity.predict(pa.record_batch({"t": enum})).to_pylist() == ["X", "Y"]
    with pytest.raises(InvalidRequestError):
        entity.predict(pa.record_batch({"t": [1, 2]}))


class Order(pydantic.BaseModel):
    item: str
    count: int


class Price(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[Order]) -> list[float]:
        return [order.count * 2.5 for order in model_input]


def test_a_model_with_object_hints_takes_a_column_per_field_or_a_struct(serve):
    entity = serve(Price())
    assert sorted(entity.input_schema.names) == ["count", "item"]
    rows = pa.record_batch({"item": ["a", "b"], "count": [1, 2]})
    assert entity.predict(rows).to_pylist() == [2.5, 5.0]
    structs = pa.record_batch({"request": rows.to_struct_array()})
    assert entity.predict(structs).to_pylist() == [2.5, 5.0]
    with pytest.raises(InvalidRequestError, match="count"):
        entity.predict(rows.select(["item"]))


def test_an_agent_answers_each_row_with_json_text(serve):
    from mlflow.types.agent import ChatAgentMessage, ChatAgentResponse

    class Parrot(mlflow.pyfunc.ChatAgent):
        def predict(self, messages, context=None, custom_inputs=None):
            text = f"{custom_inputs or ''}{messages[-1].content}!"
            return ChatAgentResponse(messages=[ChatAgentMessage(role="assistant", content=text, id="1")])

    entity = serve(Parrot())
    assert entity.output_type == pa.string()
    talk = pa.array([[{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}]])
    for rows in (pa.record_batch({"messages": talk}), pa.record_batch({"request": ["hi", "ho"]})):
        answers = [json.loads(answer) for answer in entity.predict(rows).to_pylist()]
        assert [answer["messages"][0]["content"] for answer in answers] == ["hi!", "ho!"]
    body = entity.query({"messages": [{"role": "user", "content": "hi"}], "client_request_id": "7"})
    assert body["messages"][0]["content"] == "hi!"


def test_a_responses_agent_takes_input(serve):
    from mlflow.types.responses import ResponsesAgentResponse

    class Echo(mlflow.pyfunc.ResponsesAgent):
        def predict(self, request):
            text = request.input[-1].content
            return ResponsesAgentResponse(output=[self.create_text_output_item(text=text, id="1")])

    entity = serve(Echo())
    (answer,) = entity.predict(pa.record_batch({"request": ["hello"]})).to_pylist()
    assert json.loads(answer)["output"][0]["content"][0]["text"] == "hello"
    body = entity.query({"input": [{"role": "user", "content": "hello"}]})
    assert body["output"][0]["content"][0]["text"] == "hello"


# --- what a model gets ----------------------------------------------------------------------------


def test_columns_are_found_by_name_in_any_order_and_extra_ones_dropped(echo):
    rows = pa.record_batch({"x": ["no"], "b": [2.0], "a": [1.0]})
    frame = echo(rows, a="double", b="double")
    assert list(frame.columns) == ["a", "b"]
    assert frame.to_numpy().tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("column", "declared", "dtype", "values"),
    [
        (pa.array([1, 2], pa.int8()), "double", "float64", [1.0, 2.0]),
        (pa.array([1, 2], pa.int64()), "double", "float64", [1.0, 2.0]),
        (pa.array([1.5, None], pa.float32()), "double", "float64", [1.5, None]),
        (pa.array([decimal.Decimal("1.25"), None]), "double", "float64", [1.25, None]),
        (pa.array([decimal.Decimal("0.5")]), "float", "float32", [0.5]),
        (pa.array([1, None]), "float", "float32", [1.0, None]),
        (pa.array([1.5, None], pa.float64()), "float", "float32", [1.5, None]),
        (pa.array([1, -2], pa.int64()), "integer", "int32", [1, -2]),
        (pa.array([1, 2], pa.uint64()), "long", "int64", [1, 2]),
        (pa.array([decimal.Decimal(3)], pa.decimal128(38, 0)), "long", "int64", [3]),
        (pa.array([None, None], pa.null()), "double", "float64", [None, None]),
        (pa.array([1, 2], pa.int32()), "long", "int64", [1, 2]),
        (pa.array([1, 2], pa.uint32()), "long", "int64", [1, 2]),
        (pa.array([1, 2], pa.int16()), "integer", "int32", [1, 2]),
        (pa.array([True, False]), "boolean", "bool", [True, False]),
        (pa.array([True, None]), "boolean", "object", [True, None]),
        (pa.array(["x", None]), "string", "object", ["x", None]),
        (pa.array(["x", None], pa.large_string()), "string", "object", ["x", None]),
        (pa.array(["x", None], pa.string_view()), "string", "object", ["x", None]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), "string", "object", ["x", "y", "x"]),
        (pa.array([b"x", None]), "binary", "object", [b"x", None]),
        (pa.array([0, None], pa.date32()), "datetime", "datetime64[ns]", [pd.Timestamp(0), None]),
        (pa.array([0, None], pa.timestamp("us")), "datetime", "datetime64[ns]", [pd.Timestamp(0), None]),
    ],
)
def test_safe_casts_reach_the_model_as_mlflow_has_them(echo, column, declared, dtype, values):
    frame = echo(pa.record_batch({"a": column}), a=declared)
    assert str(frame["a"].dtype) == dtype
    got = [None if pd.isna(value) else value for value in frame["a"].tolist()]
    assert got == values


@pytest.mark.parametrize(
    ("column", "declared", "says"),
    [
        (pa.array(["1"]), "double", "safely convert string to double"),
        (pa.array(["1"]), "long", "safely convert string to int64"),
        (pa.array([1.0]), "long", "safely convert double to int64"),
        (pa.array([2**53 + 1]), "double", "9007199254740993"),
        (pa.array([2**24 + 1]), "float", "16777217"),
        (pa.array([2**31]), "integer", "safely convert int64 to int32: Integer value 2147483648 not in range"),
        (pa.array([2**63], pa.uint64()), "long", "safely convert uint64 to int64: Integer value 9223372036854775808"),
        (pa.array([decimal.Decimal("1.5")]), "long", "would cause data loss"),
        (pa.array([True]), "long", "safely convert bool to int64"),
        (pa.array([1]), "string", "safely convert int64 to string"),
        (pa.array([1]), "boolean", "safely convert int64 to bool"),
        (pa.array([0], pa.timestamp("us", "UTC")), "datetime", "time zone"),
        (pa.array([[1.0]]), "double", "safely convert list"),
        (pa.array([1, None]), "long", "1 NULLs"),
    ],
)
def test_what_would_lose_something_is_refused_in_a_sentence(echo, column, declared, says):
    with pytest.raises(InvalidRequestError) as caught:
        echo(pa.record_batch({"a": column}), a=declared)
    text = str(caught.value)
    assert text.startswith("Failed to enforce schema of data 'a: ")
    assert says in text
    assert "column a" in text


def test_missing_inputs_are_told_in_mlflows_own_words(echo):
    rows = pa.record_batch({"b": [1.0], "z": [1.0]})
    with pytest.raises(InvalidRequestError) as caught:
        echo(rows, a="double", b="double")
    assert str(caught.value) == (
        "Failed to enforce schema of data 'b: double, z: double' with schema "
        "''a': double (required), 'b': double (required)'. Error: "
        "Model is missing inputs ['a']. Note that there were extra inputs: ['z']."
    ).replace("''a'", "'['a'").replace("(required)'. E", "(required)]'. E")


def test_an_optional_column_may_be_missing_or_null(serve, sign):
    inputs = Schema([ColSpec("double", "a"), ColSpec("long", "n", required=False)])
    shapes = serve(Answering(lambda frame: [str(dict(frame.dtypes.astype(str)))] * len(frame)), signature=sign(inputs))
    assert shapes.predict(pa.record_batch({"a": [1.0]}))[0].as_py() == "{'a': 'float64'}"
    with_null = shapes.predict(pa.record_batch({"a": [1.0, 2.0], "n": [1, None]}))
    assert with_null[0].as_py() == "{'a': 'float64', 'n': 'float64'}"


def test_columns_of_several_types_keep_theirs(echo):
    rows = pa.record_batch({"a": [1.0, None], "b": ["x", None], "c": [True, False], "d": [1, 2]})
    frame = echo(rows, a="double", b="string", c="boolean", d="long")
    assert frame.dtypes.astype(str).tolist() == ["float64", "object", "bool", "int64"]
    assert frame["b"].tolist() == ["x", None]


def test_a_model_may_change_its_frame_without_touching_the_rows(serve, sign):
    def spoil(frame):
        frame.loc[:, "a"] = -1.0
        frame["b"] += 1
        return frame["a"]

    entity = serve(Answering(spoil), signature=sign(ABCD, ["double"]))
    for rows in (doubles(3), doubles(3).append_column("e", pa.array(["x"] * 3))):
        before = rows.to_pydict()
        assert entity.predict(rows).to_pylist() == [-1.0] * 3
        assert rows.to_pydict() == before


def test_a_slice_of_a_batch_is_read_from_its_own_start(echo):
    rows = pa.record_batch({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "z"]}).slice(1, 1)
    frame = echo(rows, a="double", b="string")
    assert frame.iloc[0].tolist() == [2.0, "y"]


def test_without_a_signature_the_model_gets_the_columns_as_they_are(serve):
    entity = serve(Answering(lambda frame: frame["n"] * 2))
    assert entity.input_schema is None
    assert entity.output_type is None
    rows = pa.record_batch({"n": [1, 2], "s": ["a", "b"], "l": [[1], [2]]})
    assert entity.predict(rows).to_pylist() == [2, 4]


def test_columns_without_names_count_by_position(serve, sign):
    entity = serve(Answering(lambda f: f.iloc[:, 1]), signature=sign(["double", "double"], ["double"]))
    assert entity.predict(pa.record_batch({"p": [1.0], "q": [2.0]})).to_pylist() == [2.0]
    with pytest.raises(InvalidRequestError, match="declares 2 inputs but the provided value only has 1"):
        entity.predict(pa.record_batch({"p": [1.0]}))


def test_nested_inputs_arrive_as_python_values(serve, sign):
    inputs = Schema([ColSpec(Array(DataType.double), "v"), ColSpec("double", "w")])
    entity = serve(
        Answering(lambda f: [sum(v) * w for v, w in zip(f["v"], f["w"], strict=True)]), signature=sign(inputs)
    )
    rows = pa.record_batch({"v": [[1.0, 2.0], [3.0]], "w": [2.0, 3.0]})
    assert entity.predict(rows).to_pylist() == [6.0, 9.0]


def test_named_tensors_arrive_by_name(serve, sign):
    inputs = Schema([TensorSpec(np.dtype("int64"), (-1, 2), "ids"), TensorSpec(np.dtype("float64"), (-1,), "w")])
    entity = serve(Answering(lambda d: d["ids"].sum(axis=1) * d["w"]), signature=sign(inputs))
    rows = pa.record_batch({"w": [0.5, 2.0], "ids": pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))})
    assert entity.predict(rows).to_pylist() == [1.5, 14.0]
    ragged = pa.record_batch({"w": [0.5, 2.0], "ids": [[1, 2], [3]]})
    with pytest.raises(InvalidRequestError, match="lists of 1 to 2 values"):
        entity.predict(ragged)


def test_params_reach_the_model_and_wrong_ones_are_refused(serve):
    from mlflow.models import infer_signature

    class Scale(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: pd.DataFrame, params=None):
            return model_input["a"] * params["by"]

    frame = pd.DataFrame({"a": [1.0]})
    entity = serve(Scale(), signature=infer_signature(frame, frame["a"].to_numpy(), params={"by": 2.0}))
    rows = pa.record_batch({"a": [1.0, 3.0]})
    assert entity.predict(rows).to_pylist() == [2.0, 6.0]
    assert entity.predict(rows, {"by": 10.0}).to_pylist() == [10.0, 30.0]
    with pytest.raises(InvalidRequestError, match="by"):
        entity.predict(rows, {"by": "ten"})


def test_params_that_a_model_does_not_know_are_ignored_with_mlflows_warning(serve, sign, caplog):
    entity = serve(Answering(lambda frame: frame["a"]), signature=sign({"a": "double"}, ["double"]))
    logger = logging.getLogger("mlflow.models.utils")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.WARNING)
    try:
        assert entity.predict(pa.record_batch({"a": [1.0]}), {"by": 2.0}).to_pylist() == [1.0]
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(logging.NOTSET)
    assert "Ignoring provided params: ['by']" in caplog.text


# --- what a model gives ---------------------------------------------------------------------------

THREE = pa.record_batch({"a": [1.0, 2.0, 3.0]})


@pytest.fixture(scope="module")
def says(serve, sign):
    """Make one model per declared output and let it answer what a test wants."""
    made = {}

    def answer(value, outputs=None, rows=THREE):
        key = str(outputs)
        if key not in made:
            made[key] = serve(Answering(None), signature=sign({"a": "double"}, outputs))
        made[key]._model._model_impl.python_model.answer = lambda _: value
        return made[key].predict(rows)

    return answer


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.array([1.5, 2.5, np.nan]), pa.array([1.5, 2.5, float("nan")])),
        (np.array([1, 2, 3], "int32"), pa.array([1, 2, 3], pa.int32())),
        (np.array([True, False, True]), pa.array([True, False, True])),
        (np.array(["a", "b", "c"]), pa.array(["a", "b", "c"])),
        (np.array(["a", None, np.nan], dtype=object), pa.array(["a", None, None])),
        (np.arange(6.0).reshape(3, 2), pa.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])),
        (np.arange(3.0).reshape(3, 1), pa.array([[0.0], [1.0], [2.0]])),
        (np.arange(6).reshape(3, 2, 1), pa.array([[[0], [1]], [[2], [3]], [[4], [5]]])),
        (np.arange(3).astype(">i8"), pa.array([0, 1, 2])),
        (np.arange(6)[::2], pa.array([0, 2, 4])),
        (pd.Series([1.0, 2.0, 3.0]), pa.array([1.0, 2.0, 3.0])),
        (pd.Series(["a", None, "c"]), pa.array(["a", None, "c"])),
        (pd.Series(["a", None, "c"], dtype=object), pa.array(["a", None, "c"])),
        (pd.Series([1, None, 3], dtype="Int64"), pa.array([1, None, 3])),
        (pd.Series(["a", "b", "a"], dtype="category"), pa.array(["a", "b", "a"])),
        (pd.DataFrame({"y": [1, 2, 3]}), pa.array([1, 2, 3])),
        (
            pd.DataFrame({"y": [1, 2, 3], "s": ["a", None, "c"]}),
            pa.array([{"y": 1, "s": "a"}, {"y": 2, "s": None}, {"y": 3, "s": "c"}]),
        ),
        ({"y": np.array([1, 2, 3])}, pa.array([1, 2, 3])),
        ({"predictions": [1, 2, 3]}, pa.array([1, 2, 3])),
        (
            {"y": [1, 2, 3], "z": (4.0, 5.0, 6.0)},
            pa.array([{"y": 1, "z": 4.0}, {"y": 2, "z": 5.0}, {"y": 3, "z": 6.0}]),
        ),
        (["a", None, "c"], pa.array(["a", None, "c"])),
        ([[1.0], [], [1.0, 2.0]], pa.array([[1.0], [], [1.0, 2.0]])),
        ([np.float64(1), np.float64(2), 3.0], pa.array([1.0, 2.0, 3.0])),
        ([{"k": 1}, {"k": 2}, {"k": None}], pa.array([{"k": 1}, {"k": 2}, {"k": None}])),
        ([1, "x", 2.5], pa.array(["1", "x", "2.5"])),
        ([{"k": 1}, {"k": "s"}, None], pa.array(['{"k":1}', '{"k":"s"}', None])),
        (pa.array([1, 2, 3]), pa.array([1, 2, 3])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_output_becomes_one_arrow_array(says, value, wanted):
    answers = says(value)
    assert answers.type == wanted.type or answers.cast(wanted.type).equals(wanted)
    assert str(answers.to_pylist()) == str(wanted.to_pylist())


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("one", "one"), (1.5, 1.5), (np.float32(1.5), 1.5), ({"a": 1, "b": "x"}, {"a": 1, "b": "x"}), (np.array(2), 2)],
)
def test_a_single_value_answers_a_single_row_only(says, value, wanted):
    assert says(value, rows=THREE.slice(0, 1)).to_pylist() == [wanted]
    with pytest.raises(ModelError, match="for 3 rows"):
        says(value)


@pytest.mark.parametrize(
    "value",
    [[1, 2], [1, 2, 3, 4], [], np.zeros(2), pd.DataFrame({"y": [1]}), {"y": [1, 2], "z": [1, 2, 3]}, None],
    ids=str,
)
def test_another_number_of_answers_than_rows_is_the_models_fault(says, value):
    with pytest.raises(ModelError, match=r"3 rows|returned None"):
        says(value)


@pytest.mark.parametrize(
    ("value", "outputs", "wanted"),
    [
        ([1, 2, 3], ["double"], pa.array([1.0, 2.0, 3.0])),
        (np.array([1.0, 2.0, 3.0]), ["float"], pa.array([1.0, 2.0, 3.0], pa.float32())),
        (np.zeros((3, 1)), ["double"], pa.array([0.0, 0.0, 0.0])),
        (np.array([1.0, 2.0, 3.0]), ["long"], pa.array([1, 2, 3])),
        ([None, None, None], ["string"], pa.array([None] * 3, pa.string())),
        (
            np.eye(3)[:, :2],
            {"p": "double", "q": "double"},
            pa.array([{"p": 1.0, "q": 0.0}, {"p": 0.0, "q": 1.0}, {"p": 0.0, "q": 0.0}]),
        ),
        (
            pd.DataFrame({"q": [1, 2, 3], "x": 0, "p": [0, 0, 0]}),
            {"p": "long", "q": "long"},
            pa.array([{"p": 0, "q": 1}, {"p": 0, "q": 2}, {"p": 0, "q": 3}]),
        ),
    ],
    ids=str,
)
def test_answers_get_the_type_that_the_signature_promises(says, value, outputs, wanted):
    answers = says(value, outputs)
    assert answers.type == wanted.type
    assert answers.to_pylist() == wanted.to_pylist()


@pytest.mark.parametrize(
    ("value", "outputs", "message"),
    [
        ([object()] * 3, None, "does not fit one Arrow type"),
        (["a", "b", "c"], ["double"], "does not fit the signature's double"),
        (np.array([0.5, 1, 2]), ["long"], "does not fit the signature's int64"),
        (pd.DataFrame({"p": [1, 2, 3], "z": [1, 2, 3]}), {"p": "long", "q": "long"}, r"has no \['q'\]"),
    ],
)
def test_answers_that_do_not_fit_are_the_models_fault(says, value, outputs, message):
    with pytest.raises(ModelError, match=message):
        says(value, outputs)


def test_numbers_come_back_without_a_copy(says):
    values = np.array([1.0, 2.0, 3.0])
    assert says(values, ["double"]).buffers()[1].address == values.ctypes.data


def test_a_model_that_raises_says_why_and_the_next_batch_works(serve, sign):
    def fail(frame):
        if frame["a"].iloc[0] < 0:
            raise ZeroDivisionError("the model's own words")
        return frame["a"]

    entity = serve(Answering(fail), signature=sign({"a": "double"}, ["double"]))
    with pytest.raises(ModelError, match="ZeroDivisionError: the model's own words"):
        entity.predict(pa.record_batch({"a": [-1.0]}))
    assert entity.predict(THREE).to_pylist() == [1.0, 2.0, 3.0]


def test_a_model_that_exits_ends_its_own_call_alone(serve, sign):
    """On an event loop SystemExit would end the loop."""
    entity = serve(Answering(lambda _: sys.exit(3)), signature=sign({"a": "double"}, ["double"]))
    with pytest.raises(ModelError, match="SystemExit: 3"):
        entity.predict(pa.record_batch({"a": [1.0]}))
    with pytest.raises(ModelError, match="SystemExit: 3"):
        entity.query({"dataframe_records": [{"a": 1.0}]})


def test_a_batch_without_rows_does_not_reach_the_model(says):
    assert says("never asked", ["double"], rows=THREE.slice(0, 0)).type == pa.float64()


@pytest.mark.parametrize(
    ("outputs", "wanted"),
    [
        (Schema([ColSpec("datetime")]), pa.timestamp("us")),
        (Schema([ColSpec("long", "n"), ColSpec("string", "s")]), pa.struct([("n", pa.int64()), ("s", pa.string())])),
        (Schema([ColSpec(Array(DataType.float))]), pa.list_(pa.float32())),
        (Schema([ColSpec(Map(DataType.long))]), pa.map_(pa.string(), pa.int64())),
        (Schema([ColSpec(Object([Property("k", DataType.string)]))]), pa.struct([("k", pa.string())])),
        (Schema([ColSpec(AnyType())]), None),
        (Schema([ColSpec(Array(AnyType()))]), None),
        (Schema([TensorSpec(np.dtype("float32"), (-1,))]), pa.float32()),
        (Schema([TensorSpec(np.dtype("float64"), (-1, 3))]), pa.list_(pa.float64())),
        (Schema([TensorSpec(np.dtype("float64"), (-1, 3, 2))]), pa.list_(pa.list_(pa.float64()))),
        (Schema([TensorSpec(np.dtype("O"), (-1,))]), None),
        (None, None),
    ],
    ids=str,
)
def test_the_signature_tells_the_type_of_an_answer(outputs, wanted):
    from aiquery_serving.entities.signature import output_type

    assert output_type(outputs) == wanted


# --- loading and sharing --------------------------------------------------------------------------


class Loads(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        if os.environ.get("AIQUERY_TEST_FAIL"):
            raise RuntimeError("no weights")
        self.said = os.environ.get("AIQUERY_TEST_SAID")

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return [self.said] * len(model_input)


@pytest.fixture
def loads(registry, serve, sign, monkeypatch):
    monkeypatch.delenv("AIQUERY_TEST_SAID", raising=False)
    serve(Loads(), signature=sign({"a": "double"}, ["string"]))
    yield registry.models.path(f"tests.models.model-{registry._names}", "1")
    for name in ("AIQUERY_TEST_SAID", "AIQUERY_TEST_FAIL"):
        os.environ.pop(name, None)


def test_environment_variables_are_there_while_the_model_loads(loads):
    entity = load_pyfunc(loads, name="m", environment={"AIQUERY_TEST_SAID": "hello"})
    assert entity.predict(THREE).to_pylist() == ["hello"] * 3


def test_a_model_whose_load_raises_says_why_and_leaves_no_variables(loads):
    wrong = {"AIQUERY_TEST_FAIL": "1", "AIQUERY_TEST_SAID": "secret"}
    with pytest.raises(ModelError, match=r"Model 'm' could not be loaded: .*no weights") as caught:
        load_pyfunc(loads, name="m", environment=wrong)
    assert "secret" not in str(caught.value)
    assert "AIQUERY_TEST_SAID" not in os.environ


def test_a_folder_without_a_model_cannot_be_loaded(tmp_path):
    with pytest.raises(ModelError, match="Model 'm' could not be loaded"):
        load_pyfunc(tmp_path, name="m", environment={})


def test_threads_may_ask_one_entity_at_once(classifier):
    entity, model = classifier
    batches = [doubles(100, names) for names in ("abcd", "dcba", "abcde") * 4]
    results: dict[int, list] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: entity.predict(batches[n]).to_pylist()}))
        for n in range(len(batches))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = [model.predict(b.select(list("abcd")).to_pandas()).tolist() for b in batches]
    assert [results[n] for n in range(len(batches))] == wanted


def test_only_a_few_plans_are_kept(classifier):
    entity, _ = classifier
    for number in range(20):
        entity.predict(doubles(1).append_column(f"extra{number}", pa.array([0])))
    assert len(entity._scorer._plans) == 8


@given(
    values=st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), min_size=1, max_size=20),
    words=st.lists(st.one_of(st.none(), st.text()), min_size=1, max_size=20),
)
def test_what_goes_in_comes_out(values, words):
    from aiquery_serving.entities.answers import answers
    from aiquery_serving.entities.frames import plan
    from aiquery_serving.entities.signature import inputs_of

    count = min(len(values), len(words))
    rows = pa.record_batch({"v": pa.array(values[:count], pa.float64()), "w": pa.array(words[:count], pa.string())})
    inputs = inputs_of(Schema([ColSpec("string", "w"), ColSpec("double", "v")]))
    frame = plan(inputs, rows.schema)(rows)
    back = answers(frame, count, pa.struct([("v", pa.float64()), ("w", pa.string())]))
    assert [row["w"] for row in back.to_pylist()] == words[:count]
    nan_as_null = [None if np.isnan(row["v"]) else row["v"] for row in back.to_pylist()]
    assert nan_as_null == values[:count]
