"""The REST API's chat chunks, made of what a provider said in other words (contract D.5)."""

from __future__ import annotations

from aiquery_serving.entities.external.rest_answers import counted
from aiquery_serving.messages import Json, Usage


class ChatChunks:
    """Writes the chunks of one streamed chat answer: `begin`, then what is said, `end` and `used`.

    Args:
        answer_id: The provider's name for the answer.
        model: The model's name.
        now: Seconds since 1970.

    Examples:
        >>> chunks = ChatChunks("a1", "m", now=0.0)
        >>> chunks.text("Hi")["choices"]
        [{'index': 0, 'delta': {'content': 'Hi'}, 'finish_reason': None}]
    """

    def __init__(self, answer_id: str, model: str, *, now: float) -> None:
        self._head: Json = {
            "id": answer_id,
            "object": "chat.completion.chunk",
            "created": int(now),
            "model": model,
        }
        self._calls = 0

    @property
    def calls(self) -> int:
        """How many tools were called so far."""
        return self._calls

    def begin(self) -> Json:
        """Return the first chunk: who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, text: str) -> Json:
        """Return a piece of the text."""
        return self._chunk({"content": text})

    def call(self, call_id: str, name: str, arguments: str = "") -> Json:
        """Return the beginning of a tool call; `arguments` is as much of their JSON as is known."""
        function = {"name": name, "arguments": arguments}
        self._calls += 1
        return self._called({"id": call_id, "type": "function", "function": function})

    def arguments(self, text: str) -> Json:
        """Return a piece of the JSON of the last tool call's arguments."""
        return self._called({"function": {"arguments": text}})

    def end(self, finish: str) -> Json:
        """Return why the answer ended; it ends with calls when, and only when, there were some."""
        if self._calls:
            finish = "tool_calls"
        elif finish == "tool_calls":
            finish = "stop"
        return self._chunk({}, finish)

    def used(self, usage: Usage) -> Json:
        """Return the last chunk: what the answer used."""
        return {**self._head, "choices": [], "usage": counted(usage)}

    def _called(self, call: Json) -> Json:
        return self._chunk({"tool_calls": [{"index": self._calls - 1, **call}]})

    def _chunk(self, delta: Json, finish: str | None = None) -> Json:
        return {**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
