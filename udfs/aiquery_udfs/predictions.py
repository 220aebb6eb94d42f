"""Answers chunks of rows by custom models: NULLs, traffic splits, rows on which a model raises."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aiquery_serving.endpoint import Kind
from aiquery_serving.errors import AiQueryError, InvocationError
from aiquery_serving.registry import Serving
from aiquery_udfs import rows
from aiquery_udfs.arguments import BoundCall
from aiquery_udfs.casting import cast_arrow
from aiquery_udfs.engine_thread import Cancelled, engine_thread
from aiquery_udfs.execution import Execution
from aiquery_udfs.memo import QueryId

#: When so many rows of a batch have all failed, a model is taken to raise on the others as well.
HOPELESS_ROWS: Final = 64
#: Distinct requests of which a traffic split remembers the served entity, about 100 bytes each.
REMEMBERED_ROUTES: Final = 1_000_000


def is_split(serving: Serving) -> bool:
    """Say whether rows of a custom endpoint may go to more than one served entity."""
    live = sum(route.traffic_percentage > 0 for route in serving.config.routes)
    return serving.config.kind is Kind.CUSTOM and live > 1


class Predictions:
    """Hands whole chunks of rows to custom models, on the engine's own threads."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._lock = threading.Lock()
        self._routes: OrderedDict[tuple[QueryId, str], dict[int, int]] = OrderedDict()

    def answer(
        self, call: BoundCall, request: pa.Array, hashes: pa.Array, *, query: QueryId, cancelled: Cancelled
    ) -> pa.Array:
        """Answer a chunk of rows; see `Statements.answer`."""
        present = request.is_valid() if request.null_count else None
        if present is not None:
            request, hashes = request.filter(present), hashes.filter(present)
        errors: dict[int, AiQueryError] = {}
        try:
            predictions = self._predict(call, request, hashes, query=query, cancelled=cancelled, errors=errors)
        except AiQueryError as error:
            raise rows.ai_error(error) from error
        if present is not None:
            places = pc.subtract(pc.cumulative_sum(present.cast(pa.int32())), 1)
            predictions = predictions.take(pc.if_else(present, places, None))
            kept = np.flatnonzero(present.to_numpy(zero_copy_only=False))
            errors = {int(kept[row]): error for row, error in errors.items()}
        return rows.prediction_column(call, predictions, errors)

    def _predict(
        self,
        call: BoundCall,
        request: pa.Array,
        hashes: pa.Array,
        *,
        query: QueryId,
        cancelled: Cancelled,
        errors: dict[int, AiQueryError],
    ) -> pa.Array:
        gateway = self._execution.gateway
        serving = gateway.serving(call.endpoint)
        if serving.rate_limits:
            engine_thread.run(gateway.admit(call.endpoint, caller=self._execution.caller), cancelled)
        routes = self.draw(call.endpoint, hashes, query) if is_split(serving) else None
        return self._parts(call, _record_batch(request), routes, errors)

    def _parts(
        self,
        call: BoundCall,
        batch: pa.RecordBatch,
        routes: np.ndarray | None,
        errors: dict[int, AiQueryError],
        first: int = 0,
    ) -> pa.Array:
        """Predict a batch; where failOnError is false, search out the rows on which the model raises."""
        execution = self._execution
        try:
            found = execution.gateway.predict(call.endpoint, batch, routes=routes, caller=execution.caller)
        except InvocationError as error:
            if call.fail_on_error:
                raise
            all_failed = first >= HOPELESS_ROWS and len(errors) == first
            if batch.num_rows == 1 or all_failed:
                errors.update(dict.fromkeys(range(first, first + batch.num_rows), error))
                return pa.nulls(batch.num_rows, call.return_type.arrow)
        else:
            # Cast here: the answers of two halves may be of two types that only the returnType unites.
            values, misfits = cast_arrow(found, call.return_type)
            errors.update({first + row: misfit for row, misfit in misfits.items()})
            return values
        half = batch.num_rows // 2
        before, after = (None, None) if routes is None else (routes[:half], routes[half:])
        return pa.concat_arrays(
            [
                self._parts(call, batch.slice(0, half), before, errors, first),
                self._parts(call, batch.slice(half), after, errors, first + half),
            ]
        )

    def draw(self, endpoint: str, hashes: pa.Array, query: QueryId) -> np.ndarray:
        """Draw a route for each row: the same one for the same request of the same query.

        DuckDB may evaluate an expression twice for one row; drawn twice, the row could pass a filter on one
        model's answer and show the other's.
        """
        if hashes.null_count:  # the endpoint was split after the statement was planned
            return np.asarray(self._execution.gateway.draw_routes(endpoint, len(hashes)))
        keys: list[int] = hashes.to_pylist()
        with self._lock:
            known = self._remembered(query, endpoint)
            fresh = [key for key in dict.fromkeys(keys) if key not in known]
            drawn = self._execution.gateway.draw_routes(endpoint, len(fresh))
            known.update(zip(fresh, drawn.tolist(), strict=True))
            return np.array([known[key] for key in keys], dtype=np.intp)

    def _remembered(self, query: QueryId, endpoint: str) -> dict[int, int]:
        """Return the routes that a query has drawn so far; older queries' are forgotten first."""
        known = self._routes.setdefault((query, endpoint), {})
        self._routes.move_to_end((query, endpoint))
        if len(known) > REMEMBERED_ROUTES:
            known.clear()
        while len(self._routes) > 1 and sum(map(len, self._routes.values())) > REMEMBERED_ROUTES:
            self._routes.popitem(last=False)
        return known


def _record_batch(request: pa.Array) -> pa.RecordBatch:
    """Spread a struct over columns; any other type becomes the one input of the model."""
    if pa.types.is_struct(request.type):
        return pa.RecordBatch.from_struct_array(request)
    return pa.RecordBatch.from_arrays([request], ["request"])
