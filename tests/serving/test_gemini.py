"""What only Gemini has: candidates, thoughts and their signatures, blocked prompts, embeddings in a batch."""

import orjson
import pytest
from external_models import HELLO, JSON_SCHEMA, SCHEMA, TOOL, Recorded, answer
from external_models import ask as ask_over
from gemini_server import GeminiServer
from provider_models import ask, declared, pieces, put_together, ref
from providers import KEY, vector

from aiquery_serving.entities.external.gemini_stream import GeminiReader
from aiquery_serving.errors import InvalidRequestError, ProviderRequestError, ProviderResponseError
from aiquery_serving.messages import EMBEDDINGS, Usage


@pytest.fixture
def gemini():
    with GeminiServer() as server:
        yield server


def model_at(server, name="gemini-2.5-flash", **declaration):
    return declared("palm", name, palm_api_base=server.url, palm_api_key=ref("key"), **declaration)


def saying(text):
    return {"messages": [{"role": "user", "content": text}]}


def test_settings_go_by_geminis_names(gemini):
    asked = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "stop": ["x", "y"], "max_tokens": 9, "seed": 1,
             "presence_penalty": 0.1, "frequency_penalty": 0.2, "response_format": JSON_SCHEMA, "user": "u",
             "safetySettings": [], "reasoning_effort": "low"}  # fmt: skip
    ask(model_at(gemini), HELLO | asked)
    assert gemini.requests[0] == {
        "contents": [{"role": "user", "parts": [{"text": "good morning"}]}],
        "safetySettings": [],
        "generationConfig": {
            "temperature": 0.5, "topP": 0.9, "topK": 3, "presencePenalty": 0.1, "frequencyPenalty": 0.2, "seed": 1,
            "maxOutputTokens": 9, "stopSequences": ["x", "y"], "responseMimeType": "application/json",
            "responseJsonSchema": SCHEMA, "thinkingConfig": {"thinkingBudget": 1024},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "effort", "config"),
    [
        ("gemini-2.5-pro", "none", {"thinkingBudget": 0}),
        ("gemini-2.5-pro", "high", {"thinkingBudget": 24_576}),
        ("gemini-3-pro", "high", {"thinkingLevel": "high"}),
        ("gemini-3-flash", "none", {"thinkingLevel": "minimal"}),
    ],
)
def test_effort_is_a_budget_or_a_level(gemini, name, effort, config):
    ask(model_at(gemini, name), HELLO | {"reasoning_effort": effort})
    assert gemini.requests[0]["generationConfig"]["thinkingConfig"] == config


def test_several_answers_come_with_their_numbers(gemini):
    response = ask(model_at(gemini), HELLO | {"n": 2})
    chunks = pieces(model_at(gemini), HELLO | {"n": 2})
    assert [choice["index"] for choice in response.body["choices"]] == [0, 1]
    ends = [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    roles = [choice["index"] for chunk in chunks for choice in chunk["choices"] if "role" in choice["delta"]]
    assert ends == roles == [0, 1]
    assert chunks[-1]["choices"] == []


def test_thoughts_are_left_out_and_counted(gemini):
    response = ask(model_at(gemini), saying("thinks"))
    text, _, _, usage = put_together(pieces(model_at(gemini), saying("thinks")))
    assert response.body["choices"][0]["message"]["content"] == text == "echo: thinks"
    assert response.usage == Usage(prompt_tokens=1, completion_tokens=5)
    assert usage["completion_tokens"] == 5


def test_a_blocked_prompt_is_an_answer_that_was_filtered(gemini):
    choice = ask(model_at(gemini), saying("blocked")).body["choices"][0]
    _, _, finish, usage = put_together(pieces(model_at(gemini), saying("blocked") | {"n": 2}))
    assert (choice["message"]["content"], choice["finish_reason"], finish) == ("", "content_filter", "content_filter")
    assert usage["prompt_tokens"] == 1


def test_a_tool_is_called_and_answered_with_the_signature_of_its_thought(gemini):
    body = HELLO | {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "find"}}}
    said = ask(model_at(gemini), body).body["choices"][0]["message"]
    chunks = pieces(model_at(gemini), body)
    streamed = next(
        call for chunk in chunks for choice in chunk["choices"] for call in choice["delta"].get("tool_calls", [])
    )
    assert streamed["extra_content"] == said["tool_calls"][0]["extra_content"]
    call_id = said["tool_calls"][0]["id"]
    found = [
        {"role": "tool", "tool_call_id": call_id, "content": '{"lat": 1}'},
        {"role": "tool", "tool_call_id": call_id, "content": "seen"},
    ]
    ask(model_at(gemini), {"messages": [*HELLO["messages"], said, *found], "tools": [TOOL], "tool_choice": "none"})
    config = gemini.requests[0]["toolConfig"]["functionCallingConfig"]
    assert config == {"mode": "ANY", "allowedFunctionNames": ["find"]}
    turns = gemini.requests[-1]["contents"]
    assert [turn["role"] for turn in turns] == ["user", "model", "user"]
    call = {"name": "find", "args": {"city": "good morning"}}
    assert turns[1]["parts"] == [{"functionCall": call, "thoughtSignature": "c2ln"}]
    assert [part["functionResponse"] for part in turns[2]["parts"]] == [
        {"name": "find", "response": {"lat": 1}},
        {"name": "find", "response": {"result": "seen"}},
    ]


