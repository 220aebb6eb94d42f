"""Chat messages, tools and settings as Gemini writes them, and its parts read back."""

from __future__ import annotations

import re
from mimetypes import guess_type
from typing import Any

import orjson

from aiquery_serving.entities.external import chat_requests as chat
from aiquery_serving.entities.external import rest_answers as rest
from aiquery_serving.messages import Json, Usage

_SETTINGS = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "n": "candidateCount",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "seed": "seed",
}
#: The second generation thinks within a budget of tokens, later ones at a level.
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24_576, "xhigh": 24_576}
_LEVELS = {"none": "minimal", "xhigh": "high"}
_FINISH = {
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "IMAGE_SAFETY": "content_filter",
}
_MODES = {"required": "ANY", "none": "NONE", "auto": "AUTO"}


def contents_of(messages: Any) -> Json:
    """Return the `systemInstruction` and the `contents` of a request.

    Raises:
        InvalidRequestError: No message, or one that cannot be said.

    Examples:
        >>> contents_of([{"role": "user", "content": "Hi"}])
        {'contents': [{'role': 'user', 'parts': [{'text': 'Hi'}]}]}
    """
    # Gemini knows the results of tools by the tools' names, the REST API by the calls' ids.
    names: dict[str, str] = {}

    def model_parts(message: Json) -> list[Json]:
        calls = chat.calls_of(message)
        names.update({str(call.get("id")): name for call, name, _ in calls})
        return [*_said(message), *(_call(call, name, arguments) for call, name, arguments in calls)]

    def tool_parts(message: Json) -> list[Json]:
        name = names.get(str(message.get("tool_call_id")), "unknown")
        return [{"functionResponse": {"name": name, "response": _result(message)}}]

    system, turns = chat.dialogue(messages, user=_said, assistant=model_parts, tool=tool_parts)
    contents = [{"role": "model" if side == "assistant" else "user", "parts": parts} for side, parts in turns]
    return (
        {"systemInstruction": {"parts": [{"text": system}]}, "contents": contents} if system else {"contents": contents}
    )


def settings_of(asked: Json, model: str) -> Json:
    """Take the settings out of a request and return them as a `generationConfig`."""
    found = {word: asked.pop(name) for name, word in _SETTINGS.items() if asked.get(name) is not None}
    if (bound := chat.take_bound(asked)) is not None:
        found["maxOutputTokens"] = bound
    if stop := chat.stop_words(asked.pop("stop", None)):
        found["stopSequences"] = stop
    form = asked.pop("response_format", None)
    if (schema := chat.schema_of(form)) is not None:
        found |= {"responseMimeType": "application/json", "responseJsonSchema": schema}
    elif chat.wants_json(form):
        found["responseMimeType"] = "application/json"
    if effort := asked.pop("reasoning_effort", None):
        found["thinkingConfig"] = _thinking(str(effort), model)
    return {**found, **(asked.pop("generationConfig", None) or {})}


def tools_of(asked: Json) -> Json:
    """Take the tools out of a request and return them as `tools` and `toolConfig`.

    Raises:
        InvalidRequestError: A tool without a function.
    """
    functions = chat.functions(asked.pop("tools", None))
    choice = asked.pop("tool_choice", None)
    if not functions:
        return {}
    sent: Json = {"tools": [{"functionDeclarations": [_declaration(function) for function in functions]}]}
    if (name := chat.chosen_function(choice)) is not None:
        sent["toolConfig"] = {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": [name]}}
    elif choice in _MODES:
        sent["toolConfig"] = {"functionCallingConfig": {"mode": _MODES[choice]}}
    return sent


def texts_and_calls(candidate: Json, answer_id: str, *, first: int = 0) -> tuple[list[str], list[Json]]:
    """Return what a candidate says and the tools it calls; thoughts are the model's own business.

    Args:
        candidate: One of an answer's candidates.
        answer_id: Makes the ids of the calls unlike those of other answers.
        first: How many calls came before, in a stream.
    """
    found = (candidate.get("content") or {}).get("parts") or []
    parts = [part for part in found if isinstance(part, dict) and not part.get("thought")]
    texts = [str(part["text"]) for part in parts if part.get("text") is not None]
    calls = [part for part in parts if isinstance(part.get("functionCall"), dict)]
    return texts, [_tool_call(part, f"call_{answer_id}_{first + index}") for index, part in enumerate(calls)]


def finish_of(reason: Any) -> str:
    """Return why a candidate ended, in the REST API's word."""
    return _FINISH.get(str(reason), "stop")


def is_blocked(answer: Json) -> bool:
    """Tell whether the prompt itself was refused, so that there is no candidate."""
    return not answer.get("candidates") and bool((answer.get("promptFeedback") or {}).get("blockReason"))


def used(usage: Any) -> Usage:
    """Return what `usageMetadata` counts; thoughts are answers, as Google bills them."""
    if not isinstance(usage, dict):
        return Usage()
    into, out = ("promptTokenCount", "toolUsePromptTokenCount"), ("candidatesTokenCount", "thoughtsTokenCount")
    return Usage(
        prompt_tokens=sum(usage.get(name) or 0 for name in into),
        completion_tokens=sum(usage.get(name) or 0 for name in out),
    )


def _said(message: Json) -> list[Json]:
    return chat.content_parts(message.get("content"), text=lambda text: {"text": text}, picture=_picture)


def _picture(url: str) -> Json:
    if (found := chat.embedded(url)) is not None:
        return {"inlineData": {"mimeType": found[0], "data": found[1]}}
    kind = guess_type(url.partition("?")[0])[0] or "image/jpeg"
    return {"fileData": {"mimeType": kind, "fileUri": url}}


def _call(call: Json, name: str, arguments: Json) -> Json:
    part: Json = {"functionCall": {"name": name, "args": arguments}}
    match call:
        # Where Gemini's own OpenAI-compatible API keeps it too. Without it, later models refuse the turn.
        case {"extra_content": {"google": {"thought_signature": str(signature)}}}:
            part["thoughtSignature"] = signature
    return part


def _tool_call(part: Json, call_id: str) -> Json:
    called = part["functionCall"]
    found = rest.tool_call(str(called.get("id") or call_id), str(called.get("name")), called.get("args") or {})
    if signature := part.get("thoughtSignature"):
        found["extra_content"] = {"google": {"thought_signature": signature}}
    return found


def _result(message: Json) -> Json:
    """Return what a tool found as the object that Gemini wants."""
    text = chat.text_of(message.get("content"))
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = text
    return found if isinstance(found, dict) else {"result": found}


def _declaration(function: Json) -> Json:
    named = {name: function[name] for name in ("name", "description") if function.get(name)}
    schema = function.get("parameters")
    return {**named, "parametersJsonSchema": schema} if schema else named


def _thinking(effort: str, model: str) -> Json:
    if re.search(r"gemini-2", model):
        return {"thinkingBudget": _BUDGETS.get(effort, -1)}
    return {"thinkingLevel": _LEVELS.get(effort, effort)}
