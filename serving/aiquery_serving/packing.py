"""Several inputs in one embeddings request, and one vector or one error for each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from aiquery_serving.batching import halves
from aiquery_serving.errors import (
    AiQueryError,
    ContextLengthError,
    GuardrailError,
    ProviderRequestError,
    ProviderResponseError,
)
from aiquery_serving.messages import Response


async def packed(
    inputs: Sequence[str], ask: Callable[[Sequence[str]], Awaitable[Response]]
) -> list[list[float] | AiQueryError]:
    """Embed inputs: one vector or one error for each, in order.

    A request that is refused as wrong, too large or not allowed is halved until the input at fault stands
    alone. Halves that were answered are not asked again.

    Args:
        inputs: As many as one request may carry.
        ask: Sends one request with some of them.
    """
    answers: list[list[float] | AiQueryError] = []
    runs = [range(len(inputs))] if inputs else []
    while runs:
        run = runs.pop()
        try:
            answers += _vectors(await ask(inputs[run.start : run.stop]), len(run))
        except (ProviderRequestError, ContextLengthError, GuardrailError) as error:
            if len(run) == 1:
                answers.append(error)
            else:
                runs += reversed(halves(run))
        except AiQueryError as error:
            answers += [error] * len(run)
    return answers


def _vectors(response: Response, count: int) -> list[list[float]]:
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
