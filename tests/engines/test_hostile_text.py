"""Texts of language models against every returnType, and images that are none."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal

import duckdb
import pytest
from engine_endpoints import external
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from providers import OpenAIServer

import aiquery

PNG, JPEG = b"\x89PNG\r\n\x1a\n...", b"\xff\xd8\xff..."


@pytest.fixture(scope="module")
def con():
    """A connection whose chat model says what it is asked."""
    with OpenAIServer(answer=lambda prompt: prompt) as server, aiquery.Workspace(":memory:") as workspace:
        workspace.create_endpoint("chat", {"served_entities": [external(server, "llm/v1/chat", "gpt-4o")]})
        connection = duckdb.connect()
        aiquery.register(connection, workspace=workspace)
        yield connection
        connection.close()


@pytest.mark.parametrize(
    ("kind", "text", "path", "answer"),
    [
        ("VARIANT", '{"a": [1, 2]}', ".a", [1, 2]),
        ("VARIANT", '"x"', "", "x"),
        ("VARIANT", "null", "", None),
        ("JSON", '{"a": 2.10}', "", '{"a": 2.10}'),
        ("JSON", '{"a": 2.10}', "->>'$.a'", "2.1"),
        ("STRUCT<v: VARIANT, j: JSON>", '{"v": {"x": 1}, "j": [1]}', ".v.x", 1),
        ("STRUCT<v: VARIANT, j: JSON>", '{"v": {"x": 1}, "j": [1]}', ".j", "[1]"),
        ("ARRAY<JSON>", '[{"x": 1}, 2, "s"]', "", ['{"x":1}', "2", '"s"']),
        ("MAP<STRING, VARIANT>", '{"k": [1]}', "['k']", [1]),
        ("VARIANT[2]", '["x", {"y": 1}]', "", ("x", {"y": 1})),
    ],
)
def test_json_inside_an_answer_is_json_and_not_its_text(con, kind, text, path, answer):
    call = f"ai_query('chat', w, returnType => '{kind}', failOnError =>"
    query = f"SELECT ({call} true)){path}, ({call} false)).result{path} FROM (VALUES ('{text}'), (NULL)) t(w)"

    assert con.execute(query).fetchall() == [(answer, answer), (None, None)]


def _whole(name, bits, lowest=None):
    numbers = st.integers(-(2 ** (bits - 1)) if lowest is None else lowest, 2 ** (bits - 1) - 1)
    return st.tuples(st.just(name), st.just(numbers.map(lambda number: (number, number))))


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
DAYS = st.dates(dt.date(1, 1, 1), dt.date(9999, 12, 31))
SCALARS = st.one_of(
    _whole("TINYINT", 8),
    _whole("INT", 32),
    _whole("BIGINT", 64),
    _whole("UINTEGER", 33, 0),
    _whole("HUGEINT", 120),
    st.just(("STRING", TEXT.map(lambda text: (text, text)))),
    st.just(("BOOLEAN", st.booleans().map(lambda truth: (truth, truth)))),
    st.just(("DOUBLE", st.floats(allow_nan=False, allow_infinity=False).map(lambda number: (number, number)))),
    st.just(("FLOAT", st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda n: (n, n)))),
    st.just(("DATE", DAYS.map(lambda day: (str(day), day)))),
    st.just(("BINARY", st.just(("aGk=", b"hi")))),
    st.just(
        ("DECIMAL(12,3)", st.decimals(-(10**8), 10**8, places=3).map(lambda number: (str(number), Decimal(number))))
    ),
)


def _maybe(values):
    return st.one_of(st.just((None, None)), values)


def _list_of(item):
    name, values = item
    lists = st.lists(_maybe(values), max_size=3)
    return f"ARRAY<{name}>", lists.map(lambda pairs: ([given for given, _ in pairs], [wanted for _, wanted in pairs]))


def _struct_of(items):
    names = ["a", "b c", 'd"é'][: len(items)]
    quoted = [f"`{name}`" for name in names]
    kind = ", ".join(f"{name}: {kind}" for name, (kind, _) in zip(quoted, items, strict=True))

    def pair(pairs):
        given, wanted = zip(*pairs, strict=True)
        return dict(zip(names, given, strict=True)), dict(zip(names, wanted, strict=True))

    return f"STRUCT<{kind}>", st.tuples(*[_maybe(values) for _, values in items]).map(pair)


def _map_of(item):
    name, values = item
    maps = st.dictionaries(TEXT, _maybe(values), max_size=3)
    return f"MAP<STRING, {name}>", maps.map(
        lambda pairs: ({k: given for k, (given, _) in pairs.items()}, {k: wanted for k, (_, wanted) in pairs.items()})
    )


KINDS = st.recursive(
    SCALARS,
    lambda kinds: st.one_of(
        kinds.map(_list_of), st.lists(kinds, min_size=1, max_size=3).map(_struct_of), kinds.map(_map_of)
    ),
    max_leaves=4,
)


@st.composite
def tables(draw):
    """Return a returnType, rows of JSON text, and the values they stand for."""
    kind, values = draw(KINDS)
    pairs = draw(st.lists(_maybe(values), max_size=8))
    repeated = pairs * draw(st.integers(1, 3))
    # A model says a text itself, without quotes.
    texts = [None if answer is None else given if kind == "STRING" else json.dumps(given) for given, answer in repeated]
    return kind, texts, [answer for _, answer in repeated]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables(), fail_on_error=st.booleans())
def test_what_a_model_says_comes_back_as_the_value_it_stands_for(con, table, fail_on_error):
    kind, texts, wanted = table
    con.execute("CREATE OR REPLACE TEMP TABLE t (i INT, w VARCHAR)")
    if texts:
        con.executemany("INSERT INTO t VALUES (?, ?)", list(enumerate(texts)))

    quoted = kind.replace("'", "''")
    query = f"SELECT ai_query('chat', w, returnType => '{quoted}', failOnError => {fail_on_error}) FROM t ORDER BY i"
    found = [row[0] for row in con.execute(query).fetchall()]

    assert found == (wanted if fail_on_error else [{"result": value, "errorMessage": None} for value in wanted])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("json_object", r'Write it as a JSON object: .\{"type":"json_object"\}'),
        ("json_schema", '"json_schema":{"name"'),
    ],
)
def test_the_bare_name_of_a_response_format_is_told_in_full(con, name, sentence):
    with pytest.raises(duckdb.Error, match=sentence):
        con.execute(f"SELECT ai_query('chat', 'x', responseFormat => '{name}')")


@pytest.fixture
def pictures(con):
    con.execute("CREATE OR REPLACE TEMP TABLE pictures (id INT, content BLOB)")
    rows = [[1, PNG], [2, None], [3, JPEG], [4, b"plain text"], [5, b""]]
    con.executemany("INSERT INTO pictures VALUES (?, ?)", rows)
    return con


def test_bytes_that_are_no_image_are_their_own_rows_error(pictures):
    query = "SELECT ai_query('chat', 'q' || id, files => content, failOnError => false) FROM pictures ORDER BY id"
    answers = [row[0] for row in pictures.execute(query).fetchall()]

    assert [answer["result"] for answer in answers] == ["q1", "q2", "q3", None, None]
    assert [answer["errorMessage"] is None for answer in answers] == [True, True, True, False, False]
    assert "holds 10 bytes that are no image" in answers[3]["errorMessage"]


def test_bytes_that_are_no_image_fail_the_query_before_anything_is_sent(pictures):
    with pytest.raises(duckdb.Error, match="bytes that are no image"):
        pictures.execute("SELECT ai_query('chat', 'q' || id, files => content) FROM pictures").fetchall()


def test_rows_without_any_request_to_send_are_answered(pictures):
    query = "SELECT ai_query('chat', 'q', files => content, failOnError => false).result FROM pictures WHERE id > 3"

    assert pictures.execute(query).fetchall() == [(None,), (None,)]


@pytest.mark.parametrize("files", ["'text'", "[content]", "id"])
def test_files_that_are_no_bytes_are_refused_and_not_left_out(pictures, files):
    with pytest.raises(duckdb.Error, match="The argument files must be of type BINARY, but found"):
        pictures.execute(f"SELECT ai_query('chat', 'q', files => {files}) FROM pictures")
