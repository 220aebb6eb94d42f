"""Custom models in processes of their own: the same answers, and what crashes there stays there."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pyarrow as pa
import pytest

from aiquery_serving.entities.pyfunc import load_pyfunc
from aiquery_serving.entities.workers import ProcessModel, Replicas, load_in_process
from aiquery_serving.errors import (
    AiQueryError,
    InvalidRequestError,
    MalformedRequestError,
    ModelCrashError,
    ModelError,
    OverloadedError,
)
from aiquery_serving.messages import BatchEntity, RequestEntity, StreamingModel

pytestmark = pytest.mark.slow


def python_model(model, **options):
    return mlflow.pyfunc.log_model(python_model=model, **options)


def odd_model():  # noqa: C901 - a class of many small orders
    """Return a model that does what it is told; defined here so that it is pickled whole."""

    class Odd(mlflow.pyfunc.PythonModel):
        def load_context(self, context):
            match os.environ.get("ODD_LOAD"):
                case "exit":
                    print("the weights are", "cursed", file=sys.stderr)
                    os._exit(4)
                case "raise":
                    raise ValueError("no weights")

        def predict(self, context, model_input, params=None):
            return [self.answer(*str(prompt).split(":")) for prompt in model_input["prompt"]]

        def predict_stream(self, context, model_input, params=None):
            word, *rest = model_input["prompt"].split(":")
            try:
                for number in range(4):
                    if number == 2 and word != "count":
                        self.answer(word, *rest)
                    if rest:
                        Path(rest[0]).write_text(str(number))
                    yield {"number": number}
            finally:
                if rest:
                    Path(rest[0]).write_text("closed")

        def answer(self, word, *rest):
            return getattr(self, word, word.upper)(*rest) or word.upper()

        def exit(self):
            os._exit(3)

        def segv(self):
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(10)

        def once(self, file):
            if not Path(file).exists():
                Path(file).touch()
                os._exit(5)

        def wait(self, file):
            Path(file + ".begun").touch()
            while not Path(file).exists():
                time.sleep(0.005)

        def nap(self, file):
            Path(file).touch()
            time.sleep(0.5)

        def env(self, name):
            return os.environ.get(name, "none")

        def pid(self):
            return str(os.getpid())

        def bad(self):
            raise ValueError("a bad prompt")

        def say(self, what):
            print("said", what)
            print("warned", what, file=sys.stderr)
            logging.getLogger("odd").error("logged %s\nin two lines", what)

    return Odd()


def agent_model():
    from mlflow.types.agent import ChatAgentChunk, ChatAgentMessage, ChatAgentResponse

    class Agent(mlflow.pyfunc.ChatAgent):
        def predict(self, messages, context=None, custom_inputs=None):
            said = ChatAgentMessage(role="assistant", content=messages[-1].content, id="1")
            return ChatAgentResponse(messages=[said], custom_outputs=custom_inputs)

        def predict_stream(self, messages, context=None, custom_inputs=None):
            for word in ("a", "b"):
                yield ChatAgentChunk(delta=ChatAgentMessage(role="assistant", content=word, id="1"))

    return Agent()


@pytest.fixture(scope="module")
def odd_path(registry, sign):
    registry.log("tests.odd", python_model, odd_model(), signature=sign({"prompt": "string"}, ["string"]))
    return registry.models.path("tests.odd", "1")


@contextmanager
def served(path, **options):
    options.setdefault("environment", {})
    model = load_in_process(path, name="odd", **options)
    try:
        yield model
    finally:
        model.close()


@pytest.fixture(scope="module")
def odd(odd_path):
    with served(odd_path, replicas=Replicas(each=4)) as model:
        yield model


def rows(*prompts):
    return {"dataframe_records": [{"prompt": prompt} for prompt in prompts]}


def answers(model, *prompts):
    return model.query(rows(*prompts))["predictions"]


def pid_of(model):
    return int(answers(model, "pid")[0])


def until(happened, seconds=40):
    """Wait for another process to do something."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def in_background(work, *arguments):
    """Run something on a thread; returns what waits for its outcome."""
    found = []

    def run():
        try:
            found.append(work(*arguments))
        except AiQueryError as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def outcome():
        thread.join(30)
        assert found, "there is no answer"
        return found[0]

    return outcome


