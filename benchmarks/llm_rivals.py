"""Language models without us: transformers one by one, in static batches and in its own continuous batches; vLLM."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from benchmarks.llm_work import Work


class Timed(NamedTuple):
    """How many tokens came in how many seconds, and of the processors' time in this process."""

    tokens: int
    seconds: float
    cpu_seconds: float


def timed(work: Callable[[], int]) -> Timed:
    """Return how long work takes that returns the tokens it has given."""
    began, busy = time.perf_counter(), time.process_time()
    return Timed(work(), time.perf_counter() - began, time.process_time() - busy)


def one_by_one(model: Any, work: Work) -> Timed:
    """Return the tokens that `generate` gives and its seconds, a prompt at a time."""
    return timed(lambda: sum(_generate(model, [prompt], [limit]) for prompt, limit in _pairs(work)))


def static_batches(model: Any, work: Work, size: int = 32) -> Timed:
    """The same in batches of prompts of like length, each as long as its longest answer."""
    ordered = work.by_length()
    starts = range(0, len(work.prompts), size)
    batches = [(ordered.prompts[s : s + size], ordered.limits[s : s + size]) for s in starts]
    return timed(lambda: sum(_generate(model, prompts, limits) for prompts, limits in batches))


def _pairs(work: Work) -> Iterator[tuple[list[int], int]]:
    return zip(work.prompts, work.limits, strict=True)


def _generate(model: Any, prompts: list[list[int]], limits: list[int]) -> int:
    """Return the tokens that somebody wanted of those that it gives."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=mask, max_new_tokens=max(limits), do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return sum(limits)


@contextmanager
def transformers_batching(model: Any, work: Work) -> Iterator[Callable[[Work], Timed]]:
    """Give a function that runs such work through transformers' continuous batching, which is ready and warm."""
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig

    # Left alone it takes nearly all memory. On a CPU, the batch is as large as it would choose.
    room = 2 * (work.prompt_tokens + work.tokens) // 256 + len(work.prompts)
    on_gpu = model.device.type == "cuda"
    sizes = {"max_memory_percent": 0.4} if on_gpu else {"num_blocks": room, "max_batch_tokens": 8192}
    generation = GenerationConfig(do_sample=False, max_new_tokens=max(work.limits), eos_token_id=-1, pad_token_id=0)
    with torch.no_grad():
        manager = model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=ContinuousBatchingConfig(**sizes)
        )
        manager.start()
        try:
            _collect(manager, work.first(2))
            yield lambda asked: timed(lambda: _collect(manager, asked))
        finally:
            manager.stop(block=True, timeout=10)


def _collect(manager: Any, work: Work) -> int:
    for prompt, limit in _pairs(work):
        manager.add_request(prompt, max_new_tokens=limit)
    done = tokens = 0
    while done < len(work.prompts):
        result = manager.get_result(timeout=1)
        if result is None:
            assert manager.is_running(), "transformers' batching has died."
        else:
            done, tokens = done + 1, tokens + len(result.generated_tokens)
    assert tokens == work.tokens
    return tokens


def has_vllm() -> bool:
    """Say whether there is a vLLM to compare with."""
    import torch

    return find_spec("vllm") is not None and torch.cuda.is_available()


@contextmanager
def bare_vllm(folder: Path) -> Iterator[Callable[[Work], Timed]]:
    """Give a function that runs work through vLLM's own engine, which is ready and warm."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    async def loaded() -> Any:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(folder)))

    with asyncio.Runner() as runner:
        llm = runner.run(loaded())
        try:
            runner.run(_ask_vllm(llm, Work([[9] * 64] * 8, [8] * 8)))
            yield lambda work: timed(lambda: runner.run(_ask_vllm(llm, work)))
        finally:
            llm.shutdown()


async def _ask_vllm(llm: Any, work: Work) -> int:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def one(prompt: list[int], limit: int) -> int:
        kind = RequestOutputKind.FINAL_ONLY
        wanted = SamplingParams(temperature=0.0, max_tokens=limit, ignore_eos=True, output_kind=kind)
        async for output in llm.generate({"prompt_token_ids": prompt}, wanted, uuid4().hex):
            last = output
        return len(last.outputs[0].token_ids)

    return sum(await asyncio.gather(*(one(*pair) for pair in _pairs(work))))
