"""Anthropic's messages, asked and answered in the shape of a chat completion."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiquery_serving.entities.external import chat_requests as chat
from aiquery_serving.entities.external import rest_answers as rest
from aiquery_serving.entities.external.anthropic_answers import ANSWER_TOOL, finish_of, message_of, usage_of
from aiquery_serving.entities.external.anthropic_messages import dialogue
from aiquery_serving.entities.external.anthropic_stream import AnthropicReader
from aiquery_serving.entities.external.declared import JSON_HEADERS, require_task, secret
from aiquery_serving.entities.external.entity import ExternalEntity, PrivateHeaders
from aiquery_serving.entities.external.limit_hints import anthropic_hint
from aiquery_serving.entities.external.openai import unwrapped
from aiquery_serving.errors import ProviderResponseError
from aiquery_serving.messages import CHAT, Json, LimitHint, Usage

if TYPE_CHECKING:
    from aiquery_serving.endpoint import ExternalModel
    from aiquery_serving.entities.external.limit_hints import Headers
    from aiquery_serving.entities.external.transport import Transport

DEFAULT_BASE = "https://api.anthropic.com"
API_VERSION = "2023-06-01"
#: Anthropic requires a bound. This is the most that every model takes, and thinking counts too.
DEFAULT_MAX_TOKENS = 4096

#: Parameters of the chat task that the provider has no word for.
_UNKNOWN = ("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "seed")
_EFFORT = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh"}
#: Models that still take a temperature: all of the third generation and before, and these of the
#: fourth. Every later one refuses it.
TAKES_TEMPERATURE = re.compile(
    r"claude-(?:[123]|instant)|(?:opus|sonnet)-4(?:-[0-6])?(?!-?\d{1,2}(?!\d))"
    r"|haiku-4(?:-[0-5])?(?!-?\d{1,2}(?!\d))"
)
#: Models without structured outputs: a tool that they must call has the schema instead.
_NO_SCHEMAS = re.compile(r"claude-(?:[123]|instant)|(?:opus|sonnet)-4(?:-0)?(?:-\d{8})?$")
_JSON_ONLY = "Answer with one JSON object and nothing else: no prose around it and no code fence."


def load_anthropic(
    model: ExternalModel, *, resolve: Callable[[str], str], transport: Transport | None
) -> ExternalEntity:
    """Return the entity of an `anthropic` model (`anthropic_config`, contract B.2).

    Our own field `anthropic_api_base` points at a proxy; it may end with `/v1` or not.

    Raises:
        ConfigurationError: Another task than chat, or no key.
    """
    require_task(model, [CHAT], by="anthropic")
    base = str(model.config.get("anthropic_api_base") or DEFAULT_BASE).rstrip("/")
    reference = secret(model.config, "anthropic_api_key", of="anthropic_config")
    return ExternalEntity(
        task=model.task,
        url=f"{base.removesuffix('/v1')}/v1/messages",
        dialect=AnthropicDialect(model.name),
        headers=lambda: PrivateHeaders(
            public={**JSON_HEADERS, "anthropic-version": API_VERSION},
            secret={"x-api-key": resolve(reference)},
        ),
        transport=transport,
    )


@dataclass(frozen=True, slots=True)
class AnthropicDialect:
    """Turns chat bodies into messages requests, and messages into chat completions."""

    model: str

    @property
    def who(self) -> str:
        """The provider and the model, as error messages name them."""
        return f"anthropic model '{self.model}'"

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:
        """Return the messages request for a chat body.

        Raises:
            InvalidRequestError: Something that the provider has no word for.
        """
        asked = unwrapped(body)
        chat.refuse(asked, _UNKNOWN, who=self.who)
        chat.refuse_several(asked, who=self.who)
        system, messages = dialogue(asked.pop("messages", None) or [])
        bound = chat.take_bound(asked)
        sent = {"model": self.model, "messages": messages, "max_tokens": DEFAULT_MAX_TOKENS if bound is None else bound}
        if system:
            sent["system"] = system
        form = asked.pop("response_format", None)
        sent |= _renamed(asked)
        self._drop_implicit_temperature(sent)
        self._ask_for_form(sent, form)
        return {**sent, "stream": True} if stream else sent

    def decode(self, answer: Json, body: Mapping[str, Any], now: float) -> tuple[Json, Usage]:
        """Return the chat completion of a message and what it used.

        Raises:
            ProviderResponseError: It has no content.
        """
        blocks, reason = answer.get("content"), answer.get("stop_reason")
        if not isinstance(blocks, list) or not (blocks or reason == "refusal"):
            raise ProviderResponseError(f"{self.who} answered without content.")
        message = message_of(blocks, schema_tool=self._uses_schema_tool(body.get("response_format")))
        usage = usage_of(answer.get("usage"))
        finish = finish_of(reason)
        if finish == "tool_calls" and "tool_calls" not in message:
            finish = "stop"
        choice = {"index": 0, "message": message, "finish_reason": finish}
        answer_id, model = str(answer.get("id", "")), str(answer.get("model", self.model))
        return rest.completion(answer_id, model, [choice], usage, now=now), usage

    def reader(self, body: Mapping[str, Any], now: float) -> AnthropicReader:
        """Return what reads the streamed answer to `body`; `now` in seconds since 1970."""
        schema_tool = self._uses_schema_tool(body.get("response_format"))
        return AnthropicReader(self.who, self.model, schema_tool=schema_tool, now=now)

    def hint(self, headers: Headers, now: float) -> LimitHint | None:
        """Return what the headers teach about limits."""
        return anthropic_hint(headers, now)

    def _drop_implicit_temperature(self, sent: Json) -> None:
        # As with OpenAI's reasoning models (contract A.2): another value is somebody's wish, and
        # the provider's own error tells them.
        if sent.get("temperature") == 0 and not TAKES_TEMPERATURE.search(self.model):
            del sent["temperature"]

    def _uses_schema_tool(self, form: Any) -> bool:
        return chat.schema_of(form) is not None and _NO_SCHEMAS.search(self.model) is not None

    def _ask_for_form(self, sent: Json, form: Any) -> None:
        schema = chat.schema_of(form)
        if self._uses_schema_tool(form):
            tool = {"name": ANSWER_TOOL, "description": "Give the answer.", "input_schema": schema}
            sent["tools"] = [*sent.get("tools", []), tool]
            sent["tool_choice"] = {"type": "tool", "name": ANSWER_TOOL}
        elif schema is not None:
            wanted = {"type": "json_schema", "schema": schema}
            sent["output_config"] = {**sent.get("output_config", {}), "format": wanted}
        elif chat.wants_json(form):
            sent["system"] = "\n\n".join(filter(None, [sent.get("system"), _JSON_ONLY]))


def _renamed(asked: Json) -> Json:
    """Return the other parameters under the provider's names; what it alone knows stays as it is."""
    sent = {name: value for name, value in asked.items() if value is not None}
    sent.pop("model", None)
    if (stop := sent.pop("stop", None)) is not None:
        sent["stop_sequences"] = chat.stop_words(stop)
    if (user := sent.pop("user", None)) is not None:
        sent["metadata"] = {"user_id": user}
    if effort := _EFFORT.get(sent.pop("reasoning_effort", "")):
        sent["output_config"] = {**sent.get("output_config", {}), "effort": effort}
    if tools := chat.functions(sent.pop("tools", None)):
        sent["tools"] = [_tool(function) for function in tools]
    choice = _tool_choice(sent.pop("tool_choice", None), sent.pop("parallel_tool_calls", None))
    return {**sent, "tool_choice": choice} if choice and tools else sent


def _tool(function: Json) -> Json:
    schema: Json = function.get("parameters") or {"type": "object", "properties": {}}
    named: Json = {name: function[name] for name in ("name", "description", "strict") if name in function}
    return {**named, "input_schema": schema}


def _tool_choice(choice: Any, parallel: Any) -> Json | None:
    match choice:
        case {"function": {"name": name}}:
            found: Json = {"type": "tool", "name": name}
        case "required":
            found = {"type": "any"}
        case "none":
            return {"type": "none"}
        case "auto":
            found = {"type": "auto"}
        case _ if parallel is False:
            found = {"type": "auto"}
        case _:
            return None
    return {**found, "disable_parallel_tool_use": True} if parallel is False else found
