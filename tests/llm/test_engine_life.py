"""Engines while models come and go: nobody's answer is lost, and everybody's memory is given back."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: language models are NOT tested")

import duckdb  # noqa: E402
from torch_engines import Tiny, answers, ask  # noqa: E402

import aiquery  # noqa: E402
from aiquery_serving.entities import loading  # noqa: E402
from aiquery_serving.errors import AiQueryError, ConfigurationError, EngineError, ModelError  # noqa: E402
from aiquery_serving.llm.torch_engine import TorchEngine  # noqa: E402
from aiquery_udfs.engine_thread import engine_thread  # noqa: E402

FRANCE = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
LONG = {"messages": [{"role": "user", "content": "Tell"}], "ignore_eos": True, "max_tokens": 400}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def workspace():
    with aiquery.Workspace(":memory:") as workspace:
        yield workspace


@pytest.fixture
def serve(workspace):
    """Serve models under the name `e`: as many served entities as there are folders."""

    def serve(*folders, update=False, shares=None, **more):
        entities = [{"name": f"m{place}", "entity_name": str(folder), **more} for place, folder in enumerate(folders)]
        config = {"served_entities": entities}
        if shares:
            routes = [
                {"served_model_name": f"m{place}", "traffic_percentage": share} for place, share in enumerate(shares)
            ]
            config["traffic_config"] = {"routes": routes}
        (workspace.update_endpoint_config if update else workspace.create_endpoint)("e", config)
        return workspace.wait("e", 60)

    serve.workspace = workspace
    return serve


def said(answer):
    return answer["choices"][0]["message"]["content"]


def engine_of(workspace, name="m0"):
    return workspace._registry.loaded()["e"].entities[name]._engine.loaded


def in_threads(work, count):
    """Run work often at once; returns the threads and, as they come, the results or errors."""
    results = []

    def run(place):
        try:
            results.append(work(place))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            results.append(error)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    return threads, results


def eventually(holds, seconds=10.0):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.01)


def test_an_update_to_another_model_loses_no_stream_and_gives_the_old_ones_memory_back(
    workspace, serve, llama, trained_llama
):
    serve(llama, environment_vars={"AIQUERY_MAX_SEQUENCES": "16"})
    engine = engine_of(workspace)
    left = [weakref.ref(what) for what in (engine, engine._loaded.model, engine._memory, engine._thread)]

    def stream(place):
        body = {"messages": [{"role": "user", "content": f"Tell {place}"}], "max_tokens": 60, "ignore_eos": True}
        return [chunk["choices"][0]["finish_reason"] for chunk in workspace.stream("e", body) if chunk["choices"]][-1]

    threads, ends = in_threads(stream, 50)
    eventually(lambda: workspace.engines()[0]["completion_tokens"] > 50)
    del engine
    serve(trained_llama, update=True)
    assert len(ends) < 50
    assert said(workspace.query("e", FRANCE)) == "Paris"
    for thread in threads:
        thread.join(60)
    assert ends == ["length"] * 50

    def forgotten():
        gc.collect()
        return not any(each() for each in left)

    eventually(forgotten)


def test_a_change_of_traffic_loads_nothing_again(workspace, serve, trained_llama):
    serve(trained_llama, trained_llama, shares=(50, 50))
    before = [engine_of(workspace, name) for name in ("m0", "m1")]
    serve(trained_llama, trained_llama, shares=(0, 100), update=True)
    assert [engine_of(workspace, name) for name in ("m0", "m1")] == before
    assert before[0] is not before[1]
    assert said(workspace.query("e", FRANCE)) == "Paris"
    assert [engine.metrics().finished for engine in before] == [0, 1]


def test_who_is_being_answered_when_the_endpoint_is_deleted_is_answered(workspace, serve, llama):
    serve(llama)
    stream = workspace.stream("e", LONG)
    next(stream)
    workspace.delete_endpoint("e")
    assert [*stream][-1]["usage"]["completion_tokens"] == 400


def truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def without_end(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = float("inf")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def replaced(name: str, old: str, new: str):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (truncated, "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot be loaded"),
        (replaced("config.json", '"hidden_size": 96', '"hidden_size": 64'), "not the shapes of its config.json"),
        (replaced("config.json", '_layers": 2', '_layers": 3'), "lack weights"),
        (without_end, "not finite"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer in"),
        (lambda folder: (folder / "chat_template.jinja").write_text("{% for %}"), "chat template"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "holds no model"),
    ],
)
def test_what_does_not_load_is_said_and_the_old_model_serves_on(serve, trained_llama, tmp_path, spoil, why):
    workspace = serve.workspace
    serve(trained_llama)
    folder = tmp_path / "model"
    shutil.copytree(trained_llama, folder)
    spoil(folder)
    try:
        endpoint = serve(folder, update=True)
    except ConfigurationError as error:
        reason = str(error)
    else:
        assert endpoint["state"]["config_update"] == "UPDATE_FAILED"
        reason = endpoint["config"]["served_entities"][0]["state"]["deployment_state_message"]
    assert why in reason
    assert said(workspace.query("e", FRANCE)) == "Paris"


def test_the_first_requests_load_a_model_once_and_when_nobody_asks_it_is_gone(
    workspace, serve, trained_llama, monkeypatch
):
    monkeypatch.setattr(loading, "IDLE_SECONDS", 0.3)
    serve(trained_llama, scale_to_zero_enabled=True)
    for _ in range(2):
        assert not workspace.engines()[0]["loaded"]
        threads, results = in_threads(lambda _: said(workspace.query("e", FRANCE)), 30)
        for thread in threads:
            thread.join(60)
        assert results == ["Paris"] * 30
        eventually(lambda: not workspace.engines()[0]["loaded"])


def test_who_leaves_while_a_model_is_loading_holds_nothing(workspace, serve, trained_llama):
    serve(trained_llama, scale_to_zero_enabled=True)

    async def leave():
        asked = [asyncio.ensure_future(workspace.gateway.query("e", FRANCE, caller=workspace.user)) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for each in asked:
            each.cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    assert all(isinstance(each, asyncio.CancelledError) for each in engine_thread.run(leave()))
    assert workspace._registry.loaded()["e"].entities["m0"]._engine._users == 0
    assert said(workspace.query("e", FRANCE)) == "Paris"


def test_closing_the_workspace_ends_answers_within_a_second_and_leaves_no_engine(serve, llama, workspace):
    others = set(threading.enumerate())
    serve(llama, scale_to_zero_enabled=True)
    threads, results = in_threads(
        lambda place: [*workspace.stream("e", LONG)] if place % 2 else workspace.query("e", LONG), 30
    )
    eventually(lambda: workspace.engines()[0]["completion_tokens"] > 50)
    began = time.monotonic()
    workspace.close()
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - began < 3
    assert len(results) == 30
    assert all(isinstance(result, AiQueryError) for result in results if not isinstance(result, dict | list))
    eventually(
        lambda: not [thread for thread in set(threading.enumerate()) - others if thread.name != "aiquery-engine"]
    )


def test_a_process_ends_in_the_middle_of_answers(llama):
    program = f"""if True:
        import contextlib, threading, aiquery
        workspace = aiquery.Workspace(":memory:")
        workspace.create_endpoint("e", {{"served_entities": [{{"name": "m", "entity_name": {str(llama)!r}}}]}})
        workspace.wait("e", 60)
        def listen():
            with contextlib.suppress(Exception):
                [*workspace.stream("e", {LONG!r})]
        for _ in range(20):
            threading.Thread(target=listen, daemon=True).start()
        left_open = workspace.stream("e", {LONG!r})
        next(left_open)
        while workspace.engines()[0]["running"] < 20:
            pass
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "terminate" in done.stderr) == (0, False), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_is_told_that_the_model_is_not_its_own(workspace, serve, llama):
    serve(llama)
    reading, writing = os.pipe()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        child = os.fork()
    if not child:
        try:
            workspace.query("e", FRANCE)
        except ModelError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert "belongs to the process that this one was forked from" in told.read()
    os.waitpid(child, 0)
    assert workspace.query("e", {**LONG, "max_tokens": 2})


