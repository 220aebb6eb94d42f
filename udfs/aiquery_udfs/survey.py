"""Runs a statement where `ai_query` asks nobody, and counts what it would ask.

Theory of operation. The part of a statement that yields rows runs on its own connection (temporary tables are seen),
with a recorder in the place of answers. Each call of the text gets a macro of its own, which tells calls apart. An
answer that the ledger holds is given, where the run reuses it; any other is NULL. So what one call decides of another
stays unknown: where that can be, `Asked.after` names the calls whose answers may decide.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, cast

import duckdb
import pyarrow as pa

from aiquery_serving import tokens
from aiquery_serving.endpoint import Kind
from aiquery_serving.errors import InvalidRequestError
from aiquery_serving.messages import EMBEDDINGS
from aiquery_serving.traffic import choose
from aiquery_udfs import rows, sql_text
from aiquery_udfs.engine_thread import engine_thread
from aiquery_udfs.flights import Request

if TYPE_CHECKING:
    from aiquery_udfs.arguments import BoundCall
    from aiquery_udfs.connections import Chunk, Connection
    from aiquery_udfs.execution import Execution
    from aiquery_udfs.memo import Answer
    from aiquery_udfs.runs import Run
    from aiquery_udfs.statements import Statements

#: Requests that are told apart exactly, at about 100 bytes each; all further ones count as distinct.
MOST_KEYS: Final = 3_000_000
#: Rows of a full chunk of DuckDB.
CHUNK: Final = 2048
#: Functions that change something when a query only reads.
_EFFECTS: Final = frozenset({"nextval", "setval"})


@dataclass(slots=True)
class Load:
    """What would be sent to one served entity: requests and their input tokens, which may be estimated."""

    requests: int = 0
    tokens: int = 0
    exact: bool = True


@dataclass(slots=True)
class Asked:
    """What one call of a statement would ask.

    Attributes:
        site: The number of the call in the text, from 1; 0 for one inside a view or a macro.
        call: What was settled when the statement was bound.
        rows: Rows the call is evaluated for; `null_rows` of them are NULL, which asks nothing.
        requests: Distinct requests that no call before has asked; `exact` unless there were too many to tell apart.
        recorded: How many of them the ledger answers.
        loads: What would be sent, by served entity; rows of a custom model are not split up.
        after: The sites whose unknown answers may decide how often this call asks, and what.
    """

    site: int
    call: BoundCall
    rows: int = 0
    null_rows: int = 0
    requests: int = 0
    recorded: int = 0
    exact: bool = True
    loads: dict[str, Load] = field(default_factory=dict)
    after: tuple[int, ...] = ()

    @property
    def known(self) -> bool:
        """Whether all answers are known."""
        return self.requests == self.recorded and (self.call.kind is not Kind.CUSTOM or self.rows == self.null_rows)


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What a statement would ask: its calls in the order in which they are evaluated.

    `text` is the part that was run; `unasked` are the sites that no row has reached, each with those whose unknown
    answers may be the reason; `may_end_early` says that a LIMIT may be satisfied before all of this is asked.
    """

    text: str
    asked: list[Asked]
    unasked: dict[int, tuple[int, ...]]
    may_end_early: bool


class _Engine(Protocol):
    """The part of a connection's engine that is needed here."""

    execution: Execution
    statements: Statements


class Survey:
    """A recorder that counts; see `connections.Recorder`. Any thread of the engine may call it.

    Args:
        execution: Knows the endpoints and the ledger.
        statements: Knows what was bound.
        run: Says whether answers are reused.
    """

    def __init__(self, execution: Execution, statements: Statements, run: Run | None) -> None:
        self._execution, self._statements, self._run = execution, statements, run
        self._guard = threading.Lock()
        self._calls: dict[tuple[int, int], Asked] = {}
        self._reasons: dict[int, Asked] = {}
        self._seen: set[bytes] = set()

    def answer(self, ask: Callable[..., pa.Array], site: int, chunk: Chunk) -> pa.Array:
        """Count one chunk of rows, and return the answers that are known."""
        call = self._statements.requests(chunk.call, chunk.request.slice(0, 0), chunk.files.slice(0, 0))[0]
        with self._guard:
            if ask == self._statements.failures:
                self._note(self._reasons.setdefault(chunk.call, Asked(0, call)), chunk)
                return pa.nulls(len(chunk.request), rows.ERROR_ARROW)
            keys, found = self._note(self._calls.setdefault((site, chunk.call), Asked(site, call)), chunk)
        return self._column(call, chunk, keys, found)

    def asked(self) -> list[Asked]:
        """Return what was counted, in the order in which calls were first evaluated.

        `ai_error` asks what the `ai_query` beside it asks, whichever of the two comes first.
        """
        calls = list(self._calls.values())
        for number, reason in self._reasons.items():
            beside = next((asked for (_, call), asked in self._calls.items() if call == number), None)
            if beside is None:
                calls.append(reason)
            else:
                _merge(beside, reason)
        return calls

    def _note(self, asked: Asked, chunk: Chunk) -> tuple[list[rows.RowKey], dict[bytes, Answer]]:
        """Count a chunk of rows; return the requests of its rows, and the answers that are known."""
        asked.rows += len(chunk.request)
        asked.null_rows += chunk.request.null_count
        if asked.call.kind is Kind.CUSTOM:
            return [], {}
        images = chunk.files if pa.types.is_binary(chunk.files.type) else None
        keys, bodies = rows.requests(asked.call, chunk.request, images)
        requests = {key: Request(body, route_key) for key, (body, route_key) in bodies.items()}
        found = engine_thread.run(self._recorded(asked.call, requests))
        fresh = [key for key in requests if self._is_new(key, asked)]
        asked.requests += len(fresh)
        asked.recorded += sum(key in found for key in fresh)
        self._weigh(asked, [requests[key] for key in fresh if key not in found])
        return keys, found

    def _is_new(self, key: bytes, asked: Asked) -> bool:
        if key in self._seen:
            return False
        if len(self._seen) < MOST_KEYS:
            self._seen.add(key)
        else:
            asked.exact = False
        return True

    async def _recorded(self, call: BoundCall, requests: Mapping[bytes, Request]) -> dict[bytes, Answer]:
        return await self._execution.recorded(self._execution.addresses(call, requests, self._run), self._run)

    def _weigh(self, asked: Asked, requests: Iterable[Request]) -> None:
        """Count what each served entity would get."""
        serving = self._execution.gateway.serving(asked.call.endpoint)
        routes, entities = serving.config.routes, {one.name: one for one in serving.config.served_entities}
        for request in requests:
            route = routes[choose(routes, request.route_key) if len(routes) > 1 else 0]
            name = route.served_entity_name
            counted = tokens.count(request.body, entities[name], serving.entities[name])
            load = asked.loads.setdefault(name, Load())
            load.requests += 1
            load.tokens += counted.tokens
            load.exact &= counted.exact

    def _column(
        self, call: BoundCall, chunk: Chunk, keys: Sequence[rows.RowKey], found: Mapping[bytes, Answer]
    ) -> pa.Array:
        """Return the answers of rows, NULL where they are not known."""
        unknown = self._statements.pending(chunk.call, len(chunk.request))
        if not found:
            return unknown
        column = rows.embedding_column if call.task == EMBEDDINGS else rows.text_column
        known = column(call, [key if key in found else None for key in keys], found)
        return known if known.type == unknown.type else rows.without_errors(call, known)


