"""Another workspace's serving endpoints, which speak the REST API already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiquery_serving.entities.external.declared import bearer, member, secret
from aiquery_serving.entities.external.entity import ExternalEntity
from aiquery_serving.entities.external.openai import OpenAIDialect, unwrapped
from aiquery_serving.messages import Json

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel
    from aiquery_serving.entities.external.transport import Transport

_BLOCK = "databricks_model_serving_config"


def load_databricks(
    model: ExternalModel, *, resolve: Callable[[str], str], transport: Transport | None
) -> ExternalEntity:
    """Return the entity of a `databricks-model-serving` model; its name is the endpoint's (contract B.2).

    Raises:
        ConfigurationError: No URL, or no token.
    """
    workspace = member(
        model.config, "databricks_workspace_url", of=_BLOCK, hint=", such as 'https://dbc-1.databricks.com'"
    )
    base = workspace.rstrip("/").removesuffix("/serving-endpoints")
    return ExternalEntity(
        task=model.task,
        url=f"{base}/serving-endpoints/{quote(model.name, safe='')}/invocations",
        dialect=EndpointDialect(model.provider, model.name, model.task),
        headers=bearer(secret(model.config, "databricks_api_token", of=_BLOCK), resolve),
        transport=transport,
    )


class EndpointDialect(OpenAIDialect):
    """OpenAI's words, without the model: the URL names the endpoint, and a model's parameters are its own affair."""

    __slots__ = ()

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:
        """Return the endpoint's request for a REST body; a streamed answer shall tell its usage too."""
        sent = unwrapped(body)
        sent.pop("model", None)
        return {**sent, "stream": True, "stream_options": {"include_usage": True}} if stream else sent
