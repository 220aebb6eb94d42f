"""Served entities that a test drives: they say their words when they are told, and tell what became of them."""

from __future__ import annotations

import asyncio
import threading

from aiquery_serving.messages import CHAT, Response, Stream, Usage

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
STREAMED = {**HELLO, "stream": True}


def whole(text="hello there"):
    message = {"role": "assistant", "content": text}
    body = {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    return Response(body=body, usage=Usage(4, 3))


def piece(text):
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}


class Speaker:
    """Says its words one by one.

    Args:
        words: Chunks' texts; an error among them is raised in its place.
        fails: Raised before the answer begins.
        hangs: Whether to wait for ever after the words (or before a whole answer).
    """

    task = CHAT

    def __init__(self, words=("hel", "lo"), *, fails=None, hangs=False):
        self.words, self.fails, self.hangs = words, fails, hangs
        self.asked, self.said = [], 0
        self.began, self.hung_up, self.cancelled = threading.Event(), threading.Event(), threading.Event()

    async def send(self, body):
        self.asked.append(body)
        self.began.set()
        if self.fails is not None:
            raise self.fails
        try:
            if self.hangs:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return whole()

    async def stream(self, body):
        self.asked.append(body)
        if self.fails is not None:
            raise self.fails
        return Stream(chunks=self._chunks())

    async def _chunks(self):
        try:
            for word in self.words:
                if isinstance(word, Exception):
                    raise word
                self.said += 1
                yield piece(word)
                self.began.set()
            if self.hangs:
                await asyncio.Event().wait()
            yield {"object": "chat.completion.chunk", "choices": [], "usage": {"prompt_tokens": 4}}
        except (GeneratorExit, asyncio.CancelledError):
            self.hung_up.set()
            raise

    async def close(self):
        pass


class Scorer:
    """A custom model that answers with what it was sent."""

    input_schema = None
    output_type = None

    def __init__(self, answer=None):
        self.asked, self.answer = [], answer

    def query(self, payload):
        self.asked.append(payload)
        return {"predictions": self.answer if self.answer is not None else sorted(payload)}


class Embedder(Speaker):
    task = "llm/v1/embeddings"

    async def send(self, body):
        self.asked.append(body)
        data = [{"object": "embedding", "index": 0, "embedding": [1.0, -0.5]}]
        return Response(body={"object": "list", "data": data, "usage": {"prompt_tokens": 1}}, usage=Usage(1, 0))
