"""What a running query will ask for soon, asked as early as its endpoints can take it.

Theory of operation. An engine hands rows over chunk by chunk and waits for each chunk's slowest row. Whoever knows
the rows to come (a shadow of the statement, a column that is all there) offers their requests here; they are
started while the engine waits, never more than the endpoints take at once, and the engine finds their answers in
the query's memo. Nothing is started while the engine is not waiting: a statement that has ended, or whose reader
has gone, costs nothing more.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from aiquery_serving.errors import AiQueryError
from aiquery_serving.messages import EMBEDDINGS
from aiquery_udfs.arguments import BoundCall
from aiquery_udfs.engine_thread import engine_thread
from aiquery_udfs.execution import Execution
from aiquery_udfs.flights import EMBEDDING_PACK, Flight, Request
from aiquery_udfs.memo import QueryId, size_of
from aiquery_udfs.runs import Run, brought

#: Requests known ahead for each that an endpoint takes at once: with a tail of eight times the mean latency,
#: fewer would leave the endpoint idle at times.
AHEAD_PER_CALL: Final = 64
#: Most bytes of requests, and of their answers, that are not used yet.
AHEAD_BYTES: Final = 128 * 1024 * 1024
#: How long after the engine's last wait its statement is taken to have ended, in seconds.
DESERTED_SECONDS: Final = 2.0
#: Batches of the engine without a single foreseen request, after which nothing more is foreseen.
MISSES: Final = 3
#: Sums of parts of calls come out a little off.
_ROUNDING: Final = 1e-6
#: How long after the engine's last wait new requests still start, in seconds.
GRACE_SECONDS: Final = 0.1


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request that is known and not yet started."""

    call: BoundCall
    key: bytes
    request: Request


@dataclass(slots=True)
class _Line:
    """What waits for one endpoint, how many calls it takes at once, and how many of ours it is at.

    A packed call counts once.
    """

    window: int = 1
    waiting: deque[_Waiting] = field(default_factory=deque)
    calls: float = 0.0


