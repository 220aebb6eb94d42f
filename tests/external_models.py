"""Declarations of external models at local servers, and one call to ask them something."""

import asyncio

import orjson
from providers import KEY

from aiquery_serving.endpoint import ExternalModel
from aiquery_serving.entities.external import Answer, load_external
from aiquery_serving.messages import CHAT

REFERENCE = "{{secrets/prod/key}}"
HELLO = {"messages": [{"role": "user", "content": "good morning"}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "find", "description": "d", "parameters": SCHEMA}}


def resolve(text):
    assert text == REFERENCE
    return KEY


def openai_model(server, name="gpt-4o-mini", task=CHAT, **config):
    config = {"openai_api_base": server.url, "openai_api_key": REFERENCE} | config
    return ExternalModel(provider="openai", name=name, task=task, config=config)


def anthropic_model(server, name="claude-test"):
    config = {"anthropic_api_base": server.url, "anthropic_api_key": REFERENCE}
    return ExternalModel(provider="anthropic", name=name, task=CHAT, config=config)


def custom_model(url, task=CHAT, **auth):
    config = {"custom_provider_url": url} | auth
    return ExternalModel(provider="custom", name="team-model", task=task, config=config)


def ask(model, *bodies, transport=None, secret=resolve):
    """Send the bodies one after the other through one entity; return the last response."""

    async def send():
        entity = load_external(model, resolve=secret, transport=transport)
        try:
            for body in bodies:
                response = await entity.send(body)
            return response
        finally:
            await entity.close()

    return asyncio.run(send())


def text_of(response):
    return response.body["choices"][0]["message"]["content"]


class Recorded:
    """A transport that answers from a list and keeps what it was given."""

    def __init__(self, *answers):
        self.answers, self.posts = list(answers), []

    async def post(self, url, *, headers, body):
        self.posts.append((url, dict(headers), orjson.loads(body)))
        return self.answers.pop(0)

    async def close(self):
        pass


def answer(code=200, body=None, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(code, named, orjson.dumps(body))
