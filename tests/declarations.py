"""Request bodies that tests of the wire share, and a stand-in for the secret store."""

from __future__ import annotations

from aiquery_serving.wire import parse_config

MODEL = {"entity_name": "demo.health.tumour-b", "entity_version": "1"}
MULTI_MODEL = {
    "name": "multi-model",
    "config": {
        "served_entities": [
            {
                "name": "current",
                "entity_name": "catalog.schema.model-A",
                "entity_version": "1",
                "workload_size": "Small",
                "scale_to_zero_enabled": True,
            },
            {
                "name": "challenger",
                "entity_name": "catalog.schema.model-B",
                "entity_version": "1",
                "workload_size": "Small",
                "scale_to_zero_enabled": True,
            },
        ],
        "traffic_config": {
            "routes": [
                {"served_model_name": "current", "traffic_percentage": "90"},
                {"served_model_name": "challenger", "traffic_percentage": "10"},
            ]
        },
    },
}


class Vault(dict[str, str]):
    """Keeps what is stashed, and answers with a reference."""

    def __call__(self, name: str, value: str) -> str:
        self[name] = value
        return f"{{{{secrets/vault/{name.replace('/', '.')}}}}}"


def openai(block=None, **members):
    return {
        "provider": "openai",
        "name": "gpt-3.5-turbo",
        "task": "llm/v1/chat",
        "openai_config": {"openai_api_key": "{{secrets/llm/openai}}"} if block is None else block,
    } | members


def read(*entities, stash=None, **members):
    payload = {"served_entities": list(entities)} | members
    return parse_config(payload, config_version=1, stash=Vault() if stash is None else stash)


def read_external(**members):
    return read({"name": "gpt", "external_model": openai(**members)}).served_entities[0]