def test_an_interrupted_query_gives_its_places_back(workspace, serve, llama):
    serve(llama)
    with duckdb.connect(config={"threads": 4}) as connection:
        aiquery.register(connection, workspace=workspace)
        asked = "SELECT max(ai_query('e', 'tell ' || i, modelParameters => {max_tokens: 400})) FROM range(1000) r(i)"
        threads, results = in_threads(lambda _: connection.sql(asked).fetchall(), 1)
        eventually(lambda: workspace.engines()[0]["running"] > 10)
        connection.interrupt()
        threads[0].join(5)
        assert "nterrupt" in str(results[0])
    eventually(lambda: workspace.engines()[0]["running"] == workspace.engines()[0]["waiting"] == 0, 2)
    assert workspace.query("e", {**LONG, "max_tokens": 2})["usage"]["completion_tokens"] == 2


def test_somebody_who_waits_goes_before_hundreds_of_rows(workspace, serve, llama):
    serve(llama, environment_vars={"AIQUERY_MAX_SEQUENCES": "8"})
    workspace.query("e", {**LONG, "max_tokens": 1})

    async def scene():
        def go(body, *, patient):
            return asyncio.ensure_future(workspace.gateway.query("e", body, caller=workspace.user, patient=patient))

        rows = [go({**LONG, "max_tokens": 30}, patient=True) for _ in range(400)]
        await asyncio.wait(rows, return_when=asyncio.FIRST_COMPLETED)
        await go({**LONG, "max_tokens": 3}, patient=False)
        before = sum(row.done() for row in rows)
        for row in rows:
            row.cancel()
        await asyncio.gather(*rows, return_exceptions=True)
        return before

    assert engine_thread.run(scene()) < 60


