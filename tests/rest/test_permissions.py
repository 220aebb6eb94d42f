"""Who may ask what: every operation of the server, at every level of permission, with and without tokens."""

from __future__ import annotations

import re

import httpx
import pytest
from engine_endpoints import external
from providers import OpenAIServer
from rest_server import serving

import aiquery
from aiquery_serving.access import Grant
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.rest.metrics import Metrics
from aiquery_serving.rest.operations import CONTROL, QUERIES

NOBODY, KNOWN, VIEW, QUERY, MANAGE, ADMIN = range(6)
LEVELS = {VIEW: "CAN_VIEW", QUERY: "CAN_QUERY", MANAGE: "CAN_MANAGE"}

#: What each operation takes.
NEEDS = {
    "list": KNOWN,
    "create": KNOWN,
    "create_provisioned_throughput_endpoint": KNOWN,
    "get_model_optimization_info": KNOWN,
    "get": VIEW,
    "get_open_api": VIEW,
    "export_metrics": VIEW,
    "build_logs": VIEW,
    "logs": VIEW,
    "get_permission_levels": VIEW,
    **{operation.id: QUERY for operation in QUERIES},
    "update_config": MANAGE,
    "update_provisioned_throughput_endpoint_config": MANAGE,
    "put": MANAGE,
    "put_ai_gateway": MANAGE,
    "patch": MANAGE,
    "update_notifications": MANAGE,
    "patch_telemetry_config": MANAGE,
    "get_permissions": MANAGE,
    "set_permissions": MANAGE,
    "update_permissions": MANAGE,
    "delete": MANAGE,
    "http_request": ADMIN,
}
#: Those that would end the others' endpoint, or the asker's own rights, come last.
ORDER = sorted((*CONTROL, *QUERIES), key=lambda operation: operation.id in ("set_permissions", "delete"))
BODIES = {
    "create": {},
    "http_request": {"connection_name": "jira", "method": "GET", "path": "/"},
    "set_permissions": {"access_control_list": "wrong"},
}
#: What says nothing about anybody.
PUBLIC = ("/health", "/ready", "/.well-known/databricks-config")


@pytest.fixture(scope="module")
def provider():
    with OpenAIServer() as running:
        yield running


def no_models(name, version):
    """Answer at once: MLflow takes seconds to make the tables of an empty registry."""
    raise ConfigurationError(f"There is no model '{name}'.")


@pytest.fixture
def workspace(provider, monkeypatch):
    with aiquery.Workspace(":memory:", user="ada") as opened:
        monkeypatch.setattr(opened.models, "check", no_models)
        opened.create_endpoint("chat", {"served_entities": [external(provider, "llm/v1/chat", "gpt-4o", "gpt")]})
        opened.control.external.create(opened._who, "jira", provider.url)
        yield opened


@pytest.fixture(scope="module")
def client():
    with httpx.Client(timeout=20) as shared:
        yield shared


def asked(client, url, operation, identity, **headers):
    """Ask for an operation on the endpoint `chat`; returns the answer."""
    values = {"name": "chat", "served_model": "gpt", "id": identity, "model": "m", "version": "1"}
    path = re.sub(r"{(\w+)}", lambda found: values[found[1]], operation.path)
    if operation in QUERIES:
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    else:
        body = BODIES.get(operation.id, {"not": "what it takes"}) if operation.body else None
    return client.request(operation.method, url + path, json=body, headers=headers)


def refusals(client, url, identity, **headers):
    """Return the ids of the operations that answer 401 or 403, with the status; none may fail."""
    answers = {operation.id: asked(client, url, operation, identity, **headers) for operation in ORDER}
    for name, answer in answers.items():
        assert answer.status_code < 500, (name, answer.text)
        assert answer.status_code < 400 or answer.json().keys() == {"error_code", "message"}, (name, answer.text)
    return {name: answer.status_code for name, answer in answers.items() if answer.status_code in (401, 403)}


def beyond(has, status):
    return {name: status for name, level in NEEDS.items() if level > has}


def bearer(workspace, name, **more):
    text, _ = workspace.access.create_token(name, by="ada", **more)
    return {"authorization": f"Bearer {text}"}


def identity_of(workspace):
    return workspace.get_endpoint("chat")["id"]


def test_every_operation_has_a_level():
    assert NEEDS.keys() == {operation.id for operation in ORDER}


@pytest.mark.parametrize("way", ["user", "group", "users", "service_principal"])
@pytest.mark.parametrize("has", [VIEW, QUERY, MANAGE])
def test_a_level_opens_what_takes_it_and_nothing_above(client, workspace, way, has):
    kind = "service_principal" if way == "service_principal" else "user"
    headers = bearer(workspace, "bob", kind=kind)
    workspace.access.add_members("friends", ["bob"], by="ada")
    grant = {
        "user": Grant("user", "bob", LEVELS[has]),
        "service_principal": Grant("service_principal", "bob", LEVELS[has]),
        "group": Grant("group", "friends", LEVELS[has]),
        "users": Grant("group", "users", LEVELS[has]),
    }[way]
    identity = identity_of(workspace)
    workspace.access.merge_acl(identity, [grant], by="ada")
    with serving(workspace, metrics=Metrics()) as server:
        assert refusals(client, server.url, identity, **headers) == beyond(has, 403)
        assert client.get(server.url + "/metrics", headers=headers).status_code == 403


