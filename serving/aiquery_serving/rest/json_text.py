"""Strict JSON objects from bytes: what two readers could understand differently is refused.

A repeated key is found without a parser of our own. Outside of strings every colon belongs to one member
of one object, so a document that has more colons than members has lost some to a repeated key.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from aiquery_serving.errors import MalformedRequestError
from aiquery_serving.messages import Json

#: How deep objects and lists may stand in each other.
MOST_LEVELS: Final = 100


def parsed(text: bytes) -> Json:
    """Return the JSON object that a text is.

    Raises:
        MalformedRequestError: It is none, repeats a key, or is too deep.

    Examples:
        >>> parsed(b'{"a": {"b": ":"}}')
        {'a': {'b': ':'}}
        >>> parsed(b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ...
        aiquery_serving.errors.MalformedRequestError: The request body names a key twice in one object. Name it once.
    """
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MalformedRequestError(_reason(text, error)) from None
    if type(document) is not dict:
        raise MalformedRequestError(f"The request body must be a JSON object, not {_kind(document)}.")
    members = _members(document)
    if text.count(b":") != members and _colons(text) != members:
        raise MalformedRequestError("The request body names a key twice in one object. Name it once.")
    return document


def _members(document: Json) -> int:
    """Count the members of all objects, level by level."""
    members, levels, level = 0, 0, [document]
    while level:
        levels += 1
        if levels > MOST_LEVELS:
            raise MalformedRequestError(f"The request body is nested more than {MOST_LEVELS} levels deep.")
        below: list[Any] = []
        for container in level:
            values: Any = container
            if type(container) is dict:
                members += len(container)
                values = container.values()
            below += [value for value in values if type(value) is dict or type(value) is list]
        level = below
    return members


def _colons(text: bytes) -> int:
    """Count the colons outside of strings, of a text that is known to be JSON."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(text.split(b'"')[::2]).count(b":")


def _reason(text: bytes, error: orjson.JSONDecodeError) -> str:
    if not text.strip():
        return "The request has no body: send a JSON object."
    return f"The request body is not JSON: {error}."


def _kind(document: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(document), "a number")
