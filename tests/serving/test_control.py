"""The control plane: who may do what, and what every operation answers."""

from __future__ import annotations

import logging
from dataclasses import replace

import mlflow
import pytest
from control_world import CUSTOM, EXTERNAL, SECRET, World

from aiquery_serving.access import CAN_MANAGE, CAN_QUERY, CAN_VIEW
from aiquery_serving.endpoint import AutoCapture
from aiquery_serving.errors import (
    ConfigurationError,
    EndpointNotFoundError,
    InvalidRequestError,
    ModelError,
    PermissionDeniedError,
    UpdateConflictError,
)
from aiquery_serving.served_log import BUILD, MOST_LINES, SERVE


@pytest.fixture
def world():
    made = World()
    yield made
    made.gate.set()
    made.registry.close()


class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["a"]


def python_model(model, **options):
    return mlflow.pyfunc.log_model(python_model=model, **options)


ACL = {"access_control_list": [{"user_name": "cid", "permission_level": "CAN_VIEW"}]}
#: Every operation on an endpoint, and the level that it takes.
OPERATIONS = {
    "get": (CAN_VIEW, lambda c, who, e: c.get(who, "e")),
    "wait": (CAN_VIEW, lambda c, who, e: c.wait(who, "e", 5)),
    "build_logs": (CAN_VIEW, lambda c, who, e: c.build_logs(who, "e", "current")),
    "logs": (CAN_VIEW, lambda c, who, e: c.logs(who, "e", "current")),
    "permission_levels": (CAN_VIEW, lambda c, who, e: c.permission_levels(who, e["id"])),
    "permissions_get": (CAN_MANAGE, lambda c, who, e: c.permissions_get(who, e["id"])),
    "permissions_set": (CAN_MANAGE, lambda c, who, e: c.permissions_set(who, e["id"], ACL)),
    "permissions_update": (CAN_MANAGE, lambda c, who, e: c.permissions_update(who, e["id"], ACL)),
    "update_config": (CAN_MANAGE, lambda c, who, e: c.update_config(who, "e", CUSTOM)),
    "update_rate_limits": (CAN_MANAGE, lambda c, who, e: c.update_rate_limits(who, "e", {})),
    "update_ai_gateway": (CAN_MANAGE, lambda c, who, e: c.update_ai_gateway(who, "e", {})),
    "update_tags": (CAN_MANAGE, lambda c, who, e: c.update_tags(who, "e", {})),
    "update_notifications": (CAN_MANAGE, lambda c, who, e: c.update_notifications(who, "e", {})),
    "patch_telemetry": (CAN_MANAGE, lambda c, who, e: c.patch_telemetry(who, "e", {})),
    "delete": (CAN_MANAGE, lambda c, who, e: c.delete(who, "e")),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_takes_its_level_and_no_less(world, operation):
    endpoint = world.made()
    needed, call = OPERATIONS[operation]
    below = {CAN_VIEW: [None], CAN_MANAGE: [None, CAN_VIEW, CAN_QUERY]}[needed]
    for level in below:
        bob = world.give(endpoint, level)
        with pytest.raises(PermissionDeniedError, match=f"takes {needed}.*'ada'"):
            call(world.control, bob, endpoint)
    assert call(world.control, world.give(endpoint, needed), endpoint) is not None


def test_a_list_shows_what_one_may_see_and_an_endpoint_says_what_one_may_do(world):
    world.made(name="hidden")
    bob = world.give(world.made(name="e"), CAN_QUERY)
    assert [item["name"] for item in world.control.list(bob)["endpoints"]] == ["e"]
    assert list(world.control.records(bob)) == ["e"]
    assert world.control.get(bob, "e")["permission_level"] == CAN_QUERY
    assert world.control.get(world.who("ada"), "e")["permission_level"] == CAN_MANAGE
    assert "permission_level" not in world.control.list(bob)["endpoints"][0]


def test_who_creates_an_endpoint_is_its_creator_and_manages_it(world):
    world.access.create_token("5f0c", by="ada", kind="service_principal")
    created = world.control.create(world.who("5f0c"), {"name": "e", "config": EXTERNAL})
    assert (created["creator"], created["creator_display_name"]) == ("5f0c", "5f0c")
    assert (created["creator_kind"], created["permission_level"]) == ("ServicePrincipal", CAN_MANAGE)
    assert world.control.delete(world.who("5f0c"), "e") == {}


def test_a_deleted_endpoint_leaves_nothing_to_the_next_of_its_name(world):
    endpoint = world.made(EXTERNAL)
    bob = world.give(endpoint, CAN_MANAGE)
    world.log.write(endpoint["id"], "gpt", SERVE, "hello")
    world.control.delete(bob, "e")
    world.log.write(endpoint["id"], "gpt", SERVE, "said too late")
    again = world.made(EXTERNAL)
    assert world.forgotten == [endpoint["id"]]
    assert world.access.acl(endpoint["id"]) == []
    assert world.log.text(endpoint["id"], "gpt", SERVE) == ""
    assert world.secrets.list() == (("e", "gpt.openai_api_key.v1"),)
    with pytest.raises(PermissionDeniedError):
        world.control.get(bob, "e")
    with pytest.raises(EndpointNotFoundError, match=endpoint["id"]):
        world.control.permissions_get(world.who("ada"), endpoint["id"])
    assert again["id"] != endpoint["id"]


def holders(answer):
    names = ("user_name", "group_name", "service_principal_name")
    return {
        next(item[name] for name in names if name in item): [
            (level["permission_level"], level["inherited"]) for level in item["all_permissions"]
        ]
        for item in answer["access_control_list"]
    }


def test_permissions_are_merged_by_patch_and_replaced_by_put(world):
    ada, identity = world.who("ada"), world.made()["id"]

    def body(*items):
        return {"access_control_list": [{kind: name, "permission_level": level} for kind, name, level in items]}

    creator, admins = {"ada": [("CAN_MANAGE", False)]}, {"admins": [("CAN_MANAGE", True)]}
    assert holders(world.control.permissions_get(ada, identity)) == {**creator, **admins}
    given = world.control.permissions_set(ada, identity, body(("group_name", "ds", "CAN_QUERY")))
    assert list(holders(given)) == ["ada", "ds", "admins"]
    assert given["object_id"] == f"/serving-endpoints/{identity}"
    merged = world.control.permissions_update(
        ada, identity, body(("user_name", "bob", "CAN_VIEW"), ("group_name", "ds", "CAN_MANAGE"))
    )
    assert holders(merged) == {**creator, "ds": [("CAN_MANAGE", False)], "bob": [("CAN_VIEW", False)], **admins}
    assert holders(world.control.permissions_set(ada, identity, {})) == {**creator, **admins}


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ({"permission_level": "CAN_VIEW"}, r"access_control_list\[0\] needs one of user_name"),
        ({"user_name": "a", "group_name": "b", "permission_level": "CAN_VIEW"}, "needs one of user_name"),
        ({"user_name": "a", "permission_level": "CAN_RUN"}, r"permission_level: should be 'CAN_VIEW'"),
        ({"user_name": "a"}, r"permission_level: is missing"),
        ({"user_name": " ", "permission_level": "CAN_VIEW"}, "visible characters"),
    ],
)
def test_permissions_that_mean_nothing_are_refused(world, item, why):
    identity = world.made()["id"]
    for change in (world.control.permissions_set, world.control.permissions_update):
        with pytest.raises(ConfigurationError, match=why):
            change(world.who("ada"), identity, {"access_control_list": [item]})


