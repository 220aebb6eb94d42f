"""Says what a statement would ask, cost and take, without sending anything."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiquery.explanations import CallEstimate, EntityEstimate, Explanation, Range, total
from aiquery_serving import holdups
from aiquery_serving.endpoint import Kind
from aiquery_serving.limits import PERIODS
from aiquery_serving.messages import EMBEDDINGS
from aiquery_serving.tokens import output_bounds
from aiquery_udfs import sql_text
from aiquery_udfs.flights import EMBEDDING_PACK
from aiquery_udfs.survey import CHUNK, Asked, Load, Surveyed, survey

if TYPE_CHECKING:
    from aiquery.client import Workspace
    from aiquery_serving.endpoint import RateLimit, ServedEntity
    from aiquery_serving.registry import Serving
    from aiquery_udfs.connections import Connection

#: A call's own text is told in so many characters.
TEXT_LENGTH: Final = 40
_PIECE: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|[()]|[^'\"()]+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Learned:
    """What the usage tells of a served entity: its answers, their tokens, and the seconds of a call and of a row."""

    answers: int = 0
    tokens: int = 0
    call_seconds: float | None = None
    row_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _Sends:
    """What is sent to one endpoint: calls, tokens, and the seconds that its served entities take for them."""

    calls: int
    tokens: float
    seconds: float | None


def explain(connection: Connection, workspace: Workspace, text: str, parameters: object = None) -> Explanation:
    """Say what one statement would ask, cost and take. Nothing is sent.

    Args:
        connection: Where the statement would run.
        workspace: Where its endpoints are.
        text: One statement.
        parameters: The values of its parameters.

    Raises:
        InvalidRequestError: The text is no single statement, or one whose rows cannot be had without its effects.
        duckdb.Error: The statement is wrong, or fails.
    """
    surveyed = survey(connection, text, parameters)
    estimator = _Estimator(workspace, reuses=connection.run is not None and connection.run.reuse is not None)
    texts = [_call_text(surveyed.text, span.start, span.end) for span in sql_text.calls(surveyed.text)]
    return estimator.explanation(surveyed, texts)


class _Estimator:
    """Turns what was counted into tokens, money and time, by what the workspace knows."""

    def __init__(self, workspace: Workspace, *, reuses: bool) -> None:
        self._gateway, self._prices, self._caller = workspace.gateway, workspace.prices, workspace.user
        self._reuses = reuses
        self._learned = {(row["endpoint"], row["served_entity"]): _learned(row) for row in workspace.usage()}
        self._sends: dict[str, list[_Sends]] = {}

    def explanation(self, surveyed: Surveyed, texts: list[str]) -> Explanation:
        """Return the calls in the order of the text, then those inside views and macros."""
        calls = [self._call(one, texts, surveyed) for one in surveyed.asked]
        calls += [self._unasked(site, after, texts) for site, after in surveyed.unasked.items()]
        calls.sort(key=lambda call: call.number or math.inf)
        return Explanation(calls=calls, total=total(calls, self._seconds()))

    def _call(self, asked: Asked, texts: list[str], surveyed: Surveyed) -> CallEstimate:
        endpoint, is_custom = asked.call.endpoint, asked.call.kind is Kind.CUSTOM
        serving = self._gateway.serving(endpoint)
        loads = _row_loads(asked, serving) if is_custom else asked.loads
        entities = {one.name: one for one in serving.config.served_entities}
        served = tuple(self._entity(asked, serving, entities[name], loads[name]) for name in sorted(loads))
        sends = _Sends(
            sum(_sends(asked, load) for load in loads.values()),
            sum(one.tokens_in + one.tokens_out.expected for one in served),
            _longest(one.seconds for one in served),
        )
        self._sends.setdefault(endpoint, []).append(sends)
        seconds, pace = self._time(serving, [sends])
        return CallEstimate(
            number=asked.site,
            text=texts[asked.site - 1] if asked.site else f"ai_query('{endpoint}', …)",
            endpoint=endpoint,
            rows=asked.rows,
            null_rows=asked.null_rows,
            requests=asked.requests,
            requests_exact=asked.exact,
            in_ledger=asked.recorded if self._reuses else None,
            served=served,
            seconds=seconds,
            pace=pace,
            depends_on=asked.after,
            may_end_early=surveyed.may_end_early,
        )

    def _unasked(self, site: int, after: tuple[int, ...], texts: list[str]) -> CallEstimate:
        """Return the estimate of a call that no row has reached."""
        return CallEstimate(
            number=site, text=texts[site - 1], endpoint="", rows=0, null_rows=0, requests=0, requests_exact=True,
            in_ledger=0 if self._reuses else None, served=(), seconds=0.0, pace="", depends_on=after,
            may_end_early=False,
        )  # fmt: skip

    def _entity(self, asked: Asked, serving: Serving, served: ServedEntity, load: Load) -> EntityEstimate:
        is_custom = asked.call.kind is Kind.CUSTOM
        learned = self._learned.get((serving.name, served.name), _Learned())
        bounds = (0, 0, 0) if is_custom else output_bounds(asked.call.body(""), learned.tokens or None)
        out = Range(*(load.requests * tokens for tokens in bounds))
        sends = _sends(asked, load)
        price = self._prices.of(served, serving.name)
        cost = Range() if is_custom else None  # a model in this process costs nothing unless somebody says so
        if price is not None:
            costs = (
                price.cost(load.tokens, round(tokens), calls=sends) for tokens in (out.low, out.expected, out.high)
            )
            cost = Range(*costs)
        return EntityEstimate(
            served_entity=served.name,
            requests=load.requests,
            tokens_in=load.tokens,
            tokens_exact=load.exact,
            tokens_out=out,
            answers_learned=learned.answers if learned.tokens else 0,
            cost=cost,
            seconds=_own_seconds(served, learned, load, sends, is_custom=is_custom),
            price_hint="" if cost is not None else self._prices.how_to_add(served, serving.name),
        )

    def _time(self, serving: Serving, sends: list[_Sends]) -> tuple[float | None, str]:
        """Return the seconds that an endpoint takes for calls, and what decides them: the slowest of all."""
        calls, tokens = sum(one.calls for one in sends), sum(one.tokens for one in sends)
        own = [one.seconds for one in sends]
        slowest, pace = 0.0, ""
        for limit in serving.rate_limits:
            if limit.principal in (None, self._caller):
                slowest, pace = max([(slowest, pace), *_paced(serving.name, limit, calls, tokens)])
        if None in own:
            return (slowest, f"{pace}; how fast it answers is not known yet") if slowest else (None, "")
        taken = sum(seconds for seconds in own if seconds is not None)
        return (slowest, pace) if slowest > taken else (taken, "")

    def _seconds(self) -> float | None:
        """Return the time of all calls: those to one endpoint stand in line there, endpoints work side by side."""
        return _longest(self._time(self._gateway.serving(name), sends)[0] for name, sends in self._sends.items())


def _learned(row: Mapping[str, Any]) -> _Learned:
    """Read what the usage says of one served entity."""
    answers, seconds = row["calls"] - row["errors"], row["mean_latency_ms"] / 1000
    if answers <= 0:
        return _Learned()
    per_row = seconds * row["calls"] / row["rows"] if row["rows"] else None
    return _Learned(answers, round(row["completion_tokens"] / answers), seconds, per_row)


def _row_loads(asked: Asked, serving: Serving) -> dict[str, Load]:
    """Share the rows of a custom model's endpoint out as its traffic is split."""
    count = asked.rows - asked.null_rows
    shares = {route.served_entity_name: route.traffic_percentage for route in serving.config.routes}
    return {name: Load(requests=round(count * share / 100)) for name, share in shares.items() if share and count}


