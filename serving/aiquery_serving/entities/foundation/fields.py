"""Reads single fields of a request body, and says in a sentence what one that is wrong should be."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import orjson

from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import Json

#: Fields whose values are texts, even where they read like JSON.
_TEXTS = frozenset({"stop", "suffix", "error_behavior", "reasoning_effort", "tool_choice", "instruction"})
#: As much of a wrong value as a sentence repeats.
_SHOWN = 60


def unwrapped(body: Mapping[str, Any]) -> Json:
    """Return a body with its `extra_params` as fields; named fields win, and null is as good as nothing.

    Examples:
        >>> unwrapped({"temperature": 0, "extra_params": {"temperature": "1", "top_k": "40", "stop": "9"}})
        {'temperature': 0, 'top_k': 40, 'stop': '9'}

    Raises:
        InvalidRequestError: `extra_params` is no object.
    """
    extra = body.get("extra_params")
    if extra is not None and not isinstance(extra, Mapping):
        raise wrong("extra_params", extra, "an object")
    told = {name: _meant(name, value) for name, value in (extra or {}).items()}
    named = {name: value for name, value in body.items() if value is not None and name != "extra_params"}
    return {**{name: value for name, value in told.items() if value is not None}, **named}


def _meant(name: str, value: Any) -> Any:
    """Return the value that a text of `extra_params` stands for: its values are all texts (contract D.2)."""
    if not isinstance(value, str):
        return value
    try:
        found = orjson.loads(value)
    except orjson.JSONDecodeError:
        return value
    return value if name in _TEXTS and not isinstance(found, list | dict) else found


def number(asked: Json, name: str, low: float, high: float, default: float, *, above: bool = False) -> float:
    """Return a number from `low` (or, with `above`, from just above it) to `high`.

    Raises:
        InvalidRequestError: It is something else.
    """
    value = asked.get(name, default)
    if _is_number(value) and (low < value <= high or (value == low and not above)):
        return float(value)
    raise wrong(name, value, f"a number {'above' if above else 'from'} {low:g} to {high:g}")


def whole(asked: Json, name: str, low: int, high: int | None = None) -> int | None:
    """Return a whole number from `low`, or None when there is none.

    Raises:
        InvalidRequestError: It is something else.
    """
    value = asked.get(name)
    if value is None:
        return None
    if _is_number(value) and value == int(value) and low <= value <= (math.inf if high is None else high):
        return int(value)
    raise wrong(name, value, f"a whole number from {low}" + ("" if high is None else f" to {high}"))


def flag(asked: Json, name: str, *, default: bool = False) -> bool:
    """Return whether something is wanted.

    Raises:
        InvalidRequestError: It is neither true nor false.
    """
    value = asked.get(name, default)
    if isinstance(value, bool):
        return value
    raise wrong(name, value, "true or false")


def word(asked: Json, name: str, *words: str) -> str | None:
    """Return one of a few words, or None when there is none.

    Raises:
        InvalidRequestError: It is something else.
    """
    value = asked.get(name)
    if value is None or value in words:
        return value
    raise wrong(name, value, "one of " + ", ".join(words))


def texts(asked: Json, name: str) -> list[str]:
    """Return a text or several as a list.

    Raises:
        InvalidRequestError: It is something else.
    """
    value = asked.get(name, [])
    found = [value] if isinstance(value, str) else value
    if isinstance(found, list) and all(isinstance(text, str) for text in found):
        return found
    raise wrong(name, value, "a string or a list of strings")


def wrong(name: str, value: Any, meaning: str) -> InvalidRequestError:
    """Return the error that says what a field should be.

    Examples:
        >>> raise wrong("n", 0, "a whole number from 1")
        Traceback (most recent call last):
        aiquery_serving.errors.InvalidRequestError: The request's 'n' must be a whole number from 1, not 0.
    """
    shown = reprlib.repr(value)  # of any size and depth
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    return InvalidRequestError(f"The request's '{name}' must be {meaning}, not {shown}.")


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)
