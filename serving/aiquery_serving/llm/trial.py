"""Tries at load time whether a model computes under our attention what it computes by itself.

Architectures differ in what their layers keep and how they attend. Rather than listing them, two short sequences are
run in pieces, side by side, and compared with the model's own way of running each whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from aiquery_serving.errors import ModelError
from aiquery_serving.llm import attention
from aiquery_serving.llm.attention import KeyValues, Layer, Recorder
from aiquery_serving.llm.batch import Part, run

#: How far logits may be apart, as a share of how far they are spread: numbers of 16 bits are rough.
_TOLERANCE = {torch.float32: 1e-3}
_ROUGH = 0.15
#: The lengths of the two sequences, and where each is cut into pieces.
_LENGTHS, _CUTS = (23, 14), ((0, 11, 22, 23), (0, 12, 13, 14))
_PLACES, _SLOTS = (5, 40), 64


class Trial(NamedTuple):
    """What was found out about a model.

    Attributes:
        layers: What each layer keeps of a token.
        windows: How far back its layers reach, each reach once; None for as far as there is something.
        vocabulary: The number of logits.
        flash: Whether the GPU's attention kernel is right for it.
    """

    layers: Mapping[int, Layer]
    windows: AbstractSet[int | None]
    vocabulary: int
    flash: bool


def try_out(model: Any) -> Trial:
    """Give a model our attention, for good.

    Args:
        model: As transformers loaded it.

    Raises:
        ModelError: The model cannot be run like this.
    """
    try:
        sequences = _sequences(len(model.get_input_embeddings().weight))
        whole = torch.stack([_logits(model, sequence) for sequence in sequences])
        if not whole.isfinite().all():
            raise ModelError(
                "The model computes numbers that are not finite: its weights, or its config.json, are broken."
            )
        attention.register()
        model.set_attn_implementation(attention.NAME)
        recorder = Recorder()
        _logits(model, sequences[0], aiquery=recorder)
        for flash in (True, False) if model.device.type == "cuda" else (False,):
            if recorder.layers and _agrees(model, recorder.layers, sequences, whole, flash=flash):
                return Trial(recorder.layers, recorder.windows, whole.shape[1], flash)
    except (torch.OutOfMemoryError, ModelError):
        raise
    except Exception as error:
        raise ModelError(_refusal(model, f" ({type(error).__name__}: {error})")) from error
    raise ModelError(_refusal(model, ""))


def _sequences(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in _LENGTHS]


def _refusal(model: Any, why: str) -> str:
    return (
        f"A model of type {model.config.model_type} cannot be run by the engine torch, which keeps keys and values of"
        f" past tokens and nothing else{why}. Serve it with the engine vllm, or as a custom model."
    )


def _logits(model: Any, sequence: list[int], **more: Any) -> Any:
    ids = torch.tensor([sequence], device=model.device)
    positions = torch.arange(len(sequence), device=model.device)[None]
    return model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1, **more).logits[0, -1].float()


def _agrees(model: Any, layers: Mapping[int, Layer], sequences: list[list[int]], whole: Any, *, flash: bool) -> bool:
    memory = KeyValues(layers, _SLOTS, model.dtype, model.device)
    try:
        logits = _in_pieces(model, memory, sequences, flash=flash).float()
    except (RuntimeError, NotImplementedError, TypeError):
        if flash:  # a kernel that is not there, or not for numbers like these
            return False
        raise
    spread = whole.std(-1, keepdim=True).clamp_min(1e-6)
    apart = ((logits - whole) / spread).square().mean().sqrt()
    return bool(apart <= _TOLERANCE.get(model.dtype, _ROUGH))


def _in_pieces(model: Any, memory: KeyValues, sequences: list[list[int]], *, flash: bool) -> Any:
    """Return the logits behind both sequences."""
    logits = None
    for cuts in zip(*(pairwise(cut) for cut in _CUTS), strict=True):
        parts = [
            Part(sequence[begin:end], begin, place, samples=True)
            for sequence, place, (begin, end) in zip(sequences, _PLACES, cuts, strict=True)
        ]
        logits = run(model, memory, parts, flash=flash)
    return logits
