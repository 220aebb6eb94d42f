"""Streams: data lines alone, errors where they happen, and nobody talks to a client that has gone."""

from __future__ import annotations

import json
import socket

import httpx
import pytest
from rest_entities import HELLO, STREAMED, Scorer, Speaker
from rest_server import serving_entities

from aiquery_serving.errors import ProviderUnavailableError, TooManyRequestsError

PATH = "/serving-endpoints/chat/invocations"
SECONDS = 10


def events(text):
    assert text.endswith("\n\n")
    lines = text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def ask(entity, body=STREAMED, path=PATH, **more):
    with serving_entities({"chat": entity}, **more) as server:
        return httpx.post(server.url + path, json=body)


def said(text):
    return [json.loads(event) for event in events(text)[:-1]]


def test_a_stream_is_data_lines_that_end_with_done():
    answer = ask(Speaker(["hel", "lo"]))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert (answer.headers["served-model-name"], "x-request-id" in answer.headers) == ("only", True)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in said(answer.text)] == ["hel", "lo"]
    assert events(answer.text)[-1] == "[DONE]"


@pytest.mark.parametrize("path", ["/serving-endpoints/chat/completions", "/ai-gateway/mlflow/v1/chat/completions"])
def test_the_openai_routes_stream_too(path):
    assert len(said(ask(Speaker(["hel", "lo"]), {**STREAMED, "model": "chat"}, path).text)) == 2


def test_the_chunk_of_usage_comes_to_who_asks_for_it():
    answer = ask(Speaker(["hi"]), {**STREAMED, "stream_options": {"include_usage": True}})
    assert said(answer.text)[-1]["usage"] == {"prompt_tokens": 4}


def test_a_model_that_cannot_stream_says_all_in_one_piece():
    class Whole(Speaker):
        stream = None

    chunks = said(ask(Whole()).text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "hello there"


def test_a_custom_model_asked_to_stream_gives_its_answer_as_an_event():
    assert said(ask(Scorer(), {"inputs": [1], "stream": True}).text) == [{"predictions": ["inputs"]}]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TooManyRequestsError("full", retry_after=3.2), 429, "REQUEST_LIMIT_EXCEEDED"),
        (KeyError("private"), 500, "INTERNAL_ERROR"),
    ],
)
@pytest.mark.parametrize("where", ["before the answer", "before the first chunk"])
def test_an_error_before_the_first_chunk_is_a_plain_answer(error, status, code, where):
    entity = Speaker(fails=error) if where == "before the answer" else Speaker([error])
    answer = ask(entity)
    assert (answer.status_code, answer.json()["error_code"]) == (status, code)
    assert "private" not in answer.text
    assert answer.headers.get("retry-after") == ("4" if status == 429 else None)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ProviderUnavailableError("it broke"), "TEMPORARILY_UNAVAILABLE"), (KeyError("x"), "INTERNAL_ERROR")],
)
def test_an_error_in_mid_stream_is_the_last_event_and_nothing_is_done(error, code):
    answer = ask(Speaker(["hel", error]))
    last = json.loads(events(answer.text)[-1])
    assert (answer.status_code, last["error_code"]) == (200, code)
    assert last["error"] == {"message": last["message"], "code": code}
    assert "[DONE]" not in answer.text


def test_who_leaves_in_mid_stream_is_hung_up_on_at_once():
    entity = Speaker(["hel"], hangs=True)
    with serving_entities({"chat": entity}) as server:
        with httpx.stream("POST", server.url + PATH, json=STREAMED) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
        assert entity.hung_up.wait(SECONDS)
    assert [exchange.status for exchange in server.records.exchanges] == [499]


def _send(server, body):
    host, port = server.url.removeprefix("http://").split(":")
    text = json.dumps(body).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(SECONDS)
    client.connect((host, int(port)))
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(text)}\r\n\r\n".encode()
    client.sendall(head + text)
    return client


def test_a_model_speaks_no_faster_than_its_client_listens_and_not_for_ever():
    entity = Speaker(["x" * 100_000] * 1000)
    with serving_entities({"chat": entity}, body_seconds=0.3) as server, _send(server, STREAMED) as client:
        assert client.recv(12) == b"HTTP/1.1 200"
        assert entity.hung_up.wait(SECONDS)
    assert entity.said < 100
    assert [exchange.status for exchange in server.records.exchanges] == [499]


def test_who_leaves_before_a_whole_answer_is_not_answered():
    entity = Speaker(hangs=True)
    with serving_entities({"chat": entity}) as server:
        with _send(server, HELLO):
            assert entity.began.wait(SECONDS)
        assert entity.cancelled.wait(SECONDS)
    assert [exchange.status for exchange in server.records.exchanges] == [499]
