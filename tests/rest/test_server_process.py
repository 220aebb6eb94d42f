"""`aiquery serve` as a program: what it says, whom it lets in, how it ends, and several processes as one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from engine_endpoints import external
from providers import KEY, OpenAIServer
from served_programs import program, refused

import aiquery
from aiquery.server import Settings, serve
from aiquery_serving.errors import ConfigurationError

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
CHAT = "/serving-endpoints/chat/invocations"
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes where Linux shows them")


@pytest.fixture
def provider():
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def home(tmp_path, provider, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "workspace"
    with aiquery.Workspace(path, user="ada") as workspace:
        workspace.create_endpoint("chat", {"served_entities": [external(provider, "llm/v1/chat", "gpt-4o")]})
    return path


@pytest.fixture
def empty(tmp_path):
    path = tmp_path / "empty"
    aiquery.Workspace(path, user="ada").close()
    return path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of localhost that signs itself, its key, and a key of somebody else."""
    folder = tmp_path_factory.mktemp("certificate")
    own, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, own.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(own, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(_pem(own, serialization.NoEncryption()))
    (folder / "other.pem").write_bytes(_pem(other, serialization.NoEncryption()))
    (folder / "locked.pem").write_bytes(_pem(own, serialization.BestAvailableEncryption(b"pass")))
    return folder


def _pem(key, encryption):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def ask(url):
    return httpx.post(url + CHAT, json=HELLO, timeout=20)


# What it says, and whom it lets in.


def test_a_local_server_says_where_it_is_and_that_no_token_is_needed(home):
    with program(home) as server:
        assert ask(server.url).json()["choices"][0]["message"]["content"] == "echo: hello"
        code, out, log = server.ended()
    assert code == 0
    assert out == f"Serving {home} (1 endpoint) at {server.url}\n"
    assert "No token is needed: only this machine can reach the server, and whoever asks is 'ada'." in log
    assert f"curl {server.url}/api/2.0/serving-endpoints" in log
    assert f"export DATABRICKS_HOST={server.url}" in log
    assert "export DATABRICKS_TOKEN=" in log


def test_a_server_that_others_can_reach_wants_tokens(home):
    code, words = refused(home, "--host", "0.0.0.0")
    assert code == 1
    assert words.startswith("Error: Others can reach 0.0.0.0, and nobody has a token yet: make one first")
    with aiquery.Workspace(home, user="ada") as workspace:
        text, _ = workspace.access.create_token("ada", by="ada")
    with program(home, "--host", "0.0.0.0") as server:
        url = f"http://127.0.0.1:{server.url.rpartition(':')[2]}"
        assert ask(url).status_code == 401
        assert httpx.post(url + CHAT, json=HELLO, headers={"authorization": f"Bearer {text}"}).status_code == 200
        log = server.ended()[2]
    assert "Every request needs a token" in log
    assert "without TLS" in log
    assert text not in log


def test_a_local_server_may_want_tokens_too(home):
    assert "Nobody has a token yet" in refused(home, "--tokens-only")[1]
    with aiquery.Workspace(home, user="ada") as workspace:
        workspace.access.create_token("ada", by="ada")
        with serve(workspace, tokens_only=True) as server:
            assert ask(server.url).status_code == 401


def test_an_expired_token_is_none(home):
    with aiquery.Workspace(home, user="ada") as workspace:
        soon = int(time.time() * 1000) + 50
        workspace.access.create_token("ada", by="ada", expires_ms=soon)
        time.sleep(0.1)
        with pytest.raises(ConfigurationError, match="Nobody has a token yet"):
            serve(workspace, tokens_only=True)


def test_a_taken_port_is_named(empty):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = refused(empty, "--port", str(port))[1]
    assert words.startswith(f"Error: Port {port} of 127.0.0.1 is taken: end who listens there")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "no.such.host.invalid", "--tokens-only"], "No address is known of the host"),
        (["--keyfile", "key.pem"], "give its certificate, too"),
        (["--certfile", "missing.pem"], "cannot be read: No such file"),
        (["--certfile", "cert.pem", "--keyfile", "other.pem"], "does not belong to the certificate"),
        (["--certfile", "cert.pem", "--keyfile", "locked.pem"], "The TLS key is encrypted"),
        (["--certfile", "key.pem", "--keyfile", "key.pem"], "do not hold a certificate and its key in PEM"),
        (["--port", "70000"], "A port is a number from 0"),
        (["--workers", "0"], "at least one worker"),
        (["--request-timeout", "0"], "longer than 0 seconds"),
        (["--workspace", ":memory:", "--workers", "2"], "serve it with one worker"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_sentence(tmp_path, certificate, options, words):
    options = [str(certificate / each) if each.endswith(".pem") else each for each in options]
    code, said = refused(tmp_path / "new", *options)
    assert code == 1
    assert words in said
    assert "Traceback" not in said
    assert said.count("\n") == 1


def test_tls_is_1_2_or_newer(empty, certificate):
    keys = ("--certfile", str(certificate / "cert.pem"), "--keyfile", str(certificate / "key.pem"))
    with program(empty, "--host", "localhost", *keys) as server:
        assert server.url.startswith("https://localhost:")
        trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
        trusting.maximum_version = ssl.TLSVersion.TLSv1_2
        assert httpx.get(server.url + "/health", verify=trusting).json() == {"status": "ok"}
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            trusting.minimum_version = trusting.maximum_version = ssl.TLSVersion.TLSv1_1
        trusting.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(httpx.ConnectError, match=r"(?i)version|protocol"):
            httpx.get(server.url + "/health", verify=trusting)


def test_the_access_log_has_a_line_per_request_and_nothing_secret(home):
    with program(home, "--log-format", "json") as server:
        headers = {"authorization": "Bearer of-secrets", "x-request-id": "mine"}
        httpx.post(f"{server.url}{CHAT}?sig=secret", json=HELLO, headers=headers)
        httpx.get(server.url + "/not%0Ahere")
        log = server.ended()[2]
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    first, second = [line for line in lines if line["name"] == "aiquery.access"]
    assert first["request_id"] == "mine"
    assert (first["method"], first["path"], first["status"]) == ("POST", CHAT, 200)
    assert (first["endpoint"], first["served_entity"], first["caller"]) == ("chat", "gpt-4o", "ada")
    assert first["bytes_in"] > 0 < first["bytes_out"]
    assert first["ms"] > 0
    assert (second["path"], second["status"]) == ("/not%0Ahere", 404)
    assert "secret" not in log
    assert "hello" not in log
    assert KEY not in log


def test_a_log_of_words_may_be_without_requests(empty):
    with program(empty, "--no-access-log") as server:
        httpx.get(server.url + "/health")
        log = server.ended()[2]
    assert "/health" not in log
    assert "INFO aiquery.server: The server closes" in log


def test_traces_continue_those_of_the_client(home):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with program(home, OTEL_TRACES_EXPORTER="console") as server:
        httpx.post(server.url + CHAT, json=HELLO, headers={"traceparent": parent})
        out = server.ended()[1]
    assert out.count('"trace_id": "0x0af7651916cd43dd8448eb211c80319c"') == 2
    assert '"name": "invoke chat"' in out
    assert '"parent_id": "0xb7ad6b7169203331"' in out


def test_an_exporter_that_is_missing_is_said(empty):
    words = refused(empty, OTEL_TRACES_EXPORTER="nowhere")[1]
    assert "OTEL_TRACES_EXPORTER names the exporter 'nowhere', which is not installed." in words


# How it ends.


def in_background(function, *arguments):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function(*arguments)))
    thread.start()
    return thread, answers


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refuses(url):
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def cut_off(answer):
    closes = {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "The server closes: ask again when it is back."}
    return (answer.status_code, answer.headers["retry-after"], answer.json()) == (503, "1", closes)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_lets_an_answer_end_and_takes_nobody_new(home, provider, workers):
    provider.delay = 2
    with program(home, "--workers", workers) as server:
        thread, answers = in_background(ask, server.url)
        until(lambda: provider.requests)
        server.process.terminate()
        until(lambda: refuses(server.url), 1.5)
        assert not answers
        thread.join()
        assert answers[0].status_code == 200
        assert server.ended(None)[0] == 0
    with aiquery.Workspace(home, user="ada") as workspace:
        assert [row["calls"] for row in workspace.usage()] == [1]


