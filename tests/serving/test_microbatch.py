"""Requests that wait for one model at the same time are answered together, and each as if it were alone."""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
from types import SimpleNamespace

import mlflow.pyfunc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.types import DataType, ParamSchema, ParamSpec

from aiquery_serving.entities.batch_sizes import MOST_ROWS, BatchSizes
from aiquery_serving.entities.merging import merged, parted, shape_of
from aiquery_serving.entities.microbatch import Microbatcher
from aiquery_serving.errors import AiQueryError, ModelError

# --- how many rows -------------------------------------------------------------------------------


def learned(duration, batches=2000):
    """Feed a model's durations to its sizes, as full batches; return the sizes that were tried."""
    sizes = BatchSizes()
    tried = []
    for _ in range(batches):
        tried.append(sizes.most)
        sizes.learn(sizes.most, duration(sizes.most))
    return tried


def test_a_model_that_works_on_columns_gets_all_that_wait():
    assert learned(lambda rows: 0.001 + 1e-9 * rows, batches=20)[-1] == MOST_ROWS


def test_a_model_that_works_row_by_row_gets_one_request_at_a_time():
    tried = learned(lambda rows: 0.1 * rows)
    assert max(tried) == 2
    assert tried.count(2) < 10


def test_batches_stop_growing_where_more_rows_gain_little():
    assert set(learned(lambda rows: 0.001 * (1 + rows / 64))[50:]) <= {64, 128, 256}


def test_a_slow_first_call_teaches_nothing():
    calls = itertools.count()
    assert max(learned(lambda rows: 5.0 if next(calls) == 0 else 0.1 * rows)) == 2


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 10)), max_size=300))
def test_any_durations_keep_the_size_in_bounds(batches):
    sizes = BatchSizes()
    for rows, seconds in batches:
        sizes.learn(rows, seconds)
        assert 1 <= sizes.most <= MOST_ROWS
        assert math.log2(sizes.most).is_integer()


# --- which bodies ----------------------------------------------------------------------------------

RECORD = {"dataframe_records": [{"a": 1.0, "b": "x"}]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"inputs": [1, 2]},
        {"instances": [[1, 2]]},
        {"dataframe_records": []},
        {"dataframe_records": [{}, {"a": 1}]},
        {"dataframe_records": [{"a": 1}, {"a": 1.0}]},
        {"dataframe_records": [{"a": 1}, {"b": 1}]},
        {"dataframe_records": [{"a": [1]}]},
        {"dataframe_records": {"a": 1}},
        {"dataframe_records": [1]},
        {"dataframe_split": {"data": [[1]]}},
        {"dataframe_split": {"columns": ["a"], "data": [[1]], "index": [7]}},
        {"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}},
        {"dataframe_split": {"columns": ["a", 1], "data": [[1, 2]]}},
        {"dataframe_split": [{"a": 1}]},
        {**RECORD, "params": {}},
        {**RECORD, "dataframe_split": {"columns": ["a"], "data": [[1]]}},
    ],
)
def test_what_has_not_plain_rows_of_one_kind_goes_alone(body):
    assert shape_of(body) is None


def test_the_envelope_does_not_part_requests():
    assert shape_of({**RECORD, "client_request_id": "7"}) == shape_of(RECORD)


@pytest.mark.parametrize("answer", [{"predictions": 1}, {"predictions": [1, 2]}, {"outputs": [1, 2, 3]}])
def test_an_answer_that_is_not_one_per_row_cannot_be_parted(answer):
    assert parted(answer, [1, 2]) is None


class Echo(mlflow.pyfunc.PythonModel):
    """Answers each row with what it got and of what type."""

    def predict(self, context, model_input, params=None):
        if "bad" in set(model_input["text"]):
            raise ValueError("a bad row")
        kinds = [str(kind) for kind in model_input.dtypes]
        return [[*map(repr, row), *kinds] for row in model_input.itertuples(index=False)]


@pytest.fixture(scope="module")
def echo(serve, sign):
    columns = {"x": DataType.double, "n": DataType.long, "text": DataType.string, "yes": DataType.boolean}
    signed = sign(columns, None)
    signed.params = ParamSchema([ParamSpec("by", "double", 1.0)])
    return serve(Echo(), signature=signed)


CELLS = {
    "x": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70) | st.none() | st.booleans(),
    "n": st.integers(-(2**64), 2**65) | st.floats(-100, 100) | st.none(),
    "text": st.text(max_size=3) | st.just("bad") | st.none() | st.integers(0, 3),
    "yes": st.booleans() | st.integers(0, 1) | st.none(),
}


@st.composite
def bodies(draw):
    form = draw(st.sampled_from(["dataframe_records", "dataframe_split", "instances"]))
    plain = {"x": st.just(0.5), "n": st.just(3), "text": st.text(max_size=2), "yes": st.booleans()}
    cells = draw(st.sampled_from([CELLS, plain, {**plain, "x": CELLS["x"]}]))
    names = draw(st.permutations(list(cells)) | st.just(list(cells)))
    rows = draw(st.lists(st.tuples(*(cells[name] for name in names)), min_size=1, max_size=3))
    if form == "dataframe_split":
        return {form: {"columns": names, "data": [list(row) for row in rows]}}
    return {form: [dict(zip(names, row, strict=True)) for row in rows]}


def outcome(query, body):
    try:
        return query(body)
    except AiQueryError as error:
        return type(error), str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(bodies(), min_size=2, max_size=5))
