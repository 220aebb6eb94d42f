"""What a chat request says, read piece by piece for providers that use other words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import orjson

from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import Json

#: The parts of a provider's message that a REST message becomes.
Parts: TypeAlias = Callable[[Json], list[Json]]

_DATA_URL = re.compile(r"data:(?P<media>[\w.+-]+/[\w.+-]+);base64,(?P<data>.+)", re.DOTALL)
_SYSTEM = frozenset({"system", "developer"})


def dialogue(messages: Any, *, user: Parts, assistant: Parts, tool: Parts) -> tuple[str, list[tuple[str, list[Json]]]]:
    """Return the system text, and the turns of `user` and `assistant`, which alternate.

    What a tool found is said by the user. Messages of the same side that follow each other are one turn.

    Args:
        messages: The `messages` of a chat body.
        user: Writes a message of the user's in the provider's parts.
        assistant: The same for the model's.
        tool: The same for what a tool found.

    Raises:
        InvalidRequestError: No turn is left, or a role is unknown.
    """
    said = messages if isinstance(messages, list) else []
    sides = {"user": ("user", user), "tool": ("user", tool), "assistant": ("assistant", assistant)}
    turns: list[tuple[str, list[Json]]] = []
    for message in said:
        if (role := role_of(message)) in _SYSTEM:
            continue
        if role not in sides:
            raise InvalidRequestError(f"The role {role!r} is not one of system, developer, user, assistant, tool.")
        side, parts = sides[role]
        if not turns or turns[-1][0] != side:
            turns.append((side, []))
        turns[-1][1].extend(parts(message))
    if not any(parts for _, parts in turns):
        raise InvalidRequestError("'messages' needs at least one message of the role 'user'.")
    system = [text_of(message.get("content")) for message in said if role_of(message) in _SYSTEM]
    return "\n\n".join(filter(None, system)), [turn for turn in turns if turn[1]]


def role_of(message: Any) -> str:
    """Return who says a message.

    Raises:
        InvalidRequestError: It is no message.
    """
    if not isinstance(message, dict):
        raise InvalidRequestError("Every entry of 'messages' is an object with 'role' and 'content'.")
    return str(message.get("role"))


def text_of(content: Any) -> str:
    """Return the text of a content that may only be text."""
    if not isinstance(content, list):
        return str(content or "")
    return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))


def content_parts(content: Any, *, text: Callable[[str], Json], picture: Callable[[str], Json]) -> list[Json]:
    """Return a content as the provider's parts; texts that are empty say nothing and are left out.

    Args:
        content: A text, or a list of parts of the type `text` or `image_url`.
        text: Writes a text as a part.
        picture: Writes the URL of a picture as a part.

    Raises:
        InvalidRequestError: A part of another type.
    """
    if not isinstance(content, list):
        return [text(str(content))] if content else []
    return [_part(part, text, picture) for part in content if part != {"type": "text", "text": ""}]


def _part(part: Any, text: Callable[[str], Json], picture: Callable[[str], Json]) -> Json:
    match part:
        case {"type": "text", "text": str(said)}:
            return text(said)
        case {"type": "image_url", "image_url": {"url": str(url)}} | {"type": "image_url", "image_url": str(url)}:
            return picture(url)
        case {"type": str(kind)}:
            raise InvalidRequestError(f"A part of the type '{kind}' cannot be sent; use text or image_url.")
        case _:
            raise InvalidRequestError("Every part of a message's content needs a 'type'.")


def embedded(url: str) -> tuple[str, str] | None:
    """Return the media type and the base64 text of a `data:` URL; None for another.

    Examples:
        >>> embedded("data:image/png;base64,aGk=")
        ('image/png', 'aGk=')
    """
    match = _DATA_URL.fullmatch(url)
    return (match["media"], match["data"]) if match else None


def calls_of(message: Json) -> list[tuple[Json, str, Json]]:
    """Return the tools that a message calls: each call, the tool's name and its arguments.

    Raises:
        InvalidRequestError: The arguments are not a JSON object.
    """
    return [(call, *_function_of(call)) for call in message.get("tool_calls") or []]


def _function_of(call: Json) -> tuple[str, Json]:
    function = call.get("function") or {}
    try:
        arguments = orjson.loads(function.get("arguments") or "{}")
    except orjson.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequestError(f"The arguments of the tool call '{call.get('id')}' are not a JSON object.")
    return str(function.get("name")), arguments


def functions(tools: Any) -> list[Json]:
    """Return the functions among the tools of a request.

    Raises:
        InvalidRequestError: A tool is no function with a name.
    """
    found = [tool.get("function") if isinstance(tool, dict) else None for tool in tools or []]
    if not all(isinstance(function, dict) and function.get("name") for function in found):
        raise InvalidRequestError("Every entry of 'tools' needs a 'function' with a name.")
    return [function for function in found if function is not None]


def chosen_function(choice: Any) -> str | None:
    """Return the name of the one function that `tool_choice` asks for."""
    match choice:
        case {"function": {"name": str(name)}}:
            return name
        case _:
            return None


def schema_of(form: Any) -> Json | None:
    """Return the JSON schema that a `response_format` names."""
    match form:
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
        case _:
            return None


def wants_json(form: Any) -> bool:
    """Tell whether a `response_format` asks for JSON without a schema."""
    return isinstance(form, dict) and form.get("type") == "json_object"


def stop_words(stop: Any) -> list[str]:
    """Return `stop`, a text or several, as a list."""
    return [stop] if isinstance(stop, str) else list(stop or [])


def take_bound(asked: Json) -> int | None:
    """Take the most tokens of an answer out of a request, by either of its names."""
    bounds = asked.pop("max_tokens", None), asked.pop("max_completion_tokens", None)
    return next((bound for bound in bounds if bound is not None), None)


def refuse(asked: Json, unknown: Iterable[str], *, who: str) -> None:
    """Take parameters that a provider has no word for out of a request, where they ask for nothing.

    Raises:
        InvalidRequestError: One of them asks for something.
    """
    for name in unknown:
        if asked.pop(name, None):
            raise InvalidRequestError(f"{who} has no parameter '{name}': leave it out.")


def refuse_several(asked: Json, *, who: str) -> None:
    """Take `n` out of a request to a provider that gives one answer a request.

    Raises:
        InvalidRequestError: More than one is asked for.
    """
    if (asked.pop("n", None) or 1) != 1:
        raise InvalidRequestError(f"{who} gives one answer a request: leave 'n' at 1.")


def refuse_one_at_a_time(asked: Json, *, who: str) -> None:
    """Take `parallel_tool_calls` out of a request to a provider that cannot forbid them.

    Raises:
        InvalidRequestError: It is false.
    """
    if asked.pop("parallel_tool_calls", None) is False:
        raise InvalidRequestError(f"{who} cannot be kept to one tool call: leave out 'parallel_tool_calls'.")


def texts_of(inputs: Any, *, who: str) -> Sequence[str]:
    """Return the texts of an embeddings request.

    Raises:
        InvalidRequestError: They are something else, such as token numbers.
    """
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidRequestError(f"{who} embeds texts: 'input' must be a text or a list of texts.")
    return texts
