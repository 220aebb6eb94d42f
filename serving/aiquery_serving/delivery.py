"""How one request reaches a served entity: admission, route, lane, retries, fallback.

A `Plan` is what the state of an endpoint means for its requests; `Delivery` keeps one per endpoint and
takes requests along it. What lanes, limits and turns have learned outlives a plan wherever the new
config declares the same.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, cast

from aiquery_serving import retry, traffic
from aiquery_serving.admission import Admission
from aiquery_serving.batching import OutputSizes, estimated_tokens
from aiquery_serving.clock import Clock
from aiquery_serving.endpoint import Kind, ServedEntity
from aiquery_serving.errors import (
    AiQueryError,
    EndpointNotFoundError,
    ProviderRateLimitError,
    TooManyRequestsError,
)
from aiquery_serving.leases import Leases
from aiquery_serving.messages import BatchEntity, Entity, RequestEntity, Response, Usage
from aiquery_serving.pacing import Lane, Permit, Turns
from aiquery_serving.registry import Serving


class Servings(Protocol):
    """What the gateway asks of a registry."""

    def serving(self, name: str, *, wait: float | None = None) -> Serving:
        """Return what an endpoint serves now; the same object for as long as it serves the same."""
        ...


class Meter(Protocol):
    """What a job lets every one of its sends be counted by."""

    def reserve(self, served: ServedEntity, body: Mapping[str, Any]) -> object:
        """Count a send that is about to happen; `settle` gets what this returns. On the event loop, so be quick.

        Raises:
            JobStoppedError: The job may not send any more. The caller gets it at once.
        """
        ...

    def settle(self, reserved: object, usage: Usage | None) -> None:
        """Correct a reservation: to what the answer used, or None when the try failed or was cancelled."""
        ...


class _Unmetered:
    """The meter of whoever has none."""

    def reserve(self, served: ServedEntity, body: Mapping[str, Any]) -> None:
        """Let every send go."""

    def settle(self, reserved: object, usage: Usage | None) -> None:
        """Count nothing."""


_UNMETERED = _Unmetered()


class Stop:
    """One served entity of one config, as the gateway reaches it."""

    __slots__ = ("entity", "lane", "name", "send", "served")

    def __init__(self, served: ServedEntity, entity: Entity, lane: Lane) -> None:
        self.name = served.name
        self.served, self.entity, self.lane = served, entity, lane
        self.send = entity.send if isinstance(entity, RequestEntity) else self._query

    async def _query(self, body: Mapping[str, Any]) -> Response:
        """Ask a model in this process: on a thread, for it may compute for long."""
        entity = cast("BatchEntity", self.entity)
        return Response(body=await asyncio.to_thread(entity.query, body))


class Plan:
    """What the gateway derives from one state of an endpoint, and keeps until the next."""

    __slots__ = ("admission", "routed", "serving", "sizes", "stops", "turns")

    admission: Admission
    sizes: OutputSizes
    stops: dict[str, Stop]
    turns: Turns

    def __init__(self, serving: Serving, before: Plan | None, clock: Clock, leases: Leases | None) -> None:
        config = serving.config
        self.serving = serving
        self.sizes = before.sizes if before else OutputSizes()
        self.admission = before.admission if before else Admission(serving.name, (), clock, leases)
        kept = {stop.name: stop for stop in before.stops.values()} if before else {}
        self.stops = {
            served.name: _stop(served, serving.entities[served.name], kept, clock) for served in config.served_entities
        }
        same = before is not None and before.turns.routes == config.routes
        self.turns = before.turns if before and same else Turns(config.routes)
        self.routed = [self.stops[route.served_entity_name] for route in config.routes]

    def appetite(self) -> int:
        """Return how many calls the served entities that have traffic take at once, as far as is known now."""
        if self.serving.config.kind is Kind.CUSTOM:
            return 1
        live = {route.served_entity_name for route in self.turns.routes if route.traffic_percentage}
        return max(1, sum(int(stop.lane.window.size) for stop in self.routed if stop.name in live))

    def stop(self, name: str) -> Stop:
        """Return the served entity of that name.

        Raises:
            EndpointNotFoundError: The endpoint has none.
        """
        found = self.stops.get(name)
        if found is None:
            raise EndpointNotFoundError(
                f"Endpoint '{self.serving.name}' has no served entity '{name}'. It serves: {', '.join(self.stops)}."
            )
        return found


def _stop(served: ServedEntity, entity: Entity, kept: Mapping[str, Stop], clock: Clock) -> Stop:
    """Reach an entity; one whose declaration is unchanged keeps what its lane has learned."""
    before = kept.get(served.name)
    if before is not None and before.served == served:
        return Stop(served, entity, before.lane)
    return Stop(served, entity, Lane(served.name, served.concurrency, clock))


class Call:
    """One request on its way."""

    __slots__ = (
        "attempts", "body", "caller", "endpoint", "entity", "job", "key", "meter", "patient", "rows", "sent",
        "served_entity",
    )  # fmt: skip

    def __init__(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        key: bytes | None,
        served_entity: str | None,
        caller: str,
        *,
        patient: bool,
        rows: int,
        meter: Meter | None = None,
        job: str = "",
    ) -> None:
        self.endpoint, self.body, self.key = endpoint, body, key
        self.served_entity, self.caller, self.patient = served_entity, caller, patient
        self.meter, self.job = meter or _UNMETERED, job
        self.rows, self.attempts, self.entity = rows, 0, ""
        self.sent: float | None = None


class Delivery:
    """Takes requests to served entities. Coroutines on one event loop; `plan` from any thread.

    Args:
        registry: Says what an endpoint serves.
        clock: Tells the time and waits.
        draw: Returns random numbers from 0 to 1; spreads retries.
        leases: What this process holds of rate limits that others share.
    """

    def __init__(
        self, registry: Servings, clock: Clock, draw: Callable[[], float], leases: Leases | None = None
    ) -> None:
        self._registry, self._clock, self._draw, self._leases = registry, clock, draw, leases
        self._plans: dict[str, Plan] = {}
        self._planning = threading.Lock()

    def plan(self, endpoint: str) -> Plan:
        """Return how requests to an endpoint go now.

        Raises:
            AiQueryError: The endpoint does not exist, or has nothing loaded.
        """
        serving = self._registry.serving(endpoint)
        plan = self._plans.get(endpoint)
        if plan is not None and plan.serving is serving:
            return plan
        with self._planning:
            plan = Plan(serving, self._plans.get(endpoint), self._clock, self._leases)
            self._plans[endpoint] = plan
        return plan

    async def close(self) -> None:
        """Give back what others may have of shared limits."""
        if self._leases is not None:
            await self._leases.close()

    def waiting(self, endpoint: str) -> str | None:
        """Say in words what calls to an endpoint stand in line for, if any do. Only reads."""
        plan = self._plans.get(endpoint)
        if plan is None:
            return None
        holdups = (stop.lane.holdup() for stop in plan.stops.values())
        return plan.admission.holdup() or next(filter(None, holdups), None)

    def admission(self, plan: Plan) -> Admission | None:
        """Return what admits calls, if anything is limited. On the loop: plans are made anywhere."""
        declared = plan.serving.rate_limits
        if plan.admission.declared is not declared:
            plan.admission.declare(declared)
        return plan.admission if declared else None

    async def deliver(self, call: Call, plan: Plan) -> Response:
        """Answer a call, however long limits, retries and fallbacks take.

        Raises:
            TooManyRequestsError: A rate limit is used up and the caller is not patient.
            AiQueryError: No entity answered after all retries.
        """
        admission = self.admission(plan)
        if admission is None:
            return await self._delivered(call, plan)
        tokens = 0
        if admission.limits.counts_tokens:
            tokens = self._reserved(call, plan, admission.limits.largest(call.caller))
        reservation = await admission.enter(call.caller, tokens, patient=call.patient)
        try:
            response = await self._delivered(call, plan)
        except BaseException as error:
            if not call.attempts:
                admission.unused(reservation)
            elif isinstance(error, AiQueryError):
                admission.settle(reservation, 0)
            raise
        # A provider that does not count leaves the estimate standing.
        admission.settle(reservation, response.usage.total_tokens or tokens)
        return response

    def _reserved(self, call: Call, plan: Plan, largest: float) -> int:
        """Estimate what a call will use; only its own text can make it too large for a limit."""
        prompt = estimated_tokens(call.body)
        output = plan.sizes.expected(call.body) if "input" not in call.body else 0
        return prompt if prompt > largest else int(min(largest, prompt + output))

    async def _delivered(self, call: Call, plan: Plan) -> Response:
        """Send until there is an answer, or an error that more sending does not cure."""
        policy = retry.PATIENT if call.patient else retry.INTERACTIVE
        first = self._first(call, plan)
        tries = 0
        while True:
            try:
                return await self._tried(call, plan, first)
            except AiQueryError as error:
                busy = isinstance(error, (ProviderRateLimitError, TooManyRequestsError))
                wait = retry.decide(error, tries, self._draw(), policy)
                if wait is None or (busy and not call.patient):
                    raise
            if not busy:
                tries += 1
                await self._clock.sleep(wait)
            plan = self.plan(call.endpoint)
            # A config that came meanwhile may not know the entity any more.
            first = plan.stops.get(first.name) or self._first(call, plan)

    def _first(self, call: Call, plan: Plan) -> Stop:
        """Choose the served entity that should answer."""
        if call.served_entity is not None:
            return plan.stop(call.served_entity)
        if len(plan.routed) == 1:
            return plan.routed[0]
        if call.key is not None:
            return plan.routed[traffic.choose(plan.turns.routes, call.key)]
        return plan.routed[plan.turns.next()]

    async def _tried(self, call: Call, plan: Plan, first: Stop) -> Response:
        """Send once: to the chosen entity and, where fallback is on, to the others after it."""
        if not plan.serving.fallback or call.served_entity is not None:
            return await self._sent(call, plan, first)
        others = [stop for stop in plan.stops.values() if stop is not first]
        order = [first, *others]
        ready = [stop for stop in order if not stop.lane.blocked(0)]
        *early, last = ready or [min(order, key=lambda stop: stop.lane.blocked(0))]
        for stop in early:
            try:
                return await self._sent(call, plan, stop)
            except AiQueryError as error:
                if not retry.fallback_worthy(error):
                    raise
        return await self._sent(call, plan, last)

    async def _sent(self, call: Call, plan: Plan, stop: Stop) -> Response:
        """Send once to one entity, when it can take the call."""
        size = partial(self._reserved, call, plan, math.inf)
        permit = await stop.lane.enter(size, patient=call.patient, again=call.attempts > 0)
        try:
            metered = call.meter.reserve(stop.served, call.body)
        except BaseException:
            stop.lane.unused(permit)
            raise
        usage = None
        try:
            response = await self._asked(call, stop, permit)
            usage = response.usage
        finally:
            call.meter.settle(metered, usage)
        if response.usage.completion_tokens:
            plan.sizes.learn(response.usage.completion_tokens)
        return response

    async def _asked(self, call: Call, stop: Stop, permit: Permit) -> Response:
        """Ask an entity, and let its lane learn from how that ended."""
        call.attempts += 1
        call.entity, call.sent = stop.name, self._clock.now()
        try:
            response = await stop.send(call.body)
        except AiQueryError as error:
            stop.lane.failed(permit, error)
            raise
        except BaseException:
            stop.lane.cancelled(permit)
            raise
        stop.lane.answered(permit, response)
        return response
