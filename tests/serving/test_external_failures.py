"""What goes wrong at a provider has its kind, its place and its wait, and shows no key."""

import asyncio

import pytest
from external_models import (
    HELLO,
    REFERENCE,
    Recorded,
    answer,
    anthropic_model,
    ask,
    custom_model,
    openai_model,
    resolve,
)
from hypothesis import given
from hypothesis import strategies as st
from providers import (
    KEY,
    AnthropicServer,
    OpenAIServer,
    cut_off,
    drop,
    html,
    no_choices,
    out_of_quota,
    status,
    too_many,
    truncate,
    wrong_count,
)

from aiquery_serving.endpoint import ExternalModel
from aiquery_serving.entities.external import Answer, load_external
from aiquery_serving.entities.external.failures import failure
from aiquery_serving.entities.external.limit_hints import anthropic_hint, openai_hint, seconds
from aiquery_serving.errors import (
    ConfigurationError,
    ProviderAccessError,
    ProviderError,
    ProviderQuotaError,
    ProviderRateLimitError,
    ProviderRequestError,
    ProviderResponseError,
    ProviderUnavailableError,
    RequestTooLargeError,
    SecretError,
)
from aiquery_serving.messages import CHAT, EMBEDDINGS, RequestEntity

# What goes wrong


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (status(400), ProviderRequestError),
        (status(401), ProviderAccessError),
        (status(403), ProviderAccessError),
        (status(404), ProviderRequestError),
        (status(408), ProviderUnavailableError),
        (status(409), ProviderUnavailableError),
        (status(413), RequestTooLargeError),
        (status(422), ProviderRequestError),
        (too_many(2.0), ProviderRateLimitError),
        (out_of_quota, ProviderQuotaError),
        (status(500), ProviderUnavailableError),
        (status(503), ProviderUnavailableError),
        (status(529), ProviderUnavailableError),
        (html, ProviderResponseError),
        (truncate, ProviderResponseError),
        (no_choices, ProviderResponseError),
        (drop, ProviderUnavailableError),
        (cut_off, ProviderUnavailableError),
    ],
)
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_every_failure_has_its_kind_and_names_its_place(provider, fault, kind, request):
    server = request.getfixturevalue(provider)
    model = {"openai": openai_model, "anthropic": anthropic_model}[provider](server)
    server.script.append(fault)
    with pytest.raises(kind, match=rf"{provider} model|127\.0\.0\.1") as caught:
        ask(model, HELLO)
    assert type(caught.value) is kind
    assert KEY not in str(caught.value) + repr(caught.value)
    assert server.stats.calls == 1, "an entity never retries"


def test_the_wrong_number_of_embeddings_is_an_unusable_answer(openai):
    openai.script.append(wrong_count)
    with pytest.raises(ProviderResponseError, match="2 embeddings for 3 inputs"):
        ask(openai_model(openai, "ada", EMBEDDINGS), {"input": ["a", "b", "c"]})


def test_inputs_that_are_too_many_or_too_long_are_too_large(openai):
    openai.max_inputs, openai.max_chars = 2, 10
    for texts in (["a", "b", "c"], ["a" * 11]):
        with pytest.raises(RequestTooLargeError):
            ask(openai_model(openai, "ada", EMBEDDINGS), {"input": texts})


@pytest.mark.parametrize(("how", "most"), [("seconds", 2.0), ("ms", 1.502), ("date", 3.0), (None, None)])
def test_a_429_says_when_to_come_back(how, most):
    with (
        OpenAIServer(script=[too_many(1.5)], retry_after=how) as server,
        pytest.raises(ProviderRateLimitError) as caught,
    ):
        ask(openai_model(server), HELLO)
    wait = caught.value.retry_after
    assert wait is None if most is None else 0.5 <= wait <= most


