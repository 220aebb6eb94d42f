"""`explain_ai`: what a statement would ask, cost and take, with nothing sent and nothing left behind."""

from __future__ import annotations

import gc
import json
import re
import threading

import duckdb
import pyarrow as pa
import pytest
from engine_endpoints import external

from aiquery import explain, progress
from aiquery.session import connect
from aiquery_serving import tokens
from aiquery_serving.errors import InvalidRequestError
from aiquery_udfs import survey

CHAT, EMBEDDINGS = "llm/v1/chat", "llm/v1/embeddings"


@pytest.fixture
def open_session(workspace):
    """Open sessions; each has a temporary table of 100 rows, 50 distinct texts, and one NULL."""
    opened = []

    def open_one(**options):
        session = connect(workspace=workspace, progress=False, **options)
        session.execute(
            "CREATE TEMP TABLE t AS SELECT i, 'text number ' || (i % 50) AS text FROM range(100) r(i)"
            " UNION ALL SELECT 100, NULL"
        )
        opened.append(session)
        return session

    yield open_one
    for session in opened:
        session.close()


@pytest.fixture
def session(open_session):
    return open_session()


def asked(explanation):
    return [(call.number, call.endpoint, call.rows, call.null_rows, call.requests) for call in explanation.calls]


SHAPES = {
    "SELECT ai_query('chat', text) FROM t": [(1, "chat", 101, 1, 50)],
    "SELECT ai_query('chat', text), ai_query('completions', text) FROM t WHERE i < 10": [
        (1, "chat", 10, 0, 10),
        (2, "completions", 10, 0, 10),
    ],
    "SELECT ai_query('chat', text) a, upper(ai_query('chat', text)) b FROM t": [
        (1, "chat", 101, 1, 50),
        (2, "chat", 101, 1, 0),
    ],
    "CREATE OR REPLACE TABLE u AS SELECT ai_query('chat', text) FROM t LIMIT 5": [(1, "chat", 5, 0, 5)],
    "INSERT INTO t (text) SELECT ai_query('chat', text) FROM t": [(1, "chat", 101, 1, 50)],
    "COPY (SELECT ai_query('chat', text) FROM t) TO '/nowhere/at/all.csv'": [(1, "chat", 101, 1, 50)],
    "SELECT count(ai_query('chat', text)) FROM t GROUP BY i % 3": [(1, "chat", 101, 1, 50)],
    "SELECT ai_query('chat', text) FROM t WHERE i > 1000": [(1, "", 0, 0, 0)],
    "SELECT ai_query('chat', text) AS a, ai_error('chat', text) FROM t": [(1, "chat", 101, 1, 50)],
    "SELECT ai_error('chat', text) FROM t": [(0, "chat", 101, 1, 50)],
    "SELECT CASE WHEN i < 7 THEN ai_query('chat', text) END FROM t": [(1, "chat", 7, 0, 7)],
    "SELECT ai_query('chat', text, returnType => 'STRUCT<a: INT>', failOnError => false) FROM t": [
        (1, "chat", 101, 1, 50)
    ],
    "SELECT text FROM t": [],
}


@pytest.mark.parametrize("query", SHAPES)
def test_calls_are_counted_and_nothing_is_sent(session, server, query):
    assert asked(session.explain_ai(query)) == SHAPES[query]
    assert server.requests == []


@pytest.mark.parametrize("rows", [0, 1, 2047, 2048, 2049, 50_000])
def test_every_row_is_counted(session, rows):
    explanation = session.explain_ai(f"SELECT ai_query('chat', 'n' || i) FROM range({rows}) r(i)")
    assert (explanation.total.rows, explanation.total.requests) == (rows, rows)


def test_parameters_and_python_tables_are_seen(session):
    mine = pa.table({"text": ["a", "b"]})
    assert session.explain_ai("SELECT ai_query('chat', text) FROM mine").total.requests == len(mine)
    query = "SELECT ai_query('chat', text || ?) FROM t WHERE i < ?"
    assert session.explain_ai(query, params=["!", 3]).total.requests == 3


