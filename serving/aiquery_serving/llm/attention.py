"""Attention of many sequences in one run of a model, each over its own extent of one key-value memory.

It is registered with transformers under `NAME`, so that it serves any decoder of the library whose attention can be
chosen. All tokens of a run lie behind each other: queries have the shape (1, heads, tokens, size), and which of them
belong to whom is in the `Packing` that the run is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "aiquery_extents"


class Layer(NamedTuple):
    """What one layer keeps of a token."""

    heads: int
    key_size: int
    value_size: int


class Manner(NamedTuple):
    """How a layer attends: how scores are scaled, how far back they reach, and what they cannot exceed."""

    scale: float
    window: int | None = None
    cap: float | None = None


class Extent(NamedTuple):
    """One sequence's part in a run: `size` tokens from `first` on, and its `length` keys from slot `start` on."""

    first: int
    size: int
    start: int
    length: int


class States(NamedTuple):
    """What a layer has made of the tokens of a run: shapes (tokens, heads, size)."""

    query: Any
    key: Any
    value: Any


class Attends(Protocol):
    """What a run is given to attend with."""

    def attend(self, layer: int, states: States, manner: Manner) -> Any:
        """Attend for all tokens of the run; returns the shape (tokens, heads, size)."""
        ...


class KeyValues:
    """The keys and values of all layers, for as many tokens as there are slots: shape (slots, heads, size) each."""

    def __init__(self, layers: Mapping[int, Layer], slots: int, dtype: Any, device: Any) -> None:
        self._layers = {
            number: tuple(
                torch.zeros(slots, layer.heads, size, dtype=dtype, device=device)
                for size in (layer.key_size, layer.value_size)
            )
            for number, layer in layers.items()
        }

    def __getitem__(self, layer: int) -> tuple[Any, ...]:
        return self._layers[layer]

    def move(self, source: int, target: int, count: int) -> None:
        """Copy what is kept of `count` tokens to another place, as if through a buffer."""
        for memory in (memory for pair in self._layers.values() for memory in pair):
            kept = memory[source : source + count]
            memory[target : target + count] = kept.clone() if abs(source - target) < count else kept


