"""What a request body must say, by the task of the endpoint that is asked (contract D.2-D.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import CHAT, COMPLETIONS, EMBEDDINGS, Json

_Rule = Callable[[Any], bool]


def check(task: str, body: Json) -> None:
    """Let a body pass whose fields the task can mean; it may have any others.

    Raises:
        InvalidRequestError: A field is missing or is not what the task takes; names it.
    """
    name, is_right, meaning = _SUBJECTS[task]
    if name not in body:
        raise InvalidRequestError(f"The request needs '{name}': {meaning}.")
    _require(is_right(body[name]), name, meaning)
    for name, value in body.items():
        if value is not None and name in _FIELDS:
            is_right, meaning = _FIELDS[name]
            _require(is_right(value), name, meaning)


def _require(fact: bool, name: str, meaning: str) -> None:
    if not fact:
        raise InvalidRequestError(f"The request's '{name}' must be {meaning}.")


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in value)
    )


def _is_text_or_texts(value: Any) -> bool:
    return isinstance(value, str) or _are_texts(value)


def _is_input(value: Any) -> bool:
    """A text, texts, a text's tokens, or the tokens of several (as OpenAI's own clients send them)."""
    return _is_text_or_texts(value) or _are_tokens(value) or _are_all(value, _are_tokens)


def _are_tokens(value: Any) -> bool:
    return _are_all(value, lambda item: isinstance(item, int) and not isinstance(item, bool) and item >= 0)


def _are_all(value: Any, is_right: _Rule) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(is_right, value))


def _are_texts(value: Any) -> bool:
    return _are_all(value, lambda item: isinstance(item, str))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _is_stop(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


#: The field that a task cannot do without.
_SUBJECTS: Final[Mapping[str, tuple[str, _Rule, str]]] = {
    CHAT: ("messages", _are_messages, "a list of at least one message, each an object with a 'role'"),
    COMPLETIONS: ("prompt", _is_text_or_texts, "a string or a list of strings"),
    EMBEDDINGS: ("input", _is_input, "a string or a list of strings, or their tokens"),
}

#: What may be there; null is as good as nothing.
_FIELDS: Final[Mapping[str, tuple[_Rule, str]]] = {
    "max_tokens": (_is_count, "a whole number above 0"),
    "max_completion_tokens": (_is_count, "a whole number above 0"),
    "n": (_is_count, "a whole number above 0"),
    "dimensions": (_is_count, "a whole number above 0"),
    "temperature": (lambda value: _is_number(value) and 0 <= value <= 2, "a number from 0 to 2"),  # noqa: PLR2004
    "top_p": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "encoding_format": (lambda value: value in ("float", "base64"), "'float' or 'base64'"),
    "stop": (_is_stop, "a string or a list of strings"),
    "stream": (_is_flag, "true or false"),
    "stream_options": (_is_object, "an object"),
    "tools": (_are_objects, "a list of objects"),
    "response_format": (_is_object, "an object with a 'type'"),
    "extra_params": (_is_object, "an object"),
    "usage_context": (_is_object, "an object"),
}
