"""Several inputs in one embeddings request, and one vector or one error for each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aiquery_serving.batching import halves
from aiquery_serving.errors import (
    AiQueryError,
    InvalidRequestError,
    ProviderRequestError,
    ProviderResponseError,
)
from aiquery_serving.messages import Json, Response

#: An embedding: a list of numbers, or NumPy's row of them, which costs next to nothing.
Vector: TypeAlias = list[float] | NDArray[np.float32]


async def packed(
    inputs: Sequence[str], ask: Callable[[Sequence[str]], Awaitable[Response]]
) -> list[Vector | AiQueryError]:
    """Embed inputs: one vector or one error for each, in order.

    A request that is refused as wrong, too large or not allowed is halved until the input at fault stands
    alone. Halves that were answered are not asked again.

    Args:
        inputs: As many as one request may carry.
        ask: Sends one request with some of them.
    """
    answers: list[Vector | AiQueryError] = []
    runs = [range(len(inputs))] if inputs else []
    while runs:
        run = runs.pop()
        try:
            answers += _vectors(await ask(inputs[run.start : run.stop]), len(run))
        except (ProviderRequestError, InvalidRequestError) as error:
            if len(run) == 1:
                answers.append(error)
            else:
                runs += reversed(halves(run))
        except AiQueryError as error:
            answers += [error] * len(run)
    return answers


def with_lists(answer: Json) -> Json:
    """Return an answer with its embeddings as lists of numbers, where they are NumPy's rows.

    Examples:
        >>> with_lists({"data": [{"index": 0, "embedding": np.array([1.0])}]})
        {'data': [{'index': 0, 'embedding': [1.0]}]}
    """
    data = answer.get("data")
    if isinstance(data, list) and all(isinstance(_embedding(item), np.ndarray) for item in data):
        return {**answer, "data": [{**item, "embedding": _embedding(item).tolist()} for item in data]}
    return answer


def _embedding(item: Any) -> Any:
    return item.get("embedding") if isinstance(item, dict) else None


def _vectors(response: Response, count: int) -> list[Vector]:
    """Return the vectors of an embeddings answer in the order of its inputs."""
    data = response.body.get("data")
    if not isinstance(data, list) or len(data) != count:
        given = len(data) if isinstance(data, list) else "no"
        raise ProviderResponseError(
            f"Served entity '{response.served_entity}' gave {given} embeddings to {count} inputs."
        )
    try:
        ordered = sorted(enumerate(data), key=lambda item: item[1].get("index", item[0]))
        return [item["embedding"] for _, item in ordered]
    except (AttributeError, KeyError, TypeError) as error:
        raise ProviderResponseError(
            f"Served entity '{response.served_entity}' answered with embeddings that cannot be read: each needs "
            "an `index` and an `embedding`."
        ) from error
