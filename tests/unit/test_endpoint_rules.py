"""The rules that every declaration keeps, each with the sentence it answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_serving.endpoint import (
    EXTERNAL_CONCURRENCY,
    EndpointConfig,
    ExternalModel,
    Kind,
    RateLimit,
    Route,
    ServedEntity,
    check_endpoint_name,
    check_update,
)
from aiquery_serving.errors import ConfigurationError

CHAT = "llm/v1/chat"
EMBEDDINGS = "llm/v1/embeddings"


def custom(name="current", **members):
    return ServedEntity(name=name, entity_name="demo.health.tumour-a", entity_version="1", **members)


def external(name="gpt", task=CHAT, provider="openai", **members):
    model = ExternalModel(provider=provider, name="gpt-5", task=task)
    return ServedEntity(name=name, external_model=model, **members)


def config(*entities, shares=None):
    shares = shares or [100] + [0] * (len(entities) - 1)
    routes = [Route(entity.name, share) for entity, share in zip(entities, shares, strict=False)]
    return EndpointConfig(served_entities=entities, routes=tuple(routes))


@pytest.mark.parametrize("shares", [(90, 10), (50, 50), (100, 0), (0, 100)])
def test_shares_that_make_a_hundred_are_legal(shares):
    made = config(custom("a"), custom("b"), shares=shares)

    assert [route.traffic_percentage for route in made.routes] == list(shares)


@given(shares=st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_shares_are_legal_exactly_when_they_make_a_hundred(shares):
    entities = [custom(f"e{place}") for place in range(len(shares))]

    if sum(shares) == 100:
        config(*entities, shares=shares)
    else:
        with pytest.raises(ConfigurationError, match=rf"add up to 100 .* got {sum(shares)}$"):
            config(*entities, shares=shares)


@pytest.mark.parametrize("share", [-1, 101])
def test_a_share_is_a_percentage(share):
    with pytest.raises(ConfigurationError, match="'a': traffic_percentage must be between 0 and"):
        Route("a", share)


@pytest.mark.parametrize(
    ("routes", "sentence"),
    [
        ([Route("other", 100)], "leads to 'other', which is no served entity: name one of a, b"),
        ([Route("a", 100)], "'b' has no route"),
        ([], "'a' has no route"),
        ([Route("a", 50), Route("a", 50), Route("b", 0)], "2 routes lead to 'a'"),
    ],
)
def test_every_entity_has_one_route_and_every_route_an_entity(routes, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        EndpointConfig(served_entities=(custom("a"), custom("b")), routes=tuple(routes))


def test_an_endpoint_serves_something():
    with pytest.raises(ConfigurationError, match="at least one served entity"):
        EndpointConfig(served_entities=(), routes=())


def test_fifteen_entities_are_the_most():
    entities = [custom(f"e{place}") for place in range(16)]

    assert len(config(*entities[:15]).served_entities) == 15
    with pytest.raises(ConfigurationError, match="at most 15 entities, got 16"):
        config(*entities)


@pytest.mark.parametrize(
    ("entities", "sentence"),
    [
        ([custom("a"), custom("a")], "2 served entities are named 'a'"),
        ([custom("a"), external("b")], "custom and external models cannot share an endpoint"),
        (
            [external("a"), external("b", task=EMBEDDINGS)],
            "must have one task, got llm/v1/chat and llm/v1/embeddings",
        ),
    ],
)
def test_entities_of_one_endpoint_fit_together(entities, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        config(*entities)


def test_external_models_of_several_providers_may_share_a_task():
    shared = config(external("a"), external("b", provider="anthropic"), shares=(50, 50))

    assert (shared.kind, shared.task) == (Kind.EXTERNAL, CHAT)


def test_custom_models_have_no_task():
    assert config(custom()).task is None


@pytest.mark.parametrize("name", ["a", "current", "gpt-5_mini", "A-1", "x" * 63])
def test_names_of_letters_digits_hyphens_and_underscores_are_legal(name):
    check_endpoint_name(name)

    assert custom(name).name == name


@pytest.mark.parametrize("name", ["", "a.b", "a b", "a/b", "ä", "a\n", "{{x}}"])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigurationError, match=r"endpoint name .* use letters, digits"):
        check_endpoint_name(name)
    with pytest.raises(ConfigurationError, match=r"served entity name .* use letters, digits"):
        custom(name)


@pytest.mark.parametrize("name", ["x" * 64, "pt", "get-model-optimization-info"])
def test_an_endpoint_name_is_short_and_hides_no_path(name):
    with pytest.raises(ConfigurationError, match=r"at most 63|path of the REST API"):
        check_endpoint_name(name)


@pytest.mark.parametrize(
    "member",
    [
        {"entity_name": "m"},
        {"entity_version": "1"},
        {"workload_size": "Small"},
        {"workload_type": "GPU_SMALL"},
        {"scale_to_zero_enabled": True},
        {"max_provisioned_throughput": 10},
        {"min_provisioned_throughput": 0},
        {"provisioned_model_units": 1},
    ],
)
def test_an_external_model_declares_nothing_that_only_our_own_models_have(member):
    with pytest.raises(ConfigurationError, match=f"'gpt' is an external .* {next(iter(member))}"):
        external(**member)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"provider": "opnai"}, r"provider must be one of openai, .* got 'opnai'"),
        ({"task": "llm/v2/chat"}, r"task must be one of llm/v1/chat, .* got 'llm/v2/chat'"),
        ({"name": ""}, "name is empty"),
        ({"config": {"openai_api_key_plaintext": "sk-1"}}, "openai_api_key_plaintext must not be"),
    ],
)
def test_an_external_model_is_one_that_we_can_call(members, sentence):
    legal = {"provider": "openai", "name": "gpt-5", "task": CHAT}

    with pytest.raises(ConfigurationError, match=sentence) as raised:
        ExternalModel(**legal | members)
    assert "sk-1" not in str(raised.value)


@pytest.mark.parametrize(
    ("members", "in_flight"),
    [
        ({}, 4),
        ({"workload_size": "Small"}, 4),
        ({"workload_size": "medium"}, 16),
        ({"workload_size": "LARGE"}, 64),
        ({"max_provisioned_concurrency": 12}, 12),
        ({"min_provisioned_concurrency": 0, "max_provisioned_concurrency": 7}, 7),
    ],
)
def test_the_declared_size_says_how_much_may_be_in_flight(members, in_flight):
    assert custom(**members).concurrency == in_flight


def test_external_models_take_many_at_once_unless_they_say_otherwise():
    assert external().concurrency == EXTERNAL_CONCURRENCY
    assert external(max_provisioned_concurrency=8).concurrency == 8


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"workload_size": "Huge"}, "must be one of Small, Medium, Large; got 'Huge'"),
        ({"workload_type": "TPU"}, r"workload_type must be one of CPU, .* got 'TPU'"),
        (
            {"workload_size": "Small", "max_provisioned_concurrency": 4},
            "both workload_size and provisioned concurrency",
        ),
        ({"min_provisioned_concurrency": 4}, "also needs max_provisioned_concurrency"),
        ({"max_provisioned_concurrency": 0}, "max_provisioned_concurrency must be at least 1"),
        (
            {"min_provisioned_concurrency": 9, "max_provisioned_concurrency": 8},
            r"between 0 and max_provisioned_concurrency \(8\), got 9",
        ),
        (
            {"min_provisioned_throughput": -1, "max_provisioned_throughput": 8},
            r"min_provisioned_throughput must be between 0 and",
        ),
        ({"min_provisioned_throughput": 980}, "also needs max_provisioned_throughput"),
        ({"max_provisioned_throughput": 0}, "max_provisioned_throughput must be at least 1"),
        ({"provisioned_model_units": 0}, "provisioned_model_units must be at least 1"),
        (
            {"provisioned_model_units": 50, "max_provisioned_throughput": 980},
            "both provisioned_model_units and provisioned throughput",
        ),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(members, sentence):
    with pytest.raises(ConfigurationError, match=f"'current'.*{sentence}"):
        custom(**members)


def test_throughput_may_start_at_zero():
    entity = custom(min_provisioned_throughput=0, max_provisioned_throughput=1940)

    assert entity.min_provisioned_throughput == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [(custom(), external()), (external(), custom())],
    ids=["to external", "from external"],
)
def test_an_endpoint_never_changes_sides(old, new):
    with pytest.raises(ConfigurationError, match=r"cannot become .*: create another endpoint"):
        check_update(config(old), config(new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (custom(), custom("b")),
        (external(), external(task=EMBEDDINGS)),
        (external(), external(provider="anthropic")),
    ],
    ids=["other model", "other task", "other provider"],
)
def test_an_update_may_change_everything_else(old, new):
    check_update(config(old), config(new))


@pytest.mark.parametrize(
    "members",
    [
        {"calls": 1},
        {"tokens": 5000},
        {"calls": 10, "tokens": 5000, "key": "user"},
        {"calls": 1, "key": "user", "principal": "a@example.com"},
        {"calls": 1, "key": "user_group", "principal": "ds"},
        {"calls": 1, "key": "service_principal", "principal": "app"},
    ],
)
def test_rate_limits_count_calls_or_tokens_for_somebody(members):
    assert RateLimit(**members).renewal_period == "minute"


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({}, "nothing is limited; give calls, tokens or both"),
        ({"calls": 0}, "calls must be at least 1, got 0"),
        ({"calls": 1, "tokens": -5}, "tokens must be at least 1, got -5"),
        ({"calls": 1, "key": "team"}, r"key must be one of endpoint, user, .* got 'team'"),
        ({"calls": 1, "renewal_period": "hour"}, "must be one of minute; got 'hour'"),
        ({"calls": 1, "key": "user_group"}, "key user_group needs a principal"),
        ({"calls": 1, "key": "service_principal", "principal": ""}, "needs a principal"),
        ({"calls": 1, "principal": "ds"}, "key endpoint counts everybody; for 'ds' alone"),
    ],
)
def test_rate_limits_that_mean_nothing_are_refused(members, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        RateLimit(**members)


def test_the_environment_stays_out_of_the_repr():
    entity = custom(environment_vars={"TOKEN": "hunter2"})

    assert "hunter2" not in repr(config(entity))


def test_a_copy_of_a_value_keeps_the_rules():
    with pytest.raises(ConfigurationError, match="no route"):
        replace(config(custom("a")), served_entities=(custom("a"), custom("b")))
