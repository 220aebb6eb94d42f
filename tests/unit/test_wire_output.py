"""The REST API's JSON as it is answered and stored, and the laws of the way back."""

from __future__ import annotations

import orjson
from declarations import MULTI_MODEL, Vault, openai
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.endpoint import (
    EndpointConfig,
    EndpointRecord,
    ExternalModel,
    RateLimit,
    Route,
    ServedEntity,
)
from aiquery_serving.wire import (
    config_output,
    config_summary,
    dump_config,
    endpoint_item,
    endpoint_output,
    load_config,
    parse_config,
    parse_create,
    pending_output,
)


def record(payload=MULTI_MODEL, **members):
    declared = parse_create(payload, stash=Vault())
    fields = {
        "name": declared.name,
        "id": "0" * 32,
        "creator": "user@example.com",
        "created_ms": 1763629200000,
        "updated_ms": 1763629200001,
        "ready": True,
        "config_update": "NOT_UPDATING",
        "config": declared.config,
        "states": {entity.name: ("DEPLOYMENT_READY", "") for entity in declared.config.served_entities},
        "tags": declared.tags,
    }
    return EndpointRecord(**fields | members)


def test_an_endpoint_answers_with_its_whole_self():
    answer = endpoint_output(record())

    entity = {
        "name": "current",
        "entity_name": "catalog.schema.model-A",
        "entity_version": "1",
        "workload_size": "Small",
        "workload_type": "CPU",
        "scale_to_zero_enabled": True,
        "creator": "user@example.com",
        "creation_timestamp": 1763629200000,
        "state": {"deployment": "DEPLOYMENT_READY", "deployment_state_message": ""},
    }
    old_words = {
        {"entity_name": "model_name", "entity_version": "model_version"}.get(key, key): value
        for key, value in entity.items()
    }
    config = answer.pop("config")
    assert config["config_version"] == 1
    assert config["served_entities"][0] == entity
    assert config["served_models"][0] == old_words
    assert config["traffic_config"] == {
        "routes": [
            {
                "served_model_name": name,
                "served_entity_name": name,
                "traffic_percentage": share,
            }
            for name, share in [("current", 90), ("challenger", 10)]
        ]
    }
    assert answer == {
        "name": "multi-model",
        "id": "0" * 32,
        "creator": "user@example.com",
        "creation_timestamp": 1763629200000,
        "last_updated_timestamp": 1763629200001,
        "state": {"ready": "READY", "config_update": "NOT_UPDATING"},
        "tags": [],
        "description": "",
        "endpoint_type": "CUSTOM_MODEL",
        "route_optimized": False,
    }


def test_an_item_of_the_list_says_which_models_and_no_more():
    item = endpoint_item(record(tags=(("team", "x"),)))

    assert item["config"]["served_entities"][0] == {
        "name": "current",
        "entity_name": "catalog.schema.model-A",
        "entity_version": "1",
    }
    assert item["config"]["served_models"][1] == {
        "name": "challenger",
        "model_name": "catalog.schema.model-B",
        "model_version": "1",
    }
    assert set(item["config"]) == {"served_entities", "served_models"}
    assert item["tags"] == [{"key": "team", "value": "x"}]
    assert "pending_config" not in item


def test_an_update_in_progress_is_shown_beside_what_serves():
    old = record()
    new = parse_config(MULTI_MODEL["config"], config_version=2, stash=Vault())
    answer = endpoint_output(
        record(
            config_update="IN_PROGRESS",
            pending_config=new,
            pending_since_ms=1763629300000,
            pending_states={"current": ("DEPLOYMENT_FAILED", "no such file")},
        )
    )

    assert answer["state"] == {"ready": "READY", "config_update": "IN_PROGRESS"}
    assert answer["config"] == endpoint_output(old)["config"]
    pending = answer["pending_config"]
    assert (pending["config_version"], pending["start_time"]) == (2, 1763629300000)
    assert [entity["state"] for entity in pending["served_entities"]] == [
        {"deployment": "DEPLOYMENT_FAILED", "deployment_state_message": "no such file"},
        {"deployment": "DEPLOYMENT_CREATING", "deployment_state_message": ""},
    ]
    assert pending == pending_output(
        new,
        creator="user@example.com",
        start_ms=1763629300000,
        states={"current": ("DEPLOYMENT_FAILED", "no such file")},
    )


def test_a_pending_config_of_unknown_age_started_with_the_last_change():
    waiting = record(config=None, pending_config=record().config, config_update="IN_PROGRESS")

    assert endpoint_output(waiting)["pending_config"]["start_time"] == waiting.updated_ms


