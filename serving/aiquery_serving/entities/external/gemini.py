"""Google's Gemini, asked and answered in the shape of a chat completion; the provider `palm` is its API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiquery_serving.entities.external import chat_requests as chat
from aiquery_serving.entities.external import rest_answers as rest
from aiquery_serving.entities.external.declared import JSON_HEADERS, require_task, secret
from aiquery_serving.entities.external.entity import ExternalEntity, PrivateHeaders
from aiquery_serving.entities.external.gemini_contents import (
    contents_of,
    finish_of,
    is_blocked,
    settings_of,
    texts_and_calls,
    tools_of,
    used,
)
from aiquery_serving.entities.external.gemini_stream import GeminiReader
from aiquery_serving.entities.external.openai import unwrapped
from aiquery_serving.entities.external.whole_answers import WholeAnswers
from aiquery_serving.errors import ProviderResponseError
from aiquery_serving.messages import CHAT, EMBEDDINGS, Json, LimitHint, Usage

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel
    from aiquery_serving.entities.external.limit_hints import Headers
    from aiquery_serving.entities.external.transport import Transport

DEFAULT_BASE = "https://generativelanguage.googleapis.com"
STREAM_METHOD = "streamGenerateContent?alt=sse"
_METHODS = {CHAT: "generateContent", EMBEDDINGS: "batchEmbedContents"}

_UNKNOWN = ("logit_bias", "logprobs", "top_logprobs")


def load_palm(model: ExternalModel, *, resolve: Callable[[str], str], transport: Transport | None) -> ExternalEntity:
    """Return the entity of a `palm` model (`palm_config`, contract B.2): the Gemini API, PaLM's successor.

    Our own field `palm_api_base` points at a proxy.

    Raises:
        ConfigurationError: A task that the provider has not, or no key.
    """
    require_task(model, _METHODS, by="palm (the Gemini API)")
    base = str(model.config.get("palm_api_base") or DEFAULT_BASE).rstrip("/").removesuffix("/v1beta")
    path = model.name if "/" in model.name else f"models/{model.name}"
    url = f"{base}/v1beta/{quote(path)}"
    reference = secret(model.config, "palm_api_key", of="palm_config")
    return ExternalEntity(
        task=model.task,
        url=f"{url}:{_METHODS[model.task]}",
        stream_url=f"{url}:{STREAM_METHOD}",
        dialect=GeminiChat("palm", model.name) if model.task == CHAT else GeminiEmbeddings("palm", model.name, path),
        headers=lambda: PrivateHeaders(public=JSON_HEADERS, secret={"x-goog-api-key": resolve(reference)}),
        transport=transport,
    )


@dataclass(frozen=True, slots=True)
class GeminiChat:
    """Turns chat bodies into `generateContent` requests and back (`entity.Dialect`)."""

    provider: str
    model: str

    @property
    def who(self) -> str:
        """The provider and the model, as error messages name them."""
        return f"{self.provider} model '{self.model}'"

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:  # noqa: ARG002 - the URL says it
        """Return the request for a chat body; Gemini's own members, such as `safetySettings`, stay as they are.

        Raises:
            InvalidRequestError: Something that the provider has no word for.
        """
        asked = unwrapped(body)
        chat.refuse(asked, _UNKNOWN, who=self.who)
        chat.refuse_one_at_a_time(asked, who=self.who)
        contents = contents_of(asked.pop("messages", None))
        settings, tools = settings_of(asked, self.model), tools_of(asked)
        own = {name: value for name, value in asked.items() if name not in {"model", "user"} and value is not None}
        return {**own, **contents, **tools, **({"generationConfig": settings} if settings else {})}

    def decode(self, answer: Json, _body: Mapping[str, Any], now: float) -> tuple[Json, Usage]:
        """Return the chat completion of an answer and what it used.

        Raises:
            ProviderResponseError: It has no candidates.
        """
        usage, answer_id = used(answer.get("usageMetadata")), str(answer.get("responseId") or "")
        choices = [
            self._choice(candidate, index, answer_id) for index, candidate in enumerate(self._candidates(answer))
        ]
        model = str(answer.get("modelVersion") or self.model)
        return rest.completion(answer_id, model, choices, usage, now=now), usage

    def reader(self, body: Mapping[str, Any], now: float) -> GeminiReader:
        """Return what reads a streamed answer."""
        return GeminiReader(self.model, now, who=self.who, candidates=body.get("n") or 1)

    def hint(self, _headers: Headers, _now: float) -> LimitHint | None:
        """Return None: Google's headers teach nothing about limits."""
        return None

    def _candidates(self, answer: Json) -> list[Json]:
        candidates = [found for found in answer.get("candidates") or [] if isinstance(found, dict)]
        if is_blocked(answer):
            return [{"finishReason": "SAFETY"}]
        if not candidates or not all("content" in found or "finishReason" in found for found in candidates):
            raise ProviderResponseError(f"{self.who} answered without content.")
        return candidates

    def _choice(self, candidate: Json, index: int, answer_id: str) -> Json:
        texts, calls = texts_and_calls(candidate, answer_id)
        finish = finish_of(candidate.get("finishReason"))
        return rest.choice(texts, calls, finish, index=candidate.get("index") or index)


@dataclass(frozen=True, slots=True)
class GeminiEmbeddings(WholeAnswers):
    """Turns embeddings bodies into `batchEmbedContents` requests and back (`entity.Dialect`)."""

    provider: str
    model: str
    path: str

    @property
    def who(self) -> str:
        """The provider and the model, as error messages name them."""
        return f"{self.provider} model '{self.model}'"

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:  # noqa: ARG002 - never streamed
        """Return the request for an embeddings body; its own `taskType` and `title` may be given.

        Raises:
            InvalidRequestError: The inputs are no texts.
        """
        asked = unwrapped(body)
        texts = chat.texts_of(asked.get("input"), who=self.who)
        each: Json = {"model": self.path, **{name: asked[name] for name in ("taskType", "title") if name in asked}}
        if asked.get("dimensions") is not None:
            each["outputDimensionality"] = asked["dimensions"]
        return {"requests": [{**each, "content": {"parts": [{"text": text}]}} for text in texts]}

    def decode(self, answer: Json, body: Mapping[str, Any], _now: float) -> tuple[Json, Usage]:
        """Return the embeddings of an answer and what they used.

        Raises:
            ProviderResponseError: Another number of embeddings than inputs.
        """
        found = answer.get("embeddings")
        vectors = [item.get("values") for item in found if isinstance(item, dict)] if isinstance(found, list) else None
        usage = used(answer.get("usageMetadata"))
        wanted = len(chat.texts_of(body.get("input"), who=self.who))
        return rest.embeddings(vectors, self.model, usage, wanted=wanted, who=self.who), usage
