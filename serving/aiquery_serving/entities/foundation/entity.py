"""Foundation models of ours as served entities: their engines, asked in the REST API's words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiquery_serving.batching import estimated_tokens
from aiquery_serving.clock import Clock, SystemClock
from aiquery_serving.entities.foundation import answers, chat, completions, embedding
from aiquery_serving.entities.foundation.generating import interleaved, submitted, whole
from aiquery_serving.errors import InvalidRequestError, OverloadedError
from aiquery_serving.llm.instructions import Instructions
from aiquery_serving.llm.interface import EngineMetrics
from aiquery_serving.messages import CHAT, EMBEDDINGS, Json, Response, Stream, Usage

if TYPE_CHECKING:
    from aiquery_serving.entities.foundation.loading import OnDemand
    from aiquery_serving.entities.foundation.requests import Asked
    from aiquery_serving.llm.interface import Engine, Generation
    from aiquery_serving.llm.prompting import Prompter

#: A request that is estimated to have more tokens becomes tokens on a thread.
_LONG: Final = 5_000
#: So does one of more messages, prompts or texts, and one with tools, which may be of any length.
_MANY: Final = 100
#: What a model takes at most, where it is not loaded.
_UNBOUNDED: Final = 2**31

T = TypeVar("T")


class FoundationEntity:
    """A model with an engine: every protocol of `messages` for entities that take requests one by one.

    Args:
        name: What answers and errors call the model.
        task: What it does.
        engine: Its engine, an `EmbeddingEngine` for embeddings, loaded or not.
        prompter: Returns its tokenizer; loaded at the first call, on a thread.
        instructions: What its texts for embeddings begin with.
        clock: The time, for answers.
    """

    #: Its engine lets those who are waited for go before batch work.
    queues: Final = True

    def __init__(
        self,
        name: str,
        task: str,
        engine: OnDemand[Any],
        prompter: Callable[[], Prompter],
        *,
        instructions: Instructions | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self.task = task
        self._engine = engine
        self._prompter = prompter
        self._instructions = instructions or Instructions()
        self._clock = clock or SystemClock()

    def __repr__(self) -> str:
        return f"FoundationEntity({self.name!r}, {self.task})"

    @property
    def loaded(self) -> bool:
        """Whether its engine is in memory."""
        return self._engine.loaded is not None

    async def send(self, body: Mapping[str, Any], *, batch: bool = False) -> Response:
        """Answer one REST request body (contract D.2-D.4), loading the model first if need be.

        Args:
            body: The request.
            batch: It may wait for others.

        Raises:
            InvalidRequestError: The body, or what it asks for, is wrong.
            ContextLengthError: A prompt or a text is longer than the model's context.
            ModelError: The model does not load.
            EngineError: The engine failed over the request.
            OverloadedError: The model was taken out of service.
        """
        answer = self._embedded if self.task == EMBEDDINGS else self._generated
        return await self._again_if_lost(partial(answer, body, batch))

    async def stream(self, body: Mapping[str, Any], *, batch: bool = False) -> Stream:
        """Begin to answer one REST request body piece by piece (contract D.5); returns with the first piece.

        Args:
            body: The request.
            batch: It may wait for others.

        Raises:
            InvalidRequestError: The body is wrong, or the task has no pieces.
            As `send`.
        """
        if self.task == EMBEDDINGS:
            raise InvalidRequestError("Embeddings cannot be streamed: leave out 'stream'.")
        return await self._again_if_lost(partial(self._begun, body, batch))

    def metrics(self) -> EngineMetrics:
        """Return what its engine has done since it was loaded. From any thread."""
        engine = self._engine.loaded
        return EngineMetrics() if engine is None else engine.metrics()

    def report(self) -> Json:
        """Return the engine's name and device, whether it is loaded, and its metrics. From any thread."""
        engine, metrics = self._engine.loaded, self.metrics()
        where = {"engine": engine.name, "device": engine.device} if engine else {"engine": None, "device": None}
        return {**where, "loaded": engine is not None, **asdict(metrics), "prefix_hit_rate": metrics.prefix_hit_rate}

    def count_prompt(self, body: Mapping[str, Any]) -> int:
        """Return the input tokens of a request (a `tokens.CountsPrompts`); the model need not be loaded for it.

        Raises:
            InvalidRequestError: The body is wrong.
            ModelError: The tokenizer does not load.
        """
        prompter = self._prompter()
        if self.task == EMBEDDINGS:
            return embedding.ask(body, prompter, instructions=self._instructions, dimensions=_UNBOUNDED).tokens
        of_completions = partial(completions.ask, context=_UNBOUNDED)
        asked = (chat.ask if self.task == CHAT else of_completions)(body, prompter)
        return sum(len(each.token_ids) for each in asked.generations[:: asked.per_prompt])

    def retire(self, *, at_once: bool = False) -> None:
        """Give the engine back when it has answered what it was asked, or now. From any thread."""
        self._engine.retire(at_once=at_once)

    async def close(self) -> None:
        """Give the engine back; who waits for an answer gets an error."""
        await asyncio.to_thread(self._engine.close)

    async def _again_if_lost(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try once more, on an engine loaded anew, when the engine has ended by itself."""
        before = self._engine.loaded
        try:
            return await attempt()
        except OverloadedError:
            if before is None:
                raise
            self._engine.discard(before)
        return await attempt()

    async def _generated(self, body: Mapping[str, Any], batch: bool) -> Response:
        async with self._engine.lent() as engine:
            asked = await self._asked(engine, body, batch)
            with submitted(engine, asked.generations, stream=False) as generations:
                # They are all under way: waiting for one after the other takes no longer than for the last.
                choices = [
                    choice.whole(await whole(each)) for choice, each in zip(asked.choices, generations, strict=True)
                ]
        said, usage = _usage(asked, generations)
        return Response(body={**self._head(), "choices": choices, "usage": said}, usage=usage)

    async def _embedded(self, body: Mapping[str, Any], batch: bool) -> Response:
        async with self._engine.lent() as engine:
            asked = await self._read(body, embedding.ask, instructions=self._instructions, dimensions=engine.dimensions)
            vectors = await engine.embed(asked.texts, batch=batch)
        answer = answers.embeddings(asked.written(vectors), self.name, asked.tokens)
        return Response(body=answer, usage=Usage(prompt_tokens=asked.tokens))

    async def _begun(self, body: Mapping[str, Any], batch: bool) -> Stream:
        chunks = self._chunks(body, batch)
        await anext(chunks)
        return Stream(chunks=chunks)

    async def _chunks(self, body: Mapping[str, Any], batch: bool) -> AsyncGenerator[Json, None]:
        """Yield an empty chunk when the answer has begun, then the chunks of the answer."""
        # A generator that was never asked has nothing to close: the empty chunk is what makes closing cancel.
        async with self._engine.lent() as engine:
            asked = await self._asked(engine, body, batch)
            with submitted(engine, asked.generations, stream=True) as generations:
                head, begun = answers.of_chunk(self._head()), False
                async with aclosing(_choices(asked, generations)) as choices:
                    async for choice in choices:
                        if not begun:
                            begun = True
                            yield {}
                        yield {**head, "choices": [choice]}
                yield {**head, "choices": [], "usage": _usage(asked, generations)[0]}

    async def _asked(self, engine: Engine, body: Mapping[str, Any], batch: bool) -> Asked:
        if self.task != CHAT:
            return await self._read(body, completions.ask, context=engine.context_length, batch=batch)
        asked = await self._read(body, chat.ask, batch=batch)
        if (schema := asked.generations[0].sampling.schema) is not None:
            await asyncio.to_thread(engine.prepare, schema)
        return asked

    async def _read(self, body: Mapping[str, Any], ask: Callable[..., T], **options: Any) -> T:
        reading = partial(ask, body, self._prompter(), **options)
        return await asyncio.to_thread(reading) if _is_long(body) else reading()

    def _head(self) -> Json:
        return answers.head(self.task, self.name, now=self._clock.epoch_ms() / 1000)


def _is_long(body: Mapping[str, Any]) -> bool:
    lists = (body.get(name) for name in ("messages", "prompt", "input"))
    many = any(isinstance(items, list) and len(items) > _MANY for items in lists)
    return many or "tools" in body or estimated_tokens(body) > _LONG


async def _choices(asked: Asked, generations: list[Generation]) -> AsyncGenerator[Json, None]:
    """Yield what is said of each choice as it comes; who begins to speak is told with the first piece of any."""
    async with aclosing(interleaved(generations)) as pieces:
        begun = False
        async for place, piece in pieces:
            if not begun:
                begun = True
                for choice in asked.choices:
                    for entry in choice.begin():
                        yield entry
            for entry in asked.choices[place].feed(piece):
                yield entry


def _usage(asked: Asked, generations: list[Generation]) -> tuple[Json, Usage]:
    return answers.usage(answers.together([each.usage for each in generations], asked.per_prompt))
