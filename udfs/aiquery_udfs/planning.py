"""Tells whether DuckDB calls us to plan a statement or to execute it.

Theory of operation. DuckDB evaluates functions of constants while it plans, and says nothing about it. What
differs is who calls: execution passes through the executor's task loop, planning does not. So we look at the
native call stack. Which return addresses belong to the task loop is learned once per process, on a private
database and a thread of its own: they are those that every executed call has on its stack and no planned one.
Where the C library cannot walk its stack (musl), every call counts as execution.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Final

import duckdb
from duckdb.func import FunctionNullHandling

if TYPE_CHECKING:
    from types import FrameType

#: Deeper stacks are cut off at their far end, where no task loop is.
_DEPTH: Final = 256
_PLANNED: Final = (
    "EXPLAIN SELECT probe('x')",
    "EXPLAIN SELECT probe(w) FROM one",
    "EXPLAIN SELECT w FROM one WHERE probe('x') = w",
    "SELECT probe('x')",
)
_EXECUTED: Final = (
    "SELECT probe(w) FROM two",
    "SELECT w FROM two WHERE probe(w) = 'a'",
    "SELECT probe(max(w)) FROM two GROUP BY w",
    "SELECT probe(w) FROM two ORDER BY probe(w) || 'x' LIMIT 1",
    "SELECT CASE WHEN i > 2047 THEN probe('w' || i) END FROM range(2050) t(i)",
    "CREATE TABLE three AS SELECT probe(w) AS w FROM two",
)


def planning() -> bool:
    """Say whether the call that runs now serves the planning of a statement.

    DuckDB plans on the thread that asked it; a thread of its own only executes.
    """
    return _called_from_python() and bool(task_loop()) and task_loop().isdisjoint(_stack())


def _called_from_python() -> bool:
    """Say whether there is Python code on this thread besides our own functions."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - the documented way to one's callers
    package = __name__.partition(".")[0]
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(package):
        frame = frame.f_back
    return frame is not None


@cache
def _walk() -> Callable[..., int] | None:
    """Return the C library's `backtrace`, where it has one."""
    walk: Callable[..., int] | None = getattr(ctypes.CDLL(None), "backtrace", None)
    return walk


def _stack() -> set[int | None]:
    walk = _walk()
    addresses = (ctypes.c_void_p * _DEPTH)()
    return set(addresses[: walk(addresses, _DEPTH)]) if walk else set()


@cache
def task_loop() -> frozenset[int | None]:
    """Return the addresses that tell execution; learns them at the first call, in under 50 ms.

    The thread keeps the caller's own stack, which may be DuckDB's, out of what is learned.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_learn).result()


def _learn() -> frozenset[int | None]:
    stacks: list[set[int | None]] = []

    def probe(text: str) -> str:
        stacks.append(_stack())
        return text

    def watch(statements: Iterable[str]) -> list[set[int | None]]:
        stacks.clear()
        for statement in statements:
            con.execute(statement).fetchall()
        return list(stacks)

    # One thread: DuckDB then executes on ours, the only one where planning can be met.
    with duckdb.connect(config={"threads": 1}) as con:
        con.create_function("probe", probe, ["VARCHAR"], "VARCHAR", null_handling=FunctionNullHandling.SPECIAL)
        con.execute("CREATE TABLE one AS SELECT 'a' AS w; CREATE TABLE two AS FROM (VALUES ('a'), ('b')) t(w)")
        planned, executed = watch(_PLANNED), watch(_EXECUTED)
    return frozenset(set.intersection(*executed).difference(*planned))