def test_one_principal_cannot_be_given_two_levels_at_once(world):
    items = [{"user_name": "bob", "permission_level": level} for level in ("CAN_VIEW", "CAN_QUERY")]
    with pytest.raises(ConfigurationError, match="'user bob'"):
        world.control.permissions_set(world.who("ada"), world.made()["id"], {"access_control_list": items})


TABLES = {"logs_table": "c.s.logs", "traces_table": "c.s.traces"}


def test_names_of_telemetry_tables_become_a_profile_of_their_own(world):
    ada = world.who("ada")
    world.made()
    sent = {
        "table_names": TABLES,
        "inference_table_config": {"sampling_fraction": 0.5},
        "enabled_telemetry_features": ["TELEMETRY_FEATURE_LOGS"],
    }
    kept = world.control.patch_telemetry(ada, "e", {"telemetry_config": sent})["telemetry_config"]
    assert len(kept.pop("telemetry_profile_id")) == 32
    assert kept == {
        "inference_table_config": {"sampling_fraction": 0.5, "name": "c.s.logs_payload"},
        "enabled_telemetry_features": ["TELEMETRY_FEATURE_LOGS"],
    }
    profile = {"telemetry_profile_id": "p-1"}
    assert world.control.patch_telemetry(ada, "e", {"telemetry_config": profile})["telemetry_config"] == profile
    unnamed = {"telemetry_config": {"enabled_telemetry_features": ["TELEMETRY_FEATURE_TRACES"]}}
    assert world.control.patch_telemetry(ada, "e", unnamed)["telemetry_config"] == profile
    assert world.control.get(ada, "e")["telemetry_config"] == profile
    assert "telemetry_config" not in world.control.patch_telemetry(ada, "e", {})


