"""What a SQL engine asks of us: types when a statement is bound, answers when its rows come."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aiquery_serving.endpoint import Kind
from aiquery_serving.errors import AiQueryError, InvocationError
from aiquery_serving.messages import EMBEDDINGS, BatchEntity
from aiquery_serving.registry import Serving
from aiquery_serving.traffic import choose
from aiquery_udfs import rows
from aiquery_udfs.arguments import BoundCall, EndpointInfo, bind
from aiquery_udfs.errors import InvalidArgumentError
from aiquery_udfs.execution import Execution, Request, engine_thread
from aiquery_udfs.memo import QueryId
from aiquery_udfs.return_type import structure

#: How long a statement waits, while it is bound, for an endpoint whose first deployment is loading.
FIRST_DEPLOYMENT_SECONDS: Final = 300.0
#: Rows of one batch that are searched out one by one when a custom model raises.
MAX_BAD_ROWS: Final = 64
#: Distinct requests of which a traffic split remembers the served entity, about 100 bytes each.
REMEMBERED_ROUTES: Final = 1_000_000
#: The 2023 spelling: `ai_query('ep', request, 'returnType', 'STRING')` (contract A.1).
_LEGACY_KEYS: Final = ("returnType", "failOnError")

Cancelled = Callable[[], bool]


class Statements:
    """Binds the ai_query calls of statements and answers their chunks of rows."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._lock = threading.Lock()
        self._calls: list[BoundCall] = []
        self._numbers: dict[tuple[str, ...], int] = {}
        self._routes: OrderedDict[tuple[QueryId, str], dict[int, int]] = OrderedDict()

    def structure(self, *arguments: str) -> str:
        """Return the result's type as the structure text that DuckDB's `from_json` takes."""
        call = self._calls[self.call(*arguments)]
        return structure(call.return_type, call.fail_on_error)

    def family(self, *arguments: str) -> str:
        """Return the child of `rows.ANSWER_TYPE` that will hold the answers."""
        call = self._calls[self.call(*arguments)]
        return rows.family(call.return_type.arrow, fail_on_error=call.fail_on_error)

    def call(self, *arguments: str) -> int:
        """Bind a call and return its number.

        Args:
            arguments: endpoint, returnType, failOnError, type of request, modelParameters as JSON,
                responseFormat, type of files; empty for an argument that is NULL.

        Raises:
            AiFunctionError: An argument is wrong (contract A.9), or no such endpoint exists.
        """
        call = self._bind(arguments)
        with self._lock:
            number = self._numbers.get(arguments)
            if number is None or self._calls[number] != call:
                number = self._numbers[arguments] = len(self._calls)
                self._calls.append(call)
            return number

    def is_split(self, endpoint: str) -> bool:
        """Say whether rows of a custom endpoint may go to more than one served entity."""
        serving = self._serving(endpoint)
        shares = [route.traffic_percentage for route in serving.config.routes]
        return serving.config.kind is Kind.CUSTOM and sum(share > 0 for share in shares) > 1

    def _bind(self, arguments: Sequence[str]) -> BoundCall:
        endpoint, return_type, fail_on_error, request, parameters, response_format, files = arguments
        if return_type in _LEGACY_KEYS:
            pairs = [return_type, fail_on_error, parameters.strip('"'), response_format]
            named = dict(zip(pairs[::2], pairs[1::2], strict=True))
            return_type, fail_on_error = (named.get(key, "") for key in _LEGACY_KEYS)
            parameters = response_format = ""
        return bind(
            _describe(self._serving(endpoint)),
            request_type=request,
            return_type=return_type or None,
            fail_on_error=_truth(fail_on_error),
            model_parameters_json=parameters or None,
            response_format=response_format or None,
            has_files=files != '"NULL"',
        )

    def _serving(self, endpoint: str) -> Serving:
        try:
            return self._execution.gateway.serving(endpoint, wait=FIRST_DEPLOYMENT_SECONDS)
        except AiQueryError as error:
            raise rows.ai_error(error) from error

    def answer(
        self,
        call_number: int,
        request: pa.Array,
        files: pa.Array,
        hashes: pa.Array,
        *,
        query: QueryId,
        cancelled: Cancelled,
    ) -> pa.Array:
        """Answer a chunk of rows.

        Args:
            call_number: What `call` returned for the statement.
            request: The rows' requests, of any type.
            files: The rows' images, or nulls.
            hashes: 64 bits that tell requests apart, where `is_split` was true when planned; otherwise nulls.
            query: The statement that asks.
            cancelled: Looked at every 50 ms while waiting.

        Returns:
            A struct array of `rows.ANSWER_TYPE`, one value per row.

        Raises:
            AiFunctionError: A row's error, when `failOnError` is true.
            CancelledCallError: The statement was interrupted.
        """
        call = self._calls[call_number]
        if call.kind is Kind.CUSTOM:
            return self._predict(call, request, hashes, query, cancelled)
        images = files if pa.types.is_binary(files.type) else None
        keys, bodies = rows.requests(call, request, images)
        asked = {key: Request(body, route_key) for key, (body, route_key) in bodies.items()}
        try:
            answers = self._execution.answer(call, asked, query=query, cancelled=cancelled)
        except AiQueryError as error:
            raise rows.ai_error(error) from error
        column = rows.embedding_column if call.task == EMBEDDINGS else rows.text_column
        return column(call, keys, answers)

    def _predict(
        self, call: BoundCall, request: pa.Array, hashes: pa.Array, query: QueryId, cancelled: Cancelled
    ) -> pa.Array:  # fmt: skip
        present = request.is_valid() if request.null_count else None
        if present is not None:
            request, hashes = request.filter(present), hashes.filter(present)
        batch = _record_batch(request)
        routes = self._draw(call.endpoint, hashes, query) if self.is_split(call.endpoint) else None
        errors: dict[int, AiQueryError] = {}
        try:
            self._admit(call, cancelled)
            predictions = self._parts(call, batch, routes, errors)
        except AiQueryError as error:
            raise rows.ai_error(error) from error
        if present is not None:
            places = pc.subtract(pc.cumulative_sum(present.cast(pa.int32())), 1)
            predictions = predictions.take(pc.if_else(present, places, None))
            kept = np.flatnonzero(present.to_numpy(zero_copy_only=False))
            errors = {int(kept[row]): error for row, error in errors.items()}
        return rows.prediction_column(call, predictions, errors)

    def _admit(self, call: BoundCall, cancelled: Cancelled) -> None:
        """Wait until the endpoint's rate limits let one more invocation through."""
        gateway = self._execution.gateway
        if gateway.serving(call.endpoint).rate_limits:
            caller = self._execution.caller
            engine_thread.run(gateway.admit(call.endpoint, caller=caller), cancelled)

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
            return execution.gateway.predict(call.endpoint, batch, routes=routes, caller=execution.caller)
        except InvocationError as error:
            if call.fail_on_error:
                raise
            if batch.num_rows == 1 or len(errors) >= MAX_BAD_ROWS:
                errors.update(dict.fromkeys(range(first, first + batch.num_rows), error))
                return pa.nulls(batch.num_rows, call.return_type.arrow)
        half = batch.num_rows // 2
        halves = [
            self._parts(call, batch.slice(start, rows_), part, errors, first + start)
            for start, rows_, part in (
                (0, half, None if routes is None else routes[:half]),
                (half, batch.num_rows - half, None if routes is None else routes[half:]),
            )
        ]
        return pa.concat_arrays([half.cast(call.return_type.arrow) for half in halves])

    def _draw(self, endpoint: str, hashes: pa.Array, query: QueryId) -> np.ndarray:
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

    def served(self, endpoint: str, request: pa.Array, hashes: pa.Array, *, query: QueryId) -> pa.Array:
        """Name the served entity that answers each row in this query (a fallback may step in for it)."""
        serving = self._serving(endpoint)
        if serving.config.kind is Kind.CUSTOM:
            names = self._execution.gateway.route_names(endpoint)
            routes = self._draw(endpoint, hashes, query)
        else:
            names = tuple(route.served_entity_name for route in serving.config.routes)
            routes = np.array([self._choose(serving, text) for text in request.to_pylist()], dtype=np.intp)
        return pa.array(np.array(names)[routes], pa.string(), mask=~_valid(request))

    def _choose(self, serving: Serving, text: str | None) -> int:
        return choose(serving.config.routes, rows.route_key(text or ""))


def _valid(request: pa.Array) -> np.ndarray:
    return np.asarray(request.is_valid().to_numpy(zero_copy_only=False))


def _record_batch(request: pa.Array) -> pa.RecordBatch:
    """Spread a struct over columns; any other type becomes the one input of the model."""
    if pa.types.is_struct(request.type):
        return pa.RecordBatch.from_struct_array(request)
    return pa.RecordBatch.from_arrays([request], ["request"])


def _truth(text: str) -> bool | None:
    """Read a BOOLEAN that came as text; anything else is for `bind` to refuse."""
    known = {"": None, "true": True, "false": False}
    if text.lower() not in known:
        raise InvalidArgumentError("failOnError", text, ("true", "false"))
    return known[text.lower()]


def _describe(serving: Serving) -> EndpointInfo:
    """Tell what binding needs to know of an endpoint."""
    config = serving.config
    entity = next(iter(serving.entities.values()))
    batch = entity if isinstance(entity, BatchEntity) else None
    models = [served.external_model for served in config.served_entities]
    return EndpointInfo(
        name=serving.name,
        kind=config.kind,
        task=config.task,
        model_names=tuple(model.name for model in models if model),
        input_schema=batch.input_schema if batch else None,
        output_type=batch.output_type if batch else None,
    )
