"""Inference tables in SQL: what an endpoint was asked and what it answered, for whoever manages it."""

from __future__ import annotations

import json
from urllib.request import Request, urlopen

import duckdb
import pytest
from engine_endpoints import external
from providers import status

import aiquery
from aiquery.session import connect
from aiquery_serving.access import Grant

LOGGED = {"inference_table_config": {"enabled": True}}


in_a_folder = pytest.mark.parametrize("workspace", ["folder"], indirect=True)


@pytest.fixture(params=["folder", "memory"])
def workspace(request, server, tmp_path, monkeypatch):
    """A workspace with an endpoint that logs and one that does not, in a folder whose name looks like a pattern."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    path = ":memory:" if request.param == "memory" else tmp_path / "day=1" / "a [b] *"
    with aiquery.Workspace(path, user="ada@example.com") as opened:
        entities = {"served_entities": [external(server, "llm/v1/chat", "gpt-4o")]}
        opened.create_endpoint("chat", entities, ai_gateway=LOGGED)
        opened.create_endpoint("quiet", entities)
        yield opened


@pytest.fixture
def session(workspace):
    with connect(workspace=workspace, progress=False) as opened:
        yield opened


def ask(workspace, text="hello", endpoint="chat", **more):
    return workspace.query(endpoint, {"messages": [{"role": "user", "content": text}], **more})


def payloads(session, columns="*", endpoint="chat"):
    return session.sql(f"SELECT {columns} FROM ai_payloads('{endpoint}') ORDER BY request_time").fetchall()


def test_what_was_asked_and_answered_is_a_table(session, workspace):
    ask(workspace, "hello", client_request_id="mine")
    found = session.sql("FROM ai_payloads('chat')")
    row = dict(zip(found.columns, found.fetchall()[0], strict=True))
    assert json.loads(row["request"])["messages"] == [{"role": "user", "content": "hello"}]
    assert json.loads(row["response"])["choices"][0]["message"]["content"] == "echo: hello"
    assert (row["status_code"], row["served_entity_name"], row["requester"]) == (200, "gpt-4o", "ada@example.com")
    assert row["client_request_id"] == "mine"
    assert row["logging_error_codes"] is None
    assert row["request_date"] == row["request_time"].date()
    types = dict(zip(found.columns, map(str, found.types), strict=True))
    assert types["request_time"] == "TIMESTAMP WITH TIME ZONE"
    assert types["logging_error_codes"] == "VARCHAR[]"


def test_the_table_calls_a_request_what_the_server_and_its_log_call_it(session, workspace):
    with aiquery.serve(workspace) as server:
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
        request = Request(f"{server.url}/serving-endpoints/chat/invocations", body)
        with urlopen(request) as answer:
            named = answer.headers["x-request-id"]
    assert payloads(session, "databricks_request_id") == [(named,)]


def test_rows_of_a_query_are_logged_one_by_one(session):
    session.sql("SELECT ai_query('chat', 'n' || i) FROM range(50) t(i)").fetchall()
    counts = "count(*), count(DISTINCT request), count(DISTINCT databricks_request_id)"
    assert session.sql(f"SELECT {counts} FROM ai_payloads('chat')").fetchall() == [(50, 50, 50)]


def test_json_of_requests_is_for_sql_to_read(session, workspace):
    ask(workspace, "hello")
    assert payloads(session, "request ->> '$.messages[0].content'") == [("hello",)]


def test_requests_that_fail_are_logged_with_their_error(session, workspace, server):
    server.script.append(status(400))
    with pytest.raises(aiquery.AiQueryError):
        ask(workspace)
    ((code, response),) = payloads(session, "status_code, response")
    assert code == 400
    assert json.loads(response)["error_code"] == "BAD_REQUEST"


def test_an_endpoint_that_logs_nothing_has_an_empty_table(session, workspace):
    ask(workspace, endpoint="quiet")
    assert payloads(session, endpoint="quiet") == []


def test_logging_is_turned_on_and_off_with_the_gateway_block(session, workspace):
    workspace.update_endpoint_ai_gateway("quiet", LOGGED)
    ask(workspace, "one", endpoint="quiet")
    workspace.update_endpoint_ai_gateway("quiet", {})
    ask(workspace, "two", endpoint="quiet")
    assert payloads(session, "request ->> '$.messages[0].content'", "quiet") == [("one",)]


def test_a_deleted_endpoint_takes_its_table_with_it(session, workspace, server):
    ask(workspace)
    workspace.delete_endpoint("chat")
    with pytest.raises(duckdb.Error, match="There is no endpoint 'chat'"):
        payloads(session)
    entities = {"served_entities": [external(server, "llm/v1/chat", "gpt-4o")]}
    workspace.create_endpoint("chat", entities, ai_gateway=LOGGED)
    assert payloads(session) == []
    if workspace.path is not None:
        assert [path.name for path in (workspace.path / "payloads").iterdir()] == ["empty.parquet"]


@pytest.mark.parametrize("name", ["'nope'", "NULL", "''"])
def test_an_endpoint_that_is_not_there_is_named(session, name):
    with pytest.raises(duckdb.Error, match=r"There is no endpoint '.*' in this workspace"):
        session.sql(f"FROM ai_payloads({name})").fetchall()


def test_the_table_can_be_asked_with_a_parameter_and_joined(session, workspace):
    ask(workspace)
    assert session.execute("SELECT count(*) FROM ai_payloads(?)", ["chat"]).fetchall() == [(1,)]
    both = "SELECT count(*) FROM ai_payloads('chat') a JOIN ai_payloads('chat') b USING (databricks_request_id)"
    assert session.sql(both).fetchall() == [(1,)]


@in_a_folder
@pytest.mark.parametrize(("level", "told"), [("CAN_QUERY", r"eve@example\.com.*'chat'"), (None, "no endpoint 'chat'")])
def test_only_who_manages_an_endpoint_reads_what_others_asked(workspace, level, told):
    ask(workspace)
    access, chat = workspace.access, workspace.endpoint_records()["chat"]
    access.create_token("eve@example.com", by="ada@example.com")
    if level:
        access.merge_acl(chat.id, [Grant("user", "eve@example.com", level)], by="ada@example.com")
    with aiquery.Workspace(workspace.path, user="eve@example.com") as hers, connect(workspace=hers) as session:  # noqa: SIM117 - what is tested
        with pytest.raises(duckdb.Error, match=told):
            payloads(session)


@in_a_folder
def test_workspaces_of_one_folder_see_each_others_rows(session, workspace):
    with aiquery.Workspace(workspace.path) as other:
        ask(other, "one")
    ask(workspace, "two")
    assert payloads(session, "request ->> '$.messages[0].content'") == [("one",), ("two",)]


@in_a_folder
def test_counting_reads_no_payload(session, workspace):
    ask(workspace)
    plan = session.sql("EXPLAIN SELECT status_code, count(*) FROM ai_payloads('chat') GROUP BY ALL").fetchall()
    assert "status_code" in str(plan)
    assert "response" not in str(plan)
