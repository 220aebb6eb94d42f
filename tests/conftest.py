"""What holds for all tests: they leave nothing behind, in the checkout or in the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind():
    before = {path.name for path in ROOT.iterdir()}
    yield
    left = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - before
    assert not left, f"The tests left {sorted(left)} in the checkout."


@pytest.fixture(autouse=True)
def registries_stay_named_as_they_were():
    """MLflow writes into the environment what a test calls its registry; the next test's workspace would read it."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def made_models(request):
    """Where models are kept that tests have built, from one run to the next."""
    return Path(request.config.cache.mkdir("models"))


@pytest.fixture(scope="session")
def torch_is_here():
    """The test is skipped, and says so, where nothing can run a language model."""
    pytest.importorskip("torch", reason="PyTorch is not installed: language models are NOT tested")
    pytest.importorskip("transformers", reason="transformers is not installed: language models are NOT tested")


@pytest.fixture(scope="session")
def llama(made_models, torch_is_here):
    """The folder of a tiny Llama with random weights."""
    from tiny_models import tiny_llama

    return tiny_llama(made_models)


@pytest.fixture(scope="session")
def trained_llama(made_models, torch_is_here):
    """The folder of a tiny Llama that knows what `tiny_lessons` teaches."""
    from tiny_models import trained_llama

    return trained_llama(made_models)


@pytest.fixture(scope="session")
def llama_adapter(made_models, llama):
    """The folder of a LoRA adapter for the tiny Llama with random weights."""
    pytest.importorskip("peft", reason="peft is not installed: LoRA adapters are NOT tested")
    from tiny_models import lora_adapter

    return lora_adapter(made_models, llama)
