"""What a query or a job asks for beside its SQL: the ledger, a budget, a name, and how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiquery_serving.errors import AiQueryError, JobStoppedError

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Iterable, Sequence

    from aiquery_serving.budget import Meter, Tab


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """How a run uses the ledger: answers are written to it before they are visible, and found ones are not asked.

    `max_age_s` leaves answers alone that are older, in seconds; `retry_failed` asks again what failed before.
    """

    max_age_s: float | None = None
    retry_failed: bool = False


@dataclass(slots=True)
class Tally:
    """How far a run is. Written on the event loop and by engine threads, read by anybody."""

    #: Rows that the engine has got back.
    rows: int = 0
    #: Distinct requests that were answered by a call, found in the ledger, or failed.
    answered: int = 0
    from_ledger: int = 0
    #: Requests that brought an error, and those whose answer does not fit the type it was to have.
    errors: int = 0
    misfits: set[bytes] = field(default_factory=set)
    #: Requests that are under way: in flight, or in line for it.
    in_flight: int = 0
    #: Requests known so far, distinct ones.
    known: int = 0
    endpoints: set[str] = field(default_factory=set)
    #: Engine threads that wait for answers now, and when the last of them stopped waiting (monotonic seconds).
    waiting: int = 0
    waited_at: float = 0.0

    @property
    def failed(self) -> int:
        """How many requests have failed, one way or the other."""
        return self.errors + len(self.misfits)

    def start(self, endpoint: str, requests: int) -> None:
        """Count requests that are asked now."""
        self.endpoints.add(endpoint)
        self.in_flight += requests

    def finish(self, futures: Sequence[Future[Any]]) -> None:
        """Count requests that have been asked, and what they brought."""
        self.in_flight -= len(futures)
        self.count([future.result() for future in futures if brought(future)])

    def count(self, answers: Iterable[Any]) -> None:
        """Count answers that are new to the run; what was not sent, because the run was stopped, is none."""
        answers = [answer for answer in answers if not isinstance(answer, JobStoppedError)]
        self.answered += len(answers)
        self.errors += sum(isinstance(answer, AiQueryError) for answer in answers)


def brought(future: Future[Any]) -> bool:
    """Say whether a request has brought an answer, were it an error, and not a crash."""
    return future.done() and not future.cancelled() and future.exception() is None


@dataclass(eq=False, kw_only=True)
class Run:
    """One query or job under way.

    `meter` admits each request to the run's budget, or only counts what it used; `record_errors` gives a failed
    row NULL rather than ending the statement; `job` names the run in the usage. While `paused` is set, a run with a
    budget sends nothing new.
    """

    job: str = ""
    reuse: Reuse | None = None
    meter: Meter | Tab | None = None
    record_errors: bool = False
    tally: Tally = field(default_factory=Tally)
    paused: threading.Event = field(default_factory=threading.Event)

    @property
    def in_flight(self) -> int:
        """How many of its calls are being answered now."""
        return self.meter.in_flight if self.meter is not None else self.tally.in_flight

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count an engine thread as waiting for answers."""
        self.tally.waiting += 1
        try:
            yield
        finally:
            self.tally.waiting -= 1
            self.tally.waited_at = time.monotonic()
