"""The engine over tiny models: what it says is what the model's own `generate` says, whoever else is answered."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: language models are NOT tested")

from torch_engines import Said, Tiny, answers, ask, said  # noqa: E402

from aiquery_serving.errors import (  # noqa: E402
    ConfigurationError,
    ContextLengthError,
    EngineError,
    InvalidRequestError,
    ModelError,
    OverloadedError,
)
from aiquery_serving.llm import choosing, model_files, weights  # noqa: E402
from aiquery_serving.llm.interface import LENGTH, STOP  # noqa: E402
from aiquery_serving.llm.settings import EngineSettings  # noqa: E402
from aiquery_serving.llm.torch_engine import TorchEngine  # noqa: E402

END = 4
COUNT = 16


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(llama):
    return Tiny(llama)


@pytest.fixture(scope="module")
def prompts():
    """Of mixed length: a third of them with a common beginning, and one twice."""
    random = Random(0)
    shared = random.choices(range(5, 450), k=37)
    own = [random.choices(range(5, 450), k=random.choice([1, 2, 15, 16, 17, 40, 70])) for _ in range(30)]
    mixed = [shared + prompt[:20] if place % 3 == 0 else prompt for place, prompt in enumerate(own)]
    return [*mixed, mixed[0], shared]


@pytest.fixture(scope="module")
def greedy(tiny, prompts):
    return [tiny.greedy(prompt, COUNT) for prompt in prompts]


@pytest.fixture(scope="module")
def engine(tiny):
    with tiny.engine() as engine:
        yield engine


def without_end(tokens):
    return tokens[:-1] if tokens[-1] == END else tokens


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"share_prefixes": False},
        {"slots": 256, "max_batch_tokens": 40},
        {"max_sequences": 3, "max_batch_tokens": 7},
    ],
    ids=str,
)
def test_it_says_token_by_token_what_generate_says(tiny, prompts, greedy, setting):
    with tiny.engine(**setting) as engine:
        got = answers(engine, [ask(prompt, COUNT, batch=place % 2 == 0) for place, prompt in enumerate(prompts)])
        metrics = engine.metrics()

    assert [answer.tokens for answer in got] == [without_end(tokens) for tokens in greedy]
    assert [answer.finish for answer in got] == [STOP if tokens[-1] == END else LENGTH for tokens in greedy]
    assert [answer.usage.completion_tokens for answer in got] == [len(tokens) for tokens in greedy]
    assert [answer.usage.prompt_tokens for answer in got] == [len(prompt) for prompt in prompts]
    assert (metrics.cached_tokens > 0) == setting.get("share_prefixes", True)
    assert metrics.completion_tokens == sum(map(len, greedy))
    assert (metrics.finished, metrics.running, metrics.waiting, metrics.kv_tokens_used) == (len(prompts), 0, 0, 0)


@pytest.mark.parametrize("share_prefixes", [True, False])
def test_who_is_moved_or_has_to_make_room_says_the_same(tiny, engine, prompts, share_prefixes, monkeypatch):
    requests = [ask(prompt, 100, ignore_eos=True, batch=place % 2 == 0) for place, prompt in enumerate(prompts[:9])]
    moved = []
    with tiny.engine(slots=352, share_prefixes=share_prefixes) as cramped:
        move = cramped._memory.move
        monkeypatch.setattr(cramped._memory, "move", lambda *what: moved.append(what) or move(*what))
        got = answers(cramped, requests)
        metrics = cramped.metrics()
    assert [answer.tokens for answer in got] == [answer.tokens for answer in answers(engine, requests)]
    assert metrics.preempted > 0
    assert len(moved) > 0


def test_one_alone_is_answered_as_among_others(engine, prompts, greedy):
    for prompt, tokens in list(zip(prompts, greedy, strict=True))[:6]:
        [alone] = answers(engine, [ask(prompt, COUNT)])
        assert alone.tokens == without_end(tokens)


def test_a_prompt_that_is_known_is_hardly_computed(tiny, prompts):
    longest = max(prompts, key=len)
    with tiny.engine() as engine:
        [first] = answers(engine, [ask(longest)])
        [second] = answers(engine, [ask(longest)])
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens == (len(longest) - 1) // 16 * 16


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text", "gpt2", "mixtral", "qwen3"])
def test_other_architectures_are_run_as_they_run_themselves(made_models, kind):
    from tiny_models import tiny_model

    tiny = Tiny(tiny_model(made_models, kind))
    random = Random(1)
    prompts = [random.choices(range(5, 450), k=length) for length in (60, 3, 31, 24)]
    with tiny.engine(max_batch_tokens=40) as engine:
        got = answers(engine, [ask(prompt, 12) for prompt in prompts])
    assert [answer.tokens for answer in got] == [without_end(tiny.greedy(prompt, 12)) for prompt in prompts]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("mamba", {"hidden_size": 32, "state_size": 8}),
        ("bloom", {"hidden_size": 32, "n_head": 4}),
        ("gptj", {"n_embd": 32, "n_head": 4, "rotary_dim": 4}),
        ("gpt_oss", {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}),
    ],
)
def test_models_that_keep_or_attend_otherwise_are_refused(tmp_path, kind, shape):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, vocab_size=64, num_hidden_layers=2, initializer_range=0.3, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    files = model_files.find(tmp_path, task="llm/v1/completions")
    with pytest.raises(ModelError, match=f"model of type {kind} cannot be run by the engine torch"):
        weights.load(files, EngineSettings(device="cpu"), lambda _: None)


@pytest.mark.parametrize(
    ("config", "why"),
    [({"is_encoder_decoder": True}, "an encoder and a decoder"), ({"vision_config": {"depth": 2}}, "pictures")],
)
def test_models_of_other_kinds_are_refused_before_they_are_read(tiny, config, why):
    with pytest.raises(ModelError, match=why):
        weights.load(replace(tiny.files, config=config), EngineSettings(), lambda _: None)


def test_a_gpu_that_is_not_there_is_said(tiny):
    number = torch.cuda.device_count() + 7
    with pytest.raises(ConfigurationError, match=f"cuda:{number}, and PyTorch sees"):
        weights.load(tiny.files, EngineSettings(device=f"cuda:{number}"), lambda _: None)


def test_weights_that_are_missing_are_said(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    kept = load_file(tiny.files.model / "model.safetensors")
    kept.pop("model.norm.weight")
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((tiny.files.model / "config.json").read_text())
    with pytest.raises(ModelError, match="lack weights"):
        weights.load(replace(tiny.files, model=tmp_path), EngineSettings(device="cpu"), lambda _: None)


def test_logprobs_are_the_models_own(tiny, engine, prompts):
    for prompt, answer in zip(prompts[:8], answers(engine, [ask(p, top_logprobs=5) for p in prompts[:8]]), strict=True):
        wanted = tiny.logprobs(prompt + answer.tokens)[len(prompt) - 1 :]
        for row, logprob in enumerate(answer.logprobs):
            assert logprob.logprob == pytest.approx(float(wanted[row, logprob.token_id]), abs=1e-4)
            assert [value for _, value in logprob.top] == pytest.approx(wanted[row].topk(5).values.tolist(), abs=1e-4)
            assert logprob.top[0][0] == logprob.token_id


def test_logprobs_are_from_before_temperature_and_penalties(tiny, engine, prompts):
    manner = {"temperature": 1.7, "seed": 1, "frequency_penalty": 1.0, "logit_bias": {9: 3.0}, "top_k": 40}
    [answer] = answers(engine, [ask(prompts[5], 8, **manner)])
    wanted = tiny.logprobs(prompts[5] + answer.tokens)[len(prompts[5]) - 1 :]
    got = [logprob.logprob for logprob in answer.logprobs]
    assert got == pytest.approx([float(wanted[row, token]) for row, token in enumerate(answer.tokens)], abs=1e-4)


def test_a_seed_gives_the_same_whatever_is_in_the_batch(engine, prompts):
    hot = {"temperature": 1.0, "top_p": 0.9}
    [alone] = answers(engine, [ask(prompts[1], seed=7, **hot)])
    crowd = [ask(prompt, seed=place, **hot) for place, prompt in enumerate(prompts)]
    among = answers(engine, [*crowd[:9], ask(prompts[1], seed=7, **hot), *crowd[9:], ask(prompts[1], **hot)])
    assert among[9].tokens == alone.tokens
    others = [answers(engine, [ask(prompts[1], seed=seed, **hot)])[0].tokens for seed in (8, -7, 2**70)]
    assert alone.tokens not in others


def test_a_token_that_ends_answers_is_counted_and_not_said(tiny, prompts, greedy):
    ends = {greedy[0][5], greedy[1][9]}
    loaded = replace(tiny.loaded, ends=frozenset(ends))
    engine = TorchEngine(loaded, tiny.prompter, slots=4096)
    got = answers(engine, [ask(prompt, COUNT) for prompt in prompts], stream=True)
    [whole] = answers(engine, [ask(prompts[0], COUNT, ignore_eos=True)])
    engine.close()
    assert whole.tokens == greedy[0]
    for answer, tokens in zip(got, greedy, strict=True):
        place = next((place for place, token in enumerate(tokens) if token in ends), None)
        assert answer.tokens == tokens[:place]
        assert answer.usage.completion_tokens == (len(tokens) if place is None else place + 1)
        assert answer.finish == (LENGTH if place is None else STOP)


def test_a_stop_string_ends_the_answer_wherever_tokens_end(tiny, engine, prompts):
    [whole] = answers(engine, [ask(prompts[2], 24)])
    starts = [len(tiny.prompter.decode(whole.tokens[:count])) for count in range(1, 20)]
    stop = next(
        text
        for start in starts
        if "\ufffd" not in (text := whole.text[start - 1 : start + 1])
        and len(text) == 2
        and whole.text.count(text) == 1
    )
    for stream in (False, True):
        [cut] = answers(engine, [ask(prompts[2], 24, stop=("not in it", stop))], stream=stream)
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.finish == STOP
        assert cut.usage.completion_tokens < whole.usage.completion_tokens


def test_pieces_join_to_the_whole_and_hold_whole_characters(engine, prompts):
    hot = [ask(prompt, 60, temperature=1.5, seed=place) for place, prompt in enumerate(prompts[:12])]
    whole, streamed = answers(engine, hot), answers(engine, hot, stream=True)
    assert [answer.text for answer in streamed] == [answer.text for answer in whole]
    assert [answer.tokens for answer in streamed] == [answer.tokens for answer in whole]
    assert all(len(answer.pieces) == 1 for answer in whole)
    assert any(len(answer.pieces) > 5 for answer in streamed)
    for answer in streamed:
        assert [piece.finish_reason for piece in answer.pieces[:-1]] == [None] * (len(answer.pieces) - 1)


def test_characters_of_several_tokens_come_in_one_piece(tiny, engine):
    rocket = tiny.prompter.text("🚀", raw=True)
    assert len(rocket) > 1
    order = {token: 100.0 - 40 * place for place, token in enumerate(rocket)}
    manner = {"logit_bias": order, "frequency_penalty": 2.0, "presence_penalty": 2.0}
    requests = [ask([7], 200, ignore_eos=True, **manner)]
    [answer] = answers(engine, requests, stream=True)
    assert "".join(piece.text for piece in answer.pieces) == tiny.prompter.decode(answer.tokens)


@pytest.mark.parametrize("prompt", [[], [7] * 512, [7] * 9999])
def test_a_prompt_that_cannot_be_answered_leaves_its_neighbours_alone(engine, prompts, greedy, prompt):
    neighbour, refused, other = answers(engine, [ask(prompts[0], COUNT), ask(prompt), ask(prompts[1], COUNT)])
    assert [neighbour.tokens, other.tokens] == [without_end(tokens) for tokens in greedy[:2]]
    if prompt:
        assert isinstance(refused, ContextLengthError)
        assert f"{len(prompt):,} tokens leaves no room" in str(refused)
    else:
        assert isinstance(refused, InvalidRequestError)


def test_a_bias_for_a_token_that_is_none_is_refused(engine):
    [refused] = answers(engine, [ask([7], logit_bias={512: 1.0})])
    assert isinstance(refused, InvalidRequestError)
    assert "tokens 0 to 511" in str(refused)


def test_without_max_tokens_an_answer_goes_on_to_the_end_of_the_context(llama):
    tiny = Tiny(llama, context_length=48)
    with tiny.engine() as engine:
        [answer] = answers(engine, [ask([7, 8, 9], None, ignore_eos=True)])
    assert engine.context_length == 48
    assert (answer.finish, answer.usage.completion_tokens) == (LENGTH, 45)


def test_cancelling_gives_the_place_to_the_next(tiny, prompts):
    async def cancelled(engine, leave):
        long = engine.submit(ask(prompts[0], 400, ignore_eos=True), stream=True)
        next_one = asyncio.ensure_future(said(engine, ask(prompts[1], 3, ignore_eos=True)))
        seen = []
        async for piece in long:
            seen.append(piece)
            assert not next_one.done()
            if leave:
                break
            long.cancel()
            long.cancel()
        del long
        return seen, await asyncio.wait_for(next_one, 20)

    for leave in (False, True):
        with tiny.engine(max_sequences=1) as engine:
            seen, answer = asyncio.run(cancelled(engine, leave))
            metrics = engine.metrics()
        assert len(seen) == 1
        assert answer.usage.completion_tokens == 3
        assert (metrics.running, metrics.finished, metrics.kv_tokens_used) == (0, 2, 0)
        assert metrics.completion_tokens < 100


def test_an_answer_can_be_cancelled_before_it_begins_and_after_it_has_ended(engine, prompts):
    async def both():
        unborn, done = engine.submit(ask(prompts[0])), engine.submit(ask(prompts[1]))
        unborn.cancel()
        pieces = [piece async for piece in done]
        done.cancel()
        return [piece async for piece in unborn], pieces

    nothing, pieces = asyncio.run(both())
    assert nothing == []
    assert pieces[-1].finish_reason


def test_two_event_loops_are_answered_at_once(engine, prompts, greedy):
    got: dict[int, list[Said]] = {}
    threads = [
        threading.Thread(
            target=lambda half=half: got.update(
                {half: answers(engine, [ask(p, COUNT) for p in prompts[half::2]], stream=True)}
            )
        )
        for half in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for half in (0, 1):
        assert [answer.tokens for answer in got[half]] == [without_end(tokens) for tokens in greedy[half::2]]


def test_nobody_goes_on_for_a_loop_that_is_closed(tiny, prompts):
    async def leave(engine):
        engine.submit(ask(prompts[0], 400, ignore_eos=True), stream=True)

    with tiny.engine() as engine:
        asyncio.run(leave(engine))
        answers(engine, [ask(prompts[1], 30, ignore_eos=True)])
        metrics = engine.metrics()
    assert metrics.completion_tokens < 100
    assert (metrics.running, metrics.finished) == (0, 2)


def test_hundreds_at_once_are_all_answered(tiny, prompts):
    random = Random(3)
    requests = [ask(random.choice(prompts), random.randint(1, 6), ignore_eos=True) for _ in range(300)]
    with tiny.engine(max_sequences=8) as engine:
        got = answers(engine, requests)
    assert [answer.usage.completion_tokens for answer in got] == [request.sampling.max_tokens for request in requests]


def test_a_run_that_fails_fails_only_those_that_were_in_it(tiny, prompts, greedy):
    class Poisoned:
        device, dtype = tiny.loaded.model.device, tiny.loaded.model.dtype

        def __call__(self, input_ids, **more):
            if 451 in input_ids:
                raise RuntimeError("poison")
            return tiny.loaded.model(input_ids=input_ids, **more)

    engine = TorchEngine(replace(tiny.loaded, model=Poisoned()), tiny.prompter, slots=2048, max_sequences=1)
    before, failed, after = answers(engine, [ask(prompts[0], COUNT), ask([7, 451]), ask(prompts[1], COUNT)])
    engine.close()
    assert [before.tokens, after.tokens] == [without_end(tokens) for tokens in greedy[:2]]
    assert isinstance(failed, EngineError)
    assert "RuntimeError: poison" in str(failed)
    assert failed.retryable


def test_what_a_failed_run_has_left_half_done_is_not_relied_on(tiny, engine, prompts, monkeypatch):
    longest = sorted(prompts, key=len)[-3:]
    requests = [ask(prompt, 120, ignore_eos=True) for prompt in longest]
    with tiny.engine(slots=1024, max_sequences=2) as failing:
        move, failures = failing._memory.move, ["full"]
        monkeypatch.setattr(failing._memory, "move", lambda *what: move(*what) if not failures else failures.pop() / 0)
        first = answers(failing, requests)
        again = answers(failing, requests)
    wanted = [answer.tokens for answer in answers(engine, requests)]
    assert [isinstance(answer, EngineError) for answer in first] == [True, True, False]
    assert first[2].tokens == wanted[2]
    assert [answer.tokens for answer in again] == wanted


def test_a_closed_engine_says_so_to_those_who_wait_and_to_those_who_come(tiny, prompts):
    async def close(engine):
        generation = engine.submit(ask(prompts[0], 400, ignore_eos=True))
        engine.close()
        with pytest.raises(OverloadedError, match="being unloaded"):
            [piece async for piece in generation]
        with pytest.raises(OverloadedError, match="being unloaded"):
            engine.submit(ask(prompts[0]))

    with tiny.engine() as engine:
        asyncio.run(close(engine))
        assert not engine._thread.is_alive()
        engine.close()


def test_loading_says_what_was_loaded(tiny):
    lines = []
    settings = EngineSettings(engine="torch", device="cpu", dtype="bfloat16", max_sequences=2, context_length=100)
    engine = choosing.load_engine(tiny.files, settings, tiny.prompter, lines.append)
    [answer] = answers(engine, [ask([7, 8], 3, ignore_eos=True)])
    engine.close()
    assert answer.usage.completion_tokens == 3
    assert engine.context_length == 100
    [line] = lines
    assert f"PyTorch {torch.__version__} on cpu in bfloat16: context of 100 tokens, memory for " in line


@pytest.mark.parametrize(
    ("settings", "installed", "gpu", "chosen"),
    [
        ({}, True, True, "vllm"),
        ({}, True, False, "torch"),
        ({}, False, True, "torch"),
        ({"device": "cpu"}, True, True, "torch"),
        ({"engine": "torch"}, True, True, "torch"),
        ({"engine": "vllm"}, False, False, "vllm"),
    ],
)
def test_vllm_is_chosen_where_it_is_installed_and_there_is_a_gpu(monkeypatch, settings, installed, gpu, chosen):
    from aiquery_serving.llm import embedder, torch_engine, vllm_engine

    monkeypatch.setattr(choosing, "find_spec", lambda _: installed or None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(vllm_engine, "VllmEngine", lambda *_: "vllm")
    monkeypatch.setattr(vllm_engine, "VllmEmbedder", lambda *_: "vllm")
    monkeypatch.setattr(torch_engine, "TorchEngine", SimpleNamespace(load=lambda *_: "torch"))
    monkeypatch.setattr(embedder, "load_torch_embedder", lambda *_: "torch")
    for load in (choosing.load_engine, choosing.load_embedder):
        assert load(None, EngineSettings(**settings), None, print) == chosen


def test_a_model_without_memory_for_its_keys_is_refused(tiny):
    settings = EngineSettings(device="cpu", kv_memory_fraction=1e-9)
    with pytest.raises(ModelError, match="AIQUERY_KV_MEMORY_FRACTION"):
        TorchEngine.load(tiny.files, settings, tiny.prompter, lambda _: None)


def test_an_engine_whose_thread_dies_leaves_nobody_waiting(tiny, prompts, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with tiny.engine() as engine:
        monkeypatch.setattr(engine, "_fail", None)
        monkeypatch.setattr(engine, "_compute", None)
        [left] = answers(engine, [ask(prompts[0])])
        [late] = answers(engine, [ask(prompts[0])])
    assert isinstance(left, OverloadedError)
    assert isinstance(late, OverloadedError)