class Packing:
    """Which tokens of one run belong to whom, and where their keys and values are.

    Args:
        memory: The keys and values so far; those of the run's tokens are added.
        slots: For each token of the run, where its own go.
        extents: The sequences of the run.
        flash: Whether to use the flash-attention kernel that is a part of PyTorch for CUDA.
    """

    def __init__(self, memory: KeyValues, slots: Any, extents: Sequence[Extent], *, flash: bool = False) -> None:
        self._memory, self._slots, self._extents, self._flash = memory, slots, extents, flash
        self._biases: dict[Any, Any] = {}

    def attend(self, layer: int, states: States, manner: Manner) -> Any:  # noqa: D102 - as Attends
        query, key, value = states
        keys, values = self._memory[layer]
        keys.index_copy_(0, self._slots, key)
        values.index_copy_(0, self._slots, value)
        if self._flash and manner.cap is None:
            return self._by_flash(query, keys, values, manner)
        query = query.unflatten(1, (keys.shape[1], -1))  # heads that share keys side by side
        out = query.new_empty(*query.shape[:3], values.shape[2])
        keys, values = keys.transpose(0, 1), values.transpose(0, 1)
        for extent in self._extents:
            own = slice(extent.first, extent.first + extent.size)
            attend = self._one if extent.size == 1 else self._several
            out[own] = attend(extent, query[own], keys, values, manner)
        return out.flatten(1, 2)

    @staticmethod
    def _one(extent: Extent, query: Any, keys: Any, values: Any, manner: Manner) -> Any:
        """Attend for a single token; the heads that share keys are the queries."""
        span = _span(extent, manner.window)
        return _attention(query, keys[None, :, span], values[None, :, span], None, manner)

    def _several(self, extent: Extent, query: Any, keys: Any, values: Any, manner: Manner) -> Any:
        """Attend for more tokens of one sequence; the heads that share keys are a batch, for which none is repeated."""
        span = _span(extent, manner.window)
        key, value = (memory[:, None, span].expand(-1, query.shape[2], -1, -1) for memory in (keys, values))
        causal = extent.size == extent.length and manner.window is None and manner.cap is None
        bias = None if causal else self._bias(extent.size, span.stop - span.start, manner.window, query)
        out = _attention(query.permute(1, 2, 0, 3), key, value, bias, manner, causal=causal)
        return out.permute(2, 0, 1, 3)

    def _by_flash(self, query: Any, keys: Any, values: Any, manner: Manner) -> Any:
        """Attend by the kernel, which takes any extents of one memory: their starts, and how far each is filled."""
        return torch.ops.aten._flash_attention_forward(  # noqa: SLF001 - its public form is younger than we need it
            query,
            keys,
            values,
            self._first_queries,
            self._starts,
            max(extent.size for extent in self._extents),
            max(extent.length for extent in self._extents),
            0.0,
            manner.window is None,
            False,
            scale=manner.scale,
            window_size_left=-1 if manner.window is None else manner.window - 1,
            window_size_right=0,
            seqused_k=self._lengths,
            **_one_split(),
        )[0]

    def _bias(self, queries: int, keys: int, window: int | None, like: Any) -> Any:
        """Return what hides from the last tokens of a sequence those behind each, and those too far before it."""
        known = (queries, keys, window)
        if known not in self._biases:
            own = torch.arange(keys - queries, keys, device=like.device)[:, None]
            others = torch.arange(keys, device=like.device)
            hidden = others > own
            if window is not None:
                hidden |= others <= own - window
            self._biases[known] = _as_bias(hidden, like.dtype)
        return self._biases[known]

    @cached_property
    def _first_queries(self) -> Any:
        return self._as_int32([0, *(extent.first + extent.size for extent in self._extents)])

    @cached_property
    def _starts(self) -> Any:
        return self._as_int32([*(extent.start for extent in self._extents), 0])  # the kernel wants one more

    @cached_property
    def _lengths(self) -> Any:
        return self._as_int32([extent.length for extent in self._extents])

    def _as_int32(self, numbers: list[int]) -> Any:
        return torch.tensor(numbers, dtype=torch.int32, device=self._slots.device)


class Recorder:
    """Stands in for a `Packing` to learn how a model attends.

    Attributes:
        layers: What each layer keeps of a token.
        windows: How far back the layers reach, each reach once.
    """

    def __init__(self) -> None:
        self.layers: dict[int, Layer] = {}
        self.windows: set[int | None] = set()

    def attend(self, layer: int, states: States, manner: Manner) -> Any:  # noqa: D102 - as Attends
        query, key, value = states
        self.layers[layer] = Layer(key.shape[1], key.shape[2], value.shape[2])
        self.windows.add(manner.window)
        return query.new_zeros(*query.shape[:2], value.shape[2])


def register() -> None:
    """Make the attention known to transformers. It needs no mask, and none is made for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    _mask: Any,
    *,
    aiquery: Attends,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Attend as transformers asks a layer to: shapes (1, heads, tokens, size) in, (1, tokens, heads, size) out."""
    manner = Manner(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    states = States(*(of_heads[0].transpose(0, 1) for of_heads in (query, key, value)))
    return aiquery.attend(module.layer_idx, states, manner)[None], None


def _span(extent: Extent, window: int | None) -> slice:
    """Return the slots of the keys that any of a sequence's tokens can reach."""
    first = 0 if window is None else max(0, extent.length - extent.size + 1 - window)
    return slice(extent.start + first, extent.start + extent.length)


def _attention(query: Any, key: Any, value: Any, bias: Any, manner: Manner, *, causal: bool = False) -> Any:
    """Attend: shapes (batch, heads, queries or keys, size)."""
    scale, _, cap = manner
    if cap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=causal, scale=scale)
    scores = torch.tanh(query @ key.transpose(-1, -2) * (scale / cap)) * cap
    weights = (scores if bias is None else scores + bias).softmax(-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value


def _as_bias(hidden: Any, dtype: Any) -> Any:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)


@cache
def _one_split() -> dict[str, int]:
    """Ask the kernel for sums in the same order whatever the batch is, where it can be asked."""
    known = {argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments}  # noqa: SLF001
    return {"num_splits": 1} if "num_splits" in known else {}
