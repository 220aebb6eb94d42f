"""Declarations that are right but for one part of them: refused with a code, or read as something that is right."""

from __future__ import annotations

import httpx
import pytest
from control_world import World
from hostile_json import spoilt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loopback import LoopbackServer, Reply
from rest_server import serving

from aiquery_udfs.engine_thread import engine_thread

CODES = {
    400: {"BAD_REQUEST", "INVALID_PARAMETER_VALUE"},
    404: {"RESOURCE_DOES_NOT_EXIST"},
    409: {"RESOURCE_CONFLICT", "RESOURCE_ALREADY_EXISTS"},
    503: {"TEMPORARILY_UNAVAILABLE"},  # a service, named rightly, that is not there
}
MODEL = {
    "name": "a",
    "entity_name": "c.s.m",
    "entity_version": "1",
    "workload_size": "Small",
    "workload_type": "CPU",
    "scale_to_zero_enabled": True,
    "environment_vars": {"A": "{{secrets/a/b}}"},
}
PROVIDER = {
    "name": "b",
    "external_model": {
        "provider": "openai",
        "name": "m",
        "task": "llm/v1/chat",
        "openai_config": {"openai_api_key": "{{secrets/a/b}}", "openai_api_base": "http://127.0.0.1:9/v1"},
    },
}
ROUTES = {
    "routes": [
        {"served_model_name": "a", "traffic_percentage": 90},
        {"served_entity_name": "b", "traffic_percentage": "10"},
    ]
}
LIMITS = [
    {"calls": 1, "tokens": 5, "key": "user", "renewal_period": "minute"},
    {"calls": 1, "key": "user_group", "principal": "ds", "renewal_period": "minute"},
]
GUARDS = {
    "safety": True,
    "pii": {"behavior": "MASK"},
    "invalid_keywords": ["x"],
    "valid_topics": ["y"],
    "safety_endpoint": "custom",
    "topics_endpoint": "custom",
}
GATEWAY = {
    "usage_tracking_config": {"enabled": True},
    "rate_limits": LIMITS,
    "fallback_config": {"enabled": False},
    "guardrails": {"input": GUARDS, "output": GUARDS},
    "inference_table_config": {"enabled": True, "catalog_name": "c", "schema_name": "s", "table_name_prefix": "t"},
}
TELEMETRY = {
    "telemetry_profile_id": "p",
    "table_names": {"logs_table": "a.b.c"},
    "inference_table_config": {"name": "t", "sampling_fraction": 0.5},
    "enabled_telemetry_features": ["TELEMETRY_FEATURE_LOGS"],
}
MAIL = {"on_update_success": ["a@x"], "on_update_failure": ["b@x"]}
OURS = {"served_entities": [MODEL, {**MODEL, "name": "b"}], "traffic_config": ROUTES}
THEIRS = {"served_entities": [{**PROVIDER, "name": "a"}, PROVIDER], "traffic_config": ROUTES}
WHOLE = {
    "name": "new",
    "config": OURS,
    "rate_limits": LIMITS,
    "tags": [{"key": "k", "value": "v"}],
    "ai_gateway": GATEWAY,
    "description": "d",
    "route_optimized": True,
    "email_notifications": MAIL,
    "telemetry_config": TELEMETRY,
    "budget_policy_id": "b",
}
ENDPOINTS = "/api/2.0/serving-endpoints"
RIGHT = {
    "create": ("POST", ENDPOINTS, WHOLE),
    "create external": ("POST", ENDPOINTS, {**WHOLE, "config": THEIRS, "route_optimized": False}),
    "create pt": (
        "POST",
        f"{ENDPOINTS}/pt",
        {
            "name": "new",
            "config": {
                "served_entities": [
                    {"name": "a", "entity_name": "c.s.m", "entity_version": "1", "provisioned_model_units": 50}
                ]
            },
        },
    ),
    "config": ("PUT", f"{ENDPOINTS}/custom/config", OURS),
    "config external": ("PUT", f"{ENDPOINTS}/chat/config", THEIRS),
    "rate limits": ("PUT", f"{ENDPOINTS}/chat/rate-limits", {"rate_limits": LIMITS}),
    "ai gateway": ("PUT", f"{ENDPOINTS}/chat/ai-gateway", GATEWAY),
    "tags": ("PATCH", f"{ENDPOINTS}/chat/tags", {"add_tags": [{"key": "a", "value": "b"}], "delete_tags": ["c"]}),
    "notifications": ("PATCH", f"{ENDPOINTS}/chat/notifications", {"email_notifications": MAIL}),
    "telemetry": ("PATCH", f"{ENDPOINTS}/custom/telemetry-config", {"telemetry_config": TELEMETRY}),
    "permissions": (
        "PUT",
        "{permissions}",
        {
            "access_control_list": [
                {"user_name": "bob", "permission_level": "CAN_VIEW"},
                {"group_name": "ds", "permission_level": "CAN_QUERY"},
                {"service_principal_name": "app", "permission_level": "CAN_MANAGE"},
            ]
        },
    ),
    "external function": (
        "POST",
        "/api/2.0/external-function",
        {
            "connection_name": "there",
            "method": "POST",
            "path": "/a/b",
            "headers": '{"x": "y"}',
            "json": '{"a": 1}',
            "params": '{"q": "x y"}',
            "sub_domain": "",
        },
    ),
}


@pytest.fixture(scope="module")
def managed():
    """A server whose control plane is asked."""
    world = World()
    world.secrets.put("a", "b", "sk-very-secret")
    chat = world.made({"served_entities": [PROVIDER]}, "chat")
    world.made({"served_entities": [MODEL]}, "custom")
    headers = {"authorization": f"Bearer {world.access.create_token('ada', by='ada')[0]}"}
    with LoopbackServer(lambda request: Reply(body=b"{}")) as there, serving(world) as server:
        world.control.external.create(world.who("ada"), "there", there.origin)
        server.permissions = f"/api/2.0/permissions/serving-endpoints/{chat['id']}"
        with httpx.Client(base_url=server.url, headers=headers, timeout=20) as client:
            yield server, client
        engine_thread.run(world.control.external.close())
    world.registry.close()


@pytest.mark.parametrize("operation", RIGHT)
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_declaration_that_is_wrong_somewhere_is_refused_or_read_as_right(managed, operation, data):
    server, client = managed
    method, path, right = RIGHT[operation]
    body = data.draw(spoilt(right))
    answer = client.request(method, path.format(permissions=server.permissions), json=body)
    if answer.status_code != 200:
        error = answer.json()
        assert error.keys() == {"error_code", "message"}
        assert error["error_code"] in CODES[answer.status_code]
    assert client.get(ENDPOINTS).status_code == 200
    if operation.startswith("create"):
        for item in client.get(ENDPOINTS).json()["endpoints"]:
            assert client.get(f"{ENDPOINTS}/{item['name']}").status_code == 200
            if item["name"] not in ("chat", "custom"):
                assert client.delete(f"{ENDPOINTS}/{item['name']}").status_code == 200


@pytest.mark.parametrize("operation", RIGHT)
def test_each_of_those_declarations_is_right(managed, operation):
    server, client = managed
    method, path, right = RIGHT[operation]
    answer = client.request(method, path.format(permissions=server.permissions), json=right)
    assert answer.status_code == 200, answer.text
    if operation.startswith("create"):
        client.delete(f"{ENDPOINTS}/new")
