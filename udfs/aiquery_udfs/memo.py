"""Remembers what the requests of a running query brought, because an engine may evaluate a row twice."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np

from aiquery_serving.errors import AiQueryError

#: What the memo may hold, in bytes of answers.
MEMO_BYTES: Final = 256 * 1024 * 1024
_ENTRY_BYTES: Final = 250

#: A chat or completions text, an embedding, or why there is neither.
Answer: TypeAlias = str | np.ndarray | AiQueryError | None
#: Identifies one running statement: its connection and its transaction.
QueryId: TypeAlias = tuple[int, int]


class Memo:
    """What the requests of running queries brought.

    A connection runs one statement at a time, so its next transaction ends what is remembered for it. When
    there is too much, other connections are forgotten first, then the oldest answers.
    """

    def __init__(self, max_bytes: int = MEMO_BYTES) -> None:
        self._queries: dict[int, tuple[int, dict[bytes, Answer]]] = {}
        self._bytes = 0
        self._max_bytes = max_bytes

    def get(self, query: QueryId, key: bytes, default: Any = None) -> Any:
        """Return the answer, or `default` when the query has not asked this yet."""
        return self._answers(query).get(key, default)

    def put(self, query: QueryId, key: bytes, answer: Answer) -> None:
        """Remember an answer for the rest of its query."""
        answers = self._answers(query)
        if key in answers:
            return
        answers[key] = answer
        self._bytes += _size(answer)
        while self._bytes > self._max_bytes:
            self._shrink(query[0])

    def _answers(self, query: QueryId) -> dict[bytes, Answer]:
        connection, transaction = query
        known = self._queries.get(connection)
        if known is None or known[0] != transaction:
            self._forget(connection)
            known = self._queries[connection] = transaction, {}
        return known[1]

    def _forget(self, connection: int) -> None:
        _, answers = self._queries.pop(connection, (0, {}))
        self._bytes -= sum(map(_size, answers.values()))

    def _shrink(self, connection: int) -> None:
        """Make room for a connection: at the cost of another, or of its own oldest answers."""
        other = next((number for number in self._queries if number != connection), None)
        if other is not None:
            self._forget(other)
        else:
            _, answers = self._queries[connection]
            self._bytes -= _size(answers.pop(next(iter(answers))))


def _size(answer: Answer) -> int:
    if isinstance(answer, np.ndarray):
        return _ENTRY_BYTES + int(answer.nbytes)
    return _ENTRY_BYTES + (len(answer) if isinstance(answer, str) else 0)
