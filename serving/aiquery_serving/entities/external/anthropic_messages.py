"""Chat messages as Anthropic writes them: the system apart, content in blocks, tools in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiquery_serving.entities.external import chat_requests as chat
from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import Json

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
    system = [chat.text_of(turn.get("content")) for turn in messages if turn.get("role") in _SYSTEM]
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
        "content": chat.text_of(message.get("content")),
    }
    last = turns[-1]["content"] if turns else None
    if isinstance(last, list) and last and last[-1].get("type") == "tool_result":
        last.append(result)
    else:
        turns.append({"role": "user", "content": [result]})


def _spoken(message: Json) -> Any:
    calls = chat.calls_of(message)
    if not calls:
        return _content(message.get("content"))
    text = chat.text_of(message.get("content"))
    said = [{"type": "text", "text": text}] if text else []
    uses = [
        {"type": "tool_use", "id": call.get("id"), "name": name, "input": arguments} for call, name, arguments in calls
    ]
    return [*said, *uses]


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content or ""
    return chat.content_parts(content, text=lambda text: {"type": "text", "text": text}, picture=_picture)


def _picture(url: str) -> Json:
    if (found := chat.embedded(url)) is None:
        return {"type": "image", "source": {"type": "url", "url": url}}
    return {"type": "image", "source": {"type": "base64", "media_type": found[0], "data": found[1]}}
