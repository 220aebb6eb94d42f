"""Looking ahead changes when things are asked, and nothing else: the same rows, the same calls, no more of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace

import duckdb
import pytest
from engine_endpoints import external
from engines.oracles import CONCURRENCY, MODES, PLAIN, SESSION, STOCK, Oracles, Stage, answer, digest
from engines.query_shapes import SHAPES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from providers import OpenAIServer

import aiquery

AHEAD = (STOCK, SESSION)
#: Chunks of DuckDB hold 2,048 rows; every third shape takes one of these sizes beside a row more.
SIZES = (0, 1, 2047, 2048)
#: With it the model `bad` fails for the prompt u900.
FAILING = next(salt for salt in range(100) if digest(salt, "u900") % 5 == 0)
NAMED = {shape.name: shape for shape in SHAPES}
#: Every other shape is looked ahead of on a stock connection, the others in a session; then the other way round.
PLACED = list(enumerate(SHAPES))


@pytest.fixture(scope="module")
def oracles():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patch.delenv(name, raising=False)
        with Oracles() as opened:
            yield opened


@pytest.fixture
def stage(oracles, tmp_path):
    yield Stage(oracles, str(tmp_path))
    oracles.say, oracles.delay, oracles.held = answer, lambda prompt: 0.0, ""


def check(stage, shape, rows, mode):
    """Compare a shape with and without look-ahead."""
    found, asked = stage.run(shape, rows, PLAIN)
    seen, sent = stage.run(shape, rows, mode)
    if shape.fickle:
        assert len(seen) == len(found)
        assert sent.total() <= asked.total()
        return
    assert seen == found
    if shape.limited:
        assert sent.total() <= asked.total() + CONCURRENCY
    else:
        assert sent == asked


@pytest.mark.parametrize(("place", "shape"), PLACED, ids=NAMED)
def test_rows_and_calls_are_those_of_plain_execution(stage, place, shape):
    check(stage, shape, 2049, AHEAD[place % 2])


@pytest.mark.parametrize(("place", "shape"), PLACED[::3], ids=list(NAMED)[::3])
def test_so_they_are_around_the_size_of_a_chunk(stage, place, shape):
    check(stage, shape, SIZES[place // 3 % 4], AHEAD[(place + 1) % 2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["column", "two deep", "two ai conditions", "create table as", "limit above a condition"]
)
def test_so_they_are_over_many_chunks(stage, name):
    check(stage, NAMED[name], 50_000, AHEAD[len(name) % 2])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.sampled_from([shape for shape in SHAPES if not shape.fickle]),
    rows=st.sampled_from([0, 1, 2047, 2048, 2049, 5000]),
    threads=st.sampled_from([1, 2, 4]),
    salt=st.integers(0, 1000),
    mode=st.sampled_from(AHEAD),
)
def test_so_they_are_whatever_the_models_say(stage, *, shape, rows, threads, salt, mode):
    stage.oracles.say = lambda endpoint, prompt: answer(endpoint, prompt, salt)
    check(replace(stage, threads=threads), shape, rows, mode)


class Network(Oracles):
    """The same endpoints in front of a server that speaks as OpenAI does."""

    def __init__(self, server):
        self.server = server
        super().__init__()

    def declared(self, name, task):
        return external(self.server, task, name)

    def _load(self, entity, say):
        return aiquery.Workspace._load(self, entity, say)

    def heard(self):
        bodies = [self.server.requests.pop() for _ in range(len(self.server.requests))]
        return Counter(
            (body["model"], prompt) for body in bodies for prompt in body.get("input") or [str(body["messages"])]
        )


@pytest.mark.parametrize("name", [
    "column", "several endpoints", "where", "coalesce", "case", "inner join", "cte of a cte", "correlated subquery",
    "lambda", "two deep", "embeddings", "failures and results", "filter", "qualify", "insert returning",
    "prepared with a parameter", "pandas frame", "uncommitted rows",
])  # fmt: skip
def test_so_they_are_over_a_network(network, name):
    check(network, NAMED[name], 2049, AHEAD[len(name) % 2])


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    labels = lambda prompt: answer("cls", prompt)  # noqa: E731
    with OpenAIServer(answer=labels) as server, Network(server) as workspace:
        yield Stage(workspace, str(tmp_path_factory.mktemp("network")))


#: What comes after the second chunk is asked while that waits for one of its answers.
FORESEEN = (
    "column", "filtered column", "same call twice", "list packed", "embeddings", "where", "where with a cheap condition",
    "case", "pushed into a derived table", "join on an answer", "cte", "unnest", "lambda", "few answers", "filter",
    "group by an answer", "aggregates by group", "order by an answer", "create table as", "insert", "copy to parquet",
    "view", "generated column", "parquet file", "csv file", "pandas frame", "polars frame",
    "attached database",
)  # fmt: skip


@pytest.mark.parametrize("name", FORESEEN)
def test_the_rows_to_come_are_asked_while_a_chunk_waits(stage, name):
    mode = AHEAD[FORESEEN.index(name) % 2]
    _, asked = stage.run(NAMED[name], 6000, PLAIN)
    stage.oracles.held, stage.oracles.until = "w300", asked.total()
    stage.run(NAMED[name], 6000, mode)

    assert stage.oracles.seen == asked.total()


def test_without_look_ahead_they_are_not(stage):
    stage.oracles.held, stage.oracles.until = "w300", 750
    stage.run(NAMED["column"], 6000, PLAIN)

    assert stage.oracles.seen == 512


def test_a_cheap_condition_filters_before_anything_is_sent(stage):
    for mode in MODES:
        _, asked = stage.run(NAMED["where with a cheap condition"], 5000, mode)

        assert set(asked) == {("cls", f"w{i // 8}") for i in range(5000) if i % 10 == 7}


class TestNothingMoreIsSentAfter:
    """Each test stops a statement over 40,000 slow requests in another way."""

    #: The rows are so wide that DuckDB keeps no more than a chunk of them for its reader.
    QUERY = "SELECT ai_query('ep', u), repeat('x', 1000) FROM t"

    @pytest.fixture(params=AHEAD)
    def con(self, stage, request):
        stage.oracles.delay = lambda prompt: 0.004
        with replace(stage, threads=1).connected(40_000, request.param) as opened:
            yield opened

    @staticmethod
    def sent_later(oracles):
        """Return how much is asked from 0.2 s after now on."""
        time.sleep(0.2)
        before = oracles.asked.total()
        time.sleep(0.5)
        return oracles.asked.total() - before

    def test_an_interrupt(self, con, oracles):
        ended = threading.Event()

        def interrupt():
            deadline = time.monotonic() + 20
            while not oracles.asked and time.monotonic() < deadline:
                time.sleep(0.01)
            # What looks ahead may ask before DuckDB has begun to run the statement, and then forgets an interrupt.
            while not ended.wait(0.05):
                con.interrupt()

        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        try:
            with pytest.raises(duckdb.Error):
                con.execute(self.QUERY).fetchall()
        finally:
            ended.set()
            interrupting.join()

        assert oracles.asked
        assert self.sent_later(oracles) == 0

    def test_a_failure(self, con, oracles):
        oracles.say = lambda endpoint, prompt: answer("bad" if prompt == "u900" else endpoint, prompt, FAILING)
        with pytest.raises(duckdb.Error, match="u900"):
            con.execute(self.QUERY).fetchall()

        assert self.sent_later(oracles) == 0

    def test_a_reader_that_is_dropped(self, con, oracles):
        reader = con.sql(self.QUERY).to_arrow_reader(1000)
        reader.read_next_batch()
        del reader

        assert self.sent_later(oracles) == 0

    def test_a_reader_that_is_left_waiting(self, con, oracles):
        reader = con.sql(self.QUERY).to_arrow_reader(1000)
        reader.read_next_batch()
        # DuckDB itself goes on until its buffer is full.
        deadline = time.monotonic() + 20
        while self.sent_later(oracles) and time.monotonic() < deadline:
            continue
        reader.close()

        assert oracles.asked.total() <= 20_000

    def test_another_statement(self, con, oracles):
        con.execute(self.QUERY).fetchone()
        assert con.execute("SELECT 1").fetchall() == [(1,)]

        assert self.sent_later(oracles) == 0

    def test_a_close(self, con, oracles):
        con.execute(self.QUERY).fetchone()
        con.close()

        assert self.sent_later(oracles) == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_shown_relation_asks_for_what_it_shows(stage, mode):
    with stage.connected(10_000, mode) as con:
        assert "50 rows" in repr(con.sql("SELECT ai_query('ep', u) FROM t WHERE i < 50"))
        assert stage.oracles.heard().total() == 50
        assert "R:u0" in repr(con.sql("SELECT ai_query('ep', u) FROM t"))
        assert stage.oracles.heard().total() <= 2048


def test_leaving_a_block_waits_for_what_looks_ahead(stage):
    for _ in range(5):
        with stage.connected(2049, STOCK) as con:
            assert len(con.execute("SELECT ai_query('ep', 'constant') FROM t").fetchall()) == 2049
