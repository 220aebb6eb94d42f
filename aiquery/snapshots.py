"""How far a run is: what it counted at two moments, and one line that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiquery.wording import amount, dollars, span

if TYPE_CHECKING:
    from aiquery_serving.gateway import Gateway
    from aiquery_udfs.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a run had counted at one moment; `at` is in monotonic seconds."""

    at: float
    rows: int = 0
    answered: int = 0
    from_ledger: int = 0
    failed: int = 0
    in_flight: int = 0
    tokens: int = 0
    cost: float = 0.0
    cost_known: bool = True
    waiting_for: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How far a run is.

    `seconds` it has taken; `rows` that have their answer; distinct `requests` that were answered, found in the
    ledger or failed; rates of the latest seconds; the `share` that is done, from 0 to 1, and the seconds that are
    left, where the whole is known; `waiting_for` says what calls stand in line for.
    """

    seconds: float
    rows: int = 0
    requests: int = 0
    from_ledger: int = 0
    failed: int = 0
    in_flight: int = 0
    requests_per_s: float = 0.0
    tokens_per_s: float = 0.0
    cost: float = 0.0
    cost_known: bool = True
    share: float | None = None
    seconds_left: float | None = None
    waiting_for: str | None = None


def read(run: Run, gateway: Gateway, now: float) -> Reading:
    """Look at a run; any thread."""
    tally, spent = run.tally, run.meter.spent if run.meter is not None else None
    phrases = (gateway.waiting(endpoint) for endpoint in sorted(tally.endpoints))
    return Reading(
        at=now,
        rows=tally.rows,
        answered=tally.answered,
        from_ledger=tally.from_ledger,
        failed=tally.failed,
        in_flight=run.in_flight,
        tokens=spent.prompt_tokens + spent.completion_tokens if spent else 0,
        cost=spent.cost if spent else 0.0,
        cost_known=spent.cost_known if spent else True,
        waiting_for="paused" if run.paused.is_set() else next(filter(None, phrases), None),
    )


def snapshot(
    began: Reading,
    recent: Reading,
    latest: Reading,
    *,
    total_rows: int | None = None,
    total_requests: int | None = None,
) -> Snapshot:
    """Say how far a run is, from what it had counted when it began, a while ago, and now.

    Args:
        began: Its first reading.
        recent: The one from which rates are taken.
        latest: Its last reading.
        total_rows: How many rows there will be.
        total_requests: How many distinct requests there will be; tells the share that is done, if it is known.
    """
    done, total = latest.rows - began.rows, total_rows
    if total_requests is not None:
        done, total = latest.answered - began.answered, total_requests
    counted = "rows" if total_requests is None else "answered"
    pace = _rate(counted, recent, latest) or _rate(counted, began, latest)
    left = None if total is None else max(0, total - done)
    return Snapshot(
        seconds=latest.at - began.at,
        rows=latest.rows - began.rows,
        requests=latest.answered - began.answered,
        from_ledger=latest.from_ledger - began.from_ledger,
        failed=latest.failed - began.failed,
        in_flight=latest.in_flight,
        requests_per_s=_rate("answered", recent, latest) - _rate("from_ledger", recent, latest),
        tokens_per_s=_rate("tokens", recent, latest),
        cost=latest.cost - began.cost,
        cost_known=latest.cost_known,
        share=None if total is None else min(1.0, done / total) if total else 1.0,
        seconds_left=left / pace if left is not None and pace else None,
        waiting_for=latest.waiting_for,
    )


def _rate(name: str, since: Reading, latest: Reading) -> float:
    seconds = latest.at - since.at
    return float(getattr(latest, name) - getattr(since, name)) / seconds if seconds > 0 else 0.0


def line(now: Snapshot, width: int | None = None) -> str:
    """Say in one line how far a run is; where it has not the width, what matters least is left out.

    Examples:
        >>> line(Snapshot(seconds=9, rows=2048, requests=1500, failed=2, cost=0.25, seconds_left=70))
        '2,048 rows · 1,500 requests · 2 failed · $0.25 · 1 min 10 s left'
    """
    kept: list[tuple[int, int, str]] = []
    for part in sorted(_parts(now), reverse=True):
        if not kept or width is None or len(_joined([*kept, part])) <= width:
            kept.append(part)
    text = _joined(kept)
    return text if width is None or len(text) <= width else text[: max(0, width - 1)] + "…"


def _joined(parts: list[tuple[int, int, str]]) -> str:
    return " · ".join(text for _, _, text in sorted(parts, key=lambda part: part[1]))


def _parts(now: Snapshot) -> list[tuple[int, int, str]]:
    """Return the parts of the line: how much each matters, its place, its text."""
    cost = dollars(now.cost) if now.cost_known else f"at least {dollars(now.cost)}"
    parts = (
        (6, f"{now.share:.0%}" if now.share is not None else ""),
        (4, f"{amount(now.rows)} rows"),
        (9, f"{amount(now.requests)} requests"),
        (2, f"{amount(now.from_ledger)} from the ledger" if now.from_ledger else ""),
        (8, f"{amount(now.failed)} failed" if now.failed else ""),
        (3, f"{amount(now.in_flight)} in flight" if now.in_flight else ""),
        (1, f"{amount(now.requests_per_s)} requests/s" if now.requests_per_s else ""),
        (0, f"{amount(now.tokens_per_s)} tokens/s" if now.tokens_per_s else ""),
        (5, cost if now.cost else ""),
        (7, f"{span(now.seconds_left)} left" if now.seconds_left is not None else ""),
        (5, now.waiting_for or ""),
    )
    return [(weight, place, text) for place, (weight, text) in enumerate(parts) if text]
