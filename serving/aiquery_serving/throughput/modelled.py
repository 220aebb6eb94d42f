"""Decides how many tokens per second one replica of a model should manage on a device, from the sizes of both.

Theory of operation. A device does so many operations and moves so many bytes per second, and a run of the model takes
whichever needs longer, besides the time to begin each of its operations. Prompts are computed once; answers take one
run per token, which a batch shares: it reads all weights once, and each one's own keys and values. The typical request
has a prompt of 512 tokens and an answer of 128, in a batch of 32; the typical text to embed has 128 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

_PROMPT, _ANSWER, _TEXT, _BATCH = 512, 128, 128, 32
#: Operations that one layer begins, and seconds that are spent beside the model for each run of it.
_BEGUN: Final = 15
_BESIDE: Final = 0.002
#: Activations of models whose feed-forward layers have a gate, and so a third matrix.
_GATED = ("silu", "swish", "swiglu", "gelu_pytorch_tanh")
_STEP: Final = 10


class Speed(NamedTuple):
    """What a device can do per second: operations, bytes; and seconds to begin one operation, bytes of a number."""

    operations: float
    bytes: float
    begin: float
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The sizes of a transformer: numbers of a layer that work for each token, those it has in all, and so on."""

    layers: int
    working: int
    weights: int
    vocabulary: int
    keys_and_values: int
    attention: int
    context: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Architecture:
        """Read the sizes from a model's config.json, whichever names its architecture has for them.

        A size that it leaves out, as old files do, is that of the smallest model that was ever in wide use.
        """
        text = config.get("text_config")
        config = text if isinstance(text, Mapping) else config
        hidden = _size(config, 768, "hidden_size", "n_embd", "d_model", "dim")
        heads = _size(config, 12, "num_attention_heads", "n_head", "n_heads")
        size = _size(config, max(1, hidden // heads), "head_dim")
        pairs = _size(config, heads, "num_key_value_heads")
        dense = _size(config, 4 * hidden, "intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
        experts = _size(config, 1, "num_local_experts", "num_experts", "n_routed_experts")
        wide = _size(config, dense, "moe_intermediate_size") if experts > 1 else dense
        chosen = min(experts, _size(config, 1, "num_experts_per_tok"))
        attention = 2 * hidden * size * (heads + pairs)
        expert = (3 if _activation(config) in _GATED else 2) * hidden * wide
        return cls(
            layers=_size(config, 12, "num_hidden_layers", "n_layer", "n_layers"),
            working=attention + chosen * expert,
            weights=attention + experts * expert,
            vocabulary=hidden * _size(config, 30_522, "vocab_size"),
            keys_and_values=2 * pairs * size,
            attention=4 * heads * size,
            context=_size(config, 2048, "max_position_embeddings", "n_positions", "n_ctx"),
        )


def modelled(config: Mapping[str, Any], speed: Speed, *, embeds: bool = False) -> int:
    """Return the tokens per second of one replica, in tens: of prompts and answers together, or of texts to embed.

    Args:
        config: The model's config.json.
        speed: What the device can do.
        embeds: Whether it is an embedding model.

    Examples:
        >>> llama_8b = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "vocab_size": 128256,
        ...     "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu"}
        >>> modelled(llama_8b, Speed(operations=6e14, bytes=4e12, begin=5e-6, width=2))
        12430
    """
    model = Architecture.of(config)
    seconds, tokens = _embedding(model, speed) if embeds else _request(model, speed)
    return max(_STEP, math.floor(tokens / seconds / _STEP) * _STEP)


def _embedding(model: Architecture, speed: Speed) -> tuple[float, int]:
    length = min(_TEXT, model.context)
    return _run(model, speed, tokens=_BATCH * length, seen=length // 2) / _BATCH, length


def _request(model: Architecture, speed: Speed) -> tuple[float, int]:
    """Return the seconds that a request takes of the device, and its tokens."""
    prompt, answer = min(_PROMPT, model.context // 2), min(_ANSWER, model.context // 4)
    one = _run(model, speed, tokens=prompt, seen=prompt // 2)
    each = _run(model, speed, tokens=_BATCH, seen=prompt + answer // 2, chosen=_BATCH)
    return one + answer * each / _BATCH, prompt + answer


def _run(model: Architecture, speed: Speed, *, tokens: int, seen: int, chosen: int = 0) -> float:
    """Return the seconds of one run over `tokens`, each of which looks at `seen` others; `chosen` are answers'."""
    layer = 2 * model.working + model.attention * seen
    operations = tokens * model.layers * layer + 2 * chosen * model.vocabulary
    read = model.layers * model.weights + (model.vocabulary if chosen else 0)
    read += chosen * seen * model.layers * model.keys_and_values
    computing = max(operations / speed.operations, read * speed.width / speed.bytes)
    return computing + model.layers * _BEGUN * speed.begin + _BESIDE


def _size(config: Mapping[str, Any], default: int, *names: str) -> int:
    given = (config.get(name) for name in names)
    return next((size for size in given if isinstance(size, int) and size > 0), default)


def _activation(config: Mapping[str, Any]) -> str:
    return str(config.get("hidden_act") or config.get("hidden_activation") or config.get("activation_function") or "")
