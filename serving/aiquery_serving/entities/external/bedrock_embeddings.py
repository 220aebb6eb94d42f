"""Embeddings from the models of Amazon Bedrock: Amazon's Titan and Cohere's, each in its own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiquery_serving.entities.external import chat_requests as chat
from aiquery_serving.entities.external import rest_answers as rest
from aiquery_serving.entities.external.cohere_words import embed_request, vectors_of
from aiquery_serving.entities.external.openai import unwrapped
from aiquery_serving.entities.external.whole_answers import WholeAnswers
from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import Json, Usage


@dataclass(frozen=True, slots=True)
class TitanEmbeddings(WholeAnswers):
    """Turns embeddings bodies of one text into Titan's requests and back (`entity.Dialect`)."""

    model: str

    @property
    def who(self) -> str:
        """The provider and the model, as error messages name them."""
        return f"amazon-bedrock model '{self.model}'"

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:  # noqa: ARG002 - never streamed
        """Return Titan's request for one text; its own `normalize` may be given.

        Raises:
            InvalidRequestError: Not exactly one text.
        """
        asked = unwrapped(body)
        texts = chat.texts_of(asked.get("input"), who=self.who)
        if len(texts) != 1:
            raise InvalidRequestError(f"{self.who} embeds one text a request, not {len(texts)}.")
        named = {name: asked[name] for name in ("dimensions", "normalize") if asked.get(name) is not None}
        return {"inputText": texts[0], **named}

    def decode(self, answer: Json, _body: Mapping[str, Any], _now: float) -> tuple[Json, Usage]:
        """Return the embedding of an answer and what it used.

        Raises:
            ProviderResponseError: There is none.
        """
        usage = Usage(prompt_tokens=answer.get("inputTextTokenCount") or 0)
        return rest.embeddings([answer.get("embedding")], self.model, usage, wanted=1, who=self.who), usage


@dataclass(frozen=True, slots=True)
class CohereOnBedrock(WholeAnswers):
    """Turns embeddings bodies into the embed requests of Cohere's models and back (`entity.Dialect`)."""

    model: str

    @property
    def who(self) -> str:
        """The provider and the model, as error messages name them."""
        return f"amazon-bedrock model '{self.model}'"

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:  # noqa: ARG002 - never streamed
        """Return the embed request for a REST body; its own `input_type` and `truncate` may be given.

        Raises:
            InvalidRequestError: The inputs are no texts.
        """
        asked = unwrapped(body)
        return embed_request(asked, chat.texts_of(asked.pop("input", None), who=self.who))

    def decode(self, answer: Json, body: Mapping[str, Any], _now: float) -> tuple[Json, Usage]:
        """Return the embeddings of an answer; its body does not say what they used.

        Raises:
            ProviderResponseError: Another number of embeddings than inputs.
        """
        wanted = len(chat.texts_of(body.get("input"), who=self.who))
        return rest.embeddings(vectors_of(answer), self.model, Usage(), wanted=wanted, who=self.who), Usage()