def test_a_view_is_looked_into(session):
    session.execute("CREATE TEMP VIEW v AS SELECT i AS n, ai_query('chat', text) AS a FROM t")
    explanation = session.explain_ai("SELECT a, ai_query('completions', text) FROM v JOIN t ON n = i WHERE i < 3")
    assert asked(explanation) == [(1, "completions", 3, 0, 3), (0, "chat", 3, 0, 3)]
    assert explanation.calls[0].depends_on in ((), (0,)), "what a view decides is not in the text"


DEPENDENT = {
    "SELECT ai_query('chat', ai_query('completions', text)) FROM t": {1: (2,), 2: ()},
    "SELECT ai_query('chat', text) FROM t WHERE ai_query('completions', text) = 'yes'": {1: (2,), 2: ()},
    "SELECT ai_query('chat', text), ai_query('completions', text) FROM t": {1: (), 2: ()},
    "SELECT ai_query('chat', text) FROM t WHERE i < 5": {1: ()},
    "WITH RECURSIVE r(n, x) AS (SELECT 1, 'a' UNION ALL SELECT n + 1, ai_query('chat', x) FROM r WHERE n < 5) FROM r": {
        1: (1,)
    },
}


@pytest.mark.parametrize("query", DEPENDENT)
def test_what_one_call_decides_of_another_is_not_called_known(session, query):
    explanation = session.explain_ai(query)
    assert {call.number: call.depends_on for call in explanation.calls} == DEPENDENT[query]
    assert explanation.total.uncertain == any(DEPENDENT[query].values())
    assert ("Call 1 may depend on the answers of" in str(explanation)) == explanation.total.uncertain


def test_a_limit_above_an_answer_makes_it_an_upper_bound(session):
    (call,) = session.explain_ai("SELECT i FROM t WHERE ai_query('chat', text) = 'a' LIMIT 3").calls
    assert (call.may_end_early, call.rows) == (True, 101)
    (call,) = session.explain_ai("SELECT ai_query('chat', text) FROM t LIMIT 3").calls
    assert (call.may_end_early, call.rows) == (False, 3)


def test_what_the_ledger_holds_is_not_asked_and_decides_of_others(open_session, server):
    session = open_session(cache="reuse")
    session.execute("SELECT ai_query('chat', text) FROM t WHERE i < 30").fetchall()
    sent = len(server.requests)
    outer, inner = session.explain_ai("SELECT ai_query('chat', 'Again: ' || ai_query('chat', text)) FROM t").calls
    assert (inner.requests, inner.in_ledger, inner.to_send) == (50, 30, 20)
    assert (outer.requests, outer.in_ledger, outer.depends_on) == (30, 0, (2,))
    outer, inner = session.explain_ai(
        "SELECT ai_query('chat', 'Again: ' || ai_query('chat', text)) FROM t WHERE i < 30"
    ).calls
    assert (inner.to_send, outer.requests, outer.depends_on) == (0, 30, ())
    assert len(server.requests) == sent == 30
    assert open_session().explain_ai("SELECT ai_query('chat', text) FROM t").calls[0].in_ledger is None


@pytest.mark.parametrize("return_type", ["STRING", "STRUCT<a: INT>", "VARIANT", "BOOLEAN"])
@pytest.mark.parametrize("fail_on_error", ["true", "false"])
def test_answers_of_the_ledger_come_in_the_type_of_their_call(open_session, server, return_type, fail_on_error):
    server.answer = lambda prompt: {"STRING": "yes", "STRUCT<a: INT>": '{"a": 1}'}.get(return_type, "true")
    session = open_session(cache="reuse")
    call = f"ai_query('chat', text, returnType => '{return_type}', failOnError => {fail_on_error})"
    session.execute(f"SELECT {call} FROM t WHERE i < 5").fetchall()
    value = call if fail_on_error == "true" else f"({call}).result"
    (outer, _) = session.explain_ai(f"SELECT ai_query('completions', ({value})::VARCHAR) FROM t WHERE i < 10").calls
    assert (outer.endpoint, outer.rows, outer.null_rows, outer.requests) == ("completions", 10, 5, 1)


