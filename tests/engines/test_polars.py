"""Polars: the same answers, errors and calls as in SQL, whichever of its engines evaluates them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial

import polars as pl
import pytest
from engine_endpoints import external
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from providers import status, vector

import aiquery.polars
from aiquery_serving.errors import InvalidRequestError
from aiquery_udfs import polars_engine
from aiquery_udfs.errors import (
    AiFunctionError,
    HttpParseCastError,
    InvalidArgumentError,
    InvalidModelParametersError,
    UnsupportedRequestError,
    UnsupportedReturnTypeError,
)
from aiquery_udfs.polars_engine import SLICE_ROWS

ENGINES = ["in-memory", "streaming"]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


@pytest.fixture(autouse=True)
def default_workspace(workspace):
    aiquery.polars.use(workspace)
    yield
    aiquery.polars.use(None)


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture
def mixed():
    """Twenty rows, every second one of group x, the texts all different."""
    return pl.LazyFrame({"group": ["x", "y"] * 10, "text": [f"n{i}" for i in range(20)], "number": range(20)})


def prompts(server) -> list[str]:
    return [body["messages"][-1]["content"] for body in server.requests]


def ask(column="text", **options) -> pl.Expr:
    return pl.col(column).ai.query("chat", **options)


@pytest.mark.parametrize("rows", [0, 1, 2, SLICE_ROWS - 1, SLICE_ROWS, SLICE_ROWS + 1])
def test_rows_keep_their_order(server, engine, rows):
    texts = [f"n{i}" for i in range(rows)]
    frame = pl.LazyFrame({"text": pl.Series(texts, dtype=pl.String)})

    found = frame.with_columns(answer=ask()).collect(engine=engine)

    assert found["answer"].to_list() == [f"echo: {text}" for text in texts]
    assert Counter(prompts(server)) == Counter(texts)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.one_of(st.none(), st.sampled_from("abc"), st.text(max_size=5))))
def test_nulls_are_not_asked_and_duplicates_once(server, texts):
    server.requests.clear()

    found = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)}).select(ask())

    assert found["text"].to_list() == [None if text is None else f"echo: {text}" for text in texts]
    assert Counter(prompts(server)) == Counter(set(texts) - {None})


def test_duplicates_of_far_slices_are_asked_once(server):
    frame = pl.DataFrame({"text": [f"n{i // 7 % 900}" for i in range(20_000)]})

    found = frame.select(ask())

    assert found["text"].to_list() == [f"echo: {text}" for text in frame["text"]]
    assert len(server.requests) == 900


def test_a_literal_is_asked_once(server, mixed):
    found = mixed.select("number", answer=pl.lit("once").ai.query("chat")).collect()

    assert found["answer"].to_list() == ["echo: once"] * 20
    assert len(server.requests) == 1


def test_a_long_run_of_duplicates_spoils_nothing_that_is_under_way(server, monkeypatch):
    monkeypatch.setattr(polars_engine, "SLICE_ROWS", 20)
    server.delay = 0.05
    frame = pl.DataFrame({"text": ["same"] * 600 + [f"n{i}" for i in range(200)]})

    found = frame.select(ask())

    assert found["text"].to_list() == [f"echo: {text}" for text in frame["text"]]
    assert len(server.requests) == 201


def test_the_endpoint_is_busy_across_slices(server, monkeypatch):
    monkeypatch.setattr(polars_engine, "SLICE_ROWS", 50)
    server.delay = lambda body: 0.5 if body["messages"][0]["content"] == "n0" else 0.0
    pl.DataFrame({"text": [f"n{i}" for i in range(500)]}).select(ask())

    slowest = server.stats.accepted[prompts(server).index("n0")] + 0.5

    assert all(moment < slowest for moment in server.stats.accepted)


@pytest.mark.parametrize(
    ("select", "asked"),
    [
        (lambda lf: lf.filter(pl.col("group") == "x").select(ask()), 10),
        (lambda lf: lf.with_columns(a=ask()).filter(pl.col("group") == "x"), 10),
        (lambda lf: lf.filter(pl.col("group") == "x").filter(ask() != ""), 10),
        (lambda lf: lf.filter(pl.col("group") == "x", ask() != ""), 10),
        (lambda lf: lf.filter(pl.col("group") == "x").with_columns(a=ask()).filter(pl.col("a") != ""), 10),
        (lambda lf: lf.head(3).select(ask()), 3),
        (lambda lf: lf.select(ask()).head(3), 3),
        (lambda lf: lf.with_columns(a=ask()).slice(4, 5), 5),
        (lambda lf: lf.with_columns(a=ask()).tail(2), 2),
        (lambda lf: lf.with_columns(a=ask()).select("number"), 0),
        (lambda lf: lf.filter(pl.col("group") == "none").select(ask()), 0),
        (lambda lf: lf.group_by("group").agg(ask()), 20),
        (lambda lf: lf.group_by("group").agg(pl.col("text").first().ai.query("chat")), 2),
        (lambda lf: lf.group_by("group").agg(pl.col("text").filter(pl.col("number") > 15).ai.query("chat")), 4),
        (lambda lf: lf.select(ask().over("group")), 20),
        (lambda lf: lf.select(pl.when(pl.col("group") == "x").then("text").ai.query("chat")), 10),
        (lambda lf: lf.select(ask(fail_on_error=False).alias("a")).unnest("a"), 20),
        (lambda lf: lf.select(ask().ai.query("chat")), 40),
    ],
)
def test_only_the_rows_that_count_are_asked(server, engine, mixed, select, asked):
    select(mixed).collect(engine=engine)

    assert len(server.requests) == asked


@pytest.mark.parametrize(
    "look",
    [
        pl.LazyFrame.collect_schema,
        pl.LazyFrame.explain,
        lambda lf: lf.explain(engine="streaming"),
        repr,
        lambda lf: lf.filter(pl.col("text") != "a").collect_schema(),
    ],
)
def test_a_plan_sends_nothing(server, mixed, look):
    look(mixed.with_columns(ask(), number=ask(return_dtype=pl.Int8, fail_on_error=False)))

    assert server.requests == []


@pytest.mark.parametrize("engine", ENGINES)
def test_groups_and_windows_get_their_own_answers(mixed, engine):
    grouped = mixed.group_by("group", maintain_order=True).agg(ask().alias("a"), pl.col("text")).collect(engine=engine)
    windowed = mixed.select("text", a=ask().over("group")).collect(engine=engine)

    assert grouped["a"].to_list() == [[f"echo: {text}" for text in texts] for texts in grouped["text"]]
    assert windowed["a"].to_list() == [f"echo: {text}" for text in windowed["text"]]


MOMENT = datetime(2024, 5, 6, 7, 8, 9, 123000)  # noqa: DTZ001 - a TIMESTAMP has no zone
TYPES = [
    (pl.String, "VARCHAR", "hi", "hi"),
    (pl.Boolean, "BOOLEAN", "true", True),
    (pl.Int8, "TINYINT", "-128", -128),
    (pl.Int16, "SMALLINT", "-32768", -32768),
    (pl.Int32, "INTEGER", "2147483647", 2147483647),
    (pl.Int64, "BIGINT", "-9223372036854775808", -(2**63)),
    (pl.UInt8, "UTINYINT", "255", 255),
    (pl.UInt16, "USMALLINT", "65535", 65535),
    (pl.UInt32, "UINTEGER", "4294967295", 2**32 - 1),
    (pl.UInt64, "UBIGINT", "18446744073709551615", 2**64 - 1),
    (pl.Float32, "FLOAT", "0.5", 0.5),
    (pl.Float64, "DOUBLE", "0.1", 0.1),
    (pl.Decimal(9, 2), "DECIMAL(9,2)", "1234.56", Decimal("1234.56")),
    (pl.Decimal(38, 0), "HUGEINT", "9" * 38, Decimal("9" * 38)),
    (pl.Date, "DATE", "2024-05-06", MOMENT.date()),
    (pl.Time, "TIME", "07:08:09.123", MOMENT.time()),
    (pl.Datetime("us"), "TIMESTAMP", "2024-05-06 07:08:09.123", MOMENT),
    (pl.Datetime("us", "UTC"), "TIMESTAMPTZ", "2024-05-06T07:08:09.123Z", MOMENT.replace(tzinfo=UTC)),
    (pl.Binary, "BLOB", "AAEC", b"\0\1\2"),
    (pl.String, "JSON", '{"a": [1, 2.50]}', '{"a": [1, 2.50]}'),
    (pl.String, "VARIANT", '{"a":1}', '{"a":1}'),
    (pl.String, "UUID", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
    (pl.List(pl.Int32), "INT[]", "[1, null, 3]", [1, None, 3]),
    (pl.List(pl.List(pl.String)), "ARRAY<ARRAY<STRING>>", '[["a"], []]', [["a"], []]),
    (pl.Array(pl.Float32, 3), "FLOAT[3]", "[1, 2, 3.5]", [1, 2, 3.5]),
    (pl.Array(pl.Int8, (2, 2)), "TINYINT[2][2]", "[[1, 2], [3, 4]]", [[1, 2], [3, 4]]),
    (
        pl.Struct({"a": pl.Int64, "B c": pl.List(pl.Date)}),
        'STRUCT<a: BIGINT, "B c": ARRAY<DATE>>',
        '{"a": 1, "B c": ["2024-05-06"]}',
        {"a": 1, "B c": [MOMENT.date()]},
    ),
    (pl.Struct({"j": pl.String}), "STRUCT<j: JSON>", '{"j": {"k": 1}}', {"j": '{"k":1}'}),
]
#: Types that SQL spells as another one, or not so finely.
OTHERS = [
    (pl.Int128, "9" * 38, int("9" * 38)),
    (pl.Datetime("ms"), "2024-05-06 07:08:09.123", MOMENT),
    (pl.Datetime("ms", "Europe/Berlin"), "2024-05-06T07:08:09.123Z", MOMENT.replace(tzinfo=UTC)),
    (int, "4", 4),
    (str, "4", "4"),
]


@pytest.mark.parametrize(("dtype", "sql", "text", "value"), TYPES, ids=[sql for _, sql, _, _ in TYPES])
def test_every_type_comes_as_polars_or_as_sql_spells_it(server, dtype, sql, text, value):
    server.answer = lambda prompt: text if prompt == "good" else "no such thing"
    rows = pl.LazyFrame({"text": ["good", None, "bad"]})
    by_sql = rows.head(2).select(a=ask(return_dtype=sql))
    found = [by_sql]
    if sql not in ("JSON", "VARIANT", "UUID", "HUGEINT", "STRUCT<j: JSON>"):
        found.append(rows.head(2).select(a=ask(return_dtype=dtype)))

    for frame in found:
        assert frame.collect_schema()["a"] == dtype
        column = frame.collect()["a"]
        assert column.dtype == dtype
        assert column.to_list() == [value, None]


@pytest.mark.parametrize(("dtype", "text", "value"), OTHERS)
def test_types_that_sql_has_not_are_cast(server, dtype, text, value):
    server.answer = lambda prompt: text
    frame = pl.LazyFrame({"text": ["good", None]}).select(a=ask(return_dtype=dtype))

    assert frame.collect_schema() == frame.collect().schema
    assert frame.collect()["a"].to_list() == [value, None]


def test_a_map_keeps_its_pairs(server):
    server.answer = lambda prompt: '{"a": 1, "b": 2}'
    frame = pl.LazyFrame({"text": ["x"]}).select(a=ask(return_dtype="MAP<STRING, INT>"))

    found = frame.collect()

    assert found.schema == frame.collect_schema()
    assert str(found["a"].to_list()).count("2") == 1


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["a"]), pl.Duration, pl.Object, pl.Datetime("ns"), pl.Null,
                                   pl.List, pl.List(pl.Categorical), pl.Struct({}), object(), "INT)", "Nonsense"])  # fmt: skip
def test_other_types_are_refused_when_the_expression_is_built(dtype):
    with pytest.raises(UnsupportedReturnTypeError, match="is not supported"):
        ask(return_dtype=dtype)


def test_a_value_that_does_not_fit_is_its_rows_error(server):
    server.answer = lambda prompt: prompt
    frame = pl.DataFrame({"text": ["1", "x", None]})

    found = frame.select(a=ask(return_dtype=pl.Int32, fail_on_error=False))

    assert found.schema == {"a": pl.Struct({"result": pl.Int32, "errorMessage": pl.String})}
    results, errors = found.unnest("a")
    assert results.to_list() == [1, None, None]
    assert errors.is_null().to_list() == [True, False, True]
    assert errors[1].startswith("[AI_FUNCTION_HTTP_PARSE_CAST_ERROR]")


def test_an_error_keeps_its_class_and_its_sentence(server, engine):
    server.answer = lambda prompt: prompt
    frame = pl.LazyFrame({"text": ["1", "word"]}).select(ask(return_dtype=pl.Int32))

    with pytest.raises(HttpParseCastError, match="'word' is not a whole number") as caught:
        frame.collect(engine=engine)

    assert caught.value.condition == "AI_FUNCTION_HTTP_PARSE_CAST_ERROR"


def test_an_error_stops_the_rows_that_wait_elsewhere(server, engine):
    server.delay = lambda body: 0.0 if body["messages"][0]["content"] == "n0" else 20.0
    server.fault, server.fault_when = status(400, "not this one"), lambda body: body["messages"][0]["content"] == "n0"
    frame = pl.LazyFrame({"text": [f"n{i}" for i in range(3000)]})
    expression = ask()

    with pytest.raises(AiFunctionError, match="not this one"):
        frame.select(expression).collect(engine=engine)

    server.fault, server.delay = None, 0.0
    assert frame.tail(2).select(expression).collect(engine=engine)["text"].to_list() == ["echo: n2998", "echo: n2999"]


def test_wrong_arguments_are_told_when_the_expression_is_built(server, workspace):
    for wrong, condition in (
        (lambda: pl.col("text").ai.query("no-such-endpoint"), AiFunctionError),
        (lambda: ask(model_parameters={"temperature": 9}), InvalidModelParametersError),
        (lambda: pl.col("text").ai.query("embeddings", response_format="STRUCT<a: STRUCT<b: INT>>"), AiFunctionError),
        (lambda: pl.col("text").ai.query("embeddings", files="image"), UnsupportedRequestError),
        (lambda: pl.col("text").ai.query("embeddings", return_dtype=pl.String), UnsupportedReturnTypeError),
        (lambda: pl.col("text").ai.query(""), AiFunctionError),
        (lambda: ask(model_parameters={"stop": {1}}), InvalidArgumentError),
        (lambda: ask(model_parameters=[1]), AiFunctionError),
        (lambda: ask(response_format=7), AiFunctionError),
        (lambda: ask(fail_on_error="no"), InvalidArgumentError),
        (lambda: ask(cache="yes"), InvalidRequestError),
        (lambda: ask(fail_on_eror=True), TypeError),
    ):
        with pytest.raises(condition):
            wrong()
    assert server.requests == []


@pytest.mark.parametrize(
    ("column", "options", "says"),
    [
        (pl.Series([1, 2]), {}, "must be of type STRING, but found BIGINT"),
        (pl.Series([{"a": 1}]), {}, "must be of type STRING, but found STRUCT"),
        (pl.Series([timedelta(1)]), {}, "must be of type STRING, but found Duration"),
        (pl.Series([object()], dtype=pl.Object), {}, "of type Object cannot be handed"),
        (pl.Series(["a"]), {"files": "text"}, "files must be of type BINARY, but found VARCHAR"),
    ],
)
def test_rows_of_a_wrong_type_are_refused_before_anything_is_sent(server, engine, column, options, says):
    frame = pl.LazyFrame({"text": column})

    with pytest.raises(UnsupportedRequestError, match=says):
        frame.select(ask(**options)).collect(engine=engine)

    assert server.requests == []


def test_categories_are_asked_as_their_text(server, engine):
    frame = pl.LazyFrame({"text": pl.Series(["a", "b", None, "a"], dtype=pl.Categorical)})

    assert frame.select(ask()).collect(engine=engine)["text"].to_list() == ["echo: a", "echo: b", None, "echo: a"]
    assert len(server.requests) == 2


def test_columns_of_nothing_but_null_ask_nothing(server, engine):
    frame = pl.LazyFrame({"text": [None, None], "typed": pl.Series([None, None], dtype=pl.String)})

    found = frame.select(ask(), ask("typed", return_dtype=pl.Int8)).collect(engine=engine)

    assert found.schema == {"text": pl.String, "typed": pl.Int8}
    assert found.null_count().row(0) == (2, 2)
    assert server.requests == []


def test_parameters_and_formats_reach_the_model(server):
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {}}}}
    pl.select(aiquery.polars.ai_query("chat", pl.lit("hi"), model_parameters={"max_tokens": 7}, response_format=schema))

    (body,) = server.requests
    assert body["max_tokens"] == 7
    assert body["temperature"] == 0.0
    assert body["response_format"]["json_schema"]["name"] == "x"


def test_images_go_with_their_rows(server, engine):
    frame = pl.LazyFrame({"text": ["a", "b", None], "image": [PNG, None, PNG]})

    frame.select(ask(files="image"), one=pl.lit("c").ai.query("chat", files=pl.col("image"))).collect(engine=engine)

    def with_image(content):
        return not isinstance(content, str)

    contents = [body["messages"][-1]["content"] for body in server.requests]
    texts = [content if isinstance(content, str) else content[0]["text"] for content in contents]
    expected = {("a", True), ("b", False), ("c", True), ("c", False)}
    assert set(zip(texts, map(with_image, contents), strict=True)) == expected


def test_embeddings_come_packed_and_as_lists_of_numbers(server, engine):
    texts = [f"n{i}" for i in range(100)]
    frame = pl.LazyFrame({"text": [*texts, None]})

    found = frame.select(
        pl.col("text").ai.query("embeddings"),
        pl.col("text").ai.query("embeddings", return_dtype=pl.Array(pl.Float32, 8)).alias("fixed"),
    )

    expected = [vector(text) for text in texts] + [None]
    assert found.collect_schema() == {"text": pl.List(pl.Float32), "fixed": pl.Array(pl.Float32, 8)}
    collected = found.collect(engine=engine)
    assert collected["text"].to_list() == expected
    assert collected["fixed"].to_list() == expected
    assert len(server.requests) < 20


def test_the_ledger_is_used_where_it_is_asked_for(server, engine, mixed):
    kept = mixed.select(ask(cache="reuse"))

    first, second = kept.collect(engine=engine), kept.collect(engine=engine)
    assert first.equals(second)
    assert len(server.requests) == 20

    mixed.select(ask()).collect(engine=engine)
    assert len(server.requests) == 40
    mixed.head(3).select(ask(cache="reuse", max_age=0.0)).collect(engine=engine)
    assert len(server.requests) == 43


def test_asking_again_sends_again(server, mixed):
    expression = ask()
    for _ in range(2):
        mixed.select(expression).collect()

    assert len(server.requests) == 40


def test_several_expressions_of_one_frame_get_their_own_answers(server, engine, mixed):
    found = mixed.select(
        a=ask(), b=ask(model_parameters={"max_tokens": 50}), c=pl.col("group").ai.query("completions")
    ).collect(engine=engine)

    assert found["a"].to_list() == found["b"].to_list() == [f"echo: n{i}" for i in range(20)]
    assert found["c"].to_list() == ["echo: x", "echo: y"] * 10


def test_frames_of_several_threads_do_not_mix(server):
    server.delay = 0.01
    expression, found = ask(), {}

    def collect(number):
        frame = pl.DataFrame({"text": [f"t{number} {i}" for i in range(200)]})
        found[number] = frame.select(expression)["text"].to_list()

    threads = [threading.Thread(target=collect, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert found == {number: [f"echo: t{number} {i}" for i in range(200)] for number in range(4)}


def test_a_struct_becomes_a_custom_models_columns(custom_workspace, engine):
    frame = pl.LazyFrame({"a": [1.0, 2.0, None], "b": [1, 2, 3], "n": range(3)})

    def forecast(request):
        return request.ai.query("weekly-forecast", workspace=custom_workspace)

    found = frame.select(
        forecast(pl.when(pl.col("n") < 2).then(pl.struct("a", "b"))),
        reversed=forecast(pl.struct(pl.col("b").cast(pl.Float64), "a", "n").head(2).append(None)),
    )

    assert found.collect_schema() == {"a": pl.Float64, "reversed": pl.Float64}
    assert found.collect(engine=engine)["a"].to_list() == [11.0, 22.0, None]


@pytest.mark.parametrize(
    ("ask", "dtype", "values"),
    [
        (lambda query: query("upper", pl.col("s")), pl.String, ["AB", None]),
        (lambda query: query("upper", pl.struct(text="s").filter(pl.col("s").is_not_null())), pl.String, ["AB"]),
        (lambda query: query("upper", pl.col("s").cast(pl.Categorical)), pl.String, ["AB", None]),
        (lambda query: query("upper", pl.lit(None)), pl.String, [None]),
        (
            lambda query: query("twins", pl.col("x")),
            pl.Struct({"half": pl.Float64, "name": pl.String}),
            [{"half": 1.5, "name": "n3"}, {"half": 2.0, "name": "n4"}],
        ),
        (
            lambda query: query("twins", pl.col("x"), return_dtype=pl.Struct({"half": pl.Float32})),
            pl.Struct({"half": pl.Float32}),
            [{"half": 1.5}, {"half": 2.0}],
        ),
        (
            lambda query: query("grumpy", pl.col("x"), return_dtype=pl.Decimal(9, 2)),
            pl.Decimal(9, 2),
            [Decimal(6), Decimal(8)],
        ),
        (
            lambda query: query(
                "custom-llama-chat", pl.struct("messages"), return_dtype="STRUCT<candidates: ARRAY<STRING>>"
            ),
            pl.Struct({"candidates": pl.List(pl.String)}),
            [{"candidates": ["re: hi"]}, {"candidates": ["re: ho"]}],
        ),
    ],
)
def test_custom_models_answer_in_the_type_of_their_signature(custom_workspace, engine, ask, dtype, values):
    messages = [[{"role": "user", "content": text}] for text in ("hi", "ho")]
    frame = pl.LazyFrame({"s": ["ab", None], "x": [3.0, 4.0], "messages": messages})

    found = frame.select(r=ask(partial(aiquery.polars.ai_query, workspace=custom_workspace)))

    assert found.collect_schema() == {"r": dtype}
    assert found.collect(engine=engine)["r"].to_list() == values


def test_a_custom_models_error_is_its_rows_own(custom_workspace, engine):
    frame = pl.LazyFrame({"x": [12.0, 13.0, None, 14.0]})
    found = frame.select(pl.col("x").ai.query("grumpy", workspace=custom_workspace, fail_on_error=False))

    results, errors = found.collect(engine=engine).unnest("x")

    assert results.to_list() == [24.0, None, None, 28.0]
    assert "thirteen brings bad luck" in errors[1]
    with pytest.raises(AiFunctionError, match="thirteen brings bad luck"):
        frame.select(pl.col("x").ai.query("grumpy", workspace=custom_workspace)).collect(engine=engine)


def test_missing_inputs_of_a_custom_model_are_told(custom_workspace):
    with pytest.raises(UnsupportedRequestError, match="misses the inputs 'b'"):
        pl.DataFrame({"a": [1.0]}).select(pl.struct("a").ai.query("weekly-forecast", workspace=custom_workspace))


def test_a_split_sends_the_same_row_to_the_same_model(custom_workspace, engine):
    frame = pl.LazyFrame({"a": [float(i % 500 + 1) for i in range(1000)], "b": [0.0] * 1000})

    found = frame.select("a", r=pl.struct("a", "b").ai.query("split", workspace=custom_workspace))
    answers = found.collect(engine=engine)

    assert answers["r"].abs().equals(answers["a"])
    assert answers.unique().height == 500
    assert 20 < answers.unique().filter(pl.col("r") < 0).height < 80


def test_the_default_workspace_is_opened_once(tmp_path, monkeypatch, server):
    monkeypatch.setenv("AIQUERY_HOME", str(tmp_path / "home"))
    with aiquery.Workspace() as workspace:
        workspace.create_endpoint("mine", {"served_entities": [external(server, "llm/v1/chat", "gpt-4o")]})
    aiquery.polars.use(None)

    found = pl.DataFrame({"t": ["a"]}).select(pl.col("t").ai.query("mine"), b=pl.col("t").ai.query("mine"))

    assert found.row(0) == ("echo: a", "echo: a")
    aiquery.polars._workspace().close()


def test_a_sunk_file_holds_every_row(server, tmp_path):
    pl.DataFrame({"text": [f"n{i}" for i in range(5000)]}).write_parquet(tmp_path / "in.parquet")

    pl.scan_parquet(tmp_path / "in.parquet").with_columns(answer=ask()).sink_parquet(tmp_path / "out.parquet")

    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found["answer"].to_list() == [f"echo: n{i}" for i in range(5000)]
    assert len(server.requests) == 5000


SCRIPT = """
    import os, polars as pl, aiquery.polars
    with aiquery.Workspace(":memory:") as workspace:
        workspace.create_endpoint("chat", {{"served_entities": [{entity!r}]}})
        aiquery.polars.use(workspace)
        frame = pl.LazyFrame({{"text": [f"n{{i}}" for i in range({rows})]}})
        ask = pl.col("text").ai.query("chat")
        print("ready", flush=True)
        try:
            try:
                {statement}
            except BaseException as error:
                print(type(error).__name__, flush=True)
        except KeyboardInterrupt:  # the streaming engine lets Python's own handler raise it too
            print("KeyboardInterrupt", flush=True)
        print("usable", pl.select(pl.lit(42)).item(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "statement"),
    [
        (3, "frame.select(ask).collect()"),
        (5000, "frame.select(ask, b=ask, c=pl.col('text').ai.query('chat')).collect()"),
        (5000, "frame.select(ask, c=pl.col('text').ai.query('chat')).collect(engine='streaming')"),
        (5000, "frame.with_columns(ask).sink_parquet(os.devnull)"),
    ],
)
def test_ctrl_c_ends_a_collect_within_a_second(server, rows, statement):
    server.delay = 30.0
    entity = external(server, "llm/v1/chat", "gpt-4o")
    script = textwrap.dedent(SCRIPT).format(entity=entity, rows=rows, statement=statement)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 10
        while not server.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        started = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        lines = [process.stdout.readline() for _ in range(2)]
        seconds = time.monotonic() - started

        assert lines == ["KeyboardInterrupt\n", "usable 42\n"]
        assert seconds < 1.5  # a second, and what a busy machine takes to start printing
        assert process.wait(10) == 0
