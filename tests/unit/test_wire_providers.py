"""External models as they are declared: each provider's needs, and no secret kept."""

from __future__ import annotations

import orjson
import pytest
from declarations import MODEL, Vault, openai, read, read_external

from aiquery_serving.errors import ConfigurationError
from aiquery_serving.wire import (
    dump_config,
    parse_create,
)


@pytest.mark.parametrize(
    ("block", "stashed"),
    [
        ({"openai_api_key_plaintext": "sk-1"}, {"gpt/openai_api_key": "sk-1"}),
        ({"openai_api_key": "sk-1"}, {"gpt/openai_api_key": "sk-1"}),
        ({"openai_api_key": "{{secrets/llm/openai}}"}, {}),
        ({"openai_api_key": "{{secrets/env/OPENAI_API_KEY}}"}, {}),
        (
            {"openai_api_key": "{{secrets/llm/openai}}", "proxy_header_plaintext": "sk-3"},
            {"gpt/proxy_header": "sk-3"},
        ),
        ({"openai_api_key_plaintext": "{{secrets/llm/openai}}"}, {}),
        (
            {"openai_api_key": "{{secrets/llm/openai}}", "openai_api_kei": 0, "backup_api_key": "sk-2"},
            {"gpt/backup_api_key": "sk-2"},
        ),
    ],
)
def test_a_secret_in_clear_is_stashed_and_a_reference_kept(block, stashed):
    vault = Vault()
    config = read({"name": "gpt", "external_model": openai(block)}, stash=vault)

    external = config.served_entities[0].external_model
    assert external.config["openai_api_key"].startswith("{{secrets/")
    assert vault == stashed
    assert "sk-" not in repr(config) + str(dump_config(config))


@pytest.mark.parametrize("text", ["{{secrets/llm}}", "{{secrets/a/b/c}}", "{{openai}}", "{{secrets/a/b}} "])
def test_a_reference_that_names_no_secret_is_refused_rather_than_sent_as_a_key(text):
    with pytest.raises(ConfigurationError, match=r"openai_api_key is no reference .* \{\{secrets/scope/key\}\}"):
        read_external(openai_config={"openai_api_key": text})


def test_a_refused_declaration_leaves_no_secret_behind():
    vault = Vault()
    entity = {"name": "gpt", "external_model": openai({"openai_api_key_plaintext": "sk-1"})}

    with pytest.raises(ConfigurationError, match="2 served entities are named 'gpt'"):
        read(entity, entity, stash=vault)
    with pytest.raises(ConfigurationError, match="endpoint name"):
        parse_create({"name": "", "config": {"served_entities": [entity]}}, stash=vault)
    with pytest.raises(ConfigurationError, match="calls"):
        parse_create(
            {
                "name": "e",
                "config": {"served_entities": [entity]},
                "rate_limits": [{"calls": -1, "renewal_period": "minute"}],
            },
            stash=vault,
        )
    assert vault == {}


@pytest.mark.parametrize(
    "entity",
    [
        {"external_model": openai({"openai_api_key_plaintext": "sk-1"}, provider=["sk-1"])},
        {"external_model": openai({"openai_api_key": ["sk-1"]})},
        {"external_model": openai({"openai_api_key": "{{sk-1}}"})},
        {"external_model": openai({"openai_api_key": "sk-1", "openai_api_key_plaintext": "sk-1"})},
        {"external_model": openai({"openai_api_key": "sk-1", "openai_api_type": "sk-1"})},
        {"environment_vars": {"KEY": ["sk-1"]}},
    ],
)
def test_no_message_and_no_cause_of_it_quotes_a_secret(entity):
    with pytest.raises(ConfigurationError) as raised:
        read(MODEL | entity if "external_model" not in entity else entity)

    assert "sk-1" not in str(raised.value)
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)


COMPLETE = {
    "openai": {"openai_api_key": "s", "openai_api_base": "http://localhost:1/v1"},
    "anthropic": {"anthropic_api_key": "s", "anthropic_api_base": "http://localhost:1"},
    "cohere": {"cohere_api_key_plaintext": "s"},
    "amazon-bedrock": {
        "aws_region": "eu-west-1",
        "bedrock_provider": "Anthropic",
        "aws_access_key_id_plaintext": "s",
        "aws_secret_access_key_plaintext": "s",
    },
    "google-cloud-vertex-ai": {"project_id": "p", "region": "r", "private_key_plaintext": "s"},
    "ai21labs": {"ai21labs_api_key": "s"},
    "palm": {"palm_api_key": "s"},
    "databricks-model-serving": {"databricks_workspace_url": "u", "databricks_api_token": "s"},
    "custom": {"custom_provider_url": "u", "bearer_token_auth": {"token_plaintext": "s"}},
}
BLOCKS = {
    "openai": "openai_config",
    "anthropic": "anthropic_config",
    "cohere": "cohere_config",
    "amazon-bedrock": "amazon_bedrock_config",
    "google-cloud-vertex-ai": "google_cloud_vertex_ai_config",
    "ai21labs": "ai21labs_config",
    "palm": "palm_config",
    "databricks-model-serving": "databricks_model_serving_config",
    "custom": "custom_provider_config",
}


