"""Waits for what an engine generates: whole answers, or the pieces of several as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiquery_serving.llm.interface import Generation, Piece

if TYPE_CHECKING:
    from aiquery_serving.llm.interface import Engine, GenerationRequest


@contextmanager
def submitted(engine: Engine, requests: Sequence[GenerationRequest], *, stream: bool) -> Iterator[list[Generation]]:
    """Have an engine generate; what has not ended when this is left is cancelled.

    Raises:
        ContextLengthError: A prompt leaves no room for an answer.
        InvalidRequestError: A prompt is empty, or its schema cannot be followed.
        OverloadedError: The engine is closed.
    """
    generations: list[Generation] = []
    try:
        for request in requests:
            generations.append(engine.submit(request, stream=stream))  # noqa: PERF401 - those before it are cancelled
        yield generations
    finally:
        for generation in generations:
            generation.cancel()


async def whole(generation: Generation) -> Piece:
    """Return all that is generated, as one piece.

    Raises:
        EngineError: The engine failed over it.
    """
    pieces = [piece async for piece in generation]
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.logprobs),
        pieces[-1].finish_reason if pieces else None,
    )


async def interleaved(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yield the pieces of several generations as they come, each with its generation's place.

    Raises:
        EngineError: The engine failed over one of them.
    """
    if len(generations) == 1:
        async for piece in generations[0]:
            yield 0, piece
        return
    came: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(place, each, came)) for place, each in enumerate(generations)]
    try:
        left = len(pumps)
        while left:
            item = await came.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(place: int, generation: Generation, into: asyncio.Queue[tuple[int, Piece] | Exception | None]) -> None:
    try:
        async for piece in generation:
            into.put_nowait((place, piece))
    except Exception as error:  # noqa: BLE001 - it is raised where the pieces are read
        into.put_nowait(error)
    else:
        into.put_nowait(None)
