"""What a job is asked to do: its query, its output, what to do about failures, and what it may spend."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import duckdb

from aiquery_serving.budget import Meter
from aiquery_serving.errors import BudgetReachedError, InvalidRequestError
from aiquery_udfs import sql_text
from aiquery_udfs.runs import Reuse, Run

if TYPE_CHECKING:
    from aiquery_serving.budget import Ticket
    from aiquery_serving.endpoint import ServedEntity
    from aiquery_serving.prices import Prices

#: What a failed row does: it ends the job, or it is NULL in the output.
OnError: TypeAlias = Literal["fail", "record"]
#: Characters of a job's text that are in the name made up for it.
_DIGITS: Final = 8


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a job is asked to do; see `Session.job`.

    Raises:
        InvalidRequestError: Something in it cannot be.
    """

    sql: str
    output: str | os.PathLike[str]
    key: tuple[str, ...] = ()
    name: str | None = None
    on_error: OnError = "fail"
    retry_failed: bool | None = None
    max_cost: float | None = None
    max_tokens: int | None = None
    max_calls: int | None = None
    deadline: float | datetime | None = None
    max_age: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.on_error not in ("fail", "record"):
            raise InvalidRequestError(f"on_error of a job is 'fail' or 'record', not {self.on_error!r}.")
        if self.name is not None and not self.name.strip():
            raise InvalidRequestError("The name of a job must not be empty; leave it out for one that is made up.")
        if not math.isnan(left := self.seconds_left(datetime.now(UTC))) and left <= 0:
            raise InvalidRequestError(f"The deadline of a job must be in the future, not {self.deadline}.")

    def run(self, prices: Prices, name: str) -> Run:
        """Return what the job asks for beside its SQL.

        A failed row ends a job that is to fail, so that running it again can only mean to ask it again.
        """
        retry = self.on_error == "fail" if self.retry_failed is None else self.retry_failed
        return Run(
            job=name,
            reuse=Reuse(max_age_s=self.max_age, retry_failed=retry),
            meter=Purse(prices=prices, max_cost=self.max_cost, max_tokens=self.max_tokens, max_calls=self.max_calls),
            record_errors=self.on_error == "record",
        )

    def called(self, query: str, place: str) -> str:
        """Return the job's name; without one, a name of its output and its query, for running it again finds it."""
        if self.name is not None:
            return self.name
        digest = hashlib.sha256(f"{query}\0{place}".encode()).hexdigest()
        return f"{Path(os.fspath(self.output)).stem}-{digest[:_DIGITS]}"

    def seconds_left(self, now: datetime) -> float:
        """Return the seconds until the deadline; not a number without one."""
        if isinstance(self.deadline, datetime):
            return (self.deadline.astimezone(UTC) - now).total_seconds()
        return math.nan if self.deadline is None else float(self.deadline)


class Purse(Meter):
    """A job's budget, which remembers that it had to refuse."""

    refusal: BudgetReachedError | None = None

    @asynccontextmanager
    async def enter(
        self, served: ServedEntity, body: Mapping[str, Any], *, endpoint: str = ""
    ) -> AsyncIterator[Ticket]:
        """Wait until the budget has room for a request; see `Meter`."""
        try:
            async with super().enter(served, body, endpoint=endpoint) as ticket:
                yield ticket
        except BudgetReachedError as error:
            self.refusal = error
            raise


def one_query(handle: duckdb.DuckDBPyConnection, text: str) -> str:
    """Return the one query that a text holds, bare of what surrounds it.

    Raises:
        InvalidRequestError: It holds none or several, or a statement that is no query.
        duckdb.ParserException: It is no SQL.
    """
    statements = handle.extract_statements(text)
    kinds = [statement.type for statement in statements]
    query = sql_text.rows_of(statements[0].query) if kinds == [duckdb.StatementType.SELECT] else None
    if query is None:
        found = ", ".join(kind.name for kind in kinds) or "nothing"
        raise InvalidRequestError(
            f"A job is one query that yields rows; this text holds {found}. Run other statements before the job, with"
            " session.execute(), and put a PIVOT into the FROM clause of another query."
        )
    return query


def described(handle: duckdb.DuckDBPyConnection, query: str) -> dict[str, str]:
    """Return the columns of a query with their types, and find out whether it can be bound; no row is read."""
    found = handle.execute(f"DESCRIBE (\n{query}\n)").fetchall()
    return {name: kind for name, kind, *_ in found}


def keys_of(key: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of key columns, given as one name or several."""
    if key is None:
        return ()
    return (key,) if isinstance(key, str) else tuple(key)


def check_keys_exist(keys: tuple[str, ...], columns: Mapping[str, str]) -> None:
    """Make sure that the key columns are columns of the output.

    Raises:
        InvalidRequestError: Some are not.
    """
    known = {name.lower() for name in columns}
    missing = [key for key in keys if key.lower() not in known]
    if missing:
        raise InvalidRequestError(
            f"The output has no column {' and no '.join(map(repr, missing))} for its key. It has: {', '.join(columns)}."
        )
