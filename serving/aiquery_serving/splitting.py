"""The rows of one batch to the served entities of a split, and their answers back into row order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aiquery_serving import traffic
from aiquery_serving.errors import ModelError
from aiquery_serving.plans import Plan, Stop


def in_parts(
    plan: Plan, rows: pa.RecordBatch, routes: NDArray[Any] | None, predict: Callable[[Stop, pa.RecordBatch], pa.Array]
) -> pa.Array:
    """Return one answer per row, where every served entity gets its rows as one batch.

    Args:
        plan: How requests to the endpoint go now.
        rows: The rows.
        routes: The route index of each row; None takes the endpoint's next turns.
        predict: Asks one served entity.

    Raises:
        ModelError: Served entities answer with types that do not mix.
    """
    if len(plan.routed) == 1 or rows.num_rows == 0:
        return predict(plan.routed[0], rows)
    parts = traffic.split(_known_routes(plan, routes, rows.num_rows))
    answers = [predict(plan.routed[route], _taken(rows, places)) for route, places in parts]
    return _merged(plan.serving.name, answers, [places for _, places in parts])


def _known_routes(plan: Plan, routes: NDArray[Any] | None, count: int) -> NDArray[Any]:
    if routes is None:
        return plan.turns.draw(count)
    if not len(routes) or int(routes.max()) < len(plan.routed):
        return routes
    return np.where(routes < len(plan.routed), routes, plan.turns.draw(count))


def _taken(rows: pa.RecordBatch, places: NDArray[np.intp]) -> pa.RecordBatch:
    return rows if len(places) == rows.num_rows else rows.take(pa.array(places))


def _merged(endpoint: str, answers: list[pa.Array], places: list[NDArray[np.intp]]) -> pa.Array:
    """Put the answers of all parts back into row order."""
    if len(answers) == 1:
        return answers[0]
    order = np.concatenate(places)
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.arange(len(order))
    return pa.concat_arrays(_of_one_type(endpoint, answers)).take(pa.array(back))


def _of_one_type(endpoint: str, answers: list[pa.Array]) -> list[pa.Array]:
    """Bring the answers of several models to a common type, as INT and DOUBLE have one."""
    if len({answer.type for answer in answers}) == 1:
        return answers
    schemas = [pa.schema([("answer", answer.type)]) for answer in answers]
    try:
        common = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        return [answer.cast(common) for answer in answers]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        types = " and ".join(sorted({str(answer.type) for answer in answers}))
        raise ModelError(
            f"The served entities of endpoint '{endpoint}' answer with types that do not mix: "
            f"{types}. Give the models one output type, or route all traffic to one of them."
        ) from error
