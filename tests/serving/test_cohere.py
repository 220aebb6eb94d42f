"""What only Cohere has: its names for parameters, trial keys, thoughts, kinds of embeddings."""

from dataclasses import replace

import pytest
from cohere_server import CohereServer
from external_models import HELLO, JSON_SCHEMA, SCHEMA, TOOL, Recorded, answer
from external_models import ask as ask_over
from provider_models import ask, declared, pieces, put_together, ref, served
from providers import KEY, vector

from aiquery_serving.errors import InvalidRequestError, ProviderResponseError, ProviderUnavailableError
from aiquery_serving.messages import EMBEDDINGS, Usage


@pytest.fixture
def cohere():
    with CohereServer() as server:
        yield server


def model_at(server, **declaration):
    return declared("cohere", cohere_api_base=server.url, cohere_api_key=ref("key"), **declaration)


def test_parameters_go_by_coheres_names(cohere):
    asked = {"top_p": 0.5, "top_k": 3, "stop": "x", "max_completion_tokens": 9, "seed": 1, "n": 1, "user": "u",
             "frequency_penalty": 0.1, "response_format": JSON_SCHEMA, "usage_context": {"a": "b"}}  # fmt: skip
    ask(model_at(cohere), HELLO | asked)
    assert cohere.requests == [
        {"model": "command-a-03-2025", **HELLO, "p": 0.5, "k": 3, "stop_sequences": ["x"], "max_tokens": 9, "seed": 1,
         "frequency_penalty": 0.1, "response_format": {"type": "json_object", "schema": SCHEMA}}
    ]  # fmt: skip


def test_what_only_cohere_knows_passes_through(cohere):
    body = HELLO | {"safety_mode": "STRICT", "thinking": {"type": "enabled"}}
    response = ask(model_at(cohere), body)
    text, *_ = put_together(pieces(model_at(cohere), body))
    assert cohere.requests[0]["safety_mode"] == "STRICT"
    assert response.body["choices"][0]["message"]["content"] == text == "echo: good morning"


@pytest.mark.parametrize(("choice", "sent"), [("required", "REQUIRED"), ("none", "NONE"), ("auto", None)])
def test_the_choice_of_tools_goes_by_coheres_words(cohere, choice, sent):
    ask(model_at(cohere), HELLO | {"tools": [TOOL], "tool_choice": choice})
    assert cohere.requests[0].get("tool_choice") == sent


def test_one_tool_cannot_be_chosen_by_name(cohere):
    named = {"type": "function", "function": {"name": "find"}}
    with pytest.raises(InvalidRequestError, match=r"'find'.*'required'"):
        ask(model_at(cohere), HELLO | {"tools": [TOOL], "tool_choice": named})


@pytest.mark.parametrize("base", ["", "/v1", "/v2", "/"])
def test_the_base_may_name_a_version(cohere, base):
    ask(declared("cohere", cohere_api_base=cohere.url + base, cohere_api_key=ref("key")), HELLO)
    assert set(cohere.stats.paths) == {"/v2/chat"}


def test_embeddings_come_in_the_order_of_their_texts_with_what_they_used(cohere):
    body = {"input": ["a b", "c"], "dimensions": 4, "encoding_format": "base64"}
    response = ask(model_at(cohere, name="embed-v4.0", task=EMBEDDINGS), body)
    assert [item["embedding"] for item in response.body["data"]] == [vector("a b", 4), vector("c", 4)]
    assert [item["index"] for item in response.body["data"]] == [0, 1]
    assert response.body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert response.usage == Usage(prompt_tokens=3)
    assert cohere.requests[0]["input_type"] == "search_document"


def test_the_kind_of_embedding_may_be_said(cohere):
    body = {"input": "a", "input_type": "search_query", "extra_params": {"truncate": "END"}}
    ask(model_at(cohere, task=EMBEDDINGS), body)
    assert cohere.requests[0] == {"model": "command-a-03-2025", "texts": ["a"], "input_type": "search_query",
                                  "truncate": "END", "embedding_types": ["float"]}  # fmt: skip


@pytest.mark.parametrize("inputs", [[1, 2], [], None, [["a"]]])
def test_inputs_that_are_no_texts_are_refused(cohere, inputs):
    with pytest.raises(InvalidRequestError, match="text"):
        ask(model_at(cohere, task=EMBEDDINGS), {"input": inputs})


def test_a_trial_key_is_told_what_is_left():
    with CohereServer(trial=True) as server:
        hint = ask(model_at(server), HELLO).hint
    assert (hint.requests.limit, hint.requests.remaining) == (20, 7)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("llm/v1/chat", {"id": "x"}),
        ("llm/v1/chat", {"finish_reason": "ERROR", "message": {"role": "assistant", "content": []}}),
        (EMBEDDINGS, {"embeddings": {"float": [[1.0], [2.0]]}}),
        (EMBEDDINGS, {"embeddings": {"float": [None]}}),
        (EMBEDDINGS, {}),
    ],
)
def test_an_answer_that_lacks_its_parts_is_an_error(task, said):
    model = declared("cohere", task=task, cohere_api_key="{{secrets/prod/key}}")
    body = HELLO if task != EMBEDDINGS else {"input": "a"}
    with pytest.raises(ProviderResponseError, match="cohere model 'command-a-03-2025'"):
        ask_over(model, body, transport=Recorded(answer(body=said)))


def test_a_model_that_gives_up_within_a_stream_is_an_error(cohere):
    def gives_up(_server, _body, reply):
        last = reply.packets[-1].replace(b"COMPLETE", b"ERROR")
        return replace(reply, packets=(*reply.packets[:-1], last))

    cohere.script.append(gives_up)
    with pytest.raises(ProviderUnavailableError, match="gave up"):
        pieces(model_at(cohere), HELLO)


def test_a_stream_may_end_as_openais_do(cohere):
    cohere.script.append(lambda _server, _body, reply: replace(reply, packets=(*reply.packets, b"data: [DONE]\n\n")))
    text, *_ = put_together(pieces(model_at(cohere), HELLO))
    assert text == "echo: good morning"


def test_it_is_asked_at_its_own_place_when_no_other_is_named():
    transport = Recorded(answer(body={"message": {"content": []}}))
    ask_over(declared("cohere", cohere_api_key="{{secrets/prod/key}}"), HELLO, transport=transport)
    url, headers, _ = transport.posts[0]
    assert url == "https://api.cohere.com/v2/chat"
    assert headers["authorization"] == f"Bearer {KEY}"


def test_unknown_parameters_get_coheres_own_answer():
    with served("cohere") as (_, config), pytest.raises(Exception, match="parameter 'wish' is not a valid field"):
        ask(declared("cohere", **config), HELLO | {"wish": 1})
