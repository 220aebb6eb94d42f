"""What a SQL engine asks of us: types when a statement is bound, answers when its rows come."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa

from aiquery_serving.endpoint import Kind
from aiquery_serving.errors import AiQueryError, CancelledCallError, EndpointNotReadyError, ModelError
from aiquery_serving.messages import EMBEDDINGS, BatchEntity
from aiquery_serving.registry import Serving
from aiquery_serving.traffic import choose
from aiquery_udfs import rows
from aiquery_udfs.arguments import BoundCall, EndpointInfo, bind
from aiquery_udfs.engine_thread import SLICE, Cancelled, never
from aiquery_udfs.errors import InvalidArgumentError, UnsupportedRequestError
from aiquery_udfs.execution import Execution
from aiquery_udfs.flights import Request
from aiquery_udfs.look_ahead import LookAhead
from aiquery_udfs.memo import QueryId
from aiquery_udfs.predictions import Predictions, is_split
from aiquery_udfs.return_type import structure
from aiquery_udfs.runs import Run

#: How long a statement waits, while it is bound, for an endpoint whose first deployment is loading.
FIRST_DEPLOYMENT_SECONDS: Final = 300.0
#: The 2023 spelling: `ai_query('ep', request, 'returnType', 'STRING')` (contract A.1).
_LEGACY_KEYS: Final = ("returnType", "failOnError")


class Statements:
    """Binds the ai_query calls of statements and answers their chunks of rows."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._lock = threading.Lock()
        self._calls: list[BoundCall] = []
        self._numbers: dict[tuple[str, ...], int] = {}
        self._predictions = Predictions(execution)

    def structure(self, arguments: tuple[str, ...], *, cancelled: Cancelled = never) -> str:
        """Return the result's type as the structure text that DuckDB's `from_json` takes."""
        call = self._calls[self.call(arguments, cancelled=cancelled)]
        return structure(call.return_type, call.fail_on_error)

    def family(self, arguments: tuple[str, ...], *, cancelled: Cancelled = never) -> str:
        """Return the child of `rows.ANSWER_TYPE` that will hold the answers."""
        call = self._calls[self.call(arguments, cancelled=cancelled)]
        return rows.family(call.return_type.arrow, fail_on_error=call.fail_on_error)

    def call(self, arguments: tuple[str, ...], *, cancelled: Cancelled = never) -> int:
        """Bind a call and return its number.

        Args:
            arguments: endpoint, returnType, failOnError, type of request, modelParameters as JSON,
                responseFormat, type of files; empty for an argument that is NULL.
            cancelled: Looked at every 50 ms while the endpoint's first deployment is loading.

        Raises:
            AiFunctionError: An argument is wrong (contract A.9), or no such endpoint exists.
        """
        call = self._bind(arguments, cancelled)
        with self._lock:
            number = self._numbers.get(arguments)
            if number is None or self._calls[number] != call:
                number = self._numbers[arguments] = len(self._calls)
                self._calls.append(call)
            return number

    def is_split(self, endpoint: str) -> bool:
        """Say whether rows of a custom endpoint may go to more than one served entity."""
        return is_split(self._serving(endpoint))

    def _bind(self, arguments: Sequence[str], cancelled: Cancelled) -> BoundCall:
        endpoint, return_type, fail_on_error, request, parameters, response_format, files = arguments
        if return_type in _LEGACY_KEYS:
            pairs = [return_type, fail_on_error, parameters.strip('"'), response_format]
            named = dict(zip(pairs[::2], pairs[1::2], strict=True))
            return_type, fail_on_error = (named.get(key, "") for key in _LEGACY_KEYS)
            parameters = response_format = ""
        if not endpoint:
            raise InvalidArgumentError("endpoint", "NULL", ("the name of a serving endpoint",))
        return bind(
            _describe(self._serving(endpoint, cancelled)),
            request_type=request,
            return_type=return_type or None,
            fail_on_error=_truth(fail_on_error),
            model_parameters_json=parameters or None,
            response_format=response_format or None,
            has_files=_has_images(files),
        )

    def _serving(self, endpoint: str, cancelled: Cancelled = never) -> Serving:
        """Return what an endpoint serves, when its first deployment has loaded."""
        for _ in range(round(FIRST_DEPLOYMENT_SECONDS / SLICE)):
            try:
                return self._execution.gateway.serving(endpoint, wait=SLICE, caller=self._execution.caller)
            except EndpointNotReadyError as error:
                loading = error
                if cancelled():
                    msg = f"The query was interrupted while serving endpoint {endpoint!r} was loading."
                    raise CancelledCallError(msg) from error
            except AiQueryError as error:
                raise rows.ai_error(error) from error
        raise rows.ai_error(loading) from loading

    def answer(
        self,
        call_number: int,
        request: pa.Array,
        files: pa.Array,
        hashes: pa.Array,
        *,
        query: QueryId,
        cancelled: Cancelled,
        run: Run | None = None,
        ahead: LookAhead | None = None,
    ) -> pa.Array:
        """Answer a chunk of rows.

        Args:
            call_number: What `call` returned for the statement.
            request: The rows' requests, of any type.
            files: The rows' images, or nulls.
            hashes: 64 bits that tell requests apart, where `is_split` was true when planned; otherwise nulls.
            query: The statement that asks.
            cancelled: Looked at every 50 ms while waiting.
            run: What the query asked for beside its SQL.
            ahead: What else the statement will ask for.

        Returns:
            A struct array of `rows.ANSWER_TYPE`, one value per row.

        Raises:
            AiFunctionError: A row's error, when `failOnError` is true.
            CancelledCallError: The statement was interrupted.
        """
        call = self._calls[call_number]
        lenient = run is not None and run.record_errors and call.fail_on_error
        asked = replace(call, fail_on_error=False) if lenient else call
        with run.waiting() if run is not None else nullcontext():
            if call.kind is Kind.CUSTOM:
                answers = self._predictions.answer(asked, request, hashes, query=query, cancelled=cancelled)
            else:
                answers = self._answered(asked, request, files, query=query, cancelled=cancelled, run=run, ahead=ahead)
        if run is not None:
            run.tally.rows += len(request)
        return rows.without_errors(call, answers) if lenient else answers

    def _answered(
        self,
        call: BoundCall,
        request: pa.Array,
        files: pa.Array,
        *,
        query: QueryId,
        cancelled: Cancelled,
        run: Run | None,
        ahead: LookAhead | None,
    ) -> pa.Array:
        keys, asked = self._requests(call, request, files)
        try:
            answers = self._execution.answer(call, asked, query=query, cancelled=cancelled, run=run)
        except AiQueryError as error:
            raise rows.ai_error(error) from error
        if ahead is not None:
            ahead.used(asked)
        column = rows.embedding_column if call.task == EMBEDDINGS else rows.text_column
        values = column(call, keys, answers)
        if run is not None and run.record_errors:
            run.tally.misfits.update(rows.misfits(call, keys, answers, values))
        return values

    def failures(
        self,
        call_number: int,
        request: pa.Array,
        files: pa.Array,
        hashes: pa.Array,
        *,
        query: QueryId,
        cancelled: Cancelled,
        run: Run | None = None,
        ahead: LookAhead | None = None,
    ) -> pa.Array:
        """Say of a chunk of rows why they have no answer, as `rows.ERROR_TYPE`; NULL for those that have one."""
        call = replace(self._calls[call_number], fail_on_error=False)
        if call.kind is Kind.CUSTOM:
            answers = self._predictions.answer(call, request, hashes, query=query, cancelled=cancelled)
            texts = rows.error_texts(call, answers)
            return rows.failure_column({row: ModelError(text) for row, text in texts.items()}, len(request))
        keys, asked = self._requests(call, request, files)
        try:
            found = self._execution.answer(call, asked, query=query, cancelled=cancelled, run=run)
        except AiQueryError as error:
            raise rows.ai_error(error) from error
        if ahead is not None:
            ahead.used(asked)
        return rows.failure_column(rows.row_errors(call, keys, found), len(request))

    def requests(self, call_number: int, request: pa.Array, files: pa.Array) -> tuple[BoundCall, dict[bytes, Request]]:
        """Return the distinct requests of a chunk of rows; none for a custom model, which takes rows as they are."""
        call = replace(self._calls[call_number], fail_on_error=False)
        if call.kind is Kind.CUSTOM:
            return call, {}
        return call, self._requests(call, request, files)[1]

    def pending(self, call_number: int, count: int) -> pa.Array:
        """Return the column of rows whose answers are not known: NULL, so that nothing is decided by them."""
        call = self._calls[call_number]
        return rows.answer_column(call, pa.nulls(count, call.return_type.arrow), {})

    def settled(self, call_number: int, request: pa.Array, files: pa.Array, query: QueryId) -> pa.Array | None:
        """Return the answers of rows that the query has asked before, or None when it has not asked them all."""
        call = self._calls[call_number]
        keys, asked = self._requests(call, request, files)
        answers = self._execution.remembered(asked, query)
        column = rows.embedding_column if call.task == EMBEDDINGS else rows.text_column
        return column(call, keys, answers) if len(answers) == len(asked) else None

    def is_custom(self, call_number: int) -> bool:
        """Say whether a call goes to a custom model, which takes batches of rows rather than requests."""
        return self._calls[call_number].kind is Kind.CUSTOM

    def _requests(
        self, call: BoundCall, request: pa.Array, files: pa.Array
    ) -> tuple[list[rows.RowKey], dict[bytes, Request]]:
        images = files if pa.types.is_binary(files.type) else None
        keys, bodies = rows.requests(call, request, images)
        return keys, {key: Request(body, route_key) for key, (body, route_key) in bodies.items()}

    def served(self, endpoint: str, request: pa.Array, hashes: pa.Array, *, query: QueryId) -> pa.Array:
        """Name the served entity that answers each row in this query (a fallback may step in for it)."""
        serving = self._serving(endpoint)
        if serving.config.kind is Kind.CUSTOM:
            names = self._execution.gateway.route_names(endpoint)
            routes = self._predictions.draw(endpoint, hashes, query)
        else:
            names = tuple(route.served_entity_name for route in serving.config.routes)
            routes = np.array([self._choose(serving, text) for text in request.to_pylist()], dtype=np.intp)
        return pa.array(np.array(names)[routes], pa.string(), mask=~_valid(request))

    def _choose(self, serving: Serving, text: str | None) -> int:
        return choose(serving.config.routes, rows.route_key(text or ""))


def _valid(request: pa.Array) -> np.ndarray:
    return np.asarray(request.is_valid().to_numpy(zero_copy_only=False))


def _has_images(kind: str) -> bool:
    """Read the type of the argument `files`; what is no bytes must not be left out in silence."""
    if kind not in ('"NULL"', "BLOB"):
        raise UnsupportedRequestError(
            f"The argument files must be of type BINARY, but found {kind}. Give the bytes of one image a row, "
            "as the column content of read_blob() has them."
        )
    return kind == "BLOB"


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