@pytest.mark.parametrize(
    ("status", "error", "kind", "wait"),
    [
        (400, {"status": "INVALID_ARGUMENT", "details": [{"reason": "API_KEY_INVALID"}]}, ProviderAccessError, None),
        (429, {"status": "RESOURCE_EXHAUSTED", "details": [{"retryDelay": "20s"}]}, ProviderRateLimitError, 20.0),
        (429, {"status": "RESOURCE_EXHAUSTED", "details": [{"retryDelay": "soon"}, 7]}, ProviderRateLimitError, None),
        (424, {"message": "the model failed"}, ProviderUnavailableError, None),
        (429, {"message": "limited to 1000 API calls / month"}, ProviderQuotaError, None),
    ],
)
def test_what_google_amazon_and_cohere_mean(status, error, kind, wait):
    transport = Recorded(answer(status, {"error": error}))
    with pytest.raises(ProviderError) as caught:
        ask(custom_model("https://x.org/v1", bearer_token_auth={"token": REFERENCE}), HELLO, transport=transport)
    assert (type(caught.value), caught.value.retry_after) == (kind, wait)


def test_a_429_and_an_answer_teach_the_limits():
    with OpenAIServer(limit=(2, 60.0), headers=True) as server:
        response = ask(openai_model(server), HELLO)
        assert (response.hint.requests.limit, response.hint.requests.remaining) == (2, 1)
        assert response.hint.requests.reset_after == pytest.approx(60, abs=1)
        with pytest.raises(ProviderRateLimitError) as caught:
            ask(openai_model(server), HELLO, HELLO)
    assert caught.value.hint.requests.remaining == 0
    assert 58 <= caught.value.retry_after <= 60


def test_anthropic_answers_teach_the_limits():
    with AnthropicServer(limit=(2, 60.0), token_limit=(100, 60.0), headers=True) as server:
        hint = ask(anthropic_model(server), HELLO).hint
    assert (hint.requests.remaining, hint.tokens.limit, hint.tokens.remaining) == (1, 100, 95)
    assert hint.tokens.reset_after == pytest.approx(60, abs=1)


def test_without_headers_there_is_no_hint(openai, anthropic):
    assert ask(openai_model(openai), HELLO).hint is None
    assert ask(anthropic_model(anthropic), HELLO).hint is None


def test_scarcer_of_input_and_output_tokens_counts():
    headers = {
        "anthropic-ratelimit-input-tokens-limit": "100",
        "anthropic-ratelimit-input-tokens-remaining": "90",
        "anthropic-ratelimit-output-tokens-limit": "50",
        "anthropic-ratelimit-output-tokens-remaining": "5",
    }
    assert anthropic_hint(headers, 0.0).tokens.limit == 50


@given(st.dictionaries(st.sampled_from(["limit", "remaining", "reset"]), st.text(max_size=8)))
def test_strange_limit_headers_break_nothing(values):
    openai_hint({f"x-ratelimit-{part}-requests": text for part, text in values.items()}, 0.0)
    anthropic_hint({f"anthropic-ratelimit-tokens-{part}": text for part, text in values.items()}, 0.0)


@given(st.integers(0, 30), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations_add_up(days, hours, minutes, secs, ms):
    text = f"{days}d{hours}h{minutes}m{secs}s{ms}ms"
    assert seconds(text) == pytest.approx(86400 * days + 3600 * hours + 60 * minutes + secs + ms / 1000)


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (400, b'{"error":{"message":"Your credit balance is too low","type":"invalid_request_error"}}', ProviderQuotaError),
        (402, b'{"error":"Insufficient balance"}', ProviderQuotaError),
        (429, b'{"error":{"message":"x","code":"billing_hard_limit_reached"}}', ProviderQuotaError),
        (429, b"slow down", ProviderRateLimitError),
        (400, b'{"error":{"message":"x","code":"max_tokens_per_request"}}', RequestTooLargeError),
        (400, b'{"error":{"message":"x","code":"context_length_exceeded"}}', ProviderRequestError),
        (204, b"", ProviderResponseError),
        (302, b"", ProviderResponseError),
        (418, b'["teapot"]', ProviderRequestError),
        (502, b"<html>Bad gateway</html>", ProviderUnavailableError),
    ],
)  # fmt: skip
def test_statuses_and_bodies_have_their_kinds(code, body, kind):
    error = failure("p model 'm'", Answer(code, {}, body), now=0.0, scrub=str)
    assert type(error) is kind
    assert str(error).startswith("p model 'm' ")
    assert f"({code})" in str(error)


# Secrets


