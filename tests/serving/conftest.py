"""Providers on this machine, and one real MLflow registry for all tests: its first start costs seconds."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns while it imports itself
    import mlflow.pyfunc

from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from providers import AnthropicServer, OpenAIServer

from aiquery_serving.entities.pyfunc import PyfuncEntity, load_pyfunc
from aiquery_serving.models import Models, default_uris

#: Logs whatever it is given as one version of a model and loads it as an endpoint would.
Serve = Callable[..., PyfuncEntity]


class Registry:
    """Logs models and hands out what aiquery makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri, _ = default_uris(folder)
        self.models = Models(self.uri, self.uri)
        self.models.start()
        self._names = 0

    def log(self, name: str, log_model: Callable[..., Any], model: Any, **options: Any) -> None:
        """Log a version of a model, without MLflow's own slow guess at its requirements."""
        options.setdefault("pip_requirements", [])
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logging.getLogger("mlflow").setLevel(logging.ERROR)
                log_model(model, name="model", registered_model_name=name, **options)
        finally:
            mlflow.set_tracking_uri(None)  # else MLflow leaves it in the environment, for the tests that follow
            mlflow.set_registry_uri(None)

    def serve(self, model: Any, *, log_model: Callable[..., Any] | None = None, **options: Any) -> PyfuncEntity:
        """Log a model under a name of its own and load it from the registry."""
        self._names += 1
        name = f"tests.models.model-{self._names}"
        self.log(name, log_model or python_model, model, **options)
        return load_pyfunc(self.models.path(name, "1"), name=name, environment={})


def python_model(model: Any, **options: Any) -> Any:
    """Log a PythonModel with the argument order of the other flavours."""
    return mlflow.pyfunc.log_model(python_model=model, **options)


def signature(inputs: Any, outputs: Any = None) -> ModelSignature:
    """Write a signature as `{"a": "double"}`; a list gives types without names."""
    return ModelSignature(_schema(inputs), _schema(outputs) if outputs is not None else None)


def _schema(spec: Any) -> Schema:
    if isinstance(spec, Schema):
        return spec
    if isinstance(spec, dict):
        return Schema([ColSpec(kind, name) for name, kind in spec.items()])
    return Schema([ColSpec(kind) for kind in spec])


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_REGISTRY_URI", raising=False)
        yield Registry(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="session")
def serve(registry: Registry) -> Serve:
    return registry.serve


@pytest.fixture(scope="session")
def sign() -> Callable[..., ModelSignature]:
    return signature


@pytest.fixture
def openai() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def anthropic() -> Iterator[AnthropicServer]:
    with AnthropicServer() as server:
        yield server