def test_only_endpoints_of_our_own_models_report_telemetry(world):
    ada, telemetry = world.who("ada"), {"table_names": TABLES}
    for name, config, kind in (("x", EXTERNAL, "EXTERNAL_MODELS"), ("y", None, "NO_CONFIG")):
        created = world.control.create(ada, {"name": name, "config": config, "telemetry_config": telemetry})
        assert "telemetry_config" not in created
        with pytest.raises(ConfigurationError, match=kind):
            world.control.patch_telemetry(ada, name, {"telemetry_config": telemetry})
    assert "telemetry_config" in world.made(telemetry_config=telemetry)


def test_telemetry_waits_for_an_update_in_progress(world):
    world.made()
    world.gate.clear()
    config = {"served_entities": [{**CUSTOM["served_entities"][0], "entity_version": "2"}]}
    world.control.update_config(world.who("ada"), "e", config)
    with pytest.raises(UpdateConflictError, match="'e' is being updated already"):
        world.control.patch_telemetry(world.who("ada"), "e", {})


def units(amount, **more):
    return {"served_entities": [{"entity_name": "system.ai.llama-4", "provisioned_model_units": amount, **more}]}


def test_throughput_in_model_units_is_declared_and_changed_under_its_own_routes(world):
    ada = world.who("ada")
    world.control.create_pt(ada, {"name": "pt-ep", "config": units(50, entity_version=1, burst_scaling_enabled=False)})
    created = world.registry.wait_until_settled("pt-ep", 20)
    (entity,) = created["config"]["served_entities"]
    assert (entity["name"], entity["provisioned_model_units"]) == ("llama-4-1", 50)
    assert entity["foundation_model"]["name"] == "system.ai.llama-4"
    assert "burst_scaling_enabled" not in entity
    world.control.update_pt_config(ada, "pt-ep", {"config": units(100)})
    (entity,) = world.registry.wait_until_settled("pt-ep", 20)["config"]["served_entities"]
    assert (entity["entity_version"], entity["provisioned_model_units"]) == ("1", 100)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"served_entities": [{"entity_name": "m", "entity_version": "1"}]}, "provisioned_model_units: is missing"),
        ({"served_entities": [{"provisioned_model_units": 5}]}, "entity_name: is missing"),
        (units(0, entity_version="1"), "must be at least 1"),
        (units(5), "entity_version is missing"),
        ({}, "served_entities: is missing"),
    ],
)
def test_throughput_that_names_no_model_or_no_units_is_refused(world, config, why):
    with pytest.raises(ConfigurationError, match=why):
        world.control.create_pt(world.who("ada"), {"name": "pt-ep", "config": config})


def test_a_model_that_nobody_optimises_here_says_so_and_an_unknown_one_is_not_found(world):
    ada = world.who("ada")
    assert world.control.optimization_info(ada, "ml.llm-catalog.llama-13b", "3") == {"optimizable": False}
    with pytest.raises(EndpointNotFoundError, match="llama"):
        world.control.optimization_info(ada, "llama", "404")