def _sends(asked: Asked, load: Load) -> int:
    """Return in how many calls a load goes out: embeddings are packed, and rows go chunk by chunk."""
    if asked.call.kind is Kind.CUSTOM:
        return math.ceil(load.requests / CHUNK)
    return math.ceil(load.requests / EMBEDDING_PACK) if asked.call.task == EMBEDDINGS else load.requests


def _own_seconds(served: ServedEntity, learned: _Learned, load: Load, sends: int, *, is_custom: bool) -> float | None:
    """Return how long a served entity takes for a load when nothing paces it."""
    if not sends:
        return 0.0
    if is_custom:
        return None if learned.row_seconds is None else learned.row_seconds * load.requests
    return None if learned.call_seconds is None else learned.call_seconds * max(1.0, sends / served.concurrency)


def _paced(endpoint: str, limit: RateLimit, calls: int, tokens: float) -> Iterator[tuple[float, str]]:
    """Yield how long a declared limit makes calls take, and its words. The first period's worth goes at once."""
    period = PERIODS[limit.renewal_period]
    for most, number, what in ((limit.calls, calls, "calls"), (limit.tokens, tokens, "tokens")):
        if most is not None and number > most:
            yield (math.ceil(number / most) - 1) * period, holdups.paced(endpoint, limit, what)


def _longest(times: Iterable[float | None]) -> float | None:
    """Return the longest of some times; None when one of them is not known."""
    known = list(times)
    return None if None in known else max((time for time in known if time is not None), default=0.0)


def _call_text(text: str, start: int, end: int) -> str:
    """Return a call's own text up to its last bracket, on one line, abbreviated."""
    depth, stop = 0, len(text)
    for piece in _PIECE.finditer(text, end):
        depth += {"(": 1, ")": -1}.get(piece[0], 0)
        if piece[0] == ")" and depth == 0:
            stop = piece.end()
            break
    flat = " ".join(text[start:stop].split())
    return flat if len(flat) <= TEXT_LENGTH else flat[: TEXT_LENGTH - 1] + "…"
