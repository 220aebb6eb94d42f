"""A language model in this process: tokens a second of many prompts of mixed length, against the library used bare.

One by one and in static batches it is a sample that is measured. The engine and transformers' continuous batching
take turns, and the best round of each counts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks import llm_ours, llm_rivals
from benchmarks.llm_rivals import Timed
from benchmarks.llm_work import Work, mixed, sharing, sized
from benchmarks.report import report

#: Tokens before every prompt when beginnings are compared; tokens of every answer when SQL is.
SHARED, LIMIT = 128, 52
ONE_BY_ONE, STATIC = "(a) generate, one by one", "(b) generate, static batches of 32"
ENGINE, ALONE, FROM_SQL = "(d) the engine", "(e) the engine, answers of one length", "(e) ai_query over the same"
ANY_TEXT, JSON = "(d) any text", "(d) JSON by a schema"
APART, SHARING = f"(d) {SHARED} tokens before each, different", f"(d) {SHARED} tokens before each, the same"


def main() -> None:
    options = _options()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = sized(options)
    rows = [row for part in (_throughput, _extras, _from_sql) for row in part(folder, options)]
    report("llm", rows, list(_aims({row["how"]: row for row in rows})))


def _options() -> Any:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--prompts", type=int, default=256)
    options.add_argument("--hidden", type=int, default=256)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--vocabulary", type=int, default=8192)
    options.add_argument("--device", default="auto")
    options.add_argument("--dtype", default="auto")
    options.add_argument("--threads", type=int, default=0, help="of PyTorch; 0 for as many as it takes by itself")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--sample", type=int, default=8, help="prompts that are measured one by one")
    options.add_argument("--kept", default=str(Path(tempfile.gettempdir()) / "aiquery-benchmark-models"))
    return options.parse_args()


def _settings(options: Any) -> Any:
    from aiquery_serving.llm.settings import EngineSettings

    return EngineSettings(engine="torch", device=options.device, dtype=options.dtype)


def _throughput(folder: Path, options: Any) -> Iterator[dict[str, Any]]:
    """Measure the engine and its rivals on the same prompts."""
    model, tokenizer = _bare(folder, options)
    turns = [mixed(options.prompts, tokenizer, turn) for turn in range(options.rounds)]
    sample, batches = turns[0].first(options.sample), turns[0].first(2 * 32)
    yield _row(ONE_BY_ONE, sample, [llm_rivals.one_by_one(model, sample)])
    yield _row(STATIC, batches, [llm_rivals.static_batches(model, batches)])
    with ExitStack() as stack:
        theirs = stack.enter_context(llm_rivals.transformers_batching(model, turns[0]))
        engine = stack.enter_context(llm_ours.engine(folder, _settings(options)))
        llm_ours.answer(engine, sample)
        taken = [(theirs(work), llm_ours.answer(engine, work)) for work in turns]
    yield _row("(c) transformers' continuous batching", turns[0], [bare for bare, _ in taken])
    if llm_rivals.has_vllm():
        with llm_rivals.bare_vllm(folder) as vllm:
            yield _row("(c) vLLM", turns[0], [*map(vllm, turns)])
    yield _row(ENGINE, turns[0], [ours for _, ours in taken]) | _memory(model.device)


def _bare(folder: Path, options: Any) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    on_gpu = options.device.startswith("cuda") or (options.device == "auto" and torch.cuda.is_available())
    dtype = {"auto": torch.bfloat16 if on_gpu else torch.float32}.get(options.dtype) or getattr(torch, options.dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to("cuda" if on_gpu else "cpu").eval(), AutoTokenizer.from_pretrained(folder)


def _memory(device: Any) -> dict[str, Any]:
    import torch

    return {"GPU GiB": torch.cuda.max_memory_allocated() / 2**30} if device.type == "cuda" else {}


def _extras(folder: Path, options: Any) -> Iterator[dict[str, Any]]:
    """Measure what else an engine is asked for."""
    turns = (mixed(options.prompts, _tokenizer(folder), turn) for turn in count(100))
    with llm_ours.engine(folder, _settings(options)) as engine:
        for shared in (False, True):
            yield _prefixes(engine, sharing(next(turns), SHARED, shared=shared), shared=shared)
        texts, jsons = [], []
        for work in islice(turns, options.rounds):
            texts.append(llm_ours.answer(engine, work))
            jsons.append(llm_ours.answer(engine, next(turns), llm_ours.ENDLESS))
        yield (plain := _row(ANY_TEXT, work, texts))
        yield _row(JSON, work, jsons)
        # Over so many seconds they come that the engine can take half as many again.
        waits = quantiles(llm_ours.first_tokens(engine, next(turns), 1.5 * plain["seconds"]), n=100)
        yield {"how": "(d) first token at 2/3 of the load, ms", "p50": 1000 * waits[49], "p99": 1000 * waits[98]}


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _prefixes(engine: Any, work: Work, *, shared: bool) -> dict[str, Any]:
    before = engine.metrics()
    row = _row(SHARING if shared else APART, work, [llm_ours.answer(engine, work)])
    after = engine.metrics()
    taken_over = after.cached_tokens - before.cached_tokens
    return row | {"prefix hits": taken_over / (after.prompt_tokens - before.prompt_tokens)}


def _from_sql(folder: Path, options: Any) -> Iterator[dict[str, Any]]:
    """Measure ai_query over a table against the engine alone on the same prompts, with answers of one length."""
    if not find_spec("duckdb"):
        print("DuckDB is not installed: ai_query is not measured.")
        return
    tokenizer = _tokenizer(folder)
    asked = [_texts(options, tokenizer, turn) for turn in range(200, 200 + options.rounds)]
    works = [Work(tokenizer(texts).input_ids, [LIMIT] * len(texts)) for texts in asked]
    with llm_ours.engine(folder, _settings(options)) as engine:
        yield _row(ALONE, works[0], [llm_ours.answer(engine, work) for work in works])
    with llm_ours.sql(folder, _settings(options)) as ask:
        yield _row(FROM_SQL, works[0], [ask(texts, LIMIT) for texts in asked])


def _texts(options: Any, tokenizer: Any, turn: int) -> list[str]:
    return [tokenizer.decode(prompt) for prompt in mixed(options.prompts, tokenizer, turn).prompts]


def _row(how: str, work: Work, rounds: list[Timed]) -> dict[str, Any]:
    best = min(rounds, key=lambda timed: timed.seconds)
    return {
        "how": how,
        "prompts": len(work.prompts),
        "prompt tokens": work.prompt_tokens,
        "tokens": best.tokens,
        "seconds": best.seconds,
        "tokens/s": best.tokens / best.seconds,
        "per CPU second": best.tokens / best.cpu_seconds,
    }


def _aims(rows: dict[str, dict[str, Any]]) -> Iterator[tuple[str, bool]]:
    def ratio(one: str, other: str) -> float:
        return float(rows[one]["tokens/s"] / rows[other]["tokens/s"])

    for bare in (name for name in rows if name.startswith("(c)")):
        found = ratio(ENGINE, bare)
        yield f"at least 0.95 of {bare[4:]} ({found:.2f})", found >= 0.95
    found = ratio(ENGINE, ONE_BY_ONE)
    yield f"several times one by one ({found:.1f}; static batches {ratio(ENGINE, STATIC):.1f})", found >= 3
    found = ratio(SHARING, APART)
    yield f"a shared beginning is computed once ({found:.2f} times as fast)", found > 1
    found = ratio(JSON, ANY_TEXT)
    yield f"JSON by a schema costs less than a quarter ({found:.2f})", found >= 0.75
    if FROM_SQL in rows:
        found = ratio(FROM_SQL, ALONE)
        yield f"ai_query over a table at least 0.9 of the engine ({found:.2f})", found >= 0.9
