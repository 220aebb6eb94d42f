"""Keys and tokens go where they are used and nowhere else: no answer, log, metric, document, table or file shows one."""

from __future__ import annotations

import base64
import json
import logging

import httpx
import pytest
from loopback import LoopbackServer, Reply

import aiquery
from aiquery.server import serve

#: Not one of them looks like a key.
KEY, OTHER, BEARER, VARIABLE = (f"{name}-horse-battery-staple" for name in ("plain", "stored", "bearer", "variable"))
#: What providers are asked; after a 401 they are not asked again.
SAID = (
    "hello",
    *(f"say {status}" for status in (400, 404, 413, 422, 500)),
    "say nonsense",
    "break off",
    "say 401",
)
ENDPOINTS = "/api/2.0/serving-endpoints"
ANSWER = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def indiscreet(request):
    """Answer as a provider that repeats the caller's key in every error, as some do."""
    key = request.headers.get("authorization", "") + request.headers.get("x-key", "")
    body = request.body.decode()
    error = json.dumps({"error": {"message": f"Incorrect API key provided: {key}", "param": key, "code": key}}).encode()
    for status in (400, 401, 404, 413, 422, 500):
        if f"say {status}" in body:
            return Reply(status=status, body=error)
    if "say nonsense" in body:
        return Reply(body=f"<html>{key}</html>".encode(), headers={"content-type": "text/html"})
    if "break off" in body:
        text = b'data: {"choices": [{"index": 0, "delta": {"content": "h"}}]}\n\ndata: ' + error + b"\n\n"
        return Reply(body=text, headers={"content-type": "text/event-stream"})
    return Reply(body=json.dumps(ANSWER).encode())


def forms(secret):
    """Return how a secret could stand somewhere: as it is, or encoded."""
    return [
        secret.encode(),
        base64.b64encode(secret.encode()).rstrip(b"="),
        base64.b64encode(f"token:{secret}".encode()).rstrip(b"="),
        secret.encode().hex().encode(),
    ]


class Seen:
    """All that came out of a server, and who asks it."""

    def __init__(self, url, token):
        self.texts = []
        self.http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=30)

    def __call__(self, method, path, body=None, **more):
        answer = self.http.request(method, path, json=body, **more)
        self.texts.append((f"{method} {path} {body}", answer.content + repr(answer.headers).encode()))
        return answer


def external(provider, **config):
    model = {"provider": "openai", "name": "gpt", "task": "llm/v1/chat"}
    return {"external_model": {**model, "openai_config": {"openai_api_base": f"{provider.origin}/v1", **config}}}


@pytest.fixture
def world(tmp_path, caplog):
    """A server on a workspace with every kind of secret in it, an indiscreet provider, and all logs."""
    for name in ("httpx", "httpcore"):  # the client of the test
        caplog.set_level(logging.WARNING, name)
    caplog.set_level(logging.DEBUG)
    seen = []

    def answer(request):
        seen.append(request)
        return indiscreet(request)

    with LoopbackServer(answer) as provider, aiquery.Workspace(tmp_path / "home", user="ada") as workspace:
        token, _ = workspace.access.create_token("ada", by="ada")
        other, _ = workspace.access.create_token("bob", by="ada")
        for name, secret in {"stored": OTHER, "bearer": BEARER, "variable": VARIABLE}.items():
            workspace.secrets.put("keys", name, secret)
        workspace.control.external.create(
            workspace._who, "there", provider.origin, headers={"x-key": "{{secrets/keys/stored}}"},
            bearer_token="{{secrets/keys/bearer}}",
        )  # fmt: skip
        with serve(workspace, access_log=True) as server:
            provider.seen, ask = seen, Seen(server.url, token)
            with ask.http:
                yield workspace, provider, ask, [token, other, KEY, OTHER, BEARER, VARIABLE]


