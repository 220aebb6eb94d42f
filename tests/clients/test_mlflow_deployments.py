"""MLflow's own door: `mlflow.deployments.get_deploy_client("aiquery")`, no server needed (contract G.3)."""

from __future__ import annotations

import subprocess
import sys

import mlflow
import pandas as pd
import pytest
from custom_models import MODELS, split
from declarations import openai
from mlflow.deployments import get_deploy_client
from mlflow.exceptions import MlflowException
from providers import KEY, OpenAIServer, status

import aiquery

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
LIMITS = [{"calls": 500, "key": "endpoint", "renewal_period": "minute"}]
TAGS = [{"key": "team", "value": "x"}]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "AIQUERY_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A workspace whose registry holds two models of our own."""
    path = tmp_path_factory.mktemp("deployments") / "workspace"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_REGISTRY_URI", raising=False)
        workspace = get_deploy_client(f"aiquery:{path}").workspace
        mlflow.set_tracking_uri(workspace.tracking_uri)
        try:
            for name in ("demo.shop.forecast_a", "demo.shop.forecast-b"):
                model, signature = MODELS[name]
                mlflow.pyfunc.log_model(
                    name="model",
                    python_model=model,
                    signature=signature,
                    registered_model_name=name,
                    pip_requirements=[],
                )
        finally:
            mlflow.set_tracking_uri(None)
            workspace.close()
    return path


@pytest.fixture
def client(folder):
    found = get_deploy_client(f"aiquery:{folder}")
    yield found
    for endpoint in found.list_endpoints():
        found.delete_endpoint(endpoint.name)
    found.workspace.close()


@pytest.fixture
def server():
    with OpenAIServer() as running:
        yield running


def chat(server, **members) -> dict:
    block = {"openai_api_base": server.url, "openai_api_key_plaintext": KEY}
    return {"served_entities": [{"name": "gpt", "external_model": openai(block, **members)}]}


def rows(*values) -> dict:
    return {"dataframe_split": {"columns": ["a", "b"], "data": [list(pair) for pair in values]}}


def test_the_whole_life_of_an_endpoint_with_models_of_our_own(client):
    created = client.create_endpoint(name="multi-model", config=split(90, 10))
    assert created.name == created["name"] == "multi-model"
    client.workspace.wait("multi-model")

    found = client.get_endpoint("multi-model")
    assert found.state == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert found.state.ready == "READY"
    assert {entity["name"] for entity in found.config.served_entities} == {"current", "challenger"}
    assert [endpoint.name for endpoint in client.list_endpoints()] == ["multi-model"]

    # Twenty calls of a 90/10 split: the challenger, who answers with the opposite sign, gets two of them.
    answers = [client.predict(endpoint="multi-model", inputs=rows((1.0, 2.0))) for _ in range(20)]
    assert sorted(answer.predictions[0] for answer in answers) == [-21.0] * 2 + [21.0] * 18

    client.update_endpoint_config("multi-model", split(50, 50))
    client.workspace.wait("multi-model")
    answers = [client.predict(endpoint="multi-model", inputs=rows((1.0, 2.0))) for _ in range(20)]
    assert sorted(answer["predictions"][0] for answer in answers) == [-21.0] * 10 + [21.0] * 10

    assert client.delete_endpoint("multi-model") == {}
    assert client.list_endpoints() == []


def test_an_external_model_answers_as_its_provider_does(client, server):
    created = client.create_endpoint(name="gpt", config=chat(server))
    assert created.state == {"ready": "READY", "config_update": "NOT_UPDATING"}
    answer = client.predict(endpoint="gpt", inputs=HELLO)
    assert answer.choices[0]["message"]["content"] == "echo: hello"
    assert answer.usage.total_tokens == 3
    assert client.predict("gpt", HELLO).choices == answer.choices  # MLflow's older argument order


def test_predict_stream_yields_the_pieces_of_an_answer(client, server):
    client.create_endpoint(name="gpt", config=chat(server))
    pieces = list(client.predict_stream(endpoint="gpt", inputs=HELLO))
    assert "".join(piece.choices[0]["delta"].get("content") or "" for piece in pieces) == "echo: hello"
    with pytest.raises(MlflowException, match="'no' does not exist"):
        client.predict_stream(endpoint="no", inputs=HELLO)


