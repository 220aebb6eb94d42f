"""Answers to values: what fits, what does not, and that one bad row spoils no other."""

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiquery_udfs.casting import cast_arrow, cast_text
from aiquery_udfs.errors import HttpParseCastError, HttpParseColumnsError
from aiquery_udfs.return_type import parse


def moment(*parts):
    return dt.datetime(*parts, tzinfo=dt.UTC).replace(tzinfo=None)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("INT", " 42 ", 42),
        ("INT", "4.0", 4),
        ("INT", '"7"', 7),
        ("TINYINT", "127", 127),
        ("TINYINT", "-128", -128),
        ("INT", "null", None),
        ("DOUBLE", "-1.5e3", -1500.0),
        ("FLOAT", "0.5", 0.5),
        ("DECIMAL(9,2)", "1.005", Decimal("1.01")),
        ("DECIMAL(38,20)", "0.12345678901234567890", Decimal("0.12345678901234567890")),
        ("HUGEINT", "12345678901234567890123", Decimal(12345678901234567890123)),
        ("BOOLEAN", "True", True),
        ("BOOLEAN", "no", False),
        ("DATE", '"2024-05-01"', dt.date(2024, 5, 1)),
        ("TIME", "10:30:00", dt.time(10, 30)),
        ("TIMESTAMP", "2024-05-01T10:00:00+02:00", moment(2024, 5, 1, 8)),
        ("TIMESTAMPTZ", "2024-05-01 10:00:00", dt.datetime(2024, 5, 1, 10, tzinfo=dt.UTC)),
        ("BINARY", "aGk=", b"hi"),
        ("UUID", "{12345678-1234-5678-1234-567812345678}", "12345678-1234-5678-1234-567812345678"),
        ("JSON", ' {"a": 1} ', '{"a": 1}'),
        ("STRUCT<a: INT, b: STRING>", '{"b": "x", "a": "4", "more": 1}', {"a": 4, "b": "x"}),
        ("STRUCT<a: INT, b: STRING>", '{"a": null}', {"a": None, "b": None}),
        ("STRUCT<b: STRING>", '{"b": {"c": [1]}}', {"b": '{"c":[1]}'}),
        ("STRUCT<a: DECIMAL(30,20)>", '{"a": 0.12345678901234567890}', {"a": Decimal("0.12345678901234567890")}),
        ("STRUCT<j: JSON>", '{"j": [1, "x"]}', {"j": '[1,"x"]'}),
        ("ARRAY<FLOAT>", "[1, 2.5, null]", [1.0, 2.5, None]),
        ("FLOAT[2]", "[1, 2]", [1.0, 2.0]),
        ("MAP<STRING, INT>", '{"k": 1}', [("k", 1)]),
    ],
)
def test_a_text_answer_is_read_as_its_type(kind, text, value):
    values, misfits = cast_text([text, None], parse(kind))

    assert misfits == {}
    assert values.to_pylist() == [value, None]
    assert values.type == parse(kind).arrow


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("INT", "forty", "'forty' is not a whole number"),
        ("INT", "", "'' is not a whole number"),
        ("INT", "4.5", "is not a whole number"),
        ("INT", "1_000", "is not a whole number"),
        ("INT", "99999999999", "is not between -2147483648 and 2147483647"),
        ("TINYINT", "128", "is not between -128 and 127"),
        ("TINYINT", "-129", "is not between -128 and 127"),
        ("UTINYINT", "-1", "is not between 0 and 255"),
        ("INT", "1e999999999", "is out of range"),
        ("INT", "NaN", "is not a whole number"),
        ("FLOAT", "1e39", "is too large"),
        ("DOUBLE", "1e309", "is too large"),
        ("DECIMAL(4,2)", "100", "has more than 2 digits before the point"),
        ("DECIMAL(4,2)", "inf", "is not a number"),
        ("STRUCT<a: DECIMAL(4,2)>", '{"a": 1e999999}', "it is not JSON"),
        ("BOOLEAN", "2", "is neither true nor false"),
        ("DATE", "tomorrow", "is not a date (YYYY-MM-DD)"),
        ("DATE", "2024-05-01T10:00:00", "has a time of day"),
        ("TIME", "noon", "is not a time"),
        ("TIMESTAMP", "0001-01-01T00:00:00+23:00", "is out of range"),
        ("BINARY", "?", "is not base64 text"),
        ("UUID", "x", "is not a UUID"),
        ("JSON", "{", "it is not JSON"),
        ("STRUCT<a: INT>", '{"a": 1', "it is not JSON"),
        ("STRUCT<a: INT>", "[1]", "[1] is not an object"),
        ("STRUCT<a: INT>", '{"a": {}}', "in field 'a', {} is not a whole number"),
        ("STRUCT<a: INT>", '{"a": true}', "in field 'a', true is not a whole number"),
        ("STRUCT<a: DECIMAL(4,2)>", '{"a": NaN}', "it is not JSON"),
        ("ARRAY<INT>", '{"a": 1}', "is not a list"),
        ("ARRAY<INT>", '[1, "x"]', "in element 1, 'x' is not a whole number"),
        ("FLOAT[2]", "[1]", "it has 1 elements, not 2"),
        ("MAP<STRING, INT>", "[]", "[] is not an object"),
        ("MAP<STRING, INT>", '{"k": "v"}', "in key 'k', 'v' is not a whole number"),
    ],
)
def test_a_text_answer_that_does_not_fit_is_its_own_rows_error(kind, text, reason):
    values, misfits = cast_text([text, "null"], parse(kind))

    assert values.to_pylist() == [None, None] or kind == "JSON"
    assert list(misfits) == [0]
    assert isinstance(misfits[0], HttpParseCastError)
    assert reason in misfits[0].message
    assert f"the returnType {parse(kind).sql}" in misfits[0].message
    assert str(misfits[0]).endswith("SQLSTATE: 2203G")


