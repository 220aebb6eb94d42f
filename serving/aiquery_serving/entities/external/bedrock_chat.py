"""Chat with the models of Amazon Bedrock, whoever made them: one Converse request a completion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiquery_serving.entities.external import chat_requests as chat
from aiquery_serving.entities.external import converse
from aiquery_serving.entities.external import rest_answers as rest
from aiquery_serving.entities.external.anthropic import TAKES_TEMPERATURE
from aiquery_serving.entities.external.converse_stream import ConverseReader
from aiquery_serving.entities.external.openai import unwrapped
from aiquery_serving.errors import InvalidRequestError, ProviderResponseError
from aiquery_serving.messages import Json, LimitHint, Usage

if TYPE_CHECKING:
    from aiquery_serving.entities.external.limit_hints import Headers

_UNKNOWN = ("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "seed")
#: Models without structured outputs: a tool that they must call has the schema instead.
_ANSWER_TOOL = re.compile(r"amazon\.nova|anthropic\.claude-(?:3|(?:opus|sonnet)-4-(?:\d{8}|1))")
#: Makers whose models can be held to a schema in neither way.
_NO_SCHEMAS = frozenset({"cohere", "ai21labs"})
_JSON_ONLY = {"text": "Answer with one JSON object and nothing else: no prose around it and no code fence."}


@dataclass(frozen=True, slots=True)
class ConverseDialect:
    """Turns chat bodies into Converse requests and back (`entity.Dialect`)."""

    model: str
    maker: str

    @property
    def who(self) -> str:
        """The provider and the model, as error messages name them."""
        return f"amazon-bedrock model '{self.model}'"

    def encode(self, body: Mapping[str, Any], *, stream: bool = False) -> Json:  # noqa: ARG002 - the URL says it
        """Return the Converse request for a chat body; what the REST API has no word for goes to the model.

        Raises:
            InvalidRequestError: Something that the provider has no word for.
        """
        asked = unwrapped(body)
        chat.refuse(asked, _UNKNOWN, who=self.who)
        chat.refuse_several(asked, who=self.who)
        chat.refuse_one_at_a_time(asked, who=self.who)
        for name in ("model", "user"):
            asked.pop(name, None)
        form, tools = asked.pop("response_format", None), converse.tools_of(asked)
        sent = {**converse.messages_of(asked.pop("messages", None)), **tools}
        self._drop_implicit_temperature(asked)
        sent |= converse.settings_of(asked, self.maker, who=self.who)
        self._ask_for_form(sent, form)
        return sent

    def decode(self, answer: Json, body: Mapping[str, Any], now: float) -> tuple[Json, Usage]:
        """Return the chat completion of an answer and what it used.

        Raises:
            ProviderResponseError: It has no message.
        """
        message = (answer.get("output") or {}).get("message") or {}
        if not isinstance(blocks := message.get("content"), list):
            raise ProviderResponseError(f"{self.who} answered without a message.")
        answer_tool = self.uses_answer_tool(body.get("response_format"))
        texts, calls = converse.texts_and_calls(blocks, answer_tool=answer_tool)
        finish, usage = converse.FINISH.get(str(answer.get("stopReason")), "stop"), converse.used(answer.get("usage"))
        return rest.completion("", self.model, [rest.choice(texts, calls, finish)], usage, now=now), usage

    def reader(self, body: Mapping[str, Any], now: float) -> ConverseReader:
        """Return what reads the streamed answer to `body`."""
        answer_tool = self.uses_answer_tool(body.get("response_format"))
        return ConverseReader(self.model, now, who=self.who, answer_tool=answer_tool)

    def hint(self, _headers: Headers, _now: float) -> LimitHint | None:
        """Return None: Bedrock's headers teach nothing about limits."""
        return None

    def uses_answer_tool(self, form: Any) -> bool:
        """Tell whether the answer comes as the arguments of a tool."""
        return chat.schema_of(form) is not None and _ANSWER_TOOL.search(self.model) is not None

    def _drop_implicit_temperature(self, asked: Json) -> None:
        if self.maker == "anthropic" and asked.get("temperature") == 0 and not TAKES_TEMPERATURE.search(self.model):
            del asked["temperature"]

    def _ask_for_form(self, sent: Json, form: Any) -> None:
        schema = chat.schema_of(form)
        if chat.wants_json(form):
            sent["system"] = [*sent.get("system", []), _JSON_ONLY]
        elif schema is not None and self.maker in _NO_SCHEMAS:
            raise InvalidRequestError(f"{self.who} holds no answer to a schema: leave out 'response_format'.")
        elif schema is not None and self.uses_answer_tool(form):
            sent |= converse.answer_tool(schema)
        elif schema is not None:
            name = str(form["json_schema"].get("name") or "answer")
            wanted = converse.text_format(schema, name)
            sent["outputConfig"] = {**sent.get("outputConfig", {}), "textFormat": wanted}
