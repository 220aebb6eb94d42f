"""Errors: one shape, Databricks' codes, and nothing of the inside; and who may ask at all."""

from __future__ import annotations

import base64
import logging

import httpx
import pytest
from rest_entities import HELLO, Scorer, Speaker
from rest_server import serving_entities

from aiquery_serving import errors

PATH = "/serving-endpoints/chat/invocations"


def ask(error):
    with serving_entities({"chat": Speaker(fails=error)}) as server:
        return httpx.post(server.url + PATH, json=HELLO, headers={"x-request-id": "mine-1"})


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (errors.TooManyRequestsError("full", retry_after=0.2), 429, "REQUEST_LIMIT_EXCEEDED", "1"),
        (errors.TooManyRequestsError("full", retry_after=59.1), 429, "REQUEST_LIMIT_EXCEEDED", "60"),
        (errors.OverloadedError("busy"), 503, "TEMPORARILY_UNAVAILABLE", "1"),
        (errors.EndpointNotReadyError("loading"), 503, "TEMPORARILY_UNAVAILABLE", "1"),
        (errors.EndpointFailedError("broken"), 404, "RESOURCE_DOES_NOT_EXIST", None),
        (errors.PermissionDeniedError("no"), 403, "PERMISSION_DENIED", None),
        (errors.GuardrailError("no", finish_reason="input_guardrail_triggered"), 400, "BAD_REQUEST", None),
        (errors.ProviderRequestError("wrong"), 400, "BAD_REQUEST", None),
    ],
)
def test_an_error_has_its_code_its_status_and_when_to_come_back(error, status, code, retry_after):
    answer = ask(error)
    assert (answer.status_code, answer.json()) == (status, {"error_code": code, "message": str(error)})
    assert answer.headers.get("retry-after") == retry_after
    assert answer.headers["content-type"] == "application/json"


def test_a_bug_is_told_to_the_log_and_to_nobody_else(caplog):
    with caplog.at_level(logging.ERROR, "aiquery.rest"):
        answer = ask(KeyError("private"))
    assert (answer.status_code, answer.json()["error_code"]) == (500, "INTERNAL_ERROR")
    assert "mine-1" in answer.json()["message"]
    assert "private" not in answer.text
    assert "mine-1" in caplog.text
    assert "private" in caplog.text


@pytest.fixture(scope="module")
def server():
    with serving_entities({"chat": Speaker(), "custom": Scorer()}) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("POST", "/serving-endpoints"),
        ("POST", "/serving-endpoints/chat"),
        ("POST", "/serving-endpoints//invocations"),
        ("POST", "/serving-endpoints/chat/served-models//invocations"),
        ("GET", "/serving-endpoints/models"),
        ("POST", "/ai-gateway/other/v1/chat/completions"),
        ("GET", "/metrics"),
    ],
)
def test_a_path_that_is_not_there_is_named(server, method, path):
    answer = httpx.request(method, server.url + path)
    assert (answer.status_code, answer.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")
    assert path.rstrip("/") in answer.json()["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", PATH, "POST"),
        ("OPTIONS", "/serving-endpoints/chat/completions", "POST"),
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/.well-known/databricks-config", "GET, HEAD"),
    ],
)
def test_another_method_is_refused_with_the_right_one(server, method, path, allowed):
    answer = httpx.request(method, server.url + path)
    assert (answer.status_code, answer.json()["error_code"]) == (405, "ENDPOINT_NOT_FOUND")
    assert answer.headers["allow"] == allowed


def test_a_request_keeps_its_sane_id_and_gets_one_for_another(server):
    ids = [
        httpx.get(server.url + "/health", headers=headers).headers["x-request-id"]
        for headers in ({"x-request-id": "abc-1.2"}, {"x-request-id": "a b"}, {"x-request-id": "x" * 200}, {})
    ]
    assert ids[0] == "abc-1.2"
    assert len(set(ids)) == 4
    assert all(len(each) < 40 for each in ids)


def test_nobody_needs_a_token_for_what_says_nothing(server):
    assert httpx.get(server.url + "/.well-known/databricks-config").json() == {}
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}
    assert httpx.head(server.url + "/health").status_code == 200


def test_a_server_that_closes_says_so(server):
    server.app.closing = True
    try:
        assert httpx.get(server.url + "/ready").status_code == 503
        assert httpx.get(server.url + "/health").status_code == 200
    finally:
        server.app.closing = False
    assert httpx.get(server.url + "/ready").status_code == 200


def _basic(token, user="token"):
    return "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()


@pytest.fixture(scope="module")
def guarded():
    """A server on which everybody needs a token; `.token` is ada's, who is an admin, `.other` is somebody's."""
    with serving_entities({"chat": Speaker()}, local_user=None) as running:
        running.token, _ = running.serves.access.create_token("ada", by="ada")
        running.other, _ = running.serves.access.create_token("bob", by="ada")
        yield running


def _asked(server, authorization=None, **headers):
    named = headers | ({"authorization": authorization} if authorization else {})
    return httpx.post(server.url + PATH, json=HELLO, headers=named)


@pytest.mark.parametrize("scheme", ["Bearer {}", "bearer  {}", "basic"])
def test_a_token_opens_the_server_both_ways(guarded, scheme):
    header = _basic(guarded.token) if scheme == "basic" else scheme.format(guarded.token)
    assert _asked(guarded, header).status_code == 200


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer nonsense", "Basic ???", _basic("x"), _basic("x", "ada"), "Digest x", "token"]
)
def test_without_a_known_token_nothing_is_answered(guarded, header):
    answer = _asked(guarded, header)
    assert (answer.status_code, answer.json()["error_code"]) == (401, "UNAUTHENTICATED")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_who_may_not_query_an_endpoint_is_refused(guarded):
    answer = _asked(guarded, f"Bearer {guarded.other}")
    assert (answer.status_code, answer.json()["error_code"]) == (403, "PERMISSION_DENIED")
    assert "bob" in answer.json()["message"]


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
def test_what_a_proxy_passes_on_is_not_the_local_users(name):
    with serving_entities({"chat": Speaker()}, local_user="ada") as server:
        answer = httpx.post(f"{server.url}/serving-endpoints/chat/invocations", json={}, headers={name: "203.0.113.7"})
    assert (answer.status_code, answer.json()["error_code"]) == (401, "UNAUTHENTICATED")


def test_a_local_server_takes_no_token_and_any_until_the_first_is_given_out():
    with serving_entities({"chat": Speaker()}, local_user="ada") as server:
        assert _asked(server).status_code == 200
        assert _asked(server, "Bearer whatever").status_code == 200
        token, _ = server.serves.access.create_token("ada", by="ada")
        assert _asked(server, f"Bearer {token}").status_code == 200
        assert _asked(server, "Bearer whatever").status_code == 401
        assert _asked(server).status_code == 401
    assert {exchange.caller for exchange in server.records.exchanges if exchange.status == 200} == {"ada"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example:8080"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        ({"host": "localhost:8080", "origin": "http://localhost:8080"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "192.168.1.7"}, 200),
    ],
)
def test_a_strangers_web_page_cannot_ask_as_the_user_of_this_machine(server, headers, status):
    assert _asked(server, **headers).status_code == status


def test_who_failed_is_in_the_log():
    with serving_entities({"chat": Speaker(fails=errors.ProviderRequestError("too hot"))}) as server:
        assert _asked(server).status_code == 400
    (exchange,) = [exchange for exchange in server.records.exchanges if exchange.endpoint]
    assert (exchange.status, exchange.served_entity) == (400, "only")
