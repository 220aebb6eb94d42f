"""What only they have who speak almost like OpenAI: another workspace's endpoints, and AI21."""

import pytest
from external_models import HELLO, JSON_SCHEMA, TOOL
from provider_models import ask, declared, ref, served
from providers import vector

from aiquery_serving.errors import ConfigurationError, InvalidRequestError, ProviderRequestError
from aiquery_serving.messages import COMPLETIONS, EMBEDDINGS


def test_an_endpoint_of_another_workspace_answers_all_tasks():
    with served("databricks-model-serving") as (server, config):
        model = declared("databricks-model-serving", "their/chat", **config)
        ask(model, HELLO | {"temperature": 0, "max_tokens": 9})
        completion = ask(declared("databricks-model-serving", task=COMPLETIONS, **config), {"prompt": "a b"})
        embeddings = ask(declared("databricks-model-serving", task=EMBEDDINGS, **config), {"input": ["a", "b"]})
    assert completion.body["choices"][0]["text"] == "echo: a b"
    assert [item["embedding"] for item in embeddings.body["data"]] == [vector("a"), vector("b")]
    assert next(iter(server.stats.paths)) == "/serving-endpoints/their%2Fchat/invocations"
    assert server.requests[0] == HELLO | {"temperature": 0, "max_tokens": 9}


def test_the_parameters_of_a_reasoning_model_are_left_to_its_workspace():
    with served("databricks-model-serving") as (server, config), pytest.raises(ProviderRequestError):
        ask(declared("databricks-model-serving", "gpt-5", **config), HELLO | {"max_tokens": 9})
    assert server.requests[0]["max_tokens"] == 9


@pytest.mark.parametrize("member", ["databricks_workspace_url", "databricks_api_token"])
def test_a_member_that_is_missing_is_named(member):
    with served("databricks-model-serving") as (_, config), pytest.raises(ConfigurationError, match=member):
        ask(declared("databricks-model-serving", **config | {member: None}), HELLO)


def test_the_url_of_a_workspace_may_go_on():
    with served("databricks-model-serving") as (server, _):
        url = f"{server.origin}/serving-endpoints/"
        model = declared("databricks-model-serving", databricks_workspace_url=url, databricks_api_token=ref("key"))
        ask(model, HELLO)
    assert list(server.stats.paths) == ["/serving-endpoints/model-a/invocations"]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"response_format": JSON_SCHEMA}, "json_object"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "find"}}}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"seed": 1}, "seed"),
    ],
)
def test_what_ai21_has_no_word_for_is_named(asked, why):
    with served("ai21labs") as (server, config):
        with pytest.raises(InvalidRequestError, match=why):
            ask(declared("ai21labs", **config), HELLO | asked)
        assert server.stats.calls == 0


def test_what_its_words_can_say_is_said_to_ai21():
    with served("ai21labs") as (server, config):
        ask(
            declared("ai21labs", **config), HELLO | {"tools": [TOOL], "tool_choice": "none", "max_completion_tokens": 3}
        )
    assert server.requests == [{"model": "jamba-mini", **HELLO, "max_tokens": 3}]
