"""returnType text to types and back: Databricks' spelling, DuckDB's, Arrow's."""

import contextlib

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiquery_udfs.errors import UnsupportedReturnTypeError
from aiquery_udfs.return_type import ReturnType, from_arrow, parse, structure
from aiquery_udfs.type_tokens import struct_fields


@pytest.fixture(scope="module")
def duck():
    with duckdb.connect() as connection:
        yield connection


def typed(duck, text):
    literal = text.replace("'", "''")
    row = duck.execute(f"SELECT typeof(cast_to_type(NULL, from_json('null', '{literal}')))").fetchone()
    return row[0]


@pytest.mark.parametrize(
    ("text", "duckdb_type"),
    [
        ("STRING", "VARCHAR"),
        ("string", "VARCHAR"),
        ("VARCHAR(10)", "VARCHAR"),
        ("INT", "INTEGER"),
        ("BIGINT", "BIGINT"),
        ("LONG", "BIGINT"),
        ("TINYINT", "TINYINT"),
        ("UBIGINT", "UBIGINT"),
        ("HUGEINT", "HUGEINT"),
        ("FLOAT", "FLOAT"),
        ("DOUBLE PRECISION", "DOUBLE"),
        ("BOOLEAN", "BOOLEAN"),
        ("BINARY", "BLOB"),
        ("DATE", "DATE"),
        ("TIME", "TIME"),
        ("TIMESTAMP", "TIMESTAMP"),
        ("TIMESTAMP_NTZ", "TIMESTAMP"),
        ("TIMESTAMP WITH TIME ZONE", "TIMESTAMP WITH TIME ZONE"),
        ("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE"),
        ("DECIMAL(9,2)", "DECIMAL(9,2)"),
        ("DECIMAL(9)", "DECIMAL(9,0)"),
        ("DECIMAL", "DECIMAL(18,3)"),
        ("UUID", "UUID"),
        ("JSON", "JSON"),
        ("VARIANT", "VARIANT"),
        ("ARRAY<FLOAT>", "FLOAT[]"),
        ("ARRAY < ARRAY <INT> >", "INTEGER[][]"),
        ("FLOAT[]", "FLOAT[]"),
        ("INT[3]", "INTEGER[3]"),
        ("INT[3][]", "INTEGER[3][]"),
        ("MAP<STRING,INT>", "MAP(VARCHAR, INTEGER)"),
        ("MAP(VARCHAR, INT)", "MAP(VARCHAR, INTEGER)"),
        ("STRUCT<a:INT>", "STRUCT(a INTEGER)"),
        ("STRUCT<a: BIGINT NOT NULL COMMENT 'the a', b STRING>", "STRUCT(a BIGINT, b VARCHAR)"),
        ("STRUCT(a INT, b STRUCT(c DATE)[])", "STRUCT(a INTEGER, b STRUCT(c DATE)[])"),
        ("a INT, b STRING", "STRUCT(a INTEGER, b VARCHAR)"),
        ("timestamp TIMESTAMP, text: STRING", 'STRUCT("timestamp" TIMESTAMP, "text" VARCHAR)'),
        ("STRUCT<`a b`: INT, `c``d`: INT>", 'STRUCT("a b" INTEGER, "c`d" INTEGER)'),
        ('STRUCT("A b" INT, "c""d" INT)', 'STRUCT("A b" INTEGER, "c""d" INTEGER)'),
        ("STRUCT<Select: INT, größe: INT>", 'STRUCT("Select" INTEGER, größe INTEGER)'),
    ],
)
def test_type_text_of_either_dialect_becomes_a_duckdb_type(duck, text, duckdb_type):
    kind = parse(text)

    assert typed(duck, structure(kind, True)) == typed(duck, f'"{_escaped(duckdb_type)}"')


def _escaped(text):
    return text.replace('"', '\\"')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("StringType", "is the name of a class"),
        ("ArrayType(StringType())", "is the name of a class"),
        ("Nonsense", "there is no type 'Nonsense'"),
        ("STRUCT<a: Nonsense>", "there is no type 'Nonsense'"),
        ("INTERVAL", "there is no type 'INTERVAL'"),
        ("STRUCT<a: INT", "'>' is missing before the end"),
        ("STRUCT<a: INT)", "'>' is missing before ')'"),
        ("STRUCT<a: INT>>", "after the end of the type"),
        ("INT)", "after the end of the type"),
        ("STRUCT", "STRUCT must say of what"),
        ("STRUCT<>", "a field name is missing"),
        ("ARRAY<INT, INT>", "ARRAY takes 1 type(s), got 2"),
        ("MAP<INT>", "MAP takes 2 type(s), got 1"),
        ("STRUCT<a: INT, A: INT>", "the field 'A' appears twice"),
        ("a INT,", "it ends too early"),
        ("DECIMAL(39,0)", "a precision of 1 to 38"),
        ("DECIMAL(2,3)", "a precision of 1 to 38"),
        ("INT[x]", "a number should stand"),
        ("STRUCT<a: INT; DROP TABLE t>", "cannot be read from '; DROP TABLE t>'"),
        ("ARRAY<" * 70 + "INT" + ">" * 70, "nested more than 64 deep"),
    ],
)
def test_text_that_is_no_type_is_refused_with_a_reason_and_the_way_out(text, reason):
    with pytest.raises(UnsupportedReturnTypeError) as raised:
        parse(text)

    assert reason in raised.value.message
    assert "Write SQL type text such as 'STRING'" in raised.value.message
    assert str(raised.value).startswith("[AI_FUNCTION_UNSUPPORTED_RETURN_TYPE] ")
    assert str(raised.value).endswith("SQLSTATE: 0A000")


