"""How hidden states become one embedding per text: as sentence-transformers' files beside a model say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from aiquery_serving.errors import InvalidRequestError, ModelError
from aiquery_serving.llm.model_json import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

Tensor: TypeAlias = Any
#: Hidden states of shape (texts, tokens, width) and the texts' lengths to (texts, width); texts are padded behind.
Pool: TypeAlias = Callable[[Tensor, Tensor], Tensor]
#: Embeddings of shape (texts, width) to other ones.
Layer: TypeAlias = Callable[[Tensor], Tensor]

#: Encoders that are trained on their first token, by their own or their architecture's name; others are on the mean.
FIRST_TOKEN_MODELS = re.compile(r"(.*/)?(bge-.*|gte-.*-v1\.5|snowflake-arctic-embed.*|gte|new)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Pooling:
    """The way from hidden states to embeddings of length 1.

    Attributes:
        modes: Names of `POOLS`; what several give is put side by side.
        layers: What is applied after them, in order.
    """

    modes: tuple[str, ...]
    layers: tuple[Layer, ...] = ()

    def __call__(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Pool hidden states of shape (texts, tokens, width), whose texts have `lengths` tokens, in float32."""
        import torch

        hidden = hidden.float()
        pooled = torch.cat([POOLS[mode](hidden, lengths) for mode in self.modes], dim=-1)
        for layer in self.layers:
            pooled = layer(pooled)
        return torch.nn.functional.normalize(pooled, dim=-1)


def shortened(embeddings: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """Keep the first numbers of each embedding, and make its length 1 again: as Matryoshka models are trained for.

    Args:
        embeddings: Shape (texts, numbers).
        dimensions: How many numbers to keep.

    Returns:
        Shape (texts, dimensions).

    Raises:
        InvalidRequestError: The model gives fewer numbers, or none are asked for.

    Examples:
        >>> shortened(np.array([[3, 4, 12]], np.float32), 2).round(1).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """
    given = embeddings.shape[1]
    if not 1 <= dimensions <= given:
        raise InvalidRequestError(f"The model gives {given} dimensions: ask for 1 to {given}, not {dimensions}.")
    kept = embeddings[:, :dimensions]
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    return (kept / np.where(lengths == 0, 1, lengths)).astype(np.float32, copy=False)


def read_pooling(folder: Path, *, is_causal: bool, device: str = "cpu", names: Iterable[str] = ()) -> Pooling:
    """Read how a model's embeddings are made.

    Its `modules.json` says so. Without one, a decoder gives its last token, which alone has seen the whole
    text; of encoders, those in `FIRST_TOKEN_MODELS` give the first, and others the mean of all tokens.

    Args:
        folder: The model's, in Hugging Face format.
        is_causal: Whether its tokens see only those before them.
        device: Where it computes.
        names: What it and its architecture are called, such as `BAAI/bge-large-en` and `bert`.

    Raises:
        ModelError: It declares something else than pooling, dense layers and normalisation.
    """
    modes: list[str] = []
    layers: list[Layer] = []
    for kind, place in _modules(folder):
        if kind == "Pooling":
            modes += _modes(place)
        elif kind != "Transformer":
            layers.append(_layer(kind, place, device))
    return Pooling(tuple(modes) or (_usual_mode(names, is_causal=is_causal),), tuple(layers))


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Return the kinds of what a model is made of, and where each is described."""
    file = folder / "modules.json"
    try:
        return [(module["type"].rpartition(".")[2], folder / module["path"]) for module in read_json(file) or ()]
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"{file} must be a list of objects with a type and a path.") from error


def _usual_mode(names: Iterable[str], *, is_causal: bool) -> str:
    if is_causal:
        return "lasttoken"
    return "cls" if any(map(FIRST_TOKEN_MODELS.fullmatch, names)) else "mean"


def _modes(folder: Path) -> list[str]:
    """Read a pooling module's modes, by their names or, as older ones have it, as a flag each."""
    declared = _config(folder)
    named = declared.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or _flagged(declared))
    if unknown := [mode for mode in modes if mode not in POOLS]:
        raise ModelError(f"{folder / 'config.json'} declares the pooling {unknown[0]}; known are {', '.join(POOLS)}.")
    return modes