def test_together_every_body_gets_the_answer_it_gets_alone(echo, wanted):
    alone = [outcome(echo.query, body) for body in wanted]
    by_shape = {}
    for body, answer in zip(wanted, alone, strict=True):
        if (found := shape_of(body)) is not None and isinstance(answer, dict):
            by_shape.setdefault(found[0], []).append((body, found[1], answer))
    for shape, members in by_shape.items():
        together = outcome(echo.query, merged(shape, [body for body, _, _ in members]))
        if isinstance(together, dict):
            assert parted(together, [rows for _, rows, _ in members]) == [answer for _, _, answer in members]


# --- when ------------------------------------------------------------------------------------------


class Model:
    """Doubles numbers, when it is let; all but 13."""

    def __init__(self):
        self.asked, self.free = [], threading.Semaphore(0)
        self.begun = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def query(self, body):
        self.asked.append([row["a"] for row in body["dataframe_records"]])
        self.loop.call_soon_threadsafe(self.begun.put_nowait, body)
        assert self.free.acquire(timeout=20)
        if any(row["a"] == 13 for row in body["dataframe_records"]):
            raise ModelError("thirteen")
        return {"predictions": [2 * row["a"] for row in body["dataframe_records"]]}

    def let(self, batches):
        self.free.release(batches)


def number(*values):
    return {"dataframe_records": [{"a": value} for value in values]}


def ready(most=8):
    """Return a model and its batcher, which knows by now how many rows pay."""
    model = Model()
    batcher = Microbatcher(model.query, merges=True)
    batcher._sizes = SimpleNamespace(most=most, learn=lambda *_: None)
    return model, batcher


async def asked_while_busy(model, batcher, *requests):
    """Ask one request and, once the model is at it, the others; return all as tasks."""
    first = asyncio.ensure_future(batcher.ask(number(1)))
    await model.begun.get()
    others = [asyncio.ensure_future(batcher.ask(body)) for body in requests]
    await asyncio.sleep(0)
    return [first, *others]


def test_what_comes_while_a_batch_computes_is_the_next_batch():
    async def run():
        model, batcher = ready()
        tasks = await asked_while_busy(model, batcher, number(2), number(3, 4), number(5))
        model.let(2)
        answers = await asyncio.gather(*tasks)
        assert model.asked == [[1], [2, 3, 4, 5]]
        assert [answer["predictions"] for answer in answers] == [[2], [4], [6, 8], [10]]

    asyncio.run(run())


def test_only_the_bad_one_of_a_batch_fails():
    async def run():
        model, batcher = ready()
        tasks = await asked_while_busy(model, batcher, number(2), number(13), number(3))
        model.let(5)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [answer["predictions"] for answer in (answers[1], answers[3])] == [[4], [6]]
        assert isinstance(answers[2], ModelError)
        assert model.asked == [[1], [2, 13, 3], [2], [13], [3]]

    asyncio.run(run())


def test_other_shapes_wait_for_a_batch_of_their_own_in_order():
    async def run():
        model, batcher = ready()
        tasks = await asked_while_busy(model, batcher, number(2), number(2.5), number(3), number(3.5))
        model.let(3)
        await asyncio.gather(*tasks)
        assert model.asked == [[1], [2, 3], [2.5, 3.5]]

    asyncio.run(run())


def test_a_batch_holds_no_more_rows_than_pay():
    async def run():
        model, batcher = ready(most=4)
        tasks = await asked_while_busy(
            model, batcher, number(2, 3), number(4, 5, 6), number(7), number(8, 9, 10, 11, 12)
        )
        model.let(4)
        await asyncio.gather(*tasks)
        assert model.asked == [[1], [2, 3, 7], [4, 5, 6], [8, 9, 10, 11, 12]]

    asyncio.run(run())


def test_a_caller_who_left_is_not_asked_for():
    async def run():
        model, batcher = ready()
        tasks = await asked_while_busy(model, batcher, number(2), number(3))
        tasks[1].cancel()
        await asyncio.sleep(0)
        model.let(2)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert model.asked == [[1], [3]]

    asyncio.run(run())


def test_requests_without_plain_rows_do_not_wait_for_batches():
    async def run():
        model, batcher = ready()
        alone = {**number(2), "params": {"by": 2}}
        tasks = await asked_while_busy(model, batcher, alone, alone)
        await model.begun.get()
        await model.begun.get()
        model.let(3)
        await asyncio.gather(*tasks)
        assert model.asked == [[1], [2], [2]]

    asyncio.run(run())


def test_a_model_that_looks_at_its_rows_together_is_asked_one_by_one_from_then_on():
    async def run():
        asked = []

        def total(body):
            values = [row["a"] for row in body["dataframe_records"]]
            asked.append(values)
            return {"predictions": sum(values)}

        batcher = Microbatcher(total, merges=True)
        for _ in range(20):
            answers = await asyncio.gather(*(batcher.ask(number(n)) for n in range(10)))
            assert [answer["predictions"] for answer in answers] == list(range(10))
        assert max(map(len, asked)) == 1

    asyncio.run(run())


def test_a_real_model_answers_many_callers_as_it_answers_one(echo):
    wanted = [{"dataframe_records": [{"x": n / 2, "n": n, "text": "t", "yes": True}]} for n in range(40)]
    wanted[7]["dataframe_records"][0]["text"] = "bad"
    wanted[9] = {"rows": []}
    alone = [outcome(echo.query, body) for body in wanted]

    async def run():
        return await asyncio.gather(*map(echo.aquery, wanted), return_exceptions=True)

    for _ in range(5):
        together = [(type(a), str(a)) if isinstance(a, Exception) else a for a in asyncio.run(run())]
        assert together == alone
