"""Answers on their way from an engine's thread to the event loops that asked for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import suppress
from typing import TypeAlias

from aiquery_serving.llm.interface import GenerationUsage, Piece

#: What is delivered: a piece, or what went wrong instead of one.
News: TypeAlias = Piece | Exception


class Answer:
    """One answer on its way. Iterated once, on the event loop on which it was asked for.

    Args:
        loop: That loop.
        usage: Returns the tokens so far.
        cancel: Called when nobody wants more, from any thread and more than once.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, usage: Callable[[], GenerationUsage], cancel: Callable[[], None]
    ) -> None:
        self.loop = loop
        self._usage, self._cancel = usage, cancel
        self._news: deque[News] = deque()
        self._waiter: asyncio.Future[None] | None = None
        #: Whether nothing more comes.
        self._ended = False

    @property
    def usage(self) -> GenerationUsage:
        """Tokens so far."""
        return self._usage()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Yield its pieces. Who stops listening cancels it."""
        try:
            while (piece := await self._next()) is not None:
                yield piece
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give its place to others at once. Nothing more comes."""
        if not self._ended:
            self._ended = True
            self._cancel()
            with suppress(RuntimeError):  # the loop is closed: nobody is waiting
                self.loop.call_soon_threadsafe(self._wake)

    def deliver(self, news: News) -> None:
        """Take what has come, on the loop."""
        self._news.append(news)
        self._wake()

    async def _next(self) -> Piece | None:
        while not self._news and not self._ended:
            self._waiter = self.loop.create_future()
            await self._waiter
        if self._ended:
            return None
        news = self._news.popleft()
        self._ended = isinstance(news, Exception) or news.finish_reason is not None
        if isinstance(news, Exception):
            raise news
        return news

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Post:
    """What an engine's thread has for event loops: handed to each of them once, however much it is."""

    def __init__(self) -> None:
        self._bags: dict[Hashable, list[tuple[Answer, News]]] = {}

    def add(self, answer: Answer, news: News) -> None:
        """Keep news until `send`."""
        self._bags.setdefault(answer.loop, []).append((answer, news))

    def send(self) -> list[Answer]:
        """Hand over what there is; returns the answers of loops that have been closed."""
        bags, self._bags = self._bags, {}
        lost = []
        for bag in bags.values():
            try:
                bag[0][0].loop.call_soon_threadsafe(_deliver, bag)
            except RuntimeError:
                lost += [answer for answer, _ in bag]
        return lost


def _deliver(bag: list[tuple[Answer, News]]) -> None:
    for answer, news in bag:
        answer.deliver(news)
