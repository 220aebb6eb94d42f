"""curl, as the documentation of the API has it: tokens both ways, bodies as they are, streams line by line."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from providers import KEY

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

JSON = ("-H", "Content-Type: application/json")
HELLO = '{"messages": [{"role": "user", "content": "good morning"}]}'
CHAT = "/serving-endpoints/chat/invocations"
ENDPOINTS = "/api/2.0/serving-endpoints"


@pytest.fixture
def curl(served):
    """Run curl for a path of the server, as Ada if the options do not say as whom; returns its code and output."""

    def run(path, *options, token=None):
        who = ("-H", f"Authorization: Bearer {served.ada if token is None else token}") if token != "" else ()
        command = ["curl", "-q", "-sS", "--max-time", "20", *who, *options, served.url + path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.stderr == "" or done.returncode
        return done.returncode, done.stdout

    return run


def test_a_query_with_a_bearer_token(curl):
    code, out = curl(CHAT, *JSON, "-X", "POST", "-d", HELLO)
    assert (code, json.loads(out)["choices"][0]["message"]["content"]) == (0, "echo: good morning")


def test_a_query_with_basic_authentication(curl, served):
    code, out = curl(CHAT, *JSON, "-u", f"token:{served.ada}", "-d", HELLO, token="")
    assert (code, json.loads(out)["object"]) == (0, "chat.completion")


def test_a_body_from_a_file_goes_as_it_is(curl, served, tmp_path):
    file = tmp_path / "body.json"
    file.write_text('{\n  "messages": [{"role": "user", "content": "Grüße,\\nOslo"}]\n}\n')
    _, out = curl(CHAT, *JSON, "--data-binary", f"@{file}")
    assert json.loads(out)["choices"][0]["message"]["content"] == "echo: Grüße,\nOslo"


def test_json_is_read_where_nobody_told_curl_that_it_is_json(curl):
    code, out = curl(CHAT, "-d", HELLO)  # curl calls this a form
    assert (code, json.loads(out)["object"]) == (0, "chat.completion")


def test_what_is_no_json_is_refused_by_its_type(curl):
    code, out = curl(CHAT, "--fail-with-body", "-H", "Content-Type: text/csv", "-d", "a,b")
    assert code == 22
    assert "JSON bodies, not 'text/csv'" in json.loads(out)["message"]


def test_curls_own_option_for_json(curl):
    code, out = curl(CHAT, "--json", HELLO)
    assert (code, json.loads(out)["object"]) == (0, "chat.completion")


def test_a_large_body_that_waits_for_continue(curl, tmp_path):
    file = tmp_path / "body.json"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "word " * 300_000}]}))
    code, out = curl(CHAT, *JSON, "-H", "Expect: 100-continue", "-T", str(file), "-X", "POST")
    assert (code, json.loads(out)["usage"]["prompt_tokens"]) == (0, 300_000)


def test_a_stream_comes_line_by_line_with_nothing_but_data(curl):
    body = json.dumps({**json.loads(HELLO), "stream": True})
    code, out = curl(CHAT, "-N", "-i", *JSON, "-d", body)
    head, _, text = out.partition("\n\n")
    assert code == 0
    assert head.startswith("HTTP/1.1 200")
    assert "content-type: text/event-stream" in head.lower()
    assert "served-model-name: gpt-4o" in head.lower()
    lines = [line for line in text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "echo: good morning"


@pytest.mark.parametrize(
    ("path", "options", "status", "code"),
    [
        ("/serving-endpoints/none/invocations", ("--json", HELLO), 404, "RESOURCE_DOES_NOT_EXIST"),
        ("/serving-endpoints/models", (), 404, "ENDPOINT_NOT_FOUND"),
        ("/serving-endpoints/split/served-models/none/invocations", ("--json", '{"inputs": []}'), 404, "RESOURCE_DOES_NOT_EXIST"),
        (CHAT, ("--json", "{"), 400, "BAD_REQUEST"),
        (CHAT, ("--json", '{"messages": "x"}'), 400, "INVALID_PARAMETER_VALUE"),
        (CHAT, ("-X", "PUT", "--json", HELLO), 405, "ENDPOINT_NOT_FOUND"),
        (CHAT, ("--json", HELLO, "-H", "Authorization: Bearer wrong"), 401, "UNAUTHENTICATED"),
        (CHAT, ("--json", HELLO, "-u", "token:wrong"), 401, "UNAUTHENTICATED"),
        (ENDPOINTS, ("--json", '{"name": "a b"}'), 400, "INVALID_PARAMETER_VALUE"),
        (ENDPOINTS, ("--json", '{"name": "chat"}'), 409, "RESOURCE_ALREADY_EXISTS"),
        (f"{ENDPOINTS}/none", ("-X", "DELETE"), 404, "RESOURCE_DOES_NOT_EXIST"),
    ],
)  # fmt: skip
def test_an_error_has_a_status_a_code_and_a_message(curl, path, options, status, code):
    token = "" if any("wrong" in option for option in options) else None
    done, out = curl(path, "--fail-with-body", "-w", "\n%{http_code} %{content_type}", *options, token=token)
    text, told = out.rsplit("\n", 1)
    assert (done, told) == (22, f"{status} application/json")
    assert json.loads(text).keys() == {"error_code", "message"}
    assert json.loads(text)["error_code"] == code


def test_who_sends_no_token_is_told_to(curl):
    _, out = curl(f"{ENDPOINTS}/chat", "-w", " %{http_code}", token="")
    assert out.endswith("401")
    assert "Authorization: Bearer" in out


def test_the_whole_life_of_an_endpoint(curl, served):
    config = served.chat_config | {"name": "ignored"}
    body = json.dumps({"name": "curled", "config": config, "tags": [{"key": "team", "value": "x"}]})
    try:
        _, out = curl(f"{ENDPOINTS}/", "--json", body)  # with a slash, as some clients have it
        assert json.loads(out)["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}
        assert KEY not in out
        _, out = curl(f"{ENDPOINTS}/curled", "--compressed")
        assert json.loads(out)["tags"] == [{"key": "team", "value": "x"}]
        _, out = curl(f"{ENDPOINTS}/curled/config", "-X", "PUT", "--json", json.dumps(config))
        assert json.loads(out)["config"]["config_version"] == 2
        change = json.dumps({"add_tags": [{"key": "cost"}], "delete_tags": ["team"]})
        _, out = curl(f"{ENDPOINTS}/curled/tags", "-X", "PATCH", "--json", change)
        assert [tag["key"] for tag in json.loads(out)["tags"]] == ["cost"]
        assert "curled" in {item["name"] for item in json.loads(curl(ENDPOINTS)[1])["endpoints"]}
    finally:
        assert curl(f"{ENDPOINTS}/curled", "-X", "DELETE") == (0, "{}")


def test_a_head_and_two_requests_over_one_connection(curl, served):
    code, out = curl("/health", "-I", "-w", "%{http_code}")
    assert (code, out[-3:]) == (0, "200")
    code, out = curl("/health", "-w", "%{num_connects}", served.url + "/health", "-w", "%{num_connects}")
    assert (code, out.count("}1"), out.count("}0")) == (0, 1, 1)
