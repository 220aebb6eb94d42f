"""Requests on their way: one call for everybody who asks the same, found in the ledger where that is wanted.

A *flight* is a request on its way. Whoever asks for the same request meanwhile waits for the same flight
(single flight), and a flight that nobody waits for any more is cancelled. When one of those who wait keeps a
ledger, the answer is on disk before anybody sees it. Everything here belongs to the engine thread.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from aiquery_serving import delivery, errors
from aiquery_serving.budget import Meter, Tab
from aiquery_serving.errors import AiQueryError, CancelledCallError, InvalidRequestError, InvocationError
from aiquery_serving.gateway import Gateway
from aiquery_serving.ledger import Entry, Failure, Ledger
from aiquery_serving.messages import EMBEDDINGS, Response, Usage
from aiquery_serving.retry import terminal
from aiquery_serving.traffic import choose
from aiquery_udfs.arguments import BoundCall, answer_text, check_whole
from aiquery_udfs.gates import Gate
from aiquery_udfs.memo import Answer
from aiquery_udfs.runs import Run

#: Inputs packed into one embeddings request (contract A.10).
EMBEDDING_PACK: Final = 40
#: How often a paused run looks whether it may go on, in seconds.
PAUSE_SLICE: Final = 0.1

_NOTHING: Final = Response(body={})
#: Errors that say nothing of other rows: the model's, and those of a prompt that is too long, or not allowed.
_ROWS_OWN: Final = (InvocationError, InvalidRequestError)
#: How long a look at the ledger may take before it is used, in seconds.
LATELY: Final = 2.0


class Request(NamedTuple):
    """One request of a row: its REST body, and the key by which it draws its served entity."""

    body: Mapping[str, Any]
    route_key: bytes


@dataclass(slots=True, eq=False)
class Flight:
    """A request on its way: its future, how many wait for it, its place in the ledger, and whose call it is."""

    future: asyncio.Future[Answer]
    waiters: int = 0
    address: bytes = b""
    run: Run | None = None


def stops_run(error: AiQueryError) -> bool:
    """Say whether an error is no row's own: whatever is asked next fails the same way, or must not be asked."""
    is_own = isinstance(error, _ROWS_OWN) and not isinstance(error, CancelledCallError)
    return terminal(error) or not is_own


