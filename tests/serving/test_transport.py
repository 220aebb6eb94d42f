"""The transport: kept connections, time, size, proxies, certificates, and hanging up."""

import asyncio
import gzip
import ssl

import orjson
import pytest
from external_models import HELLO, REFERENCE, ask, custom_model, openai_model, resolve, text_of
from loopback import LoopbackServer, Reply
from providers import (
    OpenAIServer,
    slow,
)
from sign_in_servers import key_pair
from wreq import exceptions

from aiquery_serving.entities.external import HttpTransport, load_external
from aiquery_serving.entities.external.foreign import FOREIGN
from aiquery_serving.errors import (
    ConfigurationError,
    ProviderResponseError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)


@pytest.fixture
def openai():
    with OpenAIServer() as server:
        yield server


# The transport


def test_a_redirect_is_not_followed(openai):
    moved = Reply(status=307, headers={"location": openai.url + "/chat/completions"})
    with LoopbackServer(lambda _request: moved) as elsewhere:
        model = custom_model(elsewhere.origin, bearer_token_auth={"token": REFERENCE})
        with pytest.raises(ProviderResponseError, match="not followed"):
            ask(model, HELLO)
    assert openai.requests == []


def test_an_answer_that_is_late_is_a_timeout(openai):
    openai.script.append(slow(30.0))
    transport = HttpTransport(total_seconds=0.1)
    with pytest.raises(ProviderTimeoutError, match=r"127\.0\.0\.1:\d+ did not answer within 0\.1 s"):
        ask(openai_model(openai), HELLO, transport=transport)


def test_nobody_listening_is_unavailable():
    with OpenAIServer() as gone:
        pass
    with pytest.raises(ProviderUnavailableError, match=r"127\.0\.0\.1:\d+ failed: Connection refused"):
        ask(openai_model(gone), HELLO)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_answer_larger_than_the_cap_is_not_read(encoding):
    content = b"x" * 200_000
    body = gzip.compress(content) if encoding == "gzip" else content
    reply = Reply(body=body, headers={"content-encoding": encoding})
    with LoopbackServer(lambda _request: reply) as server:
        with pytest.raises(ProviderResponseError, match="more than 100000 bytes"):
            asyncio.run(HttpTransport(max_answer_bytes=100_000).post(server.origin, headers={}, body=b"{}"))
        whole = asyncio.run(HttpTransport().post(server.origin, headers={}, body=b"{}"))
    assert whole.body == content


def test_one_transport_serves_one_loop_after_another_and_reopens_after_close(openai):
    transport = HttpTransport()
    model = openai_model(openai)
    ask(model, HELLO, transport=transport)
    ask(model, HELLO, transport=transport)
    asyncio.run(transport.close())
    ask(model, HELLO, transport=transport)
    asyncio.run(transport.close())
    assert openai.stats.calls == 3


def test_connections_are_kept_and_hundreds_are_in_flight_at_once(openai):
    openai.delay = 0.2

    async def wave(entity, size):
        await asyncio.gather(*(entity.send(HELLO) for _ in range(size)))

    async def send():
        entity = load_external(openai_model(openai), resolve=resolve, transport=None)
        await wave(entity, 300)
        openai.delay = 0.0
        for _ in range(3):
            await wave(entity, 100)
        await entity.close()

    asyncio.run(send())
    assert openai.traffic.max_in_flight == 300
    assert openai.traffic.connections == 300


def test_a_cancelled_call_hangs_up(openai):
    openai.delay = 30.0

    async def send():
        entity = load_external(openai_model(openai), resolve=resolve, transport=None)
        call = asyncio.ensure_future(entity.send(HELLO))
        await until(lambda: openai.traffic.in_flight == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: openai.traffic.abandoned == 1)
        await entity.close()

    asyncio.run(send())


async def until(holds):
    """Wait for what another thread is about to do."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the other thread has no event of this loop
            await asyncio.sleep(0.001)


def test_a_proxy_from_the_environment_is_not_used_for_this_machine(openai, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert text_of(ask(openai_model(openai), HELLO)) == "echo: good morning"


def test_a_proxy_from_the_environment_is_used_for_other_machines(monkeypatch):
    asked = []

    def proxy(request):
        asked.append(request.path)
        return Reply(body=orjson.dumps({"choices": [{"message": {"content": "by proxy"}}]}))

    with LoopbackServer(proxy) as server:
        monkeypatch.setenv("http_proxy", server.origin)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        model = custom_model("http://models.invalid/v1", bearer_token_auth={"token": REFERENCE})
        assert text_of(ask(model, HELLO)) == "by proxy"
    assert asked == ["http://models.invalid/v1/chat/completions"]


def test_a_name_that_leads_to_a_metadata_address_is_refused(openai, monkeypatch):
    async def lookup(*_):
        return [(None, None, None, "", ("169.254.169.254", 0))]

    async def post():
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        await HttpTransport().post("http://harmless.example/v1", headers={}, body=b"{}")

    with pytest.raises(ConfigurationError, match=r"harmless\.example \(169\.254\.169\.254\)"):
        asyncio.run(post())


def test_a_certificate_is_trusted_only_when_its_authority_is(tmp_path, monkeypatch):
    certificate = self_signed(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with LoopbackServer(lambda _request: Reply(body=b"{}"), tls=context) as server:
        with pytest.raises(ProviderUnavailableError, match="certificate"):
            asyncio.run(HttpTransport().post(server.origin, headers={}, body=b"{}"))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        answered = asyncio.run(HttpTransport().post(server.origin, headers={}, body=b"{}"))
    assert answered.body == b"{}"


def test_a_file_of_authorities_that_is_none_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    with pytest.raises(ConfigurationError, match=r"gone\.pem"):
        asyncio.run(HttpTransport().post("http://127.0.0.1:9", headers={}, body=b"{}"))


def self_signed(folder):
    """Write a key and a certificate of its own for 127.0.0.1 into one file."""
    path = folder / "loopback.pem"
    path.write_bytes(b"".join(key_pair()))
    return path


def test_every_exception_of_the_client_is_translated():
    ours = {kind.__name__ for kind in FOREIGN}
    assert set(exceptions.__all__) - ours == {"WebSocketError"}
