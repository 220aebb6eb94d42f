"""Language models on a GPU: the same answers as on a CPU, quickly, and the memory back afterwards."""

from __future__ import annotations

import asyncio
import gc
import json
import time

import pytest
import tiny_lessons

from aiquery_serving.errors import ModelError
from aiquery_serving.llm.interface import GenerationRequest, Sampling
from aiquery_serving.llm.model_files import find
from aiquery_serving.llm.prompting import Prompter
from aiquery_serving.llm.settings import EngineSettings

torch = pytest.importorskip("torch", reason="PyTorch is not installed: GPUs are NOT tested")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU: the engines are NOT tested on one"),
]

DTYPES = ("float32", "bfloat16", "float16")


def load(folder, **settings):
    from aiquery_serving.llm.torch_engine import TorchEngine

    files = find(folder)
    chosen = EngineSettings(**({"device": "cuda:0", "context_length": 512} | settings))
    return TorchEngine.load(files, chosen, Prompter.load(files, chosen), print)


def mixed(count: int, vocabulary: int, longest: int = 60) -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest, (count,), generator=draw).tolist()
    return [torch.randint(5, vocabulary, (length,), generator=draw).tolist() for length in lengths]


def answers(engine, prompts, **sampling):
    """Return the texts of answers that are asked for at once, and how many tokens each has."""
    chosen = Sampling(**({"temperature": 0.0, "max_tokens": 24, "ignore_eos": True} | sampling))

    async def one(generation):
        text = "".join([piece.text async for piece in generation])
        return text, generation.usage.completion_tokens

    async def every():
        asked = [engine.submit(GenerationRequest(token_ids=prompt, sampling=chosen)) for prompt in prompts]
        return await asyncio.gather(*map(one, asked))

    return asyncio.run(every())


def generated(folder, prompts, tokenizer) -> list[str]:
    """Return what transformers' own `generate` says to each prompt alone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to("cuda").eval()
    said = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device="cuda")
        given = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )  # fmt: skip
        said.append(tokenizer.decode(given[0, len(prompt) :], skip_special_tokens=True))
    return said


@pytest.fixture
def engine(llama):
    made = load(llama, dtype="float32")
    yield made
    made.close()


def test_greedy_answers_equal_those_of_generate(engine, llama):
    files = find(llama)
    prompts = mixed(40, 450)
    expected = generated(llama, prompts, Prompter.load(files, EngineSettings()).tokenizer)
    assert [text for text, _ in answers(engine, prompts)] == expected


def test_answers_are_the_same_when_sequences_move_and_make_room(llama, engine):
    from aiquery_serving.llm.torch_engine import TorchEngine
    from aiquery_serving.llm.weights import load as load_weights

    files, settings = find(llama), EngineSettings(device="cuda:0", dtype="float32")
    prompts = mixed(40, 450)
    small = TorchEngine(load_weights(files, settings, print), Prompter.load(files, settings), slots=400)
    try:
        assert answers(small, prompts, max_tokens=100) == answers(engine, prompts, max_tokens=100)
        assert small.metrics().preempted > 0
    finally:
        small.close()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_trained_model_knows_its_lessons(trained_llama, dtype):
    files = find(trained_llama)
    prompter = Prompter.load(files, EngineSettings())
    lessons = tiny_lessons.lessons()
    engine = load(trained_llama, dtype=dtype)
    try:
        said = answers(engine, [prompter.chat(messages) for messages, _ in lessons], ignore_eos=False)
    finally:
        engine.close()
    assert [text for text, _ in said] == [answer for _, answer in lessons]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_attention_kernel_is_used_and_says_what_plain_attention_says(llama, dtype):
    from aiquery_serving.llm.batch import Part, run
    from aiquery_serving.llm.weights import load as load_weights

    loaded = load_weights(find(llama), EngineSettings(device="cuda:0", dtype=dtype), print)
    assert loaded.flash, "the kernel is not there, or did not pass its trial"
    prompts = mixed(16, 450, longest=200)
    parts = [Part(prompt, 0, 256 * place, samples=True) for place, prompt in enumerate(prompts)]
    with torch.inference_mode():
        by_kernel, plain = (
            run(loaded.model, loaded.memory(256 * 16), parts, flash=flash).float() for flash in (True, False)
        )
    assert (by_kernel - plain).norm() / plain.norm() < 0.02


def test_random_choices_follow_the_seed_whatever_else_is_asked(engine):
    prompt, others = [7, 8, 9], mixed(20, 450)
    alone = answers(engine, [prompt], temperature=1.0, seed=3)
    assert answers(engine, [*others, prompt], temperature=1.0, seed=3)[-1:] == alone
    assert answers(engine, [prompt], temperature=1.0, seed=4) != alone


def test_random_weights_write_json_by_a_schema(engine):
    pytest.importorskip("llguidance", reason="llguidance is not installed: JSON by a schema is NOT tested")
    schema = {"type": "object", "properties": {"stars": {"enum": [1, 2, 3]}}, "required": ["stars"], "additionalProperties": False}  # fmt: skip
    said = answers(engine, mixed(20, 450), schema=json.dumps(schema), ignore_eos=False, temperature=1.0)
    assert {json.loads(text)["stars"] for text, _ in said} <= {1, 2, 3}


def test_a_closed_engine_has_given_its_memory_back(llama):
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    engine = load(llama, dtype="bfloat16")
    answers(engine, mixed(10, 450))
    held = torch.cuda.memory_allocated() - before
    engine.close()
    del engine
    gc.collect()
    assert held > 2**20
    assert torch.cuda.memory_allocated() - before < held / 100 + 2**20


def test_a_model_that_there_is_no_memory_for_is_refused(llama):
    before = torch.cuda.memory_allocated()
    with pytest.raises(ModelError, match="memory"):
        load(llama, kv_memory_fraction=1e-6)
    gc.collect()
    assert torch.cuda.memory_allocated() - before < 2**20


def test_embeddings_equal_those_of_a_cpu(made_models):
    from tiny_models import tiny_embedder

    from aiquery_serving.llm.choosing import load_embedder

    files = find(tiny_embedder(made_models))
    texts = mixed(50, 450)
    found = []
    for device in ("cpu", "cuda:0"):
        settings = EngineSettings(engine="torch", device=device, dtype="float32")
        embedder = load_embedder(files, settings, Prompter.load(files, settings), print)
        found.append(asyncio.run(embedder.embed(texts)))
        embedder.close()
    assert abs(found[0] - found[1]).max() < 1e-4


@pytest.mark.slow
def test_how_fast_it_is(made_models):
    """Says how many tokens a second a model of about 400 million weights gives to 256 prompts at once."""
    from tiny_models import sized_llama

    engine = load(sized_llama(made_models, hidden=1024, layers=24, vocabulary=8192), dtype="bfloat16")
    prompts = mixed(256, 8000, longest=256)
    answers(engine, prompts[:8])
    began = time.perf_counter()
    tokens = sum(count for _, count in answers(engine, prompts, max_tokens=128))
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / 2**30
    engine.close()
    print(f"\n{torch.cuda.get_device_name()}: {tokens / seconds:,.0f} tokens/s, {peak:.1f} GiB at most")
    assert tokens == 256 * 128
