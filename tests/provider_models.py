"""Declarations of models at the local servers of every provider, and calls that ask them something."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import orjson
from bedrock_server import ACCESS, REGION, SECRET, BedrockServer
from cohere_server import CohereServer
from gemini_server import GeminiServer, VertexServer
from openai_kin import API_VERSION, AI21Server, AzureServer, WorkspaceServer
from provider_base import KEY
from sign_in_servers import ACCOUNT, google, key_pair

from aiquery_serving.endpoint import ExternalModel
from aiquery_serving.entities.external import load_external
from aiquery_serving.messages import CHAT

NAMES = {"ai21labs": "jamba-mini", "amazon-bedrock": "eu.amazon.nova-lite-v1:0", "cohere": "command-a-03-2025",
         "palm": "gemini-2.5-flash", "google-cloud-vertex-ai": "gemini-2.5-flash"}  # fmt: skip
SECRETS = {"key": KEY, "id": ACCESS, "secret": SECRET}


def resolve(reference):
    """Open `{{secrets/s/name}}` from a table."""
    return SECRETS[reference.removeprefix("{{secrets/s/").removesuffix("}}")]


def ref(name):
    return f"{{{{secrets/s/{name}}}}}"


def declared(provider, name=None, task=CHAT, **config):
    return ExternalModel(provider=provider, name=name or NAMES.get(provider, "model-a"), task=task, config=config)


def azure_config(server, **config):
    return {"openai_api_type": "azure", "openai_api_base": server.origin, "openai_api_version": API_VERSION,
            "openai_deployment_name": "prod", "openai_api_key": ref("key")} | config  # fmt: skip


def bedrock_config(server, **config):
    return {"aws_region": REGION, "bedrock_provider": "amazon", "bedrock_api_base": server.origin,
            "aws_access_key_id": ref("id"), "aws_secret_access_key": ref("secret")} | config  # fmt: skip


def vertex_config(server, **config):
    return {
        "project_id": "p1",
        "region": "europe-west4",
        "vertex_api_base": server.origin,
        "private_key": ref("gcp"),
    } | config


@cache
def service_account():
    """Return a private key and its certificate, made once: they take a while."""
    return key_pair()


def key_file(sign_in, **members):
    private = service_account()[0].decode()
    info = {"type": "service_account", "client_email": ACCOUNT, "private_key": private, "private_key_id": "k1",
            "token_uri": f"{sign_in.origin}/token"}  # fmt: skip
    return orjson.dumps(info | members).decode()


@contextmanager
def served(provider: str, **knobs: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Run a provider's server and yield it with the `config` of a model at it."""
    match provider:
        case "openai":
            with AzureServer(**knobs) as server:
                yield server, azure_config(server)
        case "databricks-model-serving":
            with WorkspaceServer(**knobs) as server:
                yield server, {"databricks_workspace_url": server.origin, "databricks_api_token": ref("key")}
        case "ai21labs":
            with AI21Server(**knobs) as server:
                yield server, {"ai21labs_api_base": server.url, "ai21labs_api_key": ref("key")}
        case "cohere":
            with CohereServer(**knobs) as server:
                yield server, {"cohere_api_base": server.url, "cohere_api_key": ref("key")}
        case "palm":
            with GeminiServer(**knobs) as server:
                yield server, {"palm_api_base": server.url, "palm_api_key": ref("key")}
        case "google-cloud-vertex-ai":
            with google(service_account()[1]) as sign_in, VertexServer(**({"keys": sign_in.given} | knobs)) as server:
                SECRETS["gcp"] = key_file(sign_in)
                server.sign_in = sign_in
                yield server, vertex_config(server)
        case "amazon-bedrock":
            with BedrockServer(**knobs) as server:
                yield server, bedrock_config(server)


def ask(model, *bodies, secret=resolve):
    """Send the bodies one after the other through one entity; return the last response."""

    async def send(entity):
        for body in bodies:
            response = await entity.send(body)
        return response

    return with_entity(model, secret, send)


def pieces(model, body, secret=resolve):
    """Return the chunks of a streamed answer."""

    async def read(entity):
        stream = await entity.stream(body)
        return [chunk async for chunk in stream.chunks]

    return with_entity(model, secret, read)


def with_entity(model, secret, use):
    async def run():
        entity = load_external(model, resolve=secret, transport=None)
        try:
            return await use(entity)
        finally:
            await entity.close()

    return asyncio.run(run())


def put_together(chunks):
    """Return the message, finish reason and usage that chunks amount to, as an OpenAI client does."""
    text, calls, finish, usage = "", {}, None, None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            finish = choice["finish_reason"] or finish
            text += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls") or []:
                known = calls.setdefault(call["index"], {"name": "", "arguments": ""})
                known["name"] += call["function"].get("name") or ""
                known["arguments"] += call["function"].get("arguments") or ""
    return text, list(calls.values()), finish, usage