def test_who_was_given_nothing_may_create_and_list_alone(client, workspace):
    headers = bearer(workspace, "bob")
    with serving(workspace, metrics=Metrics()) as server:
        assert refusals(client, server.url, identity_of(workspace), **headers) == beyond(KNOWN, 403)
        assert client.get(f"{server.url}/api/2.0/serving-endpoints", headers=headers).json() == {"endpoints": []}


@pytest.mark.parametrize("who", ["ada", "carol"])
def test_the_creator_and_admins_may_do_everything(client, workspace, provider, who):
    headers = bearer(workspace, who)
    if who == "carol":
        workspace.access.add_members("admins", ["carol"], by="ada")
    with serving(workspace, metrics=Metrics()) as server:
        assert refusals(client, server.url, identity_of(workspace), **headers) == {}
        assert client.get(server.url + "/metrics", headers=headers).status_code == 200


def test_a_creator_who_is_no_admin_manages_what_is_theirs_alone(client, workspace, provider):
    headers = bearer(workspace, "bob")
    entity = external(provider, "llm/v1/chat", "gpt-4o", "gpt")
    with serving(workspace, metrics=Metrics()) as server:
        body = {"name": "mine", "config": {"served_entities": [entity]}}
        made = client.post(f"{server.url}/api/2.0/serving-endpoints", json=body, headers=headers).json()
        assert (made["creator"], made["permission_level"]) == ("bob", "CAN_MANAGE")
        one = f"{server.url}/api/2.0/serving-endpoints"
        assert client.delete(f"{one}/chat", headers=headers).status_code == 403
        assert client.delete(f"{one}/mine", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer aiq_0123456789abcdef_" + "0" * 64}, {"authorization": "Basic dG9rZW46eA=="},
     {"authorization": "Bearer " + "x" * 60_000}, {"authorization": b"Bearer \xff\xfe"}, {"authorization": ""}],
    ids=["none", "unknown", "basic", "endless", "no text", "empty"],
)  # fmt: skip
@pytest.mark.parametrize("local", [True, False])
def test_without_a_known_token_all_but_what_says_nothing_is_closed(client, workspace, local, headers):
    bearer(workspace, "bob")
    with serving(workspace, metrics=Metrics(), **({} if local else {"local_user": None})) as server:
        assert refusals(client, server.url, identity_of(workspace), **headers) == beyond(NOBODY, 401)
        assert {client.get(server.url + path, headers=headers).status_code for path in PUBLIC} == {200}
        for path in ("/metrics", "/openapi.json"):
            assert client.get(server.url + path, headers=headers).status_code == 401


def test_a_server_of_one_user_refuses_nothing_until_somebody_is_given_something(client, workspace):
    with serving(workspace, metrics=Metrics()) as server:
        assert refusals(client, server.url, identity_of(workspace), authorization="Bearer whatever") == {}


def test_a_revoked_and_an_expired_token_open_nothing(client, workspace):
    now_ms = workspace.clock.epoch_ms()
    text, info = workspace.access.create_token("ada", by="ada")
    ends = bearer(workspace, "ada", expires_ms=now_ms + 300)
    path = "/api/2.0/serving-endpoints"
    with serving(workspace) as server:
        assert client.get(server.url + path, headers=ends).status_code == 200
        workspace.access.revoke_token(info.id, by="ada")
        revoked = client.get(server.url + path, headers={"authorization": f"Bearer {text}"})
        assert (revoked.status_code, revoked.json()["error_code"]) == (401, "UNAUTHENTICATED")
        assert text not in revoked.text
        while workspace.clock.epoch_ms() <= now_ms + 300:
            pass
        expired = client.get(server.url + path, headers=ends)
        assert (expired.status_code, "expired" in expired.json()["message"]) == (401, True)


def test_a_permission_that_is_taken_away_is_gone_at_the_next_request(client, workspace):
    headers, identity = bearer(workspace, "bob"), identity_of(workspace)
    workspace.access.set_acl(identity, [Grant("user", "bob", "CAN_QUERY")], by="ada")
    query = QUERIES[0]
    with serving(workspace) as server:
        assert asked(client, server.url, query, identity, **headers).status_code == 200
        workspace.access.set_acl(identity, [], by="ada")
        assert asked(client, server.url, query, identity, **headers).status_code == 403


