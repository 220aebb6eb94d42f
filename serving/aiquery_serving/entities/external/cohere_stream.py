"""Cohere's streamed chat, read as the chunks of a chat completion."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from aiquery_serving.entities.external.chat_chunks import ChatChunks
from aiquery_serving.entities.external.cohere_words import FINISH, GAVE_UP, used
from aiquery_serving.entities.external.failures import ReportedError
from aiquery_serving.entities.external.json_events import json_events
from aiquery_serving.entities.external.sse import Events
from aiquery_serving.messages import Json

_BROKEN = 500


class CohereReader:
    """Reads the events of one answer (an `entity.StreamReader`).

    Args:
        model: The model's name.
        now: Seconds since 1970.
        who: The provider and the model, for messages.
    """

    def __init__(self, model: str, now: float, *, who: str) -> None:
        self.done = False
        self._model, self._now, self._who = model, now, who
        self._chunks = ChatChunks("", model, now=now)
        self._events = Events()

    def feed(self, data: bytes) -> Iterator[Json]:
        """Yield the chunks that these bytes complete.

        Raises:
            ReportedError: The model gave up.
            ProviderResponseError: What came cannot be read.
        """
        for event in json_events(self._events, data, who=self._who):
            if not self.done:
                yield from self._read(event)

    def _read(self, event: Json) -> Iterator[Json]:
        delta = event.get("delta") or {}
        match event.get("type"), delta.get("message"):
            case "message-start", _:
                self._chunks = ChatChunks(str(event.get("id") or ""), self._model, now=self._now)
                yield self._chunks.begin()
            case "content-delta", {"content": {"text": str(text)}}:
                yield self._chunks.text(text)
            case "tool-call-start", {"tool_calls": {"id": str(call_id), "function": dict(function)}}:
                yield self._chunks.call(call_id, str(function.get("name")), str(function.get("arguments") or ""))
            case "tool-call-delta", {"tool_calls": {"function": {"arguments": str(text)}}}:
                yield self._chunks.arguments(text)
            case "message-end", _:
                yield from self._end(delta)

    def _end(self, delta: Json) -> Iterator[Json]:
        reason = str(delta.get("finish_reason"))
        if reason in GAVE_UP or delta.get("error"):
            message = delta.get("error") or f"the model gave up ({reason})"
            raise ReportedError(_BROKEN, orjson.dumps({"message": message}))
        self.done = True
        yield self._chunks.end(FINISH.get(reason, "stop"))
        yield self._chunks.used(used(delta.get("usage")))