def test_tokens_and_dollars_are_those_of_the_price_list(open_session, workspace):
    session = open_session()
    query = "SELECT ai_query('chat', text, modelParameters => {'max_tokens': 100}) FROM t"
    (call,) = session.explain_ai(query).calls
    price = workspace.prices.of(workspace.gateway.serving("chat").config.served_entities[0], "chat")
    assert (call.tokens_out.low, call.tokens_out.expected, call.tokens_out.high) == (50, 5000, 5000)
    assert call.tokens_in > 0
    assert call.cost.expected == pytest.approx(price.cost(call.tokens_in, 5000, calls=50))
    assert call.cost.low < call.cost.expected == call.cost.high


def test_the_length_of_answers_and_their_time_are_learned(session, workspace):
    query = "SELECT ai_query('chat', text) FROM t"
    (guess,) = session.explain_ai(query).calls
    assert (guess.tokens_out.expected, guess.served[0].answers_learned, guess.seconds) == (50 * 256, 0, None)
    session.execute("SELECT ai_query('chat', 'one two three') FROM t").fetchall()
    (call,) = session.explain_ai(query).calls
    mean = workspace.usage()[0]["completion_tokens"] / workspace.usage()[0]["calls"]
    assert (call.tokens_out.expected, call.served[0].answers_learned) == (50 * mean, 1)
    assert call.seconds > 0
    assert "1 earlier" in str(session.explain_ai(query))


def test_a_model_without_a_price_makes_the_cost_unknown(session, workspace, server):
    workspace.create_endpoint("odd", {"served_entities": [external(server, CHAT, "nobodys-model")]})
    explanation = session.explain_ai("SELECT ai_query('odd', text), ai_query('chat', text) FROM t")
    assert [call.cost is None for call in explanation.calls] == [True, False]
    assert (explanation.total.cost_known, explanation.total.cost) == (False, explanation.calls[1].cost)
    assert 'add "nobodys-model"' in str(explanation)


def test_a_traffic_split_is_told_by_served_entity(session, workspace, server):
    routes = [{"served_model_name": name, "traffic_percentage": share} for name, share in (("a", 90), ("b", 10))]
    served = [external(server, CHAT, "gpt-4o", "a"), external(server, CHAT, "gpt-4o-mini", "b")]
    workspace.create_endpoint("split", {"served_entities": served, "traffic_config": {"routes": routes}})
    query = "SELECT ai_query('split', 'n' || i) FROM range(1000) r(i)"
    (call,) = session.explain_ai(query).calls
    session.execute(query).fetchall()
    sent = {row["served_entity"]: row["calls"] for row in workspace.usage() if row["endpoint"] == "split"}
    assert {one.served_entity: one.requests for one in call.served} == sent


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [({"calls": 20}, 120), ({"calls": 50}, None), ({"calls": 25}, 60), ({"tokens": 5000}, 120)],
)
def test_a_declared_limit_tells_the_time(session, workspace, limit, seconds):
    workspace.update_endpoint_rate_limits("chat", [{"key": "endpoint", "renewal_period": "minute"} | limit])
    query = "SELECT ai_query('chat', text, modelParameters => {'max_tokens': 200}) FROM t"
    explanation = session.explain_ai(query)
    (call,) = explanation.calls
    assert (call.seconds, explanation.total.seconds) == (seconds, seconds)
    assert ("paced by" in call.pace) == (seconds is not None)


def test_a_limit_of_somebody_else_holds_nobody_up(session, workspace):
    limit = {"key": "user", "principal": "bob@example.com", "calls": 1, "renewal_period": "minute"}
    workspace.update_endpoint_rate_limits("chat", [limit])
    (call,) = session.explain_ai("SELECT ai_query('chat', text) FROM t").calls
    assert call.seconds is None


