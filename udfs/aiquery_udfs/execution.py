"""Answers batches of requests from engine threads: what a query knows, what the ledger holds, one call for the rest.

Theory of operation. An engine (DuckDB, Polars) calls from its own threads with a batch of rows and waits. What a
query has asked is remembered for as long as it runs (the memo), because an engine may evaluate an expression twice
for one row; what the ledger holds is not asked again, where the run says so; the rest flies (see `flights`). The
waiting thread looks at its cancel flag every 50 ms, since an engine notices an interrupt only when our function
returns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from aiquery_serving.content_address import content_address, fingerprint
from aiquery_serving.errors import AiQueryError, JobStoppedError
from aiquery_serving.gateway import Gateway
from aiquery_serving.ledger import Entry, Ledger
from aiquery_serving.registry import Serving
from aiquery_serving.traffic import choose
from aiquery_udfs.arguments import BoundCall
from aiquery_udfs.engine_thread import Cancelled, engine_thread
from aiquery_udfs.flights import Flight, Flights, Request, found_answer, stops_run
from aiquery_udfs.memo import Answer, Memo, QueryId
from aiquery_udfs.runs import Run, brought

#: Bytes of answers that a query keeps at hand when all are in the ledger as well.
RECORDED_BYTES: Final = 16 * 1024 * 1024
_MISSING: Final = object()


class Execution:
    """Answers batches of requests for the engines of one workspace.

    Args:
        gateway: What answers requests.
        ledger: Opens where runs that want it keep answers; called at the first such run.
        caller: Whom rate limits and usage count.
    """

    def __init__(self, gateway: Gateway, *, ledger: Callable[[], Ledger], caller: str = "") -> None:
        self.gateway = gateway
        self.caller = caller
        self.memo = Memo()
        self.flights = Flights(gateway, ledger, caller)
        self._ledger = ledger
        self._fingerprints: dict[str, tuple[Serving, list[bytes]]] = {}

    def answer(
        self,
        call: BoundCall,
        requests: Mapping[bytes, Request],
        *,
        query: QueryId,
        cancelled: Cancelled | None = None,
        run: Run | None = None,
    ) -> dict[bytes, Answer]:
        """Answer distinct requests, each at most once per query.

        Args:
            call: What was settled when the statement was bound.
            requests: Requests by their identity.
            query: The statement that asks.
            cancelled: Looked at every 50 ms.
            run: What the query asked for beside its SQL.

        Returns:
            The answers by identity; an error stands in the place of the answer it prevented.

        Raises:
            CancelledCallError: The query was interrupted.
            AiQueryError: The first error, when `call.fail_on_error`, or one that stops the run.
        """
        return engine_thread.run(self._answer(call, requests, query, run), cancelled)

    def remembered(self, requests: Mapping[bytes, Request], query: QueryId) -> dict[bytes, Answer]:
        """Return what a query has asked before; any thread but the engine's."""

        async def look() -> dict[bytes, Answer]:
            return self.known(requests, query)

        return engine_thread.run(look())

    async def _answer(
        self, call: BoundCall, requests: Mapping[bytes, Request], query: QueryId, run: Run | None
    ) -> dict[bytes, Answer]:
        answers = self.known(requests, query)
        missing = {key: request for key, request in requests.items() if key not in answers}
        addresses = self.addresses(call, missing, run)
        if addresses:
            found = await self.recorded(addresses, run)
            answers |= self.known(missing, query)  # a look-ahead may have asked meanwhile
            found = {key: answer for key, answer in found.items() if key not in answers}
            self.found(query, found, run)
            answers |= found
            missing = {key: request for key, request in missing.items() if key not in answers}
        ends = _ends(call, run)
        _check(answers, ends)
        flights = self.flights.board(call, missing, addresses, run)
        try:
            await _land([flight.future for flight in flights.values()], ends)
            answers |= {key: flight.future.result() for key, flight in flights.items()}
        finally:
            self.landed(query, flights, run)
        return answers

    def known(self, requests: Mapping[bytes, Request], query: QueryId) -> dict[bytes, Answer]:
        """Return what the query has asked before. On the engine thread, as all below."""
        known = ((key, self.memo.get(query, key, _MISSING)) for key in requests)
        return {key: answer for key, answer in known if answer is not _MISSING}

    def addresses(
        self, call: BoundCall, requests: Mapping[bytes, Request], run: Run | None
    ) -> dict[bytes, bytes]:  # fmt: skip
        """Return where the ledger keeps each request's answer; nothing for a run without a ledger."""
        if run is None or run.reuse is None or not requests:
            return {}
        serving = self.gateway.serving(call.endpoint)
        known = self._fingerprints.get(call.endpoint)
        if known is None or known[0] is not serving:
            served = {one.name: fingerprint(one) for one in serving.config.served_entities}
            prints = [served[route.served_entity_name] for route in serving.config.routes]
            known = self._fingerprints[call.endpoint] = serving, prints
        routes, prints = serving.config.routes, known[1]
        return {
            key: content_address(prints[choose(routes, request.route_key)], key) for key, request in requests.items()
        }

    async def recorded(self, addresses: Mapping[bytes, bytes], run: Run | None) -> dict[bytes, Answer]:
        """Return what the ledger holds of some requests, by their identity."""
        reuse = run.reuse if run is not None else None
        if reuse is None or not addresses:
            return {}
        since = None if reuse.max_age_s is None else int((time.time() - reuse.max_age_s) * 1000)
        found = await asyncio.to_thread(self._find, list(addresses.values()), since)
        entries = ((key, found.get(address)) for key, address in addresses.items())
        return {
            key: found_answer(entry)
            for key, entry in entries
            if entry is not None and not (entry.failure is not None and reuse.retry_failed)
        }

    def _find(self, addresses: Sequence[bytes], since_ms: int | None) -> dict[bytes, Entry]:
        return self._ledger().find(addresses, since_ms=since_ms)

    def remember(self, query: QueryId, answers: Mapping[bytes, Answer], run: Run | None) -> None:
        """Keep answers for the rest of their query; not for long where the ledger has them."""
        most = RECORDED_BYTES if run is not None and run.reuse is not None else None
        for key, answer in answers.items():
            self.memo.put(query, key, answer, most=most)

    def landed(self, query: QueryId, flights: Mapping[bytes, Flight], run: Run | None) -> None:
        """Keep what has landed, also when another row failed: the query may go on (TRY), and it was paid for."""
        answers = {key: flight.future.result() for key, flight in flights.items() if brought(flight.future)}
        answers = {key: answer for key, answer in answers.items() if not isinstance(answer, JobStoppedError)}
        if run is not None:
            joined = [key for key in answers if flights[key].run is not run]
            fresh = [answers[key] for key in joined if self.memo.get(query, key, _MISSING) is _MISSING]
            run.tally.count(fresh)
        self.remember(query, answers, run)
        self.flights.leave(flights)

    def found(self, query: QueryId, answers: Mapping[bytes, Answer], run: Run | None) -> None:
        """Keep what the ledger held for the rest of a query."""
        self.remember(query, answers, run)
        if run is not None:
            run.tally.count(answers.values())
            run.tally.from_ledger += len(answers)


