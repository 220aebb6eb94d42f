"""What is kept of every call when it has ended: one invocation in the usage."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aiquery_serving.clock import Clock
from aiquery_serving.delivery import Call
from aiquery_serving.errors import CancelledCallError
from aiquery_serving.messages import Usage
from aiquery_serving.plans import Plan
from aiquery_serving.usage import OK, Invocation

NOTHING = Usage()


class Began(NamedTuple):
    """When a call came: milliseconds since 1970, and the clock that spans are measured with."""

    epoch_ms: int
    now: float


class Recorder:
    """Keeps what calls used.

    Args:
        clock: Tells the time.
        usage: Called with every invocation of a served entity when it has ended.
    """

    def __init__(self, clock: Clock, usage: Callable[[Invocation], object]) -> None:
        self._clock, self._usage = clock, usage

    def begin(self) -> Began:
        """Return the time at which a call came."""
        return Began(self._clock.epoch_ms(), self._clock.now())

    def end(self, call: Call, plan: Plan, began: Began, usage: Usage, error: BaseException | None) -> None:
        """Keep a call that has ended, if a served entity was asked at all."""
        if not call.attempts:
            return
        # What a call waited for its turn says nothing of the entity: its latency is that of the last try.
        since = began.now if call.sent is None else call.sent
        self._usage(
            Invocation(
                call.endpoint,
                call.entity,
                plan.serving.config.config_version,
                began.epoch_ms,
                (self._clock.now() - since) * 1000,
                call.rows,
                usage.prompt_tokens,
                usage.completion_tokens,
                _status(error),
                call.attempts,
                call.caller,
                call.job,
            )
        )


def _status(error: BaseException | None) -> str:
    """Return how a call ended, as the usage keeps it."""
    if error is None:
        return OK
    return type(error).__name__ if isinstance(error, Exception) else CancelledCallError.__name__
