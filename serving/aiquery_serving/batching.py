"""Decides which rows share a request, how a refused one is cut in two, and what one may cost."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: Output tokens expected of a model that has not answered yet and names no `max_tokens`.
UNKNOWN_OUTPUT = 256
#: Answers between two looks at how large answers are.
_FEW = 8


def batches(costs: Sequence[int], *, max_rows: int, max_cost: int) -> Iterator[range]:
    """Split rows into runs that fit one request each, in row order, each as long as possible.

    A row that is over `max_cost` alone still gets a run of its own: refusing it is the model's
    business, and one long row must not fail its neighbours.

    Args:
        costs: The cost of each row, in tokens or bytes.
        max_rows: Most rows in one request.
        max_cost: Most cost in one request.

    Yields:
        Ranges of row numbers that cover `costs` without gap or overlap.

    Examples:
        >>> list(batches([4, 4, 4, 99, 1], max_rows=2, max_cost=10))
        [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    start = spent = 0
    for row, cost in enumerate(costs):
        if row > start and (row - start >= max_rows or spent + cost > max_cost):
            yield range(start, row)
            start, spent = row, 0
        spent += cost
    if costs:
        yield range(start, len(costs))


def halves(run: range) -> tuple[range, range]:
    """Cut a run of at least two rows in the middle, to find the row that spoils it.

    Examples:
        >>> halves(range(10, 15))
        (range(10, 12), range(12, 15))
    """
    middle = len(run) // 2
    return run[:middle], run[middle:]


def estimated_tokens(request: Any) -> int:
    """Estimate the tokens of a request's text: a quarter of its length (contract C.6).

    Args:
        request: A REST request body or any part of it. Numbers, settings and pictures count nothing.

    Examples:
        >>> estimated_tokens({"messages": [{"role": "user", "content": "Is this a question?"}]})
        5
    """
    if isinstance(request, str):
        return (len(request) + 1) // 4
    if isinstance(request, Mapping):
        parts = (request[name] for name in _TEXTS if name in request)
        return sum(map(estimated_tokens, parts))
    if isinstance(request, (list, tuple)):
        return sum(map(estimated_tokens, request))
    return 0


#: The members of a request body that hold what a model reads.
_TEXTS = ("messages", "content", "text", "prompt", "input", "instruction")


class OutputSizes:
    """How many tokens a model's answers have: enough for 19 of 20, by the latest hundred.

    Examples:
        >>> sizes = OutputSizes()
        >>> sizes.expected({}), sizes.expected({"max_tokens": 20})
        (256, 20)
    """

    __slots__ = ("_enough", "_latest", "_since")

    def __init__(self) -> None:
        self._latest: deque[int] = deque(maxlen=128)
        self._enough = UNKNOWN_OUTPUT
        self._since = 0

    def expected(self, body: Mapping[str, Any]) -> int:
        """Return the output tokens to reserve for a request."""
        asked = body.get("max_tokens") or body.get("max_completion_tokens")
        return min(self._enough, asked) if isinstance(asked, int) else self._enough

    def learn(self, tokens: int) -> None:
        """Note the size of one answer."""
        latest = self._latest
        latest.append(tokens)
        self._since += 1
        # Sorting at every answer would cost more than the rest of the call.
        if len(latest) <= _FEW or self._since >= _FEW:
            self._since = 0
            self._enough = sorted(latest)[math.ceil(0.95 * len(latest)) - 1]
