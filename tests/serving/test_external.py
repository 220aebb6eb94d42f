"""External entities answer over real HTTP on loopback, in the REST API's shape."""

import base64
import json

import pytest
from external_models import (
    HELLO,
    JSON_SCHEMA,
    REFERENCE,
    SCHEMA,
    TOOL,
    Recorded,
    answer,
    anthropic_model,
    ask,
    custom_model,
    openai_model,
    text_of,
)
from providers import (
    KEY,
    AnthropicServer,
    CustomServer,
    OpenAIServer,
    vector,
)

from aiquery_serving.endpoint import ExternalModel
from aiquery_serving.errors import (
    InvalidRequestError,
    ProviderRequestError,
    ProviderResponseError,
)
from aiquery_serving.messages import CHAT, COMPLETIONS, EMBEDDINGS, Usage

# OpenAI


def test_a_chat_answers_in_the_shape_of_the_rest_api(openai):
    response = ask(openai_model(openai), HELLO)
    assert text_of(response) == "echo: good morning"
    assert response.body["object"] == "chat.completion"
    assert response.usage == Usage(prompt_tokens=2, completion_tokens=3)
    assert openai.requests == [{"model": "gpt-4o-mini", **HELLO}]


def test_completions_and_embeddings_go_to_their_own_paths(openai):
    completion = ask(openai_model(openai, "davinci", COMPLETIONS), {"prompt": "a b"})
    assert completion.body["choices"][0]["text"] == "echo: a b"
    embeddings = ask(openai_model(openai, "ada", EMBEDDINGS), {"input": ["a", "b"]})
    assert [item["embedding"] for item in embeddings.body["data"]] == [vector("a"), vector("b")]
    assert embeddings.usage == Usage(prompt_tokens=2)
    assert set(openai.stats.paths) == {"/v1/completions", "/v1/embeddings"}


def test_base64_vectors_are_decoded(openai):
    body = {"input": "a", "encoding_format": "base64"}
    response = ask(openai_model(openai, "ada", EMBEDDINGS), body)
    assert response.body["data"][0]["embedding"] == vector("a")


def test_embeddings_come_back_in_the_order_of_their_inputs():
    data = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
    transport = Recorded(answer(body={"data": data}))
    model = openai_model(OpenAIServer(), "ada", EMBEDDINGS)
    response = ask(model, {"input": ["a", "b"]}, transport=transport)
    assert [item["embedding"] for item in response.body["data"]] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    "data",
    [
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1}],
        [{"index": 0, "embedding": "not base64!"}, {"index": 1, "embedding": [1.0]}],
        [{"index": 0, "embedding": None}, {"index": 1, "embedding": [1.0]}],
        ["a", "b"],
        {"0": 1, "1": 2},
        None,
    ],
)
def test_malformed_embeddings_are_an_unusable_answer(data):
    model = openai_model(OpenAIServer(), "ada", EMBEDDINGS)
    with pytest.raises(ProviderResponseError, match="openai model 'ada' answered"):
        ask(model, {"input": ["a", "b"]}, transport=Recorded(answer(body={"data": data})))


def test_what_is_for_databricks_is_not_sent_on(openai):
    envelope = {"client_request_id": "7", "usage_context": {"team": "x"}, "stream": False}
    ask(openai_model(openai), {**HELLO, **envelope, "top_p": 0.5, "extra_params": {"seed": 3, "top_p": 1}})
    assert openai.requests == [{"model": "gpt-4o-mini", **HELLO, "top_p": 0.5, "seed": 3}]


@pytest.mark.parametrize("name", ["o1", "o3-mini", "gpt-5", "gpt-5.1-mini", "gpt-6", "ft:o4-mini:me"])
def test_reasoning_models_get_no_implicit_temperature(name):
    transport = Recorded(answer(body={"choices": [{"message": {}}]}))
    body = {**HELLO, "temperature": 0.0, "max_tokens": 9}
    ask(openai_model(OpenAIServer(), name), body, transport=transport)
    assert transport.posts[0][2] == {"model": name, **HELLO, "max_completion_tokens": 9}


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-4.1-mini", "llama-o1", "octopus"])
def test_other_models_get_the_temperature(name):
    transport = Recorded(answer(body={"choices": [{"message": {}}]}))
    ask(openai_model(OpenAIServer(), name), {**HELLO, "temperature": 0.0}, transport=transport)
    assert transport.posts[0][2]["temperature"] == 0.0


