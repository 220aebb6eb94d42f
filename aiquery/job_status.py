"""What a job is at, as a value: its state, its counts, why requests failed, and one sentence about what came of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from aiquery_serving.job_log import JobRecord, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiquery_serving.ledger import Ledger

#: Kinds of failures that a record holds, and characters of each.
_MOST_KINDS: Final = 5
_MOST_TEXT: Final = 500
_GO_ON: Final = "What was answered is in the ledger: run the job again, and it goes on from there."
_STOPPED: Final = (
    "What was answered is in the ledger: run the job again with a larger max_cost, max_tokens or max_calls, or a later"
    " deadline, and it goes on from there."
)


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why requests of a job have no answer: the class of their error, its text, and how many failed so."""

    kind: str
    message: str
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A job at one moment.

    `rows` counts rows that have their answer, once for each `ai_query` that they pass, and in the end those of
    the output. `known` to `in_flight` count distinct requests: of those `known` so far, `answered` are done, some of
    them `from_ledger`, some `failed`. `calls`, tokens and `cost` (in dollars; a lower bound unless `cost_known`)
    are those of this run, as `seconds` is. `failures` are the most frequent ones, known when it has ended.
    """

    name: str
    state: State
    rows: int
    known: int
    answered: int
    from_ledger: int
    failed: int
    in_flight: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    cost_known: bool
    started: datetime
    seconds: float
    waiting_for: str | None
    reason: str
    output: str
    failures: tuple[JobFailure, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens in and out together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def result(self) -> str:
        """What came of it in a sentence or two, and how to go on."""
        if self.state == "finished":
            failed = f" Of its requests, {self.failed:,} failed; their rows are NULL." if self.failed else ""
            return f"{self.rows:,} {'row is' if self.rows == 1 else 'rows are'} in {self.output}.{failed}"
        if self.state in ("running", "paused"):
            return f"The job is {self.state}; {self.answered:,} requests are answered so far."
        way = self.state if self.state == "failed" else f"was {self.state}"
        go_on = _STOPPED if self.state == "stopped" else _GO_ON
        return f"The job {way} after {self.answered:,} answered requests: {self.reason} {go_on}"


def status_of(job: JobRecord, *, now_ms: int, waiting_for: str | None = None) -> JobStatus:
    """Return what a record says at a moment (milliseconds since 1970)."""
    until = job.updated_ms if job.state == "interrupted" else job.ended_ms or now_ms
    return JobStatus(
        name=job.name, state=job.state, rows=job.rows, known=job.known, answered=job.answered,
        from_ledger=job.from_ledger, failed=job.failed, in_flight=job.in_flight, calls=job.calls,
        prompt_tokens=job.prompt_tokens, completion_tokens=job.completion_tokens, cost=job.cost,
        cost_known=job.cost_known, started=datetime.fromtimestamp(job.started_ms / 1000, UTC),
        seconds=max(0, until - job.started_ms) / 1000, waiting_for=waiting_for, reason=job.reason, output=job.output,
        failures=tuple(JobFailure(**failure) for failure in json.loads(job.failures)),
    )  # fmt: skip


def failures(job: JobRecord, ledger: Ledger) -> list[JobFailure]:
    """Return why requests of a job failed and were not answered since, the most frequent reason first.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    recent = ledger.recent(since_ms=job.created_ms, endpoints=json.loads(job.endpoints), failed=True)
    latest = ledger.find({entry.key for entry in recent}).values()
    counted = Counter((one.failure.kind, one.failure.message) for one in latest if one.failure is not None)
    return [JobFailure(kind, message, requests) for (kind, message), requests in counted.most_common()]


def in_short(found: Iterable[JobFailure]) -> str:
    """Return the first few failures as the JSON of a record."""
    kept = [JobFailure(one.kind, one.message[:_MOST_TEXT], one.requests) for one in found][:_MOST_KINDS]
    return json.dumps([asdict(one) for one in kept])
