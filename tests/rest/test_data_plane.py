"""Queries over HTTP: every path, every task, and what real clients make of the answers."""

from __future__ import annotations

import base64
import json

import httpx
import numpy as np
import openai
import pytest
from engine_endpoints import external
from rest_entities import HELLO, Embedder, Scorer, Speaker
from rest_server import serving_entities

ENVELOPE = {"client_request_id": "r-1", "usage_context": {"team": "x"}}


def post(server, path, body, **headers):
    return httpx.post(server.url + path, json=body, headers=headers)


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/serving-endpoints/chat/invocations", HELLO, "chat.completion"),
        ("/serving-endpoints/chat/invocations/", HELLO, "chat.completion"),
        ("/serving-endpoints/ch%61t/invocations", HELLO, "chat.completion"),
        ("/serving-endpoints/chat/served-models/gpt-4o/invocations", HELLO, "chat.completion"),
        ("/serving-endpoints/completions/invocations", {"prompt": "Once", "max_tokens": 8}, "text_completion"),
        ("/serving-endpoints/embeddings/invocations", {"input": ["t1", "t2"]}, "list"),
        ("/serving-endpoints/chat/completions", {**HELLO, "model": "chat"}, "chat.completion"),
        ("/serving-endpoints/completions", {"model": "completions", "prompt": ["a"]}, "text_completion"),
        ("/serving-endpoints/embeddings", {"model": "embeddings", "input": "t"}, "list"),
        ("/ai-gateway/mlflow/v1/chat/completions", {**HELLO, "model": "chat"}, "chat.completion"),
        ("/ai-gateway/openai/v1/embeddings", {"model": "embeddings", "input": "t"}, "list"),
    ],
)
def test_every_path_leads_to_its_endpoint(server, provider, path, body, kind):
    answer = post(server, path, {**body, **ENVELOPE, "stream": False})
    assert (answer.status_code, answer.json().get("object")) == (200, kind)
    assert answer.headers["served-model-name"].startswith(("gpt", "text"))
    assert not provider.requests[-1].keys() & {*ENVELOPE, "stream"}


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/serving-endpoints/nobody/invocations", HELLO, "nobody"),
        ("/serving-endpoints/chat/served-models/nobody/invocations", HELLO, "nobody"),
        ("/serving-endpoints/chat/completions", {**HELLO, "model": "nobody"}, "nobody"),
    ],
)
def test_what_is_not_there_is_named(server, provider, path, body, named):
    answer = post(server, path, body)
    assert (answer.status_code, answer.json()["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")
    assert f"'{named}'" in answer.json()["message"]
    assert provider.requests == []


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("chat/completions", HELLO, "model"),
        ("chat/completions", {**HELLO, "model": 7}, "model"),
        ("embeddings", {**HELLO, "model": "chat"}, "chat/completions"),
        ("chat/invocations", {"prompt": "x"}, "messages"),
        ("chat/invocations", {"messages": []}, "messages"),
        ("chat/invocations", {"messages": ["hi"]}, "messages"),
        ("chat/invocations", {"messages": [{"content": "hi"}]}, "messages"),
        ("chat/invocations", {**HELLO, "max_tokens": 0}, "max_tokens"),
        ("chat/invocations", {**HELLO, "max_tokens": True}, "max_tokens"),
        ("chat/invocations", {**HELLO, "temperature": 2.5}, "temperature"),
        ("chat/invocations", {**HELLO, "stream": "yes"}, "stream"),
        ("chat/invocations", {**HELLO, "extra_params": ["x"]}, "extra_params"),
        ("completions/invocations", HELLO, "prompt"),
        ("embeddings/invocations", {"input": []}, "input"),
        ("embeddings/invocations", {"input": [1, "a"]}, "input"),
    ],
)
def test_a_wrong_query_is_told_which_part_of_it(server, provider, path, body, named):
    answer = post(server, f"/serving-endpoints/{path}", body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert f"'{named}'" in answer.json()["message"]
    assert provider.requests == []


def test_a_limit_refuses_at_once_and_says_when_to_come_back(server):
    server.workspace.update_endpoint_rate_limits("chat", [{"calls": 1, "renewal_period": "minute"}])
    path = "/serving-endpoints/chat/invocations"
    assert post(server, path, HELLO).status_code == 200
    answer = post(server, path, HELLO)
    assert (answer.status_code, answer.json()["error_code"]) == (429, "REQUEST_LIMIT_EXCEEDED")
    assert "User defined rate limit(s) exceeded for 'chat'" in answer.json()["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_a_field_that_nobody_has_heard_of_is_for_the_model_to_judge():
    speaker = Speaker()
    with serving_entities({"chat": speaker}) as server:
        answer = post(server, "/serving-endpoints/chat/invocations", {**HELLO, "unheard_of": {"a": 1}, "n": None})
    assert answer.status_code == 200
    assert speaker.asked == [{**HELLO, "unheard_of": {"a": 1}, "n": None}]


def test_a_split_is_kept_and_a_served_model_can_be_asked_past_it(server, provider):
    entities = [external(provider, "llm/v1/chat", "gpt-4o", name) for name in ("current", "challenger")]
    routes = [{"served_model_name": "current", "traffic_percentage": 100}]
    routes += [{"served_model_name": "challenger", "traffic_percentage": 0}]
    server.workspace.create_endpoint("two", {"served_entities": entities, "traffic_config": {"routes": routes}})
    past = "/serving-endpoints/two/served-models/challenger/invocations"
    paths = ["/serving-endpoints/two/invocations", past]
    names = [post(server, path, HELLO).headers["served-model-name"] for path in paths]
    assert names == ["current", "challenger"]


@pytest.fixture
def scorer():
    return Scorer()


@pytest.fixture
def custom(scorer):
    with serving_entities({"agent": scorer}) as running:
        yield running


def test_a_custom_model_gets_the_body_as_it_is(custom, scorer):
    body = {"dataframe_split": {"columns": ["a"], "data": [[1]]}, "params": {"top_n": 3}, **ENVELOPE}
    assert post(custom, "/serving-endpoints/agent/invocations", body).status_code == 200
    assert scorer.asked == [body]


@pytest.mark.parametrize("route", ["chat/completions", "responses"])
def test_an_agent_is_asked_over_the_openai_routes_without_the_model(custom, scorer, route):
    body = {"input": [{"role": "user", "content": "hi"}], "custom_inputs": {"a": 1}}
    assert post(custom, f"/serving-endpoints/{route}", {**body, "model": "agent"}).status_code == 200
    assert scorer.asked == [body]


@pytest.mark.parametrize(
    ("said", "answered"),
    [([1.5, float("nan")], [1.5, None]), (np.array([[1, 2]]), [[1, 2]]), ([np.float32(0.5)], [0.5])],
)
def test_numbers_become_json_and_what_is_none_becomes_null(said, answered):
    with serving_entities({"m": Scorer(said)}) as server:
        answer = post(server, "/serving-endpoints/m/invocations", {"inputs": [1]})
    assert answer.json() == {"predictions": answered}


@pytest.mark.parametrize("said", [[2**70], ["\ud800"], [object()]])
def test_an_answer_that_is_no_json_is_the_models_error(said):
    with serving_entities({"m": Scorer(said)}) as server:
        answer = post(server, "/serving-endpoints/m/invocations", {"inputs": [1]})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "BAD_REQUEST")
    assert "'only'" in answer.json()["message"]


def test_embeddings_come_in_base64_to_who_asks_for_it():
    embedder = Embedder()
    with serving_entities({"e": embedder}) as server:
        body = {"input": "x", "encoding_format": "base64", "stream": True}
        answer = post(server, "/serving-endpoints/e/invocations", body)
    vector = base64.b64decode(answer.json()["data"][0]["embedding"])
    assert np.frombuffer(vector, "<f4").tolist() == [1.0, -0.5]
    assert embedder.asked == [{"input": "x"}]


def test_an_exchange_is_told_to_observers_with_nothing_private():
    with serving_entities({"chat": Speaker()}) as server:
        post(server, "/serving-endpoints/chat/invocations?secret=1", HELLO, **{"x-request-id": "id-1"})
        httpx.get(server.url + "/health")
    query, health = server.records.exchanges
    assert server.records.asked_of == ["chat"]
    assert (query.id, query.method, query.path) == ("id-1", "POST", "/serving-endpoints/chat/invocations")
    assert (query.endpoint, query.served_entity, query.caller, query.status) == ("chat", "only", "ada", 200)
    assert (query.bytes_in, query.bytes_out > 50, query.ended > query.began) == (len(json.dumps(HELLO, separators=(",", ":"))), True, True)  # fmt: skip
    assert (health.endpoint, health.caller, health.status) == ("", "", 200)


@pytest.fixture
def sdk(server):
    with openai.OpenAI(base_url=server.url + "/serving-endpoints", api_key="none", max_retries=0) as client:
        yield client


def test_the_openai_sdk_asks_streams_and_embeds(server, sdk):
    messages = HELLO["messages"]
    whole = sdk.chat.completions.create(model="chat", messages=messages)
    assert whole.choices[0].message.content == "echo: hello"
    chunks = list(sdk.chat.completions.create(model="chat", messages=messages, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "echo: hello"
    assert len(sdk.embeddings.create(model="embeddings", input="x").data[0].embedding) == 8
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        sdk.chat.completions.create(model="nobody", messages=messages)
