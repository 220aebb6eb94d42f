"""Any JSON at all, sent to a model of our own and to one of a provider: it is answered, or refused with a code."""

from __future__ import annotations

import json
import warnings

import httpx
import mlflow.pyfunc
import orjson
import pytest
from hostile_json import anything, keys, texts, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import LoopbackServer, Reply
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Map, Object, Property
from rest_server import serving, serving_entities

import aiquery
from aiquery_serving.entities.pyfunc import load_pyfunc

CODES = {
    400: {"BAD_REQUEST", "INVALID_PARAMETER_VALUE"},
    404: {"RESOURCE_DOES_NOT_EXIST"},
    413: {"BAD_REQUEST"},
}
bounded = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

rows = st.lists(
    st.dictionaries(st.sampled_from(["n", "s", "b", "t", "d", "l", "m", "o"]), values, max_size=8), max_size=4
)
tables = st.fixed_dictionaries(
    {
        "columns": st.lists(keys | st.integers(), max_size=4),
        "data": st.lists(st.lists(values, max_size=4) | values, max_size=4),
    }
)
nearly = st.one_of(
    st.fixed_dictionaries({"dataframe_records": rows}, optional={"params": values}),
    st.fixed_dictionaries({"dataframe_split": tables}, optional={"params": values}),
    st.fixed_dictionaries(
        {"inputs": st.dictionaries(keys, st.lists(values, max_size=3)) | values}, optional={"params": values}
    ),
    st.fixed_dictionaries({"instances": rows | values}),
)
messages = st.lists(
    st.fixed_dictionaries({"role": texts, "content": values}, optional={"tool_calls": values, "name": values}),
    max_size=3,
)
fields = dict.fromkeys(
    (
        "max_tokens",
        "temperature",
        "stop",
        "tools",
        "tool_choice",
        "stream_options",
        "response_format",
        "n",
        "user",
        "logprobs",
        "seed",
        "extra_params",
    ),
    values,
)
chats = st.fixed_dictionaries({"messages": messages | values}, optional={**fields, "stream": st.booleans() | values})
completions = st.fixed_dictionaries(
    {"prompt": texts | st.lists(texts) | values}, optional={**fields, "suffix": values, "echo": values}
)
embeddings = st.fixed_dictionaries(
    {"input": st.lists(texts) | values}, optional={"dimensions": values, "encoding_format": values}
)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow would like type hints, and knows none for "anything"

    class Echo(mlflow.pyfunc.PythonModel):
        """Gives back what it got: nothing that the wire carries may be too much for an answer."""

        def predict(self, context, model_input, params=None):
            return {"got": model_input, "params": params}


SIGNATURE = ModelSignature(
    Schema(
        [ColSpec("double", "n"), ColSpec("string", "s"), ColSpec("boolean", "b", required=False),
         ColSpec("datetime", "t", required=False), ColSpec("binary", "d", required=False),
         ColSpec(Array("long"), "l", required=False), ColSpec(Map("string"), "m", required=False),
         ColSpec(Object([Property("x", "long"), Property("y", "string", required=False)]), "o", required=False)]
    ),
    params=ParamSchema([ParamSpec("top", "long", 1), ParamSpec("names", "string", ["a"], shape=(-1,))]),
)  # fmt: skip


@pytest.fixture(scope="module")
def client():
    with httpx.Client(timeout=20) as shared:
        yield shared


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A server of two models of our own: `signed`, and `free`, which takes anything."""
    folder = tmp_path_factory.mktemp("models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow would like type hints
        for name, signature in (("signed", SIGNATURE), ("free", None)):
            mlflow.pyfunc.save_model(folder / name, python_model=Echo(), signature=signature, pip_requirements=[])
    entities = {name: load_pyfunc(folder / name, name=name, environment={}) for name in ("signed", "free")}
    with serving_entities(entities) as running:
        yield running


def _json(document):
    return Reply(body=orjson.dumps(document))


def reply(request):
    """Answer as OpenAI does, whatever was asked."""
    kind = request.path.rpartition("/v1/")[2]
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    if kind == "embeddings":
        given = orjson.loads(request.body)["input"]
        count = len(given) if isinstance(given, list) else 1
        return _json({"data": [{"index": number, "embedding": [1.0]} for number in range(count)], "usage": usage})
    choice = {"index": 0, "text": "hi", "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    if orjson.loads(request.body).get("stream") is True:
        chunk = {"choices": [{"index": 0, "text": "hi", "delta": {"content": "hi"}, "finish_reason": "stop"}]}
        text = b"data: " + orjson.dumps(chunk) + b"\n\ndata: [DONE]\n\n"
        return Reply(body=text, headers={"content-type": "text/event-stream"})
    return _json({"choices": [choice], "usage": usage})


@pytest.fixture(scope="module")
def external_models():
    """A server of one model of a provider for each task."""
    with LoopbackServer(reply) as provider, aiquery.Workspace(":memory:", user="ada") as workspace:
        for name in ("chat", "completions", "embeddings"):
            config = {"openai_api_base": f"{provider.origin}/v1", "openai_api_key_plaintext": "sk-1"}
            model = {"provider": "openai", "name": "m", "task": f"llm/v1/{name}", "openai_config": config}
            workspace.create_endpoint(name, {"served_entities": [{"external_model": model}]})
        with serving(workspace) as server:
            yield server


def answered(client, url, body):
    """Ask, and return the answer, which says why where it is a refusal."""
    answer = client.post(url, json=body) if isinstance(body, dict) else client.post(url, content=body)
    if answer.status_code != 200:
        error = answer.json()
        assert error.keys() == {"error_code", "message"}
        assert error["error_code"] in CODES[answer.status_code], answer.text
        assert error["message"]
        assert len(error["message"]) < 5000
    return answer


@pytest.mark.parametrize("endpoint", ["signed", "free"])
@bounded
@given(body=anything | nearly)
def test_a_model_of_our_own_answers_any_object_or_refuses_it(models, client, endpoint, body):
    answered(client, f"{models.url}/serving-endpoints/{endpoint}/invocations", body)


@pytest.mark.parametrize(
    ("endpoint", "bodies"), [("chat", chats), ("completions", completions), ("embeddings", embeddings)]
)
@bounded
@given(data=st.data())
def test_a_model_of_a_provider_answers_any_object_or_refuses_it(external_models, client, endpoint, bodies, data):
    answered(client, f"{external_models.url}/serving-endpoints/{endpoint}/invocations", data.draw(bodies | anything))


@bounded
@given(body=st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_object_is_refused(external_models, client, body):
    assert answered(client, f"{external_models.url}/serving-endpoints/chat/invocations", body).status_code == 400


@bounded
@given(
    body=st.fixed_dictionaries(
        {"model": st.sampled_from(["chat", "completions", "embeddings"]) | values}, optional=fields
    )
    | chats
    | embeddings
)
@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings", "responses"])
def test_the_openai_routes_answer_any_object_or_refuse_it(external_models, client, path, body):
    answered(client, f"{external_models.url}/serving-endpoints/{path}", body)