def external(provider, block):
    model = {"provider": provider, "name": "m", "task": "llm/v1/chat", BLOCKS[provider]: block}
    return {"name": "m", "external_model": model}


@pytest.mark.parametrize("provider", COMPLETE)
def test_every_provider_can_be_declared_and_none_keeps_a_secret(provider):
    vault = Vault()
    config = read(external(provider, COMPLETE[provider]), stash=vault)

    assert vault
    assert set(vault.values()) == {"s"}
    text = orjson.dumps(dump_config(config)).decode()
    assert '"s"' not in text
    assert "_plaintext" not in text


@pytest.mark.parametrize(
    ("provider", "without"),
    [
        ("openai", "openai_api_key"),
        ("anthropic", "anthropic_api_key"),
        ("cohere", "cohere_api_key_plaintext"),
        ("amazon-bedrock", "aws_region"),
        ("amazon-bedrock", "bedrock_provider"),
        ("amazon-bedrock", "aws_secret_access_key_plaintext"),
        ("google-cloud-vertex-ai", "region"),
        ("google-cloud-vertex-ai", "private_key_plaintext"),
        ("palm", "palm_api_key"),
        ("databricks-model-serving", "databricks_workspace_url"),
        ("custom", "custom_provider_url"),
    ],
)
@pytest.mark.parametrize("blank", [None, ""])
def test_a_provider_block_has_all_that_the_provider_needs(provider, without, blank):
    block = COMPLETE[provider] | {without: blank}

    needed = without.removesuffix("_plaintext")
    with pytest.raises(ConfigurationError, match=f"{BLOCKS[provider]} needs {needed}"):
        read(external(provider, block))


@pytest.mark.parametrize(
    ("provider", "block", "sentence"),
    [
        ("openai", "sk", "openai_config must be an object"),
        ("openai", {"openai_api_key": "s", "openai_api_type": "azure"}, "needs openai_api_base"),
        (
            "openai",
            {"openai_api_key": "s", "openai_api_type": "azuread"},
            "needs microsoft_entra_tenant_id$",
        ),
        ("openai", {"openai_api_key": "s", "openai_api_type": "x"}, "must be one of openai, azure"),
        (
            "amazon-bedrock",
            COMPLETE["amazon-bedrock"] | {"bedrock_provider": "meta"},
            "bedrock_provider must be one of anthropic, cohere, ai21labs, amazon",
        ),
        ("custom", {"custom_provider_url": "u"}, "needs one of api_key_auth and bearer_token_auth"),
        (
            "custom",
            {
                "custom_provider_url": "u",
                "api_key_auth": {"key": "k", "value": "v"},
                "bearer_token_auth": {"token": "t"},
            },
            "needs one of api_key_auth and bearer_token_auth",
        ),
        (
            "custom",
            {"custom_provider_url": "u", "api_key_auth": {"value": "v"}},
            "custom_provider_config.api_key_auth needs key",
        ),
        (
            "custom",
            {"custom_provider_url": "u", "bearer_token_auth": {}},
            "bearer_token_auth needs token or token_plaintext",
        ),
        ("custom", {"custom_provider_url": "u", "bearer_token_auth": "t"}, "must be an object"),
    ],
)
def test_a_provider_block_that_cannot_work_says_what_it_needs(provider, block, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        read(external(provider, block))


def test_bedrock_takes_a_role_in_the_place_of_keys():
    role = {"aws_region": "r", "bedrock_provider": "amazon", "instance_profile_arn": "arn:1"}

    entity = read(external("amazon-bedrock", role)).served_entities[0]
    assert entity.external_model.config == role


def test_the_name_of_a_header_is_not_a_secret():
    block = {"custom_provider_url": "u", "api_key_auth": {"key": "x-key", "value": "s"}}
    vault = Vault()

    entity = read(external("custom", block), stash=vault).served_entities[0]
    assert entity.external_model.config["api_key_auth"]["key"] == "x-key"
    assert vault == {"m/value": "s"}


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"anthropic_config": {}}, "anthropic_config does not belong to provider openai"),
        ({"openai_config": None}, "openai_config must be an object"),
        ({"provider": "opnai"}, "provider must be one of openai, "),
        ({"task": None}, r"config.served_entities\[0\].external_model.task is missing; say"),
        ({"task": "chat"}, "task must be one of llm/v1/chat"),
        ({"name": None}, r"served_entities\[0\].external_model.name: is missing"),
    ],
)
def test_an_external_model_that_cannot_work_says_why(members, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        read_external(**members)


def test_a_task_beside_the_entities_stands_in_for_a_missing_one():
    config = read({"external_model": openai(task=None)}, task="llm/v1/completions")

    assert config.task == "llm/v1/completions"
