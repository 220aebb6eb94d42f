"""What the state of an endpoint means for its requests: the ways to its served entities, its limits and turns.

What lanes, limits and turns have learned outlives a plan wherever the new config declares the same.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeGuard, cast

from aiquery_serving.admission import Admission
from aiquery_serving.batching import OutputSizes
from aiquery_serving.clock import Clock
from aiquery_serving.endpoint import Kind, ServedEntity
from aiquery_serving.errors import EndpointNotFoundError
from aiquery_serving.guardrails import Rails
from aiquery_serving.messages import (
    BatchEntity,
    Entity,
    MicrobatchedModel,
    QueueingEntity,
    RequestEntity,
    Response,
    Stream,
    StreamingEntity,
    StreamingModel,
)
from aiquery_serving.pacing import Lane, Turns
from aiquery_serving.payload_log import is_logged
from aiquery_serving.registry import Serving
from aiquery_serving.streaming import in_one_piece, on_a_thread
from aiquery_serving.throughput import provision
from aiquery_serving.throughput_gate import ThroughputGate


class Servings(Protocol):
    """What the gateway asks of a registry."""

    def serving(self, name: str, *, wait: float | None = None) -> Serving:
        """Return what an endpoint serves now; the same object for as long as it serves the same."""
        ...


class Stop:
    """One served entity of one config, as the gateway reaches it; by a gate if throughput is provisioned for it.

    One with a queue of its own has an `express` lane for calls that somebody waits for: on the other lane they would
    stand behind batch work that its queue lets them pass.
    """

    __slots__ = ("_queues", "_send", "_stream", "entity", "express", "gate", "lane", "name", "served")

    def __init__(
        self, served: ServedEntity, entity: Entity, lane: Lane, express: Lane, gate: ThroughputGate | None = None
    ) -> None:
        self.name = served.name
        self.served, self.entity, self.gate = served, entity, gate
        self.lane, self.express = lane, express
        self._queues = isinstance(entity, QueueingEntity)
        self._send: Callable[..., Awaitable[Response]] = (
            entity.send if isinstance(entity, RequestEntity) else self._query
        )
        self._stream: Callable[..., Awaitable[Stream]] = entity.stream if _streams(entity) else self._whole

    @property
    def loaded(self) -> bool:
        """Whether the model is there, as far as its entity says."""
        return bool(getattr(self.entity, "loaded", True))

    def lane_of(self, *, patient: bool) -> Lane:
        """Return the lane that a call takes."""
        return self.express if self._queues and not patient else self.lane

    def holdup(self) -> str | None:
        """Say in words what calls stand in line for, if any do."""
        return (self.gate and self.gate.holdup()) or self.lane.holdup()

    def ask(self, body: Mapping[str, Any], *, streamed: bool, batch: bool) -> Awaitable[Response | Stream]:
        """Ask the entity; `batch` says that the request may wait for others, to who wants to know."""
        ask: Callable[..., Awaitable[Response | Stream]] = self._stream if streamed else self._send
        return ask(body, batch=batch) if self._queues else ask(body)

    async def _query(self, body: Mapping[str, Any]) -> Response:
        """Ask a model in this process: on a thread, for it may compute for long."""
        entity = cast("BatchEntity", self.entity)
        if isinstance(entity, MicrobatchedModel):
            return Response(body=await entity.aquery(body))
        return Response(body=await asyncio.to_thread(entity.query, body))

    async def _whole(self, body: Mapping[str, Any], **how: bool) -> Stream:
        """Answer piece by piece what may only know whole answers."""
        if getattr(self.entity, "can_stream", False):
            return await on_a_thread(cast("StreamingModel", self.entity).stream(body))
        return in_one_piece((await self._send(body, **how)).body)


class Plan:
    """What the gateway derives from one state of an endpoint, and keeps until the next."""

    __slots__ = ("admission", "logged", "rails", "routed", "serving", "sizes", "stops", "turns")

    admission: Admission
    sizes: OutputSizes
    stops: dict[str, Stop]
    turns: Turns

    def __init__(self, serving: Serving, before: Plan | Admission, clock: Clock) -> None:
        known = before if isinstance(before, Plan) else None
        config = serving.config
        self.serving = serving
        self.rails = Rails.parse(serving.ai_gateway)
        self.logged = is_logged(serving.ai_gateway, config.auto_capture)
        self.sizes = known.sizes if known else OutputSizes()
        self.admission = before.admission if isinstance(before, Plan) else before
        kept = known.stops if known else {}
        self.stops = {
            served.name: _stop(served, serving.entities[served.name], kept, clock) for served in config.served_entities
        }
        same = known is not None and known.turns.routes == config.routes
        self.turns = known.turns if known and same else Turns(config.routes)
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
    gate = _gate(served, before, clock)
    if before is not None and before.served == served:
        return Stop(served, entity, before.lane, before.express, gate)
    lane, express = (Lane(served.name, served.concurrency, clock) for _ in range(2))
    return Stop(served, entity, lane, express, gate)


def _gate(served: ServedEntity, before: Stop | None, clock: Clock) -> ThroughputGate | None:
    """Keep the throughput of an entity; one that has other bounds now goes on from where it was."""
    declared = provision(served)
    if declared is None:
        return None
    if before is None or before.gate is None:
        return ThroughputGate(served.name, declared, clock)
    before.gate.provision = declared
    return before.gate


def _streams(entity: Entity) -> TypeGuard[StreamingEntity]:
    # A model of ours has a `stream` too, which is iterated on a thread.
    return isinstance(entity, RequestEntity) and isinstance(entity, StreamingEntity)


class Plans:
    """The plan of every endpoint that was asked, each made anew when the endpoint has changed.

    Args:
        registry: Says what an endpoint serves.
        admission: Makes what admits the calls to an endpoint of that name and id.
        clock: Tells the time and waits.
    """

    def __init__(self, registry: Servings, admission: Callable[[str, str], Admission], clock: Clock) -> None:
        self._registry, self._admission, self._clock = registry, admission, clock
        self._plans: dict[str, Plan] = {}
        self._planning = threading.Lock()

    def of(self, endpoint: str) -> Plan:
        """Return how requests to an endpoint go now. From any thread.

        Raises:
            AiQueryError: The endpoint does not exist, or has nothing loaded.
        """
        serving = self._registry.serving(endpoint)
        plan = self._plans.get(endpoint)
        if plan is not None and plan.serving is serving:
            return plan
        with self._planning:
            before = self._plans.get(endpoint)
            if before is None or before.serving.endpoint_id != serving.endpoint_id:
                # Another endpoint of the same name begins afresh (contract C.5).
                plan = Plan(serving, self._admission(endpoint, serving.endpoint_id or endpoint), self._clock)
            else:
                plan = Plan(serving, before, self._clock)
            self._plans[endpoint] = plan
        return plan

    def known(self, endpoint: str) -> Plan | None:
        """Return the last plan of an endpoint, if anything has asked it yet."""
        return self._plans.get(endpoint)
