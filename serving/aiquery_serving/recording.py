"""What is kept of every call when it has ended: an invocation in the usage, a row in the endpoint's inference table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from aiquery_serving.clock import Clock
from aiquery_serving.delivery import Call
from aiquery_serving.errors import AiQueryError, CancelledCallError, GuardrailError
from aiquery_serving.messages import Json, Usage
from aiquery_serving.payload_log import PayloadLog, PayloadRow
from aiquery_serving.plans import Plan
from aiquery_serving.usage import OK, Invocation

#: What a caller got: a JSON object, or the text of a list of them.
Answer: TypeAlias = Json | bytes | None

NOTHING = Usage()


class Recorder:
    """Keeps what calls used, and what they asked and got where their endpoint logs that.

    Args:
        clock: Tells the time.
        usage: Called with every invocation of a served entity when it has ended.
        payloads: Keeps requests and answers of endpoints that log them.
    """

    def __init__(self, clock: Clock, usage: Callable[[Invocation], object], payloads: PayloadLog | None) -> None:
        self.clock, self.usage, self.payloads = clock, usage, payloads

    def begin(self, call: Call, plan: Plan) -> Entry:
        """Note that a call came."""
        return Entry(self, call, plan)


class Entry:
    """The record of one call, which is written when it ends."""

    __slots__ = ("_began", "_began_ms", "_call", "_plan", "_recorder")

    def __init__(self, recorder: Recorder, call: Call, plan: Plan) -> None:
        self._recorder, self._call, self._plan = recorder, call, plan
        self._began_ms, self._began = recorder.clock.epoch_ms(), recorder.clock.now()

    def end(self, usage: Usage = NOTHING, error: BaseException | None = None, answer: Answer = None) -> None:
        """Keep how the call ended: with an error, or with an answer as the caller got it."""
        call, now = self._call, self._recorder.clock.now()
        if call.attempts:
            self._invoked(usage, error, now)
        if self._plan.logged and (call.attempts or isinstance(error, GuardrailError)):
            self._logged(error, answer, now)

    def _invoked(self, usage: Usage, error: BaseException | None, now: float) -> None:
        call = self._call
        # What a call waited for its turn says nothing of the entity: its latency is that of the last try.
        since = self._began if call.sent is None else call.sent
        self._recorder.usage(
            Invocation(
                call.endpoint,
                call.entity,
                self._plan.serving.config.config_version,
                self._began_ms,
                (now - since) * 1000,
                call.rows,
                usage.prompt_tokens,
                usage.completion_tokens,
                _status(error),
                call.attempts,
                call.caller,
                call.job,
            )
        )

    def _logged(self, error: BaseException | None, answer: Answer, now: float) -> None:
        if self._recorder.payloads is None:
            return
        named = {"request_id": self._call.request_id} if self._call.request_id else {}
        self._recorder.payloads.record(
            PayloadRow(
                **named,
                endpoint_id=self._plan.serving.endpoint_id,
                request_time_ms=self._began_ms,
                status_code=_status_code(error),
                execution_duration_ms=(now - self._began) * 1000,
                request=self._call.body,
                response=answer if error is None else _document(error),
                served_entity=self._call.entity,
                requester=self._call.caller,
            )
        )


def _status(error: BaseException | None) -> str:
    """Return how a call ended, as the usage keeps it."""
    if error is None:
        return OK
    return type(error).__name__ if isinstance(error, Exception) else CancelledCallError.__name__


def _status_code(error: BaseException | None) -> int:
    if error is None:
        return 200
    if isinstance(error, AiQueryError):
        return error.http_status
    return CancelledCallError.http_status if not isinstance(error, Exception) else AiQueryError.http_status


def _document(error: BaseException) -> Json | None:
    """Return an error as the REST API tells it; a bug's own text is nobody's business."""
    return {"error_code": error.error_code, "message": str(error)} if isinstance(error, AiQueryError) else None
