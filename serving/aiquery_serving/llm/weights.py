"""Loads a language model for PyTorch: where to, in which numbers, and how much it can keep in mind."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aiquery_serving.errors import ConfigurationError, ModelError
from aiquery_serving.llm import lora
from aiquery_serving.llm.attention import KeyValues, Layer
from aiquery_serving.llm.batch import Part, run
from aiquery_serving.llm.model_files import ModelFiles
from aiquery_serving.llm.pretrained import pretrained
from aiquery_serving.llm.quiet import quiet
from aiquery_serving.llm.settings import AUTO, EngineSettings
from aiquery_serving.llm.trial import Trial, try_out

#: Shares of the memory: of a GPU's for everything, of what a CPU has left for keys and values.
_GPU_SHARE, _CPU_SHARE = 0.9, 0.25
#: How often the logits of a batch are in memory while tokens are drawn from them.
_COPIES_OF_LOGITS = 6
#: The context of models that do not say.
_USUAL_CONTEXT = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that can be run.

    Attributes:
        model: transformers' own.
        layers: What each layer keeps of a token.
        flash: Whether the GPU's attention kernel is right for it.
        vocabulary: The number of logits.
        context_length: The most tokens of a prompt and its answer.
        ends: Tokens that end an answer.
    """

    model: Any
    layers: Mapping[int, Layer]
    flash: bool
    vocabulary: int
    context_length: int
    ends: frozenset[int]

    def memory(self, slots: int) -> KeyValues:
        """Return an empty memory for keys and values."""
        return KeyValues(self.layers, slots, self.model.dtype, self.model.device)


def load(files: ModelFiles, settings: EngineSettings, say: Callable[[str], None]) -> LoadedModel:
    """Load a language model, with its adapter merged in.

    Raises:
        ConfigurationError: It is to run where it cannot.
        ModelError: The files are no model that the engine can run.
    """
    from transformers import AutoModelForCausalLM

    _refuse_other_kinds(files)
    device, dtype = choose_device(settings), choose_dtype(settings, files.config)
    with quiet():
        model = pretrained(AutoModelForCausalLM, files.model, dtype)
        adapter = Path(settings.adapter) if settings.adapter else files.adapter
        if adapter:
            lora.merge(model, adapter)
            say(f"the LoRA adapter in {adapter} is merged in")
        model = model.to(device).eval().requires_grad_(requires_grad=False)
        with torch.inference_mode():
            trial = try_out(model)
    return LoadedModel(
        model=model,
        layers=trial.layers,
        flash=trial.flash,
        vocabulary=trial.vocabulary,
        context_length=_context(model.config.get_text_config(), trial, settings),
        ends=_ends(model),
    )


def choose_device(settings: EngineSettings) -> str:
    """Return where to compute, such as `cpu` or `cuda:0`.

    Raises:
        ConfigurationError: It is to be a GPU that is not there.
    """
    if settings.device == AUTO:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if settings.device == "cpu":
        return "cpu"
    number = int(settings.device.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise ConfigurationError(
            f"The model is to run on {settings.device}, and PyTorch sees {torch.cuda.device_count()} GPUs here."
            " Set AIQUERY_DEVICE to auto or cpu, or install a PyTorch for the GPU."
        )
    return f"cuda:{number}"


def choose_dtype(settings: EngineSettings, config: Mapping[str, Any]) -> Any:
    """Return the type of a model's numbers: on a GPU its own one of 16 bits, on a CPU 32 bits, unless asked."""
    if settings.dtype != AUTO:
        return getattr(torch, settings.dtype)
    if choose_device(settings) == "cpu":
        return torch.float32
    own = config.get("dtype") or config.get("torch_dtype")
    rough = own == "float16" or not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if rough else torch.bfloat16


def kv_slots(loaded: LoadedModel, settings: EngineSettings, *, sequences: int, tokens: int) -> int:
    """Return how many tokens' keys and values there is room for.

    Args:
        loaded: The model.
        settings: What share of the memory it may use.
        sequences: The most sequences of one run.
        tokens: The most tokens of one run.
    """
    model = loaded.model
    size = sum(layer.heads * (layer.key_size + layer.value_size) for layer in loaded.layers.values())
    if model.device.type == "cuda":
        room = _room_on_gpu(loaded, settings.kv_memory_fraction or _GPU_SHARE, sequences, tokens)
    else:
        room = _available() * (settings.kv_memory_fraction or _CPU_SHARE)
    return max(0, min(int(room / (size * model.dtype.itemsize)), sequences * (loaded.context_length + 1)))


def _room_on_gpu(loaded: LoadedModel, share: float, sequences: int, tokens: int) -> float:
    """Return the bytes of a GPU's memory that are left beside the model and its largest run, which is tried."""
    device = loaded.model.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        count = min(tokens, loaded.context_length)
        run(loaded.model, loaded.memory(count), [Part([0] * count, 0, 0, samples=True)], flash=loaded.flash)
    peak = (torch.cuda.max_memory_allocated(device) - before) * tokens / count
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    logits = sequences * loaded.vocabulary * torch.float32.itemsize * _COPIES_OF_LOGITS
    return float(free - total * (1 - share) - peak - logits)


def _available() -> int:
    """Return the bytes of memory that this computer has left, or has at all if it does not say."""
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _refuse_other_kinds(files: ModelFiles) -> None:
    for setting, kind in (
        ("is_encoder_decoder", "an encoder and a decoder"),
        ("vision_config", "pictures"),
        ("audio_config", "sounds"),
    ):
        if files.config.get(setting):
            raise ModelError(
                f"The model in {files.model} is of type {files.model_type}, with {kind}: the engine torch runs"
                " language models of a decoder alone. Serve it with the engine vllm, or as a custom model."
            )


def _context(config: Any, trial: Trial, settings: EngineSettings) -> int:
    """Return the context.

    Of models that compute long sequences otherwise than short ones, it is that of short ones: a batch is computed like
    one sequence, whose length would otherwise change all of it. So it is of those that reach back only so far without
    telling the attention.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    window = getattr(config, "sliding_window", None) if trial.windows == {None} else None
    limits = (
        rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None,
        getattr(config, "max_position_embeddings", None) or _USUAL_CONTEXT,
        getattr(config, "attention_chunk_size", None),
        window,
        settings.context_length,
    )
    return min(int(limit) for limit in limits if limit)


def _ends(model: Any) -> frozenset[int]:
    of_model = model.generation_config.eos_token_id
    return frozenset(of_model if isinstance(of_model, list) else [of_model]) - {None}