def test_a_string_stays_as_it_is():
    texts = [" 42 ", "null", '"x"', "", None]

    assert cast_text(texts, parse("STRING"))[0].to_pylist() == texts


def test_a_fenced_answer_is_an_error_that_says_so():
    _, misfits = cast_text(['```json\n{"a": 1}\n```'], parse("STRUCT<a: INT>"))

    assert "fenced as a code block" in misfits[0].message


def test_a_long_answer_is_cut_in_the_error():
    _, misfits = cast_text(["x" * 5000], parse("STRUCT<a: INT>"))

    assert len(misfits[0].message) < 600
    assert misfits[0].message.endswith("x…")


@pytest.mark.parametrize(
    ("predictions", "kind", "expected"),
    [
        (pa.array([1, None], pa.int8()), "BIGINT", [1, None]),
        (pa.array([1.0, 2.0]), "INT", [1, 2]),
        (pa.array([2**60 + 1]), "DOUBLE", [float(2**60 + 1)]),
        (pa.array([0.1]), "FLOAT", [pytest.approx(0.1)]),
        (pa.array([float("inf"), float("nan")]), "FLOAT", [float("inf"), pytest.approx(float("nan"), nan_ok=True)]),
        (pa.array([True, False]), "INT", [1, 0]),
        (pa.array([0, 1, None]), "BOOLEAN", [False, True, None]),
        (pa.array([1.0, 0.0]), "BOOLEAN", [True, False]),
        (pa.array([1, 2]), "STRING", ["1", "2"]),
        (pa.array(["a"], pa.large_string()), "STRING", ["a"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), "STRING", ["a", "b", "a"]),
        (pa.array(["4", None]), "INT", [4, None]),
        (pa.array(['{"a": 1}']), "STRUCT<a: INT>", [{"a": 1}]),
        (pa.array([dt.date(2024, 1, 2)]), "STRING", ["2024-01-02"]),
        (pa.array([moment(2024, 1, 2)]), "DATE", [dt.date(2024, 1, 2)]),
        (pa.array([1], pa.timestamp("ns")), "TIMESTAMP", [moment(1970, 1, 1)]),
        (pa.array([1.25]), "DECIMAL(4,2)", [Decimal("1.25")]),
        (pa.array([7]), "DECIMAL(4,2)", [Decimal("7.00")]),
        (pa.array([[1.0, 2.0], None]), "ARRAY<FLOAT>", [[1.0, 2.0], None]),
        (pa.array([[1.0, 2.0]], pa.list_(pa.float64(), 2)), "ARRAY<FLOAT>", [[1.0, 2.0]]),
        (pa.array([[1, 2]]), "FLOAT[2]", [[1.0, 2.0]]),
        (pa.array([{"a": 1}, None]), "DOUBLE", [1.0, None]),
        (pa.array([{"a": 1, "b": "x"}, None]), "STRUCT<b: STRING, a: DOUBLE, c: INT>", [{"b": "x", "a": 1.0, "c": None}, None]),
        (pa.array([{"a": 1, "b": "x"}]), "VARIANT", ['{"a":1,"b":"x"}']),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), "MAP<STRING, INT>", [[("k", 1)]]),
        (pa.nulls(2), "ARRAY<FLOAT>", [None, None]),
        (pa.chunked_array([[1], [2]]), "DOUBLE", [1.0, 2.0]),
        (pa.array([], pa.int64()), "STRING", []),
    ],
)  # fmt: skip
def test_predictions_are_cast_to_the_return_type(predictions, kind, expected):
    values, misfits = cast_arrow(predictions, parse(kind))

    assert misfits == {}
    assert values.to_pylist() == expected
    assert values.type == parse(kind).arrow


