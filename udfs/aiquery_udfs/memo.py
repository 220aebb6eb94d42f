"""Remembers what the requests of a running query brought, because an engine may evaluate a row twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
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


@dataclass(slots=True)
class _Query:
    """What one running statement has asked, oldest first."""

    transaction: int
    answers: dict[bytes, Answer] = field(default_factory=dict)
    bytes: int = 0

    def forget_oldest(self) -> int:
        """Forget one answer; returns its size."""
        size = size_of(self.answers.pop(next(iter(self.answers))))
        self.bytes -= size
        return size


class Memo:
    """What the requests of running queries brought.

    A connection runs one statement at a time, so its next transaction ends what is remembered for it. When
    there is too much, the oldest answers go of whichever query has most.
    """

    def __init__(self, max_bytes: int = MEMO_BYTES) -> None:
        self._queries: dict[int, _Query] = {}
        self._bytes = 0
        self._max_bytes = max_bytes

    def get(self, query: QueryId, key: bytes, default: Any = None) -> Any:
        """Return the answer, or `default` when the query has not asked this yet."""
        known = self._query(query)
        return default if known is None else known.answers.get(key, default)

    def put(self, query: QueryId, key: bytes, answer: Answer, *, most: int | None = None) -> None:
        """Remember an answer for the rest of its query.

        Args:
            query: The query.
            key: The identity of the request.
            answer: What it brought.
            most: Bytes that the query may hold, where it could find older answers elsewhere.
        """
        known = self._query(query)
        if known is None or key in known.answers:
            return
        size = size_of(answer)
        known.answers[key] = answer
        known.bytes += size
        self._bytes += size
        while most is not None and known.bytes > most:
            self._bytes -= known.forget_oldest()
        while self._bytes > self._max_bytes:
            largest = max(self._queries.values(), key=attrgetter("bytes"))
            self._bytes -= largest.forget_oldest()

    def end(self, query: QueryId) -> None:
        """Forget a query that has ended."""
        known = self._queries.get(query[0])
        if known is not None and known.transaction == query[1]:
            self._forget(query[0])

    def _query(self, query: QueryId) -> _Query | None:
        """Return what is remembered of a query; None for one that another has followed: stragglers are no news."""
        connection, transaction = query
        known = self._queries.get(connection)
        if known is not None and transaction < known.transaction:
            return None
        if known is None or known.transaction != transaction:
            self._forget(connection)
            known = self._queries[connection] = _Query(transaction)
        return known

    def _forget(self, connection: int) -> None:
        known = self._queries.pop(connection, None)
        self._bytes -= known.bytes if known is not None else 0


def size_of(answer: Answer) -> int:
    """Return about how many bytes an answer takes in memory."""
    if isinstance(answer, np.ndarray):
        return _ENTRY_BYTES + int(answer.nbytes)
    return _ENTRY_BYTES + (len(answer) if isinstance(answer, str) else 0)
