"""Converse's streamed answers, binary frames of Amazon's, read as the chunks of a chat completion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from aiquery_serving.entities.external.chat_chunks import ChatChunks
from aiquery_serving.entities.external.converse import ANSWER_TOOL, FINISH, used
from aiquery_serving.entities.external.credentials import library
from aiquery_serving.entities.external.failures import ReportedError
from aiquery_serving.entities.external.json_events import json_object
from aiquery_serving.errors import ProviderResponseError
from aiquery_serving.messages import Json

#: The HTTP status that each exception has as a whole answer; others are the provider's failure.
_STATUSES = {"throttlingException": 429, "validationException": 400, "serviceUnavailableException": 503}
_BROKEN = 500


class ConverseReader:
    """Reads the frames of one answer (an `entity.StreamReader`).

    Args:
        model: The model's name.
        now: Seconds since 1970.
        who: The provider and the model, for messages.
        answer_tool: The arguments of the tool `answer` are the answer.
    """

    def __init__(self, model: str, now: float, *, who: str, answer_tool: bool = False) -> None:
        self.done = False
        self._chunks = ChatChunks("", model, now=now)
        self._who, self._answer_tool = who, answer_tool
        self._frames = library("botocore.eventstream", extra="bedrock")
        self._buffer = self._frames.EventStreamBuffer()
        #: Whether the block that is open is a call of the tool `answer`.
        self._in_answer = False

    def feed(self, data: bytes) -> Iterator[Json]:
        """Yield the chunks that these bytes complete.

        Raises:
            ReportedError: The provider reports an error.
            ProviderResponseError: What came cannot be read.
        """
        self._buffer.add_data(data)
        while (frame := self._next()) is not None:
            if frame.headers.get(":message-type") != "event":
                raise _reported(frame)
            kind = str(frame.headers.get(":event-type"))
            yield from self._read(kind, json_object(frame.payload, who=self._who))

    def _next(self) -> Any:
        try:
            return next(self._buffer, None)
        except self._frames.ParserError:
            raise ProviderResponseError(f"{self._who} sent a frame that cannot be read.") from None

    def _read(self, kind: str, event: Json) -> Iterator[Json]:
        match kind, event:
            case "messageStart", _:
                yield self._chunks.begin()
            case "contentBlockStart", {"start": {"toolUse": dict(use)}}:
                yield from self._begin(use)
            case "contentBlockDelta", {"delta": {"text": str(text)}}:
                yield self._chunks.text(text)
            case "contentBlockDelta", {"delta": {"toolUse": {"input": str(text)}}}:
                yield self._chunks.text(text) if self._in_answer else self._chunks.arguments(text)
            case "contentBlockStop", _:
                self._in_answer = False
            case "messageStop", _:
                self.done = True
                yield self._chunks.end(FINISH.get(str(event.get("stopReason")), "stop"))
            case "metadata", _:
                yield self._chunks.used(used(event.get("usage")))

    def _begin(self, use: Json) -> Iterator[Json]:
        self._in_answer = self._answer_tool and use.get("name") == ANSWER_TOOL
        if not self._in_answer:
            yield self._chunks.call(str(use.get("toolUseId")), str(use.get("name")))


def _reported(frame: Any) -> ReportedError:
    kind = str(frame.headers.get(":exception-type") or frame.headers.get(":error-code") or "")
    said = frame.payload or orjson.dumps({"message": str(frame.headers.get(":error-message") or kind)})
    return ReportedError(_STATUSES.get(kind, _BROKEN), said)
