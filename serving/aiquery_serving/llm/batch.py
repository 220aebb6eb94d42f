"""Runs a model once over parts of many sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from aiquery_serving.llm.attention import Extent, KeyValues, Packing


class Part(NamedTuple):
    """Tokens of one sequence that are next.

    Attributes:
        tokens: Token ids.
        start: The position of the first of them in the sequence.
        place: The slot of the sequence's first token in the key-value memory.
        samples: Whether a token is to be chosen that follows the last of them.
    """

    tokens: Sequence[int]
    start: int
    place: int
    samples: bool


def run(model: Any, memory: KeyValues, parts: Sequence[Part], *, flash: bool = False) -> Any:
    """Compute parts of sequences, and keep their keys and values.

    Args:
        model: One of transformers' decoders, with our attention.
        memory: Keys and values of what comes before the parts.
        parts: Of a sequence each.
        flash: Whether the GPU's kernel may be used.

    Returns:
        The logits behind those parts that sample, in their order: shape (parts that sample, vocabulary).
    """
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    extents, sampled = [], []
    for part in parts:
        first, end = len(tokens), part.start + len(part.tokens)
        tokens += part.tokens
        positions += range(part.start, end)
        slots += range(part.place + part.start, part.place + end)
        extents.append(Extent(first, len(part.tokens), part.place, end))
        if part.samples:
            sampled.append(len(tokens) - 1)
    device = model.device
    ids, places, own = torch.tensor([tokens, positions, slots], device=device)
    logits = model(
        input_ids=ids[None],
        position_ids=places[None],
        use_cache=False,
        logits_to_keep=torch.tensor(sampled or [0], device=device),
        aiquery=Packing(memory, own, extents, flash=flash),
    ).logits[0]
    return logits[: len(sampled)]
