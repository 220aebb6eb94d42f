"""How one request reaches a served entity: admission, route, lane, retries, fallback.

A call that wants its answer piece by piece goes the same way until the answer has begun; what is
settled after an answer is then settled when its last piece has gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from aiquery_serving import retry, traffic
from aiquery_serving.admission import Admission
from aiquery_serving.batching import estimated_tokens
from aiquery_serving.clock import Clock
from aiquery_serving.endpoint import ServedEntity
from aiquery_serving.errors import AiQueryError, ProviderRateLimitError, TooManyRequestsError
from aiquery_serving.leases import Leases
from aiquery_serving.limits import GroupsOf
from aiquery_serving.messages import Response, Stream, Usage
from aiquery_serving.pacing import Lane, Permit
from aiquery_serving.plans import Plan, Plans, Servings, Stop
from aiquery_serving.streaming import Ending


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


class Call:
    """One request on its way; `rows` counts its inputs, and `guarded` says whether guardrails look at it.

    One that wants its answer in pieces (`streamed`) collects in `endings` what is to be done after the last.
    """

    __slots__ = (
        "attempts", "body", "caller", "endings", "endpoint", "entity", "guarded", "job", "key", "meter", "patient",
        "request_id", "rows", "sent", "served_entity", "streamed",
    )  # fmt: skip

    def __init__(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        *,
        key: bytes | None = None,
        served_entity: str | None = None,
        caller: str = "",
        patient: bool = True,
        rows: int = 1,
        meter: Meter | None = None,
        job: str = "",
        streamed: bool = False,
        guarded: bool = True,
        request_id: str = "",
    ) -> None:
        self.endpoint, self.body, self.key = endpoint, body, key
        self.served_entity, self.caller, self.patient = served_entity, caller, patient
        self.meter, self.job, self.request_id = meter or _UNMETERED, job, request_id
        self.rows, self.attempts, self.entity = rows, 0, ""
        self.sent: float | None = None
        self.streamed, self.guarded = streamed, guarded
        self.endings: list[Ending] = []


class Delivery:
    """Takes requests to served entities. Coroutines on one event loop; `plan` from any thread.

    Args:
        registry: Says what an endpoint serves.
        clock: Tells the time and waits.
        draw: Returns random numbers from 0 to 1; spreads retries.
        leases: What this process holds of rate limits that others share.
        groups_of: Returns the groups of a caller.
    """

    def __init__(
        self,
        registry: Servings,
        clock: Clock,
        draw: Callable[[], float],
        leases: Leases | None,
        groups_of: GroupsOf,
    ) -> None:
        self._clock, self._draw, self._leases = clock, draw, leases
        self._plans = Plans(registry, partial(Admission, clock=clock, leases=leases, groups_of=groups_of), clock)
        self.plan = self._plans.of

    async def close(self) -> None:
        """Give back what others may have of shared limits."""
        if self._leases is not None:
            await self._leases.close()

    def waiting(self, endpoint: str) -> str | None:
        """Say in words what calls to an endpoint stand in line for, if any do. Only reads."""
        plan = self._plans.known(endpoint)
        if plan is None:
            return None
        holdups = (stop.holdup() for stop in plan.stops.values())
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
        answer = await self._admitted(call, plan)
        assert isinstance(answer, Response)  # noqa: S101 - the call is not streamed
        return answer

    async def open(self, call: Call, plan: Plan) -> Stream:
        """Begin to answer a streamed call; `call.endings` are to be called when the answer has ended.

        Raises:
            As `deliver`.
        """
        answer = await self._admitted(call, plan)
        assert isinstance(answer, Stream)  # noqa: S101 - the call is streamed
        return answer

    async def _admitted(self, call: Call, plan: Plan) -> Response | Stream:
        admission = self.admission(plan)
        if admission is None:
            return await self._delivered(call, plan)
        tokens = 0
        if admission.limits.counts_tokens:
            tokens = self._reserved(call, plan, admission.limits.largest(call.caller))
        reservation = await admission.enter(call.caller, tokens, patient=call.patient)
        try:
            answer = await self._delivered(call, plan)
        except BaseException as error:
            if not call.attempts:
                admission.unused(reservation)
            elif isinstance(error, AiQueryError):
                admission.settle(reservation, 0)
            raise
        # A provider that does not count leaves the estimate standing.
        _after(call, answer, lambda usage, _: admission.settle(reservation, usage.total_tokens or tokens))
        return answer

    def _reserved(self, call: Call, plan: Plan, largest: float) -> int:
        """Estimate what a call will use; only its own text can make it too large for a limit."""
        prompt = estimated_tokens(call.body)
        output = plan.sizes.expected(call.body) if "input" not in call.body else 0
        return prompt if prompt > largest else int(min(largest, prompt + output))

    async def _delivered(self, call: Call, plan: Plan) -> Response | Stream:
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

    async def _tried(self, call: Call, plan: Plan, first: Stop) -> Response | Stream:
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

    async def _sent(self, call: Call, plan: Plan, stop: Stop) -> Response | Stream:
        """Send once to one entity, when the throughput that is provisioned for it can take the call."""
        gate = stop.gate
        if gate is None:
            return await self._passed(call, plan, stop)
        tokens = self._reserved(call, plan, math.inf)
        taken = await gate.enter(tokens, patient=call.patient, again=call.attempts > 0, loaded=stop.loaded)
        before = call.attempts
        try:
            answer = await self._passed(call, plan, stop)
        except BaseException as error:
            # What a call has used that was cancelled under way nobody knows.
            unused = call.attempts == before or isinstance(error, AiQueryError)
            gate.settle(taken, 0 if unused else tokens)
            raise
        gate.began()
        _after(call, answer, lambda usage, _: gate.settle(taken, usage.total_tokens or tokens))
        return answer

    async def _passed(self, call: Call, plan: Plan, stop: Stop) -> Response | Stream:
        """Send once to one entity, when it can take the call."""
        size = partial(self._reserved, call, plan, math.inf)
        lane = stop.lane_of(patient=call.patient)
        permit = await lane.enter(size, patient=call.patient, again=call.attempts > 0)
        try:
            metered = call.meter.reserve(stop.served, call.body)
        except BaseException:
            lane.unused(permit)
            raise
        try:
            answer = await self._asked(call, stop, lane, permit)
        except BaseException:
            call.meter.settle(metered, None)
            raise

        def settle(usage: Usage, error: BaseException | None) -> None:
            call.meter.settle(metered, usage if error is None else None)
            if usage.completion_tokens:
                plan.sizes.learn(usage.completion_tokens)

        _after(call, answer, settle)
        return answer

    async def _asked(self, call: Call, stop: Stop, lane: Lane, permit: Permit) -> Response | Stream:
        """Ask an entity, and let the lane learn from how that ended."""
        call.attempts += 1
        call.entity, call.sent = stop.name, self._clock.now()
        try:
            answer = await stop.ask(call.body, streamed=call.streamed, batch=call.patient)
        except AiQueryError as error:
            lane.failed(permit, error)
            raise
        except BaseException:
            lane.cancelled(permit)
            raise
        if isinstance(answer, Response):
            lane.answered(permit, answer)
        else:
            call.endings.append(partial(_leave, lane, permit, answer))
        return answer


def _after(call: Call, answer: Response | Stream, ending: Ending) -> None:
    """Do what follows an answer: now that it is whole, or when its last piece has gone."""
    if isinstance(answer, Response):
        ending(answer.usage, None)
    else:
        call.endings.append(ending)


def _leave(lane: Lane, permit: Permit, stream: Stream, usage: Usage, error: BaseException | None) -> None:
    """Let a lane learn from how a streamed answer ended."""
    if error is None:
        lane.answered(permit, Response(body={}, usage=usage, hint=stream.hint))
    elif isinstance(error, AiQueryError):
        lane.failed(permit, error)
    else:
        lane.cancelled(permit)
