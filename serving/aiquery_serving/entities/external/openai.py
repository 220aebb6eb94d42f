"""OpenAI's chat, completions and embeddings, and everybody's who speaks the same."""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aiquery_serving.entities.external.declared import JSON_HEADERS, bearer, secret
from aiquery_serving.entities.external.entity import ExternalEntity
from aiquery_serving.entities.external.limit_hints import openai_hint
from aiquery_serving.entities.external.openai_stream import OpenAIReader
from aiquery_serving.errors import ConfigurationError, ProviderResponseError
from aiquery_serving.messages import CHAT, COMPLETIONS, EMBEDDINGS, Json, LimitHint, Usage

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel
    from aiquery_serving.entities.external.limit_hints import Headers
    from aiquery_serving.entities.external.transport import Transport

DEFAULT_BASE = "https://api.openai.com/v1"
TASK_PATHS = {CHAT: "/chat/completions", COMPLETIONS: "/completions", EMBEDDINGS: "/embeddings"}

#: Keys of the REST body that are for Databricks, not for the model (contract D.1, D.2).
ENVELOPE = frozenset({"client_request_id", "usage_context", "databricks_options", "extra_params"})
#: The o-series, and GPT from 5 on: they refuse a temperature and want `max_completion_tokens`.
_REASONING = re.compile(r"(?:^|[/:])(?:o[1-9]\d*(?:-|$)|gpt-(?:[5-9]|\d\d))")


def load_openai(model: ExternalModel, *, resolve: Callable[[str], str], transport: Transport | None) -> ExternalEntity:
    """Return the entity of an `openai` model (`openai_config`, contract B.2).

    Raises:
        ConfigurationError: Another kind of API, or no key.
    """
    config = model.config
    if str(config.get("openai_api_type") or "openai").lower() != "openai":
        raise ConfigurationError(f"openai_api_type '{config['openai_api_type']}' is not one of openai, azure, azuread.")
    base = str(config.get("openai_api_base") or DEFAULT_BASE).rstrip("/")
    public = dict(JSON_HEADERS)
    if organization := config.get("openai_organization"):
        public["openai-organization"] = str(organization)
    return ExternalEntity(
        task=model.task,
        url=base + TASK_PATHS[model.task],
        dialect=OpenAIDialect(model.provider, model.name, model.task),
        headers=bearer(secret(config, "openai_api_key", of="openai_config"), resolve, public=public),
        transport=transport,
    )


@dataclass(frozen=True, slots=True)
class OpenAIDialect:
    """Requests and answers are the REST API's own, but for a few names (`entity.Dialect`)."""

    provider: str
    model: str
    task: str

    @property
    def who(self) -> str:
        """The provider and the model, as error messages name them."""
        return f"{self.provider} model '{self.model}'"

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:
        """Return the provider's request for a REST body; a streamed answer shall tell its usage too."""
        sent = unwrapped(body)
        sent["model"] = self.model
        if stream:
            sent |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.task != EMBEDDINGS and _REASONING.search(self.model):
            _suit_reasoning_model(sent)
        return sent

    def decode(self, answer: Json, body: Mapping[str, Any], _now: float) -> tuple[Json, Usage]:
        """Return the REST answer and what it used.

        Raises:
            ProviderResponseError: No choices, or another number of embeddings than inputs.
        """
        if self.task == EMBEDDINGS:
            answer["data"] = self._vectors(answer.get("data"), body)
        else:
            self._check_choices(answer.get("choices"))
        return answer, _usage(answer.get("usage"))

    def reader(self, body: Mapping[str, Any], _now: float) -> OpenAIReader:
        """Return what reads the streamed answer to `body`."""
        return OpenAIReader(self.who, answers=_answers(unwrapped(body)))

    def hint(self, headers: Headers, now: float) -> LimitHint | None:
        """Return what the headers teach about limits."""
        return openai_hint(headers, now)

    def _check_choices(self, choices: Any) -> None:
        part, kind = ("message", dict) if self.task == CHAT else ("text", str)
        if not isinstance(choices, list) or not choices:
            raise ProviderResponseError(f"{self.who} answered without choices.")
        for choice in choices:
            if not isinstance(choice, dict) or not isinstance(choice.get(part), kind):
                raise ProviderResponseError(f"{self.who} answered with a choice without '{part}'.")

    def _vectors(self, data: Any, body: Mapping[str, Any]) -> list[Json]:
        inputs = body.get("input")
        wanted = len(inputs) if isinstance(inputs, list) else 1
        found = len(data) if isinstance(data, list) else 0
        if found != wanted:
            raise ProviderResponseError(f"{self.who} answered with {found} embeddings for {wanted} inputs.")
        try:
            ordered = sorted(data, key=lambda item: int(item["index"]))
            vectors = [_vector(item["embedding"]) for item in ordered]
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise ProviderResponseError(f"{self.who} answered with malformed embeddings.") from None
        if [item["index"] for item in ordered] != list(range(wanted)):
            raise ProviderResponseError(f"{self.who} answered an input twice and another not at all.")
        return [{**item, "embedding": vector} for item, vector in zip(ordered, vectors, strict=True)]


def unwrapped(body: Mapping[str, Any]) -> Json:
    """Return what of a REST body is for the model; named fields win over `extra_params`."""
    sent = dict(body)
    if not ENVELOPE.isdisjoint(sent):
        extra = sent.get("extra_params") or {}
        sent = {name: value for name, value in sent.items() if name not in ENVELOPE}
        sent = {**extra, **sent}
    # How the answer comes is the caller's word at every call, not the body's.
    sent.pop("stream", None)
    sent.pop("stream_options", None)
    return sent


def _answers(asked: Json) -> int:
    """Return how many choices answer a request: `n` to each of its prompts, which may also be lists of tokens."""
    count, prompts = asked.get("n"), asked.get("prompt")
    several = isinstance(prompts, list) and prompts and not isinstance(prompts[0], int)
    return (count if isinstance(count, int) else 1) * (len(prompts) if isinstance(prompts, list) and several else 1)


def _suit_reasoning_model(sent: Json) -> None:
    # Only the implicit 0.0 goes quietly (contract A.2); another temperature was somebody's wish,
    # and the provider's own error tells them.
    if sent.get("temperature") == 0:
        del sent["temperature"]
    if "max_tokens" in sent:
        sent.setdefault("max_completion_tokens", sent.pop("max_tokens"))
        sent.pop("max_tokens", None)


def _vector(embedding: Any) -> list[float]:
    if isinstance(embedding, str):
        numbers: list[float] = np.frombuffer(b64decode(embedding, validate=True), "<f4").tolist()
        return numbers
    if not isinstance(embedding, list):
        raise TypeError(embedding)
    return embedding


def _usage(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    return Usage(
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
    )
