"""What a model's text is made of: what it thinks, what it says, and the tools that it calls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from aiquery_serving.entities.foundation.tool_calls import Call, CallFinder, overlap

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Spoken:
    """A part of an answer, or a whole one."""

    thought: str = ""
    text: str = ""
    calls: tuple[Call, ...] = ()

    def __add__(self, more: Spoken) -> Spoken:
        return Spoken(self.thought + more.thought, self.text + more.text, self.calls + more.calls)

    def __bool__(self) -> bool:
        return bool(self.thought or self.text or self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a model was asked to write.

    Attributes:
        functions: The tools that it may call.
        thinking: The prompt has begun a thought.
        literal: All of it is text, such as JSON of a given schema.
        one_call: Only the first call counts.
    """

    functions: frozenset[str] = frozenset()
    thinking: bool = False
    literal: bool = False
    one_call: bool = False


class Reader:
    """Reads an answer: `feed` it piece by piece, then `finish`."""

    def __init__(self, manner: Manner) -> None:
        self._thoughts = None if manner.literal else Thoughts(begun=manner.thinking)
        self._finder = CallFinder(manner.functions) if manner.functions else None
        self._most = 1 if manner.one_call else None

    def feed(self, text: str) -> Spoken:
        """Take more text, and return what is certain by now."""
        thought, text = self._thoughts.feed(text) if self._thoughts else ("", text)
        return Spoken(thought) + (self._found(self._finder.feed(text)) if self._finder else Spoken(text=text))

    def finish(self) -> Spoken:
        """Return what is left, when no more comes."""
        thought, text = self._thoughts.finish() if self._thoughts else ("", "")
        if self._finder is None:
            return Spoken(thought, text)
        return Spoken(thought) + self._found([*self._finder.feed(text), *self._finder.finish()])

    def read(self, text: str) -> Spoken:
        """Return what a whole answer is made of."""
        return self.feed(text) + self.finish()

    def _found(self, found: Collection[str | Call]) -> Spoken:
        calls = tuple(item for item in found if isinstance(item, Call))[: self._most]
        if self._most is not None:
            self._most -= len(calls)
        return Spoken(text="".join(item for item in found if isinstance(item, str)), calls=calls)


class Thoughts:
    """Parts what a model thinks, from `<think>` at the beginning to `</think>`, from what it says.

    Args:
        begun: The prompt ends with `<think>`.
    """

    def __init__(self, *, begun: bool) -> None:
        self._held = ""
        self._state = _THINKING if begun else _UNKNOWN
        self._strip = True

    def feed(self, text: str) -> tuple[str, str]:
        """Take more text, and return what more was thought, and what more is said."""
        self._held += text
        if self._state == _UNKNOWN:
            self._look()
        thought = self._thought() if self._state == _THINKING else ""
        return thought, self._taken(len(self._held)) if self._state == _SAYING else ""

    def finish(self) -> tuple[str, str]:
        """Return what is left, when no more comes."""
        rest, self._held = self._held, ""
        return (rest.rstrip(), "") if self._state == _THINKING else ("", rest)

    def _look(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(_OPEN):
            self._held, self._state = begun[len(_OPEN) :], _THINKING
        elif not _OPEN.startswith(begun):
            self._state, self._strip = _SAYING, False

    def _thought(self) -> str:
        """Take as much of a thought as is there; blank space at its ends is none of it."""
        inside, closed, rest = self._held.partition(_CLOSE)
        if not closed:
            return self._taken(len(self._held[: len(self._held) - overlap(self._held, _CLOSE)].rstrip()))
        thought = self._taken(len(inside)).rstrip()
        self._held, self._state, self._strip = rest, _SAYING, True
        return thought

    def _taken(self, end: int) -> str:
        """Take so many characters, without blank space before the first that is not."""
        text, self._held = self._held[:end], self._held[end:]
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        return text


_UNKNOWN: Final = "unknown"
_THINKING: Final = "thinking"
_SAYING: Final = "saying"