@pytest.mark.parametrize("echo", [KEY, f"Bearer {KEY}", "x" * 290 + KEY, "team-secret-without-prefix"])
def test_a_key_that_the_provider_repeats_is_scrubbed(echo):
    secret = echo if echo.startswith("team") else KEY
    body = {"error": {"message": f"bad key {echo}", "code": None}}
    transport = Recorded(answer(401, body))
    with pytest.raises(ProviderAccessError) as caught:
        ask(openai_model(OpenAIServer()), HELLO, transport=transport, secret=lambda _: secret)
    assert secret[:12] not in str(caught.value)


def test_a_half_masked_key_is_scrubbed():
    body = {"error": {"message": "Incorrect API key provided: abcd****wxyz."}}
    with pytest.raises(ProviderAccessError) as caught:
        ask(openai_model(OpenAIServer()), HELLO, transport=Recorded(answer(401, body)))
    assert "abcd" not in str(caught.value)


def test_the_secret_is_opened_late_once_and_again_after_a_refusal(openai):
    opened = []

    def rotating(text):
        opened.append(text)
        return KEY if len(opened) > 1 else "sk-old"

    async def send():
        entity = load_external(openai_model(openai), resolve=rotating, transport=None)
        assert isinstance(entity, RequestEntity)
        assert opened == []
        with pytest.raises(ProviderAccessError):
            await entity.send(HELLO)
        for _ in range(3):
            await entity.send(HELLO)
        assert KEY not in repr(entity) + repr(vars(entity)) + repr(vars(entity._authorizer))
        await entity.close()

    asyncio.run(send())
    assert opened == [REFERENCE, REFERENCE]


@pytest.mark.parametrize("secret", ["", " ", "two\nlines", "schlüssel"])
def test_a_secret_that_no_header_can_carry_is_refused_without_showing_it(openai, secret):
    with pytest.raises(SecretError, match="authorization") as caught:
        ask(openai_model(openai), HELLO, secret=lambda _: secret)
    assert "lines" not in str(caught.value)
    assert openai.requests == []


# Configuration


@pytest.mark.parametrize(
    ("provider", "task", "config", "match"),
    [
        ("palm", CHAT, {}, "needs 'palm_api_key'"),
        ("openai", CHAT, {}, "needs 'openai_api_key'"),
        ("openai", CHAT, {"openai_api_type": "azure"}, "needs 'openai_api_base'"),
        ("anthropic", EMBEDDINGS, {}, "anthropic offers llm/v1/chat"),
        ("anthropic", CHAT, {}, "needs 'anthropic_api_key'"),
        ("custom", CHAT, {}, "needs 'custom_provider_url'"),
        ("custom", CHAT, {"custom_provider_url": "https://x.org"}, "exactly one of"),
        ("custom", CHAT, {"custom_provider_url": "https://x.org", "api_key_auth": {"key": "a b", "value": "v"}}, "name of the header"),
        ("custom", CHAT, {"custom_provider_url": "https://x.org", "api_key_auth": {"key": "a"}}, "needs 'value'"),
        ("custom", CHAT, {"custom_provider_url": "https://x.org", "bearer_token_auth": {"x": 1}}, "needs 'token'"),
    ],
)  # fmt: skip
def test_a_declaration_that_cannot_work_is_refused_at_once(provider, task, config, match):
    model = ExternalModel(provider=provider, name="m", task=task, config=config)
    with pytest.raises(ConfigurationError, match=match):
        load_external(model, resolve=resolve, transport=None)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/v1",
        "http://2852039166/v1",
        "http://0xA9FEA9FE/v1",
        "http://[fe80::1]/v1",
        "http://[::ffff:169.254.169.254]/v1",
        "http://[64:ff9b::169.254.169.254]/v1",
        "http://[2002:a9fe:a9fe::1]/v1",
        "http://[fd00:ec2::254]/v1",
        "http://100.100.100.200/v1",
        "http://metadata.google.internal/v1",
        "http://METADATA.google.internal./v1",
        "ftp://example.org/v1",
        "example.org/v1",
        "https://user:pass@example.org/v1",
    ],
)
def test_addresses_where_no_provider_lives_are_refused(url):
    model = custom_model(url, bearer_token_auth={"token": REFERENCE})
    with pytest.raises(ConfigurationError) as caught:
        load_external(model, resolve=resolve, transport=None)
    assert "pass@" not in str(caught.value)
