"""The registry: what endpoints tell about themselves while they are created, updated and deleted."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aiquery_serving.clock import SystemClock
from aiquery_serving.errors import (
    ConfigurationError,
    EndpointExistsError,
    EndpointFailedError,
    EndpointNotFoundError,
    EndpointNotReadyError,
    ProviderAccessError,
    SecretError,
    UpdateConflictError,
    WorkspaceError,
)
from aiquery_serving.messages import Response
from aiquery_serving.registry import Registry
from aiquery_serving.registry import deployments as deployments_module
from aiquery_serving.registry import process as process_module
from aiquery_serving.secrets import Secrets
from aiquery_serving.store import Store

SECRET = "sk-very-secret"
ME = "me@example.com"


class Retirable:
    retired = closed = False

    def retire(self, *, at_once=False):
        self.retired, self.closed = not at_once, at_once


class External(Retirable):
    task = "llm/v1/chat"

    def __init__(self, entity):
        self.entity = entity

    async def send(self, body):
        return Response(body={})

    async def close(self):
        pass


class Model(Retirable):
    input_schema = output_type = None

    def __init__(self, entity):
        self.entity = entity

    def predict(self, rows, params=None):
        raise NotImplementedError

    def query(self, payload):
        return {}


class Loader:
    """Loads at once, unless a version is held back or set to fail."""

    def __init__(self):
        self.loaded = []
        self.gates = {}
        self.failures = {}
        self.per_request = False

    def hold_back(self, version):
        self.gates[version] = threading.Event()
        return self.gates[version]

    def __call__(self, entity, say):
        if gate := self.gates.get(entity.entity_version):
            assert gate.wait(20)
        if failure := self.failures.get(entity.entity_version):
            raise failure
        self.loaded.append(entity)
        return External(entity) if entity.external_model or self.per_request else Model(entity)


class Clock(SystemClock):
    """A clock that can be pushed forward."""

    ahead = 0.0

    def now(self):
        return super().now() + self.ahead


class World:
    """A workspace as one process sees it."""

    def __init__(self, folder):
        self.store = Store(folder)
        self.secrets = Secrets(self.store, key=None)
        self.load = Loader()
        self.clock = Clock()
        self.during_check = lambda: None
        self.registry = Registry(
            self.store,
            self.secrets,
            load=self.load,
            resolve=self.resolve,
            clock=self.clock,
        )

    def resolve(self, entity):
        self.during_check()
        if entity.entity_version == "404":
            raise ConfigurationError(f"Registered model '{entity.entity_name}' has no version 404.")
        return entity

    def close(self):
        self.registry.close()
        self.store.close()


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "ws")
    yield made
    for gate in made.load.gates.values():
        gate.set()
    made.close()


@pytest.fixture
def registry(world):
    return world.registry


@pytest.fixture
def neighbour(world):
    """Another view of the same workspace, as another process has it."""
    made = World(world.store.folder)
    yield made
    made.close()


def custom(version="1", name="current"):
    return {"served_entities": [{"name": name, "entity_name": "c.s.model-A", "entity_version": version}]}


def external(key=SECRET, model="gpt-4"):
    return {
        "served_entities": [
            {
                "name": "chat",
                "external_model": {
                    "provider": "openai",
                    "name": model,
                    "task": "llm/v1/chat",
                    "openai_config": {"openai_api_key_plaintext": key},
                },
            }
        ]
    }


def state(endpoint):
    return endpoint["state"]["ready"], endpoint["state"]["config_update"]


def deployment(endpoint, part="config"):
    entity_state = endpoint[part]["served_entities"][0]["state"]
    return entity_state["deployment"], entity_state["deployment_state_message"]


def version_served(registry, name="e"):
    return registry.serving(name, wait=10).config.served_entities[0].entity_version


def test_an_external_endpoint_is_ready_in_the_answer(registry):
    endpoint = registry.create({"name": "e", "config": external(), "tags": [{"key": "a", "value": "b"}]}, creator=ME)
    assert state(endpoint) == ("READY", "NOT_UPDATING")
    assert len(endpoint["id"]) == 32
    assert endpoint["creator"] == ME
    assert endpoint["config"]["config_version"] == 1
    assert endpoint["tags"] == [{"key": "a", "value": "b"}]
    assert registry.get("e") == endpoint
    registry.create({"name": "a-second"}, creator=ME)
    assert [item["name"] for item in registry.list()["endpoints"]] == ["a-second", "e"]
    assert isinstance(registry.serving("e").entities["chat"], External)


def test_a_key_in_clear_becomes_a_reference_that_lives_and_dies_with_the_endpoint(world):
    endpoint = world.registry.create({"name": "e", "config": external()}, creator=ME)
    block = endpoint["config"]["served_entities"][0]["external_model"]["openai_config"]
    assert block == {"openai_api_key": "{{secrets/e/chat.openai_api_key.v1}}"}
    assert world.secrets.resolve(block["openai_api_key"]) == SECRET
    world.secrets.put("e", "by-hand", "x")
    world.registry.update_config("e", external("sk-second"))
    assert world.secrets.get("e", "chat.openai_api_key.v1") == SECRET
    assert world.secrets.get("e", "chat.openai_api_key.v2") == "sk-second"
    world.registry.delete("e")
    assert world.secrets.list() == (("e", "by-hand"),)


def test_an_endpoint_called_env_keeps_its_keys_off_the_environment(world):
    world.registry.create({"name": "env", "config": external()}, creator=ME)
    assert world.secrets.list() == (("env.endpoint", "chat.openai_api_key.v1"),)


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({"name": "e", "config": external()}, EndpointExistsError),
        ({"name": "no spaces", "config": external()}, ConfigurationError),
        ({"name": "new", "config": custom("404")}, ConfigurationError),
        ({"name": "new", "config": {"served_entities": []}}, ConfigurationError),
    ],
)
def test_a_refused_create_stores_nothing(world, payload, error):
    before = world.registry.create({"name": "e", "config": external()}, creator=ME)
    secrets = world.secrets.list()
    with pytest.raises(error):
        world.registry.create(payload, creator=ME)
    assert world.registry.list()["endpoints"][0]["name"] == "e"
    assert len(world.registry.list()["endpoints"]) == 1
    assert world.registry.get("e") == before
    assert world.secrets.list() == secrets


def test_a_first_deployment_is_pending_until_it_has_loaded(world, registry):
    gate = world.load.hold_back("1")
    endpoint = registry.create({"name": "e", "config": custom()}, creator=ME)
    assert state(endpoint) == ("NOT_READY", "IN_PROGRESS")
    assert endpoint["pending_config"]["config_version"] == 1
    assert deployment(endpoint, "pending_config") == ("DEPLOYMENT_CREATING", "")
    with pytest.raises(EndpointNotReadyError, match="'e' is still loading"):
        registry.serving("e")
    with pytest.raises(EndpointNotReadyError, match="after 0 s"):
        registry.wait_until_settled("e", 0)
    gate.set()
    settled = registry.wait_until_settled("e", 10)
    assert state(settled) == ("READY", "NOT_UPDATING")
    assert "pending_config" not in settled
    assert deployment(settled) == ("DEPLOYMENT_READY", "")
    assert registry.serving("e").entities["current"].entity.entity_version == "1"


def test_a_caller_may_wait_for_a_first_deployment(world, registry):
    gate = world.load.hold_back("1")
    registry.create({"name": "e", "config": custom()}, creator=ME)
    threading.Timer(0.05, gate.set).start()
    assert registry.serving("e", wait=10).name == "e"


def test_an_update_serves_the_old_config_until_the_new_one_has_loaded(world, registry):
    registry.create({"name": "e", "config": custom()}, creator=ME)
    old = registry.serving("e", wait=10)
    gate = world.load.hold_back("2")
    updating = registry.update_config("e", custom("2"))
    assert state(updating) == ("READY", "IN_PROGRESS")
    assert updating["config"]["served_entities"][0]["entity_version"] == "1"
    assert updating["pending_config"]["config_version"] == 2
    assert registry.serving("e") is old
    with pytest.raises(UpdateConflictError, match="'e' is being updated already"):
        registry.update_config("e", custom("3"))
    gate.set()
    done = registry.wait_until_settled("e", 10)
    assert state(done) == ("READY", "NOT_UPDATING")
    assert done["config"]["config_version"] == 2
    assert version_served(registry) == "2"
    assert old.entities["current"].entity.entity_version == "1"  # whoever holds it finishes on it


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (ValueError("bad pickle"), "ValueError: bad pickle"),
        (ConfigurationError("No such flavour."), "No such flavour."),
    ],
)
def test_a_failed_update_keeps_the_old_config_and_says_why(world, registry, failure, says):
    registry.create({"name": "e", "config": custom()}, creator=ME)
    old = registry.serving("e", wait=10)
    world.load.failures["2"] = failure
    registry.update_config("e", custom("2"))
    failed = registry.wait_until_settled("e", 10)
    assert state(failed) == ("READY", "UPDATE_FAILED")
    assert "pending_config" not in failed
    assert deployment(failed) == (
        "DEPLOYMENT_READY",
        f"The update to config version 2 failed: served entity 'current': {says}",
    )
    assert registry.serving("e") is old
    del world.load.failures["2"]
    registry.update_config("e", custom("2"))
    assert deployment(registry.wait_until_settled("e", 10)) == ("DEPLOYMENT_READY", "")
    assert version_served(registry) == "2"


def test_a_failed_first_deployment_says_why_and_can_be_updated(world, registry):
    world.load.failures["1"] = ValueError("bad pickle")
    registry.create({"name": "e", "config": custom()}, creator=ME)
    failed = registry.wait_until_settled("e", 10)
    assert state(failed) == ("NOT_READY", "UPDATE_FAILED")
    assert deployment(failed) == ("DEPLOYMENT_FAILED", "ValueError: bad pickle")
    with pytest.raises(EndpointFailedError, match=r"'e' did not load: .*'current': ValueError: bad pickle"):
        registry.serving("e", wait=10)
    registry.update_config("e", custom("2"))
    assert version_served(registry) == "2"


def test_an_external_endpoint_that_does_not_load_fails_in_the_answer(world, registry):
    world.load.failures[None] = SecretError("Secret 'a/b' is not in this workspace.")
    endpoint = registry.create({"name": "e", "config": external()}, creator=ME)
    assert state(endpoint) == ("NOT_READY", "UPDATE_FAILED")
    assert deployment(endpoint) == ("DEPLOYMENT_FAILED", "Secret 'a/b' is not in this workspace.")


@pytest.mark.parametrize(("before", "after"), [(custom(), external()), (external(), custom())])
def test_external_and_own_models_do_not_turn_into_each_other(registry, before, after):
    registry.create({"name": "e", "config": before}, creator=ME)
    registry.wait_until_settled("e", 10)
    with pytest.raises(ConfigurationError, match="create another endpoint"):
        registry.update_config("e", after)


@pytest.mark.parametrize("first_gate", [True, False])
def test_an_update_that_comes_between_check_and_store_is_a_conflict(world, neighbour, registry, first_gate):
    registry.create({"name": "e", "config": custom()}, creator=ME)
    registry.wait_until_settled("e", 10)
    gate = neighbour.load.hold_back("2")
    if first_gate:
        gate.set()

    def update_elsewhere():
        neighbour.registry.update_config("e", custom("2"))
        if first_gate:
            neighbour.registry.wait_until_settled("e", 10)

    world.during_check = update_elsewhere
    with pytest.raises(UpdateConflictError):
        registry.update_config("e", custom("3"))
    gate.set()
    done = registry.wait_until_settled("e", 10)
    assert done["config"]["served_entities"][0]["entity_version"] == "2"


def test_changing_only_the_split_keeps_the_running_models(world, registry):
    world.load.per_request = True
    entities = [custom("1", "a")["served_entities"][0], custom("2", "b")["served_entities"][0]]

    def split(first, second):
        routes = [
            {"served_model_name": "a", "traffic_percentage": first},
            {"served_model_name": "b", "traffic_percentage": second},
        ]
        return {"served_entities": entities, "traffic_config": {"routes": routes}}

    registry.create({"name": "e", "config": split("90", "10")}, creator=ME)
    before = registry.serving("e", wait=10)
    after = registry.update_config("e", split(50, 50))
    assert state(after) == ("READY", "NOT_UPDATING")
    assert registry.serving("e").entities == before.entities
    assert len(world.load.loaded) == 2
    assert not any(entity.retired for entity in before.entities.values())


@pytest.mark.parametrize(
    ("before", "after", "loads"),
    [
        ({"max_provisioned_throughput": 970}, {"min_provisioned_throughput": 0, "max_provisioned_throughput": 1940}, 1),
        (
            {"max_provisioned_throughput": 970},
            {"min_provisioned_throughput": 970, "max_provisioned_throughput": 970},
            2,
        ),
        ({"provisioned_model_units": 50}, {"provisioned_model_units": 100, "burst_scaling_enabled": False}, 1),
        ({"environment_vars": {"A": "1"}}, {"environment_vars": {"A": "1"}}, 1),
        ({"environment_vars": {"A": "1"}}, {"environment_vars": {"A": "2"}}, 2),
        ({"environment_vars": {"A": "{{secrets/s/a}}"}}, {"environment_vars": {"A": "{{secrets/s/a}}"}}, 2),
        ({"workload_size": "Small"}, {"workload_size": "Medium"}, 2),
    ],
)
def test_a_model_is_loaded_again_only_if_something_about_it_has_changed(world, registry, before, after, loads):
    def declared(more):
        config = custom()
        return {"served_entities": [config["served_entities"][0] | more]}

    registry.create({"name": "e", "config": declared(before)}, creator=ME)
    registry.serving("e", wait=10)
    registry.update_config("e", declared(after))
    registry.wait_until_settled("e")
    assert len(world.load.loaded) == loads
    served = registry.serving("e").config.served_entities[0]
    assert {member: getattr(served, member) for member in after} == after


def test_an_external_entity_is_made_anew_because_its_secret_may_be_another(world, registry):
    world.secrets.put("prod", "key", SECRET)
    config = external()
    config["served_entities"][0]["external_model"]["openai_config"] = {"openai_api_key": "{{secrets/prod/key}}"}
    registry.create({"name": "e", "config": config}, creator=ME)
    registry.update_config("e", config)
    assert len(world.load.loaded) == 2


def test_replaced_entities_are_retired_and_closed_at_the_end(registry):
    registry.create({"name": "e", "config": external()}, creator=ME)
    first = registry.serving("e").entities["chat"]
    registry.update_config("e", external(model="gpt-5"))
    second = registry.serving("e").entities["chat"]
    assert (first.retired, second.retired) == (True, False)
    registry.delete("e")
    assert (second.retired, second.closed) == (True, False)
    registry.create({"name": "e", "config": external()}, creator=ME)
    last = registry.serving("e").entities["chat"]
    registry.close()
    assert (last.retired, last.closed) == (False, True)


def test_limits_tags_and_gateway_change_at_once_and_without_loading(world, registry):
    registry.create({"name": "e", "config": external()}, creator=ME)
    loads = len(world.load.loaded)
    limit = {"calls": 5, "key": "endpoint", "renewal_period": "minute"}
    assert registry.update_rate_limits("e", {"rate_limits": [limit]})["rate_limits"][0]["calls"] == 5
    block = {"fallback_config": {"enabled": True}, "rate_limits": [{**limit, "calls": None, "tokens": 7}]}
    assert registry.update_ai_gateway("e", block)["fallback_config"] == {"enabled": True}
    serving = registry.serving("e")
    assert [(limit.calls, limit.tokens) for limit in serving.rate_limits] == [(5, None), (None, 7)]
    assert serving.fallback
    registry.update_ai_gateway("e", {})
    assert len(registry.serving("e").rate_limits) == 1
    assert not registry.serving("e").fallback
    registry.update_tags("e", {"add_tags": [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}]})
    change = {"add_tags": [{"key": "b", "value": "3"}], "delete_tags": ["a", "none"]}
    assert registry.update_tags("e", change) == {"tags": [{"key": "b", "value": "3"}]}
    assert len(world.load.loaded) == loads


def test_a_change_of_limits_survives_the_end_of_an_update(world, registry):
    registry.create({"name": "e", "config": custom()}, creator=ME)
    registry.wait_until_settled("e", 10)
    gate = world.load.hold_back("2")
    registry.update_config("e", custom("2"))
    registry.update_rate_limits("e", {"rate_limits": [{"calls": 5, "renewal_period": "minute"}]})
    gate.set()
    registry.wait_until_settled("e", 10)
    assert [limit.calls for limit in registry.serving("e").rate_limits] == [5]


@pytest.mark.parametrize(
    "ask",
    [
        lambda r: r.get("x"),
        lambda r: r.serving("x"),
        lambda r: r.serving("x", wait=5),
        lambda r: r.update_config("x", custom()),
        lambda r: r.update_rate_limits("x", {"rate_limits": []}),
        lambda r: r.update_tags("x", {}),
        lambda r: r.update_ai_gateway("x", {}),
        lambda r: r.delete("x"),
        lambda r: r.wait_until_settled("x", 5),
    ],
)
def test_an_unknown_endpoint_is_named(registry, ask):
    with pytest.raises(EndpointNotFoundError) as caught:
        ask(registry)
    assert str(caught.value) == "Endpoint with name 'x' does not exist."


def test_an_endpoint_without_a_config_says_what_it_lacks(registry):
    endpoint = registry.create({"name": "e"}, creator=ME)
    assert state(endpoint) == ("NOT_READY", "NOT_UPDATING")
    with pytest.raises(EndpointFailedError, match=r"no served entities yet\. Update its config"):
        registry.serving("e", wait=5)
    registry.update_config("e", external())
    assert registry.serving("e").config.config_version == 1


def test_deleting_while_it_loads_leaves_nothing_behind(world, registry):
    gate = world.load.hold_back("1")
    first = registry.create({"name": "e", "config": custom()}, creator=ME)
    registry.delete("e")
    second = registry.create({"name": "e", "config": external()}, creator=ME)
    gate.set()
    join_loads()
    assert second["id"] != first["id"]
    assert registry.get("e") == second
    assert "chat" in registry.serving("e").entities


def join_loads():
    for thread in threading.enumerate():
        if thread.name.startswith("aiquery-load"):
            thread.join(10)


def test_a_workspace_that_cannot_be_written_fails_the_update_and_keeps_the_old_config(world, registry, caplog):
    registry.create({"name": "e", "config": custom()}, creator=ME)
    old = registry.serving("e", wait=10)
    gate = world.load.hold_back("2")
    registry.update_config("e", custom("2"))
    with world.store.write() as connection:
        connection.execute("CREATE TRIGGER full BEFORE UPDATE ON endpoints BEGIN SELECT RAISE(FAIL, 'full'); END")
    gate.set()
    join_loads()
    assert "the load has no effect" in caplog.text
    assert state(registry.get("e")) == ("READY", "UPDATE_FAILED")
    assert registry.serving("e") is old


def test_serving_costs_next_to_nothing_once_loaded(registry):
    registry.create({"name": "e", "config": external()}, creator=ME)
    start = time.perf_counter()
    for _ in range(10_000):
        registry.serving("e")
    assert time.perf_counter() - start < 1  # 100 us each, two orders above what it takes


# Several processes.


def test_a_reopened_workspace_loads_at_the_first_question(world, neighbour, registry):
    registry.create({"name": "own", "config": custom()}, creator=ME)
    registry.create({"name": "other", "config": external()}, creator=ME)
    registry.wait_until_settled("own", 10)
    assert neighbour.registry.get("own") == registry.get("own")
    assert neighbour.load.loaded == []
    assert "chat" in neighbour.registry.serving("other").entities
    assert version_served(neighbour.registry, "own") == "1"


def test_an_update_is_seen_by_others_who_swap_only_when_they_have_loaded(world, neighbour, registry):
    registry.create({"name": "e", "config": custom()}, creator=ME)
    assert version_served(neighbour.registry) == "1"
    gate = neighbour.load.hold_back("2")
    registry.update_config("e", custom("2"))
    registry.wait_until_settled("e", 10)
    for _ in range(3):
        neighbour.clock.ahead += 0.3
        assert version_served(neighbour.registry) == "1"
        registry.update_rate_limits("e", {"rate_limits": [{"calls": 5, "renewal_period": "minute"}]})
    gate.set()
    join_loads()
    assert version_served(neighbour.registry) == "2"
    assert [entity.entity_version for entity in neighbour.load.loaded] == ["1", "2"]
    neighbour.clock.ahead += 0.3
    assert neighbour.registry.serving("e").rate_limits[0].calls == 5


def test_others_look_again_only_after_a_while(neighbour, registry):
    registry.create({"name": "e", "config": external()}, creator=ME)
    held = neighbour.registry.serving("e")
    registry.update_rate_limits("e", {"rate_limits": [{"calls": 5, "renewal_period": "minute"}]})
    assert neighbour.registry.serving("e") is held
    neighbour.clock.ahead += 0.3
    assert neighbour.registry.serving("e").rate_limits[0].calls == 5
    assert neighbour.registry.serving("e").entities == held.entities


def test_others_see_deletion_and_a_new_endpoint_of_that_name(neighbour, registry):
    registry.create({"name": "e", "config": external()}, creator=ME)
    neighbour.registry.serving("e")
    registry.delete("e")
    neighbour.clock.ahead += 0.3
    with pytest.raises(EndpointNotFoundError):
        neighbour.registry.serving("e")
    registry.create({"name": "e", "config": custom("7")}, creator=ME)
    assert version_served(neighbour.registry) == "7"


def test_others_see_a_new_endpoint_of_that_name_even_without_a_look_in_between(neighbour, registry):
    registry.create({"name": "e", "config": external()}, creator=ME)
    old = neighbour.registry.serving("e").entities["chat"]
    registry.delete("e")
    registry.create({"name": "e", "config": external()}, creator=ME)
    neighbour.clock.ahead += 0.3
    assert neighbour.registry.serving("e").entities["chat"] is not old
    assert old.retired


def test_endpoints_in_service_load_before_anybody_asks(neighbour, registry):
    registry.create({"name": "e", "config": custom("1")}, creator=ME)
    registry.create({"name": "bare"}, creator=ME)
    registry.wait_until_settled("e", 10)
    gate = neighbour.load.hold_back("1")
    assert not neighbour.registry.warming()
    neighbour.registry.warm()
    assert neighbour.registry.warming()
    with pytest.raises(EndpointNotReadyError) as caught:
        neighbour.registry.serving("e")
    assert caught.value.deployed
    gate.set()
    assert neighbour.registry.serving("e", wait=10).entities
    assert not neighbour.registry.warming()


def test_a_config_that_does_not_load_here_is_tried_again_later(neighbour, registry):
    neighbour.load.failures[None] = ProviderAccessError("No.")
    registry.create({"name": "e", "config": external()}, creator=ME)
    with pytest.raises(EndpointFailedError, match=r"'e' does not load in this process: .*'chat': No\."):
        neighbour.registry.serving("e")
    neighbour.load.failures.clear()
    with pytest.raises(EndpointFailedError):
        neighbour.registry.serving("e")
    neighbour.clock.ahead += deployments_module.RELOAD_SECONDS
    assert "chat" in neighbour.registry.serving("e").entities


def test_an_update_elsewhere_that_fails_here_keeps_the_old_one_and_is_tried_again(neighbour, registry):
    registry.create({"name": "e", "config": custom()}, creator=ME)
    assert version_served(neighbour.registry) == "1"
    neighbour.load.failures["2"] = ValueError("no memory")
    registry.update_config("e", custom("2"))
    registry.wait_until_settled("e", 10)
    neighbour.clock.ahead += 0.3
    neighbour.registry.serving("e")
    join_loads()
    neighbour.clock.ahead += 0.3
    assert version_served(neighbour.registry) == "1"
    neighbour.load.failures.clear()
    neighbour.clock.ahead += deployments_module.RELOAD_SECONDS
    neighbour.registry.serving("e")
    join_loads()
    assert version_served(neighbour.registry) == "2"


def test_an_update_in_another_process_is_a_conflict_and_can_be_waited_for(world, neighbour, registry):
    gate = world.load.hold_back("1")
    registry.create({"name": "e", "config": custom()}, creator=ME)
    with pytest.raises(UpdateConflictError):
        neighbour.registry.update_config("e", custom("2"))
    with pytest.raises(EndpointExistsError):
        neighbour.registry.create({"name": "e", "config": custom("2")}, creator=ME)
    threading.Timer(0.05, gate.set).start()
    assert state(neighbour.registry.wait_until_settled("e", 10)) == ("READY", "NOT_UPDATING")


def test_a_load_that_ends_while_another_process_looks_has_not_failed(world, neighbour, registry, monkeypatch):
    from aiquery_serving.registry import documents

    gate, really = world.load.hold_back("1"), documents.is_loading

    def ends_meanwhile(owner, **when):
        monkeypatch.setattr(documents, "is_loading", really)
        gate.set()
        join_loads()
        return really(owner, **when)

    registry.create({"name": "e", "config": custom()}, creator=ME)
    monkeypatch.setattr(documents, "is_loading", ends_meanwhile)

    assert state(neighbour.registry.get("e")) == ("READY", "NOT_UPDATING")


def test_an_update_of_a_closed_registry_has_failed(world, neighbour, registry):
    gate = world.load.hold_back("1")
    registry.create({"name": "e", "config": custom()}, creator=ME)
    registry.close()
    gate.set()
    join_loads()
    assert state(neighbour.registry.get("e")) == ("NOT_READY", "UPDATE_FAILED")


STUCK = """
import sys, time
from aiquery_serving.clock import SystemClock
from aiquery_serving.registry import Registry
from aiquery_serving.secrets import Secrets
from aiquery_serving.store import Store

