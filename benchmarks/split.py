"""How far a traffic split is from the declared shares after n calls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from aiquery_serving.endpoint import Route
from aiquery_serving.traffic import choose, positions
from benchmarks.report import report

SHARES = ((90, 10), (50, 50), (99, 1), (60, 30, 10), (34, 33, 33))
WINDOWS = (10, 100, 1_000, 10_000)


def routes(shares: Iterable[int]) -> tuple[Route, ...]:
    return tuple(Route(f"entity-{number}", share) for number, share in enumerate(shares))


def worst(drawn: np.ndarray, shares: tuple[int, ...], window: int) -> float:
    """Return the largest error, in calls, of any entity in any window."""
    errors = []
    for entity, share in enumerate(shares):
        counts = np.cumsum(np.concatenate([[0], drawn == entity]))
        errors.append(np.abs(counts[window:] - counts[:-window] - window * share / 100).max())
    return float(max(errors))


def measure(draw: Callable[[tuple[int, ...]], np.ndarray], how: str) -> list[dict]:
    found = []
    for shares in SHARES:
        drawn = draw(shares)
        errors = {f"window {window:,}": worst(drawn, shares, window) for window in WINDOWS}
        found.append({"how": how, "shares": "/".join(map(str, shares)), **errors})
    return found


def keyed(shares: tuple[int, ...]) -> np.ndarray:
    known = routes(shares)
    return np.array([choose(known, hashlib.sha256(str(n).encode()).digest()) for n in range(20_000)])


def main() -> None:
    rows = measure(lambda shares: positions(routes(shares), 0, 20_000), "sequence")
    two = [row for row in rows if row["shares"].count("/") == 1]
    sequence_holds = all(row[f"window {window:,}"] <= 1 for row in two for window in WINDOWS)
    rows += measure(keyed, "key")
    deviation = 4 * np.sqrt(10_000 * 0.25)
    key_holds = all(row["window 10,000"] <= deviation for row in rows if row["how"] == "key")
    report(
        "split",
        rows,
        [("sequence: any window within 1 call (two entities)", sequence_holds), ("key: binomial", key_holds)],
    )
