"""Answers that come piece by piece: what must happen when the last piece has gone, and pieces of whole answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from typing import Any, Self, TypeAlias

from aiquery_serving.messages import Json, Stream, Usage

#: Called once when an answer has ended, with what it used and the error that ended it, if one did.
Ending: TypeAlias = Callable[[Usage, BaseException | None], None]


class Tally:
    """What an answer has used, as far as its chunks have said."""

    def __init__(self) -> None:
        self.usage = Usage()

    async def counted(self, chunks: AsyncGenerator[Json, None]) -> AsyncGenerator[Json, None]:
        """Yield chunks, and learn from them; closing this closes them."""
        async with aclosing(chunks):
            async for chunk in chunks:
                used = chunk.get("usage")
                if isinstance(used, Mapping):
                    self.usage = Usage(used.get("prompt_tokens") or 0, used.get("completion_tokens") or 0)
                yield chunk


class Streamed:
    """One answer as it comes: `async for chunk in streamed`, once. Belongs to one event loop.

    Close it (or use it as a context manager) when nobody listens any more: that hangs up on the model.

    Attributes:
        served_entity: Who answers.
    """

    def __init__(self, stream: Stream, served_entity: str, tally: Tally, endings: Iterable[Ending]) -> None:
        self.served_entity = served_entity
        self.usage_wanted = False
        self._stream, self._chunks = stream, stream.chunks
        self._tally = tally
        self._endings = list(endings)
        self._ended = False
        self._last: Json | None = None

    def __aiter__(self) -> Self:
        return self

    @property
    def usage(self) -> Usage:
        """What the answer has used so far, as far as its chunks have said."""
        return self._tally.usage

    async def __anext__(self) -> Json:
        try:
            return await self._next()
        except StopAsyncIteration:
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            await self._close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hang up, if the answer has not ended. A second call does nothing."""
        self._end(asyncio.CancelledError())
        await self._close()

    async def _next(self) -> Json:
        """Return the next chunk. The last one that says anything waits for the usage, unless that is wanted apart."""
        while True:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                if self._last is None:
                    raise
                chunk, self._last = self._last, None
                return chunk
            if self.usage_wanted:
                return chunk
            held, self._last = self._last, None
            if chunk.get("choices") == []:
                # It tells the usage alone; clients that did not ask for it may look for a choice in every chunk.
                self._last = held and held | ({"usage": chunk["usage"]} if chunk.get("usage") else {})
            elif held is not None:
                self._last = chunk
                return held
            elif _is_last(chunk):
                self._last = chunk
            else:
                return chunk

    async def _close(self) -> None:
        for chunks in (self._chunks, *self._stream.sources):
            await chunks.aclose()

    def _end(self, error: BaseException | None) -> None:
        if not self._ended:
            self._ended = True
            for ending in self._endings:
                ending(self.usage, error)


def _is_last(chunk: Json) -> bool:
    choices = chunk.get("choices")
    return bool(choices) and not chunk.get("usage") and all(choice.get("finish_reason") for choice in choices or ())


async def noted(chunks: AsyncGenerator[Json, None], into: list[Json]) -> AsyncGenerator[Json, None]:
    """Yield chunks, and put them into a list as well; closing this closes them."""
    async with aclosing(chunks):
        async for chunk in chunks:
            into.append(chunk)
            yield chunk


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

    return Stream(chunks=all_of_them(), sources=(chunks,))


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
