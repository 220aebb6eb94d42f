"""ai_query's arguments against the endpoint they name: contract A.2, A.3, A.7 and A.14."""

import base64

import pyarrow as pa
import pytest

from aiquery_serving.endpoint import Kind
from aiquery_serving.errors import ProviderResponseError
from aiquery_serving.messages import CHAT, COMPLETIONS, EMBEDDINGS
from aiquery_udfs import errors
from aiquery_udfs.arguments import EndpointInfo, answer_text, bind, check_whole

CHATTY = EndpointInfo(name="chat", kind=Kind.EXTERNAL, task=CHAT, model_names=("gpt-4o",))
COMPLETE = EndpointInfo(name="complete", kind=Kind.EXTERNAL, task=COMPLETIONS, model_names=("davinci",))
EMBED = EndpointInfo(name="embed", kind=Kind.EXTERNAL, task=EMBEDDINGS, model_names=("ada",))
INPUTS = pa.schema(
    [
        pa.field("age", pa.int64(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("note", pa.string()),
        pa.field("any", pa.null()),
    ]
)
CUSTOM = EndpointInfo(name="clf", kind=Kind.CUSTOM, input_schema=INPUTS, output_type=pa.float64())
SINGLE = EndpointInfo(
    name="one",
    kind=Kind.CUSTOM,
    input_schema=pa.schema([pa.field("x", pa.float64(), nullable=False)]),
    output_type=pa.int64(),
)
UNSIGNED = EndpointInfo(name="bare", kind=Kind.CUSTOM)
ROW = 'STRUCT(age INTEGER, "name" VARCHAR, "any" DATE, extra VARCHAR)'

PNG = b"\x89PNG\r\n\x1a\n...."


def call(endpoint, request_type="VARCHAR", **given):
    absent = dict.fromkeys(("return_type", "fail_on_error", "model_parameters_json", "response_format"))
    return bind(endpoint, request_type, **(absent | {"has_files": False} | given))


def refused(kind, endpoint, request_type="VARCHAR", **given):
    with pytest.raises(errors.AiFunctionError) as raised:
        call(endpoint, request_type, **given)
    assert type(raised.value) is kind
    return str(raised.value)


@pytest.mark.parametrize(
    ("endpoint", "request_type", "given", "kind"),
    [
        (CHATTY, "VARCHAR", None, "VARCHAR"),
        (COMPLETE, "VARCHAR", None, "VARCHAR"),
        (CHATTY, "VARCHAR", "STRUCT<a:INT>", 'STRUCT("a" INTEGER)'),
        (EMBED, "VARCHAR", None, "FLOAT[]"),
        (EMBED, "VARCHAR", "ARRAY<DOUBLE>", "DOUBLE[]"),
        (EMBED, "VARCHAR", "FLOAT[3]", "FLOAT[3]"),
        (CUSTOM, ROW, None, "DOUBLE"),
        (CUSTOM, ROW, "BOOLEAN", "BOOLEAN"),
        (UNSIGNED, "VARCHAR", "FLOAT", "FLOAT"),
    ],
)
def test_the_return_type_is_the_given_one_or_the_endpoints_own(endpoint, request_type, given, kind):
    assert call(endpoint, request_type, return_type=given).return_type.sql == kind


@pytest.mark.parametrize(("given", "bound"), [(None, True), (True, True), (False, False)])
def test_fail_on_error_is_true_unless_it_is_false(given, bound):
    assert call(CHATTY, fail_on_error=given).fail_on_error is bound


def test_a_model_without_output_types_needs_a_return_type():
    text = refused(errors.ModelSchemaParseError, UNSIGNED)

    assert '"bare" returns is not known' in text
    assert "returnType => 'DOUBLE'" in text


def test_embeddings_have_no_other_return_type():
    assert "ARRAY<FLOAT>" in refused(errors.UnsupportedReturnTypeError, EMBED, return_type="STRING")


@pytest.mark.parametrize("request_type", ["INTEGER", "STRUCT(a INTEGER)", "VARIANT", "JSON"])
def test_a_language_model_takes_only_strings(request_type):
    text = refused(errors.UnsupportedRequestError, CHATTY, request_type)

    assert f"must be of type STRING, but found {request_type}" in text
    assert "CAST(request AS STRING)" in text


@pytest.mark.parametrize("endpoint", [CHATTY, EMBED, CUSTOM, SINGLE])
def test_a_null_request_binds_anywhere(endpoint):
    assert call(endpoint, '"NULL"').endpoint == endpoint.name


@pytest.mark.parametrize(
    ("endpoint", "request_type"),
    [
        (CUSTOM, ROW),
        (CUSTOM, "STRUCT(age DOUBLE, \"name\" ENUM('a', 'b'), \"any\" INTEGER[], note JSON, more VARIANT)"),
        (SINGLE, "INTEGER"),
        (SINGLE, "DECIMAL(9,2)"),
        (SINGLE, "JSON"),
        (SINGLE, "STRUCT(x FLOAT, y VARCHAR)"),
        (UNSIGNED, "DATE"),
        (UNSIGNED, "STRUCT(x ENUM('VARIANT', 'it''s'), y STRUCT(\"BIT\" INTEGER, VARIANT INTEGER))"),
    ],
)
def test_a_request_that_fits_the_signature_binds(endpoint, request_type):
    assert call(endpoint, request_type, return_type="INT").kind is Kind.CUSTOM


@pytest.mark.parametrize(
    ("endpoint", "request_type", "reason"),
    [
        (CUSTOM, "STRUCT(age INTEGER)", "misses the inputs 'name'"),
        (CUSTOM, "STRUCT(age INTEGER)", "takes age BIGINT, name VARCHAR, note VARCHAR (optional), any anything (optional)"),
        (CUSTOM, 'STRUCT(Age INTEGER, "name" VARCHAR, "any" DATE)', "the request has 'Age', 'name', 'any'"),
        (CUSTOM, 'STRUCT(age VARCHAR, "name" VARCHAR, "any" DATE)', "'age' of serving endpoint \"clf\" must be of type BIGINT, but found VARCHAR"),
        (CUSTOM, "VARCHAR", "must be a STRUCT, but found VARCHAR"),
        (CUSTOM, "VARCHAR", "struct_pack(age := …, name := …)"),
        (SINGLE, "VARCHAR", "must be of type DOUBLE, but found VARCHAR. Write CAST(x AS DOUBLE)"),
        (SINGLE, "DOUBLE[]", "must be of type DOUBLE, but found DOUBLE[]"),
        (SINGLE, "STRUCT(y INTEGER)", "misses the inputs 'x'"),
    ],
)  # fmt: skip
def test_a_request_that_does_not_fit_the_signature_is_refused(endpoint, request_type, reason):
    assert reason in refused(errors.UnsupportedRequestError, endpoint, request_type)


def test_the_example_of_a_struct_is_sql_whatever_the_names():
    schema = pa.schema([pa.field(name, pa.float64(), nullable=False) for name in ("sepal length (cm)", 'a "b"', "x")])
    iris = EndpointInfo(name="iris", kind=Kind.CUSTOM, input_schema=schema, output_type=pa.int64())

    text = refused(errors.UnsupportedRequestError, iris, "VARCHAR")

    assert 'struct_pack("sepal length (cm)" := …, "a ""b""" := …, x := …)' in text


def test_a_signature_without_names_checks_none():
    unnamed = EndpointInfo(
        name="t", kind=Kind.CUSTOM, input_schema=pa.schema([("0", pa.float64()), ("1", pa.float64())])
    )

    assert call(unnamed, "STRUCT(a DOUBLE, b DOUBLE)", return_type="DOUBLE").endpoint == "t"


@pytest.mark.parametrize(
    ("models", "parameters", "sent"),
    [
        (("gpt-4o",), None, {"temperature": 0.0}),
        (("gpt-4o",), '{"max_tokens":100,"temperature":0.7}', {"max_tokens": 100, "temperature": 0.7}),
        (("gpt-4o",), '{"max_tokens":100,"temperature":null}', {"max_tokens": 100, "temperature": 0.0}),
        (("gpt-4o",), "null", {"temperature": 0.0}),
        (("gpt-4o",), "", {"temperature": 0.0}),
        (("o1-mini",), None, {}),
        (("openai/o3",), None, {}),
        (("databricks-gpt-5-mini",), None, {}),
        (("gpt-4o", "gpt-5"), None, {}),
        (("o4-mini",), '{"temperature":1}', {"temperature": 1}),
        (("gpt-4o-mini", "claude-o1x", "gemini-2.0"), None, {"temperature": 0.0}),
        (("claude-sonnet-4",), '{"thinking":{"type":"enabled"}}', {"thinking": {"type": "enabled"}}),
    ],
)  # fmt: skip
def test_temperature_is_zero_unless_set_or_refused_by_the_model(models, parameters, sent):
    endpoint = EndpointInfo(name="c", kind=Kind.EXTERNAL, task=CHAT, model_names=models)

    assert call(endpoint, model_parameters_json=parameters).parameters == sent


def test_embeddings_get_no_temperature():
    assert call(EMBED, model_parameters_json='{"dimensions":256}').parameters == {"dimensions": 256}


@pytest.mark.parametrize(
    ("endpoint", "parameters", "kind", "reason"),
    [
        (CHATTY, '{"messages":[]}', errors.ReservedParameterError, "use the argument request"),
        (CHATTY, '{"model":"x"}', errors.ReservedParameterError, "use the argument endpoint"),
        (CHATTY, '{"stream":true}', errors.ReservedParameterError, '"stream" is reserved'),
        (CHATTY, '{"response_format":{}}', errors.ReservedParameterError, "argument responseFormat"),
        (CHATTY, '{"max_tokens":0}', errors.NumericParameterError, "must be at least 1, but found 0"),
        (CHATTY, '{"temperature":2.1}', errors.NumericParameterError, "must be between 0 and 2"),
        (CHATTY, '{"top_p":0}', errors.NumericParameterError, "must be above 0 and at most 1"),
        (CHATTY, '{"n":6}', errors.NumericParameterError, "must be between 1 and 5"),
        (CHATTY, '{"max_tokens":"100"}', errors.ParameterTypeError, "must be of type INT, but found STRING '100'"),
        (CHATTY, '{"max_tokens":1.5}', errors.ParameterTypeError, "but found DOUBLE"),
        (CHATTY, '{"max_tokens":true}', errors.ParameterTypeError, "but found BOOLEAN"),
        (CHATTY, '{"stop":[1]}', errors.ParameterTypeError, "STRING or ARRAY<STRING>, but found ARRAY"),
        (CHATTY, "5", errors.ParameterTypeError, "must be a STRUCT, but found INT"),
        (CHATTY, '{"temperature":nan}', errors.ParameterTypeError, "cannot be sent as JSON"),
        (CHATTY, '{"max_token":5}', errors.UnsupportedParameterError, 'Did you mean "max_tokens"?'),
        (EMBED, '{"max_tokens":5}', errors.UnsupportedParameterError, "Supported: client_request_id, dimensions"),
        (COMPLETE, '{"tools":[]}', errors.UnsupportedParameterError, '"tools" parameter is not supported'),
        (EMBED, '{"encoding_format":"base64"}', errors.ParameterTypeError, "'float'"),
        (UNSIGNED, '{"max_tokens":5}', errors.ParameterEndpointError, "custom models"),
        (EndpointInfo(name="f", kind=Kind.FOUNDATION, task="x"), '{"n":1}', errors.ParameterSchemaError, "'x'"),
    ],
)  # fmt: skip
def test_each_wrong_parameter_has_its_sub_condition(endpoint, parameters, kind, reason):
    text = refused(kind, endpoint, return_type="ARRAY<FLOAT>", model_parameters_json=parameters)

    assert reason in text
    assert text.endswith("SQLSTATE: 22023")


def test_the_message_has_the_shape_of_databricks():
    text = refused(
        errors.UnsupportedParameterError,
        CHATTY,
        model_parameters_json='{"max_tokens": 8000, "wisdom": {"type": "enabled"}}',
    )

    assert text.startswith(
        "[AI_FUNCTION_INVALID_MODEL_PARAMETERS.UNSUPPORTED_MODEL_PARAMETER] The provided model parameters "
        '({"max_tokens":8000,"wisdom":{"type":"enabled"}}) are invalid in the AI_QUERY function for serving '
        'endpoint "chat". The "wisdom" parameter is not supported for the serving endpoint.'
    )


@pytest.mark.parametrize("endpoint", [COMPLETE, EMBED, UNSIGNED])
def test_structured_output_and_files_are_for_chat_only(endpoint):
    kind = "ARRAY<FLOAT>"

    text = refused(errors.StructuredOutputError, endpoint, return_type=kind, response_format='{"type":"json_object"}')
    assert "[AI_QUERY_ENDPOINT_NOT_SUPPORT_STRUCTURED_OUTPUT]" in text
    assert "argument files" in refused(errors.UnsupportedRequestError, endpoint, return_type=kind, has_files=True)


@pytest.mark.parametrize(
    ("endpoint", "given", "body"),
    [
        (CHATTY, {}, {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.0}),
        (
            CHATTY,
            {"response_format": '{"type":"json_object"}', "model_parameters_json": '{"max_tokens":9}'},
            {
                "messages": [{"role": "user", "content": "hi"}],
                "temperature": 0.0,
                "max_tokens": 9,
                "response_format": {"type": "json_object"},
            },
        ),
        (CHATTY, {"response_format": "text"}, {"messages": [{"role": "user", "content": "hi"}], "temperature": 0.0}),
        (COMPLETE, {}, {"prompt": "hi", "temperature": 0.0}),
        (EMBED, {"model_parameters_json": '{"dimensions":8}'}, {"input": "hi", "dimensions": 8}),
    ],
)  # fmt: skip
def test_a_row_becomes_the_body_of_its_task(endpoint, given, body):
    assert call(endpoint, **given).body("hi") == body


@pytest.mark.parametrize(
    ("image", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0....", "image/jpeg"),
        (b"GIF89a....", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
    ],
)
def test_an_image_travels_as_a_data_url_beside_the_text(image, media_type):
    body = call(CHATTY, has_files=True).body("what is it?", image)

    assert body["messages"][0]["content"] == [
        {"type": "text", "text": "what is it?"},
        {
            "type": "image_url",
            "image_url": {"url": f"data:{media_type};base64,{base64.b64encode(image).decode()}"},
        },
    ]


def test_a_row_without_image_is_asked_as_text():
    assert call(CHATTY, has_files=True).body("hi", None)["messages"][0]["content"] == "hi"


@pytest.mark.parametrize("image", [b"", b"%PDF-1.7", b"RIFF\0\0\0\0WAVE"])
def test_bytes_that_are_no_image_are_refused(image):
    with pytest.raises(errors.UnsupportedRequestError, match="PNG, JPEG, GIF, WebP"):
        call(CHATTY, has_files=True).body("hi", image)


def chat_answer(content):
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}


@pytest.mark.parametrize(
    ("task", "body", "text"),
    [
        (CHAT, chat_answer("hello"), "hello"),
        (CHAT, chat_answer(""), ""),
        (CHAT, chat_answer(None), None),
        (CHAT, {"choices": [{"message": {"refusal": "no"}}]}, None),
        (CHAT, chat_answer([{"type": "reasoning", "summary": []}, {"type": "text", "text": "4"}, {"type": "text", "text": "2"}]), "42"),
        (CHAT, chat_answer([{"type": "reasoning", "text": "hm"}]), None),
        (COMPLETIONS, {"choices": [{"text": "done"}]}, "done"),
    ],
)  # fmt: skip
def test_the_text_of_an_answer_is_its_first_choices(task, body, text):
    assert answer_text(task, body) == text


SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {}}}


