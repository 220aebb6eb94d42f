"""The one path of every request: admit, route, wait for the entity, send, retry or fall back, record.

`Gateway` knows endpoints by name and entities by their protocol; it alone waits and retries. Its
coroutines all belong to ONE event loop. What is synchronous may be called from any thread, several at
once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aiquery_serving.access import CAN_QUERY, Access
from aiquery_serving.answering import Answering
from aiquery_serving.clock import Clock, SystemClock
from aiquery_serving.delivery import Call, Delivery, Meter
from aiquery_serving.endpoint import Kind
from aiquery_serving.errors import (
    AiQueryError,
    EndpointFailedError,
    EndpointNotReadyError,
    InvalidRequestError,
    ModelError,
)
from aiquery_serving.leases import Leases
from aiquery_serving.messages import BatchEntity, Json, Response
from aiquery_serving.packing import Vector, packed, with_lists
from aiquery_serving.payload_log import PayloadLog
from aiquery_serving.plans import Plan, Servings, Stop
from aiquery_serving.recording import Recorder
from aiquery_serving.registry import Serving
from aiquery_serving.splitting import in_parts
from aiquery_serving.streaming import Streamed
from aiquery_serving.usage import Invocation


class Gateway:
    """Sends requests to endpoints.

    Args:
        registry: Says what an endpoint serves.
        clock: Tells the time and waits.
        usage: Called with every invocation of a served entity when it has ended.
        draw: Returns random numbers from 0 to 1; spreads retries.
        leases: Shares rate limits with the other processes of a workspace; without, this process counts alone.
        access: Says who may query an endpoint; without, everybody may.
        payloads: Keeps requests and answers of endpoints that log them.
    """

    def __init__(
        self,
        registry: Servings,
        *,
        clock: Clock | None = None,
        usage: Callable[[Invocation], object] | None = None,
        draw: Callable[[], float] = random.random,
        leases: Leases | None = None,
        access: Access | None = None,
        payloads: PayloadLog | None = None,
    ) -> None:
        self._access = access
        self._registry = registry
        self._clock = clock or SystemClock()
        self._recorder = Recorder(self._clock, usage or (lambda _: None), payloads)
        self._delivery = Delivery(registry, self._clock, draw, leases, access.groups_of if access else _no_groups)
        self._answering = Answering(self._delivery, self._recorder, self._planned)

    def serving(self, endpoint: str, *, wait: float | None = None, caller: str | None = None) -> Serving:
        """Return what an endpoint serves now.

        Args:
            endpoint: Its name.
            wait: Seconds to wait for a first deployment that is still loading. Blocks the thread:
                never on the event loop.
            caller: Who is going to query it; None asks for nobody.

        Raises:
            PermissionDeniedError: The caller may not query it.
            EndpointNotFoundError: There is none of that name.
            EndpointNotReadyError: Its first deployment is still loading.
            EndpointFailedError: Nothing of it could be loaded.
        """
        if caller is None:
            return self._registry.serving(endpoint, wait=wait)
        try:
            serving = self._registry.serving(endpoint, wait=wait)
        except (EndpointFailedError, EndpointNotReadyError) as error:
            self._tell(endpoint, caller, error)
        self._authorize(serving, caller)
        return serving

    async def invoke(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        *,
        key: bytes | None = None,
        served_entity: str | None = None,
        caller: str = "",
        patient: bool = True,
        meter: Meter | None = None,
        job: str = "",
        request_id: str = "",
    ) -> Response:
        """Answer one request, however long limits, retries and fallbacks take.

        Args:
            endpoint: Its name.
            body: The REST request body (contract D).
            key: What identifies the request: the same key takes the same route, always. Without
                one the endpoint's next turn decides.
            served_entity: Ask this one, whatever the traffic split says.
            caller: Whom `user` rate limits count.
            patient: Whether to wait for rate limits, or to be refused at once.
            meter: Counts every send, and may refuse it.
            job: The job that asks, for the record.
            request_id: What an inference table calls the request; made up where it is empty.

        Raises:
            PermissionDeniedError: The caller may not query the endpoint.
            TooManyRequestsError: A rate limit is used up and the caller is not patient.
            JobStoppedError: The meter refused a send.
            AiQueryError: The endpoint cannot be asked, or did not answer after all retries.
        """
        call = Call(
            endpoint, body, key=key, served_entity=served_entity, caller=caller, patient=patient, meter=meter, job=job,
            request_id=request_id,
        )  # fmt: skip
        return await self._answering.answer(call, self._planned(endpoint, caller))

    async def stream(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        *,
        served_entity: str | None = None,
        caller: str = "",
        patient: bool = True,
        request_id: str = "",
    ) -> Streamed:
        """Begin to answer one request piece by piece (contract D.5).

        Limits, retries and fallbacks come before the first piece; an answer that breaks off later raises. A served
        entity that cannot answer in pieces gives its whole answer in two.

        Args:
            endpoint: Its name.
            body: The REST request body. Its `stream_options.include_usage` asks for the chunk of usage.
            served_entity: As in `invoke`.
            caller: As in `invoke`.
            patient: As in `invoke`.
            request_id: As in `invoke`.

        Raises:
            As `invoke`, before the answer has begun.
        """
        options = body.get("stream_options")
        asked = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
        call = Call(
            endpoint, asked, served_entity=served_entity, caller=caller, patient=patient, streamed=True,
            request_id=request_id,
        )  # fmt: skip
        streamed = await self._answering.open(call, self._planned(endpoint, caller))
        streamed.usage_wanted = isinstance(options, Mapping) and bool(options.get("include_usage"))
        return streamed

    async def query(
        self,
        endpoint: str,
        payload: Mapping[str, Any],
        *,
        served_entity: str | None = None,
        caller: str = "",
        patient: bool = True,
    ) -> Json:
        """Answer one REST request body of any kind of endpoint by its REST answer (contract D), in Python's own types.

        Raises:
            TooManyRequestsError: A rate limit is used up and the caller is not patient.
            AiQueryError: The endpoint cannot be asked, or did not answer.
        """
        response = await self.invoke(endpoint, payload, served_entity=served_entity, caller=caller, patient=patient)
        return with_lists(response.body)

    async def embed(
        self,
        endpoint: str,
        inputs: Sequence[str],
        *,
        params: Mapping[str, Any] | None = None,
        key: bytes | None = None,
        served_entity: str | None = None,
        caller: str = "",
        patient: bool = True,
        meter: Meter | None = None,
        job: str = "",
    ) -> list[Vector | AiQueryError]:
        """Embed inputs in one packed request: one vector or one error for each, in order.

        A request that the provider refuses as wrong or too large is halved until the input at
        fault stands alone. Halves that were answered are not asked again.

        Args:
            endpoint: Its name.
            inputs: As many as one request may carry.
            params: The other fields of the request body.
            key: Routes the whole request.
            served_entity: As in `invoke`.
            caller: As in `invoke`.
            patient: As in `invoke`.
            meter: As in `invoke`.
            job: As in `invoke`.
        """

        async def ask(run: Sequence[str]) -> Response:
            body = {**(params or {}), "input": list(run)}
            call = Call(
                endpoint, body, key=key, served_entity=served_entity, caller=caller, patient=patient, rows=len(run),
                meter=meter, job=job,
            )  # fmt: skip
            return await self._answering.answer(call, self._planned(endpoint, caller))

        return await packed(inputs, ask)

    async def admit(
        self,
        endpoint: str,
        *,
        calls: int = 1,
        tokens: int = 0,
        caller: str = "",
        patient: bool = True,
    ) -> None:
        """Wait until the endpoint's rate limits let `calls` calls go, before `predict`.

        Raises:
            TooManyRequestsError: A rate limit is used up and the caller is not patient.
            InvalidRequestError: The tokens are more than a whole limit.
        """
        admission = self._delivery.admission(self._planned(endpoint, caller))
        if admission is None:
            return
        for number in range(calls):
            await admission.enter(caller, 0 if number else tokens, patient=patient)

    def appetite(self, endpoint: str) -> int:
        """Return how many calls the endpoint takes at once now; at least 1.

        Raises:
            AiQueryError: The endpoint does not exist, or has nothing loaded.
        """
        return self._delivery.plan(endpoint).appetite()

    def waiting(self, endpoint: str) -> str | None:
        """Say in one phrase what calls to the endpoint stand in line for now; None when none does."""
        return self._delivery.waiting(endpoint)

    def route_names(self, endpoint: str) -> tuple[str, ...]:
        """Return the served entity behind each index that `draw_routes` gives."""
        return tuple(stop.name for stop in self._delivery.plan(endpoint).routed)

    def draw_routes(self, endpoint: str, count: int) -> NDArray[np.uint8]:
        """Take the endpoint's next `count` turns: the route index of each."""
        return self._delivery.plan(endpoint).turns.draw(count)

    def predict(
        self,
        endpoint: str,
        rows: pa.RecordBatch,
        *,
        routes: NDArray[Any] | None = None,
        params: Mapping[str, Any] | None = None,
        caller: str = "",
    ) -> pa.Array:
        """Return one answer per row of a custom model's endpoint, in row order.

        Rows are split by route and every served entity gets its part as one batch. Rate limits are
        not waited for here: an endpoint that declares them is asked through `admit` first.

        Args:
            endpoint: Its name.
            rows: The rows.
            routes: The route index of each row, from `draw_routes`; drawn here by default. An index
                that a later config no longer has is drawn anew.
            params: The model's inference parameters.
            caller: Who asks, for the record.

        Raises:
            PermissionDeniedError: The caller may not query the endpoint.
            InvalidRequestError: The rows do not fit the model, or the endpoint is external.
            ModelError: The model raised, or served entities answer with types that do not mix.
        """
        plan = self._planned(endpoint, caller)
        if plan.serving.config.kind is Kind.EXTERNAL:
            raise InvalidRequestError(
                f"Endpoint '{endpoint}' serves an external model, which takes requests one by one, "
                "not rows in batches: send it requests."
            )
        return in_parts(plan, rows, routes, lambda stop, part: self._predict_part(plan, stop, part, params, caller))

    async def close(self) -> None:
        """Leave what is left of shared rate limits to other processes."""
        await self._delivery.close()

    def _predict_part(
        self,
        plan: Plan,
        stop: Stop,
        rows: pa.RecordBatch,
        params: Mapping[str, Any] | None,
        caller: str,
    ) -> pa.Array:
        body = {"dataframe_records": rows.to_pylist()} if plan.logged else {}
        call = Call(plan.serving.name, body, caller=caller, rows=rows.num_rows)
        call.entity, call.attempts = stop.name, 1
        entry = self._recorder.begin(call, plan)
        try:
            answers = _one_per_row(stop.name, cast("BatchEntity", stop.entity).predict(rows, params), rows)
        except BaseException as error:
            entry.end(error=error)
            raise
        entry.end(answer={"predictions": answers.to_pylist()} if plan.logged else None)
        return answers

    def _planned(self, endpoint: str, caller: str) -> Plan:
        """Return how requests to an endpoint go now, for one who may send it any."""
        try:
            plan = self._delivery.plan(endpoint)
        except (EndpointFailedError, EndpointNotReadyError) as error:
            self._tell(endpoint, caller, error)
        self._authorize(plan.serving, caller)
        return plan

    def _tell(self, endpoint: str, caller: str, error: EndpointFailedError | EndpointNotReadyError) -> NoReturn:
        """Raise the error of an endpoint that does not run, for those who may query it."""
        if self._access is not None and error.belongs is not None:
            self._access.require(endpoint, *error.belongs, caller, CAN_QUERY)
        raise error

    def _authorize(self, serving: Serving, caller: str) -> None:
        if self._access is not None:
            self._access.require(serving.name, serving.endpoint_id, serving.creator, caller, CAN_QUERY)


def _one_per_row(name: str, answers: pa.Array, rows: pa.RecordBatch) -> pa.Array:
    if len(answers) != rows.num_rows:
        raise ModelError(
            f"Served entity '{name}' gave {len(answers)} answers to {rows.num_rows} "
            "rows: a model must answer every row once."
        )
    return answers


def _no_groups(_: str) -> frozenset[str]:
    return frozenset()
