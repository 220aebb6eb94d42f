"""Declarations of endpoints that the engine tests share."""

from __future__ import annotations

from providers import KEY, OpenAIServer


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