def test_a_second_signal_ends_it_at_once(home, provider):
    provider.delay = 6
    with program(home) as server:
        thread, answers = in_background(ask, server.url)
        until(lambda: provider.requests)
        server.process.send_signal(signal.SIGINT)
        until(lambda: refuses(server.url))
        pressed = time.monotonic()
        assert server.ended(signal.SIGINT)[0] == 0
        assert time.monotonic() - pressed < 4
        thread.join()
        assert cut_off(answers[0])


def test_an_answer_that_takes_too_long_is_cut_off(home, provider):
    provider.delay = 6
    with aiquery.Workspace(home, user="ada") as workspace, serve(workspace, closing_seconds=1) as server:
        thread, answers = in_background(ask, server.url)
        until(lambda: provider.requests)
        began = time.monotonic()
        server.close()
        assert 1 <= time.monotonic() - began < 4
        thread.join()
        assert cut_off(answers[0])


def test_while_it_closes_it_is_not_ready(home, provider):
    provider.delay = 1
    with aiquery.Workspace(home, user="ada") as workspace, serve(workspace) as server:
        host, port = server.url.removeprefix("http://").split(":")
        body = json.dumps(HELLO).encode()
        with socket.create_connection((host, int(port)), timeout=10) as client:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            client.sendall(b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n")
            until(lambda: provider.requests)
            server.close()
            received = b"".join(iter(lambda: client.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"503"]


def test_a_server_in_this_process_leaves_the_workspace_open(home):
    with aiquery.Workspace(home, user="ada") as workspace:
        for _ in range(2):
            with serve(workspace) as server:
                assert ask(server.url).status_code == 200
            assert refuses(server.url)
            server.close()
        assert workspace.query("chat", HELLO)["choices"]


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"port": -1}, {"max_connections": 0}, {"closing_seconds": -1}, {"header_seconds": 0}):
        with pytest.raises(ConfigurationError):
            Settings(**wrong)


