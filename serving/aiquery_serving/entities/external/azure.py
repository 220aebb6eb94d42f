"""OpenAI's models in Azure: the same words at a deployment's URL, let in by a key or by Microsoft Entra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from aiquery_serving.entities.external.credentials import TokenBearer
from aiquery_serving.entities.external.entity import Authorizer, ExternalEntity, PrivateHeaders
from aiquery_serving.entities.external.entra import entra_token
from aiquery_serving.entities.external.openai import JSON_HEADERS, TASK_PATHS, OpenAIDialect, required
from aiquery_serving.errors import ConfigurationError

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel
    from aiquery_serving.entities.external.transport import Transport

#: What `openai_api_type` says of a model in Azure.
AZURE_TYPES = ("azure", "azuread")
_OF = "openai_config"


def load_azure(model: ExternalModel, *, resolve: Callable[[str], str], transport: Transport | None) -> ExternalEntity:
    """Return the entity of an `openai` model whose `openai_api_type` is `azure` or `azuread` (contract B.2).

    Raises:
        ConfigurationError: A member is missing, or a library.
    """
    return ExternalEntity(
        task=model.task,
        url=_url(model),
        dialect=OpenAIDialect("azure", model.name, model.task),
        headers=_headers(model.config, resolve),
        transport=transport,
    )


def _url(model: ExternalModel) -> str:
    base, version, deployment = (
        _plain(model, name) for name in ("openai_api_base", "openai_api_version", "openai_deployment_name")
    )
    base = base.rstrip("/").removesuffix("/openai")
    query = urlencode({"api-version": version})
    return f"{base}/openai/deployments/{quote(deployment, safe='')}{TASK_PATHS[model.task]}?{query}"


def _headers(config: Mapping[str, Any], resolve: Callable[[str], str]) -> Callable[[], PrivateHeaders] | Authorizer:
    if str(config.get("openai_api_type")).lower() == "azuread":
        return TokenBearer(entra_token(config, resolve=resolve))
    reference = required(config, "openai_api_key", of=_OF)
    return lambda: PrivateHeaders(public=JSON_HEADERS, secret={"api-key": resolve(reference)})


def _plain(model: ExternalModel, name: str) -> str:
    value = model.config.get(name)
    if not value:
        raise ConfigurationError(f"{_OF} of '{model.name}' needs '{name}' for a model in Azure.")
    return str(value)
