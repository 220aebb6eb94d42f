"""Declarations of endpoints at a local provider, and files that hold them."""

from __future__ import annotations

import json
from pathlib import Path


def model(server, name="gpt-4o", **config):
    block = {"openai_api_base": server.url, "openai_api_key": "{{secrets/openai/key}}"} | config
    return {"provider": "openai", "name": name, "task": "llm/v1/chat", "openai_config": block}


def endpoint(server, name="gpt", **members):
    entity = {"name": "only", "external_model": model(server)}
    return {"name": name, "config": {"served_entities": [entity]}} | members


def declare(folder, *bodies):
    """Write a JSON file for each endpoint."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    for body in bodies:
        (folder / f"{body['name']}.json").write_text(json.dumps(body))
    return folder
