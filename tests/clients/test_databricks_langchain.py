"""`ChatDatabricks` and `DatabricksEmbeddings` of databricks-langchain, unmodified (contract G.6)."""

from __future__ import annotations

import asyncio

import pytest
from providers import vector
from pydantic import BaseModel

databricks_langchain = pytest.importorskip(
    "databricks_langchain", reason="pip needs its pins: tests/clients/requirements.txt", exc_type=ImportError
)

ASKED = [("system", "be short"), ("human", "good morning")]
SAID = "echo: good morning"


class Place(BaseModel):
    """Find a place."""

    city: str


@pytest.fixture(
    params=[{}, {"use_ai_gateway": True}, {"use_ai_gateway_native_api": True}], ids=["endpoints", "mlflow", "openai"]
)
def base(request, as_ada):
    return request.param


@pytest.fixture
def chat(base):
    """Make a chat model; its connections are nobody's to close but ours."""
    made = []

    def make(model, **more):
        made.append(databricks_langchain.ChatDatabricks(model=model, max_retries=0, **base, **more))
        return made[-1]

    yield make
    for model in made:
        model.client.close()


@pytest.fixture(params=["chat", "claude"])
def model(request, chat):
    return chat(request.param, max_tokens=9)


def test_invoke_and_batch(model):
    answer = model.invoke(ASKED)
    assert answer.content == SAID
    assert answer.usage_metadata["total_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"
    assert [it.content for it in model.batch(["one", "two"])] == ["echo: one", "echo: two"]


def test_stream(model):
    chunks = list(model.stream(ASKED))
    assert len(chunks) > 2
    assert "".join(chunk.content for chunk in chunks) == SAID


def test_a_stream_tells_its_usage_to_who_asks(model):
    told = [chunk.usage_metadata for chunk in model.stream(ASKED, stream_options={"include_usage": True})]
    assert [usage["total_tokens"] > 0 for usage in told if usage] == [True]


def test_async(model):
    async def ask():
        answers = await asyncio.gather(*(model.ainvoke(ASKED) for _ in range(6)))
        said = "".join([chunk.content async for chunk in model.astream(ASKED)])
        await model.async_client.close()
        return [answer.content for answer in answers], said

    assert asyncio.run(ask()) == ([SAID] * 6, SAID)


def test_tools(model):
    answer = model.bind_tools([Place]).invoke(ASKED)
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("Place", {"city": "good morning"})]
    streamed = None
    for chunk in model.bind_tools([Place]).stream(ASKED):
        streamed = chunk if streamed is None else streamed + chunk
    assert [(call["name"], call["args"]) for call in streamed.tool_calls] == [("Place", {"city": "good morning"})]


def test_structured_output(model):
    assert model.with_structured_output(Place).invoke(ASKED) == Place(city="good morning")


def test_structured_output_by_json_schema(chat):
    model = chat("chat")
    assert model.with_structured_output(Place, method="json_schema").invoke(ASKED) == Place(city="good morning")


def test_an_agent_of_the_responses_api(chat):
    agent = chat("responder", use_responses_api=True)
    answer = agent.invoke("hi", custom_inputs={"team": "x"})
    assert (answer.text, answer.custom_outputs) == ("heard: hi", {"team": "x"})
    assert "".join(chunk.text for chunk in agent.stream("hi")).startswith("heard: hi")


def test_a_chat_agent(chat):
    agent = chat("talker")
    assert [message["content"] for message in agent.invoke("hi").content] == ["heard: hi"]
    assert "".join(chunk.content for chunk in agent.stream("hi")) == "heard: hi"


@pytest.mark.parametrize("over_sdk", ["true", "false"])
def test_embeddings_go_in_lists_of_twenty(as_ada, monkeypatch, over_sdk):
    monkeypatch.setenv("MLFLOW_ENABLE_DB_SDK", over_sdk)
    embed = databricks_langchain.DatabricksEmbeddings(endpoint="embeddings")
    texts = [f"text {number}" for number in range(45)]
    before = len(as_ada.openai.requests)
    assert embed.embed_documents(texts) == [vector(text) for text in texts]
    assert [len(asked["input"]) for asked in as_ada.openai.requests[before:]] == [20, 20, 5]
    assert embed.embed_query("one") == vector("one")
