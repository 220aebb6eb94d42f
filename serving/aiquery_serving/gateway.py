"""The one path of every request: admit, route, wait for the entity, send, retry or fall back, record.

`Gateway` knows endpoints by name and entities by their protocol; it alone waits and retries. Its
coroutines all belong to ONE event loop. What is synchronous may be called from any thread, several at
once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aiquery_serving import traffic
from aiquery_serving.batching import halves
from aiquery_serving.clock import Clock, SystemClock
from aiquery_serving.delivery import Call, Delivery, Meter, Plan, Servings, Stop
from aiquery_serving.endpoint import Kind
from aiquery_serving.errors import (
    AiQueryError,
    CancelledCallError,
    InvalidRequestError,
    ModelError,
    ProviderRequestError,
    ProviderResponseError,
)
from aiquery_serving.leases import Leases
from aiquery_serving.messages import BatchEntity, Json, Response, Usage
from aiquery_serving.registry import Serving
from aiquery_serving.usage import OK, Invocation


class Gateway:
    """Sends requests to endpoints.

    Args:
        registry: Says what an endpoint serves.
        clock: Tells the time and waits.
        usage: Called with every invocation of a served entity when it has ended.
        draw: Returns random numbers from 0 to 1; spreads retries.
        leases: Shares rate limits with the other processes of a workspace; without, this process counts alone.
    """

    def __init__(
        self,
        registry: Servings,
        *,
        clock: Clock | None = None,
        usage: Callable[[Invocation], object] | None = None,
        draw: Callable[[], float] = random.random,
        leases: Leases | None = None,
    ) -> None:
        self._registry = registry
        self._clock = clock or SystemClock()
        self._usage = usage or (lambda _: None)
        self._delivery = Delivery(registry, self._clock, draw, leases)

    def serving(self, endpoint: str, *, wait: float | None = None) -> Serving:
        """Return what an endpoint serves now.

        Args:
            endpoint: Its name.
            wait: Seconds to wait for a first deployment that is still loading. Blocks the thread:
                never on the event loop.

        Raises:
            EndpointNotFoundError: There is none of that name.
            EndpointNotReadyError: Its first deployment is still loading.
            EndpointFailedError: Nothing of it could be loaded.
        """
        return self._registry.serving(endpoint, wait=wait)

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

        Raises:
            TooManyRequestsError: A rate limit is used up and the caller is not patient.
            JobStoppedError: The meter refused a send.
            AiQueryError: The endpoint cannot be asked, or did not answer after all retries.
        """
        call = Call(endpoint, body, key, served_entity, caller, patient=patient, rows=1, meter=meter, job=job)
        return await self._recorded(call)

    async def query(
        self,
        endpoint: str,
        payload: Mapping[str, Any],
        *,
        served_entity: str | None = None,
        caller: str = "",
        patient: bool = True,
    ) -> Json:
        """Answer one REST request body of any kind of endpoint by its REST answer (contract D).

        Raises:
            TooManyRequestsError: A rate limit is used up and the caller is not patient.
            AiQueryError: The endpoint cannot be asked, or did not answer.
        """
        response = await self.invoke(endpoint, payload, served_entity=served_entity, caller=caller, patient=patient)
        return response.body

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
    ) -> list[list[float] | AiQueryError]:
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
        answers: list[list[float] | AiQueryError] = []
        runs = [range(len(inputs))] if inputs else []
        while runs:
            run = runs.pop()
            body = {**(params or {}), "input": list(inputs[run.start : run.stop])}
            call = Call(
                endpoint, body, key, served_entity, caller, patient=patient, rows=len(run), meter=meter, job=job
            )  # fmt: skip
            try:
                answers += _vectors(await self._recorded(call), len(run))
            except ProviderRequestError as error:
                if len(run) == 1:
                    answers.append(error)
                else:
                    runs += reversed(halves(run))
            except AiQueryError as error:
                answers += [error] * len(run)
        return answers

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
        admission = self._delivery.admission(self._delivery.plan(endpoint))
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
            InvalidRequestError: The rows do not fit the model, or the endpoint is external.
            ModelError: The model raised, or served entities answer with types that do not mix.
        """
        plan = self._delivery.plan(endpoint)
        if plan.serving.config.kind is Kind.EXTERNAL:
            raise InvalidRequestError(
                f"Endpoint '{endpoint}' serves an external model, which takes requests one by one, "
                "not rows in batches: send it requests."
            )
        if len(plan.routed) == 1 or rows.num_rows == 0:
            return self._predict_part(plan, plan.routed[0], rows, params, caller)
        parts = traffic.split(self._known_routes(plan, routes, rows.num_rows))
        answers = [
            self._predict_part(plan, plan.routed[route], _taken(rows, places), params, caller)
            for route, places in parts
        ]
        return _merged(endpoint, answers, [places for _, places in parts])

    async def close(self) -> None:
        """Leave what is left of shared rate limits to other processes."""
        await self._delivery.close()

    def _known_routes(self, plan: Plan, routes: NDArray[Any] | None, count: int) -> NDArray[Any]:
        if routes is None:
            return plan.turns.draw(count)
        if not len(routes) or int(routes.max()) < len(plan.routed):
            return routes
        return np.where(routes < len(plan.routed), routes, plan.turns.draw(count))

    def _predict_part(
        self,
        plan: Plan,
        stop: Stop,
        rows: pa.RecordBatch,
        params: Mapping[str, Any] | None,
        caller: str,
    ) -> pa.Array:
        call = Call(
            plan.serving.name, {}, None, None, caller, patient=True, rows=rows.num_rows
        )  # fmt: skip
        call.entity, call.attempts = stop.name, 1
        since, status = self._now(), "Exception"
        try:
            answers = cast("BatchEntity", stop.entity).predict(rows, params)
            if len(answers) != rows.num_rows:
                raise ModelError(
                    f"Served entity '{stop.name}' gave {len(answers)} answers to {rows.num_rows} "
                    "rows: a model must answer every row once."
                )
            status = OK
        except Exception as error:
            status = type(error).__name__
            raise
        finally:
            self._record(call, plan, since, status, _NOTHING)
        return answers

    async def _recorded(self, call: Call) -> Response:
        since = self._now()
        status, usage = CancelledCallError.__name__, _NOTHING
        plan = self._delivery.plan(call.endpoint)
        try:
            response = await self._delivery.deliver(call, plan)
            status, usage = OK, response.usage
        except Exception as error:
            status = type(error).__name__
            if isinstance(error, AiQueryError):
                error.attempts = call.attempts
            raise
        finally:
            if call.attempts:
                self._record(call, plan, since, status, usage)
        return Response(
            body=response.body, usage=usage, hint=response.hint, served_entity=call.entity, attempts=call.attempts
        )

    def _record(self, call: Call, plan: Plan, since: tuple[int, float], status: str, usage: Usage) -> None:
        # What a call waited for its turn says nothing of the entity: its latency is that of the last try.
        started_ms, began = since
        began = began if call.sent is None else call.sent
        self._usage(
            Invocation(
                call.endpoint,
                call.entity,
                plan.serving.config.config_version,
                started_ms,
                (self._clock.now() - began) * 1000,
                call.rows,
                usage.prompt_tokens,
                usage.completion_tokens,
                status,
                call.attempts,
                call.caller,
                call.job,
            )
        )

    def _now(self) -> tuple[int, float]:
        return self._clock.epoch_ms(), self._clock.now()


_NOTHING = Usage()


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
