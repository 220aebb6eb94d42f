"""Answers that come piece by piece: what must happen when the last piece has gone, and pieces of whole answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Self, TypeAlias

from aiquery_serving.messages import Json, Stream, Usage

#: Called once when an answer has ended, with what it used and the error that ended it, if one did.
Ending: TypeAlias = Callable[[Usage, BaseException | None], None]


class Streamed:
    """One answer as it comes: `async for chunk in streamed`, once. Belongs to one event loop.

    Close it (or use it as a context manager) when nobody listens any more: that hangs up on the model.

    Attributes:
        served_entity: Who answers.
        usage: What the answer used, as far as its chunks have said.
    """

    def __init__(
        self, stream: Stream, served_entity: str, endings: Iterable[Ending], *, usage_wanted: bool = False
    ) -> None:
        self.served_entity = served_entity
        self.usage = Usage()
        self._chunks = stream.chunks
        self._endings = list(endings)
        self._usage_wanted = usage_wanted
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Json:
        try:
            while True:
                chunk = await anext(self._chunks)
                if self._passes(chunk):
                    return chunk
        except StopAsyncIteration:
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hang up, if the answer has not ended. A second call does nothing."""
        self._end(asyncio.CancelledError())
        await self._chunks.aclose()

    def _passes(self, chunk: Json) -> bool:
        """Learn from a chunk, and say whether it is the caller's: one without choices tells the usage only."""
        used = chunk.get("usage")
        if isinstance(used, Mapping):
            self.usage = Usage(used.get("prompt_tokens") or 0, used.get("completion_tokens") or 0)
        return self._usage_wanted or chunk.get("choices") != []

    def _end(self, error: BaseException | None) -> None:
        if not self._ended:
            self._ended = True
            for ending in self._endings:
                ending(self.usage, error)


def in_one_piece(body: Json) -> Stream:
    """Return a whole answer as a stream, for entities that cannot answer piece by piece."""

    async def chunks() -> AsyncGenerator[Json, None]:
        for chunk in pieces(body):
            yield chunk

    return Stream(chunks=chunks())


def pieces(body: Json) -> list[Json]:
    """Return the chunks of a whole answer: one with all that was said, one that ends it.

    What is neither a chat completion nor a completion is its own only chunk.

    Examples:
        >>> body = {"object": "text_completion", "choices": [{"index": 0, "text": "Hi", "finish_reason": "stop"}]}
        >>> [chunk["choices"][0] for chunk in pieces(body)]
        [{'index': 0, 'text': 'Hi', 'finish_reason': None}, {'index': 0, 'text': '', 'finish_reason': 'stop'}]
    """
    kind, choices = body.get("object"), body.get("choices")
    if kind not in ("chat.completion", "text_completion") or not isinstance(choices, list):
        return [body]
    head = {name: value for name, value in body.items() if name not in ("choices", "usage")}
    head["object"] = "chat.completion.chunk" if kind == "chat.completion" else kind
    said = {**head, "choices": [_said(choice) for choice in choices]}
    end = {**head, "choices": [_end_of(choice) for choice in choices]}
    return [said, end | ({"usage": body["usage"]} if body.get("usage") else {})]


async def on_a_thread(answers: Iterator[Json]) -> Stream:
    """Return what a model yields as a stream: every piece is computed when it is asked for, on one thread.

    Raises:
        ModelError: The model raised before its first piece.
    """
    chunks = _from_thread(answers)
    try:
        first = await anext(chunks)
    except StopAsyncIteration:
        return Stream(chunks=chunks)

    async def all_of_them() -> AsyncGenerator[Json, None]:
        try:
            yield first
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    return Stream(chunks=all_of_them())


async def _from_thread(answers: Iterator[Json]) -> AsyncGenerator[Json, None]:
    # One thread and one context for all pieces: models keep traces and the like in both.
    loop, context = asyncio.get_running_loop(), copy_context()
    thread = ThreadPoolExecutor(1, thread_name_prefix="aiquery-stream")
    try:
        while (piece := await loop.run_in_executor(thread, context.run, _next, answers)) is not None:
            yield piece
    finally:
        if (close := getattr(answers, "close", None)) is not None:
            thread.submit(context.run, close)
        thread.shutdown(wait=False)


def _next(answers: Iterator[Json]) -> Json | None:
    return next(answers, None)


def _said(choice: Mapping[str, Any]) -> Json:
    kept = {name: value for name, value in choice.items() if name not in ("message", "finish_reason")}
    if "message" not in choice:
        return {**kept, "finish_reason": None}
    delta = dict(choice["message"])
    if delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(delta["tool_calls"])]
    return {**kept, "delta": delta, "finish_reason": None}


def _end_of(choice: Mapping[str, Any]) -> Json:
    rest: Json = {"delta": {}} if "message" in choice else {"text": ""}
    return {"index": choice.get("index", 0), **rest, "finish_reason": choice.get("finish_reason") or "stop"}
