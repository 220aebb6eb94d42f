"""Gemini's streamed answers, read as the chunks of a chat completion."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from aiquery_serving.entities.external.chat_chunks import ChatChunks
from aiquery_serving.entities.external.failures import ReportedError, status_of
from aiquery_serving.entities.external.gemini_contents import finish_of, is_blocked, texts_and_calls, used
from aiquery_serving.entities.external.json_events import json_events
from aiquery_serving.entities.external.sse import Events
from aiquery_serving.messages import Json


class GeminiReader:
    """Reads the events of one answer (an `entity.StreamReader`).

    Args:
        model: The model's name.
        now: Seconds since 1970.
        who: The provider and the model, for messages.
        candidates: How many answers were asked for.
    """

    def __init__(self, model: str, now: float, *, who: str, candidates: int = 1) -> None:
        self._model, self._now, self._who = model, now, who
        self._events = Events()
        self._open = set(range(candidates))
        #: What each candidate has begun to say.
        self._begun: dict[int, ChatChunks] = {}

    @property
    def done(self) -> bool:
        """Whether every candidate has said why it ended."""
        return not self._open

    def feed(self, data: bytes) -> Iterator[Json]:
        """Yield the chunks that these bytes complete.

        Raises:
            ReportedError: The provider reports an error.
            ProviderResponseError: What came cannot be read.
        """
        for event in json_events(self._events, data, who=self._who):
            if not self.done:
                yield from self._read(event)

    def _read(self, event: Json) -> Iterator[Json]:
        if isinstance(event.get("error"), dict):
            raise ReportedError(status_of(event), orjson.dumps(event))
        candidates = event.get("candidates") or []
        if is_blocked(event):
            candidates, self._open = [{"finishReason": "SAFETY"}], {0}
        for position, candidate in enumerate(candidates):
            index = candidate.get("index") or position
            for chunk in self._candidate(candidate, index, str(event.get("responseId") or "")):
                yield {**chunk, "choices": [{**choice, "index": index} for choice in chunk["choices"]]}
        if self.done:
            # The counts of every event include those before it.
            yield self._begun[0].used(used(event.get("usageMetadata")))

    def _candidate(self, candidate: Json, index: int, answer_id: str) -> Iterator[Json]:
        if index not in self._begun:
            self._begun[index] = ChatChunks(answer_id, self._model, now=self._now)
            yield self._begun[index].begin()
        chunks = self._begun[index]
        texts, calls = texts_and_calls(candidate, answer_id, first=chunks.calls)
        yield from (chunks.text(text) for text in texts if text)
        for call in calls:
            yield _with_signature(chunks.call(call["id"], **call["function"]), call)
        if reason := candidate.get("finishReason"):
            self._open.discard(index)
            yield chunks.end(finish_of(reason))


def _with_signature(chunk: Json, call: Json) -> Json:
    """Return the chunk of a call with what Gemini wants back of it, beside the function."""
    if "extra_content" in call:
        chunk["choices"][0]["delta"]["tool_calls"][0]["extra_content"] = call["extra_content"]
    return chunk