def test_a_struct_may_be_wider_than_types_may_be_deep():
    text = ", ".join(f"column_{number} INT" for number in range(500))

    assert len(parse(text).fields) == 500


SCALARS = st.sampled_from(
    [
        "BOOLEAN",
        "TINYINT",
        "UBIGINT",
        "INTEGER",
        "FLOAT",
        "DOUBLE",
        "VARCHAR",
        "BLOB",
        "DATE",
        "TIMESTAMP",
        "JSON",
        "VARIANT",
    ]
).map(ReturnType)
DECIMALS = st.tuples(st.integers(1, 38), st.integers(0, 38)).map(
    lambda pair: ReturnType("DECIMAL", (max(pair), min(pair)))
)
NAMES = st.text(st.sampled_from('ab Z_1"`<>:,()[]é') | st.characters(exclude_categories=("C",)), min_size=1)


def structs(field):
    named = st.dictionaries(NAMES, field, min_size=1, max_size=3).filter(
        lambda fields: len({name.lower() for name in fields}) == len(fields)
    )
    return named.map(lambda fields: ReturnType("STRUCT", fields=tuple(fields.items())))


def nested(item):
    return (
        item.map(lambda kind: ReturnType("LIST", fields=(("item", kind),)))
        | item.map(lambda kind: ReturnType("ARRAY", (3,), (("item", kind),)))
        | item.map(lambda kind: ReturnType("MAP", fields=(("key", ReturnType("VARCHAR")), ("value", kind))))
        | structs(item)
    )


KINDS = st.recursive(SCALARS | DECIMALS, nested, max_leaves=6)


@given(KINDS)
def test_the_text_of_a_type_parses_to_itself(kind):
    assert parse(kind.sql) == kind
    assert parse(str(kind)) == kind


@given(KINDS)
@settings(max_examples=50, deadline=None)
def test_duckdb_accepts_the_text_of_every_type(kind):
    with duckdb.connect() as connection:
        assert typed(connection, structure(kind, True))


@given(st.text(st.sampled_from("STRUCT ARRAY INT a<>():,[]`\"' 3")))
def test_no_text_makes_the_parser_fail_in_another_way(text):
    with contextlib.suppress(UnsupportedReturnTypeError):
        assert parse(parse(text).sql) == parse(text)


@pytest.mark.parametrize(
    ("arrow", "sql"),
    [
        (pa.int64(), "BIGINT"),
        (pa.uint8(), "UTINYINT"),
        (pa.float16(), "FLOAT"),
        (pa.float32(), "FLOAT"),
        (pa.float64(), "DOUBLE"),
        (pa.bool_(), "BOOLEAN"),
        (pa.string(), "VARCHAR"),
        (pa.large_string(), "VARCHAR"),
        (pa.null(), "VARCHAR"),
        (pa.dictionary(pa.int8(), pa.string()), "VARCHAR"),
        (pa.large_binary(), "BLOB"),
        (pa.date64(), "DATE"),
        (pa.timestamp("ns"), "TIMESTAMP"),
        (pa.timestamp("s", "Europe/Paris"), "TIMESTAMP WITH TIME ZONE"),
        (pa.decimal128(9, 2), "DECIMAL(9,2)"),
        (pa.list_(pa.float32()), "FLOAT[]"),
        (pa.list_(pa.float32(), 3), "FLOAT[3]"),
        (pa.struct([("a", pa.int32())]), 'STRUCT("a" INTEGER)'),
        (pa.map_(pa.string(), pa.int32()), "MAP(VARCHAR, INTEGER)"),
    ],
)
def test_an_arrow_type_becomes_the_sql_type(arrow, sql):
    assert from_arrow(arrow).sql == sql


def test_an_arrow_type_without_sql_type_says_to_set_the_return_type():
    with pytest.raises(UnsupportedReturnTypeError, match="Set returnType"):
        from_arrow(pa.duration("s"))


@given(KINDS.filter(lambda kind: "JSON" not in kind.sql and "VARIANT" not in kind.sql))
def test_a_type_survives_the_way_through_arrow(kind):
    assert from_arrow(kind.arrow) == kind


def test_a_result_with_error_message_is_a_struct_of_both(duck):
    text = structure(parse("STRUCT<a: INT>"), False)

    assert typed(duck, text) == "STRUCT(result STRUCT(a INTEGER), errorMessage VARCHAR)"


@pytest.mark.parametrize(
    ("expression", "fields"),
    [
        ("{'a': 1, 'b c': 'x'}", {"a": "INTEGER", "b c": "VARCHAR"}),
        ("{'a': {'x': 1, 'y': 2}}", {"a": "STRUCT(x INTEGER, y INTEGER)"}),
        ("{'a': NULL, 'd': 1.5, 'l': [1]}", {"a": '"NULL"', "d": "DECIMAL(2,1)", "l": "INTEGER[]"}),
        ("{'e': 'p,q'::ENUM('p,q', '(')}", {"e": "ENUM('p,q', '(')"}),
        ("[{'a': 1}]", None),
        ("'x'", None),
    ],
)
def test_the_fields_of_a_duckdb_struct_type_are_found(duck, expression, fields):
    text = duck.execute(f"SELECT typeof({expression})").fetchone()[0]

    assert struct_fields(text) == fields
