"""OpenAI's models in Azure, let in by a key or by Microsoft Entra."""

import pytest
from external_models import HELLO
from openai_kin import API_VERSION, AzureServer
from provider_models import SECRETS, ask, azure_config, declared, ref, served
from providers import vector
from sign_in_servers import CLIENT, CLIENT_SECRET, TENANT, entra, tls_context

from aiquery_serving.entities.external import credentials
from aiquery_serving.errors import ConfigurationError, ProviderAccessError, ProviderUnavailableError
from aiquery_serving.messages import COMPLETIONS, EMBEDDINGS


@pytest.fixture
def sign_in(tmp_path, monkeypatch):
    context, certificate = tls_context(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setitem(SECRETS, "entra", CLIENT_SECRET)
    with entra(context) as service:
        yield service


def entra_config(server, sign_in, **config):
    return azure_config(server, openai_api_type="AzureAD", openai_api_key=None) | {
        "microsoft_entra_tenant_id": TENANT,
        "microsoft_entra_client_id": CLIENT,
        "microsoft_entra_client_secret": ref("entra"),
        "microsoft_entra_authority": sign_in.origin,
    } | config  # fmt: skip


def test_a_deployment_is_asked_at_its_url_with_the_version_and_the_key():
    with served("openai") as (server, config):
        ask(declared("openai", **config), HELLO)
        completion = ask(declared("openai", task=COMPLETIONS, **config), {"prompt": "a b"})
        embeddings = ask(declared("openai", task=EMBEDDINGS, **config), {"input": ["a", "b"]})
    assert completion.body["choices"][0]["text"] == "echo: a b"
    assert [item["embedding"] for item in embeddings.body["data"]] == [vector("a"), vector("b")]
    assert "authorization" not in server.seen_headers[0]


def test_a_base_that_names_the_api_too_and_a_deployment_with_a_space_are_understood():
    with AzureServer() as server:
        ask(declared("openai", **azure_config(server, openai_api_base=f"{server.origin}/openai/")), HELLO)
        model = declared("openai", **azure_config(server, openai_deployment_name="pro/d ?"))
        with pytest.raises(Exception, match="does not exist"):
            ask(model, HELLO)
    assert list(server.stats.paths)[-1] == "/openai/deployments/pro%2Fd%20%3F/chat/completions"


def test_what_its_headers_say_of_limits_is_learned():
    with served("openai", limit=(10, 60.0), headers=True) as (_, config):
        response = ask(declared("openai", **config), HELLO)
    assert response.hint.requests.remaining == 9


def test_entra_gives_one_token_for_many_requests(sign_in):
    with AzureServer(keys=sign_in.given) as server:
        ask(declared("openai", **entra_config(server, sign_in)), HELLO, HELLO, HELLO)
    assert server.stats.calls == 3
    assert [form["scope"] for form in sign_in.asked] == ["https://cognitiveservices.azure.com/.default"]
    assert server.seen_headers[0]["authorization"] == "Bearer token-1"
    assert "api-key" not in server.seen_headers[0]


def test_a_refused_token_is_asked_for_again(sign_in):
    with AzureServer(keys=["token-2"]) as server:
        model = declared("openai", **entra_config(server, sign_in))
        with pytest.raises(ProviderAccessError):
            ask(model, HELLO)
        ask(model, HELLO)
    assert sign_in.given == ["token-1", "token-2"]


def test_a_wrong_secret_is_said_without_the_secret(sign_in, monkeypatch):
    monkeypatch.setitem(SECRETS, "entra", "wrong~secret~42")
    with AzureServer() as server, pytest.raises(ProviderAccessError, match="'app-1' no token") as refused:
        ask(declared("openai", **entra_config(server, sign_in)), HELLO)
    assert "AADSTS7000215" in str(refused.value)
    assert "wrong~secret" not in str(refused.value)


def test_a_sign_in_service_that_is_not_there_or_not_trusted_is_unavailable(sign_in, monkeypatch):
    with AzureServer() as server:
        gone = entra_config(server, sign_in, microsoft_entra_authority="https://127.0.0.1:1")
        with pytest.raises(ProviderUnavailableError, match="cannot be reached"):
            ask(declared("openai", **gone), HELLO)
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(ProviderUnavailableError, match="SSLError"):
            ask(declared("openai", **entra_config(server, sign_in)), HELLO)


def test_a_secret_goes_to_no_sign_in_service_in_clear():
    with AzureServer() as server:

        class Elsewhere:
            origin = "http://login.example.org"

        with pytest.raises(ConfigurationError, match="only over https"):
            ask(declared("openai", **entra_config(server, Elsewhere)), HELLO)


@pytest.mark.parametrize(
    "member", ["openai_api_base", "openai_api_version", "openai_deployment_name", "openai_api_key"]
)
def test_a_member_that_is_missing_is_named(member):
    with AzureServer() as server, pytest.raises(ConfigurationError, match=member):
        ask(declared("openai", **azure_config(server, **{member: None})), HELLO)


@pytest.mark.parametrize("member", ["tenant_id", "client_id", "client_secret"])
def test_a_member_of_entra_that_is_missing_is_named(sign_in, member):
    member = f"microsoft_entra_{member}"
    with AzureServer() as server, pytest.raises(ConfigurationError, match=member):
        ask(declared("openai", **entra_config(server, sign_in, **{member: None})), HELLO)


def test_without_msal_the_extra_is_named(sign_in, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(credentials, "import_module", missing)
    with AzureServer() as server, pytest.raises(ConfigurationError, match=r"'msal'.*aiquery\[azure\]"):
        ask(declared("openai", **entra_config(server, sign_in)), HELLO)


def test_the_version_is_the_one_that_was_declared():
    with AzureServer() as server, pytest.raises(Exception, match="Resource not found"):
        ask(declared("openai", **azure_config(server, openai_api_version="1999-01-01")), HELLO)
    assert API_VERSION != "1999-01-01"
