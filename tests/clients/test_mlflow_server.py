"""`mlflow.deployments.get_deploy_client("databricks")` against the server, in both of its ways of HTTP (contract G.3)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests
from mlflow.deployments import get_deploy_client
from mlflow.deployments.databricks import DatabricksDeploymentClient
from mlflow.exceptions import MlflowException
from providers import KEY, too_many

HELLO = {"messages": [{"role": "user", "content": "good morning"}]}
LIMITS = [{"calls": 500, "key": "endpoint", "renewal_period": "minute"}]
TAGS = [{"key": "team", "value": "x"}]
#: What MLflow's deployments of other kinds have, and endpoints have not.
OTHER = {"create_deployment", "update_deployment", "delete_deployment", "list_deployments", "get_deployment",
         "predict_deployment", "explain"}  # fmt: skip

# MLflow advises against the older of its two forms of a declaration; both are tried here.
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:mlflow.deployments.databricks", "ignore:.*update_endpoint:FutureWarning"
)


@pytest.fixture(params=["true", "false"], ids=["databricks-sdk", "requests"])
def over_sdk(request, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_DB_SDK", request.param)
    return request.param == "true"


@pytest.fixture
def client(as_ada, over_sdk):
    found = get_deploy_client("databricks")
    before = {endpoint["name"] for endpoint in found.list_endpoints()}
    yield found
    for endpoint in found.list_endpoints():
        if endpoint["name"] not in before:
            found.delete_endpoint(endpoint["name"])


def split(current, challenger):
    def served(name, model):
        return {"name": name, "entity_name": f"demo.shop.{model}", "entity_version": 1, "workload_size": "Small",
                "scale_to_zero_enabled": "true"}  # fmt: skip

    routes = {"current": current, "challenger": challenger}
    return {
        "served_entities": [served("current", "forecast_a"), served("challenger", "forecast-b")],
        "traffic_config": {
            "routes": [{"served_model_name": name, "traffic_percentage": str(share)} for name, share in routes.items()]
        },
    }


def settled(client, name):
    until = time.monotonic() + 30
    while (found := client.get_endpoint(name)).state.config_update == "IN_PROGRESS":
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def test_every_method_is_tried_here():
    public = {name for name in vars(DatabricksDeploymentClient) if not name.startswith("_")}
    text = Path(__file__).read_text()
    untried = {name for name in public - OTHER if f"client.{name}(" not in text}
    assert not untried


def test_the_whole_life_of_an_endpoint(client):
    created = client.create_endpoint(name="life", config=split(90, 10))
    assert created.name == created["name"] == "life"
    assert len(created.id) == 32
    assert settled(client, "life").state == {"ready": "READY", "config_update": "NOT_UPDATING"}

    rows = {"dataframe_split": {"columns": ["a", "b"], "data": [[1.0, 2.0]]}}
    answers = [client.predict(endpoint="life", inputs=rows).predictions for _ in range(20)]
    assert sorted(answers) == [[-21.0]] * 2 + [[21.0]] * 18

    updating = client.update_endpoint_config(endpoint="life", config=split(50, 50))
    assert updating.name == "life"
    assert settled(client, "life").config.config_version == 2
    answers = [client.predict(endpoint="life", inputs=rows).predictions for _ in range(20)]
    assert sorted(answers) == [[-21.0]] * 10 + [[21.0]] * 10

    assert "life" in {endpoint["name"] for endpoint in client.list_endpoints()}
    assert client.delete_endpoint(endpoint="life") == {}
    assert "life" not in {endpoint["name"] for endpoint in client.list_endpoints()}


@pytest.mark.parametrize("how", ["whole body", "whole body and name", "inner config"])
def test_both_forms_of_a_declaration(client, served, how):
    outer = {"tags": TAGS, "rate_limits": LIMITS}
    body = {"name": "declared", "config": served.chat_config, **outer}
    if how == "whole body":
        created = client.create_endpoint(config=body)
    elif how == "whole body and name":
        created = client.create_endpoint(name="declared", config=body)
    else:
        created = client.create_endpoint(name="declared", config=served.chat_config | outer)
    assert (created.name, created.tags, created.route_optimized) == ("declared", TAGS, False)
    assert created.state.ready == "READY"
    assert KEY not in str(created) + str(client.get_endpoint("declared"))


def test_route_optimized_stands_in_both_places(client):
    body = {"name": "fast", "config": split(90, 10), "route_optimized": True}
    created = client.create_endpoint(config=body, route_optimized=True)
    assert created.route_optimized is True
    assert created.endpoint_url.endswith("/serving-endpoints/fast/invocations")


def test_the_updates_that_are_no_config(client, served):
    client.create_endpoint(name="small", config=served.chat_config | {"tags": TAGS})
    assert client.update_endpoint(endpoint="small", config={"rate_limits": LIMITS}) == {"rate_limits": LIMITS}
    assert client.update_endpoint_rate_limits(endpoint="small", config={"rate_limits": []}) == {"rate_limits": []}
    change = {"add_tags": [{"key": "cost", "value": "low"}], "delete_tags": ["team"]}
    assert client.update_endpoint_tags(endpoint="small", config=change).tags == [{"key": "cost", "value": "low"}]
    block = {"usage_tracking_config": {"enabled": True}, "rate_limits": LIMITS}
    assert client.update_endpoint_ai_gateway(endpoint="small", config=block) == block
    assert client.get_endpoint("small").ai_gateway == block
    updated = client.update_endpoint(endpoint="small", config=served.chat_config)
    assert updated.config.config_version == 2


def test_external_models_answer_as_their_providers_do(client):
    for endpoint in ("chat", "claude"):
        answer = client.predict(endpoint=endpoint, inputs={**HELLO, "max_tokens": 9})
        assert answer.choices[0]["message"]["content"] == "echo: good morning"
        assert answer.usage.total_tokens == 5
    assert client.predict(endpoint="completions", inputs={"prompt": "one"}).choices[0]["text"] == "echo: one"
    embedded = client.predict(endpoint="embeddings", inputs={"input": ["one", "two"]})
    assert [len(item["embedding"]) for item in embedded.data] == [8, 8]


@pytest.mark.parametrize(
    ("endpoint", "inputs"),
    [
        ("line", {"inputs": [[1.0, 2.0]]}),
        ("line", {"instances": [[1.0, 2.0]]}),
        ("split", {"dataframe_records": [{"a": 1.0, "b": 2.0}]}),
        ("split", {"inputs": {"a": [1.0], "b": [2.0]}}),
    ],
)
def test_models_of_our_own_take_every_form_of_rows(client, endpoint, inputs):
    (answer,) = client.predict(endpoint=endpoint, inputs=inputs).predictions
    assert abs(answer) == pytest.approx(21.0)


def test_agents_answer_in_their_own_words(client):
    asked = [{"role": "user", "content": "hi"}]
    assert client.predict(endpoint="talker", inputs={"messages": asked}).messages[0]["content"] == "heard: hi"
    assert client.predict(endpoint="responder", inputs={"input": asked}).output[0]["content"][0]["text"] == "heard: hi"


@pytest.mark.parametrize("endpoint", ["chat", "claude"])
def test_a_stream_comes_chunk_by_chunk(client, endpoint):
    chunks = list(client.predict_stream(endpoint=endpoint, inputs={**HELLO, "max_tokens": 9}))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len(chunks) > 2
    said = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert "".join(said) == "echo: good morning"


def test_an_agent_streams_its_own_events(client):
    asked = [{"role": "user", "content": "hi"}]
    chunks = list(client.predict_stream(endpoint="talker", inputs={"messages": asked}))
    assert "".join(chunk["delta"]["content"] for chunk in chunks) == "heard: hi"
    kinds = [event["type"] for event in client.predict_stream(endpoint="responder", inputs={"input": asked})]
    assert kinds == ["response.output_text.delta"] * 2 + ["response.output_item.done"]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda c, _: c.get_endpoint("none"), (404, 404, "RESOURCE_DOES_NOT_EXIST", "'none' does not exist")),
        (lambda c, _: c.delete_endpoint("none"), (404, 404, "RESOURCE_DOES_NOT_EXIST", "'none' does not exist")),
        (lambda c, _: c.predict(endpoint="none", inputs=HELLO), (404, 404, "RESOURCE_DOES_NOT_EXIST", "'none' does not exist")),
        (lambda c, s: c.create_endpoint("chat", s.chat_config), (400, 409, "RESOURCE_ALREADY_EXISTS", "already exists")),
        (lambda c, _: c.create_endpoint("new", split(90, 20)), (400, 400, "INVALID_PARAMETER_VALUE", "110")),
        (lambda c, s: c.create_endpoint("a b", s.chat_config), (400, 400, "INVALID_PARAMETER_VALUE", "a b")),
        (lambda c, _: c.update_endpoint_config("chat", split(90, 10)), (400, 400, "INVALID_PARAMETER_VALUE", "external")),
        (lambda c, _: c.predict(endpoint="chat", inputs={"text": "x"}), (400, 400, "INVALID_PARAMETER_VALUE", "messages")),
        (lambda c, _: c.predict(endpoint="split", inputs={"dataframe_records": [{"a": 1.0}]}), (400, 400, "INVALID_PARAMETER_VALUE", "b")),
        (lambda c, _: list(c.predict_stream(endpoint="none", inputs=HELLO)), (404, 404, "RESOURCE_DOES_NOT_EXIST", "'none' does not exist")),
    ],
)  # fmt: skip
def test_errors_carry_their_status_and_text(client, served, request, call, expected):
    # First over databricks-sdk, where MLflow makes the status from the code alone: 409 becomes 400.
    *statuses, code, text = expected
    with pytest.raises(requests.HTTPError) as caught:
        call(client, served)
    assert caught.value.response.status_code == statuses[request.node.callspec.params["over_sdk"] == "false"]
    assert code in str(caught.value)
    assert text in str(caught.value)


def test_who_is_unknown_or_may_not_ask_is_told_so(client, served, monkeypatch):
    for token, status, code in ((served.bob, 403, "PERMISSION_DENIED"), ("wrong", 401, "UNAUTHENTICATED")):
        monkeypatch.setenv("DATABRICKS_TOKEN", token)
        with pytest.raises(requests.HTTPError, match=code) as caught:
            client.predict(endpoint="chat", inputs=HELLO)
        assert caught.value.response.status_code == status
        monkeypatch.setenv("DATABRICKS_TOKEN", served.ada)


def test_mlflows_own_checks_come_before_any_request(client, served):
    with pytest.raises(MlflowException, match="Name mismatch"):
        client.create_endpoint(name="a", config={"name": "b", "config": served.chat_config})
    with pytest.raises(MlflowException, match="Conflicting 'route_optimized'"):
        client.create_endpoint(config={"name": "a", "config": split(90, 10), "route_optimized": True})


def test_mlflow_comes_again_after_a_rate_limit(client, moody):
    # The provider's 429 is handed on with its Retry-After, and MLflow comes again by itself.
    moody.provider.script.append(too_many(1.0))
    answer = client.predict(endpoint=moody.endpoint, inputs=HELLO)
    assert answer.choices[0]["message"]["content"] == "echo: good morning"
    assert len(moody.provider.requests) == 2
