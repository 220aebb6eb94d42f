"""AI21's chat, which speaks like OpenAI but for a few words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aiquery_serving.entities.external import chat_requests as chat
from aiquery_serving.entities.external.declared import bearer, require_task, secret
from aiquery_serving.entities.external.entity import ExternalEntity
from aiquery_serving.entities.external.openai import OpenAIDialect
from aiquery_serving.entities.external.openai_stream import OpenAIReader
from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import CHAT, Json, Usage

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel
    from aiquery_serving.entities.external.transport import Transport

DEFAULT_BASE = "https://api.ai21.com/studio/v1"
_UNKNOWN = (
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "reasoning_effort",
)


def load_ai21(model: ExternalModel, *, resolve: Callable[[str], str], transport: Transport | None) -> ExternalEntity:
    """Return the entity of an `ai21labs` model (`ai21labs_config`, contract B.2).

    Our own field `ai21labs_api_base` points at a proxy.

    Raises:
        ConfigurationError: Another task than chat, or no key.
    """
    require_task(model, [CHAT], by="ai21labs")
    base = str(model.config.get("ai21labs_api_base") or DEFAULT_BASE).rstrip("/")
    return ExternalEntity(
        task=model.task,
        url=f"{base}/chat/completions",
        dialect=AI21Dialect(model.provider, model.name, model.task),
        headers=bearer(secret(model.config, "ai21labs_api_key", of="ai21labs_config"), resolve),
        transport=transport,
    )


class AI21Dialect(OpenAIDialect):
    """OpenAI's words, but for those that AI21 has not, and with what its answers leave out."""

    __slots__ = ()

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:
        """Return the provider's request for a chat body.

        Raises:
            InvalidRequestError: Something that the provider has no word for.
        """
        sent = super().encode(body, stream=stream)
        sent.pop("stream_options", None)  # the usage comes unasked
        chat.refuse(sent, _UNKNOWN, who=self.who)
        chat.refuse_one_at_a_time(sent, who=self.who)
        if chat.schema_of(sent.get("response_format")) is not None:
            raise InvalidRequestError(
                f"{self.who} holds no answer to a schema: ask for response_format 'json_object', and name the members "
                "in the prompt."
            )
        self._settle_tools(sent)
        if (bound := chat.take_bound(sent)) is not None:
            sent["max_tokens"] = bound
        sent.pop("user", None)
        return sent

    def _settle_tools(self, sent: Json) -> None:
        """Say `tool_choice` without the word, where that can be done."""
        choice = sent.pop("tool_choice", None)
        if choice == "none":
            sent.pop("tools", None)
        elif choice not in (None, "auto"):
            raise InvalidRequestError(f"{self.who} cannot be made to call a tool: leave out 'tool_choice'.")

    def decode(self, answer: Json, body: Mapping[str, Any], now: float) -> tuple[Json, Usage]:
        """Return the chat completion and what it used.

        Raises:
            ProviderResponseError: It has no choices.
        """
        found, usage = super().decode(answer, body, now)
        return {"object": "chat.completion", "created": int(now), "model": self.model, **found}, usage

    def reader(self, body: Mapping[str, Any], now: float) -> OpenAIReader:
        """Return what reads the streamed answer to `body`."""
        missing = {"object": "chat.completion.chunk", "created": int(now), "model": self.model}
        return AI21Reader(self.who, missing, answers=body.get("n") or 1)


class AI21Reader(OpenAIReader):
    """Passes an answer's chunks on with what they leave out (an `entity.StreamReader`)."""

    def __init__(self, who: str, missing: Json, *, answers: int) -> None:
        super().__init__(who, answers=answers)
        self._missing = missing

    def feed(self, data: bytes) -> Iterator[Json]:
        """Yield the chunks that these bytes complete.

        Raises:
            ReportedError: The provider reports an error within the answer.
            ProviderResponseError: What came is no chunk.
        """
        for chunk in super().feed(data):
            yield {**self._missing, **chunk}
