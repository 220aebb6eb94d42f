"""Bodies: strict JSON, whatever its wrapping says; never more of it than an endpoint takes, nor slower."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import zlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rest_entities import HELLO, Scorer, Speaker
from rest_server import serving_entities

from aiquery_serving.errors import MalformedRequestError
from aiquery_serving.rest.json_text import parsed

SECONDS = 10
MIB = 1024 * 1024
INPUTS = b'{"inputs": [1]}'

texts = st.text(st.sampled_from('ab":\\{}[],é\u0000\n'), max_size=6)
documents = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
        max_leaves=12,
    ),
    max_size=3,
)


@pytest.fixture(scope="module")
def server():
    with serving_entities({"chat": Speaker(), "custom": Scorer(["fine"])}) as running:
        yield running


def post(server, body, endpoint="custom", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{server.url}/serving-endpoints/{endpoint}/invocations", content=body, headers=named)


@given(documents, st.booleans(), st.sampled_from([None, 1]))
def test_an_object_is_what_its_text_says(document, ascii_only, indent):
    assert parsed(json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()) == document


def _twice(document, place):
    """Write an object with one key of one of its objects twice."""
    seen = 0

    def written(value):
        nonlocal seen
        if isinstance(value, list):
            return f"[{','.join(map(written, value))}]"
        if not isinstance(value, dict):
            return json.dumps(value)
        members = []
        for key, item in value.items():
            members.append(f"{json.dumps(key)}:{written(item)}")
            if seen == place:
                members.append(f"{json.dumps(key)} : {written(item)}")
            seen += 1
        return f"{{{','.join(members)}}}"

    return written(document).encode(), seen > place


@given(documents, st.integers(0, 6))
def test_a_repeated_key_is_found_wherever_it_is(document, place):
    text, repeated = _twice(document, place)
    with pytest.raises(MalformedRequestError, match="twice") if repeated else contextlib.nullcontext():
        parsed(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "no body"),
        (b" ", "no body"),
        (b"[1]", "not a list"),
        (b'"x"', "not a string"),
        (b"null", "not null"),
        (b"7", "not a number"),
        (b"{", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": -Infinity}', "not JSON"),
        (b'{"a": 1e999}', "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1, "a": 1}', "twice"),
        (b'{"a": 1, "\\u0061": 2}', "twice"),
        (b'{"a": [{"b": ":", "b": "\\":"}]}', "twice"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "100 levels"),
        (b'{"a": ' + b"[" * 9999 + b"]" * 9999 + b"}", "not JSON"),
    ],
)
def test_what_is_not_one_plain_object_is_refused_with_the_reason(server, text, complaint):
    answer = post(server, text)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "BAD_REQUEST")
    assert complaint in answer.json()["message"]


def test_ninety_nine_lists_in_an_object_are_not_too_deep():
    assert parsed(b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}")


@pytest.mark.parametrize(
    "headers",
    [{}, {"content_type": "application/json; charset=utf-8"}, {"Context_Type": "application/json"},
     {"content_type": "text/plain"}, {"content_type": "application/x-www-form-urlencoded"}, {"content_type": "☃".encode()}],
)  # fmt: skip
def test_json_is_read_whatever_it_is_called(server, headers):
    assert post(server, INPUTS, **headers).json() == {"predictions": ["fine"]}


def test_what_is_not_json_and_does_not_claim_to_be_is_named(server):
    answer = post(server, b"a,b\n1,2\n", content_type="text/csv")
    assert (answer.status_code, answer.json()["error_code"]) == (415, "BAD_REQUEST")
    assert "text/csv" in answer.json()["message"]


def test_gzip_is_read(server):
    assert post(server, gzip.compress(INPUTS, mtime=0), content_encoding="GZip").status_code == 200


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (INPUTS, "gzip", 400),
        (gzip.compress(INPUTS, mtime=0)[:-9], "gzip", 400),
        (gzip.compress(INPUTS, mtime=0) + b"more", "gzip", 400),
        (gzip.compress(INPUTS, mtime=0) * 2, "gzip", 400),
        (gzip.compress(b" " * 40 * MIB, mtime=0), "gzip", 413),
        (zlib.compress(INPUTS), "deflate", 415),
        (gzip.compress(gzip.compress(INPUTS, mtime=0), mtime=0), "gzip, gzip", 415),
    ],
)
def test_what_cannot_be_uncompressed_is_refused(server, body, encoding, status):
    answer = post(server, body, content_encoding=encoding)
    assert (answer.status_code, answer.json()["error_code"]) == (status, "BAD_REQUEST")


def _padded(fields, size):
    document = json.dumps(fields)
    return (document[:-1] + f', "pad": "{"x" * (size - len(document) - 11)}"}}').encode()


@pytest.mark.parametrize(
    ("endpoint", "size", "status"),
    [("custom", 15 * MIB, 200), ("custom", 17 * MIB, 413), ("chat", 4 * MIB - 99, 200), ("chat", 5 * MIB, 413)],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_custom_models_take_16_mib_and_others_4(server, endpoint, size, status, chunked):
    body = _padded({**HELLO, "inputs": [1]}, size)
    answer = post(server, iter([body[: size // 2], body[size // 2 :]]) if chunked else body, endpoint)
    assert answer.status_code == status
    assert status == 200 or answer.json()["error_code"] == "BAD_REQUEST"


def test_the_openai_routes_take_what_the_endpoint_they_name_takes(server):
    url = server.url + "/serving-endpoints/chat/completions"
    assert httpx.post(url, content=_padded({**HELLO, "model": "chat"}, 5 * MIB)).status_code == 413
    assert httpx.post(url, content=_padded({**HELLO, "model": "custom"}, 5 * MIB)).status_code == 200


def _connected(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=SECONDS)


HEAD = b"POST /serving-endpoints/custom/invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"


def test_a_length_that_is_too_much_is_refused_before_anything_is_sent(server):
    with _connected(server) as client:
        client.sendall(HEAD % (100 * MIB))
        assert client.recv(12) == b"HTTP/1.1 413"


def test_a_body_that_does_not_come_is_not_waited_for_for_long():
    with serving_entities({"custom": Scorer()}, body_seconds=0.2) as server, _connected(server) as client:
        client.sendall(HEAD % 15 + b"{")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer
    assert b'"error_code":"BAD_REQUEST"' in answer


def test_who_leaves_while_sending_has_asked_nothing():
    scorer = Scorer()
    with serving_entities({"custom": scorer}) as server:
        with _connected(server) as client:
            client.sendall(HEAD % 15 + b"{")
        assert httpx.get(server.url + "/health").status_code == 200
    assert scorer.asked == []
    assert [exchange.status for exchange in server.records.exchanges] == [499, 200]
