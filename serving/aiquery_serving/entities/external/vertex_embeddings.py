"""Embeddings from the models of Vertex AI, through `:predict`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiquery_serving.entities.external import chat_requests as chat
from aiquery_serving.entities.external import rest_answers as rest
from aiquery_serving.entities.external.openai import unwrapped
from aiquery_serving.entities.external.whole_answers import WholeAnswers
from aiquery_serving.messages import Json, Usage


@dataclass(frozen=True, slots=True)
class VertexEmbeddings(WholeAnswers):
    """Turns embeddings bodies into `:predict` requests and back (`entity.Dialect`)."""

    model: str

    @property
    def who(self) -> str:
        """The provider and the model, as error messages name them."""
        return f"google-cloud-vertex-ai model '{self.model}'"

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:  # noqa: ARG002 - never streamed
        """Return the request for a REST body; its own `task_type`, `title` and `autoTruncate` may be given.

        Raises:
            InvalidRequestError: The inputs are no texts.
        """
        asked = unwrapped(body)
        texts = chat.texts_of(asked.get("input"), who=self.who)
        each = {name: asked[name] for name in ("task_type", "title") if asked.get(name) is not None}
        parameters = {"outputDimensionality": asked.get("dimensions"), "autoTruncate": asked.get("autoTruncate")}
        named = {name: value for name, value in parameters.items() if value is not None}
        instances = [{**each, "content": text} for text in texts]
        return {"instances": instances, **({"parameters": named} if named else {})}

    def decode(self, answer: Json, body: Mapping[str, Any], _now: float) -> tuple[Json, Usage]:
        """Return the embeddings of an answer and what they used.

        Raises:
            ProviderResponseError: Another number of embeddings than inputs.
        """
        found = [_embedding(prediction) for prediction in answer.get("predictions") or []]
        usage = Usage(prompt_tokens=sum(int((item.get("statistics") or {}).get("token_count") or 0) for item in found))
        wanted = len(chat.texts_of(body.get("input"), who=self.who))
        vectors = [item.get("values") for item in found]
        return rest.embeddings(vectors, self.model, usage, wanted=wanted, who=self.who), usage


def _embedding(prediction: Any) -> Json:
    found = prediction.get("embeddings") if isinstance(prediction, dict) else None
    return found if isinstance(found, dict) else {}
