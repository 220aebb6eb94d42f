"""The REST API's JSON as clients send it: what is read and what is refused."""

from __future__ import annotations

import pytest
from declarations import MODEL, MULTI_MODEL, Vault, openai, read

from aiquery_serving.endpoint import (
    EndpointConfig,
    RateLimit,
    Route,
    ServedEntity,
)
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.wire import (
    TagChange,
    gateway_rate_limits,
    parse_ai_gateway,
    parse_config,
    parse_create,
    parse_rate_limits,
    parse_tags,
    rate_limits_output,
    tags_output,
)

# Creating


def test_the_two_model_example_is_read_as_it_is_written():
    declared = parse_create(MULTI_MODEL, stash=Vault())

    assert declared.name == "multi-model"
    assert declared.config == EndpointConfig(
        served_entities=tuple(
            ServedEntity(
                name=name,
                entity_name=f"catalog.schema.model-{letter}",
                entity_version="1",
                workload_size="Small",
                scale_to_zero_enabled=True,
            )
            for name, letter in [("current", "A"), ("challenger", "B")]
        ),
        routes=(Route("current", 90), Route("challenger", 10)),
    )


def test_an_endpoint_may_be_declared_without_a_config():
    declared = parse_create({"name": "later", "config": None}, stash=Vault())

    assert (declared.config, declared.tags, declared.description) == (None, (), "")


