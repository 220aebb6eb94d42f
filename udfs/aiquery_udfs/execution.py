"""Runs requests from engine threads: one event loop, one call per distinct request, answers in order.

Theory of operation. An engine (DuckDB, later Polars) calls from its own threads with a batch of rows and
waits. The requests run on the process's one event-loop thread, where a *flight* is a request on its way:
whoever asks for the same request meanwhile waits for the same flight (single flight), and what a flight
brought is remembered for the query that asked (the memo), because an engine may evaluate an expression
twice for one row. A flight nobody waits for any more is cancelled, so that an interrupted query leaves
nothing behind. The waiting thread looks at its cancel flag every 50 ms, since an engine notices an
interrupt only when our function returns.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np

from aiquery_serving.errors import AiQueryError, CancelledCallError
from aiquery_serving.gateway import Gateway
from aiquery_serving.messages import EMBEDDINGS
from aiquery_serving.traffic import choose
from aiquery_udfs.arguments import BoundCall, answer_text
from aiquery_udfs.memo import Answer, Memo, QueryId

#: How often a waiting engine thread looks at its cancel flag, in seconds.
SLICE: Final = 0.05
#: Inputs packed into one embeddings request (contract A.10).
EMBEDDING_PACK: Final = 40

T = TypeVar("T")
#: Says whether the caller does not want the answers any more.
Cancelled: TypeAlias = Callable[[], bool]


def never() -> bool:
    """Want the answers, however long they take."""
    return False


class EngineThread:
    """The event loop on which every request of this process runs; started at first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop, starting its thread when there is none (or after a fork)."""
        with self._lock:
            if self._loop is None or self._pid != os.getpid():
                self._loop, self._pid = _new_loop(), os.getpid()
                threading.Thread(target=self._loop.run_forever, name="aiquery-engine", daemon=True).start()
            return self._loop

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop())

    def run(self, work: Coroutine[Any, Any, T], cancelled: Cancelled | None = None) -> T:
        """Wait for a coroutine in slices, so that `cancelled` and Ctrl-C end the wait.

        Raises:
            CancelledCallError: `cancelled` said so; the coroutine was cancelled too.
        """
        future = self.submit(work)
        try:
            while True:
                try:
                    return future.result(SLICE)
                except FutureTimeoutError:
                    if future.done():
                        raise
                if cancelled is not None and cancelled():
                    msg = "The query was interrupted; requests that were under way are cancelled."
                    raise CancelledCallError(msg)
        except BaseException:
            future.cancel()
            raise


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's loop where there is one (not on Windows): it carries a fifth more requests."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


#: The one engine thread of the process, shared by every workspace and connection.
engine_thread: Final = EngineThread()


class Request(NamedTuple):
    """One request of a row: its REST body, and the key by which it draws its served entity."""

    body: Mapping[str, Any]
    route_key: bytes


@dataclass(slots=True, eq=False)
class _Flight:
    """A request on its way: its future, and how many batches wait for it."""

    future: asyncio.Future[Answer]
    waiters: int = 0


_MISSING: Final = object()


class Execution:
    """Answers batches of requests for the engines of one workspace."""

    def __init__(self, gateway: Gateway, *, caller: str = "") -> None:
        self.gateway = gateway
        self.caller = caller
        self.memo = Memo()
        self._flights: dict[bytes, _Flight] = {}

    def answer(
        self,
        call: BoundCall,
        requests: Mapping[bytes, Request],
        *,
        query: QueryId,
        cancelled: Cancelled | None = None,
    ) -> dict[bytes, Answer]:
        """Answer distinct requests, each at most once per query.

        Args:
            call: What was settled when the statement was bound.
            requests: Requests by their identity.
            query: The statement that asks.
            cancelled: Looked at every 50 ms.

        Returns:
            The answers by identity; an error stands in the place of the answer it prevented.

        Raises:
            CancelledCallError: The query was interrupted.
            AiQueryError: The first error, when `call.fail_on_error`.
        """
        return engine_thread.run(self._answer(call, requests, query), cancelled)

    async def _answer(self, call: BoundCall, requests: Mapping[bytes, Request], query: QueryId) -> dict[bytes, Answer]:
        answers: dict[bytes, Answer] = {}
        missing: dict[bytes, Request] = {}
        for key, request in requests.items():
            known = self.memo.get(query, key, _MISSING)
            if known is _MISSING:
                missing[key] = request
            else:
                answers[key] = known
        flights = self._board(call, missing)
        try:
            await _land([flight.future for flight in flights.values()], call.fail_on_error)
            answers |= {key: flight.future.result() for key, flight in flights.items()}
        finally:
            self._remember(query, flights)
            self._leave(flights)
        return answers

    def _remember(self, query: QueryId, flights: Mapping[bytes, _Flight]) -> None:
        """Keep what has landed, also when another row failed: the query may go on (TRY), and it was paid for."""
        for key, flight in flights.items():
            future = flight.future
            if future.done() and not future.cancelled() and future.exception() is None:
                self.memo.put(query, key, future.result())

    def _board(self, call: BoundCall, requests: Mapping[bytes, Request]) -> dict[bytes, _Flight]:
        """Join the flights that are under way and start the others."""
        flights: dict[bytes, _Flight] = {}
        fresh: list[bytes] = []
        loop = asyncio.get_running_loop()
        for key in requests:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = _Flight(loop.create_future())
                fresh.append(key)
            flight.waiters += 1
            flights[key] = flight
        if call.task == EMBEDDINGS:
            for pack in self._packs(call, fresh, requests):
                futures = [flights[key].future for key in pack]
                _start(self._embed(call, [requests[key] for key in pack], futures), futures)
        else:
            for key in fresh:
                future = flights[key].future
                _start(self._ask(call, requests[key], future), (future,))
        return flights

    def _packs(
        self, call: BoundCall, keys: Sequence[bytes], requests: Mapping[bytes, Request]
    ) -> Iterator[list[bytes]]:
        """Group requests by the served entity they draw, and cut each group into packs."""
        routes = self.gateway.serving(call.endpoint).config.routes if keys else ()
        groups: dict[int, list[bytes]] = {}
        for key in keys:
            groups.setdefault(choose(routes, requests[key].route_key), []).append(key)
        for group in groups.values():
            for start in range(0, len(group), EMBEDDING_PACK):
                yield group[start : start + EMBEDDING_PACK]

    def _leave(self, flights: Mapping[bytes, _Flight]) -> None:
        for key, flight in flights.items():
            flight.waiters -= 1
            if flight.waiters == 0:
                if self._flights.get(key) is flight:
                    del self._flights[key]
                flight.future.cancel()

    async def _ask(self, call: BoundCall, request: Request, future: asyncio.Future[Answer]) -> None:
        """Fly one chat or completions request."""
        with _crash_into((future,)):
            try:
                response = await self.gateway.invoke(
                    call.endpoint, request.body, key=request.route_key, caller=self.caller
                )
                _bring(future, answer_text(call.task, response.body))
            except AiQueryError as error:
                _bring(future, error)

    async def _embed(
        self, call: BoundCall, requests: Sequence[Request], futures: Sequence[asyncio.Future[Answer]]
    ) -> None:
        """Fly one packed embeddings request."""
        params = {name: value for name, value in requests[0].body.items() if name != "input"}
        answers: Sequence[Any]
        with _crash_into(futures):
            try:
                answers = await self.gateway.embed(
                    call.endpoint,
                    [request.body["input"] for request in requests],
                    params=params,
                    key=requests[0].route_key,
                    caller=self.caller,
                )
            except AiQueryError as error:
                answers = [error] * len(requests)
            for future, answer in zip(futures, answers, strict=True):
                if isinstance(answer, AiQueryError):
                    _bring(future, answer)
                else:
                    _bring(future, np.asarray(answer, dtype=np.float32))


def _start(work: Coroutine[Any, Any, None], futures: Sequence[asyncio.Future[Answer]]) -> asyncio.Task[None]:
    """Start the task behind some flights; it ends when nobody waits for any of them."""
    task = asyncio.get_running_loop().create_task(work)

    # The callbacks also keep the task alive: the loop itself holds tasks only weakly.
    def settled(_: asyncio.Future[Answer]) -> None:
        if not task.done() and all(future.cancelled() for future in futures):
            task.cancel()

    for future in futures:
        future.add_done_callback(settled)
    return task


def _bring(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


@contextmanager
def _crash_into(futures: Sequence[asyncio.Future[Answer]]) -> Iterator[None]:
    """Hand a bug to the waiting threads as it is: it must not vanish in a task."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for it
        for future in futures:
            if not future.done():
                future.set_exception(error)


async def _land(futures: Sequence[asyncio.Future[Answer]], fail_on_error: bool) -> None:
    """Wait until every flight has landed, or until one crashed or brought an error that counts."""
    pending = len(futures)
    if not pending:
        return
    done = asyncio.get_running_loop().create_future()

    def landed(future: asyncio.Future[Answer]) -> None:
        nonlocal pending
        pending -= 1
        if done.done() or future.cancelled():
            return
        error = future.exception()
        if error is None and fail_on_error:
            answer = future.result()
            error = answer if isinstance(answer, AiQueryError) else None
        if error is not None:
            done.set_exception(error)
        elif pending == 0:
            done.set_result(None)

    for future in futures:
        future.add_done_callback(landed)
    await done