# --- the same as in this process -------------------------------------------------------------------


def test_a_process_says_of_its_model_what_the_model_says_here(odd, odd_path):
    here = load_pyfunc(odd_path, name="odd", environment={})
    assert isinstance(odd, BatchEntity)
    assert isinstance(odd, StreamingModel)
    assert not isinstance(odd, RequestEntity)
    for name in ("input_schema", "output_type", "can_stream", "mergeable"):
        assert getattr(odd, name) == getattr(here, name)


def test_rows_of_any_number_get_the_same_answers(odd):
    for prompts in ([], ["a"], ["a", None, "c"], ["x"] * 50_000):
        found = odd.predict(pa.record_batch({"prompt": pa.array(prompts, pa.string())}))
        assert found.type == pa.string()
        assert found.to_pylist() == [str(prompt).upper() for prompt in prompts]


@pytest.mark.parametrize(
    "body",
    [rows("a", "b"), {"rows": []}, {"dataframe_records": [{"other": "a"}]}, rows("bad"), {**rows("a"), "params": {}}],
)
def test_bodies_get_the_same_answers_and_errors(odd, odd_path, body):
    here = load_pyfunc(odd_path, name="odd", environment={})

    def outcome(model):
        try:
            return model.query(body)
        except AiQueryError as error:
            return type(error), str(error)

    assert outcome(odd) == outcome(here)


def test_an_error_brings_the_models_own_traceback(odd):
    with pytest.raises(ModelError) as caught:
        answers(odd, "bad")
    assert 'raise ValueError("a bad prompt")' in caught.value.__notes__[0]
    with pytest.raises(MalformedRequestError):
        odd.query({})
    with pytest.raises(InvalidRequestError):
        odd.predict(pa.record_batch({"prompt": [1]}))


def test_an_agent_answers_whole_and_in_pieces(registry):
    registry.log("tests.worker-agent", python_model, agent_model())
    with served(registry.models.path("tests.worker-agent", "1")) as model:
        assert not model.mergeable
        body = {"messages": [{"role": "user", "content": "hi"}], "custom_inputs": {"x": 1}}
        whole = model.query(body)
        assert (whole["messages"][0]["content"], whole["custom_outputs"]) == ("hi", {"x": 1})
        assert [chunk["delta"]["content"] for chunk in model.stream(body)] == ["a", "b"]


def test_concurrent_callers_share_batches(odd):
    async def run():
        prompts = [f"p{number}" for number in range(200)] + ["bad"]
        found = await asyncio.gather(*(odd.aquery(rows(prompt)) for prompt in prompts), return_exceptions=True)
        assert [answer["predictions"] for answer in found[:-1]] == [[prompt.upper()] for prompt in prompts[:-1]]
        assert isinstance(found[-1], ModelError)

    asyncio.run(run())


# --- environment and lines -------------------------------------------------------------------------


def test_variables_are_set_in_the_models_process_only_and_nobody_prints_them(odd_path):
    with served(odd_path, environment={"ODD_KEY": "sesame"}) as model:
        assert answers(model, "env:ODD_KEY") == ["sesame"]
        assert "ODD_KEY" not in os.environ
        assert "sesame" not in repr(model._crew._program)


def test_answers_do_not_wait_for_who_takes_the_models_lines(odd_path):
    """Logged lines come through the pipe that answers come through."""
    may_take, heard = threading.Event(), []

    def slow(_level, line):
        may_take.wait(20)
        heard.append(line)

    with served(odd_path, on_line=slow) as model:
        assert answers(model, "say:hello", "a") == ["SAY", "A"]
        assert answers(model, "a") == ["A"]
        assert heard == []
        may_take.set()
        until(lambda: "logged hello\nin two lines" in heard)


