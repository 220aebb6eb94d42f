"""The workspace as a Python user meets it: endpoints in the REST API's JSON, queries, limits, usage."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import urllib.request

import duckdb
import orjson
import pytest
from engine_endpoints import external
from providers import KEY, OpenAIServer

import aiquery
from aiquery_serving.errors import (
    ConfigurationError,
    EndpointExistsError,
    EndpointNotFoundError,
    PermissionDeniedError,
    TooManyRequestsError,
    WorkspaceError,
)

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def server():
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def workspace(server):
    with aiquery.Workspace(":memory:", user="ada@example.com") as opened:
        opened.create_endpoint("chat", {"served_entities": [external(server, "llm/v1/chat", "gpt-4o")]})
        yield opened


def two(server, first: int = 90) -> dict:
    entities = [external(server, "llm/v1/chat", "gpt-4o", name) for name in ("current", "challenger")]
    shares = {"current": first, "challenger": 100 - first}
    routes = [{"served_model_name": name, "traffic_percentage": str(share)} for name, share in shares.items()]
    return {"served_entities": entities, "traffic_config": {"routes": routes}}


def test_a_created_endpoint_is_echoed_with_its_defaults(workspace, server):
    endpoint = workspace.get_endpoint("chat")

    assert (endpoint["name"], endpoint["creator"]) == ("chat", "ada@example.com")
    assert endpoint["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert len(endpoint["id"]) == 32
    assert endpoint["creation_timestamp"] > 1_700_000_000_000
    assert endpoint["config"]["config_version"] == 1
    assert endpoint["config"]["traffic_config"]["routes"] == [
        {"served_model_name": "gpt-4o", "served_entity_name": "gpt-4o", "traffic_percentage": 100}
    ]
    assert KEY not in str(endpoint)
    assert [item["name"] for item in workspace.list_endpoints()] == ["chat"]


def test_a_query_is_answered_in_the_rest_apis_json(workspace):
    answer = workspace.query("chat", HELLO)

    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == "echo: hello"


def test_a_new_endpoint_of_an_old_name_has_its_limits_afresh(workspace, server):
    for _ in range(2):
        config = {"served_entities": [external(server, "llm/v1/chat", "gpt-4o")]}
        workspace.create_endpoint("few", config, rate_limits=[{"calls": 1, "renewal_period": "minute"}])
        assert workspace.query("few", HELLO)
        with pytest.raises(TooManyRequestsError):
            workspace.query("few", HELLO)
        workspace.delete_endpoint("few")


def test_an_answer_comes_piece_by_piece(workspace):
    pieces = list(workspace.stream("chat", HELLO))
    assert len(pieces) > 2
    assert "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces) == "echo: hello"
    assert workspace.usage()[0]["completion_tokens"] > 0


def test_to_leave_an_answer_early_is_to_hang_up(workspace, server):
    server.pause = 0.05
    next(pieces := workspace.stream("chat", HELLO))
    pieces.close()
    assert [row["errors"] for row in workspace.usage()] == [1]
    assert workspace.query("chat", HELLO)


def test_who_opens_a_workspace_may_do_no_more_than_they_were_permitted(tmp_path, server):
    with (
        aiquery.Workspace(tmp_path, user="ada") as ada,
        aiquery.Workspace(tmp_path, user="bob") as bob,
        duckdb.connect() as con,
    ):
        ada.create_endpoint("chat", {"served_entities": [external(server, "llm/v1/chat", "gpt-4o")]})
        aiquery.register(con, workspace=bob)
        assert bob.query("chat", HELLO), "nobody was given anything yet"
        ada.access.create_token("ada", by="ada")
        bob.access._look_at = 0.0
        for denied in (
            lambda: bob.query("chat", HELLO),
            lambda: bob.stream("chat", HELLO),
            lambda: bob.get_endpoint("chat"),
            lambda: bob.delete_endpoint("chat"),
        ):
            with pytest.raises(PermissionDeniedError, match="'bob'"):
                denied()
        with pytest.raises(duckdb.Error, match="'bob'"):
            con.sql("SELECT ai_query('chat', 'hello')").fetchall()
        assert bob.list_endpoints() == []
        assert ada.query("chat", HELLO)


def test_a_server_beside_sql_serves_the_same_endpoints(workspace):
    with aiquery.serve(workspace) as server:
        request = urllib.request.Request(
            f"{server.url}/serving-endpoints/chat/invocations", data=orjson.dumps(HELLO), method="POST"
        )
        with urllib.request.urlopen(request) as answer:
            assert orjson.loads(answer.read())["choices"][0]["message"]["content"] == "echo: hello"
            assert answer.headers["served-model-name"] == "gpt-4o"


def test_a_split_is_exact_and_one_served_model_can_be_asked_for(workspace, server):
    workspace.create_endpoint("split", two(server))

    for _ in range(20):
        workspace.query("split", HELLO)
    for _ in range(3):
        workspace.query("split", HELLO, served_model="challenger")

    calls = {row["served_entity"]: row["calls"] for row in workspace.usage() if row["endpoint"] == "split"}
    assert calls == {"current": 18, "challenger": 2 + 3}
    with pytest.raises(EndpointNotFoundError, match="nobody"):
        workspace.query("split", HELLO, served_model="nobody")


def test_an_update_changes_the_shares(workspace, server):
    workspace.create_endpoint("split", two(server))

    echoed = workspace.update_endpoint_config("split", two(server, 50))

    assert echoed["config"]["config_version"] == 2
    assert [route["traffic_percentage"] for route in echoed["config"]["traffic_config"]["routes"]] == [50, 50]


def test_a_rate_limit_refuses_an_interactive_caller_at_once(workspace):
    workspace.update_endpoint_rate_limits("chat", [{"calls": 2, "key": "endpoint", "renewal_period": "minute"}])

    for _ in range(2):
        workspace.query("chat", HELLO)
    with pytest.raises(TooManyRequestsError, match="chat") as refused:
        workspace.query("chat", HELLO)

    assert 0 < refused.value.retry_after <= 60
    assert (refused.value.error_code, refused.value.http_status) == ("REQUEST_LIMIT_EXCEEDED", 429)


def test_tags_and_the_gateway_block_are_replaced_by_their_own_calls(workspace):
    assert workspace.update_endpoint_tags("chat", {"add_tags": [{"key": "team", "value": "x"}]}) == {
        "tags": [{"key": "team", "value": "x"}]
    }
    limits = {"rate_limits": [{"calls": 5, "key": "user", "renewal_period": "minute"}]}
    assert workspace.update_endpoint_ai_gateway("chat", limits) == limits
    assert workspace.get_endpoint("chat")["ai_gateway"] == limits


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"served_entities": []}, "served_entities"),
        ({"served_entities": [{"entity_name": "a.b.c", "entity_version": 1}]}, "a.b.c"),
        ({"served_entities": [{"external_model": {"provider": "openai", "name": "m"}}]}, "task"),
    ],
)
def test_a_declaration_that_cannot_work_creates_nothing(workspace, config, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        workspace.create_endpoint("broken", config)

    with pytest.raises(EndpointNotFoundError, match="Endpoint with name 'broken' does not exist"):
        workspace.get_endpoint("broken")


def test_a_name_is_free_again_after_a_delete(workspace, server):
    with pytest.raises(EndpointExistsError, match="chat"):
        workspace.create_endpoint("chat")
    before = workspace.get_endpoint("chat")["id"]

    assert workspace.delete_endpoint("chat") == {}
    workspace.create_endpoint("chat", {"served_entities": [external(server, "llm/v1/chat", "gpt-4o")]})

    assert workspace.get_endpoint("chat")["id"] != before


def test_a_folder_keeps_endpoints_secrets_and_usage(server, tmp_path, monkeypatch):
    monkeypatch.setenv("AIQUERY_HOME", str(tmp_path / "home"))
    with aiquery.Workspace() as first:
        assert first.path == tmp_path / "home"
        first.create_endpoint("chat", {"served_entities": [external(server, "llm/v1/chat", "gpt-4o")]})
        first.query("chat", HELLO)

    with aiquery.Workspace() as second:
        assert second.query("chat", HELLO)["choices"][0]["message"]["content"] == "echo: hello"
        assert [(row["endpoint"], row["calls"]) for row in second.usage()] == [("chat", 2)]
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_another_process_sees_the_same_endpoints(server, tmp_path):
    with aiquery.Workspace(tmp_path / "w") as here:
        here.create_endpoint("chat", {"served_entities": [external(server, "llm/v1/chat", "gpt-4o")]})
        script = f"""
            import aiquery
            with aiquery.Workspace({str(tmp_path / "w")!r}) as there:
                print(there.query("chat", {HELLO!r})["choices"][0]["message"]["content"])
                there.update_endpoint_tags("chat", {{"add_tags": [{{"key": "seen"}}]}})
        """
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
        )

        assert ran.stdout == "echo: hello\n"
        assert [tag["key"] for tag in here.get_endpoint("chat")["tags"]] == ["seen"]


def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")

    with pytest.raises(WorkspaceError, match="file"):
        aiquery.Workspace(tmp_path / "file")

    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_secret_is_shown(workspace):
    assert KEY not in repr(workspace) + repr(workspace.secrets) + repr(vars(workspace))
