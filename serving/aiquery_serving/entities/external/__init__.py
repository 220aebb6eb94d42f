"""Models behind somebody else's API: one module per provider, one transport for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from aiquery_serving.entities.external.ai21 import load_ai21
from aiquery_serving.entities.external.anthropic import load_anthropic
from aiquery_serving.entities.external.azure import AZURE_TYPES, load_azure
from aiquery_serving.entities.external.bedrock import load_bedrock
from aiquery_serving.entities.external.cohere import load_cohere
from aiquery_serving.entities.external.custom import load_custom
from aiquery_serving.entities.external.databricks import load_databricks
from aiquery_serving.entities.external.gemini import load_palm
from aiquery_serving.entities.external.openai import load_openai
from aiquery_serving.entities.external.transport import Answer, HttpTransport, Transport
from aiquery_serving.entities.external.vertex import load_vertex

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel
    from aiquery_serving.messages import RequestEntity

__all__ = ["PROVIDERS", "Answer", "HttpTransport", "Transport", "load_external"]


class _Load(Protocol):
    def __call__(
        self, model: ExternalModel, *, resolve: Callable[[str], str], transport: Transport | None
    ) -> RequestEntity: ...


def _load_openai(model: ExternalModel, *, resolve: Callable[[str], str], transport: Transport | None) -> RequestEntity:
    kind = str(model.config.get("openai_api_type") or "openai").lower()
    load = load_azure if kind in AZURE_TYPES else load_openai
    return load(model, resolve=resolve, transport=transport)


PROVIDERS: dict[str, _Load] = {
    "ai21labs": load_ai21,
    "amazon-bedrock": load_bedrock,
    "anthropic": load_anthropic,
    "cohere": load_cohere,
    "custom": load_custom,
    "databricks-model-serving": load_databricks,
    "google-cloud-vertex-ai": load_vertex,
    "openai": _load_openai,
    "palm": load_palm,
}


def load_external(
    model: ExternalModel,
    *,
    resolve: Callable[[str], str],
    transport: Transport | None = None,
) -> RequestEntity:
    """Return the served entity of an external model. Nothing is sent and no secret is opened yet.

    Args:
        model: The declaration; `config` is the provider's block.
        resolve: Turns `{{secrets/scope/key}}` into the secret. Called at the first request, on any thread.
        transport: Shared with other entities; None gives this one its own, closed with it.

    Raises:
        ConfigurationError: A task, URL, key or library that cannot work.
    """
    return PROVIDERS[model.provider](model, resolve=resolve, transport=transport)
