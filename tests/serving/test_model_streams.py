"""Custom models that answer piece by piece, and agents that answer at once."""

from __future__ import annotations

import json

import mlflow.pyfunc
import pytest
from mlflow.types import ParamSchema, ParamSpec
from mlflow.types.agent import ChatAgentChunk, ChatAgentMessage, ChatAgentResponse
from mlflow.types.llm import ChatChunkChoice, ChatCompletionChunk, ChatCompletionResponse
from mlflow.types.responses import ResponsesAgentResponse, ResponsesAgentStreamEvent

from aiquery_serving.errors import InvalidRequestError, ModelError
from aiquery_serving.messages import StreamingModel

HI = [{"role": "user", "content": "hi"}]


class Talker(mlflow.pyfunc.ChatModel):
    def predict(self, context, messages, params):
        text = f"{messages[-1].content} at {params.temperature}"
        return ChatCompletionResponse.from_dict(
            {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
        )

    def predict_stream(self, context, messages, params):
        for word in (messages[-1].content, f"{params.temperature}"):
            yield ChatCompletionChunk(choices=[ChatChunkChoice.from_dict({"index": 0, "delta": {"content": word}})])


class Agent(mlflow.pyfunc.ChatAgent):
    def predict(self, messages, context=None, custom_inputs=None):
        said = ChatAgentMessage(role="assistant", content=messages[-1].content, id="1")
        return ChatAgentResponse(messages=[said], custom_outputs=custom_inputs)

    def predict_stream(self, messages, context=None, custom_inputs=None):
        for word in ("a", (custom_inputs or {}).get("word", "b")):
            yield ChatAgentChunk(delta=ChatAgentMessage(role="assistant", content=word, id="1"))


class Responder(mlflow.pyfunc.ResponsesAgent):
    def predict(self, request):
        item = self.create_text_output_item(text=request.input[-1].content, id="1")
        return ResponsesAgentResponse(output=[item], custom_outputs=request.custom_inputs)

    def predict_stream(self, request):
        yield ResponsesAgentStreamEvent(**self.create_text_delta(delta="h", item_id="1"))
        item = self.create_text_output_item(text=request.input[-1].content, id="1")
        yield ResponsesAgentStreamEvent(type="response.output_item.done", item=item)


#: What the model below has let go of.
closed = []


class Words(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["prompt"]

    def predict_stream(self, context, model_input, params=None):
        last = model_input["prompt"]
        try:
            for number in range((params or {}).get("count", 2)):
                if last == "bad" and number:
                    raise ValueError("no more words")
                yield {"word": number} if number else "first"
        finally:
            closed.append(True)


class Mute(mlflow.pyfunc.ChatAgent):
    def predict(self, messages, context=None, custom_inputs=None):
        return ChatAgentResponse(messages=[ChatAgentMessage(role="assistant", content="whole", id="1")])


@pytest.fixture(scope="module")
def words(serve, sign):
    signed = sign({"prompt": "string"}, ["string"])
    signed.params = ParamSchema([ParamSpec("count", "integer", 2)])
    return serve(Words(), signature=signed)


def pieces(entity, body):
    found = list(entity.stream(body))
    assert json.loads(json.dumps(found)) == found
    return found


@pytest.mark.filterwarnings("ignore:.*ChatModel:FutureWarning")  # deprecated, and still served
def test_a_chat_model_streams_chunks_with_the_parameters_of_the_body(serve):
    entity = serve(Talker())
    assert isinstance(entity, StreamingModel)
    assert entity.can_stream
    chunks = pieces(entity, {"messages": HI, "temperature": 0.25})
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["hi", "0.25"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    whole = entity.query({"messages": HI, "temperature": 0.25})
    assert whole["choices"][0]["message"]["content"] == "hi at 0.25"


def test_a_chat_agent_takes_custom_inputs_whole_and_in_pieces(serve):
    entity = serve(Agent())
    body = {"messages": HI, "custom_inputs": {"word": "c"}, "client_request_id": "7"}
    assert [chunk["delta"]["content"] for chunk in pieces(entity, body)] == ["a", "c"]
    whole = entity.query(body)
    assert whole["messages"][0]["content"] == "hi"
    assert whole["custom_outputs"] == {"word": "c"}


def test_a_responses_agent_takes_custom_inputs_whole_and_in_pieces(serve, tmp_path, monkeypatch):
    entity = serve(Responder())
    monkeypatch.chdir(tmp_path)
    body = {"input": HI, "custom_inputs": {"word": "c"}}
    delta, done = pieces(entity, body)
    assert (delta["type"], delta["delta"]) == ("response.output_text.delta", "h")
    assert done["item"]["content"][0]["text"] == "hi"
    whole = entity.query(body)
    assert whole["output"][0]["content"][0]["text"] == "hi"
    assert whole["custom_outputs"] == {"word": "c"}
    assert list(tmp_path.iterdir()) == [], "MLflow traced the agent into the current folder"


def test_any_python_model_streams_and_what_is_no_object_is_a_prediction(words):
    assert pieces(words, {"prompt": "hi", "count": 3}) == [{"predictions": "first"}, {"word": 1}, {"word": 2}]


def test_hanging_up_closes_the_models_generator(words):
    closed.clear()
    stream = words.stream({"prompt": "hi"})
    next(stream)
    assert not closed
    stream.close()
    assert closed


def test_an_error_after_the_first_piece_is_the_models(words):
    stream = words.stream({"prompt": "bad"})
    assert next(stream) == {"predictions": "first"}
    with pytest.raises(ModelError, match="ValueError: no more words"):
        next(stream)


def test_parameters_of_another_type_are_refused_before_the_first_piece(words):
    with pytest.raises(InvalidRequestError, match="count"):
        next(words.stream({"prompt": "hi", "count": "many"}))


def test_a_model_without_predict_stream_says_so(serve):
    entity = serve(Mute())
    assert not entity.can_stream
    with pytest.raises(InvalidRequestError, match=r"has no predict_stream\(\)"):
        next(entity.stream({"messages": HI}))
