"""Finds the calls of tools in what a model writes, piece by piece, in the forms that models are taught.

These are: `<tool_call>{…}</tool_call>` (Hermes, Qwen), `[TOOL_CALLS][{…}]` and `[TOOL_CALLS]name{…}` (Mistral), and an
answer that begins with the JSON of a call, or of a list of them (Llama, and every answer that is held to a schema).
What only looked like a call stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson


@dataclass(frozen=True, slots=True)
class Call:
    """A function to be called; `arguments` is JSON text."""

    name: str
    arguments: str


#: What is found: text, and calls.
Found: TypeAlias = str | Call

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_LISTS: Final = ("[TOOL_CALLS]", "<|python_tag|>")
_OPENERS: Final = (_OPEN, *_LISTS)
#: What may stand between two calls.
_BETWEEN: Final = " \t\r\n;,"
_NAMED: Final = re.compile(r"\s*([\w.-]+)\s*(?:\[ARGS\])?\s*(?=\{)")
#: How a JSON object may begin, or a list of them: as far as its first key.
_BEGINNING: Final = re.compile(r"[\[\s]*(?:\{\s*(?:\"(?P<key>\w*)(?P<whole>\"?)|$)|$)")
_KEYS: Final = ("name", "parameters", "arguments", "type", "function", "id")
_DECODER: Final = json.JSONDecoder(strict=False)


class CallFinder:
    """Reads an answer: `feed` it piece by piece, then `finish`.

    Text is held back only from where a call may begin, and blank space before a call is not given at all.

    Args:
        names: The functions that there are: JSON that names another one is not taken for a call.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._said = self._called = False

    def feed(self, text: str) -> list[Found]:
        """Take more text, and return what is certain by now."""
        self._held += text
        return list(self._certain(last=False))

    def finish(self) -> list[Found]:
        """Return what is left, when no more comes."""
        found = list(self._certain(last=True))
        rest, self._held = self._held, ""
        return [*found, rest] if rest.strip() or (rest and not self._called) else found

    def _certain(self, *, last: bool) -> Iterator[Found]:
        while True:
            begun = self._held.lstrip(_BETWEEN if self._called else None)
            calls, end = self._calls(begun, last=last) if self._may_begin(begun) else ([], _next_opener(begun))
            if calls:
                self._called = True
                self._held = begun[end:]
                yield from calls
            elif begun[:end].strip():
                yield self._text(len(self._held) - len(begun) + end)
            else:
                return

    def _text(self, end: int) -> str:
        """Take text that is no call; blank space at its end may come before one."""
        end = len(self._held[:end].rstrip())
        text, self._held = self._held[:end], self._held[end:]
        self._said = True
        return text

    def _may_begin(self, text: str) -> bool:
        """Tell whether a call may begin where a text begins."""
        if text.startswith(_OPENERS):
            return True
        match = None if self._said or not text else _BEGINNING.match(text)
        if match is None:
            return False
        key = match["key"] or ""
        return key in _KEYS if match["whole"] else any(known.startswith(key) for known in _KEYS)

    def _calls(self, text: str, *, last: bool) -> tuple[list[Call], int]:
        """Return the calls that a text begins with, and where they end.

        Without calls, so many characters are something else; if none are, it takes more to tell.
        """
        if text.startswith(_OPEN):
            return _tagged(text, last=last)
        opener = next((each for each in _LISTS if text.startswith(each)), "")
        calls, length = _listed(text[len(opener) :])
        if not opener and not all(call.name in self._names for call in calls):
            calls = []
        if length:
            return calls, len(opener) + length
        return [], len(text) if last else 0


def _tagged(text: str, *, last: bool) -> tuple[list[Call], int]:
    inside, closed, _ = text[len(_OPEN) :].partition(_CLOSE)
    if not closed and not last:
        return [], 0
    calls, _ = _listed(inside)
    return calls, len(_OPEN) + len(inside) + len(closed)


def _listed(text: str) -> tuple[list[Call], int]:
    """Return the calls of a JSON value that a text begins with, and where it ends; 0 if it does not."""
    named = _NAMED.match(text)
    start = named.end() if named else len(text) - len(text.lstrip())
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return [], 0
    if named:
        value = {"name": named[1], "arguments": value}
    calls = [_call(item) for item in (value if isinstance(value, list) else [value])]
    return ([call for call in calls if call] if all(calls) else []), end


def _call(value: Any) -> Call | None:
    """Return the call that a JSON value describes."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name.isprintable():
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _parsed(arguments)
    if not isinstance(arguments, dict):
        return None
    return Call(name, _written(arguments))


def _written(arguments: Any) -> str:
    try:
        return orjson.dumps(arguments).decode()
    except TypeError:  # it takes no numbers of more than 64 bits, and no half of a surrogate pair
        return json.dumps(arguments, separators=(",", ":"))


def _parsed(text: str) -> Any:
    try:
        return _DECODER.decode(text or "{}")
    except (ValueError, RecursionError):
        return None


def _next_opener(text: str) -> int:
    """Return where in a text a call may begin, at its end at the latest."""
    starts = [text.find(opener) for opener in _OPENERS]
    whole = min((start for start in starts if start >= 0), default=len(text))
    return min([whole, *(len(text) - overlap(text, opener) for opener in _OPENERS)])


def overlap(text: str, opener: str) -> int:
    """Return how many characters at the end of a text may be the beginning of something.

    Examples:
        >>> overlap("1 <to", "<tool_call>")
        3
    """
    longest = min(len(text), len(opener) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(opener[:length])), 0)
