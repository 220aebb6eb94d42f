"""Chooses the engine that runs a foundation model: vLLM where it is installed and there is a GPU, else PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from aiquery_serving.errors import ConfigurationError
from aiquery_serving.llm.settings import AUTO

if TYPE_CHECKING:
    from aiquery_serving.llm.interface import EmbeddingEngine, Engine
    from aiquery_serving.llm.model_files import ModelFiles
    from aiquery_serving.llm.prompting import Prompter
    from aiquery_serving.llm.settings import EngineSettings


def load_engine(files: ModelFiles, settings: EngineSettings, prompter: Prompter, say: Callable[[str], None]) -> Engine:
    """Load a language model.

    Args:
        files: The model.
        settings: How to run it.
        prompter: Its tokenizer.
        say: Told what was loaded, in a line each.

    Raises:
        ConfigurationError: The engine is not installed, or the model is to run where it cannot.
        ModelError: The engine cannot run the model.
    """
    if _fits_vllm(settings):
        from aiquery_serving.llm.vllm_engine import VllmEngine

        return VllmEngine(files, settings, say)
    from aiquery_serving.llm.torch_engine import TorchEngine

    return TorchEngine.load(files, settings, prompter, say)


def load_embedder(
    files: ModelFiles, settings: EngineSettings, prompter: Prompter, say: Callable[[str], None]
) -> EmbeddingEngine:
    """Load an embedding model: as `load_engine`."""
    if _fits_vllm(settings):
        from aiquery_serving.llm.vllm_engine import VllmEmbedder

        return VllmEmbedder(files, settings, prompter, say)
    from aiquery_serving.llm.embedder import load_torch_embedder

    return load_torch_embedder(files, settings, prompter, say)


def _fits_vllm(settings: EngineSettings) -> bool:
    if settings.engine != AUTO:
        return settings.engine == "vllm"
    return settings.device != "cpu" and find_spec("vllm") is not None and _has_gpu()


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError as error:
        raise ConfigurationError("Language models of your own take PyTorch: pip install 'aiquery[llm]'.") from error
    return bool(torch.cuda.is_available())
