"""An engine that gives what a test scripts, and a tokenizer whose tokens are bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np

from aiquery_serving.errors import ContextLengthError, EngineError, OverloadedError
from aiquery_serving.llm.interface import STOP, EngineMetrics, GenerationRequest, GenerationUsage, Piece, TokenLogprob

#: What a generation does next: gives a piece, fails, or waits until an event is set.
Deed = Piece | Exception | asyncio.Event


def said(*texts: str, finish: str = STOP, logprobs: bool = False) -> list[Piece]:
    """Return an answer in pieces, its tokens being bytes."""
    last = len(texts) - 1
    return [
        Piece(text, tokens(text) if logprobs else (), finish if place == last else None)
        for place, text in enumerate(texts)
    ]


def tokens(text: str) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(byte, -0.5, ((byte, -0.5), (63, -1.5))) for byte in text.encode())


class FakeGeneration:
    def __init__(self, request: GenerationRequest, deeds: Sequence[Deed], *, stream: bool, cached: int = 0):
        self.request = request
        self.cancelled = self.ended = False
        self.cached = cached
        self._given = 0
        self._pieces = self._run(deeds) if stream else self._whole(deeds)

    @property
    def usage(self):
        return GenerationUsage(
            prompt_tokens=len(self.request.token_ids), completion_tokens=self._given, cached_tokens=self.cached
        )

    def __aiter__(self):
        return self._pieces

    def cancel(self):
        self.cancelled = self.cancelled or not self.ended

    async def _run(self, deeds):
        for deed in deeds:
            await asyncio.sleep(0)
            match deed:
                case Exception():
                    raise deed
                case asyncio.Event():
                    await deed.wait()
                case Piece():
                    self._given += len(deed.text.encode())
                    self.ended = deed.finish_reason is not None
                    yield deed

    async def _whole(self, deeds):
        pieces = [piece async for piece in self._run(deeds)]
        logprobs = tuple(token for piece in pieces for token in piece.logprobs)
        yield Piece("".join(piece.text for piece in pieces), logprobs, pieces[-1].finish_reason)


class FakeEngine:
    """Answers every request with `script(request)`, or with the texts that it is made of."""

    name, device = "fake", "cpu"

    def __init__(self, script: Callable[[GenerationRequest], Sequence[Deed]] | str = "ok", *, context_length: int = 64):
        self.script = (lambda _: said(script)) if isinstance(script, str) else script
        self.context_length = context_length
        self.generations: list[FakeGeneration] = []
        self.closed = 0

    @property
    def requests(self):
        return [generation.request for generation in self.generations]

    def submit(self, request, *, stream=False):
        asyncio.get_running_loop()
        if self.closed:
            raise OverloadedError("The engine is closed.")
        if len(request.token_ids) >= self.context_length:
            raise ContextLengthError(f"The prompt of {len(request.token_ids)} tokens leaves no room for an answer.")
        cached = len(request.token_ids) if any(each.token_ids == request.token_ids for each in self.requests) else 0
        self.generations.append(FakeGeneration(request, self.script(request), stream=stream, cached=cached))
        return self.generations[-1]

    def prepare(self, schema):
        pass

    def metrics(self):
        return EngineMetrics(finished=sum(each.ended for each in self.generations))

    def close(self):
        self.closed += 1


class FakeEmbedder:
    """Embeds a text as its length and its first bytes."""

    name, device, context_length, dimensions = "fake", "cpu", 64, 3

    def __init__(self):
        self.asked = []
        self.closed = 0

    async def embed(self, texts, *, batch=False):
        self.asked.append((texts, batch))
        if too_long := [text for text in texts if len(text) > self.context_length]:
            raise ContextLengthError(f"A text has {len(too_long[0])} tokens.")
        return np.array([[len(text), *([*text, 0, 0][:2])] for text in texts], np.float32)

    def metrics(self):
        return EngineMetrics(finished=len(self.asked))

    def close(self):
        self.closed += 1


class BytePrompter:
    """Tokens are bytes; a conversation is its contents, and what the model says begins with `>`."""

    tokenizer = range(256)

    def __init__(self, end: str = ">"):
        self.end = end
        self.told = SimpleNamespace(tools=None, extra=None)

    def chat(self, messages, *, tools=None, system_prompt=None, extra=None):
        self.told = SimpleNamespace(tools=tools, extra=extra)
        return list("".join([*(str(message["content"]) for message in messages), self.end]).encode())

    def text(self, prompt, *, raw=False):
        return list((prompt if raw else f"^{prompt}").encode())

    def texts(self, prompts, *, raw=False):
        return [self.text(prompt, raw=raw) for prompt in prompts]

    def decode(self, ids):
        return bytes(ids).decode()

    def token_bytes(self, token_id):
        return bytes([token_id])

    def token_text(self, token_id):
        return bytes([token_id]).decode(errors="replace")


def lost(message: str = "The engine failed.") -> EngineError:
    return EngineError(message)