def test_an_external_endpoint_tells_its_task_and_echoes_its_reference():
    payload = {"name": "chat", "config": {"served_entities": [{"external_model": openai()}]}}
    answer = endpoint_output(record(payload))

    assert answer["task"] == "llm/v1/chat"
    assert answer["config"]["served_entities"] == [
        {
            "name": "gpt-3-5-turbo",
            "external_model": openai(),
            "creator": "user@example.com",
            "creation_timestamp": 1763629200000,
            "state": {"deployment": "DEPLOYMENT_READY", "deployment_state_message": ""},
        }
    ]
    assert "served_models" not in answer["config"]
    assert endpoint_item(record(payload))["task"] == "llm/v1/chat"


def test_an_endpoint_without_a_config_answers_without_one():
    answer = endpoint_output(record(config=None, ready=False, states={}))

    assert answer["state"] == {"ready": "NOT_READY", "config_update": "NOT_UPDATING"}
    assert "config" not in answer
    assert "config" not in endpoint_item(record(config=None))


def test_rate_limits_and_burst_scaling_are_never_answered():
    limited = record(rate_limits=(RateLimit(calls=3),), ai_gateway={"fallback_config": {"enabled": True}})

    text = orjson.dumps([endpoint_output(limited), endpoint_item(limited)]).decode()
    assert "rate_limits" not in text
    assert "burst_scaling_enabled" not in text
    assert "fallback_config" in text


# Laws

names = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
custom_entities = st.fixed_dictionaries(
    {
        "entity_name": st.sampled_from(["m", "c.s.model-A", "ml.llm-catalog.llama-13b"]),
        "entity_version": st.integers(1, 99).map(str),
        "workload_type": st.sampled_from(["CPU", "GPU_SMALL"]),
        "scale_to_zero_enabled": st.booleans(),
        "environment_vars": st.dictionaries(names, st.text(max_size=5), max_size=2),
        "instance_profile_arn": st.none() | st.just("arn:1"),
    },
).flatmap(
    lambda members: st.sampled_from(
        [
            {"workload_size": "Medium"},
            {"min_provisioned_concurrency": 0, "max_provisioned_concurrency": 8},
            {"min_provisioned_throughput": 0, "max_provisioned_throughput": 1940},
            {"provisioned_model_units": 50},
        ]
    ).map(lambda size: members | size)
)
external_entities = st.builds(
    lambda provider, extra: {
        "external_model": ExternalModel(
            provider=provider,
            name="gpt-5",
            task="llm/v1/chat",
            config={
                "openai": {"openai_api_key": "{{secrets/a/b}}"},
                "anthropic": {"anthropic_api_key": "{{secrets/env/KEY}}"},
                "custom": {
                    "custom_provider_url": "http://localhost:1",
                    "api_key_auth": {"key": "x-key", "value": "{{secrets/a/b}}"},
                },
            }[provider],
        ),
        "max_provisioned_concurrency": extra,
    },
    st.sampled_from(["openai", "anthropic", "custom"]),
    st.none() | st.integers(1, 500),
)


@st.composite
def configs(draw):
    kind = draw(st.sampled_from([custom_entities, external_entities]))
    entities = [
        ServedEntity(name=name, **draw(kind)) for name in draw(st.lists(names, min_size=1, max_size=4, unique=True))
    ]
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=len(entities) - 1, max_size=len(entities) - 1)))
    shares = [high - low for low, high in zip([0, *cuts], [*cuts, 100], strict=True)]
    routes = [Route(entity.name, share) for entity, share in zip(entities, shares, strict=True)]
    return EndpointConfig(
        served_entities=tuple(entities),
        routes=tuple(draw(st.permutations(routes))),
        config_version=draw(st.integers(1, 99)),
    )


@given(config=configs())
def test_a_stored_config_comes_back_as_it_was(config):
    assert load_config(orjson.loads(orjson.dumps(dump_config(config)))) == config


@given(config=configs())
def test_an_answered_config_can_be_sent_again(config):
    answer = config_output(config, creator="c", created_ms=1, states={})
    answer.pop("served_models", None)
    vault = Vault()

    sent_again = parse_config(answer, config_version=config.config_version, stash=vault)
    assert sent_again == config
    assert vault == {}


@given(config=configs())
def test_a_summary_names_what_the_config_serves(config):
    summary = config_summary(config)

    assert [entity["name"] for entity in summary["served_entities"]] == [
        entity.name for entity in config.served_entities
    ]