class Flights:
    """The requests of one workspace that are on their way.

    Args:
        gateway: What answers them.
        ledger: Opens where answers are kept for runs that want it.
        caller: Whom rate limits and usage count.
    """

    def __init__(self, gateway: Gateway, ledger: Callable[[], Ledger], caller: str) -> None:
        self._gateway, self._ledger, self._caller = gateway, ledger, caller
        self._flights: dict[bytes, Flight] = {}
        self._gates: dict[str, Gate] = {}
        #: What was written to the ledger lately: whoever looked there just before would ask again.
        self._landed: OrderedDict[bytes, tuple[Answer, float]] = OrderedDict()

    def board(
        self,
        call: BoundCall,
        requests: Mapping[bytes, Request],
        addresses: Mapping[bytes, bytes],
        run: Run | None,
    ) -> dict[bytes, Flight]:
        """Join the flights that are under way and start the others.

        Args:
            call: What was settled when the statement was bound.
            requests: Requests by their identity.
            addresses: Where the ledger is to keep each answer; empty for a run without one.
            run: Whose budget pays for the flights that start.
        """
        flights: dict[bytes, Flight] = {}
        fresh: list[bytes] = []
        loop = asyncio.get_running_loop()
        for key in requests:
            flight = self._flights.get(key)
            address = addresses.get(key, b"")
            if flight is None:
                flight = self._flights[key] = Flight(loop.create_future(), run=run)
                answer, landed = self._landed.get(address, (None, -math.inf))
                if loop.time() < landed + _lately(run):
                    flight.future.set_result(answer)
                else:
                    fresh.append(key)
            flight.waiters += 1
            flight.address = flight.address or address
            flights[key] = flight
        self._start(call, {key: requests[key] for key in fresh}, run)
        return flights

    def leave(self, flights: Mapping[bytes, Flight]) -> None:
        """Stop waiting; a flight nobody waits for is cancelled."""
        for key, flight in flights.items():
            flight.waiters -= 1
            if flight.waiters == 0:
                if self._flights.get(key) is flight:
                    del self._flights[key]
                flight.future.cancel()

    def _start(self, call: BoundCall, requests: Mapping[bytes, Request], run: Run | None) -> None:
        packs = self._packs(call, requests) if call.task == EMBEDDINGS else ([key] for key in requests)
        for pack in packs:
            flights = [self._flights[key] for key in pack]
            work = self._fly(call, [requests[key] for key in pack], flights, run)
            _launch(work, [flight.future for flight in flights])

    async def _fly(
        self, call: BoundCall, requests: Sequence[Request], flights: Sequence[Flight], run: Run | None
    ) -> None:
        """Fly one request; a bug goes to those who wait, as it is: it must not vanish in a task."""
        # No more calls may be unrecorded than an endpoint takes at once: so many a crash may cost.
        gate = self._gates.setdefault(call.endpoint, Gate()) if flights[0].address else None
        if gate is not None:
            await gate.enter(self._gateway.appetite(call.endpoint))
        if run is not None:
            run.tally.start(call.endpoint, len(flights))
        try:
            if call.task == EMBEDDINGS:
                await self._embed(call, requests, flights, run)
            else:
                await self._ask(call, requests[0], flights[0], run)
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for it
            for flight in flights:
                if not flight.future.done():
                    flight.future.set_exception(error)
        finally:
            if gate is not None:
                gate.leave()
            if run is not None:
                run.tally.finish([flight.future for flight in flights])

    def _packs(self, call: BoundCall, requests: Mapping[bytes, Request]) -> Iterator[list[bytes]]:
        """Group requests by the served entity they draw, and cut each group into packs."""
        routes = self._gateway.serving(call.endpoint).config.routes if requests else ()
        groups: dict[int, list[bytes]] = {}
        for key, request in requests.items():
            groups.setdefault(choose(routes, request.route_key), []).append(key)
        for group in groups.values():
            for start in range(0, len(group), EMBEDDING_PACK):
                yield group[start : start + EMBEDDING_PACK]

    async def _ask(self, call: BoundCall, request: Request, flight: Flight, run: Run | None) -> None:
        """Fly one chat or completions request."""
        response = _NOTHING
        answer: Answer
        try:
            response = await self._invoke(call, request, run)
            answer = answer_text(call.task, response.body)
            check_whole(request.body, response.body, answer)
        except AiQueryError as error:
            answer = error
        if flight.address:
            await self._record(call, flight.address, answer, response)
        if not flight.future.done():
            flight.future.set_result(answer)

    async def _invoke(self, call: BoundCall, request: Request, run: Run | None) -> Response:
        body, key, caller = request.body, request.route_key, self._caller
        if run is None or not isinstance(run.meter, Meter):
            return await self._gateway.invoke(
                call.endpoint, body, key=key, caller=caller, meter=_counter(call, run)
            )  # fmt: skip
        async with self._admitted(call, request, body, run) as meter:
            return await self._gateway.invoke(
                call.endpoint, body, key=key, caller=caller, meter=meter, job=run.job
            )  # fmt: skip

    async def _embed(
        self, call: BoundCall, requests: Sequence[Request], flights: Sequence[Flight], run: Run | None
    ) -> None:
        """Fly one packed embeddings request."""
        inputs = [request.body["input"] for request in requests]
        params = {name: value for name, value in requests[0].body.items() if name != "input"}
        answers: Sequence[Any]
        try:
            async with self._admitted(call, requests[0], {**params, "input": inputs}, run) as meter:
                answers = await self._gateway.embed(
                    call.endpoint, inputs, params=params, key=requests[0].route_key, caller=self._caller,
                    meter=meter, job=run.job if run else "",
                )  # fmt: skip
        except AiQueryError as error:
            answers = [error] * len(requests)
        vectors = [one if isinstance(one, AiQueryError) else np.asarray(one, dtype=np.float32) for one in answers]
        pairs = list(zip(flights, vectors, strict=True))
        recorded = [self._record(call, flight.address, one, _NOTHING) for flight, one in pairs if flight.address]
        await asyncio.gather(*recorded)
        for flight, one in pairs:
            if not flight.future.done():
                flight.future.set_result(one)

    @asynccontextmanager
    async def _admitted(
        self, call: BoundCall, request: Request, body: Mapping[str, Any], run: Run | None
    ) -> AsyncIterator[delivery.Meter | None]:
        """Wait while the run is paused, and until its budget has room; yields what meters the request.

        Raises:
            BudgetReachedError: The request can never be paid for.
        """
        if run is None or not isinstance(run.meter, Meter):
            yield _counter(call, run)
            return
        while run.paused.is_set():  # noqa: ASYNC110 - other threads set and clear it
            await asyncio.sleep(PAUSE_SLICE)
        config = self._gateway.serving(call.endpoint).config
        route = config.routes[choose(config.routes, request.route_key)]
        served = next(one for one in config.served_entities if one.name == route.served_entity_name)
        async with run.meter.enter(served, body, endpoint=call.endpoint) as ticket:
            yield ticket

    async def _record(self, call: BoundCall, address: bytes, answer: Answer, response: Response) -> None:
        """Put an answer on disk, before anybody sees it."""
        entry = _entry(address, call.endpoint, answer, response)
        if entry is not None:
            await self._ledger().write(entry)
            self._note(entry.key, answer)

    def _note(self, address: bytes, answer: Answer) -> None:
        if not isinstance(answer, AiQueryError):
            now = asyncio.get_running_loop().time()
            self._landed[address] = answer, now
            while next(iter(self._landed.values()))[1] < now - LATELY:
                self._landed.popitem(last=False)


