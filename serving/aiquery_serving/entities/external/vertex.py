"""Google's models in Vertex AI: Gemini's words, let in by a service account."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiquery_serving.entities.external.credentials import TokenBearer
from aiquery_serving.entities.external.declared import member, require_task
from aiquery_serving.entities.external.entity import ExternalEntity
from aiquery_serving.entities.external.gemini import STREAM_METHOD, GeminiChat
from aiquery_serving.entities.external.google_tokens import google_token
from aiquery_serving.entities.external.single_inputs import SingleInputs
from aiquery_serving.entities.external.vertex_embeddings import VertexEmbeddings
from aiquery_serving.messages import CHAT, EMBEDDINGS

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel
    from aiquery_serving.entities.external.transport import Transport
    from aiquery_serving.messages import RequestEntity

_METHODS = {CHAT: "generateContent", EMBEDDINGS: "predict"}
_OF = "google_cloud_vertex_ai_config"


def load_vertex(model: ExternalModel, *, resolve: Callable[[str], str], transport: Transport | None) -> RequestEntity:
    """Return the entity of a `google-cloud-vertex-ai` model (`google_cloud_vertex_ai_config`, contract B.2).

    Our own field `vertex_api_base` points at a proxy.

    Raises:
        ConfigurationError: A task that the provider has not, a member or a library that is missing.
    """
    require_task(model, _METHODS, by="google-cloud-vertex-ai")
    url = _url(model)
    entity = ExternalEntity(
        task=model.task,
        url=f"{url}:{_METHODS[model.task]}",
        stream_url=f"{url}:{STREAM_METHOD}",
        dialect=GeminiChat(model.provider, model.name) if model.task == CHAT else VertexEmbeddings(model.name),
        headers=TokenBearer(google_token(model.config, resolve=resolve)),
        transport=transport,
    )
    takes_one = model.task == EMBEDDINGS and "gemini" in model.name
    return SingleInputs(entity) if takes_one else entity


def _url(model: ExternalModel) -> str:
    project, region = (member(model.config, name, of=f"{_OF} of '{model.name}'") for name in ("project_id", "region"))
    host = "aiplatform.googleapis.com" if region == "global" else f"{region}-aiplatform.googleapis.com"
    base = str(model.config.get("vertex_api_base") or f"https://{host}").rstrip("/")
    place = f"projects/{quote(project, safe='')}/locations/{quote(region, safe='')}"
    return f"{base}/v1/{place}/publishers/google/models/{quote(model.name, safe='')}"