def use_everything(workspace, provider, ask):
    """Manage and query every kind of endpoint, well and badly."""
    plain, stored = (
        external(provider, openai_api_key_plaintext=KEY),
        external(provider, openai_api_key="{{secrets/keys/stored}}"),
    )
    ours = {
        "name": "m",
        "entity_name": "a.b.c",
        "entity_version": "1",
        "environment_vars": {"K": "{{secrets/keys/variable}}"},
    }
    table = {"inference_table_config": {"enabled": True}, "usage_tracking_config": {"enabled": True}}
    ask("POST", ENDPOINTS, {"name": "plain", "config": {"served_entities": [plain]}, "ai_gateway": table})
    ask("POST", ENDPOINTS, {"name": "stored", "config": {"served_entities": [stored]}, "ai_gateway": table})
    ask("POST", ENDPOINTS, {"name": "ours", "config": {"served_entities": [ours]}})
    for wrong in (
        external(provider, openai_api_key_plaintext=KEY, openai_api_key="{{secrets/keys/stored}}"),
        external(provider, openai_api_key_plaintext={"is": KEY}),
        external(provider, openai_api_key=KEY, openai_api_type=KEY),
        external(provider, openai_api_key_plaintext=KEY, openai_api_base="http://169.254.169.254/"),
        {"external_model": {"provider": "openai", "openai_config": {"openai_api_key_plaintext": KEY}, "task": [KEY]}},
    ):
        ask("POST", ENDPOINTS, {"name": "wrong", "config": {"served_entities": [wrong]}})
        ask("PUT", f"{ENDPOINTS}/plain/config", {"served_entities": [wrong]})
        ask("GET", f"{ENDPOINTS}/wrong")
        ask("DELETE", f"{ENDPOINTS}/wrong")
    ask("PUT", f"{ENDPOINTS}/plain/config", {"served_entities": [plain]})
    for name in ("plain", "stored", "ours"):
        for path in (
            "",
            "/openapi",
            "/metrics",
            "/served-models/gpt/logs",
            "/served-models/gpt/build-logs",
            "/served-models/m/build-logs",
        ):
            ask("GET", f"{ENDPOINTS}/{name}{path}")
        for said in SAID:
            for stream in (False, True):
                body = {"messages": [{"role": "user", "content": said}], "stream": stream}
                ask("POST", f"/serving-endpoints/{name}/invocations", body)
    for said in ("hello", "say 400", "say 500"):
        ask(
            "POST",
            "/api/2.0/external-function",
            {"connection_name": "there", "method": "POST", "path": "/", "json": json.dumps({"x": said})},
        )
    for path in (
        ENDPOINTS,
        "/metrics",
        "/openapi.json",
        "/health",
        f"/api/2.0/permissions/serving-endpoints/{workspace.get_endpoint('plain')['id']}",
    ):
        ask("GET", path)


def shows(text, secrets):
    """Return whether any form of any secret stands in a text."""
    return any(form in text for secret in secrets for form in forms(secret))


def test_no_answer_shows_a_secret_nor_does_a_log(world, caplog):
    workspace, provider, ask, secrets = world
    use_everything(workspace, provider, ask)
    sent = {request.headers.get("authorization") for request in provider.seen}
    assert {f"Bearer {KEY}", f"Bearer {OTHER}", f"Bearer {BEARER}"} <= sent
    assert [where for where, text in ask.texts if shows(text, secrets)] == []
    assert "/serving-endpoints/plain/invocations" in caplog.text
    assert not shows(caplog.text.encode(), secrets)


def test_no_file_and_no_table_shows_a_secret(world):
    workspace, provider, ask, secrets = world
    use_everything(workspace, provider, ask)
    with aiquery.connect(workspace=workspace) as session:
        rows = session.sql("SELECT * FROM ai_payloads('plain')").fetchall()
    assert any("say 401" in repr(row) for row in rows)
    assert not shows(repr(rows).encode(), secrets)
    files = [path for path in workspace.path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".db", ".parquet"}
    assert [path for path in files if shows(path.read_bytes(), secrets)] == []


def test_a_key_that_is_no_text_is_refused_and_not_kept(world):
    _, provider, ask, _ = world
    for wrong in ({"is": KEY}, [KEY], {"is": {"really": KEY}}):
        entity = external(provider, openai_api_key_plaintext=wrong)
        answer = ask("POST", ENDPOINTS, {"name": "wrong", "config": {"served_entities": [entity]}})
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
        assert "must be text" in answer.json()["message"]
        assert KEY not in answer.text