def test_a_wished_temperature_is_left_to_the_provider(openai):
    with pytest.raises(ProviderRequestError, match="temperature"):
        ask(openai_model(openai, "o3-mini"), {**HELLO, "temperature": 0.7})


def test_the_organization_and_the_key_are_headers():
    transport = Recorded(answer(body={"choices": [{"message": {}}]}))
    model = openai_model(OpenAIServer(), openai_organization="org-1")
    ask(model, HELLO, transport=transport)
    headers = transport.posts[0][1]
    assert headers["openai-organization"] == "org-1"
    assert headers["authorization"] == f"Bearer {KEY}"


def test_the_default_base_is_openai_itself():
    transport = Recorded(answer(body={"choices": [{"message": {}}]}))
    config = {"openai_api_key": REFERENCE}
    model = ExternalModel(provider="openai", name="m", task=CHAT, config=config)
    ask(model, HELLO, transport=transport)
    assert transport.posts[0][0] == "https://api.openai.com/v1/chat/completions"


# Anthropic


def test_a_chat_becomes_a_message_and_comes_back_as_a_chat(anthropic):
    turns = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "good morning"},
    ]
    body = {"messages": turns, "max_tokens": 50, "stop": "END", "top_p": 0.9, "user": "u1"}
    response = ask(anthropic_model(anthropic), body)
    assert text_of(response) == "echo: good morning"
    assert response.body["choices"][0]["finish_reason"] == "stop"
    assert response.usage == Usage(prompt_tokens=6, completion_tokens=3)
    assert response.body["usage"]["total_tokens"] == 9
    assert anthropic.requests == [
        {
            "model": "claude-test",
            "system": "be kind",
            "messages": turns[1:],
            "max_tokens": 50,
            "stop_sequences": ["END"],
            "top_p": 0.9,
            "metadata": {"user_id": "u1"},
        }
    ]
    assert anthropic.seen_headers[0]["anthropic-version"] == "2023-06-01"
    assert anthropic.seen_headers[0]["x-api-key"] == KEY


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("claude-3-haiku-20240307", True),
        ("claude-sonnet-4-20250514", True),
        ("claude-sonnet-4-5-20250929", True),
        ("claude-opus-4-6", True),
        ("claude-haiku-4-5", True),
        ("claude-opus-4-7", False),
        ("claude-opus-4-12", False),
        ("claude-sonnet-5", False),
        ("claude-haiku-5-1", False),
    ],
)
def test_only_models_that_take_a_temperature_get_the_implicit_one(anthropic, name, takes):
    ask(anthropic_model(anthropic, name), {**HELLO, "temperature": 0.0})
    assert ("temperature" in anthropic.requests[0]) is takes


def test_without_a_bound_the_default_is_sent(anthropic):
    ask(anthropic_model(anthropic), HELLO)
    assert anthropic.requests[0]["max_tokens"] == 4096


