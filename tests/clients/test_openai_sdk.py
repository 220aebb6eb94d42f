"""The OpenAI SDK, unmodified, with the server's address as its `base_url` (contract G.5)."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from providers import status, too_many, vector
from pydantic import BaseModel

HELLO = [{"role": "user", "content": "good morning"}]
FIND = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Place(BaseModel):
    city: str
    big: bool


@pytest.fixture(params=["/serving-endpoints", "/ai-gateway/mlflow/v1", "/ai-gateway/openai/v1"])
def every_base(request, served):
    with openai.OpenAI(base_url=served.url + request.param, api_key=served.ada, max_retries=0) as client:
        yield client


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=served.url + "/serving-endpoints", api_key=served.ada, max_retries=0) as client:
        yield client


@pytest.mark.parametrize(("endpoint", "more"), [("chat", {}), ("claude", {"max_tokens": 9})])
def test_chat(every_base, endpoint, more):
    answer = every_base.chat.completions.create(model=endpoint, messages=HELLO, **more)
    assert answer.object == "chat.completion"
    assert (answer.choices[0].message.role, answer.choices[0].message.content) == ("assistant", "echo: good morning")
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 3, 5)


def test_chat_says_which_served_entity_answered_and_keeps_the_id_of_a_request(client):
    raw = client.chat.completions.with_raw_response.create(
        model="chat", messages=HELLO, extra_headers={"x-request-id": "ours-1"}
    )
    assert (raw.headers["served-model-name"], raw.headers["content-type"]) == ("gpt-4o", "application/json")
    assert raw.headers["x-request-id"] == "ours-1"
    assert raw.parse().choices[0].message.content == "echo: good morning"
    assert raw.parse()._request_id == "ours-1"


@pytest.mark.parametrize("endpoint", ["chat", "claude"])
def test_a_streamed_chat_says_the_same_in_pieces(every_base, endpoint):
    with every_base.chat.completions.create(model=endpoint, messages=HELLO, max_tokens=9, stream=True) as stream:
        chunks = list(stream)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len(chunks) > 2
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "echo: good morning"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]


@pytest.mark.parametrize("endpoint", ["chat", "claude"])
def test_a_streamed_chat_tells_its_usage_to_who_asks(client, endpoint):
    stream = client.chat.completions.create(
        model=endpoint, messages=HELLO, max_tokens=9, stream=True, stream_options={"include_usage": True}
    )
    *_, last = stream
    assert last.choices == []
    assert last.usage.total_tokens == 5


@pytest.mark.parametrize("endpoint", ["chat", "claude"])
def test_the_sdks_own_accumulator_reads_the_stream(client, endpoint):
    with client.chat.completions.stream(model=endpoint, messages=HELLO, max_tokens=9) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == "echo: good morning"


def test_a_client_that_hangs_up_leaves_the_server_well(served, client):
    stream = client.chat.completions.create(model="chat", messages=HELLO, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(model="chat", messages=HELLO).choices


@pytest.mark.parametrize("endpoint", ["chat", "claude"])
def test_tools_are_called_whole_and_in_pieces(client, endpoint):
    asked = {"model": endpoint, "messages": HELLO, "tools": [FIND], "max_tokens": 9}
    choice = client.chat.completions.create(**asked).choices[0]
    call = choice.message.tool_calls[0]
    assert (choice.finish_reason, call.type, call.function.name) == ("tool_calls", "function", "find")
    assert json.loads(call.function.arguments) == {"city": "good morning"}
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls[0].function.name == "find"
    assert json.loads(streamed.message.tool_calls[0].function.arguments) == {"city": "good morning"}


def test_a_tools_answer_goes_back_to_the_model(client, served):
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    asked = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "Oslo"},
    ]
    answer = client.chat.completions.create(model="chat", messages=asked)
    assert answer.choices[0].message.content == "echo: Oslo"
    assert served.openai.requests[-1]["messages"] == asked


def test_structured_output_is_parsed_into_a_model(client):
    answer = client.chat.completions.parse(model="chat", messages=HELLO, response_format=Place)
    assert answer.choices[0].message.parsed == Place(city="good morning", big=True)


def test_several_choices_and_sampling_fields_reach_the_provider(client, served):
    answer = client.chat.completions.create(
        model="chat", messages=HELLO, n=2, temperature=0.5, top_p=0.9, stop=["."], seed=7, user="u", logprobs=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    sent = served.openai.requests[-1]
    assert sent.pop("messages") == HELLO
    assert sent == {
        "model": "gpt-4o", "n": 2, "temperature": 0.5, "top_p": 0.9, "stop": ["."], "seed": 7, "user": "u", "logprobs": True,
    }  # fmt: skip


def test_completions_whole_and_in_pieces(every_base):
    answer = every_base.completions.create(model="completions", prompt=["one", "two"], max_tokens=8)
    assert answer.object == "text_completion"
    assert [choice.text for choice in answer.choices] == ["echo: one", "echo: two"]
    pieces = list(every_base.completions.create(model="completions", prompt="one", stream=True))
    assert {piece.object for piece in pieces} == {"text_completion"}
    assert "".join(piece.choices[0].text for piece in pieces) == "echo: one"


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_embeddings_in_whatever_form_the_sdk_asks_for(every_base, form):
    answer = every_base.embeddings.create(model="embeddings", input=["one", "two"], **form)
    assert (answer.object, [item.index for item in answer.data]) == ("list", [0, 1])
    assert answer.usage.total_tokens == 2
    if form != {"encoding_format": "base64"}:  # the SDK leaves that to who asked for it
        assert [item.embedding for item in answer.data] == [vector("one"), vector("two")]


def test_embeddings_of_another_size(client):
    assert len(client.embeddings.create(model="embeddings", input="one", dimensions=3).data[0].embedding) == 3


@pytest.mark.parametrize("asked", [[{"role": "user", "content": "hi"}], "hi"])
def test_an_agent_answers_the_responses_api(every_base, asked):
    answer = every_base.responses.create(model="responder", input=asked)
    assert answer.output_text == "heard: hi"
    assert answer.output[0].role == "assistant"


def test_an_agent_streams_its_events(client):
    events = list(client.responses.create(model="responder", input=[{"role": "user", "content": "hi"}], stream=True))
    assert [event.type for event in events] == ["response.output_text.delta"] * 2 + ["response.output_item.done"]
    assert "".join(event.delta for event in events[:2]) == events[2].item.content[0].text == "heard: hi"


def test_an_agent_gets_the_fields_that_are_not_openais(client):
    answer = client.responses.create(
        model="responder", input=[{"role": "user", "content": "hi"}], extra_body={"custom_inputs": {"team": "x"}}
    )
    assert answer.custom_outputs == {"team": "x"}


def test_a_chat_agent_answers_with_its_messages(client):
    answer = client.chat.completions.create(model="talker", messages=[{"role": "user", "content": "hi"}])
    assert answer.messages[0]["content"] == "heard: hi"


def test_the_async_client(served):
    async def ask():
        async with openai.AsyncOpenAI(base_url=served.url + "/serving-endpoints", api_key=served.ada) as client:
            one = client.chat.completions.create
            answers = await asyncio.gather(*(one(model="chat", messages=HELLO) for _ in range(20)))
            stream = await one(model="claude", messages=HELLO, max_tokens=9, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            embedded = await client.embeddings.create(model="embeddings", input="one")
            responded = await client.responses.create(model="responder", input="hi")
        return answers, "".join(pieces), embedded.data[0].embedding, responded.output_text

    answers, said, embedding, heard = asyncio.run(ask())
    assert {answer.choices[0].message.content for answer in answers} == {"echo: good morning"}
    assert (said, embedding, heard) == ("echo: good morning", vector("one"), "heard: hi")


@pytest.mark.parametrize(
    ("ask", "kind", "code", "text"),
    [
        (lambda c: c.chat.completions.create(model="none", messages=HELLO), openai.NotFoundError, "RESOURCE_DOES_NOT_EXIST", "'none' does not exist"),
        (lambda c: c.chat.completions.create(model="chat", messages=[]), openai.BadRequestError, "INVALID_PARAMETER_VALUE", "messages"),
        (lambda c: c.chat.completions.create(model="chat", messages=HELLO, temperature=9), openai.BadRequestError, "INVALID_PARAMETER_VALUE", "temperature"),
        (lambda c: c.embeddings.create(model="chat", input="x"), openai.BadRequestError, "INVALID_PARAMETER_VALUE", "chat/completions"),
        (lambda c: c.chat.completions.create(model="chat", messages=[{"content": "x"}]), openai.BadRequestError, "INVALID_PARAMETER_VALUE", "role"),
        (lambda c: c.models.list(), openai.NotFoundError, "ENDPOINT_NOT_FOUND", "/serving-endpoints/models"),
    ],
)  # fmt: skip
def test_errors_are_the_sdks_own(client, ask, kind, code, text):
    with pytest.raises(kind) as caught:
        ask(client)
    assert caught.value.body["error_code"] == code
    assert text in caught.value.body["message"]


def test_who_is_unknown_or_may_not_ask_is_told_so(served, client):
    other = client.with_options
    with pytest.raises(openai.AuthenticationError) as caught:
        other(api_key="wrong").chat.completions.create(model="chat", messages=HELLO)
    assert caught.value.body["error_code"] == "UNAUTHENTICATED"
    with pytest.raises(openai.PermissionDeniedError) as caught:
        other(api_key=served.bob).chat.completions.create(model="chat", messages=HELLO)
    assert caught.value.body["error_code"] == "PERMISSION_DENIED"
    assert "bob@example.com" in caught.value.body["message"]


def test_a_rate_limit_says_when_to_come_back(served, client):
    limits = [{"calls": 1, "renewal_period": "minute"}]
    served.workspace.create_endpoint("limited", served.chat_config, rate_limits=limits)
    try:
        client.chat.completions.create(model="limited", messages=HELLO)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="limited", messages=HELLO)
        assert caught.value.body["error_code"] == "REQUEST_LIMIT_EXCEEDED"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="limited", messages=HELLO, stream=True)
    finally:
        served.workspace.delete_endpoint("limited")


def test_a_provider_that_fails_is_the_sdks_own_error_before_a_stream_begins(moody, client):
    moody.provider.script.extend([status(400, "no such voice"), status(400, "no such voice"), too_many(1.0)])
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="no such voice"):
            client.chat.completions.create(model=moody.endpoint, messages=HELLO, stream=stream)
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model=moody.endpoint, messages=HELLO)
