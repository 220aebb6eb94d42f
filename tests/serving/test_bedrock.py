"""What only Bedrock has: signatures, frames, makers with words of their own."""

from dataclasses import replace

import pytest
from bedrock_server import ACCESS, SECRET, BedrockServer
from external_models import HELLO, JSON_SCHEMA, SCHEMA, TOOL
from provider_models import SECRETS, ask, bedrock_config, declared, pieces, put_together, ref
from providers import vector

from aiquery_serving.errors import (
    ConfigurationError,
    InvalidRequestError,
    ProviderAccessError,
    ProviderResponseError,
    SecretError,
)
from aiquery_serving.messages import EMBEDDINGS, Usage

NOVA = "eu.amazon.nova-lite-v1:0"
CLAUDE = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"


@pytest.fixture
def bedrock():
    with BedrockServer() as server:
        yield server


def model_at(server, name=NOVA, maker="amazon", **members):
    task = {"task": members.pop("task")} if "task" in members else {}
    return declared("amazon-bedrock", name, **task, **bedrock_config(server, bedrock_provider=maker, **members))


def saying(text):
    return {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize("name", [NOVA, "arn:aws:bedrock:eu-west-1:1:inference-profile/eu.a~b"])
def test_a_signature_holds_for_names_that_must_be_escaped(bedrock, name):
    ask(model_at(bedrock, name), HELLO, HELLO)
    assert bedrock.stats.statuses == {200: 2}


@pytest.mark.parametrize(("name", "value"), [("secret", "another"), ("id", "AKIAOTHER")])
def test_a_signature_by_another_key_is_refused(bedrock, monkeypatch, name, value):
    monkeypatch.setitem(SECRETS, name, value)
    with pytest.raises(ProviderAccessError):
        ask(model_at(bedrock), HELLO)


def test_a_signature_for_another_region_is_refused(bedrock):
    with pytest.raises(ProviderAccessError):
        ask(model_at(bedrock, aws_region="us-east-1"), HELLO)


def test_keys_that_end_go_with_their_token(monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setitem(SECRETS, "session", "token+/=")
    with BedrockServer(token="token+/=") as server:
        ask(model_at(server, aws_session_token=ref("session")), HELLO)
        with pytest.raises(ProviderAccessError):
            ask(model_at(server), HELLO)
    assert server.seen_headers[0]["x-amz-security-token"] == "token+/="
    assert "token+/=" not in caplog.text


def test_an_instance_profile_means_the_credentials_of_the_machine(bedrock, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    own = {"aws_access_key_id": None, "aws_secret_access_key": None}
    ask(model_at(bedrock, instance_profile_arn="arn:aws:iam::1:instance-profile/x", **own), HELLO)
    assert bedrock.stats.statuses == {200: 1}


def test_a_machine_without_credentials_says_how_to_give_some(bedrock, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    own = {"aws_access_key_id": None, "aws_secret_access_key": None}
    with pytest.raises(SecretError, match="AWS_PROFILE"):
        ask(model_at(bedrock, instance_profile_arn="arn", **own), HELLO)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"aws_region": None}, "aws_region"),
        ({"bedrock_provider": "meta"}, "anthropic, cohere, ai21labs, amazon"),
        ({"aws_access_key_id": None}, "aws_access_key_id"),
        ({"aws_access_key_id": None, "aws_secret_access_key": None}, "instance_profile_arn"),
        (
            {"aws_access_key_id": None, "aws_secret_access_key": None, "uc_service_credential_name": "c"},
            "no Unity Catalog",
        ),
    ],
)
def test_a_declaration_that_cannot_work_says_why(bedrock, members, why):
    with pytest.raises(ConfigurationError, match=why):
        ask(declared("amazon-bedrock", **bedrock_config(bedrock, **members)), HELLO)


def test_a_maker_may_be_written_in_capitals(bedrock):
    ask(model_at(bedrock, CLAUDE, "Anthropic"), HELLO)
    assert bedrock.stats.statuses == {200: 1}


def test_settings_go_by_converses_names(bedrock):
    asked = {"temperature": 0.5, "top_p": 0.9, "stop": "x", "max_completion_tokens": 9, "user": "u", "top_k": 3,
             "guardrailConfig": {"guardrailIdentifier": "g" * 12, "guardrailVersion": "1"},
             "reasoning_effort": "low", "anthropic_beta": ["b"]}  # fmt: skip
    ask(model_at(bedrock, CLAUDE, "anthropic"), HELLO | asked)
    assert bedrock.requests[0] == {
        "messages": [{"role": "user", "content": [{"text": "good morning"}]}],
        "inferenceConfig": {"temperature": 0.5, "topP": 0.9, "maxTokens": 9, "stopSequences": ["x"]},
        "guardrailConfig": asked["guardrailConfig"],
        "outputConfig": {"effort": "low"},
        "additionalModelRequestFields": {"top_k": 3, "anthropic_beta": ["b"]},
    }


@pytest.mark.parametrize(
    ("name", "maker", "sent"),
    [(NOVA, "amazon", 0), (CLAUDE, "anthropic", 0), ("anthropic.claude-opus-5-v1:0", "anthropic", None)],
)
def test_the_implicit_temperature_is_left_out_for_models_that_refuse_any(bedrock, name, maker, sent):
    ask(model_at(bedrock, name, maker), HELLO | {"temperature": 0, "max_tokens": 9})
    assert bedrock.requests[0]["inferenceConfig"].get("temperature") == sent