def test_what_the_model_prints_and_logs_is_heard_with_its_level(odd_path):
    heard = []
    with served(odd_path, on_line=lambda level, line: heard.append((level, line))) as model:
        answers(model, "say:hello")
        wanted = [
            (logging.INFO, "said hello"),
            (logging.WARNING, "warned hello"),
            (logging.ERROR, "logged hello\nin two lines"),
        ]
        until(lambda: set(wanted) <= set(heard))


def test_who_fails_to_listen_loses_lines_and_no_answers(odd_path):
    def deaf(level, line):
        raise ValueError(line)

    with served(odd_path, on_line=deaf) as model:
        assert answers(model, "say:hello", "a") == ["SAY", "A"]


# --- crashes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "how"), [("exit", "exit code 3"), ("segv", r"signal 11 \(SIGSEGV\)")])
def test_a_request_that_ends_the_process_twice_is_told_how(odd, prompt, how):
    with pytest.raises(ModelCrashError, match=how):
        answers(odd, prompt)
    assert answers(odd, "a") == ["A"]


def test_a_request_whose_process_ended_is_asked_once_more(odd, tmp_path):
    assert answers(odd, f"once:{tmp_path / 'ended'}") == ["ONCE"]


def test_who_was_in_flight_beside_the_guilty_one_gets_an_answer(odd, tmp_path):
    neighbours = [in_background(answers, odd, f"nap:{tmp_path / name}") for name in "ab"]
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    guilty = in_background(answers, odd, "exit")
    late = in_background(answers, odd, "a")
    assert isinstance(guilty(), ModelCrashError)
    assert [neighbour() for neighbour in neighbours] == [["NAP"], ["NAP"]]
    assert late() == ["A"]


def test_only_the_guilty_one_of_a_batch_fails(odd):
    async def run():
        for _ in range(4):  # so that batches are known to pay
            await odd.aquery(rows("a"))
        prompts = ["a", "b", "exit", "c"]
        found = await asyncio.gather(*(odd.aquery(rows(prompt)) for prompt in prompts), return_exceptions=True)
        assert [type(answer) for answer in found] == [dict, dict, ModelCrashError, dict]

    asyncio.run(run())


def test_other_processes_of_the_model_go_on(odd_path):
    with served(odd_path, replicas=Replicas(2, 2, 1)) as model:
        first = pid_of(model)
        with pytest.raises(ModelCrashError):
            answers(model, "exit")
        assert pid_of(model) != first
        assert answers(model, "a") == ["A"]


def test_a_request_is_asked_again_of_a_process_that_runs_already(odd_path, tmp_path):
    with served(odd_path, replicas=Replicas(2, 2, 2)) as model:
        everybody = {place.process._process.pid for place in model._crew._places}
        first = pid_of(model)
        assert answers(model, f"once:{tmp_path / 'ended'}", "pid") == ["ONCE", str(*everybody - {first})]
        until(lambda: all(place.runs for place in model._crew._places))
        again = {place.process._process.pid for place in model._crew._places}
        assert len(again & everybody) == 1, "the other one was replaced, though nobody asked"


def test_nobody_is_beside_a_request_that_is_asked_again(odd_path, tmp_path):
    with served(odd_path, replicas=Replicas(2, 2, 2)) as model:
        guilty = [in_background(answers, model, "exit") for _ in range(2)]
        innocent = [in_background(answers, model, f"nap:{tmp_path / name}") for name in "abc"]
        assert [type(outcome()) for outcome in guilty] == [ModelCrashError] * 2
        assert [outcome() for outcome in innocent] == [["NAP"]] * 3


# --- as many as there is work for ------------------------------------------------------------------


def pids(model):
    return {place.process._process.pid for place in model._crew._places if place.runs}