def test_no_key_comes_back(client, server):
    created = client.create_endpoint(name="gpt", config=chat(server))
    assert KEY not in str(created) + str(client.get_endpoint("gpt")) + str(client.list_endpoints())


@pytest.mark.parametrize("how", ["whole body", "whole body and name", "inner config"])
def test_both_forms_of_a_declaration(client, server, how):
    inner = chat(server)
    outer = {"tags": TAGS, "rate_limits": LIMITS, "description": "ours"}
    body = {"name": "gpt", "config": inner, **outer}
    if how == "whole body":
        given, created = body, client.create_endpoint(config=body)
    elif how == "whole body and name":
        given, created = body, client.create_endpoint(name="gpt", config=body)
    else:
        given = inner | outer
        created = client.create_endpoint(name="gpt", config=given)
    assert (created.name, created.tags, created.description) == ("gpt", TAGS, "ours")
    assert created.config.served_entities[0]["name"] == "gpt"
    assert {"tags", "rate_limits"} <= given.keys()  # what the caller gave is not changed


def test_an_endpoint_may_have_no_config_yet(client, server):
    created = client.create_endpoint(name="later", config={"tags": TAGS})
    assert (created.state.ready, created.tags) == ("NOT_READY", TAGS)
    client.update_endpoint_config("later", chat(server))
    assert client.get_endpoint("later").state.ready == "READY"


def test_route_optimized_may_stand_beside_the_config(client):
    created = client.create_endpoint(name="fast", config=split(90, 10), route_optimized=True)
    assert created.route_optimized is True
    with pytest.raises(MlflowException, match=r"Conflicting 'route_optimized'.*fast2"):
        client.create_endpoint("fast2", {"config": split(90, 10), "route_optimized": True}, route_optimized=False)


def test_update_endpoint_with_nothing_but_rate_limits_changes_those(client, server):
    client.create_endpoint(name="gpt", config=chat(server))
    with pytest.warns(FutureWarning, match="update_endpoint is deprecated"):
        answer = client.update_endpoint(endpoint="gpt", config={"rate_limits": LIMITS})
    assert answer == {"rate_limits": LIMITS}
    assert client.get_endpoint("gpt").config.config_version == 1
    assert client.update_endpoint_rate_limits("gpt", {"rate_limits": []}) == {"rate_limits": []}


def test_update_endpoint_with_anything_else_is_a_config_update(client, server):
    client.create_endpoint(name="gpt", config=chat(server))
    with pytest.warns(FutureWarning, match="use update_endpoint_config"):
        answer = client.update_endpoint(endpoint="gpt", config=chat(server, name="gpt-4o"))
    assert answer.config.config_version == 2
    assert answer.config.served_entities[0]["external_model"]["name"] == "gpt-4o"


def test_tags_and_the_ai_gateway_block(client, server):
    client.create_endpoint(name="gpt", config=chat(server) | {"tags": TAGS})
    change = {"add_tags": [{"key": "cost", "value": "low"}], "delete_tags": ["team"]}
    assert client.update_endpoint_tags("gpt", change).tags == [{"key": "cost", "value": "low"}]
    block = {"usage_tracking_config": {"enabled": True}}
    assert client.update_endpoint_ai_gateway("gpt", block) == block
    assert client.get_endpoint("gpt").ai_gateway == block


