"""Decides what one of several processes gets of a rate limit that they share.

Theory of operation. A *grant* is what a process may spend, or has spent, of a limit; it counts from
when it was given until one period after its last spending. While the grants that count, the new one
among them, are within the limit, so is every rolling window: whatever was spent in a window counts
when the last spender of that window is given its grant. Who has to wait leaves a *demand*. What is
free is shared out as water fills vessels: everybody up to one level, of what they hold and want
together, and who wants less than that leaves the rest to the others. Below the level the oldest
demand goes first, so that a large call is not passed by small ones for ever.

Nobody here reads a clock. Instants are in milliseconds since 1970: processes share no other clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

#: Beyond what is asked for, a grant holds at most this part of what is free.
_SPARE = 1 / 16


class Rule(NamedTuple):
    """At most `calls` and `tokens` in any `period_ms` milliseconds; None for no limit."""

    calls: int | None
    tokens: int | None
    period_ms: int


class Grant(NamedTuple):
    """What its owner may have spent, the last of it at `last_ms`."""

    owner: str
    calls: int
    tokens: int
    last_ms: int


class Demand(NamedTuple):
    """What its owner waits for since `since_ms`: so many calls and tokens in all, and the first call's tokens."""

    owner: str
    since_ms: int
    calls: int
    tokens: int
    first: int


class Award(NamedTuple):
    """What a limit allows: the first `calls` of those asked for and `spare` more.

    When it is none, `wait_ms` says how long the limit itself holds up the first call, by its `calls` or
    `tokens` as `what` says. Zero means that others go first.
    """

    calls: int
    spare: int
    wait_ms: float
    what: str


class _Side:
    """A limit in one unit, calls or tokens, and how far it is used up."""

    def __init__(self, what: str, limit: int, spent: Sequence[tuple[str, int, int]], wanted: dict[str, int]) -> None:
        self.what, self.limit, self._spent = what, limit, spent
        self.used: Counter[str] = Counter()
        for owner, amount, _ in spent:
            self.used[owner] += amount
        self.free = limit - self.used.total()
        wants = self.used + Counter(wanted)
        self.level = water_level(limit, wants.values())

    def frees_at(self, amount: int) -> float:
        """Return the last spending after whose period `amount` is free; minus infinity when it is now."""
        over = amount - self.free
        if over <= 0:
            return -math.inf
        for _, spent, last_ms in sorted(self._spent, key=lambda grant: grant[2]):
            over -= spent
            if over <= 0:
                return last_ms
        return math.inf


def award(
    rule: Rule,
    grants: Iterable[Grant],
    mine: Demand,
    sizes: Sequence[int],
    *,
    others: Sequence[Demand] = (),
    now_ms: int,
    spare: int = 0,
) -> Award:
    """Decide what a process may have now.

    Args:
        rule: The limit.
        grants: All that was granted; what counts no more is left out here.
        mine: What this process waits for.
        sizes: The tokens of its first calls, in order; at least one.
        others: What other processes wait for.
        now_ms: The time.
        spare: Calls like the first that it would like to have beyond them, to ask less often. Only when
            nobody else waits, and few of what is free.

    Examples:
        >>> rule, held = Rule(calls=10, tokens=None, period_ms=60_000), [Grant("a", 4, 0, 1_000)]
        >>> mine, other = Demand("b", 2_000, 9, 0, 0), Demand("c", 1_500, 1, 0, 0)
        >>> award(rule, held, mine, [0] * 9, now_ms=2_000)
        Award(calls=6, spare=0, wait_ms=0.0, what='')
        >>> award(rule, held, mine, [0] * 9, others=[other], now_ms=2_000).calls
        5
    """
    live = [grant for grant in grants if grant.last_ms + rule.period_ms > now_ms]
    sides = _sides(rule, live, [mine, *others])
    costs = {"calls": range(1, len(sizes) + 1), "tokens": list(accumulate(sizes))}
    below = [demand for demand in (mine, *others) if all(side.used[demand.owner] < side.level for side in sides)]
    count = 0
    if mine in below:
        older = [demand for demand in below if _age(demand) < _age(mine)]
        count = min((_fitting(side, costs[side.what], mine.owner, older) for side in sides), default=len(sizes))
    if not count:
        return _refused(sides, sizes[0], rule.period_ms, now_ms)
    if count < len(sizes) or others:
        return Award(count, 0, 0.0, "")
    return Award(count, min([spare, *(_spare(side, costs[side.what]) for side in sides)]), 0.0, "")


def water_level(limit: int, wants: Iterable[int]) -> float:
    """Return up to where everybody gets what they want when a limit is shared out evenly.

    Examples:
        >>> water_level(100, [10, 80, 200]), water_level(100, [10, 80])
        (45.0, inf)
    """
    left: float = limit
    ordered = sorted(wants)
    for place, want in enumerate(ordered):
        share = left / (len(ordered) - place)
        if want > share:
            return share
        left -= want
    return math.inf


def _sides(rule: Rule, live: Sequence[Grant], demands: Sequence[Demand]) -> list[_Side]:
    sides = []
    if rule.calls is not None:
        wanted = {demand.owner: demand.calls for demand in demands}
        sides.append(_Side("calls", rule.calls, [(g.owner, g.calls, g.last_ms) for g in live], wanted))
    if rule.tokens is not None:
        wanted = {demand.owner: demand.tokens for demand in demands}
        sides.append(_Side("tokens", rule.tokens, [(g.owner, g.tokens, g.last_ms) for g in live], wanted))
    return sides


def _age(demand: Demand) -> tuple[int, str]:
    return demand.since_ms, demand.owner


def _fitting(side: _Side, costs: Sequence[int], owner: str, older: Sequence[Demand]) -> int:
    """Count the first calls that fit: the first one if there is room, the others within the level, too."""
    room = side.free - sum(1 if side.what == "calls" else demand.first for demand in older)
    beyond_first = min(room, side.level - side.used[owner])
    for place, cost in enumerate(costs):
        if cost > (beyond_first if place else room):
            return place
    return len(costs)


def _spare(side: _Side, costs: Sequence[int]) -> int:
    return int((side.free - costs[-1]) * _SPARE) // max(1, costs[0])


def _refused(sides: Sequence[_Side], first: int, period_ms: int, now_ms: int) -> Award:
    frees_at = [(side.frees_at(1 if side.what == "calls" else first), side.what) for side in sides]
    latest, what = max(frees_at, key=lambda pair: pair[0])
    return Award(0, 0, max(0.0, latest + period_ms - now_ms), what)
