"""Server-sent events: bytes as they come in, whole events out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from aiquery_serving.errors import ProviderResponseError

MAX_EVENT_BYTES = 16 * 2**20
_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event: its `event:` line ("" without one), and its `data:` lines joined by line feeds."""

    kind: str
    data: bytes


class Events:
    r"""Cuts one stream into events, wherever its packets were cut: within lines, characters and line ends.

    Comments, `id` and `retry` are dropped, and so is an event that its blank line never followed.

    Args:
        max_bytes: Largest event.

    Examples:
        >>> events = Events()
        >>> list(events.feed(b"data: one\n\nda"))
        [Event(kind='', data=b'one')]
        >>> list(events.feed(b"ta: two\r\n\r\n"))
        [Event(kind='', data=b'two')]
    """

    def __init__(self, *, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        #: The pieces of a line that has not ended.
        self._open: list[bytes] = []
        self._held = 0
        self._kind = ""
        self._data: list[bytes] = []
        self._after_return = False
        self._begun = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that these bytes complete.

        Raises:
            ProviderResponseError: An event is larger than is sensible.
        """
        for line in self._lines(data):
            if line:
                self._take(line)
            elif event := self._event():
                yield event

    def _lines(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that these bytes end, without their ends; keep the last, which has not ended."""
        # A line ends with \r, \n or both, and a packet may end between the two.
        if self._after_return and data[:1] == b"\n":
            data = data[1:]
        if not data:
            return
        self._after_return = data.endswith(b"\r")
        for line in data.splitlines(keepends=True):
            bare = line.rstrip(b"\r\n")
            self._hold(len(bare))
            if len(bare) == len(line):
                self._open.append(line)
            else:
                yield self._begin(b"".join([*self._open, bare]) if self._open else bare)
                self._open.clear()

    def _begin(self, line: bytes) -> bytes:
        if not self._begun:
            self._begun = True
            return line.removeprefix(_BOM)
        return line

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > self._max_bytes:
            raise ProviderResponseError(f"A streamed answer has an event of more than {self._max_bytes} bytes.")

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._kind = value.removeprefix(b" ").decode(errors="replace")

    def _event(self) -> Event | None:
        kind, lines = self._kind, self._data
        self._kind, self._data, self._held = "", [], 0
        return Event(kind, b"\n".join(lines)) if lines else None
