"""Embeddings from models that take one text a request, for callers who have several."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiquery_serving.messages import EMBEDDINGS, Json, RequestEntity, Response, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Requests in flight for one caller: the gateway counts them as one.
MOST_AT_ONCE = 8


class SingleInputs:
    """Asks a model for each text of a request (implements `messages.RequestEntity`).

    Where one of them fails, all fail, and the others are called back.

    Args:
        entity: A model of the task embeddings that takes one text a request.
    """

    task = EMBEDDINGS

    def __init__(self, entity: RequestEntity) -> None:
        self._entity = entity

    def __repr__(self) -> str:
        return f"SingleInputs({self._entity!r})"

    async def send(self, body: Mapping[str, Any]) -> Response:
        """Answer one embeddings body, in the REST API's response shape.

        Raises:
            InvalidRequestError: The provider has no way to say it.
            ProviderError: One of its kinds.
        """
        inputs = body.get("input")
        if not isinstance(inputs, list) or len(inputs) <= 1:
            return await self._entity.send(body)
        gate = asyncio.Semaphore(MOST_AT_ONCE)

        async def ask(text: Any) -> Response:
            async with gate:
                return await self._entity.send({**body, "input": [text]})

        return _joined(await _all_or_nothing([asyncio.ensure_future(ask(text)) for text in inputs]))

    async def close(self) -> None:
        """Give connections back."""
        await self._entity.close()


async def _all_or_nothing(calls: list[asyncio.Future[Response]]) -> list[Response]:
    try:
        return await asyncio.gather(*calls)
    finally:
        for call in calls:
            call.cancel()


def _joined(answers: Sequence[Response]) -> Response:
    usage = Usage(prompt_tokens=sum(answer.usage.prompt_tokens for answer in answers))
    data: list[Json] = [
        {**item, "index": index} for index, answer in enumerate(answers) for item in answer.body["data"]
    ]
    counted = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return Response(body={**answers[0].body, "data": data, "usage": counted}, usage=usage, hint=answers[-1].hint)