def test_load_starts_a_second_process_and_idleness_ends_it(odd_path, tmp_path):
    with served(odd_path, replicas=Replicas(1, 2, 4), idle_seconds=1.0) as model:
        (first,) = pids(model)
        busy = [in_background(answers, model, f"wait:{tmp_path / str(number)}") for number in range(8)]
        until(lambda: len(list(tmp_path.glob("*.begun"))) == 8)
        assert len(pids(model)) == 2
        for number in range(8):
            (tmp_path / str(number)).touch()
        assert [outcome() for outcome in busy] == [["WAIT"]] * 8
        until(lambda: pids(model) == {first})
        assert answers(model, "pid") == [str(first)]


def test_one_process_answers_while_the_other_is_busy(odd_path, tmp_path):
    with served(odd_path, replicas=Replicas(2, 2, 1)) as model:
        busy = in_background(answers, model, f"wait:{tmp_path / 'free'}")
        until((tmp_path / "free.begun").exists)
        assert answers(model, "a", "b") == ["A", "B"]
        (tmp_path / "free").touch()
        assert busy() == ["WAIT"]


def test_requests_that_arrive_on_the_event_loop_start_processes_too(odd_path, tmp_path):
    async def run(model):
        files = [tmp_path / str(number) for number in range(3)]
        asked = [asyncio.create_task(model.aquery(rows(f"wait:{file}"))) for file in files]
        await asyncio.to_thread(until, lambda: len(pids(model)) == 3)
        for file in files:
            file.touch()
        await asyncio.gather(*asked)

    with served(odd_path, replicas=Replicas(1, 3, 1)) as model:
        asyncio.run(run(model))


def test_a_further_process_that_does_not_start_is_told_of_and_the_first_goes_on(odd_path, tmp_path, monkeypatch):
    heard = []
    with served(odd_path, replicas=Replicas(1, 2, 1), on_line=lambda level, line: heard.append(line)) as model:
        monkeypatch.setenv("ODD_LOAD", "raise")
        busy = in_background(answers, model, f"wait:{tmp_path / 'free'}")
        waiting = in_background(answers, model, "a")
        until(lambda: any("One more process did not start" in line and "no weights" in line for line in heard))
        (tmp_path / "free").touch()
        assert (busy(), waiting()) == (["WAIT"], ["A"])


# --- starting and ending ---------------------------------------------------------------------------


def test_a_model_that_raises_while_it_loads_does_not_load(odd_path):
    with pytest.raises(ModelError, match=r"Model 'odd' could not be loaded: .*no weights"):
        load_in_process(odd_path, name="odd", environment={"ODD_LOAD": "raise"})


def test_a_model_whose_process_ends_while_it_loads_shows_its_last_lines(odd_path):
    with pytest.raises(ModelError, match=r"could not be loaded: .*exit code 4.*(?s:.)*the weights are cursed"):
        load_in_process(odd_path, name="odd", environment={"ODD_LOAD": "exit"})


def test_closing_ends_a_busy_process_within_a_second(odd_path, tmp_path):
    with served(odd_path) as model:
        pid = pid_of(model)
        waiting = in_background(answers, model, f"wait:{tmp_path / 'never'}")
        until((tmp_path / "never.begun").exists)
        began = time.monotonic()
        model.close()
        assert time.monotonic() - began < 1
        assert not is_running(pid)
        assert isinstance(waiting(), OverloadedError)
        with pytest.raises(OverloadedError, match="out of service"):
            answers(model, "a")


def test_a_retired_model_finishes_what_it_was_asked(odd_path, tmp_path):
    with served(odd_path) as model:
        pid = pid_of(model)
        waiting = in_background(answers, model, f"wait:{tmp_path / 'free'}")
        until((tmp_path / "free.begun").exists)
        model.retire()
        assert is_running(pid)
        (tmp_path / "free").touch()
        assert waiting() == ["WAIT"]
        until(lambda: not is_running(pid))


def test_a_model_does_not_see_the_key_to_the_secrets_of_others(odd_path, monkeypatch):
    monkeypatch.setenv("AIQUERY_SECRET_KEY", "k" * 44)
    monkeypatch.setenv("ODD_COLOUR", "red")
    with served(odd_path, environment={"ODD_SIZE": "big"}) as model:
        asked = [{"prompt": f"env:{name}"} for name in ("AIQUERY_SECRET_KEY", "ODD_COLOUR", "ODD_SIZE")]
        assert model.query({"dataframe_records": asked})["predictions"] == ["none", "red", "big"]


