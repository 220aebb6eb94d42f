"""Throughput is provisioned for models of ours: asked about, declared in its chunks, shared, and left alone by others."""

import asyncio
import time

import pytest

import aiquery
from aiquery_serving.chunk_sizes import ChunkSizes
from aiquery_serving.errors import ConfigurationError, EndpointNotFoundError

CHUNK = 980


@pytest.fixture
def workspace(llama):
    """A workspace in which two names stand for a tiny model with chunks of 980 tokens per second."""
    with aiquery.Workspace(":memory:") as workspace:
        for name, chunk in (
            ("mistral_7b_instruct_v0_1", 970),
            ("mixtral_8x7b_instruct_v0_1", 620),
            ("llama-4-maverick", CHUNK),
        ):
            workspace.sources.alias(f"system.ai.{name}", str(llama))
            for version in ("1", "2", "3"):
                learn(workspace, f"system.ai.{name}/{version}", chunk)
        yield workspace


def learn(workspace, model, tokens_per_second):
    ChunkSizes(workspace._store, workspace.clock).learn(model, tokens_per_second)


def who(workspace):
    return workspace.access.principal(workspace.user)


def served(workspace, name):
    return workspace.get_endpoint(name)["config"]["served_entities"]


TWO_MODELS = {
    "served_entities": [
        {
            "name": "mistral_7b_instruct_v0_1-2",
            "entity_name": "system.ai.mistral_7b_instruct_v0_1",
            "entity_version": "2",
            "min_provisioned_throughput": 0,
            "max_provisioned_throughput": 1940,
        },
        {
            "name": "mixtral_8x7b_instruct_v0_1-3",
            "entity_name": "system.ai.mixtral_8x7b_instruct_v0_1",
            "entity_version": "3",
            "min_provisioned_throughput": 0,
            "max_provisioned_throughput": 1240,
        },
    ],
    "traffic_config": {
        "routes": [
            {"served_model_name": "mistral_7b_instruct_v0_1-2", "traffic_percentage": 60},
            {"served_model_name": "mixtral_8x7b_instruct_v0_1-3", "traffic_percentage": 40},
        ]
    },
}


def test_a_model_says_what_it_is_and_by_how_much_its_throughput_is_provisioned(workspace):
    info = workspace.control.optimization_info
    assert info(who(workspace), "system.ai.llama-4-maverick", "1") == {
        "optimizable": True,
        "model_type": "llama",
        "throughput_chunk_size": CHUNK,
    }
    assert info(who(workspace), "system.ai.llama-4-maverick", "9")["throughput_chunk_size"] % 10 == 0
    with pytest.raises(EndpointNotFoundError, match="nothing"):
        info(who(workspace), "system.ai.nothing", "1")


def test_what_is_said_of_a_model_is_what_its_bounds_are_checked_by(workspace):
    info = workspace.control.optimization_info(who(workspace), "system.ai.llama-4-maverick", "9")
    chunk = info["throughput_chunk_size"]
    entity = {"entity_name": "system.ai.llama-4-maverick", "entity_version": "9"}
    right = entity | {"min_provisioned_throughput": 2 * chunk, "max_provisioned_throughput": 3 * chunk}
    workspace.create_endpoint("right", {"served_entities": [right]})
    with pytest.raises(ConfigurationError, match=f"max_provisioned_throughput must be a multiple of {chunk} "):
        workspace.create_endpoint(
            "wrong", {"served_entities": [entity | {"max_provisioned_throughput": 3 * chunk + 1}]}
        )


def test_two_models_share_an_endpoint_and_load_when_they_are_asked(workspace):
    workspace.create_endpoint("multi-pt-model", TWO_MODELS)
    endpoint = workspace.wait("multi-pt-model", 30)
    assert endpoint["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
    assert (endpoint["endpoint_type"], endpoint["task"]) == ("FOUNDATION_MODEL_API", "llm/v1/chat")
    asked = [{"messages": [{"role": "user", "content": str(n)}], "max_tokens": 2} for n in range(10)]
    for body in asked:
        workspace.query("multi-pt-model", body)
    calls = {row["served_entity"]: row["calls"] for row in workspace.usage()}
    assert calls == {"mistral_7b_instruct_v0_1-2": 6, "mixtral_8x7b_instruct_v0_1-3": 4}


def test_model_units_are_declared_and_changed_by_routes_of_their_own(workspace):
    entity = {"name": "llama", "entity_name": "system.ai.llama-4-maverick", "entity_version": "1"}
    routes = [{"served_model_name": "llama", "traffic_percentage": 100}]
    config = {
        "served_entities": [entity | {"provisioned_model_units": 50, "burst_scaling_enabled": False}],
        "traffic_config": {"routes": routes},
    }
    workspace.control.create_pt(who(workspace), {"name": "pt-ep", "config": config})
    workspace.wait("pt-ep", 30)
    (one,) = served(workspace, "pt-ep")
    assert one["provisioned_model_units"] == 50
    assert "burst_scaling_enabled" not in one
    more = {
        "served_entities": [{"name": "llama", "entity_name": entity["entity_name"], "provisioned_model_units": 100}]
    }
    workspace.control.update_pt_config(who(workspace), "pt-ep", {"config": more})
    workspace.wait("pt-ep", 30)
    (one,) = served(workspace, "pt-ep")
    assert (one["provisioned_model_units"], one["entity_version"]) == (100, "1")


def test_a_job_and_an_interactive_caller_are_both_served_by_a_real_model(workspace):
    learn(workspace, "system.ai.llama-4-maverick/7", 200)
    entity = {
        "name": "llama",
        "entity_name": "system.ai.llama-4-maverick",
        "entity_version": "7",
        "min_provisioned_throughput": 400,
        "max_provisioned_throughput": 400,
        "burst_scaling_enabled": False,
    }
    workspace.create_endpoint("llama", {"served_entities": [entity]})
    workspace.wait("llama", 60)
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 16, "temperature": 0}

    async def story():
        took = []

        async def job():
            await asyncio.gather(*(workspace.gateway.invoke("llama", body, patient=True) for _ in range(30)))

        async def caller():
            for _ in range(5):
                began = time.monotonic()
                await workspace.gateway.invoke("llama", body, patient=False)
                took.append(time.monotonic() - began)
                await asyncio.sleep(0.1)

        await asyncio.gather(job(), caller())
        await workspace.gateway.close()
        return took

    assert max(asyncio.run(story())) < 2.0
    used = sum(row["prompt_tokens"] + row["completion_tokens"] for row in workspace.usage())
    assert used > 35 * 16


def test_throughput_of_a_custom_model_is_refused_where_it_is_declared(workspace, tmp_path):
    (tmp_path / "MLmodel").write_text("flavors: {python_function: {loader_module: mlflow.sklearn}}")
    entity = {"name": "custom", "entity_name": str(tmp_path), "max_provisioned_throughput": 980}
    with pytest.raises(ConfigurationError, match="'custom': throughput cannot be provisioned for the custom model"):
        workspace.create_endpoint("custom", {"served_entities": [entity]})
    assert workspace.control.optimization_info(who(workspace), str(tmp_path), "") == {"optimizable": False}