def _counter(call: BoundCall, run: Run | None) -> delivery.Meter | None:
    """Return what counts the sends of a run without a budget, if anything does."""
    return run.meter.at(call.endpoint) if run is not None and isinstance(run.meter, Tab) else None


def _lately(run: Run | None) -> float:
    reuse = run.reuse if run is not None else None
    return LATELY if reuse is None or reuse.max_age_s is None else min(LATELY, reuse.max_age_s)


def found_answer(entry: Entry) -> Answer:
    """Return what a ledger entry says: the answer, or the error that stood in its place."""
    if entry.failure is None:
        return entry.answer
    kind = getattr(errors, entry.failure.kind, InvocationError)
    if not (isinstance(kind, type) and issubclass(kind, _ROWS_OWN)):
        kind = InvocationError
    error = kind(entry.failure.message)
    error.attempts = entry.attempts
    return error


def _entry(address: bytes, endpoint: str, answer: Answer, response: Response) -> Entry | None:
    """Return what the ledger keeps of an answer; nothing of what is no row's own failure."""
    usage: Usage = response.usage
    if not isinstance(answer, AiQueryError):
        return Entry(
            key=address, endpoint=endpoint, served_entity=response.served_entity, answer=answer,
            prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens, attempts=response.attempts,
        )  # fmt: skip
    if stops_run(answer):
        return None
    failure = Failure(type(answer).__name__, str(answer))
    return Entry(
        key=address, endpoint=endpoint, served_entity="", answer=None, failure=failure, attempts=answer.attempts
    )


def _launch(work: Any, futures: Sequence[asyncio.Future[Answer]]) -> asyncio.Task[None]:
    """Start the task behind some flights; it ends when nobody waits for any of them."""
    task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)

    # The callbacks also keep the task alive: the loop itself holds tasks only weakly.
    def settled(_: asyncio.Future[Answer]) -> None:
        if not task.done() and all(future.cancelled() for future in futures):
            task.cancel()

    for future in futures:
        future.add_done_callback(settled)
    return task
