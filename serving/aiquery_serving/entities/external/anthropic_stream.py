"""Anthropic's streamed messages, as the chunks of a chat completion."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from aiquery_serving.entities.external.anthropic_answers import ANSWER_TOOL, finish_of, usage_of
from aiquery_serving.entities.external.chat_chunks import ChatChunks
from aiquery_serving.entities.external.failures import ReportedError, status_of
from aiquery_serving.entities.external.json_events import json_object
from aiquery_serving.entities.external.sse import Events
from aiquery_serving.errors import ProviderResponseError
from aiquery_serving.messages import Json


class AnthropicReader:
    """Turns the events of one message into chunks (an `entity.StreamReader`). Thinking is left out.

    Args:
        who: The provider and the model, for messages.
        model: The model's name, until the message tells its own.
        schema_tool: The answer is what a tool that stands for the schema is called with.
        now: Seconds since 1970.
    """

    def __init__(self, who: str, model: str, *, schema_tool: bool, now: float) -> None:
        self._who, self._model, self._now = who, model, now
        self._schema_tool = schema_tool
        self._events = Events()
        self._chunks: ChatChunks | None = None
        self._usage: Json = {}
        self._reason = ""
        #: What the block that is open becomes: `text`, `answer`, `call` or nothing.
        self._block = ""
        self._blocks = 0
        #: Whether the block that is open has given arguments.
        self._argued = False
        #: Texts beside the answer of a schema's tool, which count only if it never comes.
        self._beside: list[str] = []
        self._answered = False
        self._ended = False

    @property
    def done(self) -> bool:
        """Whether the message has stopped."""
        return self._ended

    def feed(self, data: bytes) -> Iterator[Json]:
        """Yield the chunks that these bytes complete.

        Raises:
            ReportedError: The provider reports an error within the answer.
            ProviderResponseError: What came cannot be read, or says nothing.
        """
        for event in self._events.feed(data):
            if self._ended:
                return
            yield from self._read(event.data)

    def _read(self, data: bytes) -> Iterator[Json]:
        match json_object(data, who=self._who):
            case {"type": "message_start", "message": dict(message)}:
                yield self._begin(message)
            case {"type": "content_block_start", "content_block": dict(block)}:
                yield from self._open(block)
            case {"type": "content_block_delta", "delta": dict(delta)}:
                yield from self._more(delta)
            case {"type": "content_block_stop"}:
                yield from self._close()
            case {"type": "message_delta", "delta": dict(delta)} as event:
                self._reason = delta.get("stop_reason") or self._reason
                self._count(event.get("usage"))
            case {"type": "message_stop"}:
                yield from self._end()
            case {"type": "error"} as event:
                raise ReportedError(status_of(event), data)

    @property
    def _written(self) -> ChatChunks:
        if self._chunks is None:
            raise ProviderResponseError(f"{self._who} streams an answer without its beginning.")
        return self._chunks

    def _begin(self, message: Json) -> Json:
        self._count(message.get("usage"))
        self._chunks = ChatChunks(str(message.get("id", "")), str(message.get("model", self._model)), now=self._now)
        return self._chunks.begin()

    def _count(self, usage: object) -> None:
        if isinstance(usage, dict):
            self._usage |= {name: count for name, count in usage.items() if count is not None}

    def _open(self, block: Json) -> Iterator[Json]:
        self._blocks += 1
        self._argued = False
        given = block.get("input")
        match block.get("type"):
            case "text":
                self._block = "text"
                yield from self._say(block.get("text"))
            case "tool_use" if self._schema_tool and block.get("name") == ANSWER_TOOL:
                self._block = "" if self._answered else "answer"
                self._answered = True
                yield from self._argue(given)
            case "tool_use":
                self._block = "call"
                yield self._written.call(str(block.get("id")), str(block.get("name")))
                yield from self._argue(given)
            case _:
                self._block = ""

    def _more(self, delta: Json) -> Iterator[Json]:
        match delta:
            case {"type": "text_delta", "text": str(text)}:
                yield from self._say(text)
            case {"type": "input_json_delta", "partial_json": str(text)}:
                yield from self._argue(text)

    def _say(self, text: str | None) -> Iterator[Json]:
        if text and self._schema_tool:
            self._beside.append(text)
        elif text:
            yield self._written.text(text)

    def _argue(self, arguments: object) -> Iterator[Json]:
        """Yield a piece of the arguments' JSON; some servers give them at once, as an object."""
        text = arguments if isinstance(arguments, str) or not arguments else orjson.dumps(arguments).decode()
        if not text or not self._block:
            return
        self._argued = True
        yield self._written.text(str(text)) if self._block == "answer" else self._written.arguments(str(text))

    def _close(self) -> Iterator[Json]:
        if self._block in {"answer", "call"} and not self._argued:
            yield from self._argue("{}")
        self._block = ""

    def _end(self) -> Iterator[Json]:
        if not self._blocks and self._reason != "refusal":
            raise ProviderResponseError(f"{self._who} answered without content.")
        if not self._answered:
            yield from (self._written.text(text) for text in self._beside)
        self._ended = True
        yield self._written.end(finish_of(self._reason))
        yield self._written.used(usage_of(self._usage))
