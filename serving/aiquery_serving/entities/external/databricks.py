"""Another workspace's serving endpoints, which speak the REST API already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiquery_serving.entities.external.entity import ExternalEntity, PrivateHeaders
from aiquery_serving.entities.external.openai import JSON_HEADERS, OpenAIDialect, required, unwrapped
from aiquery_serving.errors import ConfigurationError
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
    workspace = model.config.get("databricks_workspace_url")
    if not workspace:
        raise ConfigurationError(f"{_BLOCK} needs 'databricks_workspace_url', such as 'https://dbc-1.databricks.com'.")
    base = str(workspace).rstrip("/").removesuffix("/serving-endpoints")
    reference = required(model.config, "databricks_api_token", of=_BLOCK)
    return ExternalEntity(
        task=model.task,
        url=f"{base}/serving-endpoints/{quote(model.name, safe='')}/invocations",
        dialect=EndpointDialect(model.provider, model.name, model.task),
        headers=lambda: PrivateHeaders(public=JSON_HEADERS, secret={"authorization": f"Bearer {resolve(reference)}"}),
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
