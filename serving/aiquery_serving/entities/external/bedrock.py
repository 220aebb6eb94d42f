"""Amazon Bedrock: chat and embeddings of its models, signed as Amazon wants it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiquery_serving.entities.external.aws import AwsSigner, aws_credentials
from aiquery_serving.entities.external.bedrock_chat import ConverseDialect
from aiquery_serving.entities.external.bedrock_embeddings import CohereOnBedrock, TitanEmbeddings
from aiquery_serving.entities.external.declared import member
from aiquery_serving.entities.external.entity import ExternalEntity
from aiquery_serving.entities.external.single_inputs import SingleInputs
from aiquery_serving.errors import ConfigurationError
from aiquery_serving.messages import CHAT, EMBEDDINGS

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel
    from aiquery_serving.entities.external.entity import Dialect
    from aiquery_serving.entities.external.transport import Transport
    from aiquery_serving.messages import RequestEntity

_MAKERS = ("anthropic", "cohere", "ai21labs", "amazon")
_METHODS = {CHAT: "converse", EMBEDDINGS: "invoke"}
_OF = "amazon_bedrock_config"


def load_bedrock(model: ExternalModel, *, resolve: Callable[[str], str], transport: Transport | None) -> RequestEntity:
    """Return the entity of an `amazon-bedrock` model (`amazon_bedrock_config`, contract B.2).

    Our own field `bedrock_api_base` points at a proxy or a private endpoint.

    Raises:
        ConfigurationError: A task that the model's maker has not, a member or a library that is missing.
    """
    maker = str(model.config.get("bedrock_provider") or "").lower()
    if maker not in _MAKERS:
        raise ConfigurationError(f"{_OF} of '{model.name}' needs 'bedrock_provider': one of {', '.join(_MAKERS)}.")
    dialect, url = _dialect(model, maker), _url(model)
    entity = ExternalEntity(
        task=model.task,
        url=f"{url}/{_METHODS[model.task]}",
        stream_url=f"{url}/converse-stream",
        dialect=dialect,
        headers=AwsSigner(
            aws_credentials(model.config, resolve=resolve), region=str(model.config["aws_region"]), service="bedrock"
        ),
        transport=transport,
    )
    return SingleInputs(entity) if isinstance(dialect, TitanEmbeddings) else entity


def _dialect(model: ExternalModel, maker: str) -> Dialect:
    match model.task, maker:
        case _ if model.task == CHAT:
            return ConverseDialect(model.name, maker)
        case _, "amazon" if model.task == EMBEDDINGS:
            return TitanEmbeddings(model.name)
        case _, "cohere" if model.task == EMBEDDINGS:
            return CohereOnBedrock(model.name)
    raise ConfigurationError(
        f"External model '{model.name}' has the task '{model.task}'; amazon-bedrock offers {CHAT}, and {EMBEDDINGS} "
        "for the bedrock_provider amazon or cohere."
    )


def _url(model: ExternalModel) -> str:
    region = member(model.config, "aws_region", of=f"{_OF} of '{model.name}'", hint=", such as 'us-east-1'")
    base = str(model.config.get("bedrock_api_base") or f"https://bedrock-runtime.{region}.amazonaws.com").rstrip("/")
    return f"{base}/model/{quote(model.name, safe='')}"