def cut(text, reason="length"):
    return {"choices": [{"message": {"content": text}, "finish_reason": reason}]}


@pytest.mark.parametrize(
    ("asked", "text", "reason"),
    [
        ({}, '{"a', "length"),
        ({"response_format": {"type": "text"}}, '{"a', "length"),
        (SCHEMA, '{"a', "stop"),
        (SCHEMA, '{"a": 1}', "length"),
        (SCHEMA, None, "length"),
    ],
)
def test_an_answer_is_whole_unless_it_was_to_be_json_and_is_cut_off(asked, text, reason):
    check_whole(asked, cut(text, reason), text)


def test_json_that_is_cut_off_is_no_answer():
    with pytest.raises(ProviderResponseError, match="cut off by max_tokens") as raised:
        check_whole(SCHEMA, cut('{"a'), '{"a')
    assert isinstance(errors.from_gateway(raised.value), errors.JsonParseError)


@pytest.mark.parametrize(
    ("task", "body", "missing"),
    [
        (CHAT, {}, "choices[0]. Its fields are: nothing"),
        (CHAT, {"choices": [], "id": "x"}, "choices[0]. Its fields are: choices, id"),
        (CHAT, {"choices": None}, "choices[0]"),
        (CHAT, {"choices": ["x"]}, "choices[0]"),
        (CHAT, {"choices": [{"text": "x"}]}, "choices[0].message"),
        (CHAT, chat_answer(42), "choices[0].message.content"),
        (COMPLETIONS, chat_answer("x"), "choices[0].text"),
    ],
)
def test_an_answer_without_its_parts_is_an_invalid_response(task, body, missing):
    with pytest.raises(errors.InvalidHttpResponseError) as raised:
        answer_text(task, body)

    assert f"has no usable {missing}" in str(raised.value)


def test_calls_with_the_same_arguments_are_equal():
    assert call(CHATTY, response_format="text") == call(CHATTY)
    assert call(CHATTY, return_type="INT") != call(CHATTY)