@pytest.mark.parametrize(
    ("maker", "fields"),
    [
        ("anthropic", {"top_k": 3}),
        ("cohere", {"k": 3}),
        ("amazon", {"inferenceConfig": {"topK": 3}}),
        ("ai21labs", None),
    ],
)
def test_top_k_goes_where_a_maker_looks_for_it(bedrock, maker, fields):
    if fields is None:
        with pytest.raises(InvalidRequestError, match="top_k"):
            ask(model_at(bedrock, maker=maker), HELLO | {"top_k": 3})
    else:
        ask(model_at(bedrock, maker=maker), HELLO | {"top_k": 3})
        assert bedrock.requests[0]["additionalModelRequestFields"] == fields


@pytest.mark.parametrize(
    ("name", "maker", "member"), [(NOVA, "amazon", "toolConfig"), (CLAUDE, "anthropic", "outputConfig")]
)
def test_a_schema_is_an_output_format_or_else_a_tool(bedrock, name, maker, member):
    ask(model_at(bedrock, name, maker), HELLO | {"response_format": JSON_SCHEMA})
    assert {"toolConfig", "outputConfig"} & bedrock.requests[0].keys() == {member}


@pytest.mark.parametrize("maker", ["cohere", "ai21labs"])
def test_a_maker_without_schemas_is_named(bedrock, maker):
    with pytest.raises(InvalidRequestError, match="holds no answer to a schema"):
        ask(model_at(bedrock, maker=maker), HELLO | {"response_format": JSON_SCHEMA})


@pytest.mark.parametrize(
    ("choice", "sent"),
    [("required", {"any": {}}), ({"function": {"name": "find"}}, {"tool": {"name": "find"}}), ("auto", None)],
)
def test_the_choice_of_tools_goes_by_converses_words(bedrock, choice, sent):
    ask(model_at(bedrock), HELLO | {"tools": [TOOL], "tool_choice": choice})
    config = bedrock.requests[0]["toolConfig"]
    assert config.get("toolChoice") == sent
    assert config["tools"] == [{"toolSpec": {"name": "find", "description": "d", "inputSchema": {"json": SCHEMA}}}]


def test_a_model_that_shall_call_no_tool_sees_none(bedrock):
    ask(model_at(bedrock), HELLO | {"tools": [TOOL], "tool_choice": "none"})
    assert "toolConfig" not in bedrock.requests[0]


def test_turns_of_the_same_side_are_one(bedrock):
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": ""},
        {"role": "user", "content": "three"},
    ]
    ask(model_at(bedrock), {"messages": turns})
    assert bedrock.requests[0]["messages"] == [
        {"role": "user", "content": [{"text": "one"}, {"text": "two"}]},
        {"role": "assistant", "content": [{"toolUse": {"toolUseId": "c1", "name": "find", "input": {}}}]},
        {
            "role": "user",
            "content": [{"toolResult": {"toolUseId": "c1", "content": [{"text": "(nothing)"}]}}, {"text": "three"}],
        },
    ]


def test_pictures_are_sent_and_never_fetched(bedrock):
    def picture(url):
        return saying([{"type": "text", "text": "what"}, {"type": "image_url", "image_url": {"url": url}}])

    ask(model_at(bedrock), picture("data:image/jpg;base64,aGk="))
    image = {"image": {"format": "jpeg", "source": {"bytes": "aGk="}}}
    assert bedrock.requests[0]["messages"][0]["content"] == [{"text": "what"}, image]
    with pytest.raises(InvalidRequestError, match="data: URL"):
        ask(model_at(bedrock), picture("https://a/b.png"))


def test_reasoning_is_left_out(bedrock):
    body = HELLO | {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    whole = ask(model_at(bedrock, CLAUDE, "anthropic"), body).body["choices"][0]["message"]["content"]
    text, *_ = put_together(pieces(model_at(bedrock, CLAUDE, "anthropic"), body))
    assert whole == text == "echo: good morning"


def test_a_frame_that_was_damaged_is_an_error(bedrock):
    def damage(_server, _body, reply):
        second = bytearray(reply.packets[1])
        second[-6] ^= 1
        return replace(reply, packets=(reply.packets[0], bytes(second), *reply.packets[2:]))

    bedrock.script.append(damage)
    with pytest.raises(ProviderResponseError, match="frame that cannot be read"):
        pieces(model_at(bedrock), HELLO)


def test_titan_is_asked_for_each_text(bedrock):
    model = model_at(bedrock, "amazon.titan-embed-text-v2:0", task=EMBEDDINGS)
    response = ask(model, {"input": ["a b", "c"], "dimensions": 4, "normalize": False})
    assert [item["embedding"] for item in response.body["data"]] == [vector("a b", 4), vector("c", 4)]
    assert response.usage == Usage(prompt_tokens=3)
    assert {request["inputText"] for request in bedrock.requests} == {"a b", "c"}
    assert bedrock.requests[0]["normalize"] is False


def test_cohere_embeds_many_texts_at_once(bedrock):
    model = model_at(bedrock, "cohere.embed-v4:0", "cohere", task=EMBEDDINGS)
    response = ask(model, {"input": ["a", "b"], "input_type": "search_query"})
    assert [item["embedding"] for item in response.body["data"]] == [vector("a"), vector("b")]
    assert bedrock.requests == [{"texts": ["a", "b"], "input_type": "search_query", "embedding_types": ["float"]}]


@pytest.mark.parametrize("maker", ["anthropic", "ai21labs"])
def test_a_maker_without_embeddings_is_named(bedrock, maker):
    with pytest.raises(ConfigurationError, match="amazon or cohere"):
        ask(model_at(bedrock, maker=maker, task=EMBEDDINGS), {"input": "a"})
