"""Declarations of endpoints whose provider runs on this machine."""

from __future__ import annotations

from providers import KEY, OpenAIServer

import aiquery


def external(server: OpenAIServer, task: str, model: str, name: str | None = None) -> dict:
    entity = {
        "external_model": {
            "provider": "openai",
            "name": model,
            "task": task,
            "openai_config": {"openai_api_base": server.url, "openai_api_key_plaintext": KEY},
        }
    }
    return entity | ({"name": name} if name else {})


def create_external(workspace: aiquery.Workspace, server: OpenAIServer) -> None:
    """Create an endpoint for each task that a provider offers: `chat`, `completions` and `embeddings`."""
    for name, task, model in (
        ("chat", "llm/v1/chat", "gpt-4o"),
        ("completions", "llm/v1/completions", "gpt-3.5-turbo-instruct"),
        ("embeddings", "llm/v1/embeddings", "text-embedding-3-small"),
    ):
        workspace.create_endpoint(name, {"served_entities": [external(server, task, model)]})
