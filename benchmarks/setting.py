"""What several benchmarks share: a connection with an endpoint `chat` in front of a provider."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
from providers import KEY

import aiquery


def chat_entity(url: str, concurrency: int | None = None) -> dict:
    """Declare an OpenAI chat model behind `url`."""
    provider = {"openai_api_base": url, "openai_api_key_plaintext": KEY}
    model = {"provider": "openai", "name": "gpt-4o", "task": "llm/v1/chat", "openai_config": provider}
    return {"external_model": model} | ({"max_provisioned_concurrency": concurrency} if concurrency else {})


@contextmanager
def connected(url: str, concurrency: int | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a workspace in memory with one chat endpoint, and a connection that knows it."""
    with aiquery.Workspace(":memory:") as workspace, duckdb.connect() as con:
        workspace.create_endpoint("chat", {"served_entities": [chat_entity(url, concurrency)]})
        aiquery.register(con, workspace=workspace)
        yield con
