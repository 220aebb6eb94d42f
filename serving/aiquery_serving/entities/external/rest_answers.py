"""The REST API's own answers, made of what a provider said in other words (contract D.2-D.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from aiquery_serving.errors import ProviderResponseError
from aiquery_serving.messages import Json, Usage


def completion(answer_id: str, model: str, choices: list[Json], usage: Usage, *, now: float) -> Json:
    """Return a chat completion; `now` in seconds since 1970."""
    return {
        "id": answer_id,
        "object": "chat.completion",
        "created": int(now),
        "model": model,
        "choices": choices,
        "usage": counted(usage),
    }


def choice(texts: Sequence[str], calls: list[Json], finish: str, *, index: int = 0) -> Json:
    """Return one answer of a chat completion: texts said, tools called, and why it ended."""
    message: Json = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    if calls:
        message["tool_calls"] = calls
    return {"index": index, "message": message, "finish_reason": _finish(finish, called=bool(calls))}


def tool_call(call_id: str, name: str, arguments: Any) -> Json:
    """Return a call of a tool; `arguments` is the JSON value, not its text."""
    function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
    return {"id": call_id, "type": "function", "function": function}


def counted(usage: Usage) -> Json:
    """Return what an answer used, as chat completions say it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def embeddings(vectors: Any, model: str, usage: Usage, *, wanted: int, who: str) -> Json:
    """Return the answer to an embeddings request.

    Args:
        vectors: One list of numbers for each input, in order.
        model: The model's name.
        usage: What it used.
        wanted: How many inputs there were.
        who: The provider and the model, for messages.

    Raises:
        ProviderResponseError: Another number of vectors, or no vectors.
    """
    found = vectors if isinstance(vectors, list) else []
    if len(found) != wanted:
        raise ProviderResponseError(f"{who} answered with {len(found)} embeddings for {wanted} inputs.")
    if not all(isinstance(vector, list) and vector for vector in found):
        raise ProviderResponseError(f"{who} answered with malformed embeddings.")
    return {
        "object": "list",
        "model": model,
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(found)],
        "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens},
    }


def _finish(reason: str, *, called: bool) -> str:
    """Return why an answer ended; it ends with calls when, and only when, there are some."""
    if called:
        return "tool_calls"
    return "stop" if reason == "tool_calls" else reason