def test_an_endpoint_of_the_same_name_again_is_not_open_to_who_could_use_the_first(client, workspace, provider):
    headers, identity = bearer(workspace, "bob"), identity_of(workspace)
    workspace.access.set_acl(identity, [Grant("user", "bob", "CAN_MANAGE")], by="ada")
    workspace.delete_endpoint("chat")
    workspace.create_endpoint("chat", {"served_entities": [external(provider, "llm/v1/chat", "gpt-4o", "gpt")]})
    with serving(workspace) as server:
        assert asked(client, server.url, QUERIES[0], identity, **headers).status_code == 403


@pytest.mark.parametrize(
    "path",
    ["/serving-endpoints/chat/served-models/gpt/invocations", "/serving-endpoints//chat/invocations",
     "/serving-endpoints/chat/invocations/", "/serving-endpoints/chat/invocations//",
     "/serving-endpoints/x/../chat/invocations", "/serving-endpoints/%63hat/invocations",
     "/serving-endpoints/chat%2Finvocations", "/serving-endpoints/chat/invocations;x=1",
     "/SERVING-ENDPOINTS/chat/invocations", "/serving-endpoints/chat/invocations?token=x",
     "//serving-endpoints/chat/invocations", "/health/../serving-endpoints/chat/invocations",
     "/.well-known/databricks-config/../../serving-endpoints/chat/invocations"],
)  # fmt: skip
def test_no_spelling_of_a_path_leads_past_a_permission(client, workspace, provider, path):
    headers = bearer(workspace, "bob")
    before = len(provider.requests)
    body = {"messages": [{"role": "user", "content": "hi"}]}
    with serving(workspace) as server:
        for given in (headers, {}):
            request = client.build_request("POST", server.url, json=body, headers=given)
            request.url = request.url.copy_with(raw_path=path.encode())
            assert client.send(request).status_code in (401, 403, 404, 405)
    assert len(provider.requests) == before


def declared(provider, **config):
    model = {"provider": "openai", "name": "m", "task": "llm/v1/chat"}
    given = {"openai_api_base": provider.url, **config}
    return {"served_entities": [{"name": "m", "external_model": {**model, "openai_config": given}}]}


@pytest.mark.parametrize(
    "reference",
    ["{{secrets/prod/key}}", "{{ secrets/prod/key\n}}", "{{secrets/env/PATH}}", "Bearer {{secrets/prod/key}}"],
)
@pytest.mark.parametrize("place", ["key", "other", "environment"])
def test_who_is_no_admin_cannot_have_a_secret_of_the_workspace_sent_anywhere(
    client, workspace, provider, place, reference
):
    workspace.secrets.put("prod", "key", "very-secret")
    headers = bearer(workspace, "bob")
    config = {
        "key": declared(provider, openai_api_key=reference),
        "other": declared(provider, openai_api_key_plaintext="mine", openai_organization=reference),
        "environment": {
            "served_entities": [{"entity_name": "m", "entity_version": "1", "environment_vars": {"A": reference}}]
        },
    }[place]
    with serving(workspace) as server:
        url = f"{server.url}/api/2.0/serving-endpoints"
        mine = declared(provider, openai_api_key_plaintext="of-bob")
        assert client.post(url, json={"name": "mine", "config": mine}, headers=headers).status_code == 200
        for answer in (
            client.post(url, json={"name": "new", "config": config}, headers=headers),
            client.post(f"{url}/pt", json={"name": "new", "config": config}, headers=headers),
            client.put(f"{url}/mine/config", json=config, headers=headers),
            client.put(f"{url}/pt/mine/config", json={"config": config}, headers=headers),
        ):
            assert (answer.status_code, answer.json()["error_code"]) == (403, "PERMISSION_DENIED")
            assert "'bob' may not use the secret" in answer.json()["message"]


def test_who_manages_an_endpoint_may_declare_again_what_it_has(client, workspace, provider):
    workspace.secrets.put("prod", "key", "very-secret")
    headers = bearer(workspace, "bob")
    workspace.create_endpoint("given", declared(provider, openai_api_key="{{secrets/prod/key}}"))
    grant = Grant("user", "bob", "CAN_MANAGE")
    workspace.access.merge_acl(workspace.get_endpoint("given")["id"], [grant], by="ada")
    mine = {"name": "mine", "config": declared(provider, openai_api_key_plaintext="of-bob")}
    with serving(workspace) as server:
        url = f"{server.url}/api/2.0/serving-endpoints"
        assert client.post(url, json=mine, headers=headers).status_code == 200
        for name in ("given", "mine"):
            config = client.get(f"{url}/{name}", headers=headers).json()["config"]
            (entity,) = config["served_entities"]
            body = {"served_entities": [{"name": "m", "external_model": entity["external_model"]}]}
            assert client.put(f"{url}/{name}/config", json=body, headers=headers).status_code == 200
        # Not even the key that another endpoint of theirs keeps.
        assert client.put(f"{url}/given/config", json=body, headers=headers).status_code == 403
