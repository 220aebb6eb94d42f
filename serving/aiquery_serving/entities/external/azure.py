"""OpenAI's models in Azure: the same words at a deployment's URL, let in by a key or by Microsoft Entra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from aiquery_serving.entities.external.credentials import TokenBearer
from aiquery_serving.entities.external.declared import JSON_HEADERS, member, secret
from aiquery_serving.entities.external.entity import Authorizer, ExternalEntity, PrivateHeaders
from aiquery_serving.entities.external.entra import entra_token
from aiquery_serving.entities.external.openai import TASK_PATHS, OpenAIDialect

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
        member(model.config, name, of=f"{_OF} of '{model.name}'", hint=" for a model in Azure")
        for name in ("openai_api_base", "openai_api_version", "openai_deployment_name")
    )
    base = base.rstrip("/").removesuffix("/openai")
    query = urlencode({"api-version": version})
    return f"{base}/openai/deployments/{quote(deployment, safe='')}{TASK_PATHS[model.task]}?{query}"


def _headers(config: Mapping[str, Any], resolve: Callable[[str], str]) -> Callable[[], PrivateHeaders] | Authorizer:
    if str(config.get("openai_api_type")).lower() == "azuread":
        return TokenBearer(entra_token(config, resolve=resolve))
    reference = secret(config, "openai_api_key", of=_OF)
    return lambda: PrivateHeaders(public=JSON_HEADERS, secret={"api-key": resolve(reference)})
