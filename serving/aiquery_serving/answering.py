"""Answers one call: guardrails before and after its delivery, and the record of how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from aiquery_serving.delivery import Call, Delivery
from aiquery_serving.errors import AiQueryError, ProviderResponseError
from aiquery_serving.messages import Json, Response, Usage
from aiquery_serving.plans import Plan
from aiquery_serving.recording import NOTHING, Recorder
from aiquery_serving.streaming import Streamed, Tally, noted


class Answering:
    """Takes calls from their endpoint's guardrails to its record.

    Args:
        delivery: Takes calls to served entities.
        recorder: Keeps how calls ended.
        plan: Returns how requests to an endpoint go now, for a caller; raises PermissionDeniedError.
    """

    def __init__(self, delivery: Delivery, recorder: Recorder, plan: Callable[[str, str], Plan]) -> None:
        self._delivery, self._recorder, self._plan = delivery, recorder, plan

    async def answer(self, call: Call, plan: Plan) -> Response:
        """Answer a call.

        Raises:
            GuardrailError: A guardrail refuses the request or its answer.
            AiQueryError: As `Delivery.deliver`.
        """
        entry, usage = self._recorder.begin(call, plan), NOTHING
        try:
            await self._guard(call, plan)
            response = await self._delivery.deliver(call, plan)
            usage, body = response.usage, response.body
            if plan.rails is not None and call.guarded:
                body = await plan.rails.check_output(body, partial(self._judge, plan))
        except BaseException as error:
            _mark(error, call)
            entry.end(usage, error)
            raise
        entry.end(usage, None, body)
        return Response(body=body, usage=usage, hint=response.hint, served_entity=call.entity, attempts=call.attempts)

    async def open(self, call: Call, plan: Plan) -> Streamed:
        """Begin to answer a streamed call.

        Raises:
            As `answer`; what is refused in mid-answer raises from the chunks.
        """
        entry = self._recorder.begin(call, plan)
        try:
            await self._guard(call, plan)
            stream = await self._delivery.open(call, plan)
        except BaseException as error:
            _mark(error, call)
            entry.end(error=error)
            raise
        # Counted first: what a guardrail refuses was paid for.
        tally, given = Tally(), list[Json]()
        chunks = tally.counted(stream.chunks)
        if plan.rails is not None and call.guarded:
            chunks = plan.rails.watch(chunks, partial(self._judge, plan))
        if plan.logged:
            chunks = noted(chunks, given)

        def end(usage: Usage, error: BaseException | None) -> None:
            entry.end(usage, error, orjson.dumps(given, option=orjson.OPT_SERIALIZE_NUMPY) if given else None)

        wrapped = replace(stream, chunks=chunks, sources=(stream.chunks, *stream.sources))
        return Streamed(wrapped, call.entity, tally, [*call.endings, end])

    async def _guard(self, call: Call, plan: Plan) -> None:
        """Let guardrails look at what is asked; they may refuse it, or mask personal data in it."""
        if plan.rails is not None and call.guarded:
            call.body = await plan.rails.check_input(call.body, partial(self._judge, plan))

    async def _judge(self, plan: Plan, endpoint: str, body: Json) -> str:
        """Return what an endpoint says that judges for another one, asked in the name of that one's creator.

        What judges is guarded by nobody: two endpoints may not ask each other for ever.
        """
        creator, guarded = plan.serving.creator, plan.serving.name
        call = Call(endpoint, body, caller=creator, guarded=False)
        answer = (await self.answer(call, self._plan(endpoint, creator))).body
        try:
            return _text(answer["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ProviderResponseError(
                f"Endpoint '{endpoint}', which judges what endpoint '{guarded}' is asked and answers, gave no chat "
                "completion."
            ) from error


def _mark(error: BaseException, call: Call) -> None:
    """Let an error say who was asked."""
    if isinstance(error, AiQueryError):
        error.attempts, error.served_entity = call.attempts, call.entity


def _text(content: Any) -> str:
    """Return what a message says; reasoning models say it in parts, of which only texts are meant for others."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    return str(content)
