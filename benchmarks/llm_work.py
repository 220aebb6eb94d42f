"""What the benchmark of language models asks: prompts of mixed length, answers of mixed length."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Tokens of a prompt are lognormal between bounds, those of an answer even between bounds.
PROMPT, ANSWER = (8, 256), (8, 96)


@dataclass(frozen=True)
class Work:
    """Prompts, as tokens, and how many tokens each answer has to have."""

    prompts: list[list[int]]
    limits: list[int]

    @property
    def tokens(self) -> int:
        return sum(self.limits)

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    def first(self, count: int) -> Work:
        return Work(self.prompts[:count], self.limits[:count])

    def by_length(self) -> Work:
        pairs = sorted(zip(self.prompts, self.limits, strict=True), key=lambda pair: len(pair[0]))
        return Work([prompt for prompt, _ in pairs], [limit for _, limit in pairs])


def mixed(count: int, tokenizer: Any, turn: int = 0) -> Work:
    """Return prompts and answers of the same lengths at each turn, but of other words: nobody can have seen them."""
    lengths, words = random.Random(0), random.Random(turn + 1)
    prompts = [_prompt(lengths, words, len(tokenizer)) for _ in range(count)]
    return Work(prompts, [lengths.randint(*ANSWER) for _ in range(count)])


def _prompt(lengths: random.Random, words: random.Random, vocabulary: int) -> list[int]:
    length = min(PROMPT[1], max(PROMPT[0], int(lengths.lognormvariate(3.8, 0.7))))
    return [words.randrange(300, vocabulary) for _ in range(length)]


def sharing(work: Work, tokens: int, *, shared: bool) -> Work:
    """Return the work with so many tokens before each prompt: the same before all, or others before each."""
    draw = random.Random(1000 + shared)
    low, high = min(map(min, work.prompts)), max(map(max, work.prompts))
    heads = [[draw.randint(low, high) for _ in range(tokens)] for _ in work.prompts]
    return Work([heads[0 if shared else n] + prompt for n, prompt in enumerate(work.prompts)], work.limits)


def sized(options: Any) -> Path:
    """Return the folder of the model to measure with."""
    from tiny_models import sized_llama

    kept = Path(options.kept)
    kept.mkdir(parents=True, exist_ok=True)
    folder = sized_llama(kept, hidden=options.hidden, layers=options.layers, vocabulary=options.vocabulary)
    (folder / "aiquery.json").write_text('{"task": "llm/v1/completions"}')  # prompts are given as they are
    return folder