def _flagged(declared: Mapping[str, Any]) -> list[str]:
    on = [
        name.removeprefix("pooling_mode_")
        for name, value in declared.items()
        if value and name.startswith("pooling_mode_")
    ]
    modes = [name.removesuffix("_token").removesuffix("_tokens") for name in on]
    return sorted(modes, key=lambda mode: list(POOLS).index(mode) if mode in POOLS else -1)


def _config(folder: Path) -> Mapping[str, Any]:
    declared = read_json(folder / "config.json")
    if not isinstance(declared, dict):
        raise ModelError(f"{folder / 'config.json'} must hold a JSON object, for modules.json names it.")
    return declared


def _mask(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Return 1 for each token and 0 for padding: shape (texts, tokens, 1)."""
    import torch

    places = torch.arange(hidden.shape[1], device=hidden.device)
    return (places < lengths[:, None]).unsqueeze(-1).to(hidden.dtype)


def _first(hidden: Tensor, _: Tensor) -> Tensor:
    return hidden[:, 0]


def _largest(hidden: Tensor, lengths: Tensor) -> Tensor:
    return hidden.masked_fill(_mask(hidden, lengths) == 0, float("-inf")).amax(1)


def _total(hidden: Tensor, lengths: Tensor) -> Tensor:
    return (hidden * _mask(hidden, lengths)).sum(1)


def _mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    return _total(hidden, lengths) / lengths[:, None]


def _mean_root(hidden: Tensor, lengths: Tensor) -> Tensor:
    return _total(hidden, lengths) / lengths[:, None].sqrt()


def _later_weigh_more(hidden: Tensor, lengths: Tensor) -> Tensor:
    import torch

    weights = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[:, None] * _mask(hidden, lengths)
    return (hidden * weights).sum(1) / weights.sum(1)


def _last(hidden: Tensor, lengths: Tensor) -> Tensor:
    import torch

    return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]


#: Poolings by sentence-transformers' names, in the order in which several are put side by side.
POOLS: dict[str, Pool] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len": _mean_root,
    "weightedmean": _later_weigh_more,
    "lasttoken": _last,
}


#: What a dense layer may have behind it, by its class in `torch.nn`.
ACTIVATIONS = ("GELU", "Identity", "ReLU", "Sigmoid", "SiLU", "Tanh")


def _layer(kind: str, folder: Path, device: str) -> Layer:
    import torch

    if kind == "Normalize":
        return partial(torch.nn.functional.normalize, dim=-1)
    if kind == "Dense":
        return _dense(folder).to(device)  # type: ignore[no-any-return]
    raise ModelError(
        f"{folder.parent / 'modules.json'} declares a module {kind}; known are Transformer, Pooling, Dense, Normalize."
    )


def _dense(folder: Path) -> Any:
    """Read a dense layer and what is behind it."""
    import torch

    weights = {name.removeprefix("linear."): weight.float() for name, weight in _weights(folder).items()}
    width = weights["weight"].shape
    linear = torch.nn.Linear(width[1], width[0], bias="bias" in weights)
    linear.load_state_dict(weights)
    return torch.nn.Sequential(linear, _activation(folder)).requires_grad_(requires_grad=False)


def _weights(folder: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    file = folder / "model.safetensors"
    if not file.exists():
        raise ModelError(
            f"{folder} has no model.safetensors, and weights of other formats are not read: they may hold code."
        )
    return load_file(file)  # type: ignore[no-any-return]


def _activation(folder: Path) -> Layer:
    import torch

    name = _config(folder).get("activation_function", "Tanh").rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise ModelError(
            f"{folder / 'config.json'} declares the activation {name}; known are {', '.join(ACTIVATIONS)}."
        )
    return getattr(torch.nn, name)()  # type: ignore[no-any-return]
