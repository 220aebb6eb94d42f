"""Puts requests to one custom model together that wait at the same time: the asyncio side."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from aiquery_serving.entities.batch_sizes import BatchSizes
from aiquery_serving.entities.merging import Shape, is_per_row, merged, parted, shape_of
from aiquery_serving.messages import Json

#: Answers one request body, on a thread.
Query: TypeAlias = Callable[[Mapping[str, Any]], Json]

#: Requests under way that are not answered together.
THREADS = 16


@dataclass(frozen=True, slots=True)
class _Member:
    """A request that waits: only those of one `shape` go together."""

    body: Mapping[str, Any]
    shape: Shape
    rows: int
    answer: asyncio.Future[Json]


@dataclass(frozen=True, slots=True)
class _Answered:
    """What came of a batch: an answer or an error per member; rows, seconds and "one answer per row" of each try."""

    outcomes: list[Json | BaseException]
    lessons: list[tuple[int, float, bool]]


class Microbatcher:
    """Answers concurrent requests in batches where that pays.

    While a batch computes, the next one collects; a request that finds the model idle goes at once and
    waits for nobody. Requests are only put together when the model takes named columns and has answered
    with one prediction per row so far. If a batch fails, its members are asked one by one, so that only
    the bad one fails. Called on one event loop.

    Args:
        query: Answers one body. Called on threads, several at once.
        together: Answers the body of several requests; `query` unless given.
        merges: Whether bodies of one shape may be put together at all.
        batches: Batches under way at once. More than there are processes to compute them only makes
            them smaller.
        threads: Requests under way at once that are not put together.
        seconds: Returns the time, for durations.
    """

    def __init__(
        self,
        query: Query,
        *,
        merges: bool,
        together: Query | None = None,
        batches: int = 1,
        threads: int = THREADS,
        seconds: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._query, self._query_together, self._seconds = query, together or query, seconds
        self._merges, self._batches, self._at_once = merges, batches, threads
        self._sizes = BatchSizes()
        self._waiting: deque[_Member] = deque()
        self._running = 0
        # They end when nothing holds the entity any more.
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="aiquery-model")

    async def ask(self, body: Mapping[str, Any]) -> Json:
        """Answer one request body.

        Raises:
            As the model's `query`.
        """
        loop = asyncio.get_running_loop()
        found = shape_of(body) if self._merges else None
        if found is None:
            return await loop.run_in_executor(self._threads, self._query, body)
        answer: asyncio.Future[Json] = loop.create_future()
        self._waiting.append(_Member(body, *found, answer))
        self._start()
        return await answer

    def _start(self) -> None:
        """Begin as many batches as may run at once."""
        loop = asyncio.get_running_loop()
        room = self._at_once if self._sizes.most == 1 else self._batches
        while self._running < room and (members := self._next()):
            self._running += 1
            work = loop.run_in_executor(self._threads, self._answered, members)
            work.add_done_callback(partial(self._settle, members))

    def _next(self) -> list[_Member]:
        """Take the longest waiting request, and those that may go with it."""
        while self._waiting:
            first = self._waiting.popleft()
            if not first.answer.done():  # else its caller has left
                return [first, *self._companions(first)]
        return []

    def _companions(self, first: _Member) -> list[_Member]:
        taken, left, room = [], [], self._sizes.most - first.rows if self._merges else 0
        while self._waiting and room > 0:
            member = self._waiting.popleft()
            if member.shape == first.shape and member.rows <= room and not member.answer.done():
                taken.append(member)
                room -= member.rows
            else:
                left.append(member)
        self._waiting.extendleft(reversed(left))
        return taken

    def _answered(self, members: Sequence[_Member]) -> _Answered:
        """Answer requests, on a thread: together, or one by one if that fails."""
        found = _Answered([], [])
        if len(members) == 1 or not self._together(members, found):
            found.outcomes.extend(self._alone(member, found) for member in members)
        return found

    def _together(self, members: Sequence[_Member], found: _Answered) -> bool:
        rows = [member.rows for member in members]
        body = merged(members[0].shape, [member.body for member in members])
        try:
            answer = self._timed(self._query_together, body, sum(rows), found)
        except Exception:  # noqa: BLE001 - asked alone, the guilty one says what is wrong
            return False
        answers = parted(answer, rows)
        found.outcomes.extend(answers or ())
        return answers is not None

    def _alone(self, member: _Member, found: _Answered) -> Json | BaseException:
        try:
            return self._timed(self._query, member.body, member.rows, found)
        except Exception as error:  # noqa: BLE001 - it is the caller's
            return error

    def _timed(self, query: Query, body: Mapping[str, Any], rows: int, found: _Answered) -> Json:
        """Answer a body and note what it teaches."""
        began = self._seconds()
        answer = query(body)
        found.lessons.append((rows, self._seconds() - began, is_per_row(answer, rows)))
        return answer

    def _settle(self, members: Sequence[_Member], done: asyncio.Future[_Answered]) -> None:
        self._running -= 1
        error = done.exception()
        outcomes = [error] * len(members) if error else done.result().outcomes
        for member, outcome in zip(members, outcomes, strict=True):
            if member.answer.done():
                continue
            if isinstance(outcome, BaseException):
                member.answer.set_exception(outcome)
            else:
                member.answer.set_result(outcome)
        if not error:
            self._learn(done.result().lessons)
        self._start()

    def _learn(self, lessons: Sequence[tuple[int, float, bool]]) -> None:
        for rows, seconds, is_one_each in lessons:
            if is_one_each:
                self._sizes.learn(rows, seconds)
            else:
                self._merges = False  # the model looks at its rows together