def test_a_create_request_carries_the_rest_of_an_endpoint():
    declared = parse_create(
        {
            "name": "e1",
            "rate_limits": [{"calls": "10", "renewal_period": "minute"}],
            "tags": [{"key": "team", "value": "x"}, {"key": "gold"}],
            "ai_gateway": {"usage_tracking_config": {"enabled": "true"}, "from_the_future": 1},
            "description": "text",
            "route_optimized": "false",
            "email_notifications": {"on_update_failure": ["a@example.com"]},
            "usage_policy_id": "p-1",
            "telemetry_config": {"telemetry_profile_id": "t"},
        },
        stash=Vault(),
    )

    assert declared.rate_limits == (RateLimit(calls=10),)
    assert declared.tags == (("team", "x"), ("gold", ""))
    assert declared.ai_gateway == {"usage_tracking_config": {"enabled": True}}
    assert (declared.description, declared.route_optimized) == ("text", False)
    assert declared.email_notifications == {
        "on_update_success": [],
        "on_update_failure": ["a@example.com"],
    }
    assert declared.budget_policy_id == "p-1"


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({}, "^name: is missing$"),
        ([], "^the request body: should be a JSON object$"),
        ({"name": "a.b"}, "endpoint name 'a.b' is not legal"),
        ({"name": "x" * 64}, "at most 63"),
        ({"name": "e", "config": {}}, "at least one served entity"),
        ({"name": "e", "config": []}, "^config: should be a JSON object$"),
        ({"name": "e", "tags": [{"value": "x"}]}, r"^tags\[0\]\.key: is missing$"),
        ({"name": "e", "tags": [{"key": "a"}, {"key": "a"}]}, "a key is given twice"),
        ({"name": "e", "tags": {"a": "b"}}, "^tags: should be a list$"),
        ({"name": "e", "rate_limits": [{"calls": 1}]}, r"rate_limits\[0\]\.renewal_period: is mi"),
        ({"name": "e", "route_optimized": "perhaps"}, "route_optimized: should be a valid boolean"),
    ],
)
def test_a_create_request_that_cannot_work_says_where(payload, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        parse_create(payload, stash=Vault())


# Reading a config


@pytest.mark.parametrize(
    ("given", "field", "kept"),
    [
        ({"entity_version": 3}, "entity_version", "3"),
        ({"scale_to_zero_enabled": "true"}, "scale_to_zero_enabled", True),
        ({"scale_to_zero_enabled": None}, "scale_to_zero_enabled", False),
        ({"workload_size": "small"}, "workload_size", "Small"),
        ({"workload_size": "MEDIUM"}, "workload_size", "Medium"),
        ({}, "workload_size", "Small"),
        ({"max_provisioned_concurrency": "8"}, "max_provisioned_concurrency", 8),
        ({"max_provisioned_concurrency": 8}, "workload_size", None),
        ({"max_provisioned_throughput": "1940"}, "max_provisioned_throughput", 1940),
        ({"max_provisioned_throughput": 1940}, "workload_size", None),
        ({"provisioned_model_units": 50}, "workload_size", None),
        ({"workload_type": "gpu_small"}, "workload_type", "GPU_SMALL"),
        ({"workload_type": None}, "workload_type", "CPU"),
        ({"burst_scaling_enabled": "false"}, "burst_scaling_enabled", False),
        ({"environment_vars": {"A": 1}}, "environment_vars", {"A": "1"}),
        ({"a_member_of_next_year": [1]}, "entity_name", "demo.health.tumour-b"),
    ],
)
def test_a_served_entity_is_read_in_all_the_ways_that_clients_write_it(given, field, kept):
    entity = read(MODEL | given).served_entities[0]

    assert getattr(entity, field) == kept


@pytest.mark.parametrize(
    ("entity", "name"),
    [
        ({"entity_name": "main.ml.my_model", "entity_version": 1}, "my_model-1"),
        ({"entity_name": "my_model", "entity_version": "2"}, "my_model-2"),
        ({"entity_name": "ml.llm-catalog.llama-13b", "entity_version": 3}, "llama-13b-3"),
        ({"entity_name": "my model", "entity_version": "2"}, "my-model-2"),
        ({"external_model": openai()}, "gpt-3-5-turbo"),
        ({"external_model": openai(name="llama3:8b")}, "llama3-8b"),
        ({"name": "mine", "external_model": openai()}, "mine"),
    ],
)
def test_an_entity_without_a_name_gets_one(entity, name):
    config = read(entity)

    assert config.served_entities[0].name == name
    assert config.routes == (Route(name, 100),)


def test_the_old_spelling_of_served_entities_is_understood():
    old = {"model_name": "m", "model_version": 1, "scale_to_zero_enabled": "true"}
    config = parse_config({"name": "ignored", "served_models": [old]}, config_version=7, stash=Vault())

    entity = config.served_entities[0]
    assert (entity.name, entity.entity_name, entity.entity_version) == ("m-1", "m", "1")
    assert config.config_version == 7


@pytest.mark.parametrize(
    "route",
    [
        {"served_model_name": "a", "traffic_percentage": "100"},
        {"served_entity_name": "a", "traffic_percentage": 100.0},
        {"served_entity_name": "a", "served_model_name": "a", "traffic_percentage": 100},
    ],
)
def test_a_route_names_its_entity_in_either_word(route):
    config = read(MODEL | {"name": "a"}, traffic_config={"routes": [route]})

    assert config.routes == (Route("a", 100),)


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (
            {"served_entities": [MODEL], "served_models": [{"model_name": "m"}]},
            "both served_entities and served_models",
        ),
        ({"served_entities": {}}, "^config.served_entities: should be a list$"),
        ({"served_entities": [7]}, r"^config.served_entities\[0\]: should be a JSON object$"),
        ({"served_entities": [{}]}, r"served_entities\[0\] names no model: give entity_name and"),
        (
            {"served_models": [{"model_name": "m"}]},
            r"served_models\[0\]: entity_version is missing; say which version of m",
        ),
        (
            {"served_entities": [MODEL | {"max_provisioned_concurrency": "many"}]},
            r"^config.served_entities\[0\].max_provisioned_concurrency: should be a valid integer",
        ),
        (
            {"served_entities": [MODEL], "traffic_config": {"routes": [{"traffic_percentage": "x"}]}},
            r"^config.traffic_config.routes\[0\].traffic_percentage: should be a valid integer",
        ),
        (
            {"served_entities": [MODEL], "traffic_config": {"routes": [{"traffic_percentage": 100}]}},
            r"^config.traffic_config.routes\[0\] must name one served entity",
        ),
        (
            {
                "served_entities": [MODEL],
                "traffic_config": {
                    "routes": [
                        {
                            "served_entity_name": "a",
                            "served_model_name": "b",
                            "traffic_percentage": 100,
                        }
                    ]
                },
            },
            r"routes\[0\] must name one served entity",
        ),
        ({"served_entities": [MODEL, MODEL | {"name": "b"}]}, "'tumour-b-1' has no route: add one"),
        (
            {"served_entities": [MODEL | {"external_model": openai()}]},
            "is an external model and cannot have entity_name",
        ),
    ],
)
def test_a_config_that_cannot_work_says_where(payload, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        parse_config(payload, config_version=1, stash=Vault())


def test_several_faults_are_told_at_once():
    with pytest.raises(ConfigurationError, match=r"\[0\].*; .*\[1\]"):
        read(7, 8)


# Limits, tags, gateway


@pytest.mark.parametrize("wrap", [lambda limits: {"rate_limits": limits}, lambda limits: limits])
def test_rate_limits_are_read_with_and_without_their_object(wrap):
    limits = [
        {"key": "user", "renewal_period": "minute", "calls": "10"},
        {"key": "user_group", "principal": "ds", "tokens": 500, "renewal_period": "minute"},
    ]

    assert parse_rate_limits(wrap(limits)) == (
        RateLimit(key="user", calls=10),
        RateLimit(key="user_group", principal="ds", tokens=500),
    )
    assert parse_rate_limits(wrap([])) == ()


def test_rate_limits_are_answered_as_they_were_sent():
    sent = {
        "rate_limits": [
            {"key": "user", "renewal_period": "minute", "calls": 10},
            {"key": "endpoint", "renewal_period": "minute", "tokens": 5},
        ]
    }

    assert rate_limits_output(parse_rate_limits(sent)) == sent


def test_tags_are_added_and_deleted_by_key():
    change = parse_tags({"add_tags": [{"key": "k", "value": 7}], "delete_tags": ["old"]})

    assert change == TagChange(add=(("k", "7"),), delete=("old",))
    assert tags_output([*change.add, ("gold", "")]) == {"tags": [{"key": "k", "value": "7"}, {"key": "gold"}]}


def test_a_tag_that_is_added_twice_is_refused():
    with pytest.raises(ConfigurationError, match="a key is given twice"):
        parse_tags({"add_tags": [{"key": "k", "value": "1"}, {"key": "k", "value": "2"}]})


def test_a_gateway_block_is_read_whole_and_answered_in_its_own_types():
    block = {
        "usage_tracking_config": {"enabled": True},
        "inference_table_config": {"enabled": True, "catalog_name": "c", "schema_name": "s"},
        "rate_limits": [{"key": "user_group", "principal": "ds", "calls": 5, "renewal_period": "minute"}],
        "guardrails": {"input": {"pii": {"behavior": "MASK"}, "invalid_keywords": ["x"]}},
        "fallback_config": {"enabled": True},
    }
    sent = block | {"fallback_config": {"enabled": "true"}, "unknown": 1, "guardrails": block["guardrails"]}

    assert parse_ai_gateway(sent) == block
    assert gateway_rate_limits(block) == (RateLimit(key="user_group", principal="ds", calls=5),)


@pytest.mark.parametrize("block", [None, {}, {"rate_limits": None}])
def test_a_gateway_block_without_limits_limits_nothing(block):
    assert gateway_rate_limits(block) == ()


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"fallback_config": {}}, "^ai_gateway.fallback_config.enabled: is missing$"),
        (
            {"guardrails": {"input": {"pii": {"behavior": "HIDE"}}}},
            "^ai_gateway.guardrails.input.pii.behavior: should be 'BLOCK', 'MASK' or 'NONE'$",
        ),
        ({"rate_limits": [{"renewal_period": "minute"}]}, "nothing is limited"),
        ({"rate_limits": [{"calls": 1, "renewal_period": "hour"}]}, "renewal_period must be one"),
    ],
)
def test_a_gateway_block_that_cannot_work_says_where(block, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        parse_ai_gateway(block)
