"""What Anthropic's messages answer, in the words of a chat completion."""

from __future__ import annotations

from typing import Any

import orjson

from aiquery_serving.entities.external import rest_answers as rest
from aiquery_serving.messages import Json, Usage

#: The tool that a model must call whose schemas are not enforced: what it is called with is the answer.
ANSWER_TOOL = "answer"

_FINISH = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def finish_of(reason: object) -> str:
    """Return the finish reason that a stop reason is."""
    return _FINISH.get(str(reason), "stop")


def usage_of(usage: Any) -> Usage:
    """Return what a message used; tokens that were cached count as well."""
    if not isinstance(usage, dict):
        return Usage()
    into = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return Usage(
        prompt_tokens=sum(usage.get(name) or 0 for name in into),
        completion_tokens=usage.get("output_tokens") or 0,
    )


def message_of(blocks: list[Any], *, schema_tool: bool) -> Json:
    """Return the assistant's message; thinking is the model's own business and is left out."""
    blocks = [block for block in blocks if isinstance(block, dict)]
    texts = [str(block.get("text", "")) for block in blocks if block.get("type") == "text"]
    uses = [block for block in blocks if block.get("type") == "tool_use"]
    if schema_tool and (answers := [use for use in uses if use.get("name") == ANSWER_TOOL]):
        return {"role": "assistant", "content": orjson.dumps(answers[0].get("input")).decode()}
    message: Json = {"role": "assistant", "content": "".join(texts) if texts or not uses else None}
    if uses:
        message["tool_calls"] = [
            rest.tool_call(str(use.get("id")), str(use.get("name")), use.get("input", {})) for use in uses
        ]
    return message
