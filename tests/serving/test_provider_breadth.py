"""What holds for every provider, whatever its words: answers, streams, tools, schemas, errors, keys."""

import orjson
import pytest
from external_models import HELLO, JSON_SCHEMA, TOOL
from provider_base import breaks, cut_off, status, too_many, truncate
from provider_models import KEY, NAMES, SECRETS, ask, declared, pieces, put_together, resolve, served, with_entity

from aiquery_serving.entities.external.cohere import CohereEmbeddings
from aiquery_serving.errors import (
    ConfigurationError,
    InvalidRequestError,
    ProviderAccessError,
    ProviderRateLimitError,
    ProviderRequestError,
    ProviderResponseError,
    ProviderUnavailableError,
)
from aiquery_serving.messages import COMPLETIONS, EMBEDDINGS

EVERY = ("openai", "databricks-model-serving", "ai21labs", "cohere", "palm", "google-cloud-vertex-ai", "amazon-bedrock")
OTHER_WORDS = ("cohere", "palm", "google-cloud-vertex-ai", "amazon-bedrock")
TALK = {
    "messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "where is it"}]},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"city": "Bern"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"lat": 46.9}'},
        {"role": "user", "content": "good morning"},
    ],
}  # fmt: skip


@pytest.fixture(params=EVERY)
def provider(request):
    return request.param


def message_of(response):
    return response.body["choices"][0]["message"]


def test_a_chat_answers_in_the_shape_of_the_rest_api(provider):
    with served(provider) as (server, config):
        response = ask(declared(provider, **config), HELLO)
    assert message_of(response)["content"] == "echo: good morning"
    assert message_of(response)["role"] == "assistant"
    assert response.body["choices"][0]["finish_reason"] == "stop"
    assert response.body["object"] == "chat.completion"
    assert response.body["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert response.usage.total_tokens == 5
    assert {"id", "created", "model"} <= response.body.keys()
    assert server.stats.calls == 1


@pytest.mark.parametrize("packet", [None, 1, 7])
def test_a_streamed_chat_says_the_same_in_pieces(provider, packet):
    with served(provider, packet=packet) as (_, config):
        chunks = pieces(declared(provider, **config), HELLO)
    text, calls, finish, usage = put_together(chunks)
    assert (text, calls, finish) == ("echo: good morning", [], "stop")
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2, 3)
    assert {chunk["object"] for chunk in chunks if chunk["choices"]} == {"chat.completion.chunk"}
    assert next(chunk for chunk in chunks if chunk["choices"])["choices"][0]["delta"]["role"] == "assistant"
    assert "usage" in chunks[-1]


def test_tools_are_called_whole_and_in_pieces(provider):
    body = HELLO | {"tools": [TOOL], "tool_choice": "auto"}
    with served(provider) as (_, config):
        response = ask(declared(provider, **config), body)
        _, calls, finish, _ = put_together(pieces(declared(provider, **config), body))
    (call,) = message_of(response)["tool_calls"]
    assert call["id"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "find"
    assert orjson.loads(call["function"]["arguments"]) == {"city": "good morning"}
    assert response.body["choices"][0]["finish_reason"] == finish == "tool_calls"
    assert calls == [call["function"]]


def test_what_was_said_and_found_before_is_told(provider):
    with served(provider) as (server, config):
        response = ask(declared(provider, **config), TALK)
    assert message_of(response)["content"] == "echo: good morning"
    sent = orjson.dumps(server.requests[0]).decode()
    assert all(said in sent for said in ("be brief", "where is it", "Bern", "46.9"))


@pytest.mark.parametrize("provider", [name for name in EVERY if name != "ai21labs"])
def test_an_answer_can_be_held_to_a_schema(provider):
    body = HELLO | {"response_format": JSON_SCHEMA}
    with served(provider) as (_, config):
        response = ask(declared(provider, **config), body)
        text, calls, finish, _ = put_together(pieces(declared(provider, **config), body))
    assert orjson.loads(message_of(response)["content"]) == orjson.loads(text) == {"city": "good morning"}
    assert (calls, finish, response.body["choices"][0]["finish_reason"]) == ([], "stop", "stop")


def test_json_without_a_schema_can_be_asked_for(provider):
    with served(provider) as (server, config):
        ask(declared(provider, **config), HELLO | {"response_format": {"type": "json_object"}})
    assert b"json" in orjson.dumps(server.requests[0]).lower()


def test_an_answer_that_is_too_long_says_so(provider):
    with served(provider) as (server, config):
        response = ask(declared(provider, **config), HELLO | {"max_tokens": 1, "stop": "x", "temperature": 0.5})
    assert b"0.5" in orjson.dumps(server.requests[0])
    if provider in OTHER_WORDS:
        assert response.body["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (too_many(2.0), ProviderRateLimitError),
        (status(500), ProviderUnavailableError),
        (status(503), ProviderUnavailableError),
        (status(403), ProviderAccessError),
        (status(400), ProviderRequestError),
    ],
    ids=["429", "500", "503", "403", "400"],
)
def test_errors_are_told_apart_before_an_answer_begins(provider, fault, error):
    with served(provider, script=[fault, fault]) as (_, config):
        with pytest.raises(error) as whole:
            ask(declared(provider, **config), HELLO)
        with pytest.raises(error):
            pieces(declared(provider, **config), HELLO)
    if error is ProviderRateLimitError:
        assert whole.value.retry_after == 2.0