def test_the_build_log_tells_how_loading_went_without_the_secrets_it_needed(world):
    world.secrets.put("llm", "key", SECRET)
    entity = {**CUSTOM["served_entities"][0], "environment_vars": {"KEY": "token {{secrets/llm/key}}"}}
    world.made()
    logs = world.control.build_logs(world.who("ada"), "e", "current")["logs"]
    assert "Loading c.s.model-A version 1." in logs
    assert "Loaded in" in logs
    world.failure = ModelError(f"'{SECRET}' does not open anything")
    failed = world.made({"served_entities": [entity]}, name="f")
    logs = world.control.build_logs(world.who("ada"), "f", "current")["logs"]
    assert "Not loaded: '***' does not open anything" in logs
    assert "Traceback" in logs
    assert SECRET not in logs + str(failed)


def test_logs_keep_the_last_lines_of_each_served_entity(world):
    identity = world.made()["id"]
    assert "Serves in config version 1." in world.log.text(identity, "current", SERVE)
    world.log.write(identity, "current", SERVE, "\n".join(f"line {number}" for number in range(MOST_LINES)))
    world.log.write(identity, "current", SERVE, "one more\nand another")
    lines = world.control.logs(world.who("ada"), "e", "current")["logs"].splitlines()
    assert len(lines) == MOST_LINES
    assert (lines[0][20:], lines[-1][20:]) == ("line 2", "and another")
    assert "line" not in world.log.text(identity, "current", BUILD)
    with pytest.raises(EndpointNotFoundError, match="has no served model 'nobody'"):
        world.control.logs(world.who("ada"), "e", "nobody")


def test_updates_are_logged_for_those_who_asked_to_hear_of_them(world, caplog):
    addresses = {"on_update_success": ["a@x"], "on_update_failure": ["b@x"]}
    world.made(EXTERNAL, email_notifications=addresses)
    with caplog.at_level(logging.INFO, "aiquery.registry"):
        world.control.update_config(world.who("ada"), "e", EXTERNAL)
        world.failure = ModelError("no")
        world.control.update_config(world.who("ada"), "e", EXTERNAL)
    told = [message for message in caplog.messages if "No mail" in message]
    assert ["succeeded" in told[0], "a@x" in told[0]] == [True, True]
    assert ["failed" in told[1], "b@x" in told[1]] == [True, True]
    unset = world.control.update_notifications(world.who("ada"), "e", {})
    assert unset == {"name": "e", "email_notifications": {}}


CAPTURE = {"catalog_name": "c", "schema_name": "s", "enabled": True}


def test_the_deprecated_inference_table_stays_as_it_was_first_declared(world):
    ada = world.who("ada")

    def update(**capture):
        world.control.update_config(ada, "e", {**CUSTOM, **({"auto_capture_config": capture} if capture else {})})
        return world.registry.wait_until_settled("e", 20)["config"]["auto_capture_config"]

    created = world.made({**CUSTOM, "auto_capture_config": CAPTURE})
    table = created["config"]["auto_capture_config"]
    assert table["state"]["payload_table"]["name"] == "c.s.e_payload"
    assert world.registry.serving("e").config.auto_capture == AutoCapture(**CAPTURE, table_name_prefix="e")
    assert update() == table
    with pytest.raises(ConfigurationError, match="stay as they were"):
        update(**{**CAPTURE, "schema_name": "other"})
    assert update(**{**CAPTURE, "enabled": False})["enabled"] is False
    with pytest.raises(ConfigurationError, match="cannot be enabled again"):
        update(**CAPTURE)


def test_a_budget_policy_shows_under_the_names_that_it_is_read_by(world):
    assert world.made(EXTERNAL, budget_policy_id="b-1")["effective_budget_policy_id"] == "b-1"
    (item,) = world.control.list(world.who("ada"))["endpoints"]
    assert item["usage_policy_id"] == "b-1"
    assert "budget_policy_id" not in {**item, **world.control.get(world.who("ada"), "e")}