def test_a_model_that_scales_to_zero_ends_by_itself_and_the_next_request_starts_it(odd_path):
    with served(odd_path, replicas=Replicas(0, 1, 4), idle_seconds=0.2) as model:
        for _ in range(2):
            pid = pid_of(model)
            until(lambda gone=pid: not is_running(gone))
        assert pid_of(model) != pid


def test_an_idle_model_stays_up_where_one_process_has_to_run(odd_path):
    with served(odd_path, idle_seconds=0.05) as model:
        pid = pid_of(model)
        time.sleep(0.3)
        assert pid_of(model) == pid


def test_a_process_does_not_outlive_the_one_that_started_it(odd_path):
    program = (
        f"import sys, time; sys.path[:] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from aiquery_serving.entities.workers import load_in_process\n"
        f"model = load_in_process(Path({str(odd_path)!r}), name='odd', environment={{}})\n"
        "print(model.query({'dataframe_records': [{'prompt': 'pid'}]})['predictions'][0], flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
    until(lambda: not is_running(child))


def test_no_more_requests_run_at_once_than_the_process_takes(odd_path, tmp_path):
    with served(odd_path, replicas=Replicas(each=1)) as model:
        first = in_background(answers, model, f"wait:{tmp_path / 'one'}")
        until((tmp_path / "one.begun").exists)
        second = in_background(answers, model, f"wait:{tmp_path / 'two'}")
        time.sleep(0.1)
        assert not (tmp_path / "two.begun").exists()
        (tmp_path / "two").touch()
        (tmp_path / "one").touch()
        assert (first(), second()) == (["WAIT"], ["WAIT"])


# --- streams ---------------------------------------------------------------------------------------


def test_pieces_are_computed_when_they_are_asked_for(odd, tmp_path):
    seen = tmp_path / "seen"
    stream = odd.stream({"prompt": f"count:{seen}"})
    assert next(stream) == {"number": 0}
    assert answers(odd, "a") == ["A"], "other requests go on meanwhile"
    assert seen.read_text() == "0"
    assert [piece["number"] for piece in stream] == [1, 2, 3]


def test_hanging_up_stops_the_model(odd, tmp_path):
    seen = tmp_path / "seen"
    stream = odd.stream({"prompt": f"count:{seen}"})
    next(stream)
    stream.close()
    until(lambda: seen.read_text() == "closed")
    assert all(place.in_flight == 0 for place in odd._crew._places)


def test_an_answer_that_had_begun_is_not_begun_again(odd):
    stream = odd.stream({"prompt": "exit"})
    assert [next(stream), next(stream)] == [{"number": 0}, {"number": 1}]
    with pytest.raises(ModelCrashError, match="exit code 3"):
        next(stream)
    assert answers(odd, "a") == ["A"]


def test_an_error_after_the_first_piece_is_the_models(odd):
    stream = odd.stream({"prompt": "bad"})
    assert [next(stream), next(stream)] == [{"number": 0}, {"number": 1}]
    with pytest.raises(ModelError, match="ValueError: a bad prompt"):
        next(stream)


# --- rows as they are ------------------------------------------------------------------------------


def test_rows_travel_whatever_their_types(registry, sign):
    class Sizes(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input["x"].to_numpy() * 2

    registry.log("tests.sizes", python_model, Sizes(), signature=sign({"x": "double"}, ["double"]))
    with served(registry.models.path("tests.sizes", "1")) as model:
        values = np.random.default_rng(7).normal(size=300_000)
        batch = pa.record_batch({"x": values})
        np.testing.assert_array_equal(model.predict(batch).to_numpy(), values * 2)
        assert model.predict(batch.slice(100, 3)).to_pylist() == (values[100:103] * 2).tolist()
        assert isinstance(model, ProcessModel)