def test_calls_to_one_endpoint_stand_in_line_and_endpoints_work_side_by_side(session, workspace):
    limit = {"key": "endpoint", "renewal_period": "minute", "calls": 25}
    for endpoint in ("chat", "completions"):
        workspace.update_endpoint_rate_limits(endpoint, [limit])
    explanation = session.explain_ai("SELECT ai_query('chat', text), ai_query('completions', text) FROM t")
    assert explanation.total.seconds == 60
    explanation = session.explain_ai("SELECT ai_query('chat', text), ai_query('chat', 'x' || text) FROM t")
    assert explanation.total.seconds == 180


def test_embeddings_have_no_output_and_go_out_packed(session, workspace):
    workspace.update_endpoint_rate_limits("embeddings", [{"key": "endpoint", "renewal_period": "minute", "calls": 1}])
    (call,) = session.explain_ai("SELECT ai_query('embeddings', text) FROM t").calls
    assert (call.requests, call.tokens_out.high, call.seconds) == (50, 0, 60)
    assert call.cost.low == call.cost.high > 0


def test_a_custom_model_takes_rows_costs_nothing_and_is_not_run(custom_workspace):
    before = custom_workspace.usage()
    with connect(workspace=custom_workspace, progress=False) as session:
        query = "SELECT ai_query('upper', CASE WHEN i > 0 THEN 'a' || i END) FROM range(100) r(i)"
        (call,) = session.explain_ai(query).calls
        assert (call.rows, call.null_rows, call.requests, call.to_send, call.cost.high) == (100, 1, 0, 99, 0)
        assert "–" in str(session.explain_ai(query))
    assert custom_workspace.usage() == before


REFUSED = {
    "UPDATE t SET text = ai_query('chat', text)": "a statement with UPDATE",
    "-- first\nDELETE FROM t WHERE ai_query('chat', text) = 'a'": "a statement with DELETE",
    "EXPLAIN SELECT ai_query('chat', text) FROM t": "a statement with EXPLAIN",
    "SELECT 1; SELECT 2": "this text has 2",
    "": "this text has 0",
    "SELECT nextval('s')": "leave nextval out",
    "SELECT 'open": "does not end",
}


@pytest.mark.parametrize("query", REFUSED)
def test_what_cannot_be_explained_is_refused_in_a_sentence(session, query):
    with pytest.raises(InvalidRequestError, match=REFUSED[query]):
        session.explain_ai(query)


def left_behind(session):
    macros = session.connection.execute(
        "SELECT count(*) FROM duckdb_functions() WHERE function_name LIKE '%aiquery_site%'"
    ).fetchall()
    return macros, session._known.recorder


FAILING = [
    "SELECT ai_query('chat', text) FROM missing",
    "SELECT ai_query('chat' FROM t",
    "SELECT ai_query('missing', text) FROM t",
    "SELECT ai_query('chat', text), error('no') FROM t",
    "SELECT ai_query('chat', i) FROM t",
]


@pytest.mark.parametrize("query", FAILING)
def test_nothing_is_left_behind_by_a_statement_that_fails(session, server, query):
    with pytest.raises(duckdb.Error) as failed:
        session.explain_ai(query)
    assert "__aiquery_site" not in str(failed.value)
    assert left_behind(session) == ([(0,)], None)
    assert session.execute("SELECT ai_query('chat', 'x') FROM t LIMIT 1").fetchall() == [("echo: x",)]


@pytest.mark.parametrize("stop", ["interrupt", "ctrl_c"])
def test_an_interrupt_ends_it_and_nothing_is_left_behind(session, monkeypatch, stop):
    def interrupted(body, *_):
        if stop == "ctrl_c":
            raise KeyboardInterrupt
        session.interrupt()
        return tokens.Counted(1, exact=True)

    monkeypatch.setattr(tokens, "count", interrupted)
    with pytest.raises(KeyboardInterrupt if stop == "ctrl_c" else duckdb.Error):
        session.explain_ai("SELECT ai_query('chat', 'n' || i) FROM range(10_000_000) r(i)")
    assert left_behind(session) == ([(0,)], None)