def _ends(call: BoundCall, run: Run | None) -> Callable[[Answer], bool]:
    """Return what says whether an answer ends the statement, rather than being one row's."""
    records = run is not None and run.record_errors

    def ends(answer: Answer) -> bool:
        if not isinstance(answer, AiQueryError):
            return False
        stops = isinstance(answer, JobStoppedError) or (records and stops_run(answer))
        return stops or (call.fail_on_error and not records)

    return ends


def _check(answers: Mapping[bytes, Answer], ends: Callable[[Answer], bool]) -> None:
    for answer in answers.values():
        if isinstance(answer, AiQueryError) and ends(answer):
            raise answer


async def _land(futures: Sequence[asyncio.Future[Answer]], ends: Callable[[Answer], bool]) -> None:
    """Wait until every flight has landed, or until one crashed or brought an error that ends the statement.

    When a run may send no more, those in the air are still waited for: they are paid for.
    """
    pending = len(futures)
    if not pending:
        return
    done = asyncio.get_running_loop().create_future()
    stopped: JobStoppedError | None = None

    def landed(future: asyncio.Future[Answer]) -> None:
        nonlocal pending, stopped
        pending -= 1
        if done.done() or future.cancelled():
            return
        error = future.exception()
        if error is None:
            answer = future.result()
            error = answer if isinstance(answer, AiQueryError) and ends(answer) else None
        if isinstance(error, JobStoppedError):
            stopped, error = stopped or error, None
        if error is None and pending == 0:
            error = stopped
        if error is not None:
            done.set_exception(error)
        elif pending == 0:
            done.set_result(None)

    for future in futures:
        future.add_done_callback(landed)
    await done