def test_calls_that_come_one_after_the_other_have_places_and_names_of_their_own():
    reader = GeminiReader("m", 0.0, who="palm model 'm'")
    parts = [{"functionCall": {"name": name, "args": {}}} for name in ("one", "two")]
    events = [{"responseId": "r", "candidates": [{"content": {"parts": [part]}}]} for part in parts]
    data = b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events)
    chunks = [chunk["choices"][0]["delta"] for chunk in reader.feed(data)]
    calls = [call for delta in chunks for call in delta.get("tool_calls", [])]
    assert [(call["index"], call["id"]) for call in calls] == [(0, "call_r_0"), (1, "call_r_1")]
    assert not reader.done


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("data:image/png;base64,aGk=", {"inlineData": {"mimeType": "image/png", "data": "aGk="}}),
        ("https://a/b.png?x=1", {"fileData": {"mimeType": "image/png", "fileUri": "https://a/b.png?x=1"}}),
        ("gs://bucket/b", {"fileData": {"mimeType": "image/jpeg", "fileUri": "gs://bucket/b"}}),
    ],
)
def test_pictures_are_sent_or_pointed_at(gemini, url, part):
    content = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": url}}]
    ask(model_at(gemini), saying(content))
    assert gemini.requests[0]["contents"][0]["parts"] == [{"text": "what is it"}, part]


def test_a_part_that_cannot_be_sent_is_named(gemini):
    with pytest.raises(InvalidRequestError, match="'input_audio'"):
        ask(model_at(gemini), saying([{"type": "input_audio", "input_audio": {}}]))


def test_arguments_that_are_not_json_are_named(gemini):
    call = {"id": "c9", "function": {"name": "find", "arguments": "{"}}
    with pytest.raises(InvalidRequestError, match="'c9'"):
        ask(model_at(gemini), {"messages": [{"role": "assistant", "tool_calls": [call]}]})


def test_embeddings_come_in_one_batch(gemini):
    model = model_at(gemini, "gemini-embedding-001", task=EMBEDDINGS)
    response = ask(model, {"input": ["a", "b"], "dimensions": 4, "taskType": "RETRIEVAL_QUERY"})
    assert [item["embedding"] for item in response.body["data"]] == [vector("a", 4), vector("b", 4)]
    assert gemini.requests[0]["requests"][0] == {
        "model": "models/gemini-embedding-001", "taskType": "RETRIEVAL_QUERY", "outputDimensionality": 4,
        "content": {"parts": [{"text": "a"}]},
    }  # fmt: skip


def test_the_key_is_a_header_and_no_part_of_the_url():
    transport = Recorded(answer(body={"candidates": [{"finishReason": "MAX_TOKENS"}]}))
    response = ask_over(declared("palm", palm_api_key="{{secrets/prod/key}}"), HELLO, transport=transport)
    url, headers, _ = transport.posts[0]
    assert url == "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"
    assert headers["x-goog-api-key"] == KEY
    choice = response.body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")


@pytest.mark.parametrize("said", [{}, {"candidates": []}, {"candidates": [{}]}, {"candidates": ["x"]}])
def test_an_answer_without_content_is_an_error(said):
    with pytest.raises(ProviderResponseError, match="without content"):
        ask_over(declared("palm", palm_api_key="{{secrets/prod/key}}"), HELLO, transport=Recorded(answer(body=said)))


def test_unknown_parameters_get_geminis_own_answer(gemini):
    with pytest.raises(ProviderRequestError, match='Unknown name "wish"'):
        ask(model_at(gemini), HELLO | {"wish": 1})
    assert orjson.dumps(gemini.requests[0]["wish"]) == b"1"
