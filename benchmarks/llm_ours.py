"""The language model engine under work: tokens a second, time to the first token, prefixes, JSON, and from SQL."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiquery_serving.llm.choosing import load_engine
from aiquery_serving.llm.interface import Engine, GenerationRequest, Sampling
from aiquery_serving.llm.model_files import COMPLETIONS, find
from aiquery_serving.llm.prompting import Prompter
from aiquery_serving.llm.settings import EngineSettings
from benchmarks.llm_rivals import Timed, timed
from benchmarks.llm_work import Work

#: An answer that fulfils it has no end before `max_tokens`.
ENDLESS = json.dumps({"type": "array", "items": {"type": "integer"}, "minItems": 100_000})


@contextmanager
def engine(folder: Path, settings: EngineSettings) -> Iterator[Engine]:
    """Load the engine that an endpoint would."""
    files = find(folder, task=COMPLETIONS)
    assert files is not None
    loaded = load_engine(files, settings, Prompter.load(files, settings), print)
    try:
        yield loaded
    finally:
        loaded.close()


def answer(engine: Engine, work: Work, schema: str | None = None) -> Timed:
    """Ask for all answers at once."""
    return timed(lambda: asyncio.run(_answer(engine, work, schema)))


async def _answer(engine: Engine, work: Work, schema: str | None) -> int:
    asked = [engine.submit(request) for request in _requests(work, schema)]
    return sum(await asyncio.gather(*map(_tokens, asked)))


def _requests(work: Work, schema: str | None = None) -> Iterator[GenerationRequest]:
    for prompt, limit in zip(work.prompts, work.limits, strict=True):
        sampling = Sampling(temperature=0.0, max_tokens=limit, ignore_eos=True, schema=schema)
        yield GenerationRequest(token_ids=prompt, sampling=sampling)


async def _tokens(generation: Any) -> int:
    async for _ in generation:
        pass
    return generation.usage.completion_tokens


def first_tokens(engine: Engine, work: Work, seconds: float) -> list[float]:
    """Return how long each of the streams, begun at random over so many seconds, waited for its first text."""
    return asyncio.run(_first_tokens(engine, work, seconds))


async def _first_tokens(engine: Engine, work: Work, seconds: float) -> list[float]:
    draw = random.Random(2)
    starts = sorted(draw.uniform(0, seconds) for _ in work.prompts)
    return await asyncio.gather(*map(_first_token, [engine] * len(starts), _requests(work), starts))


async def _first_token(engine: Engine, request: GenerationRequest, start: float) -> float:
    await asyncio.sleep(start)
    began, first = time.perf_counter(), 0.0
    async for _ in engine.submit(request, stream=True):
        first = first or time.perf_counter() - began
    return first


@contextmanager
def sql(folder: Path, settings: EngineSettings) -> Iterator[Callable[[list[str], int], Timed]]:
    """Give a function that asks for answers of so many tokens to a column of texts, with ai_query."""
    import aiquery

    declared = {"AIQUERY_ENGINE": settings.engine, "AIQUERY_DEVICE": settings.device, "AIQUERY_DTYPE": settings.dtype}
    entity = {"name": "only", "entity_name": str(folder), "environment_vars": declared}
    with aiquery.Workspace(":memory:") as workspace, aiquery.connect(workspace=workspace, progress=False) as session:
        workspace.create_endpoint("llm", {"served_entities": [entity]})
        workspace.wait("llm")

        def ask(texts: list[str], limit: int) -> Timed:
            session.execute("CREATE OR REPLACE TABLE prompts (text VARCHAR)")
            session.executemany("INSERT INTO prompts VALUES (?)", [[text] for text in texts])
            query = f"SELECT ai_query('llm', text, modelParameters => {{max_tokens: {limit}}}) FROM prompts"
            return timed(lambda: limit * len(session.sql(query).fetchall()))

        yield ask
