"""Rate limits over HTTP: whom they count, what they say, who waits and who is refused, and that workers share them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import duckdb
import httpx
import pytest
from engine_endpoints import external
from providers import OpenAIServer
from rest_server import serving
from served_programs import program

import aiquery
from aiquery_serving.access import Grant

HELLO = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}
INVOKE = "/serving-endpoints/chat/invocations"
#: Every way to the same endpoint.
WAYS = [
    (INVOKE, HELLO),
    ("/serving-endpoints/chat/served-models/gpt-4o/invocations", HELLO),
    ("/serving-endpoints/chat/completions", {**HELLO, "model": "chat"}),
    ("/ai-gateway/mlflow/v1/chat/completions", {**HELLO, "model": "chat"}),
    (INVOKE, {**HELLO, "stream": True}),
]


def limit(calls=None, key="endpoint", principal=None, tokens=None):
    given = {"calls": calls, "key": key, "principal": principal, "tokens": tokens, "renewal_period": "minute"}
    return {name: value for name, value in given.items() if value is not None}


@pytest.fixture(scope="module")
def provider():
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def workspace(provider):
    provider.requests.clear()
    with aiquery.Workspace(":memory:", user="ada") as opened:
        opened.create_endpoint("chat", {"served_entities": [external(provider, "llm/v1/chat", "gpt-4o")]})
        yield opened


@pytest.fixture(scope="module")
def client():
    with httpx.Client(timeout=20) as shared:
        yield shared


@pytest.fixture
def people(workspace):
    """Give tokens to bob and carol of the group `ds`, to dan, who is in none, and to the program `app`."""
    workspace.access.add_members("ds", ["bob", "carol"], by="ada")
    kinds = {"ada": "user", "bob": "user", "carol": "user", "dan": "user", "app": "service_principal"}
    texts = {name: workspace.access.create_token(name, by="ada", kind=kind)[0] for name, kind in kinds.items()}
    grants = [Grant("group", "users", "CAN_QUERY")]
    workspace.access.merge_acl(workspace.get_endpoint("chat")["id"], grants, by="ada")
    return {name: {"authorization": f"Bearer {text}"} for name, text in texts.items()}


def refused(answer, complaint):
    """Return whether an answer is a 429 as clients know it."""
    error = answer.json()
    assert (answer.status_code, error["error_code"]) == (429, "REQUEST_LIMIT_EXCEEDED"), error
    assert error["message"].startswith("User defined rate limit(s) exceeded for 'chat'.")
    assert complaint in error["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    return True


@pytest.mark.parametrize(
    "rule",
    [
        ([limit(2)], ["bob", "dan"], "Requests-per-minute (RPM) rate limit exceeded for endpoint"),
        ([limit(1, "user")], ["bob", "carol", "dan", "app"], "Requests-per-minute (RPM) rate limit exceeded for user"),
        ([limit(2, "user"), limit(3)], ["bob", "bob", "carol"], "(RPM)"),
        ([limit(2, "user_group", "ds")], ["bob", "carol"], "(RPM)"),
        ([limit(1, "service_principal", "app")], ["app"], "(RPM)"),
        ([limit(1, "user", "bob"), limit(9, "user")], ["bob"], "(RPM)"),
        ([limit(tokens=14)], ["dan"] * 4, "Tokens-per-minute (TPM) rate limit exceeded for endpoint"),
    ],
)
def test_a_limit_counts_whom_it_is_for_and_refuses_the_next(workspace, client, people, rule):
    declared, admitted, complaint = rule
    workspace.update_endpoint_ai_gateway("chat", {"rate_limits": declared})
    with serving(workspace) as server:
        for name in admitted:
            assert client.post(server.url + INVOKE, json=HELLO, headers=people[name]).status_code == 200
        assert refused(client.post(server.url + INVOKE, json=HELLO, headers=people[admitted[0]]), complaint)


def test_who_is_not_in_a_group_or_no_program_is_not_counted_with_them(workspace, client, people):
    declared = [limit(1, "user_group", "ds"), limit(1, "service_principal", "app")]
    workspace.update_endpoint_ai_gateway("chat", {"rate_limits": declared})
    with serving(workspace) as server:

        def ask(name):
            return client.post(server.url + INVOKE, json=HELLO, headers=people[name])

        assert [ask(name).status_code for name in ("bob", "carol", "app", "app", "dan", "dan")] == [
            200, 429, 200, 429, 200, 200,
        ]  # fmt: skip
        workspace.access.add_members("ds", ["dan"], by="ada")
        assert ask("dan").status_code == 429
        workspace.access.remove_members("ds", ["dan"], by="ada")
        assert ask("dan").status_code == 200


@pytest.mark.parametrize(("path", "body"), WAYS)
def test_no_way_leads_past_a_limit(workspace, client, provider, path, body):
    workspace.update_endpoint_rate_limits("chat", [limit(1)])
    with serving(workspace) as server:
        assert client.post(server.url + INVOKE, json=HELLO).status_code == 200
        assert refused(client.post(server.url + path, json=body), "(RPM)")
    assert len(provider.requests) == 1


def test_what_is_refused_otherwise_uses_up_nothing(workspace, client, people):
    workspace.update_endpoint_rate_limits("chat", [limit(1)])
    workspace.access.set_acl(workspace.get_endpoint("chat")["id"], [], by="ada")
    with serving(workspace) as server:
        url = server.url + INVOKE
        assert client.post(url, json=HELLO).status_code == 401
        assert client.post(url, json=HELLO, headers=people["dan"]).status_code == 403
        assert client.post(url, json={"prompt": "x"}, headers=people["ada"]).status_code == 400
        assert client.post(url, content=b"{", headers=people["ada"]).status_code == 400
        assert client.post(url, json=HELLO, headers=people["ada"]).status_code == 200
        assert client.post(url, json=HELLO, headers=people["ada"]).status_code == 429


def test_a_batch_waits_for_what_an_interactive_caller_is_refused(workspace, client, provider):
    workspace.update_endpoint_rate_limits("chat", [limit(2)])
    answers = []

    def batch():
        with duckdb.connect() as connection:
            aiquery.register(connection, workspace)
            query = "SELECT ai_query('chat', 'row ' || i) FROM range(4) rows(i)"
            answers.extend(connection.execute(query).fetchall())

    thread = threading.Thread(target=batch)
    with serving(workspace) as server:
        thread.start()
        deadline = time.monotonic() + 20
        while len(provider.requests) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert refused(client.post(server.url + INVOKE, json=HELLO), "(RPM)")
        assert refused(client.post(server.url + INVOKE, json={**HELLO, "stream": True}), "(RPM)")
        assert not answers
        workspace.update_endpoint_rate_limits("chat", [limit(5)])
        assert client.post(server.url + INVOKE, json=HELLO).status_code in (200, 429)
        thread.join(20)
    assert sorted(answers) == [(f"echo: row {number}",) for number in range(4)]


def test_a_raised_limit_lets_go_and_a_lowered_one_remembers(workspace, client):
    with serving(workspace) as server:

        def ask():
            return client.post(server.url + INVOKE, json=HELLO).status_code

        workspace.update_endpoint_rate_limits("chat", [limit(1)])
        assert [ask(), ask()] == [200, 429]
        workspace.update_endpoint_rate_limits("chat", [limit(2)])
        assert [ask(), ask()] == [200, 429]
        workspace.update_endpoint_rate_limits("chat", [limit(1)])
        assert ask() == 429


def test_many_at_once_get_what_a_limit_allows_and_no_more(workspace, client, provider):
    workspace.update_endpoint_rate_limits("chat", [limit(7)])
    with serving(workspace) as server, ThreadPoolExecutor(16) as threads:
        ask = lambda _: client.post(server.url + INVOKE, json=HELLO).status_code  # noqa: E731
        statuses = list(threads.map(ask, range(60)))
    assert (statuses.count(200), statuses.count(429)) == (7, 53)
    assert len(provider.requests) == 7


def test_workers_share_a_limit(tmp_path, provider, monkeypatch):
    provider.requests.clear()
    home = tmp_path / "workspace"
    with aiquery.Workspace(home, user="ada") as workspace:
        workspace.create_endpoint("chat", {"served_entities": [external(provider, "llm/v1/chat", "gpt-4o")]})
        workspace.update_endpoint_rate_limits("chat", [limit(20)])
    with program(home, "--workers", "2") as server, ThreadPoolExecutor(8) as threads:

        def ask(_):
            # Each from a connection of its own, which either worker may take.
            return httpx.post(server.url + INVOKE, json=HELLO, timeout=20).status_code

        statuses = list(threads.map(ask, range(50)))
    assert set(statuses) == {200, 429}
    assert statuses.count(200) == 20
    assert len(provider.requests) == 20
