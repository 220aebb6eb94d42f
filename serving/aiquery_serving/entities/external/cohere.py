"""Cohere's chat and embed (v2), asked and answered in the shape of the REST API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiquery_serving.entities.external import chat_requests as chat
from aiquery_serving.entities.external import rest_answers as rest
from aiquery_serving.entities.external.cohere_stream import CohereReader
from aiquery_serving.entities.external.cohere_words import (
    FINISH,
    GAVE_UP,
    embed_request,
    trial_hint,
    used,
    vectors_of,
)
from aiquery_serving.entities.external.declared import bearer, require_task, secret
from aiquery_serving.entities.external.entity import ExternalEntity
from aiquery_serving.entities.external.openai import unwrapped
from aiquery_serving.entities.external.whole_answers import WholeAnswers
from aiquery_serving.errors import InvalidRequestError, ProviderResponseError
from aiquery_serving.messages import CHAT, EMBEDDINGS, Json, LimitHint, Usage

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel
    from aiquery_serving.entities.external.limit_hints import Headers
    from aiquery_serving.entities.external.transport import Transport

DEFAULT_BASE = "https://api.cohere.com"
TASK_PATHS = {CHAT: "/v2/chat", EMBEDDINGS: "/v2/embed"}
_UNKNOWN = ("logit_bias", "logprobs", "top_logprobs", "reasoning_effort")
_RENAMED = {"top_p": "p", "top_k": "k"}
_SPOKEN = ("content", "tool_calls", "tool_call_id", "tool_plan")


def load_cohere(model: ExternalModel, *, resolve: Callable[[str], str], transport: Transport | None) -> ExternalEntity:
    """Return the entity of a `cohere` model (`cohere_config`, contract B.2).

    `cohere_api_base` may end with `/v1` or `/v2` or not: version 2 is spoken.

    Raises:
        ConfigurationError: A task that the provider has not, or no key.
    """
    require_task(model, TASK_PATHS, by="cohere")
    base = str(model.config.get("cohere_api_base") or DEFAULT_BASE).rstrip("/")
    base = base.removesuffix("/v1").removesuffix("/v2")
    return ExternalEntity(
        task=model.task,
        url=base + TASK_PATHS[model.task],
        dialect=CohereChat(model.name) if model.task == CHAT else CohereEmbeddings(model.name),
        headers=bearer(secret(model.config, "cohere_api_key", of="cohere_config"), resolve),
        transport=transport,
    )


@dataclass(frozen=True, slots=True)
class CohereChat:
    """Turns chat bodies into Cohere's, and its answers into chat completions (`entity.Dialect`)."""

    model: str

    @property
    def who(self) -> str:
        """The provider and the model, as error messages name them."""
        return f"cohere model '{self.model}'"

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:
        """Return the chat request for a REST body.

        Raises:
            InvalidRequestError: Something that the provider has no word for.
        """
        asked = unwrapped(body)
        chat.refuse(asked, _UNKNOWN, who=self.who)
        chat.refuse_several(asked, who=self.who)
        chat.refuse_one_at_a_time(asked, who=self.who)
        messages = [_message(message) for message in asked.pop("messages", None) or []]
        sent = {"model": self.model, "messages": messages, **self._settings(asked)}
        return {**sent, "stream": True} if stream else sent

    def decode(self, answer: Json, _body: Mapping[str, Any], now: float) -> tuple[Json, Usage]:
        """Return the chat completion of an answer and what it used.

        Raises:
            ProviderResponseError: It has no message.
        """
        message = answer.get("message")
        if not isinstance(message, dict):
            raise ProviderResponseError(f"{self.who} answered without a message.")
        if answer.get("finish_reason") in GAVE_UP:
            raise ProviderResponseError(f"{self.who} gave up in the middle of its answer.")
        parts = [part for part in message.get("content") or [] if isinstance(part, dict)]
        texts = [str(part.get("text") or "") for part in parts if part.get("type") == "text"]
        finish = FINISH.get(str(answer.get("finish_reason")), "stop")
        choice = rest.choice(texts, list(message.get("tool_calls") or []), finish)
        usage = used(answer.get("usage"))
        return rest.completion(str(answer.get("id") or ""), self.model, [choice], usage, now=now), usage

    def reader(self, _body: Mapping[str, Any], now: float) -> CohereReader:
        """Return what reads a streamed answer."""
        return CohereReader(self.model, now, who=self.who)

    def hint(self, headers: Headers, _now: float) -> LimitHint | None:
        """Return what the headers teach about limits."""
        return trial_hint(headers)

    def _settings(self, asked: Json) -> Json:
        """Return the other parameters under Cohere's names; what it alone knows stays as it is."""
        bound, stop = chat.take_bound(asked), chat.stop_words(asked.pop("stop", None))
        form, tools = asked.pop("response_format", None), chat.functions(asked.pop("tools", None))
        choice = self._tool_choice(asked.pop("tool_choice", None))
        sent = {_RENAMED.get(name, name): value for name, value in asked.items() if name not in {"model", "user"}}
        found = {
            **sent,
            "max_tokens": bound,
            "stop_sequences": stop or None,
            "response_format": _form(form),
            "tools": [{"type": "function", "function": function} for function in tools] or None,
            "tool_choice": choice if tools else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _tool_choice(self, choice: Any) -> str | None:
        if (name := chat.chosen_function(choice)) is not None:
            raise InvalidRequestError(
                f"{self.who} cannot be told to call '{name}': use tool_choice 'required' and give that tool alone."
            )
        return {"required": "REQUIRED", "none": "NONE"}.get(str(choice))


@dataclass(frozen=True, slots=True)
class CohereEmbeddings(WholeAnswers):
    """Turns embeddings bodies into embed requests and back (`entity.Dialect`)."""

    model: str

    @property
    def who(self) -> str:
        """The provider and the model, as error messages name them."""
        return f"cohere model '{self.model}'"

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:  # noqa: ARG002 - never streamed
        """Return the embed request for a REST body; its own `input_type` and `truncate` may be given.

        Raises:
            InvalidRequestError: The inputs are no texts.
        """
        asked = unwrapped(body)
        texts = chat.texts_of(asked.pop("input", None), who=self.who)
        return {"model": self.model, **embed_request(asked, texts)}

    def decode(self, answer: Json, body: Mapping[str, Any], _now: float) -> tuple[Json, Usage]:
        """Return the embeddings of an answer and what they used.

        Raises:
            ProviderResponseError: Another number of embeddings than inputs.
        """
        usage = used(answer.get("meta"))
        wanted = len(chat.texts_of(body.get("input"), who=self.who))
        return rest.embeddings(vectors_of(answer), self.model, usage, wanted=wanted, who=self.who), usage

    def hint(self, headers: Headers, _now: float) -> LimitHint | None:
        """Return what the headers teach about limits."""
        return trial_hint(headers)


def _message(message: Any) -> Json:
    role = chat.role_of(message)
    said = {name: message[name] for name in _SPOKEN if message.get(name)}
    return {"role": "system" if role == "developer" else role, **said}


def _form(form: Any) -> Any:
    schema = chat.schema_of(form)
    return form if schema is None else {"type": "json_object", "schema": schema}
