"""Entities that answer piece by piece, and a gateway around one endpoint `chat` of them."""

import asyncio
import threading

from aiquery.testing import ManualClock
from aiquery_serving import errors
from aiquery_serving.endpoint import EndpointConfig, ExternalModel, Route, ServedEntity
from aiquery_serving.gateway import Gateway
from aiquery_serving.messages import Response, Stream, Usage
from aiquery_serving.registry import Serving

BODY = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
WORDS = ["one ", "two ", "three"]
USAGE = {"prompt_tokens": 4, "completion_tokens": 3}


def chunk(text, **more):
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}], **more}


def ended(text):
    last = chunk(text)
    last["choices"][0]["finish_reason"] = "stop"
    return last


def text_of(chunks):
    return "".join(c["choices"][0].get("delta", {}).get("content", "") for c in chunks if c["choices"])


class Speaker:
    """A provider's entity that says its words one by one; `fails` before them, or `breaks` after some."""

    task = "llm/v1/chat"

    def __init__(self, fails=(), breaks=None, says=None):
        self.fails, self.breaks = list(fails), breaks
        self.says = says or [*map(chunk, WORDS[:-1]), ended(WORDS[-1]), {"choices": [], "usage": USAGE}]
        self.asked, self.hung_up = [], 0

    async def send(self, body):
        return Response(body={}, usage=Usage(1, 1))

    async def close(self):
        pass

    async def stream(self, body):
        self.asked.append(body)
        if self.fails and (error := self.fails.pop(0)) is not None:
            raise error
        return Stream(chunks=self._chunks())

    async def _chunks(self):
        try:
            for place, said in enumerate(self.says):
                if self.breaks is not None and place == self.breaks[0]:
                    raise self.breaks[1]
                await asyncio.sleep(0)
                yield said
        except GeneratorExit:
            self.hung_up += 1
            raise


class Whole:
    """A provider's entity that knows whole answers only."""

    task = "llm/v1/chat"

    async def send(self, body):
        assert "stream" not in body
        message = {"role": "assistant", "content": "all of it"}
        body = {"object": "chat.completion", "id": "1", "choices": [{"index": 0, "message": message}], "usage": USAGE}
        return Response(body=body, usage=Usage(4, 3))

    async def close(self):
        pass


class Teller:
    """A model of ours that yields its pieces; remembers the threads that asked for them."""

    input_schema = output_type = None
    can_stream = True

    def __init__(self, breaks=None):
        self.breaks, self.threads, self.closed = breaks, set(), threading.Event()

    def predict(self, rows, params=None):
        raise NotImplementedError

    def query(self, payload):
        return {"predictions": [1]}

    def stream(self, payload):
        try:
            for place, word in enumerate(WORDS):
                self.threads.add(threading.get_ident())
                if place == self.breaks:
                    raise errors.ModelError("broken")
                yield chunk(word)
        finally:
            self.closed.set()


class World:
    def __init__(self, *, rate_limits=(), fallback=False, concurrency=None, ai_gateway=None, **entities):
        custom = isinstance(next(iter(entities.values())), Teller)
        served = tuple(_served(name, concurrency, custom=custom) for name in entities)
        routes = tuple(Route(name, 0 if place else 100) for place, name in enumerate(entities))
        config = EndpointConfig(served_entities=served, routes=routes)
        self.now = Serving("chat", config, entities, tuple(rate_limits), fallback, ai_gateway=ai_gateway)
        self.usage, self.clock = [], ManualClock()
        self.gateway = Gateway(self, clock=self.clock, usage=self.usage.append, draw=lambda: 1.0)

    def serving(self, name, *, wait=None):
        return self.now

    async def said(self, **body):
        async with await self.gateway.stream("chat", {**BODY, **body}, patient=False) as streamed:
            return [chunk async for chunk in streamed]


def _served(name, concurrency, *, custom):
    if custom:
        return ServedEntity(name=name, entity_name="m", entity_version="1", workload_size="Small")
    model = ExternalModel(provider="openai", name="gpt", task="llm/v1/chat")
    return ServedEntity(name=name, external_model=model, max_provisioned_concurrency=concurrency)