store = Store(sys.argv[1])
registry = Registry(
    store, Secrets(store, key=None), load=lambda entity, say: time.sleep(60), resolve=lambda entity: entity,
    clock=SystemClock(),
)
entity = {"name": "current", "entity_name": "c.s.model-A", "entity_version": "1"}
registry.create({"name": "e", "config": {"served_entities": [entity]}}, creator="other")
print("loading", flush=True)
time.sleep(60)
"""


def test_an_update_whose_process_was_killed_has_failed_and_blocks_nobody(world, registry):
    environment = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", STUCK, str(world.store.folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "loading\n"
        assert state(registry.get("e")) == ("NOT_READY", "IN_PROGRESS")
        with pytest.raises(UpdateConflictError):
            registry.update_config("e", custom("2"))
        os.kill(other.pid, signal.SIGKILL)
        failed = registry.wait_until_settled("e", 10)  # the process is not even reaped yet
        assert state(failed) == ("NOT_READY", "UPDATE_FAILED")
        assert "The process that was loading it ended" in deployment(failed)[1]
    registry.update_config("e", custom("2"))
    assert version_served(registry) == "2"


@pytest.mark.skipif(not Path("/bin/ps").exists(), reason="this machine has no ps")
def test_ps_tells_processes_apart_where_proc_does_not_exist(monkeypatch):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        begun = process_module._start_from_ps(other.pid)
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        assert begun
        assert begun == process_module._start_from_ps(other.pid)
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert process_module._start_from_ps(other.pid) == ""  # ended, though nobody has asked yet
    assert process_module._start_from_ps(other.pid) == ""


def test_an_unreadable_row_is_named(world, registry):
    registry.create({"name": "e", "config": external()}, creator=ME)
    with world.store.write() as connection:
        connection.execute("UPDATE endpoints SET document = '{\"tags\": 1}'")
    with pytest.raises(WorkspaceError, match="keeps of endpoint 'e' cannot be read"):
        registry.get("e")
