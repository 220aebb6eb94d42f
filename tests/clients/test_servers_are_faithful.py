"""The providers' own SDKs, unmodified, get from our local servers what they expect of the real ones."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import anthropic
import openai
import pytest
from providers import (
    KEY,
    AnthropicServer,
    CustomServer,
    OpenAIServer,
    cut_off,
    drop,
    out_of_quota,
    slow,
    status,
    too_many,
    vector,
)

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
HELLO = [{"role": "user", "content": "good morning"}]


@pytest.fixture
def server():
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def messages_server():
    with AnthropicServer() as server:
        yield server


@pytest.fixture
def messages_client(messages_server):
    url = messages_server.url
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def chat(client, **more):
    return client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, **more)


def message(client, **more):
    return client.messages.create(model="claude-test", max_tokens=99, messages=HELLO, **more)


# OpenAI


def test_openai_chat_echoes_and_counts_words(client, server):
    answer = chat(client)
    assert answer.choices[0].message.content == "echo: good morning"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 3)
    assert server.requests == [{"model": "gpt-4o-mini", "messages": HELLO}]
    assert server.stats.paths == {"/v1/chat/completions": 1}


def test_openai_structured_output_fits_its_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    answer = chat(client, response_format=form)
    assert json.loads(answer.choices[0].message.content) == {"city": "good morning", "big": True}


def test_openai_tools_are_called(client):
    tools = [{"type": "function", "function": {"name": "find", "parameters": SCHEMA}}]
    choice = chat(client, tools=tools).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.name == "find"


def test_openai_completions_answer_every_prompt(client):
    answer = client.completions.create(model="davinci", prompt=["a", "b"])
    assert [choice.text for choice in answer.choices] == ["echo: a", "echo: b"]


def test_openai_embeddings_survive_the_base64_that_the_sdk_asks_for(client, server):
    answer = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    assert [item.embedding for item in answer.data] == [vector("a"), vector("b")]
    assert server.requests[0]["encoding_format"] == "base64"


def test_openai_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["model-a"]


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        (status(400), openai.BadRequestError, None),
        (status(403), openai.PermissionDeniedError, None),
        (status(409), openai.ConflictError, None),
        (status(422), openai.UnprocessableEntityError, None),
        (too_many(), openai.RateLimitError, "rate_limit_exceeded"),
        (out_of_quota, openai.RateLimitError, "insufficient_quota"),
        (status(500), openai.InternalServerError, None),
        (status(503), openai.InternalServerError, None),
    ],
)
def test_openai_errors_are_what_the_sdk_raises(client, server, fault, kind, code):
    server.script.append(fault)
    with pytest.raises(kind) as caught:
        chat(client)
    assert caught.value.code == code
    assert chat(client).choices, "a scripted fault hits one call only"


def test_openai_refuses_an_unknown_key_model_path_and_parameter(client, server):
    with pytest.raises(openai.AuthenticationError):
        chat(client.with_options(api_key="sk-wrong"))
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.chat.completions.create(model="no-such-model", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="Unrecognized request argument supplied: magic"):
        chat(client, extra_body={"magic": 1})
    with pytest.raises(openai.NotFoundError, match="Invalid URL"):
        client.post("/nowhere", body={"model": "m"}, cast_to=object)


@pytest.mark.parametrize("model", ["o3-mini", "gpt-5-mini"])
def test_reasoning_models_refuse_a_temperature_and_max_tokens(client, model):
    for more in ({"temperature": 0.0}, {"max_tokens": 5}):
        with pytest.raises(openai.BadRequestError, match="Unsupported"):
            client.chat.completions.create(model=model, messages=HELLO, **more)


def test_embeddings_may_be_too_many_or_too_long(client, server):
    server.max_inputs, server.max_chars = 2, 10
    for texts, code in [
        (["a"] * 3, "array_above_max_length"),
        ("a" * 11, "string_above_max_length"),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="e", input=texts)
        assert caught.value.code == code


@pytest.mark.parametrize("fault", [drop, cut_off])
def test_a_lost_connection_is_a_connection_error_of_the_sdk(client, server, fault):
    server.script.append(fault)
    with pytest.raises((openai.APIConnectionError, openai.APIError)):
        chat(client)


def test_a_late_answer_times_out_in_the_sdk(client, server):
    server.script.append(slow(5.0))
    with pytest.raises(openai.APITimeoutError):
        chat(client.with_options(timeout=0.1))


def test_the_limit_holds_over_any_rolling_window_and_the_headers_tell():
    with (
        OpenAIServer(limit=(3, 0.3), headers=True, retry_after="ms") as server,
        openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client,
    ):
        left = [_remaining(client) for _ in range(3)]
        assert left == ["2", "1", "0"]
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client)
        wait = float(caught.value.response.headers["retry-after-ms"]) / 1000
        assert 0 < wait <= 0.302
        assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        time.sleep(wait)
        assert chat(client).choices
        assert server.stats.too_many == 1
        assert len(server.stats.accepted) == 4


def test_many_calls_at_once_are_counted(server):
    server.delay = 0.05
    with (
        openai.OpenAI(base_url=server.url, api_key=KEY, max_retries=0) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda _: chat(client), range(8)))
    assert server.traffic.max_in_flight > 1
    assert server.traffic.in_flight == 0


def test_a_custom_server_takes_its_own_header_and_path():
    with (
        CustomServer(key_header="x-team-key") as server,
        openai.OpenAI(
            base_url=server.url + "/v9",
            api_key="unused",
            default_headers={"x-team-key": KEY},
            max_retries=0,
        ) as client,
    ):
        assert chat(client).choices[0].message.content == "echo: good morning"


def _remaining(client):
    response = client.chat.completions.with_raw_response.create(model="m", messages=HELLO)
    return response.headers["x-ratelimit-remaining-requests"]


# Anthropic


def test_anthropic_messages_echo_and_count_words(messages_client):
    answer = message(messages_client, system="be kind")
    assert answer.content[0].text == "echo: good morning"
    assert answer.stop_reason == "end_turn"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (4, 3)


def test_anthropic_structured_output_fits_its_schema(messages_client):
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    answer = message(messages_client, output_config=form)
    assert json.loads(answer.content[0].text) == {"city": "good morning", "big": True}


def test_anthropic_tools_are_called(messages_client):
    answer = message(messages_client, tools=[{"name": "find", "input_schema": SCHEMA}])
    assert answer.stop_reason == "tool_use"
    assert (answer.content[0].name, answer.content[0].input["big"]) == ("find", True)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (status(400), anthropic.BadRequestError),
        (status(401), anthropic.AuthenticationError),
        (status(403), anthropic.PermissionDeniedError),
        (status(404), anthropic.NotFoundError),
        (status(413), anthropic.RequestTooLargeError),
        (too_many(), anthropic.RateLimitError),
        (status(500), anthropic.InternalServerError),
        (status(529), anthropic.OverloadedError),
        (drop, anthropic.APIConnectionError),
    ],
)
def test_anthropic_errors_are_what_the_sdk_raises(messages_client, messages_server, fault, kind):
    messages_server.script.append(fault)
    with pytest.raises(kind):
        message(messages_client)


def test_anthropic_refuses_what_is_not_its_own(messages_client):
    with pytest.raises(anthropic.AuthenticationError):
        message(messages_client.with_options(api_key="wrong"))
    with pytest.raises(anthropic.NotFoundError, match="no-such-model"):
        messages_client.messages.create(model="no-such-model", max_tokens=9, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match="Extra inputs are not permitted"):
        message(messages_client, extra_body={"response_format": {}})
    turns = [{"role": "system", "content": "be kind"}]
    with pytest.raises(anthropic.BadRequestError, match="must be user or assistant"):
        messages_client.messages.create(model="m", max_tokens=9, messages=turns)


def test_anthropic_limits_are_told_in_its_own_headers():
    with (
        AnthropicServer(limit=(5, 60.0), token_limit=(100, 60.0), headers=True) as server,
        anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as client,
    ):
        raw = client.messages.with_raw_response.create(model="m", max_tokens=9, messages=HELLO)
        assert raw.headers["anthropic-ratelimit-requests-remaining"] == "4"
        assert raw.headers["anthropic-ratelimit-tokens-remaining"] == "95"
        assert raw.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