def test_images_become_blocks(anthropic):
    png = base64.b64encode(b"png").decode()
    parts = [
        {"type": "text", "text": "what is this"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
    ]
    ask(anthropic_model(anthropic), {"messages": [{"role": "user", "content": parts}]})
    assert anthropic.requests[0]["messages"][0]["content"] == [
        {"type": "text", "text": "what is this"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": png}},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
    ]


def test_tools_are_translated_both_ways(anthropic):
    response = ask(
        anthropic_model(anthropic),
        {**HELLO, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    )
    sent = anthropic.requests[0]
    assert sent["tools"] == [{"name": "find", "description": "d", "input_schema": SCHEMA}]
    assert sent["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    choice = response.body["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    function = choice["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("find", {"city": "good morning"})


def test_results_of_tools_go_back_in_one_turn(anthropic):
    call = {"type": "function", "function": {"name": "find", "arguments": '{"city": "Oslo"}'}}
    turns = [
        {"role": "user", "content": "where"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", **call}, {"id": "b", **call}]},
        {"role": "tool", "tool_call_id": "a", "content": "north"},
        {"role": "tool", "tool_call_id": "b", "content": "south"},
    ]
    ask(anthropic_model(anthropic), {"messages": turns})
    _, assistant, results = anthropic.requests[0]["messages"]
    assert [block["input"] for block in assistant["content"]] == [{"city": "Oslo"}] * 2
    assert results == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": "north"},
            {"type": "tool_result", "tool_use_id": "b", "content": "south"},
        ],
    }


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ({"type": "function", "function": {"name": "find"}}, {"type": "tool", "name": "find"}),
    ],
)
def test_a_tool_choice_keeps_its_meaning(anthropic, choice, sent):
    ask(anthropic_model(anthropic), {**HELLO, "tools": [TOOL], "tool_choice": choice})
    assert anthropic.requests[0]["tool_choice"] == sent


@pytest.mark.parametrize("name", ["claude-sonnet-4-5", "claude-3-haiku-20240307"])
def test_a_schema_gives_json_as_text_whatever_way_the_model_has(anthropic, name):
    response = ask(anthropic_model(anthropic, name), {**HELLO, "response_format": JSON_SCHEMA})
    assert json.loads(text_of(response)) == {"city": "good morning"}
    assert response.body["choices"][0]["finish_reason"] == "stop"
    assert "tool_calls" not in response.body["choices"][0]["message"]
    assert ("output_config" in anthropic.requests[0]) is (name == "claude-sonnet-4-5")


def test_json_mode_is_asked_for_in_words(anthropic):
    ask(anthropic_model(anthropic), {**HELLO, "response_format": {"type": "json_object"}})
    assert "one JSON object" in anthropic.requests[0]["system"]


def test_thinking_is_not_part_of_the_answer(anthropic):
    thinking = {"type": "enabled", "budget_tokens": 1024}
    assert text_of(ask(anthropic_model(anthropic), {**HELLO, "thinking": thinking})) == "echo: good morning"


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_the_reason_for_stopping_is_told_in_our_words(reason, finish):
    message = {"content": [{"type": "text", "text": "x"}], "stop_reason": reason, "usage": None}
    response = ask(anthropic_model(AnthropicServer()), HELLO, transport=Recorded(answer(body=message)))
    assert response.body["choices"][0]["finish_reason"] == finish


def test_cached_tokens_count_as_tokens_in():
    usage = {"input_tokens": 1, "cache_read_input_tokens": 10, "cache_creation_input_tokens": None, "output_tokens": 3}
    message = {"content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn", "usage": usage}
    response = ask(anthropic_model(AnthropicServer()), HELLO, transport=Recorded(answer(body=message)))
    assert response.usage == Usage(prompt_tokens=11, completion_tokens=3)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "system", "content": "x"}]}, "at least one message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'robot'"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input_audio"),
        ({**HELLO, "n": 2}, "'n' at 1"),
        ({**HELLO, "seed": 7}, "no parameter 'seed'"),
        ({**HELLO, "tools": [{"name": "x"}]}, "needs a 'function'"),
    ],
)
def test_what_anthropic_cannot_say_is_refused_before_it_is_sent(anthropic, body, match):
    with pytest.raises(InvalidRequestError, match=match):
        ask(anthropic_model(anthropic), body)
    assert anthropic.requests == []


# Custom


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        ({"api_key_auth": {"key": "X-Team-Key", "value": REFERENCE}}, "x-team-key", KEY),
        ({"bearer_token_auth": {"token": REFERENCE}}, "authorization", f"Bearer {KEY}"),
    ],
)
def test_a_custom_provider_gets_its_key_its_own_way(auth, header, value):
    with CustomServer(key_header=header) as server:
        response = ask(custom_model(server.url + "/predict", **auth), HELLO)
    assert text_of(response) == "echo: good morning"
    assert server.seen_headers[0][header] == value
    assert list(server.stats.paths) == ["/llm/predict"]


def test_a_custom_base_gets_the_path_of_the_task(openai):
    auth = {"bearer_token_auth": {"token": REFERENCE}}
    ask(custom_model(openai.origin, **auth), HELLO)
    ask(custom_model(openai.url + "/", EMBEDDINGS, **auth), {"input": "a"})
    ask(custom_model(openai.url + "/chat/completions", **auth), HELLO)
    assert openai.stats.paths == {"/v1/chat/completions": 2, "/v1/embeddings": 1}