@pytest.mark.parametrize("fault", [truncate, cut_off])
def test_a_stream_that_ends_early_is_an_error_and_never_a_short_answer(provider, fault):
    with (
        served(provider, script=[fault]) as (_, config),
        pytest.raises((ProviderResponseError, ProviderUnavailableError)),
    ):
        pieces(declared(provider, **config), HELLO)


@pytest.mark.parametrize("provider", ["palm", "google-cloud-vertex-ai", "amazon-bedrock"])
@pytest.mark.parametrize(("code", "error"), [(429, ProviderRateLimitError), (503, ProviderUnavailableError)])
def test_errors_within_a_stream_are_told_apart(provider, code, error):
    with served(provider, script=[breaks(code)]) as (_, config), pytest.raises(error, match="something broke"):
        pieces(declared(provider, **config), HELLO)


def test_a_refused_key_is_named_as_such_and_shown_nowhere(provider, monkeypatch):
    monkeypatch.setitem(SECRETS, "key", "sk-wrong-9876543210")
    monkeypatch.setitem(SECRETS, "secret", "sk-wrong-9876543210")
    with served(provider, keys=[]) as (_, config):
        model = declared(provider, **config)
        with pytest.raises(ProviderAccessError) as refused:
            ask(model, HELLO)
    assert "sk-wrong" not in str(refused.value)
    assert KEY not in str(refused.value)


def test_a_new_key_is_looked_up_after_a_refusal(provider):
    opened = []

    def rotating(reference):
        opened.append(reference)
        return resolve(reference)

    with served(provider, script=[status(403)]) as (_, config):
        model = declared(provider, **config)

        async def twice(entity):
            with pytest.raises(ProviderAccessError):
                await entity.send(HELLO)
            once = len(opened)
            await entity.send(HELLO)
            await entity.send(HELLO)
            return once

        once = with_entity(model, rotating, twice)
    assert len(opened) == 2 * once


@pytest.mark.parametrize("provider", [*NAMES])
def test_a_task_that_a_provider_has_not_is_named_when_it_is_declared(provider):
    with (
        served(provider) as (_, config),
        pytest.raises(ConfigurationError, match=f"'llm/v1/completions'; {provider}.* offers llm/v1/chat"),
    ):
        ask(declared(provider, task=COMPLETIONS, **config), {"prompt": "a"})


@pytest.mark.parametrize("provider", OTHER_WORDS)
@pytest.mark.parametrize("asked", [{"logit_bias": {"1": 2}}, {"logprobs": True}, {"parallel_tool_calls": False}])
def test_what_a_provider_has_no_word_for_is_named(provider, asked):
    (name,) = asked
    with served(provider) as (server, config):
        with pytest.raises(InvalidRequestError, match=name):
            ask(declared(provider, **config), HELLO | asked)
        assert server.stats.calls == 0


@pytest.mark.parametrize("provider", OTHER_WORDS)
@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([{"role": "wizard", "content": "hi"}], "role 'wizard'|cannot be read"),
        (["hi"], "an object with 'role'"),
        ([], "at least one message|messages"),
    ],
)
def test_messages_that_cannot_be_said_are_refused(provider, messages, why):
    with served(provider) as (_, config), pytest.raises((InvalidRequestError, ProviderRequestError), match=why):
        ask(declared(provider, **config), {"messages": messages})


@pytest.mark.parametrize("provider", ["cohere", "amazon-bedrock"])
def test_several_answers_to_one_request_are_refused_where_there_is_one(provider):
    with served(provider) as (server, config):
        ask(declared(provider, **config), HELLO | {"n": 1})
        with pytest.raises(InvalidRequestError, match="leave 'n' at 1"):
            ask(declared(provider, **config), HELLO | {"n": 2})
    assert server.stats.calls == 1


@pytest.mark.parametrize("provider", ["palm", "cohere"])
def test_embeddings_are_never_streamed(provider):
    with served(provider) as (_, config), pytest.raises(InvalidRequestError, match="cannot be streamed"):
        pieces(declared(provider, "embed", EMBEDDINGS, **config), {"input": "a"})
    with pytest.raises(InvalidRequestError, match="cannot be streamed"):
        CohereEmbeddings("embed-v4.0").reader({}, 0.0)


def test_a_declaration_without_its_key_is_refused(provider):
    with served(provider) as (_, config):
        less = {name: value for name, value in config.items() if not str(value).startswith("{{")}
        with pytest.raises(ConfigurationError, match="needs"):
            ask(declared(provider, **less), HELLO)