# Several processes.


@linux
def test_a_killed_worker_is_replaced_and_the_others_serve_on(home):
    with program(home, "--workers", "2") as server:
        until(lambda: len(server.workers()) == 2)
        assert [ask(server.url).status_code for _ in range(4)] == [200] * 4
        killed = server.workers()[0]
        os.kill(killed, signal.SIGKILL)
        assert [ask(server.url).status_code for _ in range(4)] == [200] * 4
        until(lambda: len(set(server.workers()) - {killed}) == 2)
        text = httpx.get(server.url + "/metrics").text
        assert 'request_count_total{endpoint_name="chat",served_entity_name="gpt-4o"} 8.0' in text
        code, _, log = server.ended()
    assert code == 0
    assert f"Worker {killed} ended (-9) and is replaced." in log


@linux
def test_workers_end_when_the_program_is_killed(empty):
    with program(empty, "--workers", "2") as server:
        until(lambda: len(server.workers()) == 2)
        server.process.kill()
        server.process.wait()
        until(lambda: refuses(server.url))


@linux
def test_sighup_replaces_every_worker_without_a_pause(home):
    with program(home, "--workers", "2") as server:
        until(lambda: len(server.workers()) == 2)
        before = set(server.workers())
        statuses = []
        server.process.send_signal(signal.SIGHUP)
        until(lambda: statuses.append(ask(server.url).status_code) or not before & set(server.workers()))
        assert set(statuses) == {200}
        assert len(server.workers()) == 2


def test_a_new_config_drops_no_request(home, provider):
    stop, statuses = threading.Event(), []

    def hammer(url):
        with httpx.Client() as client:
            while not stop.is_set():
                statuses.append(client.post(url + CHAT, json=HELLO).json().get("model"))

    with program(home, "--workers", "2") as server, aiquery.Workspace(home, user="ada") as workspace:
        threads = [threading.Thread(target=hammer, args=(server.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for model in ("gpt-4o-mini", "gpt-4.1", "gpt-4o-mini", "gpt-4.1"):
            workspace.update_endpoint_config("chat", {"served_entities": [external(provider, "llm/v1/chat", model)]})
            count = len(statuses)
            until(lambda count=count: len(statuses) > count + 200)
        stop.set()
        for thread in threads:
            thread.join()
    assert {"gpt-4o-mini", "gpt-4.1"} <= set(statuses) <= {"gpt-4o", "gpt-4o-mini", "gpt-4.1"}
