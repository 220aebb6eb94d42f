"""Unmodified clients ask language and embedding models that run in the server itself (contract B.4, D.2-D.5, G)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from typing import Literal

import numpy as np
import openai
import pytest
from databricks.sdk import WorkspaceClient, errors
from databricks.sdk.config import Config
from databricks.sdk.service import serving as sdk
from mlflow.deployments import get_deploy_client
from pydantic import BaseModel

ADA, BOB = "ada@example.com", "bob@example.com"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
COUNT = [{"role": "user", "content": "Count to 12."}]
COUNTED = " ".join(map(str, range(1, 13)))
REVIEW = [{"role": "user", "content": "Is this review positive or negative? The soup was great. Answer as JSON."}]
SURE = {"temperature": 0}


class Judged(BaseModel):
    sentiment: Literal["positive", "negative"]


def tool(name, **properties):
    parameters = {
        "type": "object", "properties": properties, "required": [*properties], "additionalProperties": False,
    }  # fmt: skip
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("weather", city={"enum": ["Oslo", "Rome"]}, days={"type": "integer", "minimum": 1, "maximum": 7}),
    tool("ring", loud={"type": "boolean"}),
]


def sdk_client(server, base, token=None, **more):
    return openai.OpenAI(base_url=server.url + base, api_key=token or server.ada, max_retries=0, **more)


@pytest.fixture(params=["/serving-endpoints", "/ai-gateway/mlflow/v1", "/ai-gateway/openai/v1"])
def every_base(request, language_served):
    with sdk_client(language_served, request.param) as client:
        yield client


@pytest.fixture
def client(language_served):
    with sdk_client(language_served, "/serving-endpoints") as client:
        yield client


@pytest.fixture
def chat(client):
    return client.chat.completions


@pytest.fixture
def deployments(language_served, as_ada):
    return get_deploy_client("databricks")


@pytest.fixture
def endpoints(language_served):
    return WorkspaceClient(config=Config(host=language_served.url, token=language_served.ada)).serving_endpoints


def engine(server, endpoint):
    (report,) = (each for each in server.workspace.engines() if each["endpoint"] == endpoint)
    return report


def until(is_true, seconds=10):
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


# The OpenAI SDK: conversations.


def test_a_chat(every_base):
    answer = every_base.chat.completions.create(model="tiny", messages=FRANCE, **SURE)
    (choice,) = answer.choices
    assert (answer.object, answer.model, choice.message.role) == ("chat.completion", "tiny", "assistant")
    assert (choice.message.content, choice.finish_reason) == ("Paris", "stop")
    used = answer.usage
    assert (used.completion_tokens, used.total_tokens) == (2, used.prompt_tokens + 2)
    assert used.prompt_tokens > 10


def test_who_answered_is_told_and_two_share_the_traffic(client):
    raw = client.chat.completions.with_raw_response
    names = [raw.create(model="two", messages=FRANCE, max_tokens=1).headers["served-model-name"] for _ in range(20)]
    assert {*names} == {"first", "second"}
    assert abs(names.count("first") - 12) <= 1


@pytest.mark.parametrize("wanted", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream_says_the_same_in_pieces(every_base, wanted):
    whole = every_base.chat.completions.create(model="tiny", messages=COUNT, **SURE)
    with every_base.chat.completions.create(model="tiny", messages=COUNT, stream=True, **SURE, **wanted) as stream:
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    said = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(said) == whole.choices[0].message.content == COUNTED
    assert len(chunks) > 12
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert [len(chunk.choices) for chunk in chunks[-1:]] == ([0] if wanted else [1])


def test_several_choices_are_told_apart_and_their_prompt_counts_once(chat):
    one = chat.create(model="tiny", messages=FRANCE, temperature=2, seed=1)
    asked = {"model": "tiny", "messages": FRANCE, "n": 3, "temperature": 2, "seed": 1, "max_tokens": 20}
    answer = chat.create(**asked)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens
    streamed = ["", "", ""]
    for chunk in chat.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_a_seed_makes_an_answer_the_same_again(chat):
    asked = {"model": "tiny", "messages": COUNT, "temperature": 1.9, "max_tokens": 30}
    texts = [chat.create(**asked, seed=seed).choices[0].message.content for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("fields", "content", "reason"),
    [
        ({"max_tokens": 3}, "1 2 3", "length"),
        ({"max_completion_tokens": 2}, "1 2", "length"),
        ({"stop": " 5"}, "1 2 3 4", "stop"),
        ({"stop": ["9 1", "7 8"]}, "1 2 3 4 5 6 ", "stop"),
        ({"extra_body": {"extra_params": {"max_tokens": "1"}}}, "1", "length"),
    ],
)
def test_an_answer_ends_where_it_is_told_to(chat, fields, content, reason):
    (choice,) = chat.create(model="tiny", messages=COUNT, **SURE, **fields).choices
    assert (choice.message.content, choice.finish_reason) == (content, reason)
    chunks = list(chat.create(model="tiny", messages=COUNT, stream=True, **SURE, **fields))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == content
    assert chunks[-1].choices[0].finish_reason == reason


def test_tokens_and_the_likeliest_beside_them(chat):
    asked = {"model": "tiny", "messages": FRANCE, "logprobs": True, "top_logprobs": 3, **SURE}
    entries = chat.create(**asked).choices[0].logprobs.content
    assert "".join(entry.token for entry in entries).startswith("Paris")
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs)
        assert entry.logprob <= 0
    streamed = [
        entry
        for chunk in chat.create(**asked, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]


@pytest.mark.parametrize(
    ("choice", "name"), [("required", None), ({"type": "function", "function": {"name": "ring"}}, "ring")]
)
def test_a_tool_that_must_be_called_is_called_with_arguments_that_fit(chat, choice, name):
    asked = {"model": "tiny", "messages": FRANCE, "tools": TOOLS, "tool_choice": choice, **SURE}
    answer = chat.create(**asked).choices[0]
    (call,) = answer.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert (answer.finish_reason, answer.message.content, call.type) == ("tool_calls", None, "function")
    assert name in (None, call.function.name)
    if call.function.name == "ring":
        assert isinstance(arguments["loud"], bool)
    else:
        assert arguments["city"] in ("Oslo", "Rome")
        assert 1 <= arguments["days"] <= 7
    with chat.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls[0].function.name == call.function.name
    assert json.loads(streamed.message.tool_calls[0].function.arguments) == arguments


def test_a_tools_answer_goes_back_to_the_model(chat):
    call = {"id": "c1", "type": "function", "function": {"name": "ring", "arguments": '{"loud": true}'}}
    asked = [
        *FRANCE,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "Done."},
        *FRANCE,
    ]
    answer = chat.create(model="tiny", messages=asked, tools=TOOLS, max_tokens=4, **SURE)
    assert answer.choices[0].message.role == "assistant"
    none = chat.create(model="tiny", messages=FRANCE, tools=TOOLS, tool_choice="none", **SURE)
    assert none.choices[0].message.content == "Paris"


def test_an_answer_is_parsed_into_a_model_whole_and_in_pieces(chat):
    asked = {"model": "tiny", "messages": REVIEW, "response_format": Judged, **SURE}
    assert chat.parse(**asked).choices[0].message.parsed == Judged(sentiment="positive")
    with chat.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.parsed == Judged(sentiment="positive")


def test_any_json_is_an_object(chat):
    asked = {"model": "tiny", "messages": REVIEW, "response_format": {"type": "json_object"}, **SURE}
    assert isinstance(json.loads(chat.create(**asked).choices[0].message.content), dict)


def test_contents_in_parts_and_null_fields_are_understood(chat):
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of France?"}]
    nothing = {"stop": None, "seed": None, "tools": None, "response_format": None, "logprobs": None, "n": None}
    answer = chat.create(
        model="tiny", messages=[{"role": "user", "content": parts}], user="u", **SURE, extra_body=nothing
    )
    assert answer.choices[0].message.content == "Paris"


def test_64_ask_at_once_and_each_gets_their_own_answer(language_served):
    countries = ("Italy", "Spain", "Japan", "Peru")
    cities = ("Rome", "Madrid", "Tokyo", "Lima")

    async def ask():
        base = language_served.url + "/serving-endpoints"
        async with openai.AsyncOpenAI(base_url=base, api_key=language_served.ada, max_retries=0) as client:
            questions = [f"What is the capital of {country}?" for country in countries] * 16
            return await asyncio.gather(
                *(one(client, text, stream=place % 2 == 0) for place, text in enumerate(questions))
            )

    async def one(client, text, *, stream):
        asked = {"model": "tiny", "messages": [{"role": "user", "content": text}], **SURE}
        answer = await client.chat.completions.create(**asked, stream=stream)
        if not stream:
            return answer.choices[0].message.content
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    assert asyncio.run(ask()) == [*cities] * 16


def test_who_hangs_up_gives_the_engines_place_back(language_served, client):
    before = engine(language_served, "tiny")
    endless = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}
    stream = client.chat.completions.create(model="tiny", messages=COUNT, stream=True, **endless)
    next(iter(stream))
    stream.close()
    until(lambda: engine(language_served, "tiny")["running"] == 0)
    after = engine(language_served, "tiny")
    assert after["finished"] == before["finished"] + 1
    assert after["kv_tokens_used"] == 0
    assert after["completion_tokens"] - before["completion_tokens"] < 400


def test_who_hangs_up_on_a_whole_answer_gives_it_back_too(language_served):
    endless = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}
    with (
        sdk_client(language_served, "/serving-endpoints", timeout=0.05) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.chat.completions.create(model="tiny", messages=COUNT, n=8, **endless)
    until(lambda: engine(language_served, "tiny")["running"] == 0)
    assert engine(language_served, "tiny")["kv_tokens_used"] == 0


# The OpenAI SDK: completions and embeddings.


def test_completions_of_one_prompt_and_of_several(every_base):
    prompts = ["What is the capital", "The quick brown"]
    answer = every_base.completions.create(model="tiny-text", prompt=prompts, max_tokens=5, n=2, **SURE)
    assert answer.object == "text_completion"
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text
    pieces = list(
        every_base.completions.create(model="tiny-text", prompt=prompts[0], max_tokens=5, stream=True, **SURE)
    )
    assert {piece.object for piece in pieces} == {"text_completion"}
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text


def test_completions_repeat_their_prompt_and_tell_how_likely_tokens_were(client):
    create = client.completions.create
    echoed = create(model="tiny-text", prompt="The quick", echo=True, max_tokens=2, **SURE).choices[0].text
    plain = create(model="tiny-text", prompt="The quick", logprobs=2, max_tokens=2, **SURE).choices[0]
    assert echoed == "The quick" + plain.text
    assert "".join(plain.logprobs.tokens) == plain.text
    assert len(plain.logprobs.token_logprobs) == len(plain.logprobs.top_logprobs) == 2
    assert plain.logprobs.text_offset[0] == 0


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}])
def test_embeddings_mean_what_texts_mean(embedder_served, every_base, form):
    texts = ["A duck swims on the lake.", "Ducks are swimming in a pond.", "Interest rates rose again."]
    answer = every_base.embeddings.create(model="minilm", input=texts, **form)
    vectors = np.array([item.embedding for item in answer.data])
    assert vectors.shape == (3, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > far + 0.3
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 15


def test_embeddings_in_base64_of_another_size_and_of_tokens(embedder_served, client):
    create = client.embeddings.create
    plain = create(model="minilm", input="hello world", encoding_format="float").data[0].embedding
    coded = create(model="minilm", input="hello world", encoding_format="base64").data[0].embedding
    assert np.allclose(np.frombuffer(b64decode(coded), "<f4"), plain, atol=1e-6)
    tokens = [101, 7592, 2088, 102]
    for given in (tokens, [tokens]):
        assert np.allclose(create(model="minilm", input=given).data[0].embedding, plain, atol=1e-5)
    short = create(model="minilm", input="hello world", dimensions=8).data[0].embedding
    assert len(short) == 8
    assert np.allclose(short, np.array(plain[:8]) / np.linalg.norm(plain[:8]), atol=1e-5)


# The OpenAI SDK: what is refused.


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_told_so(chat, stream):
    with pytest.raises(openai.BadRequestError, match=r"prompt of [\d,]+ tokens leaves no room .* context of 512"):
        chat.create(model="tiny", messages=[{"role": "user", "content": "word " * 2000}], stream=stream)


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda c: c.chat.completions.create(model="tiny", messages=FRANCE, temperature=9), "temperature"),
        (lambda c: c.chat.completions.create(model="tiny", messages=FRANCE, n=500), "'n'"),
        (lambda c: c.chat.completions.create(model="tiny", messages=FRANCE, top_logprobs=2), "needs 'logprobs'"),
        (lambda c: c.chat.completions.create(model="tiny", messages=FRANCE, tool_choice="required"), "not among its 'tools'"),
        (lambda c: c.chat.completions.create(model="tiny", messages=FRANCE, response_format={"type": "xml"}), "response_format"),
        (lambda c: c.completions.create(model="tiny", prompt="x"), "chat/completions"),
        (lambda c: c.completions.create(model="tiny-text", prompt="x", suffix="y"), "suffix"),
        (lambda c: c.embeddings.create(model="tiny", input="x"), "chat/completions"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(client, ask, text):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client)
    assert caught.value.body["error_code"] == "INVALID_PARAMETER_VALUE"
    assert text in caught.value.body["message"]


# MLflow, the SDK of Databricks, curl.


def test_mlflow_asks_for_everything(deployments, embedder_served):
    answer = deployments.predict(endpoint="tiny", inputs={"messages": FRANCE, **SURE})
    assert answer["choices"][0]["message"]["content"] == "Paris"
    chunks = list(deployments.predict_stream(endpoint="tiny", inputs={"messages": COUNT, **SURE}))
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == COUNTED
    completed = deployments.predict(endpoint="tiny-text", inputs={"prompt": ["The", "A"], "max_tokens": 2})
    assert [choice["index"] for choice in completed["choices"]] == [0, 1]
    embedded = deployments.predict(endpoint="minilm", inputs={"input": ["one", "two"]})
    assert [len(item["embedding"]) for item in embedded["data"]] == [384, 384]


def test_mlflow_sees_what_an_endpoint_is(deployments):
    found = deployments.get_endpoint("tiny")
    assert (found.task, found.endpoint_type) == ("llm/v1/chat", "FOUNDATION_MODEL_API")
    listed = {each["name"]: each for each in deployments.list_endpoints()}
    assert (listed["tiny"]["task"], listed["tiny-text"]["task"]) == ("llm/v1/chat", "llm/v1/completions")
    for endpoint in (found, listed["tiny"]):
        (entity,) = endpoint["config"]["served_entities"]
        assert entity["foundation_model"].keys() == {"name", "display_name", "description", "docs"}
        assert entity["entity_name"].startswith("/")


def test_the_sdk_of_databricks_asks_and_looks(endpoints, embedder_served):
    hello = [sdk.ChatMessage(role=sdk.ChatMessageRole.USER, content="What is the capital of Peru?")]
    answer = endpoints.query("tiny", messages=hello, temperature=0.0, max_tokens=9, n=1, stop=["."])
    assert (answer.choices[0].message.content, answer.served_model_name) == ("Lima", "tiny")
    assert answer.usage.completion_tokens == 2
    assert endpoints.query("tiny-text", prompt="The", max_tokens=1).usage.completion_tokens == 1
    assert len(endpoints.query("minilm", input="one").data[0].embedding) == 384
    found = endpoints.get("tiny")
    assert (found.task, found.state.ready) == ("llm/v1/chat", sdk.EndpointStateReady.READY)
    assert found.config.served_entities[0].foundation_model.display_name
    with pytest.raises(errors.BadRequest, match="context of 512"):
        endpoints.query("tiny", messages=[sdk.ChatMessage(role=sdk.ChatMessageRole.USER, content="word " * 2000)])


def test_the_sdk_of_databricks_reads_the_schema_the_metrics_and_what_the_engine_said(endpoints, chat, caplog):
    caplog.set_level("INFO", "aiquery.control")
    chat.create(model="tiny", messages=FRANCE, **SURE)
    document = json.loads(endpoints.get_open_api("tiny").contents.read())
    body = document["paths"]["/served-models/tiny/invocations"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatRequest"}
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "max_tokens", "tools", "response_format"} <= fields.keys()

    assert not caplog.records  # no MLflow signature was looked for

    def counted():
        text = endpoints.export_metrics("tiny").contents.read().decode()
        return dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("engine_"))

    of_tiny = '{endpoint_name="tiny",served_entity_name="tiny"}'
    until(lambda: float(counted().get(f"engine_tokens_given{of_tiny}", 0)) > 0)
    assert counted().keys() >= {f"engine_{name}{of_tiny}" for name in ("requests_running", "kv_tokens_used")}
    built = endpoints.build_logs("tiny", "tiny").logs
    assert "Loaded in" in built
    assert "None" not in built
    assert "context of 512 tokens" in endpoints.logs("tiny", "tiny").logs


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_an_event_per_token_and_nothing_but_data(language_served):
    body = json.dumps({"messages": COUNT, "stream": True, **SURE})
    url = language_served.url + "/serving-endpoints/tiny/invocations"
    who = f"Authorization: Bearer {language_served.ada}"
    command = ["curl", "-q", "-sS", "-N", "-i", "--max-time", "20", "-H", who, "-d", body, url]
    done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    head, _, text = done.stdout.partition(b"\r\n\r\n")
    assert b"content-type: text/event-stream" in head.lower()
    assert b"served-model-name: tiny" in head.lower()
    *events, nothing = text.split(b"\n\n")
    assert nothing == b""
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    assert events[-1] == b"data: [DONE]"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    assert len(chunks) == 1 + chunks[-1]["usage"]["completion_tokens"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == COUNTED


# The AI gateway.


@pytest.fixture
def guarded(request, language_served):
    """Make an endpoint like `tiny` that is called like the test, with an AI Gateway block."""
    workspace, name = language_served.workspace, request.node.name.replace("_", "-")[:60]
    (entity,) = workspace.get_endpoint("tiny")["config"]["served_entities"]
    config = {"served_entities": [{"name": "tiny", "entity_name": entity["entity_name"]}]}

    def make(**block):
        workspace.create_endpoint(name, config, ai_gateway=block)
        workspace.wait(name, 60)
        return name

    yield make
    workspace.delete_endpoint(name)


def test_limits_count_the_models_own_tokens(guarded, chat):
    name = guarded(rate_limits=[{"tokens": 50, "key": "endpoint", "renewal_period": "minute"}])
    asked = {"model": name, "messages": FRANCE, "max_tokens": 4, **SURE}
    used = [chat.create(**asked).usage.total_tokens]
    used.append([chunk.usage for chunk in chat.create(**asked, stream=True)][-1].total_tokens)
    assert used == [22, 22]
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as caught:
            chat.create(**asked, stream=stream)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


def test_guardrails_look_at_what_is_asked_and_at_every_piece_of_the_answer(guarded, chat):
    rails = {"input": {"invalid_keywords": ["Spain"]}, "output": {"invalid_keywords": ["paris", "6 7"]}}
    name = guarded(guardrails=rails)
    spain = [{"role": "user", "content": "What is the capital of Spain?"}]
    for messages, kind in ((spain, "input"), (FRANCE, "output")):
        with pytest.raises(openai.BadRequestError, match="Flagged: invalid_keywords") as caught:
            chat.create(model=name, messages=messages, **SURE)
        assert kind in caught.value.body["message"]
    said = []
    stream = chat.create(model=name, messages=COUNT, stream=True, **SURE)
    with pytest.raises(openai.APIError, match="Flagged: invalid_keywords"):
        said.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert COUNTED.startswith("".join(said))
    assert "6" not in "".join(said)
    rome = [{"role": "user", "content": "What is the capital of Italy?"}]
    assert chat.create(model=name, messages=rome, **SURE).choices[0].message.content == "Rome"


def test_usage_and_inference_tables_have_the_tokens(guarded, chat, language_served):
    name = guarded(usage_tracking_config={"enabled": True}, inference_table_config={"enabled": True})
    workspace = language_served.workspace
    whole = chat.create(model=name, messages=FRANCE, **SURE, extra_body={"client_request_id": "ours-1"})
    list(chat.create(model=name, messages=FRANCE, stream=True, **SURE))
    assert whole.usage.total_tokens == 22
    (used,) = (each for each in workspace.usage() if each["endpoint"] == name)
    assert (used["calls"], used["prompt_tokens"], used["completion_tokens"]) == (2, 40, 4)
    rows = workspace.payloads.table(workspace.get_endpoint(name)["id"]).to_pylist()
    assert [row["status_code"] for row in rows] == [200, 200]
    assert rows[0]["client_request_id"] == "ours-1"
    answer, chunks = (json.loads(row["response"]) for row in rows)
    assert answer["usage"]["completion_tokens"] == chunks[-1]["usage"]["completion_tokens"] == 2


# Names for models.


@pytest.fixture
def terminal(language_served):
    """Run a command of `aiquery` as somebody, beside the server."""

    def run(*arguments, user=ADA):
        where = {"AIQUERY_HOME": str(language_served.workspace.path), "AIQUERY_USER": user}
        where["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, "-c", "from aiquery.cli import main; main()", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | where)
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    return run


def test_a_model_that_the_terminal_names_is_everybodys_at_once(terminal, trained_llama, language_served):
    code, said = terminal("models", "alias", "databricks-named", trained_llama)
    assert (code, "ask the endpoint 'databricks-named'" in said) == (0, True)
    try:
        with sdk_client(language_served, "/serving-endpoints", language_served.bob) as bob:
            answer = bob.chat.completions.create(model="databricks-named", messages=FRANCE, **SURE)
            assert (answer.model, answer.choices[0].message.content) == ("named", "Paris")
            with pytest.raises(openai.PermissionDeniedError, match="may not query endpoint 'tiny'"):
                bob.chat.completions.create(model="tiny", messages=FRANCE)
        config = Config(host=language_served.url, token=language_served.bob)
        endpoints = WorkspaceClient(config=config).serving_endpoints
        assert [each.name for each in endpoints.list()] == ["databricks-named"]
        with pytest.raises(errors.PermissionDenied):
            endpoints.delete("databricks-named")
    finally:
        assert terminal("models", "unalias", "databricks-named")[0] == 0
    with (
        sdk_client(language_served, "/serving-endpoints", language_served.bob) as bob,
        pytest.raises(openai.NotFoundError),
    ):
        bob.chat.completions.create(model="databricks-named", messages=FRANCE)


def test_only_admins_serve_folders(terminal, trained_llama, language_served):
    code, said = terminal("models", "alias", "databricks-mine", trained_llama, user=BOB)
    assert (code, "may not name models" in said) == (1, True)
    config = Config(host=language_served.url, token=language_served.bob)
    entity = sdk.ServedEntityInput(entity_name=str(trained_llama))
    served = sdk.EndpointCoreConfigInput("mine", served_entities=[entity])
    with pytest.raises(errors.PermissionDenied, match="folders and models on a hub are for members"):
        WorkspaceClient(config=config).serving_endpoints.create("mine", config=served)
