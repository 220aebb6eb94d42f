"""vLLM as an engine, against a stand-in with vLLM's own names and signatures."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_vllm
import numpy as np
import pytest

from aiquery_serving.errors import (
    ConfigurationError,
    ContextLengthError,
    EngineError,
    InvalidRequestError,
    ModelError,
    OverloadedError,
)
from aiquery_serving.llm.interface import LENGTH, STOP, GenerationRequest, GenerationUsage, Sampling
from aiquery_serving.llm.model_files import ModelFiles
from aiquery_serving.llm.settings import EngineSettings
from aiquery_serving.llm.vllm_engine import VllmEmbedder, VllmEngine
from aiquery_serving.llm.vllm_translation import engine_arguments

CHAT, EMBEDDINGS = "llm/v1/chat", "llm/v1/embeddings"


@pytest.fixture
def vllm(monkeypatch):
    return fake_vllm.install(monkeypatch)


def files(task=CHAT, **more) -> ModelFiles:
    return ModelFiles(model=Path("/m"), tokenizer=Path("/t"), task=task, model_type="llama", **more)


@pytest.fixture
def engine(vllm):
    made = VllmEngine(files(), EngineSettings(), lambda _: None)
    yield made
    made.close()


@pytest.fixture
def embedder(vllm):
    prompter = SimpleNamespace(text=lambda text: [7])
    made = VllmEmbedder(files(EMBEDDINGS), EngineSettings(), prompter, lambda _: None)
    yield made
    made.close()


def ask(*token_ids: int, batch: bool = False, **sampling) -> GenerationRequest:
    return GenerationRequest(token_ids=token_ids, sampling=Sampling(**sampling), batch=batch)


async def pieces(engine, request, *, stream=False) -> list:
    return [piece async for piece in engine.submit(request, stream=stream)]


def one(engine, request):
    (piece,) = asyncio.run(pieces(engine, request))
    return piece


def last(engine) -> SimpleNamespace:
    return fake_vllm.AsyncLLM.made[-1].asked[-1]


def test_an_answer_comes_as_one_piece_with_its_usage(engine):
    async def answered():
        generation = engine.submit(ask(1, 2, max_tokens=3))
        return [piece async for piece in generation], generation.usage

    (piece,), usage = asyncio.run(answered())
    assert (piece.text, piece.finish_reason, piece.logprobs) == ("def", LENGTH, ())
    assert usage == GenerationUsage(prompt_tokens=2, completion_tokens=3, cached_tokens=4)


def test_a_stream_comes_piece_by_piece(engine):
    async def answered():
        generation = engine.submit(ask(1, 2, max_tokens=3), stream=True)
        return [piece async for piece in generation], generation.usage

    got, usage = asyncio.run(answered())
    assert [(piece.text, piece.finish_reason) for piece in got] == [("d", None), ("e", None), ("f", LENGTH)]
    assert usage.completion_tokens == 3


def test_many_are_answered_at_once_on_two_loops(engine):
    async def many(start):
        answers = await asyncio.gather(*(pieces(engine, ask(start + n, max_tokens=2)) for n in range(50)))
        return [answer[0].text for answer in answers]

    async def both():
        other = asyncio.to_thread(asyncio.run, many(100))
        return await asyncio.gather(many(0), other)

    first, second = asyncio.run(both())
    assert first[:3] == ["bc", "cd", "de"]
    assert len(second) == 50


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": None, "stop": [], "logprobs": None}),
        ({"max_tokens": 7, "temperature": 0.0}, {"max_tokens": 7, "temperature": 0.0}),
        ({"top_p": 0.5, "top_k": 9}, {"top_p": 0.5, "top_k": 9}),
        ({"seed": 5}, {"seed": 5}),
        ({"seed": -1}, {"seed": 2**63 - 1}),
        ({"stop": ("a", "b")}, {"stop": ["a", "b"]}),
        ({"frequency_penalty": 1.5, "presence_penalty": -1.0}, {"frequency_penalty": 1.5, "presence_penalty": -1.0}),
        ({"logit_bias": {3: -100.0}}, {"logit_bias": {3: -100.0}}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"schema": '{"type": "object"}'}, {"structured_outputs": fake_vllm.StructuredOutputsParams('{"type": "object"}')}),
    ],
)  # fmt: skip
def test_every_field_of_a_request_reaches_vllm(engine, sampling, expected):
    one(engine, ask(1, **({"max_tokens": 1} | sampling)))
    assert {name: getattr(last(engine).params, name) for name in expected} == expected


def test_without_max_tokens_an_answer_may_fill_the_context(engine):
    assert len(one(engine, ask(1, 2)).text) == engine.context_length - 2


def test_batch_work_waits_for_the_rest(engine):
    one(engine, ask(1, max_tokens=1, batch=True))
    batch = last(engine).priority
    one(engine, ask(1, max_tokens=1))
    assert last(engine).priority < batch


def test_logprobs_name_the_token_and_the_likeliest(engine):
    piece = one(engine, ask(10, max_tokens=2, logprobs=True, top_logprobs=3))
    first, second = piece.logprobs
    assert (first.token_id, first.logprob) == (11, -1.0)
    assert first.top == ((12, -0.5), (11, -1.0), (14, -1.5))
    assert second.token_id == 12


def test_logprobs_without_the_likeliest(engine):
    assert one(engine, ask(10, max_tokens=1, logprobs=True)).logprobs[0].top == ()


@pytest.mark.parametrize(("stop", "tokens"), [((), 1), (("x",), 2)])
def test_the_token_that_ends_an_answer_is_no_part_of_it(engine, vllm, stop, tokens):
    vllm.trouble.over = {9: "stop"}
    piece = one(engine, ask(9, max_tokens=2, logprobs=True, stop=stop))
    assert (piece.finish_reason, len(piece.logprobs)) == (STOP, tokens)


def test_a_cancelled_answer_is_aborted_and_ends(engine, vllm):
    vllm.trouble.hang = {9}

    async def cancelled():
        generation = engine.submit(ask(9, max_tokens=5), stream=True)
        pieces = aiter(generation)
        first = await anext(pieces)
        generation.cancel()
        generation.cancel()
        return first, [piece async for piece in pieces]

    first, rest = asyncio.run(cancelled())
    assert (first.text, rest) == ("k", [])
    wait_for(lambda: vllm.made[-1].aborted == [last(engine).id])


def test_an_answer_that_nobody_reads_to_its_end_is_aborted(engine, vllm):
    vllm.trouble.hang = {9}

    async def left():
        pieces = aiter(engine.submit(ask(9, max_tokens=5), stream=True))
        await anext(pieces)
        await pieces.aclose()

    asyncio.run(left())
    wait_for(lambda: vllm.made[-1].aborted)


def test_cancelling_from_another_thread_ends_who_waits(engine, vllm):
    vllm.trouble.hang = {9}

    async def cancelled():
        generation = engine.submit(ask(9, max_tokens=5))
        asyncio.get_running_loop().call_later(0.02, lambda: asyncio.ensure_future(asyncio.to_thread(generation.cancel)))
        return [piece async for piece in generation]

    assert asyncio.run(cancelled()) == []


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (fake_vllm.VLLMValidationError("no such grammar"), InvalidRequestError),
        (ValueError("no such token"), InvalidRequestError),
        (fake_vllm.GracefulHTTPError("busy"), OverloadedError),
        (fake_vllm.EngineDeadError("dead"), EngineError),
        (fake_vllm.EngineGenerateError("odd"), EngineError),
        ("abort", EngineError),
        ("error", EngineError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_vllm_fails_over_is_one_of_our_errors_and_hits_one_request(engine, vllm, trouble, error, stream):
    vllm.trouble.over = {9: trouble}

    async def beside():
        return await asyncio.gather(
            pieces(engine, ask(9, max_tokens=1), stream=stream), pieces(engine, ask(1, max_tokens=1)),
            return_exceptions=True,
        )  # fmt: skip

    failed, fine = asyncio.run(beside())
    assert type(failed) is error
    assert fine[0].text == "c"


def test_a_repetitive_answer_has_ended_like_any_other(engine, vllm):
    vllm.trouble.over = {9: "repetition"}
    assert one(engine, ask(9, max_tokens=1)).finish_reason == STOP


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (ask(), InvalidRequestError, "empty"),
        (ask(*range(fake_vllm.CONTEXT)), ContextLengthError, "64 tokens"),
        (ask(1, temperature=3.0), InvalidRequestError, "temperature must be in"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(engine, request_, error, says):
    async def refused():
        with pytest.raises(error, match=says):
            engine.submit(request_)

    asyncio.run(refused())


def test_closing_tells_who_waits_and_refuses_what_comes(engine, vllm):
    vllm.trouble.hang = {9}

    async def closed():
        generation = engine.submit(ask(9, max_tokens=5))
        await asyncio.sleep(0.02)
        await asyncio.to_thread(engine.close)
        with pytest.raises(OverloadedError, match="being unloaded"):
            [piece async for piece in generation]
        with pytest.raises(OverloadedError):
            engine.submit(ask(1))

    asyncio.run(closed())
    assert vllm.made[-1].down
    engine.close()


def test_metrics_add_up_what_vllm_reports(engine):
    one(engine, ask(1, 2, 3, 4, 5, 6, 7, 8, max_tokens=3))
    found = engine.metrics()
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (8, 4, 3)
    assert (found.running, found.waiting, found.steps, found.finished) == (2, 1, 3, 1)
    assert (found.kv_tokens, found.kv_tokens_used) == (1500, 750)
    assert found.prefix_hit_rate == 0.5


def test_reports_that_vllm_has_changed_break_nothing(engine, vllm, monkeypatch):
    monkeypatch.setattr(fake_vllm.AsyncLLM, "_tell", lambda self, prompt: self.loggers[0].record(object(), object()))
    assert one(engine, ask(1, max_tokens=1)).text == "c"
    assert engine.metrics().completion_tokens == 0


def test_settings_become_the_engines_arguments():
    settings = EngineSettings(
        dtype="bfloat16", max_batch_tokens=100, max_sequences=9, kv_memory_fraction=0.5, context_length=50, device="cuda:2"
    )  # fmt: skip
    found = engine_arguments(files(), settings)
    assert (found["model"], found["tokenizer"], found["dtype"]) == ("/m", "/t", "bfloat16")
    assert (found["max_num_batched_tokens"], found["max_num_seqs"], found["max_model_len"]) == (100, 9, 50)
    assert (found["gpu_memory_utilization"], found["device_ids"]) == (0.5, [2])
    assert (found["scheduling_policy"], found["enable_prefix_caching"]) == ("priority", True)
    assert (found["logprobs_mode"], found["max_logprobs"]) == ("raw_logprobs", 20)
    fake_vllm.AsyncEngineArgs(**found)


def test_what_is_not_declared_is_left_to_vllm():
    found = engine_arguments(files(), EngineSettings())
    assert (
        not {"dtype", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "device_ids"} & found.keys()
    )
    assert found["max_model_len"] == -1


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (4, 8), (16, 16), (20, 32), (600, 600)])
def test_an_adapter_is_served_with_room_for_its_rank(vllm, tmp_path, rank, room):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
    engine = VllmEngine(files(adapter=tmp_path), EngineSettings(), lambda _: None)
    one(engine, ask(1, max_tokens=1))
    assert (vllm.made[-1].arguments.enable_lora, vllm.made[-1].arguments.max_lora_rank) == (True, room)
    assert last(engine).lora == fake_vllm.LoRARequest("adapter", 1, str(tmp_path))
    engine.close()


def test_a_declared_adapter_goes_before_the_models_own(vllm, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    engine = VllmEngine(files(adapter=Path("/other")), EngineSettings(adapter=str(tmp_path)), lambda _: None)
    one(engine, ask(1, max_tokens=1))
    assert last(engine).lora.lora_path == str(tmp_path)
    engine.close()


def test_it_says_what_it_loaded(vllm):
    said: list[str] = []
    VllmEngine(files(), EngineSettings(device="cuda:1"), said.append).close()
    assert said == ["vLLM 0.33.0 on cuda:1: context of 64 tokens."]


def test_a_model_that_vllm_cannot_load_is_an_error_of_the_model(vllm):
    vllm.trouble.loading = RuntimeError("No available memory for the cache blocks.")
    with pytest.raises(ModelError, match=r"vLLM cannot load the model in /m: No available memory"):
        VllmEngine(files(), EngineSettings(), lambda _: None)


def test_without_vllm_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", None)
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    with pytest.raises(ConfigurationError, match="pip install 'vllm"):
        VllmEngine(files(), EngineSettings(), lambda _: None)


def test_vllm_is_not_for_the_cpu(vllm):
    with pytest.raises(ConfigurationError, match="AIQUERY_ENGINE=torch"):
        VllmEngine(files(), EngineSettings(device="cpu"), lambda _: None)


def test_embeddings_have_length_one_and_stay_in_order(embedder):
    found = asyncio.run(embedder.embed([[1], [1, 2, 3]], batch=True))
    assert found.dtype == np.float32
    assert found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8), 0.0]] * 2
    assert embedder.dimensions == 3
    assert [asked.ids for asked in embedder._host.llm.asked[-2:]] == [[1], [1, 2, 3]]
    assert last(embedder).params == fake_vllm.PoolingParams(task="embed")
    assert last(embedder).priority > 0
    assert embedder._host.llm.arguments.runner == "pooling"


def test_a_model_that_embeds_nothing_is_an_error_of_the_model(vllm):
    vllm.trouble.over = {7: ValueError("This model does not support the embed task.")}
    with pytest.raises(ModelError, match="cannot embed with the model in /m: This model"):
        VllmEmbedder(files(EMBEDDINGS), EngineSettings(), SimpleNamespace(text=lambda text: [7]), lambda _: None)
    assert vllm.made[-1].down


def test_no_texts_are_no_embeddings(embedder):
    assert asyncio.run(embedder.embed([])).shape == (0, 3)


@pytest.mark.parametrize(
    ("text", "error"), [([], InvalidRequestError), ([1] * (fake_vllm.CONTEXT + 1), ContextLengthError)]
)
def test_a_text_that_cannot_be_embedded_is_refused(embedder, text, error):
    with pytest.raises(error):
        asyncio.run(embedder.embed([[1], text]))


def test_what_vllm_fails_over_is_an_error_of_the_whole_call(embedder, vllm):
    vllm.trouble.over = {9: fake_vllm.EngineGenerateError("odd")}
    with pytest.raises(EngineError, match="odd"):
        asyncio.run(embedder.embed([[1], [9]]))


def test_a_call_that_is_cancelled_is_aborted(embedder, vllm):
    vllm.trouble.hang = {9}

    async def cancelled():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await embedder.embed([[9], [9, 9]])

    asyncio.run(cancelled())
    wait_for(lambda: len(vllm.made[-1].aborted) == 2)


def test_closing_tells_who_waits_for_embeddings(embedder, vllm):
    vllm.trouble.hang = {9}

    async def closed():
        waiting = asyncio.ensure_future(embedder.embed([[9]]))
        await asyncio.sleep(0.02)
        await asyncio.to_thread(embedder.close)
        with pytest.raises(OverloadedError):
            await waiting
        with pytest.raises(OverloadedError):
            await embedder.embed([[1]])

    asyncio.run(closed())


def wait_for(condition, *, turns: int = 200) -> None:
    """Let vLLM's loop come to it."""
    for _ in range(turns):
        if condition():
            return
        asyncio.run(asyncio.sleep(0.01))
    raise AssertionError("It did not come to that.")
