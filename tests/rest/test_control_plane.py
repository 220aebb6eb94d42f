"""The control plane over HTTP: the contract's own samples, and every answer as the server's document promises."""

from __future__ import annotations

import json
import re

import httpx
import jsonschema_rs
import pytest
from control_world import CUSTOM, EXTERNAL, SECRET, World
from loopback import LoopbackServer, Reply
from rest_server import serving

from aiquery_serving.rest.metrics import Metrics
from aiquery_udfs.engine_thread import engine_thread

ENDPOINTS = "/api/2.0/serving-endpoints"
PERMISSIONS = "/api/2.0/permissions/serving-endpoints"

#: Contract J.1.
MULTI_MODEL = {
    "name": "multi-model",
    "config": {
        "served_entities": [
            {"name": "current", "entity_name": "catalog.schema.model-A", "entity_version": "1",
             "workload_size": "Small", "scale_to_zero_enabled": True},
            {"name": "challenger", "entity_name": "catalog.schema.model-B", "entity_version": "1",
             "workload_size": "Small", "scale_to_zero_enabled": True},
        ],
        "traffic_config": {
            "routes": [
                {"served_model_name": "current", "traffic_percentage": "90"},
                {"served_model_name": "challenger", "traffic_percentage": "10"},
            ]
        },
    },
}  # fmt: skip


class Api:
    """A client of the server that holds every answer against the server's own document."""

    def __init__(self, world, url):
        self.world = world
        self.http = httpx.Client(base_url=url, timeout=30)
        self.document = self.http.get("/openapi.json").json()

    def __call__(self, method, path, body=None, code=200, **options):
        answer = self.http.request(method, path, json=body, **options)
        assert answer.status_code == code, f"{answer.status_code}: {answer.text}"
        self._check(method, path, answer)
        return answer.json() if answer.headers["content-type"] == "application/json" else answer.text

    def settled(self, name):
        self.world.registry.wait_until_settled(name, 20)
        return self("GET", f"{ENDPOINTS}/{name}")

    def _check(self, method, path, answer):
        path = path.rstrip("/")
        paths = self.document["paths"]
        known = path if path in paths else next((p for p in paths if re.fullmatch(_pattern(p), path)), None)
        if known is None or method.lower() not in paths[known]:
            assert answer.status_code in (404, 405)
            return
        responses = paths[known][method.lower()]["responses"]
        content = responses.get(str(answer.status_code), responses["default"])["content"]
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in content
        if kind == "application/json":
            schema = {**content[kind]["schema"], "components": self.document["components"]}
            jsonschema_rs.validate(schema, answer.json())


def _pattern(template):
    return re.sub(r"{\w+}", "[^/]+", template)


@pytest.fixture
def world():
    made = World()
    yield made
    made.gate.set()
    made.registry.close()


@pytest.fixture
def api(world):
    with serving(world, metrics=Metrics()) as server:
        made = Api(world, server.url)
        yield made
        made.http.close()
        engine_thread.run(world.control.external.close())


def refused(answer, code):
    assert answer["error_code"] == code
    return answer["message"]


