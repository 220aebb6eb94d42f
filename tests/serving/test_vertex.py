"""Google's models in Vertex AI, let in by a service account."""

import orjson
import pytest
from external_models import HELLO, Recorded, answer
from external_models import ask as ask_over
from provider_models import SECRETS, ask, declared, key_file, ref, served, service_account, vertex_config
from providers import vector
from sign_in_servers import ACCOUNT

from aiquery_serving.entities.external import google_tokens
from aiquery_serving.entities.external.single_inputs import MOST_AT_ONCE
from aiquery_serving.errors import (
    ConfigurationError,
    ProviderAccessError,
    ProviderUnavailableError,
    SecretError,
)
from aiquery_serving.messages import EMBEDDINGS, Usage


@pytest.fixture
def vertex():
    with served("google-cloud-vertex-ai") as (server, _):
        yield server


def model_at(server, name="gemini-2.5-flash", **members):
    task = {"task": members.pop("task")} if "task" in members else {}
    return declared("google-cloud-vertex-ai", name, **task, **vertex_config(server, **members))


def test_one_token_lets_many_requests_in(vertex):
    ask(model_at(vertex), HELLO, HELLO, HELLO)
    assert vertex.sign_in.given == ["token-1"]
    assert vertex.seen_headers[0]["authorization"] == "Bearer token-1"


def test_a_token_that_ends_is_renewed(vertex):
    vertex.sign_in.expires_in = 0
    ask(model_at(vertex), HELLO, HELLO)
    assert vertex.sign_in.given == ["token-1", "token-2"]


def test_a_bare_key_will_do_with_the_accounts_address(vertex, monkeypatch):
    monkeypatch.setattr(google_tokens, "TOKEN_URL", f"{vertex.sign_in.origin}/token")
    monkeypatch.setitem(SECRETS, "gcp", service_account()[0].decode())
    ask(model_at(vertex, client_email=ACCOUNT), HELLO)
    assert vertex.sign_in.given == ["token-1"]


@pytest.mark.parametrize(
    "secret", ["-----BEGIN PRIVATE KEY-----\nabc", "not json sk-secret", "[1]", '{"private_key": "abcsecret"}', "{}"]
)
def test_a_key_that_is_none_is_named_and_not_quoted(vertex, monkeypatch, secret):
    monkeypatch.setitem(SECRETS, "gcp", secret)
    with pytest.raises(SecretError, match="private_key") as refused:
        ask(model_at(vertex), HELLO)
    assert "abc" not in str(refused.value)
    assert "sk-secret" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_a_key_that_google_does_not_know_is_refused(vertex, monkeypatch):
    from sign_in_servers import key_pair

    monkeypatch.setitem(SECRETS, "gcp", key_file(vertex.sign_in, private_key=key_pair()[0].decode()))
    with pytest.raises(ProviderAccessError, match="invalid_grant"):
        ask(model_at(vertex), HELLO)


@pytest.mark.parametrize(
    ("token_uri", "error"),
    [
        ("http://evil.example.org/token", ConfigurationError),
        ("http://169.254.169.254/token", ConfigurationError),
        ("http://127.0.0.1:1/token", ProviderUnavailableError),
    ],
)
def test_tokens_are_got_only_where_keys_may_be_shown(vertex, monkeypatch, token_uri, error):
    monkeypatch.setattr("google.auth._exponential_backoff.time.sleep", lambda _seconds: None)
    monkeypatch.setitem(SECRETS, "gcp", key_file(vertex.sign_in, token_uri=token_uri))
    with pytest.raises(error):
        ask(model_at(vertex), HELLO)


def test_embeddings_come_with_what_they_used(vertex):
    model = model_at(vertex, "text-embedding-005", task=EMBEDDINGS)
    response = ask(model, {"input": ["a b", "c"], "dimensions": 4, "task_type": "RETRIEVAL_QUERY"})
    assert [item["embedding"] for item in response.body["data"]] == [vector("a b", 4), vector("c", 4)]
    assert response.usage == Usage(prompt_tokens=3)
    assert vertex.requests[0] == {
        "instances": [{"task_type": "RETRIEVAL_QUERY", "content": text} for text in ("a b", "c")],
        "parameters": {"outputDimensionality": 4},
    }


def test_a_model_that_takes_one_text_is_asked_for_each(vertex):
    vertex.delay = 0.02
    texts = [f"text {number}" for number in range(20)]
    response = ask(model_at(vertex, "gemini-embedding-001", task=EMBEDDINGS), {"input": texts})
    assert [item["embedding"] for item in response.body["data"]] == [vector(text) for text in texts]
    assert [item["index"] for item in response.body["data"]] == list(range(20))
    assert response.body["usage"] == {"prompt_tokens": 40, "total_tokens": 40}
    assert vertex.stats.calls == 20
    assert vertex.traffic.max_in_flight == MOST_AT_ONCE


@pytest.mark.parametrize(
    ("region", "host"),
    [("us-east5", "us-east5-aiplatform.googleapis.com"), ("global", "aiplatform.googleapis.com")],
)
def test_a_region_has_a_place_of_its_own(vertex, region, host):
    transport = Recorded(answer(body={"candidates": [{"finishReason": "STOP"}]}))
    model = declared("google-cloud-vertex-ai", project_id="my/p", region=region, private_key=ref("gcp"))
    ask_over(model, HELLO, transport=transport, secret=lambda _text: SECRETS["gcp"])
    path = f"/v1/projects/my%2Fp/locations/{region}/publishers/google/models/gemini-2.5-flash:generateContent"
    assert transport.posts[0][0] == f"https://{host}{path}"


@pytest.mark.parametrize("member", ["project_id", "region", "private_key"])
def test_a_member_that_is_missing_is_named(vertex, member):
    with pytest.raises(ConfigurationError, match=member):
        ask(model_at(vertex, **{member: None}), HELLO)


def test_what_an_embedding_lacks_is_an_error():
    said = {"predictions": [{"embeddings": {}}]}
    with served("google-cloud-vertex-ai") as (server, _):
        model = model_at(server, "text-embedding-005", task=EMBEDDINGS)
        with pytest.raises(Exception, match="malformed embeddings"):
            ask_over(model, {"input": "a"}, transport=Recorded(answer(body=said)), secret=lambda _: SECRETS["gcp"])
    assert orjson.loads(SECRETS["gcp"])["client_email"] == ACCOUNT