@pytest.mark.parametrize(
    ("predictions", "kind", "expected", "wrong"),
    [
        (pa.array([1.0, 2.5, float("nan")]), "INT", [1, None, None], [1, 2]),
        (pa.array([300, 1]), "TINYINT", [None, 1], [0]),
        (pa.array([1e300, 1.0]), "FLOAT", [None, 1.0], [0]),
        (pa.array([0, 2]), "BOOLEAN", [False, None], [1]),
        (pa.array(["1", "x"]), "INT", [1, None], [1]),
        (pa.array([dt.date(2024, 1, 2)]), "INT", [None], [0]),
        (pa.array([5]), "DATE", [None], [0]),
        (pa.array([[1.0], [1e300]]), "ARRAY<FLOAT>", [[1.0], None], [1]),
        (pa.array([[1.0], [1.0, 2.0]]), "FLOAT[2]", [None, [1.0, 2.0]], [0]),
        (pa.array([1000.0, 1.0]), "DECIMAL(4,2)", [None, Decimal("1.00")], [0]),
        (pa.array([2.5]), "HUGEINT", [None], [0]),
        (pa.array([{"a": 1.5, "b": "x"}, {"a": 2.0, "b": "y"}]), "STRUCT<a: INT>", [None, {"a": 2}], [0]),
        (pa.array([1, 2]), "STRUCT<a: INT>", [None, None], [0, 1]),
    ],
)  # fmt: skip
def test_a_prediction_that_does_not_fit_is_its_own_rows_error(predictions, kind, expected, wrong):
    values, misfits = cast_arrow(predictions, parse(kind))

    assert values.to_pylist() == expected
    assert sorted(misfits) == wrong
    assert all(isinstance(error, HttpParseCastError) for error in misfits.values())


@pytest.mark.parametrize("kind", ["INT", "STRING", "ARRAY<FLOAT>"])
def test_several_columns_for_one_value_are_every_rows_error(kind):
    values, misfits = cast_arrow(pa.array([{"a": 1, "b": 2}] * 2), parse(kind))

    assert values.to_pylist() == [None, None]
    assert isinstance(misfits[0], HttpParseColumnsError)
    assert "returns 2 columns ('a', 'b')" in misfits[1].message


def test_the_misfits_of_all_fields_of_a_struct_are_told():
    column = pa.array([{"a": 1.5, "b": "1"}, {"a": 2.0, "b": "x"}, {"a": 3.0, "b": "3"}])

    values, misfits = cast_arrow(column, parse("STRUCT<a: INT, b: INT>"))

    assert values.to_pylist() == [None, None, {"a": 3, "b": 3}]
    assert sorted(misfits) == [0, 1]


def test_a_sliced_struct_column_keeps_its_rows():
    column = pa.array([{"a": 1}, {"a": 2}, None, {"a": 4}])[1:]

    assert cast_arrow(column, parse("STRUCT<a: DOUBLE>"))[0].to_pylist() == [{"a": 2.0}, None, {"a": 4.0}]


def test_a_column_of_the_right_type_is_returned_untouched():
    column = pa.array([1.0, 2.0])

    assert cast_arrow(column, parse("DOUBLE"))[0] is column


NUMBERS = st.one_of(
    st.none(), st.sampled_from([0, 1, -1, 127, 128, 2**31, 2**53 + 1, 2**63 - 1]), st.integers(-300, 300)
)


@given(st.lists(NUMBERS), st.sampled_from(["TINYINT", "INT", "DOUBLE", "DECIMAL(6,2)", "BOOLEAN"]))
def test_a_column_cast_at_once_agrees_with_its_rows_cast_alone(numbers, kind):
    together, misfits = cast_arrow(pa.array(numbers, pa.int64()), parse(kind))

    for row, number in enumerate(numbers):
        alone, wrong = cast_arrow(pa.array([number], pa.int64()), parse(kind))
        assert alone.to_pylist() == [together[row].as_py()]
        assert (row in misfits) == bool(wrong)