def test_two_models_are_created_and_echoed_as_the_contract_says(api):
    api("POST", f"{ENDPOINTS}/", MULTI_MODEL)
    answer = api.settled("multi-model")

    assert re.fullmatch("[0-9a-f]{32}", answer["id"])
    assert answer["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    config = answer["config"]
    assert config["config_version"] == 1
    assert config["traffic_config"]["routes"] == [
        {"served_model_name": "current", "served_entity_name": "current", "traffic_percentage": 90},
        {"served_model_name": "challenger", "served_entity_name": "challenger", "traffic_percentage": 10},
    ]
    entity = next(entity for entity in config["served_entities"] if entity["name"] == "challenger")
    assert (entity["entity_name"], entity["entity_version"]) == ("catalog.schema.model-B", "1")
    assert (entity["workload_size"], entity["workload_type"]) == ("Small", "CPU")
    assert entity["state"] == {"deployment": "DEPLOYMENT_READY", "deployment_state_message": ""}
    model = next(model for model in config["served_models"] if model["name"] == "challenger")
    assert (model["model_name"], model["model_version"]) == ("catalog.schema.model-B", "1")
    assert (answer["tags"], answer["description"]) == ([], "")
    assert (answer["permission_level"], answer["route_optimized"]) == ("CAN_MANAGE", False)
    assert (answer["creator"], answer["creator_kind"]) == ("ada", "User")


def test_an_update_shows_beside_what_serves_until_it_has_loaded(api):
    api("POST", ENDPOINTS, MULTI_MODEL)
    api.settled("multi-model")
    api.world.gate.clear()
    entity = {**MULTI_MODEL["config"]["served_entities"][0], "entity_version": 2}
    answer = api("PUT", f"{ENDPOINTS}/multi-model/config", {"name": "ignored", "served_entities": [entity]})
    assert answer["state"] == {"ready": "READY", "config_update": "IN_PROGRESS"}
    assert answer["config"]["config_version"] == 1
    pending = answer["pending_config"]
    assert (pending["config_version"], pending["served_entities"][0]["entity_version"]) == (2, "2")
    assert pending["served_entities"][0]["state"]["deployment"] == "DEPLOYMENT_CREATING"
    again = api("PUT", f"{ENDPOINTS}/multi-model/config", {"served_entities": [entity]}, code=409)
    assert "multi-model" in refused(again, "RESOURCE_CONFLICT")
    telemetry = api("PATCH", f"{ENDPOINTS}/multi-model/telemetry-config", {}, code=409)
    assert "multi-model" in refused(telemetry, "RESOURCE_CONFLICT")
    api.world.gate.set()
    assert api.settled("multi-model")["config"]["config_version"] == 2


def test_an_external_endpoint_is_listed_in_short_and_never_with_its_secrets(api):
    created = api("POST", f"{ENDPOINTS}/", {"name": "e1", "config": {"name": "e1", **EXTERNAL}, "tags": [{"key": "team", "value": "x"}],
                                            "rate_limits": [{"calls": "5", "key": "user", "renewal_period": "minute"}], "budget_policy_id": "b"})  # fmt: skip
    (item,) = api("GET", f"{ENDPOINTS}/")["endpoints"]
    assert created["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert (created["task"], created["endpoint_type"]) == ("llm/v1/chat", "EXTERNAL_MODEL")
    assert (item["name"], item["id"], item["tags"]) == ("e1", created["id"], [{"key": "team", "value": "x"}])
    assert "traffic_config" not in item["config"]
    assert SECRET not in json.dumps([created, item])
    assert not {"rate_limits", "budget_policy_id"} & {*created, *item}
    assert (item["usage_policy_id"], created["effective_budget_policy_id"]) == ("b", "b")


def test_the_small_updates_answer_what_the_contract_says(api):
    one = f"{ENDPOINTS}/e1"
    tags = [{"key": "key1", "value": "v1"}, {"key": "key2", "value": "old"}, {"key": "key3", "value": "v3"}]
    identity = api("POST", ENDPOINTS, {"name": "e1", "config": EXTERNAL, "tags": tags})["id"]

    change = {"add_tags": [{"key": "key2", "value": "new"}, {"key": "key4", "value": "v4"}], "delete_tags": ["key3"]}
    assert api("PATCH", f"{one}/tags", change) == {
        "tags": [{"key": "key1", "value": "v1"}, {"key": "key2", "value": "new"}, {"key": "key4", "value": "v4"}]
    }
    limits = {"rate_limits": [{"key": "user", "renewal_period": "minute", "calls": 10}]}
    assert api("PUT", f"{one}/rate-limits", limits) == limits
    gateway = {
        "usage_tracking_config": {"enabled": True},
        "rate_limits": [{"key": "user_group", "principal": "ds", "calls": 5, "renewal_period": "minute"}],
    }
    assert api("PUT", f"{one}/ai-gateway", gateway) == gateway
    assert api("GET", one)["ai_gateway"] == gateway
    assert api("PUT", f"{one}/ai-gateway", {}) == {}
    assert "ai_gateway" not in api("GET", one)
    mail = {"email_notifications": {"on_update_success": ["a@x"], "on_update_failure": ["b@x"]}}
    assert api("PATCH", f"{one}/notifications", mail) == {"name": "e1", **mail}
    assert api("GET", one)["email_notifications"] == mail["email_notifications"]

    levels = api("GET", f"{PERMISSIONS}/{identity}/permissionLevels")["permission_levels"]
    assert {level["permission_level"] for level in levels} == {"CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"}
    api.world.access.add_members("ds", ["bob"], by="ada")
    token, _ = api.world.access.create_token("ada", by="ada")
    api.http.headers["Authorization"] = f"Bearer {token}"
    given = {"access_control_list": [{"group_name": "ds", "permission_level": "CAN_QUERY"}]}
    for method in ("PUT", "PATCH"):
        answer = api(method, f"{PERMISSIONS}/{identity}", given)
        assert answer["object_id"] == f"/serving-endpoints/{identity}"
        assert answer["object_type"] == "serving-endpoint"
        first, second, _ = answer["access_control_list"]
        assert first["user_name"] == "ada"
        assert second == {
            "group_name": "ds",
            "all_permissions": [{"permission_level": "CAN_QUERY", "inherited": False}],
        }
    assert api("GET", f"{PERMISSIONS}/{identity}") == answer
    assert "no-such" in refused(api("GET", f"{PERMISSIONS}/no-such", code=404), "RESOURCE_DOES_NOT_EXIST")
    assert api("DELETE", one) == {}
    assert "'e1'" in refused(api("GET", one, code=404), "RESOURCE_DOES_NOT_EXIST")


def test_throughput_is_asked_about_and_reserved_as_the_contract_says(api):
    info = f"{ENDPOINTS}/get-model-optimization-info/ml.llm-catalog.llama-13b"
    assert api("GET", f"{info}/3") == {"optimizable": False}
    refused(api("GET", f"{info}/404", code=404), "RESOURCE_DOES_NOT_EXIST")
    entity = {
        "entity_name": "ml.llm-catalog.llama-13b",
        "entity_version": 3,
        "min_provisioned_throughput": 1960,
        "max_provisioned_throughput": 2940,
    }
    api("POST", ENDPOINTS, {"name": "llama2-13b-chat", "config": {"served_entities": [entity]}})
    (served,) = api.settled("llama2-13b-chat")["config"]["served_entities"]
    assert (served["name"], served["entity_version"]) == ("llama-13b-3", "3")
    assert (served["min_provisioned_throughput"], served["max_provisioned_throughput"]) == (1960, 2940)

    pt = {
        "name": "pt-ep",
        "config": {
            "served_entities": [
                {
                    "name": "llama",
                    "entity_name": "system.ai.llama-4-maverick",
                    "entity_version": "1",
                    "provisioned_model_units": 50,
                    "burst_scaling_enabled": False,
                }
            ],
            "traffic_config": {"routes": [{"served_model_name": "llama", "traffic_percentage": 100}]},
        },
    }
    api("POST", f"{ENDPOINTS}/pt", pt)
    assert api.settled("pt-ep")["endpoint_type"] == "FOUNDATION_MODEL_API"
    update = {
        "config": {"served_entities": [{"entity_name": "system.ai.llama-4-maverick", "provisioned_model_units": 100}]}
    }
    api("PUT", f"{ENDPOINTS}/pt/pt-ep/config", update)
    (served,) = api.settled("pt-ep")["config"]["served_entities"]
    assert (served["entity_version"], served["provisioned_model_units"]) == ("1", 100)


def test_a_model_that_does_not_load_says_why_in_its_state_and_its_log(api):
    api.world.failure = RuntimeError("no such weights")
    api("POST", ENDPOINTS, {"name": "e", "config": CUSTOM})
    failed = api.settled("e")
    assert failed["state"] == {"ready": "NOT_READY", "config_update": "UPDATE_FAILED"}
    assert "no such weights" in failed["config"]["served_entities"][0]["state"]["deployment_state_message"]
    logs = f"{ENDPOINTS}/e/served-models/current"
    assert "no such weights" in api("GET", f"{logs}/build-logs")["logs"]
    assert api("GET", f"{logs}/logs") == {"logs": ""}
    refused(api("GET", f"{ENDPOINTS}/e/served-models/x/logs", code=404), "RESOURCE_DOES_NOT_EXIST")


def test_metrics_and_the_document_of_an_endpoint_are_texts(api):
    api("POST", ENDPOINTS, {"name": "e", "config": EXTERNAL})
    assert "cpu_usage_percentage" in api("GET", f"{ENDPOINTS}/e/metrics")
    document = json.loads(api("GET", f"{ENDPOINTS}/e/openapi"))
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": "/serving-endpoints/e"}]
    assert set(document["paths"]) == {"/invocations", "/served-models/gpt/invocations"}
    for path in ("metrics", "openapi"):
        refused(api("GET", f"{ENDPOINTS}/none/{path}", code=404), "RESOURCE_DOES_NOT_EXIST")


def test_a_route_optimised_endpoint_tells_its_own_address(api):
    plain = api("POST", ENDPOINTS, {"name": "plain", "config": CUSTOM})
    fast = api("POST", ENDPOINTS, {"name": "fast", "config": CUSTOM, "route_optimized": "true"})
    url = f"{str(api.http.base_url).rstrip('/')}/serving-endpoints/fast/invocations"
    assert not {"endpoint_url", "data_plane_info"} & set(plain)
    assert (fast["endpoint_url"], fast["data_plane_info"]["query_info"]["endpoint_url"]) == (url, url)
    body = {"name": "x", "config": EXTERNAL, "route_optimized": True}
    assert "models of your own" in refused(api("POST", ENDPOINTS, body, code=400), "INVALID_PARAMETER_VALUE")


@pytest.mark.parametrize(
    ("method", "path", "code", "allowed"),
    [
        ("GET", f"{ENDPOINTS}/pt", 405, {"POST"}),
        ("PUT", ENDPOINTS, 405, {"GET", "POST"}),
        ("POST", f"{ENDPOINTS}/e", 405, {"GET", "DELETE"}),
        ("GET", f"{ENDPOINTS}/e/config", 405, {"PUT"}),
        ("DELETE", f"{PERMISSIONS}/1", 405, {"GET", "PUT", "PATCH"}),
        ("GET", "/api/2.0/external-function", 405, {"POST"}),
        ("POST", "/openapi.json", 405, {"GET"}),
        ("GET", "/api/2.0/clusters/list", 404, set()),
        ("GET", f"{ENDPOINTS}/e/nothing", 404, set()),
        ("GET", f"{ENDPOINTS}//config", 404, set()),
    ],
)
def test_other_paths_and_other_methods_are_coded_errors(api, method, path, code, allowed):
    answer = api.http.request(method, path)
    assert (answer.status_code, answer.json()["error_code"]) == (code, "ENDPOINT_NOT_FOUND")
    assert set(answer.headers.get("allow", "").split(", ")) - {""} == allowed


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"name": "e", "name": "f"}', b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(api, body):
    answer = api.http.post(ENDPOINTS, content=body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "BAD_REQUEST")


def test_who_may_not_is_told_so(api):
    identity = api("POST", ENDPOINTS, {"name": "e", "config": EXTERNAL})["id"]
    token, _ = api.world.access.create_token("bob", by="ada")
    api.http.headers["Authorization"] = f"Bearer {token}"
    for method, path in (
        ("GET", f"{ENDPOINTS}/e"),
        ("DELETE", f"{ENDPOINTS}/e"),
        ("GET", f"{ENDPOINTS}/e/openapi"),
        ("GET", f"{ENDPOINTS}/e/metrics"),
        ("GET", f"{PERMISSIONS}/{identity}"),
    ):
        assert "'bob' may not" in refused(api(method, path, code=403), "PERMISSION_DENIED")
    assert api("GET", ENDPOINTS) == {"endpoints": []}
    assert api("POST", ENDPOINTS, {"name": "mine", "config": EXTERNAL})["creator"] == "bob"


def test_a_request_goes_through_a_connection_and_its_answer_comes_back_as_it_is(api):
    seen = []

    def elsewhere(request):
        seen.append(request)
        if "/missing" in request.path:
            return Reply(status=404, body=b'{"message": "no issue, Bearer sk-very-secret"}')
        if "/broken" in request.path:
            return Reply(status=503, body=b"later")
        return Reply(body=b'{"jsonrpc": "2.0"}', headers={"mcp-session-id": "s-1"})

    world, ada = api.world, api.world.who("ada")
    world.secrets.put("jira", "token", SECRET)
    with LoopbackServer(elsewhere) as there:
        world.control.external.create(ada, "jira", f"{there.origin}/rest", bearer_token="{{secrets/jira/token}}")

        def ask(path, method="POST", code=200):
            body = {
                "connection_name": "jira",
                "method": method,
                "path": path,
                "json": '{"a": 1}',
                "params": '{"q": "x y"}',
            }
            answer = api.http.post("/api/2.0/external-function", json=body)
            assert answer.status_code == code
            return answer

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            answer = ask("/issue", method)
            assert (answer.text, answer.headers["mcp-session-id"]) == ('{"jsonrpc": "2.0"}', "s-1")
            assert answer.headers["content-type"].startswith("text/plain")
        assert [request.method for request in seen] == ["GET", "POST", "PUT", "PATCH", "DELETE"]
        assert {request.path for request in seen} == {"/rest/issue?q=x+y"}
        assert {request.body for request in seen} == {b'{"a": 1}'}
        assert {request.headers["authorization"] for request in seen} == {f"Bearer {SECRET}"}
        message = refused(ask("/missing", code=400).json(), "BAD_REQUEST")
        assert "'jira' answered 404: no issue" in message
        assert SECRET not in message
        refused(ask("/broken", code=502).json(), "INTERNAL_ERROR")
    unknown = {"connection_name": "none", "method": "GET", "path": "/"}
    refused(api("POST", "/api/2.0/external-function", unknown, code=404), "RESOURCE_DOES_NOT_EXIST")


def test_the_document_describes_every_operation_once(api):
    ids = [operation["operationId"] for path in api.document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)) == 36
    text = json.dumps(api.document)
    for name in set(re.findall(r"#/components/schemas/(\w+)", text)):
        assert name in api.document["components"]["schemas"]
