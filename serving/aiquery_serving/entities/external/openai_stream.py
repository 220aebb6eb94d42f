"""OpenAI's streamed answers, and everybody's who speaks the same: the REST API's own chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from aiquery_serving.entities.external.failures import ReportedError, status_of
from aiquery_serving.entities.external.sse import Event, Events
from aiquery_serving.errors import ProviderResponseError
from aiquery_serving.messages import Json

_DONE = b"[DONE]"


class OpenAIReader:
    """Passes an answer's chunks on and watches for its end (an `entity.StreamReader`).

    Args:
        who: The provider and the model, for messages.
        answers: How many choices were asked for.
    """

    def __init__(self, who: str, *, answers: int = 1) -> None:
        self._who = who
        self._answers = answers
        self._events = Events()
        self._finished: set[Any] = set()
        self._begun = False
        self._ended = False

    @property
    def done(self) -> bool:
        """Whether the provider said `[DONE]`, or why each of the answers ended."""
        return self._ended or len(self._finished) >= self._answers

    def feed(self, data: bytes) -> Iterator[Json]:
        """Yield the chunks that these bytes complete.

        Raises:
            ReportedError: The provider reports an error within the answer.
            ProviderResponseError: What came is no chunk, or the answer has no choices.
        """
        for event in self._events.feed(data):
            if self._ended:
                return
            if event.data.strip() == _DONE:
                self._end()
            else:
                yield self._chunk(event)

    def _end(self) -> None:
        if not self._begun:
            raise ProviderResponseError(f"{self._who} answered without choices.")
        self._ended = True

    def _chunk(self, event: Event) -> Json:
        chunk = _parsed(event.data)
        if event.kind == "error" or chunk.get("error"):
            raise ReportedError(status_of(chunk), event.data)
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise ProviderResponseError(f"{self._who} streams something that is no chunk of an answer.")
        self._watch(choices)
        return chunk

    def _watch(self, choices: list[Json]) -> None:
        for choice in choices:
            self._begun = True
            if choice.get("finish_reason"):
                self._finished.add(choice.get("index", 0))


def _parsed(data: bytes) -> Json:
    """Return an event's JSON object, an empty one for anything else."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
