"""responseFormat text to the REST API's object: contract A.6 with its rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_udfs.errors import (
    InvalidResponseFormatError,
    ResponseFormatDdlError,
    ResponseFormatJsonError,
)
from aiquery_udfs.response_format import json_schema, parse
from aiquery_udfs.return_type import parse as parse_type

PAPER = (
    "STRUCT<research_paper_extraction:STRUCT<title:STRING, authors:ARRAY<STRING>, "
    "abstract:STRING, keywords:ARRAY<STRING>>>"
)


@pytest.mark.parametrize("text", ["text", " TEXT ", '{"type":"text"}'])
def test_plain_text_needs_no_response_format(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"json_object"}',
        '{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object"},"strict":true}}',
    ],
)
def test_json_is_sent_as_it_is(text):
    import json

    assert parse(text) == json.loads(text)


def test_ddl_becomes_a_strict_schema_named_after_its_one_field():
    strings = {"type": "array", "items": {"type": "string"}}

    assert parse(PAPER) == {
        "type": "json_schema",
        "json_schema": {
            "name": "research_paper_extraction",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "title": {"type": "string"},
                    "authors": strings,
                    "abstract": {"type": "string"},
                    "keywords": strings,
                },
                "required": ["title", "authors", "abstract", "keywords"],
                "additionalProperties": False,
            },
        },
    }


@pytest.mark.parametrize("text", ["STRUCT<r:STRUCT<a:STRING>>", "r STRUCT<a: STRING>", "STRUCT(r STRUCT(a VARCHAR))"])
def test_ddl_may_be_written_in_either_dialect(text):
    assert parse(text)["json_schema"]["name"] == "r"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("STRUCT<title:STRING, authors:ARRAY<STRING>>", "Only one field is allowed on the top-level."),
        ("STRUCT<x:ARRAY<STRING>>", "top-level field `x` should be StructType, but found: ArrayType"),
        ("STRUCT<x:STRING>", "top-level field `x` should be StructType, but found: StringType"),
        ("STRUCT<x:BIGINT>", "but found: LongType"),
        ("STRUCT<x:DOUBLE>", "but found: DoubleType"),
        ("ARRAY<STRING>", "should be StructType, but found: ArrayType"),
    ],
)
def test_ddl_must_be_one_top_level_struct(text, reason):
    with pytest.raises(ResponseFormatDdlError) as raised:
        parse(text)

    assert reason in str(raised.value)
    assert str(raised.value).startswith("[AI_FUNCTION_UNSUPPORTED_RESPONSE_FORMAT.DDL_STRING] ")
    assert str(raised.value).endswith("SQLSTATE: 0A000")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"type":"object","properties":{"a":{"type":"string"}}}', "'object'"),
        ('{"properties":{}}', "None"),
        ('{"type":["json_object"]}', "['json_object']"),
        ("[1]", "None"),
    ],
)
def test_a_bare_schema_or_another_type_lists_the_supported_types(text, found):
    with pytest.raises(ResponseFormatJsonError) as raised:
        parse(text)

    assert f"unsupported type: {found}. Supported types: text, json_object, json_schema." in str(raised.value)
    assert "AI_FUNCTION_UNSUPPORTED_RESPONSE_FORMAT.JSON_STRING" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a valid DDL string"),
        ("json_object", "only the name of one"),
        ("STRUCT<a: Nonsense>", "there is no type 'Nonsense'"),
        ('{"type":', "not a valid JSON string"),
        ('{"type":"json_schema"}', "json_schema.name must be a string"),
        ('{"type":"json_schema","json_schema":{"schema":{"type":"object"}}}', "json_schema.name"),
        ('{"type":"json_schema","json_schema":{"name":"n","schema":7}}', "json_schema.schema must be"),
    ],
)
def test_text_that_cannot_be_read_is_refused(text, reason):
    with pytest.raises(InvalidResponseFormatError) as raised:
        parse(text)

    assert reason in str(raised.value)
    assert "returnType" not in str(raised.value)
    assert str(raised.value).startswith("[AI_FUNCTION_INVALID_RESPONSE_FORMAT_TYPE] ")


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        ("STRING", {"type": "string"}),
        ("BOOLEAN", {"type": "boolean"}),
        ("TINYINT", {"type": "integer"}),
        ("BIGINT", {"type": "integer"}),
        ("FLOAT", {"type": "number"}),
        ("DECIMAL(9,2)", {"type": "number"}),
        ("DATE", {"type": "string"}),
        ("TIMESTAMP", {"type": "string"}),
        ("VARIANT", {}),
        ("ARRAY<INT>", {"type": "array", "items": {"type": "integer"}}),
        ("MAP<STRING, DOUBLE>", {"type": "object", "additionalProperties": {"type": "number"}}),
    ],
)
def test_every_type_has_a_json_schema(kind, schema):
    assert json_schema(parse_type(kind)) == schema


@given(st.text(st.sampled_from('STRUCT a:INT<>{}"type[],')))
def test_no_text_is_answered_with_another_error(text):
    try:
        answer = parse(text)
    except (InvalidResponseFormatError, ResponseFormatDdlError, ResponseFormatJsonError):
        return
    assert answer is None or answer["type"] in ("json_object", "json_schema")
