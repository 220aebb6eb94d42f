"""Chat messages as Anthropic writes them: the system apart, content in blocks, tools in turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson

from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import Json

_DATA_URL = re.compile(r"data:(?P<media>[\w.+-]+/[\w.+-]+);base64,(?P<data>.+)", re.DOTALL)
_SYSTEM = frozenset({"system", "developer"})


def dialogue(messages: Sequence[Json]) -> tuple[str, list[Json]]:
    """Return the system text and the turns of user and assistant.

    Results of tools are the user's, and those that follow each other belong in one turn.

    Raises:
        InvalidRequestError: No turn is left, or one that cannot be said.

    Examples:
        >>> dialogue([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
        ('Be brief.', [{'role': 'user', 'content': 'Hi'}])
    """
    system = [_text(turn.get("content")) for turn in messages if turn.get("role") in _SYSTEM]
    turns: list[Json] = []
    for message in messages:
        if message.get("role") not in _SYSTEM:
            _append(turns, message)
    if not turns:
        raise InvalidRequestError("'messages' needs at least one message of the role 'user'.")
    return "\n\n".join(filter(None, system)), turns


def _append(turns: list[Json], message: Json) -> None:
    match message.get("role"):
        case "user":
            turns.append({"role": "user", "content": _content(message.get("content"))})
        case "assistant":
            turns.append({"role": "assistant", "content": _spoken(message)})
        case "tool":
            _append_result(turns, message)
        case role:
            raise InvalidRequestError(f"The role {role!r} is not one of system, developer, user, assistant, tool.")


def _append_result(turns: list[Json], message: Json) -> None:
    result = {
        "type": "tool_result",
        "tool_use_id": message.get("tool_call_id"),
        "content": _text(message.get("content")),
    }
    last = turns[-1]["content"] if turns else None
    if isinstance(last, list) and last and last[-1].get("type") == "tool_result":
        last.append(result)
    else:
        turns.append({"role": "user", "content": [result]})


def _spoken(message: Json) -> Any:
    calls = message.get("tool_calls") or []
    if not calls:
        return _content(message.get("content"))
    text = _text(message.get("content"))
    said = [{"type": "text", "text": text}] if text else []
    return [*said, *(_use(call) for call in calls)]


def _use(call: Json) -> Json:
    function = call.get("function") or {}
    try:
        arguments = orjson.loads(function.get("arguments") or "{}")
    except orjson.JSONDecodeError:
        raise InvalidRequestError(f"The arguments of the tool call '{call.get('id')}' are not JSON.") from None
    return {
        "type": "tool_use",
        "id": call.get("id"),
        "name": function.get("name"),
        "input": arguments,
    }


def _content(content: Any) -> Any:
    return [_block(part) for part in content] if isinstance(content, list) else content or ""


def _block(part: Any) -> Json:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return {"type": "image", "source": _source(url)}
        case {"type": str(kind)}:
            raise InvalidRequestError(
                f"A part of the type '{kind}' cannot be sent to anthropic; use text or image_url."
            )
        case _:
            raise InvalidRequestError("Every part of a message's content needs a 'type'.")


def _source(url: str) -> Json:
    match = _DATA_URL.fullmatch(url)
    if match is None:
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": match["media"], "data": match["data"]}


def _text(content: Any) -> str:
    """Return the text of a content that may only be text."""
    if not isinstance(content, list):
        return str(content or "")
    return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
