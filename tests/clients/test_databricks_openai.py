"""`DatabricksOpenAI` of databricks-openai, unmodified, over each of its bases (contract G.5)."""

from __future__ import annotations

import asyncio
import json

import pytest

databricks_openai = pytest.importorskip(
    "databricks_openai", reason="pip needs its pins: tests/clients/requirements.txt", exc_type=ImportError
)
import openai  # noqa: E402

HELLO = [{"role": "user", "content": "good morning"}]
BASES = [{}, {"use_ai_gateway": True}, {"use_ai_gateway_native_api": True}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(params=BASES, ids=["serving-endpoints", "mlflow", "openai"])
def client(request, as_ada):
    with databricks_openai.DatabricksOpenAI(**request.param, max_retries=0) as found:
        yield found


def test_chat_completions_and_embeddings(client):
    for endpoint in ("chat", "claude"):
        answer = client.chat.completions.create(model=endpoint, messages=HELLO, max_tokens=9)
        assert answer.choices[0].message.content == "echo: good morning"
    assert client.completions.create(model="completions", prompt="one").choices[0].text == "echo: one"
    assert len(client.embeddings.create(model="embeddings", input="one").data[0].embedding) == 8


@pytest.mark.parametrize("endpoint", ["chat", "claude"])
def test_a_stream(client, endpoint):
    chunks = list(client.chat.completions.create(model=endpoint, messages=HELLO, max_tokens=9, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "echo: good morning"


@pytest.mark.parametrize("endpoint", ["chat", "claude"])
def test_tools_with_a_strict_schema(client, endpoint):
    tool = {"type": "function", "function": {"name": "find", "parameters": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(model=endpoint, messages=HELLO, tools=[tool], max_tokens=9)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("find", {"city": "good morning"})


def test_a_conversation_with_a_tools_answer_and_no_text_of_the_assistant(client, served):
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    asked = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "Oslo"},
    ]
    for endpoint, provider in (("chat", served.openai), ("claude", served.anthropic)):
        answer = client.chat.completions.create(model=endpoint, messages=asked, max_tokens=9)
        assert answer.choices[0].finish_reason == "stop"
        assert "Oslo" in json.dumps(provider.requests[-1]["messages"][-1])


def test_agents(client):
    asked = [{"role": "user", "content": "hi"}]
    answer = client.responses.create(model="responder", input=asked, extra_body={"custom_inputs": {"team": "x"}})
    assert (answer.output_text, answer.custom_outputs) == ("heard: hi", {"team": "x"})
    again = [*asked, *(item.model_dump() for item in answer.output), {"role": "user", "content": "ho"}]
    assert client.responses.create(model="responder", input=again).output_text == "heard: ho"
    events = list(client.responses.create(model="responder", input=asked, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "heard: hi"
    assert client.chat.completions.create(model="talker", messages=asked).messages[0]["content"] == "heard: hi"


def test_errors(client):
    with pytest.raises(openai.NotFoundError, match="'none' does not exist"):
        client.chat.completions.create(model="none", messages=HELLO)
    with pytest.raises(openai.NotFoundError, match="'none' does not exist"):
        client.responses.create(model="none", input=HELLO)


@pytest.mark.parametrize("base", BASES, ids=["serving-endpoints", "mlflow", "openai"])
def test_the_async_client(as_ada, base):
    async def ask():
        async with databricks_openai.AsyncDatabricksOpenAI(**base) as client:
            answer = await client.chat.completions.create(model="chat", messages=HELLO)
            stream = await client.chat.completions.create(model="claude", messages=HELLO, max_tokens=9, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            heard = await client.responses.create(model="responder", input=[{"role": "user", "content": "hi"}])
        return answer.choices[0].message.content, "".join(pieces), heard.output_text

    assert asyncio.run(ask()) == ("echo: good morning", "echo: good morning", "heard: hi")
