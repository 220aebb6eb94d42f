"""Chat messages, tools and settings as Bedrock's Converse writes them, and its content read back."""

from __future__ import annotations

from typing import Any

import orjson

from aiquery_serving.entities.external import chat_requests as chat
from aiquery_serving.entities.external import rest_answers as rest
from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import Json, Usage

#: The tool whose arguments are the answer, for models without structured outputs.
ANSWER_TOOL = "answer"
#: Why an answer ended; everything else is its natural end.
FINISH = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
_SETTINGS = {"temperature": "temperature", "top_p": "topP"}
#: Members of a Converse request that somebody may give as they are; others are the model's own.
_OWN = frozenset(
    {"guardrailConfig", "requestMetadata", "performanceConfig", "serviceTier", "outputConfig", "promptVariables"}
)
_EFFORT = {"minimal": "low"}


def messages_of(messages: Any) -> Json:
    """Return the `system` and the `messages` of a request.

    Raises:
        InvalidRequestError: No message, or one that cannot be said.

    Examples:
        >>> messages_of([{"role": "user", "content": "Hi"}])
        {'messages': [{'role': 'user', 'content': [{'text': 'Hi'}]}]}
    """
    system, turns = chat.dialogue(messages, user=_said, assistant=_answered, tool=_found)
    said = {"messages": [{"role": side, "content": parts} for side, parts in turns]}
    return {"system": [{"text": system}], **said} if system else said


def settings_of(asked: Json, maker: str, *, who: str) -> Json:
    """Take the settings out of a request and return them; what is left is the model's own affair.

    Args:
        asked: A request without messages, tools and form of the answer.
        maker: The `bedrock_provider`.
        who: The provider and the model, for messages.

    Raises:
        InvalidRequestError: Something that the model has no word for.
    """
    inference = {word: asked.pop(name) for name, word in _SETTINGS.items() if asked.get(name) is not None}
    if (bound := chat.take_bound(asked)) is not None:
        inference["maxTokens"] = bound
    if stop := chat.stop_words(asked.pop("stop", None)):
        inference["stopSequences"] = stop
    sent = {name: asked.pop(name) for name in _OWN & asked.keys()}
    if effort := asked.pop("reasoning_effort", None):
        sent["outputConfig"] = {"effort": _EFFORT.get(effort, effort), **sent.get("outputConfig", {})}
    model_own = _own_fields(asked, maker, who)
    named = {"inferenceConfig": inference, "additionalModelRequestFields": model_own}
    return {**sent, **{name: value for name, value in named.items() if value}}


def tools_of(asked: Json) -> Json:
    """Take the tools out of a request and return them as a `toolConfig`.

    Raises:
        InvalidRequestError: A tool without a function.
    """
    functions = chat.functions(asked.pop("tools", None))
    choice = asked.pop("tool_choice", None)
    # Converse cannot forbid tools, but a model that sees none calls none.
    if not functions or choice == "none":
        return {}
    config: Json = {"tools": [_tool(function) for function in functions]}
    if (name := chat.chosen_function(choice)) is not None:
        config["toolChoice"] = {"tool": {"name": name}}
    elif choice == "required":
        config["toolChoice"] = {"any": {}}
    return {"toolConfig": config}


def answer_tool(schema: Json) -> Json:
    """Return the `toolConfig` that makes a model give its answer as the arguments of a tool."""
    spec = {"name": ANSWER_TOOL, "description": "Give the answer.", "inputSchema": {"json": schema}}
    return {"toolConfig": {"tools": [{"toolSpec": spec}], "toolChoice": {"tool": {"name": ANSWER_TOOL}}}}


def text_format(schema: Json, name: str) -> Json:
    """Return the `textFormat` of an `outputConfig` that holds an answer to a schema."""
    definition = {"name": name, "schema": orjson.dumps(schema).decode()}
    return {"type": "json_schema", "structure": {"jsonSchema": definition}}


def texts_and_calls(blocks: list[Any], *, answer_tool: bool) -> tuple[list[str], list[Json]]:
    """Return what a message says and the tools it calls; reasoning is the model's own business.

    Args:
        blocks: The message's `content`.
        answer_tool: The arguments of the tool `answer` are the answer.
    """
    found = [block for block in blocks if isinstance(block, dict)]
    uses = [block["toolUse"] for block in found if isinstance(block.get("toolUse"), dict)]
    if answer_tool and (answers := [use for use in uses if use.get("name") == ANSWER_TOOL]):
        return [orjson.dumps(answers[0].get("input")).decode()], []
    texts = [str(block["text"]) for block in found if block.get("text") is not None]
    calls = [rest.tool_call(str(use.get("toolUseId")), str(use.get("name")), use.get("input") or {}) for use in uses]
    return texts, calls


def used(usage: Any) -> Usage:
    """Return what an answer's `usage` counts; what came from a cache was read too."""
    if not isinstance(usage, dict):
        return Usage()
    into = ("inputTokens", "cacheReadInputTokens", "cacheWriteInputTokens")
    return Usage(
        prompt_tokens=sum(usage.get(name) or 0 for name in into),
        completion_tokens=usage.get("outputTokens") or 0,
    )


def _said(message: Json) -> list[Json]:
    return chat.content_parts(message.get("content"), text=lambda text: {"text": text}, picture=_picture)


def _answered(message: Json) -> list[Json]:
    uses = [
        {"toolUse": {"toolUseId": str(call.get("id")), "name": name, "input": arguments}}
        for call, name, arguments in chat.calls_of(message)
    ]
    return [*_said(message), *uses]


def _found(message: Json) -> list[Json]:
    # An empty text is refused, and a tool may well find nothing.
    text = chat.text_of(message.get("content")) or "(nothing)"
    return [{"toolResult": {"toolUseId": str(message.get("tool_call_id")), "content": [{"text": text}]}}]


def _picture(url: str) -> Json:
    found = chat.embedded(url)
    if found is None:
        raise InvalidRequestError("Bedrock fetches no pictures: send each as a data: URL.")
    return {"image": {"format": found[0].removeprefix("image/").replace("jpg", "jpeg"), "source": {"bytes": found[1]}}}


def _own_fields(asked: Json, maker: str, who: str) -> Json:
    fields = {name: value for name, value in asked.items() if value is not None}
    given = fields.pop("additionalModelRequestFields", None) or {}
    most = fields.pop("top_k", None)
    return {**fields, **(_top_k(most, maker, who) if most is not None else {}), **given}


def _top_k(most: Any, maker: str, who: str) -> Json:
    """Return `top_k` where the models of a maker look for it."""
    match maker:
        case "anthropic":
            return {"top_k": most}
        case "cohere":
            return {"k": most}
        case "amazon":
            return {"inferenceConfig": {"topK": most}}
    raise InvalidRequestError(f"{who} has no parameter 'top_k': leave it out.")


def _tool(function: Json) -> Json:
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    named = {name: function[name] for name in ("name", "description", "strict") if function.get(name)}
    return {"toolSpec": {**named, "inputSchema": {"json": schema}}}
