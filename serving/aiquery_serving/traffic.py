"""Decides which served entity takes a call: by turn (an even sequence) or by key (a stable hash).

Theory of operation. A call without a key takes the next turn of a schedule that repeats: with whole
per cents it has at most 100 turns. The schedule is Tijdeman's answer to the chairman assignment
problem: of the routes that have earned a turn, the one that must have it soonest goes first. After
any number of turns from the start, each of k routes is within 1 - 1/(2k - 2) calls of its share. A
window is the difference of two such prefixes, so *any* window of calls is within 1 call of the
shares for two routes, within 1.5 for three, and always within 2.

A call with a key goes where weighted rendezvous hashing sends it: every route draws a number from
the key and its entity's name, and the best draw for its weight wins. The draw of a route does not
depend on the others, so that a changed split moves a key only to a route that gained on the one it
leaves: of two routes only the keys that have to move do, and none moves back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

from aiquery_serving.endpoint import Route
from aiquery_serving.errors import ConfigurationError


@lru_cache(maxsize=1024)
def schedule(routes: tuple[Route, ...]) -> tuple[int, ...]:
    """Return the turns of one period: indexes into `routes`, as even as whole calls allow.

    Raises:
        ConfigurationError: No route has a share.

    Examples:
        >>> schedule((Route("a", 75), Route("b", 25)))
        (0, 0, 1, 0)
    """
    shares = [route.traffic_percentage for route in routes]
    drawn = [index for index, share in enumerate(shares) if share > 0]
    if not drawn:
        msg = "no route has any traffic: the traffic_percentage of the routes must add up to 100"
        raise ConfigurationError(msg)
    divisor = math.gcd(*shares)
    turns = _tijdeman([shares[index] // divisor for index in drawn])
    return tuple(drawn[turn] for turn in turns)


def _tijdeman(weights: list[int]) -> list[int]:
    """Order `weights[i]` turns of each i so that every prefix stays close to the shares.

    Integers only: a deviation is scaled by `period * scale`, so nothing is rounded.
    """
    period, scale = sum(weights), max(1, 2 * len(weights) - 2)
    given = [0] * len(weights)
    turns = []
    for turn in range(1, period + 1):
        owed = [scale * (weight * turn - period * had) for weight, had in zip(weights, given, strict=True)]
        earned = [index for index, debt in enumerate(owed) if debt >= period]
        chosen = min(earned, key=lambda index: _slack(period, scale, owed[index], weights[index]))
        given[chosen] += 1
        turns.append(chosen)
    return turns


def _slack(period: int, scale: int, owed: int, weight: int) -> float:
    """Return for how many more turns this route can go without one.

    A quotient of integers below a million: two that differ are further apart than a float's error.
    """
    return (scale * period - period - owed) / weight


def positions(routes: tuple[Route, ...], start: int, count: int) -> NDArray[np.uint8]:
    """Return the route index of the calls `start` to `start + count - 1`.

    Examples:
        >>> positions((Route("a", 75), Route("b", 25)), 2, 4).tolist()
        [1, 0, 0, 0]
    """
    table = np.array(schedule(routes), dtype=np.uint8)
    return np.resize(np.roll(table, -(start % len(table))), count)


def choose(routes: Iterable[Route], key: bytes) -> int:
    """Return the index of the route that a key goes to, the same in every process.

    Args:
        routes: The routes; their names and shares decide, not their order.
        key: What identifies the request, such as its digest.

    Raises:
        ConfigurationError: No route has a share.

    Examples:
        >>> choose((Route("a", 0), Route("b", 100)), b"any")
        1
    """
    best, chosen = 0.0, -1
    for index, route in enumerate(routes):
        if route.traffic_percentage > 0:
            score = _score(key, route)
            if score > best:
                best, chosen = score, index
    if chosen < 0:
        msg = "no route has any traffic: the traffic_percentage of the routes must add up to 100"
        raise ConfigurationError(msg)
    return chosen


def _score(key: bytes, route: Route) -> float:
    """Return the draw of one route for a key; the highest wins.

    52 bits and a half stay exact in a float, so the logarithm is never that of 0 or 1.
    """
    draw = xxhash.xxh3_64_intdigest(key + route.served_entity_name.encode()) >> 12
    return -route.traffic_percentage / math.log((draw + 0.5) * 2.0**-52)


def split(routes: NDArray[np.integer]) -> list[tuple[int, NDArray[np.intp]]]:
    """Group rows by route: each route that occurs, with the places of its rows in order.

    Examples:
        >>> [(route, places.tolist()) for route, places in split(np.array([1, 0, 1]))]
        [(0, [1]), (1, [0, 2])]
    """
    return [(int(route), np.flatnonzero(routes == route)) for route in np.unique(routes)]