def test_errors_are_mlflows_own_with_databricks_codes(client, server):
    client.create_endpoint(name="gpt", config=chat(server))
    wrong_share = split(90, 20)
    for call, code, http_status, text in (
        (lambda: client.get_endpoint("no"), "RESOURCE_DOES_NOT_EXIST", 404, "'no' does not exist"),
        (lambda: client.delete_endpoint("no"), "RESOURCE_DOES_NOT_EXIST", 404, "'no' does not exist"),
        (lambda: client.predict(endpoint="no", inputs=HELLO), "RESOURCE_DOES_NOT_EXIST", 404, "'no' does not exist"),
        (lambda: client.create_endpoint("gpt", chat(server)), "RESOURCE_ALREADY_EXISTS", 400, "already exists"),
        (lambda: client.create_endpoint("new", wrong_share), "INVALID_PARAMETER_VALUE", 400, "110"),
        (lambda: client.create_endpoint("a b", chat(server)), "INVALID_PARAMETER_VALUE", 400, "a b"),
        (lambda: client.create_endpoint(config=chat(server)), "INVALID_PARAMETER_VALUE", 400, "endpoint's name"),
        (lambda: client.create_endpoint("x", {"name": "y", "config": {}}), "INVALID_PARAMETER_VALUE", 400, "mismatch"),
        (lambda: client.update_endpoint_config("gpt", split(90, 10)), "INVALID_PARAMETER_VALUE", 400, "external"),
        (lambda: client.predict(endpoint="gpt", inputs={"text": "x"}), "BAD_REQUEST", 400, "messages"),
        (lambda: client.predict(endpoint="gpt", inputs=pd.DataFrame()), "INVALID_PARAMETER_VALUE", 400, "DataFrame"),
        (lambda: client.create_deployment("a", "models:/m/1"), "INTERNAL_ERROR", 500, "endpoints, not deployments"),
    ):
        with pytest.raises(MlflowException) as caught:
            call()
        assert (caught.value.error_code, caught.value.get_http_status_code()) == (code, http_status), caught.value
        assert text in str(caught.value)


def test_a_provider_that_refuses_the_key_is_permission_denied(client, server):
    server.fault = status(401)
    client.create_endpoint(name="gpt", config=chat(server))
    with pytest.raises(MlflowException, match="refuses the configured key") as caught:
        client.predict(endpoint="gpt", inputs=HELLO)
    assert (caught.value.error_code, caught.value.get_http_status_code()) == ("PERMISSION_DENIED", 403)


def test_an_unknown_field_says_which_there_are(client, server):
    created = client.create_endpoint(name="gpt", config=chat(server))
    with pytest.raises(AttributeError, match=r"no field 'nmae'.*name"):
        _ = created.nmae


@pytest.mark.parametrize(
    ("target", "home", "expected"),
    [
        ("aiquery", None, ".aiquery"),
        ("aiquery", "elsewhere", "elsewhere"),
        ("aiquery:here", "elsewhere", "here"),
        ("aiquery:{tmp}/abs", None, "abs"),
        ("aiquery://{tmp}/abs", None, "abs"),
    ],
)
def test_a_target_names_a_workspace(monkeypatch, tmp_path, target, home, expected):
    monkeypatch.chdir(tmp_path)
    if home:
        monkeypatch.setenv("AIQUERY_HOME", home)
    client = get_deploy_client(target.format(tmp=tmp_path))
    assert client.workspace.path == tmp_path / expected
    client.workspace.close()


def test_the_registry_that_mlflow_logs_to_is_not_the_next_workspaces(tmp_path):
    # MLflow writes what it is told into the environment, where a workspace looks for the user's wish.
    try:
        with aiquery.Workspace(tmp_path / "first") as first, aiquery.Workspace(tmp_path / "again") as again:
            mlflow.set_tracking_uri(first.tracking_uri)
            mlflow.set_registry_uri(first.registry_uri)
            with aiquery.Workspace(tmp_path / "second") as second, aiquery.Workspace(tmp_path / "first") as same:
                assert second.tracking_uri == f"sqlite:///{tmp_path}/second/mlflow.db" == second.registry_uri
                assert same.tracking_uri == first.tracking_uri != again.tracking_uri
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)


def test_a_registry_of_the_users_own_is_every_workspaces(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/team.db")
    for name in ("first", "second"):
        with aiquery.Workspace(tmp_path / name) as workspace:
            assert workspace.models.tracking_uri == f"sqlite:///{tmp_path}/team.db"


def test_a_workspace_that_cannot_be_opened_is_an_mlflow_error(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(MlflowException, match="file"):
        get_deploy_client(f"aiquery:{file}")


def test_a_second_process_sees_the_endpoint_and_mlflows_command_line_describes_the_target(client, server):
    client.create_endpoint(name="gpt", config=chat(server))
    code = (
        "from mlflow.deployments import get_deploy_client\n"
        f"print([e.name for e in get_deploy_client({f'aiquery:{client.workspace.path}'!r}).list_endpoints()])\n"
        "from mlflow.deployments.interface import _target_help\n"
        "print(_target_help('aiquery'))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.startswith("['gpt']")
    assert "AIQUERY_HOME" in out
