"""Merges a LoRA adapter into a model's weights, as peft's `merge_and_unload` does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aiquery_serving.errors import ModelError

_PREFIX: Final = "base_model.model."
_PART = re.compile(r"(?P<module>.+)\.lora_(?:embedding_)?(?P<side>[AB])(?:\.weight)?")
#: Settings that make an adapter something else than a product of two matrices.
_OTHER_KINDS = ("use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens", "trainable_token_indices")


def merge(model: Any, folder: Path) -> None:
    """Add an adapter to the weights of the model that it was made for.

    Args:
        model: As transformers loaded it.
        folder: What peft wrote: adapter_config.json and adapter_model.safetensors.

    Raises:
        ModelError: It is no LoRA adapter, one of a kind that cannot be merged here, or one for another model.
    """
    config = _config(folder)
    tensors = _tensors(folder)
    modules = dict(model.named_modules())
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        found = _PART.fullmatch(name)
        if found:
            parts.setdefault(found["module"], {})[found["side"]] = tensor
        else:
            _replace(model, name, tensor, folder)
    for name, part in parts.items():
        if name not in modules or part.keys() != {"A", "B"}:
            raise ModelError(f"The adapter in {folder} is for another model: there is no {name} in this one.")
        _add(modules[name], part["A"], part["B"], _scale(config, name, part), folder)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"The LoRA adapter in {folder} cannot be read: {error}") from error
    others = [setting for setting in _OTHER_KINDS if config.get(setting)]
    if config.get("peft_type") != "LORA" or others:
        kind = ", ".join(others) or config.get("peft_type")
        raise ModelError(
            f"The adapter in {folder} is no plain LoRA adapter ({kind}). Merge it with peft's merge_and_unload, and"
            " serve the merged model."
        )
    return config


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"The LoRA adapter in {folder} cannot be read: {path.name}: {error}") from error
    return {name.removeprefix(_PREFIX).replace(".base_layer.", "."): tensor for name, tensor in tensors.items()}


def _replace(model: Any, name: str, tensor: Any, folder: Path) -> None:
    """Set a weight that was trained as a whole."""
    weight = dict(model.named_parameters(remove_duplicate=False)).get(name)
    if weight is None or weight.shape != tensor.shape:
        raise ModelError(f"The adapter in {folder} is for another model: {name} does not fit this one.")
    weight.data.copy_(tensor)


def _add(module: Any, down: Any, up: Any, scale: float, folder: Path) -> None:
    """Add the product of the two matrices to a weight; embeddings and Conv1D keep theirs the other way round."""
    change = up.float() @ down.float() * scale
    weight = module.weight.data
    if type(module).__name__ in ("Conv1D", "Embedding"):
        change = change.T
    if change.shape != weight.shape:
        raise ModelError(f"The adapter in {folder} is for another model: a weight has the shape {tuple(weight.shape)}.")
    weight.copy_(weight.float() + change.to(weight.device))


def _scale(config: Mapping[str, Any], module: str, part: Mapping[str, Any]) -> float:
    rank = part["A"].shape[0]
    alpha = _for_module(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _for_module(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the setting of a module; patterns are the ends of names, or expressions for them."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default
