"""Turns tokens into text as they come: whole characters only, and nothing of a stop string or what may become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: What a decoder writes for bytes that are no character, or not yet.
_UNFINISHED = "\ufffd"
#: A character has four bytes at most, so as many tokens; some that say nothing may be among them.
_MOST_PENDING = 8


class TextStream:
    """The text of one answer.

    Where it ends depends on its text alone, not on how that came in tokens: at the first place where it ends with a
    stop string, and of several that end there, with the longest.

    Args:
        decode: Says the text of token ids, with U+FFFD for what is no UTF-8; of ids that are no token, "". That of a
            `tokenizers.Tokenizer` will do.
        stops: Texts that end the answer and are no part of it.

    Examples:
        >>> stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), ["END"])
        >>> [stream.feed(byte) for byte in "ßE".encode()], stream.finish()
        ([('', False), ('ß', False), ('', False)], 'E')
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = [stop for stop in stops if stop]
        self._ended = False
        #: Text that is not shown because a stop string may begin with it.
        self._held = ""
        #: Tokens whose text is known, which the text of the next ones may depend on (spaces do).
        self._before: list[int] = []
        self._before_text = ""
        #: Tokens behind them whose text may still change.
        self._pending: list[int] = []

    def feed(self, token_id: int) -> tuple[str, bool]:
        """Take the next token; returns text to show now, and whether a stop string has ended the answer."""
        return self._show(self._text_of(token_id)), self._ended

    def finish(self) -> str:
        """Return what is left to show when there are no more tokens."""
        text = self._show(self._text_behind(self._pending))
        held, self._held, self._pending = self._held, "", []
        return text + held

    def _text_of(self, token_id: int) -> str:
        """Return the text that has become final with a token."""
        self._pending.append(token_id)
        text = self._text_behind(self._pending)
        if text and not text.endswith(_UNFINISHED):
            return self._settle(len(self._pending), text)
        if len(self._pending) == _MOST_PENDING:
            return self._settle(1, self._text_behind(self._pending[:1]))
        return ""

    def _text_behind(self, token_ids: list[int]) -> str:
        return self._decode([*self._before, *token_ids])[len(self._before_text) :]

    def _settle(self, tokens: int, text: str) -> str:
        """Take the text of the first pending tokens as final; those that say nothing are not worth remembering."""
        settled, self._pending = self._pending[:tokens], self._pending[tokens:]
        if text:
            self._before, self._before_text = settled, self._decode(settled)
        return text

    def _show(self, text: str) -> str:
        """Return what may be shown of held and new text."""
        if self._ended or not text:
            return ""
        text = self._held + text
        stop = self._stop_in(text)
        self._ended = stop is not None
        shown = text[: len(text) - self._head_of_stop(text)] if stop is None else text[:stop]
        self._held = "" if self._ended else text[len(shown) :]
        return shown

    def _stop_in(self, text: str) -> int | None:
        """Return where the stop string begins that is complete first."""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _head_of_stop(self, text: str) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        return max((_overlap(text, stop) for stop in self._stops), default=0)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that a stop string begins with."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)