def test_a_connection_is_for_its_creator_and_for_admins(world):
    external, ada = world.control.external, world.who("ada")
    world.give(world.made(), CAN_MANAGE)
    bob, cid = world.who("bob"), world.give(world.registry.get("e"), CAN_MANAGE, "cid")
    external.create(bob, "jira", "https://example.org/rest")
    body = {"connection_name": "jira", "method": "GET", "path": "/issue"}
    for who in (ada, bob):
        assert external.prepare(who, body).url == "https://example.org/rest/issue"
        assert [connection.name for connection in external.list(who)] == ["jira"]
    assert external.list(cid) == []
    for call in (lambda: external.prepare(cid, body), lambda: external.delete(cid, "jira")):
        with pytest.raises(PermissionDeniedError, match="creator and for admins"):
            call()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"path": "/../admin"}, "plain path"),
        ({"path": "/%2e%2e/admin"}, "plain path"),
        ({"path": "/..%2fadmin"}, "plain path"),
        ({"path": "/a?b=c"}, "plain path"),
        ({"path": "/a\r\nHost: x"}, "plain path"),
        ({"sub_domain": "evil.com/"}, "sub_domain"),
        ({"method": "TRACE"}, "'method' must be one of"),
        ({"headers": "{"}, "'headers' is not the text of a JSON object"),
        ({"params": "[1]"}, "'params' must be the text of a JSON object"),
        ({"json": {"a": 1}}, "needs 'json'"),
        ({"connection_name": None}, "needs 'connection_name'"),
    ],
)
def test_a_request_that_leads_elsewhere_or_cannot_be_read_is_refused(world, more, why):
    ada = world.who("ada")
    world.control.external.create(ada, "jira", "https://example.org/rest")
    with pytest.raises(InvalidRequestError, match=why):
        world.control.external.prepare(ada, {"connection_name": "jira", "method": "GET", "path": "/a", **more})


def test_a_request_carries_what_the_connection_and_the_caller_say(world):
    ada = world.who("ada")
    world.secrets.put("jira", "token", SECRET)
    world.control.external.create(
        ada, "jira", "https://example.org/rest", headers={"X-Team": "a"}, bearer_token="{{secrets/jira/token}}"
    )
    asked = world.control.external.prepare(
        ada,
        {
            "connection_name": "jira",
            "method": "post",
            "path": "issue/",
            "headers": '{"X-Mine": "1", "x-team": "b", "Authorization": "mine", "Host": "elsewhere"}',
            "params": '{"q": "a b", "n": 3}',
            "json": '{"x": 1}',
            "sub_domain": "eu",
        },
    )
    assert (asked.method, asked.url, asked.body) == (
        "POST",
        "https://eu.example.org/rest/issue/?q=a+b&n=3",
        b'{"x": 1}',
    )
    assert dict(asked.headers) == {
        "content-type": "application/json",
        "x-mine": "1",
        "x-team": "a",
        "authorization": f"Bearer {SECRET}",
    }
    assert SECRET not in repr(asked)


def test_an_interface_is_read_off_the_files_of_models_that_were_never_loaded(world, registry, sign):
    registry.log("tests.interface", python_model, Echo(), signature=sign({"a": "double"}, ["string"]))
    entities = [
        {"name": name, "entity_name": model, "entity_version": "1"}
        for name, model in (("here", "tests.interface"), ("gone", "tests.gone"))
    ]
    routes = [{"served_model_name": name, "traffic_percentage": 50} for name in ("here", "gone")]
    world.made({"served_entities": entities, "traffic_config": {"routes": routes}})
    interface = replace(world.control, models=registry.models).interface(world.who("ada"), "e")
    assert (interface.endpoint, interface.task) == ("e", None)
    assert interface.signatures["here"].inputs.input_names() == ["a"]
    assert interface.signatures["gone"] is None
    world.made(EXTERNAL, name="x")
    assert world.control.interface(world.who("ada"), "x").task == "llm/v1/chat"
    world.control.create(world.who("ada"), {"name": "empty"})
    assert world.control.interface(world.who("ada"), "empty").signatures == {}