def test_nothing_is_left_behind_in_a_transaction(session, server):
    session.execute("BEGIN")
    session.execute("INSERT INTO t VALUES (7, 'new')")
    assert session.explain_ai("SELECT ai_query('chat', text) FROM t").total.requests == 51
    assert left_behind(session) == ([(0,)], None)
    with pytest.raises(duckdb.Error):
        session.explain_ai("SELECT ai_query('chat', text), error('no') FROM t")
    session.execute("ROLLBACK")
    assert left_behind(session) == ([(0,)], None)
    assert session.explain_ai("SELECT ai_query('chat', text) FROM t").total.requests == 50
    assert server.requests == []


def test_beyond_the_requests_that_are_told_apart_all_count(session, monkeypatch):
    monkeypatch.setattr(survey, "MOST_KEYS", 20)
    (call,) = session.explain_ai("SELECT ai_query('chat', text) FROM t").calls
    assert (call.requests_exact, call.requests >= 50) == (False, True)
    assert "≤" in str(session.explain_ai("SELECT ai_query('chat', text) FROM t"))


def test_it_is_told_as_json_as_text_and_as_html(session):
    explanation = session.explain_ai("SELECT ai_query('chat', '<b>' || text), ai_query('chat', text) FROM t")
    said = json.loads(json.dumps(explanation.to_dict()))
    assert said["calls"][0]["cost"].keys() == {"low", "expected", "high"}
    assert said["total"]["requests"] == 100
    html = explanation._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    lines = str(explanation).splitlines()
    assert lines[0].split()[:4] == ["call", "rows", "NULL", "requests"]
    assert {len(line) for line in lines if line.startswith(("1", "    total"))} == {len(lines[0])}
    assert repr(explanation) == str(explanation)
    assert str(session.explain_ai("SELECT 1")) == "The statement asks no model."
    assert "asks no model" in session.explain_ai("SELECT 1")._repr_html_()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SELECT ai_query('a', ')(') FROM t", "ai_query('a', ')(')"),
        ("SELECT ai_query('a',\n  upper(x)) || 'b'", "ai_query('a', upper(x))"),
        ("SELECT ai_query('a', 'a long prompt that goes on and on')", "ai_query('a', 'a long prompt that goes …"),
        ("SELECT ai_query('a', \"odd)name\")", "ai_query('a', \"odd)name\")"),
        ("SELECT ai_query('a', (x", "ai_query('a', (x"),
    ],
)
def test_a_call_is_told_by_its_own_text(text, told):
    start = text.index("ai_query")
    assert explain._call_text(text, start, start + len("ai_query")) == told


def test_databricks_text_is_taken(session):
    explanation = session.explain_ai('SELECT ai_query("chat", text) FROM t', dialect="databricks")
    assert asked(explanation) == [(1, "chat", 101, 1, 50)]


def following():
    return [one for one in threading.enumerate() if one.name == "aiquery-progress"]


def test_a_session_is_followed_by_one_thread_from_its_first_statement_until_it_ends(workspace, monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.001)
    with connect(workspace=workspace, progress=True) as session:
        assert following() == []
        for _ in range(2):
            session.execute("SELECT ai_query('chat', 'n' || i) FROM range(50) r(i)").fetchall()
            session.sql("SELECT 1").fetchall()
        assert len(following()) == 1
    assert following() == []
    assert re.match(r"aiquery: .*requests", capsys.readouterr().err)
    with connect(workspace=workspace) as session:
        session.execute("SELECT 1")
        assert following() == [], "nobody looks at a pipe"


def test_a_session_that_is_let_go_is_followed_no_more(workspace):
    session = connect(workspace=workspace, progress=True)
    session.sql("SELECT 1").fetchall()
    (thread,) = following()
    del session
    gc.collect()
    assert not thread.is_alive()
