"""The guardrails of one endpoint, and what they do with its requests and answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from aiquery_serving.guardrails.holdback import held_back, judged
from aiquery_serving.guardrails.rail import Ask, Rail
from aiquery_serving.guardrails.texts import ANSWERED, ASKED, conversation, last_question
from aiquery_serving.messages import Json
from aiquery_serving.wire import check_guardrails


@dataclass(frozen=True, slots=True)
class Rails:
    """The guardrails of one endpoint. Coroutines on the event loop."""

    input: Rail
    output: Rail

    @classmethod
    def parse(cls, ai_gateway: Mapping[str, Any] | None) -> Self | None:
        """Read an AI Gateway block; None when nothing is guarded.

        Raises:
            ConfigurationError: Nobody is named who judges safety or topics, or a library is missing.
        """
        block = (ai_gateway or {}).get("guardrails") or {}
        check_guardrails(block)
        rails = cls(Rail.parse("input", block.get("input")), Rail.parse("output", block.get("output")))
        guarded = any(rail.reads or rail.judges for rail in (rails.input, rails.output))
        return rails if guarded else None

    async def check_input(self, body: Mapping[str, Any], ask: Ask) -> Mapping[str, Any]:
        """Return the request body to send: the given one, or a copy with personal data masked.

        Raises:
            GuardrailError: The request is refused; the message names what was flagged.
            AiQueryError: An endpoint that judges failed.
        """
        body = await self.input.looked_through(body, ASKED)
        if self.input.judges:
            await self.input.judge(conversation(body, ASKED), last_question(body), ask)
        return body

    async def check_output(self, answer: Json, ask: Ask) -> Json:
        """Return the answer to give: the given one, or a copy with personal data masked.

        Raises:
            GuardrailError: The answer is refused; the message names what was flagged.
            AiQueryError: An endpoint that judges failed.
        """
        checked = await self.output.looked_through(answer, ANSWERED)
        if self.output.judges:
            said = conversation(checked, ANSWERED)
            await self.output.judge(said, said, ask)
        return answer if checked is answer else _without_logprobs(checked)

    def watch(self, chunks: AsyncGenerator[Json, None], ask: Ask) -> AsyncGenerator[Json, None]:
        """Return the pieces of an answer as they may be given; closing the result closes `chunks`.

        Text is held back as long as a keyword or personal data could still begin in it; all of it, where safety or
        topics are judged.

        Raises:
            GuardrailError: From the iteration: the answer is refused.
            AiQueryError: From the iteration: an endpoint that judges failed.
        """
        watched = held_back(chunks, self.output) if self.output.reads else chunks
        return judged(watched, self.output, ask) if self.output.judges else watched


def _without_logprobs(answer: Mapping[str, Any]) -> Json:
    """Take away the probabilities of the tokens: they would spell what was masked."""
    choices = [
        {**choice, "logprobs": None} if choice.get("logprobs") else choice for choice in answer.get("choices", ())
    ]
    return {**answer, "choices": choices} if choices else dict(answer)
