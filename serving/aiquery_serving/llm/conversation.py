"""Chat messages as chat templates expect them: contents as text, arguments of tools as objects."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import Json

SYSTEM, USER = "system", "user"
#: Roles of the REST API, and the word that templates have for each.
_ROLES = {
    SYSTEM: SYSTEM,
    "developer": SYSTEM,
    USER: USER,
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
#: What models thought is no part of the conversation.
_THOUGHTS = ("reasoning", "thinking", "redacted_thinking")


def as_conversation(messages: Sequence[Json]) -> list[Json]:
    """Return chat messages (contract D.2) in the form that templates take.

    Raises:
        InvalidRequestError: There are none, or one of them is not a message of text; the message says which.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise InvalidRequestError("messages must be a list of at least one message: [{'role': 'user', 'content': …}].")
    return [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def begun(conversation: Sequence[Json], system_prompt: str | None, *, takes_system: bool) -> list[Json]:
    """Return a conversation with a system prompt in front, unless it has one of its own.

    Where the template knows no system message, it goes in front of what the user says first.
    """
    if not system_prompt or any(message["role"] == SYSTEM for message in conversation):
        return [*conversation]
    if takes_system:
        return [{"role": SYSTEM, "content": system_prompt}, *conversation]
    place = next((place for place, message in enumerate(conversation) if message["role"] == USER), None)
    if place is None:
        return [*conversation]
    first = {**conversation[place], "content": f"{system_prompt}\n\n{conversation[place]['content']}"}
    return [*conversation[:place], first, *conversation[place + 1 :]]


def _message(message: Any, path: str) -> Json:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(f"{path} must be an object with role and content, got {type(message).__name__}.")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequestError(f"{path}.role must be one of {', '.join(_ROLES)}; got {role!r}.")
    calls = message.get("tool_calls")
    read = {**message, "role": _ROLES[role], "content": _text(message.get("content"), f"{path}.content")}
    if calls:
        return {**read, "tool_calls": _calls(calls, f"{path}.tool_calls")}
    if message.get("content") is None and role != "assistant":
        raise InvalidRequestError(f"{path}.content is missing.")
    read.pop("tool_calls", None)
    return read


def _text(content: Any, path: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | tuple):
        raise InvalidRequestError(f"{path} must be a text or a list of parts, got {type(content).__name__}.")
    return "".join(_part(part, f"{path}[{place}]") for place, part in enumerate(content))


def _part(part: Any, path: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if kind in _THOUGHTS:
        return ""
    text = part.get("text") if kind in {"text", "input_text", "output_text"} else None
    if not isinstance(text, str):
        raise InvalidRequestError(
            f"{path} must be {{'type': 'text', 'text': …}}, got one of type {kind!r}: the model reads text only."
        )
    return text


def _calls(calls: Any, path: str) -> list[Json]:
    if not isinstance(calls, list | tuple):
        raise InvalidRequestError(f"{path} must be a list.")
    return [_call(call, f"{path}[{place}]") for place, call in enumerate(calls)]


def _call(call: Any, path: str) -> Json:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequestError(f"{path} must be {{'type': 'function', 'function': {{'name', 'arguments'}}}}.")
    arguments = _arguments(function.get("arguments"), f"{path}.function.arguments")
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def _arguments(arguments: Any, path: str) -> Json:
    """Return the arguments of a call as an object: the API has JSON text."""
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{path} is not JSON: {error}.") from None
    if not isinstance(arguments or {}, Mapping):
        raise InvalidRequestError(f"{path} must be a JSON object, got {type(arguments).__name__}.")
    return dict(arguments or {})
