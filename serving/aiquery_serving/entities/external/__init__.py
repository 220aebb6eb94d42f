"""Models behind somebody else's API: one module per provider, one transport for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aiquery_serving.entities.external.anthropic import load_anthropic
from aiquery_serving.entities.external.custom import load_custom
from aiquery_serving.entities.external.openai import load_openai
from aiquery_serving.entities.external.transport import Answer, HttpTransport, Transport
from aiquery_serving.errors import ConfigurationError

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel
    from aiquery_serving.entities.external.entity import ExternalEntity

__all__ = ["PROVIDERS", "Answer", "HttpTransport", "Transport", "load_external"]

#: The former name.

PROVIDERS = {"anthropic": load_anthropic, "custom": load_custom, "openai": load_openai}


def load_external(
    model: ExternalModel,
    *,
    resolve: Callable[[str], str],
    transport: Transport | None = None,
) -> ExternalEntity:
    """Return the served entity of an external model. Nothing is sent and no secret is opened yet.

    Args:
        model: The declaration; `config` is the provider's block.
        resolve: Turns `{{secrets/scope/key}}` into the secret. Called at the first request.
        transport: Shared with other entities; None gives this one its own, closed with it.

    Raises:
        ConfigurationError: A provider, task, URL or key that cannot work.
    """
    try:
        load = PROVIDERS[model.provider]
    except KeyError:
        raise ConfigurationError(
            f"The provider '{model.provider}' of '{model.name}' is not available yet; there are "
            f"{', '.join(sorted(PROVIDERS))}. Many others have an OpenAI-compatible URL for 'custom'."
        ) from None
    return load(model, resolve=resolve, transport=transport)