class LookAhead:
    """The requests that one query will ask for, as far as they are known.

    Args:
        execution: What answers them.
        query: The statement that will ask.
        run: What it asked for beside its SQL.
        whole: Take all of the query before it begins, as far as memory is spared.
    """

    def __init__(self, execution: Execution, query: QueryId, run: Run | None, *, whole: bool = False) -> None:
        self.query, self.run, self.whole = query, run, whole
        self._execution = execution
        self._lines: defaultdict[str, _Line] = defaultdict(_Line)
        self._flights: dict[bytes, Flight] = {}
        #: Sizes of the requests that were offered and not used yet.
        self._ahead: dict[bytes, int] = {}
        self._bytes = 0
        #: Requests that were started here and not used yet; at most a window of them, where that is set.
        self._begun: set[bytes] = set()
        self._limited = False
        self._misses = 0
        self._waits = 0
        self._attended = -math.inf if whole else time.monotonic()
        self._changed = threading.Condition()
        self.closed = False

    def offer(self, call: BoundCall, requests: Mapping[bytes, Request]) -> None:
        """Take requests that will be asked; any thread. Those the ledger holds are not asked."""
        if requests and not self.closed:
            engine_thread.run(self._offered(call, requests))

    def room(self, timeout: float) -> bool:
        """Wait until there is room for more requests, at most `timeout` seconds; any thread but the engine's."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._has_room(), timeout)
            return not self.closed and self._has_room()

    def pause(self, seconds: float) -> None:
        """Wait for news, at most so long; any thread but the engine's."""
        with self._changed:
            self._changed.wait(seconds)

    def limit(self) -> None:
        """Keep no more than one window of answers ahead: the statement may end before it has used them all."""
        self._limited = True

    def used(self, keys: Iterable[bytes]) -> None:
        """Note that the engine has got some answers; any thread."""
        with self._changed:
            used = [key for key in keys if key in self._ahead]
            for key in used:
                self._bytes -= self._ahead.pop(key, 0)
                self._begun.discard(key)
            # Whoever never asks what was foreseen (for its inputs are random, say) is better left alone.
            self._misses = -MISSES if used else self._misses + bool(self._ahead)
            self._changed.notify_all()
        if self._misses >= MISSES:
            self.close()

    @property
    def deserted(self) -> bool:
        """Whether the engine has not waited for so long that its statement has probably ended."""
        return not self._waits and time.monotonic() > self._attended + DESERTED_SECONDS

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Let requests start while the engine waits in this block; any thread."""
        with self._changed:
            self._waits += 1
        engine_thread.call(self._feed)
        try:
            yield
        finally:
            with self._changed:
                self._waits -= 1
                self._attended = time.monotonic()

    def close(self) -> None:
        """Ask for nothing more, and give up what is under way and nobody else wants; any thread."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        engine_thread.call(self._cleared)

    def _has_room(self) -> bool:
        most = AHEAD_PER_CALL * self._window()
        return (self.whole or len(self._ahead) < most) and self._bytes < AHEAD_BYTES

    def _window(self) -> int:
        return sum(line.window for line in list(self._lines.values())) or 1

    async def _offered(self, call: BoundCall, requests: Mapping[bytes, Request]) -> None:
        execution, run = self._execution, self.run
        known = execution.known(requests, self.query)
        fresh = {key: one for key, one in requests.items() if key not in known and key not in self._ahead}
        if run is not None:
            run.tally.known += len(fresh)
        found = await execution.recorded(execution.addresses(call, fresh, run), run)
        execution.found(self.query, found, run)
        line = self._lines[call.endpoint]
        line.window = execution.gateway.appetite(call.endpoint)
        with self._changed:
            # Another pass may have offered the same meanwhile.
            for key, request in ((key, one) for key, one in fresh.items() if key not in self._ahead):
                size = self._ahead[key] = _size(request)
                self._bytes += size
                if key not in found:
                    line.waiting.append(_Waiting(call, key, request))
        self._feed()

    def _feed(self) -> None:
        """Start what the endpoints can take now."""
        if self.closed or (not self._waits and time.monotonic() > self._attended + GRACE_SECONDS):
            return
        for line in self._lines.values():
            while line.waiting and line.calls < line.window - _ROUNDING:
                if self._limited and len(self._begun) >= self._window():
                    return
                call = line.waiting[0].call
                pack = self._next_pack(line, EMBEDDING_PACK if call.task == EMBEDDINGS else 1)
                if pack:
                    self._board(line, call, pack)

    def _next_pack(self, line: _Line, most: int) -> dict[bytes, Request]:
        """Take requests of one call off a line; those that the engine has asked itself are left out."""
        pack: dict[bytes, Request] = {}
        call = line.waiting[0].call
        while line.waiting and len(pack) < most and line.waiting[0].call is call:
            waiting = line.waiting.popleft()
            if waiting.key in self._ahead and waiting.key not in self._flights:
                pack[waiting.key] = waiting.request
        return pack

    def _board(self, line: _Line, call: BoundCall, pack: Mapping[bytes, Request]) -> None:
        execution, run = self._execution, self.run
        known = execution.known(pack, self.query)
        pack = {key: request for key, request in pack.items() if key not in known}
        try:
            flights = execution.flights.board(call, pack, execution.addresses(call, pack, run), run)
        except AiQueryError:
            return  # the engine will meet the same, and tell it
        self._flights |= flights
        self._begun.update(flights)
        for key, flight in flights.items():
            flight.future.add_done_callback(partial(self._landed, line, key, flight, 1 / len(flights)))
        line.calls += 1 if flights else 0

    def _landed(self, line: _Line, key: bytes, flight: Flight, weight: float, _: object) -> None:
        if self._flights.pop(key, None) is not None:
            line.calls -= weight
            self._weigh(key, flight)
            self._execution.landed(self.query, {key: flight}, self.run)
            self._feed()

    def _weigh(self, key: bytes, flight: Flight) -> None:
        """Count an answer that is not used yet as memory, too."""
        with self._changed:
            if key in self._ahead and brought(flight.future):
                size = size_of(flight.future.result())
                self._ahead[key] += size
                self._bytes += size

    def _cleared(self) -> None:
        flights, self._flights = self._flights, {}
        self._lines.clear()
        self._ahead.clear()
        self._begun.clear()
        self._execution.flights.leave(flights)


def _size(request: Request) -> int:
    """Return about how many bytes a request takes in memory."""
    content = request.body.get("messages") or request.body.get("prompt") or request.body.get("input")
    return 500 + (len(content) if isinstance(content, str) else len(str(content)))