def survey(connection: Connection, text: str, parameters: object = None) -> Surveyed:
    """Count what one statement would ask, on its own connection, of which nothing stays changed.

    Args:
        connection: Where the statement would run; any result it still holds is given up.
        text: One statement.
        parameters: The values of its parameters.

    Raises:
        InvalidRequestError: The text is no single statement, or one whose rows cannot be had without its effects.
        duckdb.Error: The statement is wrong, fails, or was interrupted.
    """
    part = _query(text)
    calls = range(1, len(sql_text.calls(part)) + 1)
    engine = cast("_Engine", connection.engine)
    recorder = Survey(engine.execution, engine.statements, connection.run)
    handle = connection.handle()
    if handle is None:
        raise InvalidRequestError("The connection of the statement is gone: open another.")
    before, connection.recorder = connection.recorder, recorder
    try:
        if parameters is None:
            handle.sql(part)  # an error in the text is told in the user's own words
        for site in calls:
            connection.engine.define_site(handle, site)
        _drain(handle.sql(sql_text.numbered(part), params=parameters))
    finally:
        connection.recorder = before
        with suppress(duckdb.Error):  # a transaction that has failed takes the macros along
            for site in calls:
                connection.engine.drop_site(handle, site)
    return _surveyed(part, recorder.asked(), calls)


def _drain(relation: duckdb.DuckDBPyRelation) -> None:
    """Read all rows, a chunk at a time. Arrow tells errors as OSError, DuckDB those of the first chunk."""
    try:
        for _ in relation.to_arrow_reader(CHUNK):
            pass
    except (OSError, duckdb.Error) as error:
        if KeyboardInterrupt.__name__ in str(error):
            raise KeyboardInterrupt from error
        if isinstance(error, OSError):
            raise duckdb.Error(str(error)) from error
        raise


def _query(text: str) -> str:
    """Return the part of a statement that yields rows."""
    count = len(sql_text.statements(text))
    if count != 1:
        raise InvalidRequestError(f"explain_ai takes one statement, and this text has {count}: explain each by itself.")
    part = sql_text.rows_of(text)
    if part is None:
        raise InvalidRequestError(
            f"explain_ai cannot tell what {_verb(text)} would ask without running it: it takes queries, CREATE TABLE "
            "AS, INSERT of a query and COPY of a query. Explain a SELECT of the same ai_query over the same rows."
        )
    if not sql_text.names(part).isdisjoint(_EFFECTS):
        raise InvalidRequestError(
            "explain_ai would use up numbers of a sequence: leave nextval out of what it is to explain."
        )
    return part


def _verb(text: str) -> str:
    word = next(iter(re.findall(r"[A-Za-z]+", re.sub(r"--[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL))), "")
    return f"a statement with {word.upper()}" if word else "this text"


def _surveyed(text: str, asked: list[Asked], calls: Iterable[int]) -> Surveyed:
    reached = {one.site for one in asked}
    unasked = [site for site in calls if site not in reached]
    recursive = re.search(r"\bRECURSIVE\b", text, re.IGNORECASE) is not None
    certain = sql_text.independent(text) and 0 not in reached and not recursive
    for place, one in enumerate(asked):
        before = () if certain else asked[: place + recursive]
        one.after = tuple(sorted({other.site for other in before if not other.known}))
    unknown = tuple(sorted({one.site for one in asked if not one.known}))
    ends_early = bool(unknown) and sql_text.has_limit(text) and not sql_text.projected(text)
    return Surveyed(text, asked, dict.fromkeys(unasked, () if certain else unknown), ends_early)


def _merge(call: Asked, reason: Asked) -> None:
    call.requests += reason.requests
    call.recorded += reason.recorded
    call.exact &= reason.exact
    for name, load in reason.loads.items():
        mine = call.loads.setdefault(name, Load())
        mine.requests += load.requests
        mine.tokens += load.tokens
        mine.exact &= load.exact