@pytest.fixture(scope="module")
def tiny(llama):
    return Tiny(llama)


class Failing:
    """The model, but for what a test does to its runs."""

    def __init__(self, tiny, spoil):
        self.device, self.dtype = tiny.loaded.model.device, tiny.loaded.model.dtype
        self._model, self._spoil = tiny.loaded.model, spoil

    def __call__(self, input_ids, **more):
        return self._spoil(lambda: self._model(input_ids=input_ids, **more))


def engine_that(tiny, spoil, **settings):
    from dataclasses import replace

    return TorchEngine(replace(tiny.loaded, model=Failing(tiny, spoil)), tiny.prompter, slots=4096, **settings)


def test_a_lack_of_memory_fails_who_was_in_that_run_and_the_engine_goes_on(tiny):
    runs = []

    def spoil(run):
        runs.append(1)
        if len(runs) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run()

    engine = engine_that(tiny, spoil, max_sequences=2)
    requests = [ask([7, 8, place], 10, ignore_eos=True) for place in range(6)]
    first, again = answers(engine, requests), answers(engine, requests)
    engine.close()
    assert [isinstance(answer, EngineError) for answer in first] == [True, True, False, False, False, False]
    assert "out of memory" in str(first[0])
    assert [answer.usage.completion_tokens for answer in again] == [10] * 6
    assert [answer.tokens for answer in first[2:]] == [answer.tokens for answer in again[2:]]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("manner", [{}, {"temperature": 1.0, "top_p": 0.9, "top_k": 5, "logprobs": False}])
def test_numbers_that_are_none_fail_their_own_answer_alone(tiny, number, manner):
    def spoil(run):
        out = run()
        if out.logits.shape[1] == 2:
            out.logits[0, 0] = number
        return out

    engine = engine_that(tiny, spoil)
    broken, fine = answers(engine, [ask([7, 8], 5, **manner), ask([9, 10], 5, ignore_eos=True, **manner)])
    engine.close()
    assert isinstance(broken, ModelError)
    assert "no finite numbers" in str(broken)
    assert fine.usage.completion_tokens == 5
