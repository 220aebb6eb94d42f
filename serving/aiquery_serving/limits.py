"""Decides when a call may go: declared rate limits, learned ones, cool-downs, and a window.

Theory of operation. A declared limit counts over a rolling window: a call at `t` counts until just before `t + period`.
What was spent is kept as a queue of entries, each with the instant at which it stops counting; asking (`wait`) and
spending (`take`) are separate verbs, so several limits can be asked before any is spent. Tokens are reserved when a
call goes and corrected when its answer says what it used (`settle`). Big limits merge entries within a thousandth of
the period, and count them all until the last one leaves: memory stays bounded, and the limit is never exceeded.

Nobody here reads a clock: everything is told `now`, in seconds of any clock that only grows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from aiquery_serving.endpoint import RateLimit
from aiquery_serving.errors import InvalidRequestError, TooManyRequestsError
from aiquery_serving.messages import Allowance

#: Seconds in each renewal period that a limit may name.
PERIODS = {"minute": 60.0}
#: Below this many calls a window keeps every call's own instant.
_EXACT = 4096
#: A window of many calls tells instants apart to this part of its period.
_GRAIN = 1 / 1000
#: Callers known before those with nothing left to count are forgotten.
_CALLERS = 1024
#: Says which groups a caller is in.
GroupsOf: TypeAlias = Callable[[str], frozenset[str]]


class Spent:
    """Calls and tokens of one instant (or grain) in a window."""

    __slots__ = ("calls", "first", "gone", "last", "tokens")

    def __init__(self, now: float) -> None:
        self.first = self.last = now
        self.calls = self.tokens = 0
        self.gone = False


class RollingLimit:
    """At most `calls` and `tokens` in any `period` seconds.

    Examples:
        >>> limit = RollingLimit(calls=2, period=60)
        >>> entries = [limit.take(0), limit.take(20)]
        >>> limit.wait(20), limit.wait(60)
        (40, 0.0)
    """

    __slots__ = ("_calls", "_entries", "_tokens", "calls", "period", "tokens")

    def __init__(self, *, calls: int | None = None, tokens: int | None = None, period: float) -> None:
        self.calls = calls
        self.tokens = tokens
        self.period = period
        self._entries: deque[Spent] = deque()
        self._calls = self._tokens = 0

    def wait(self, now: float, tokens: int = 0) -> float:
        """Return the seconds until one call with that many tokens may go; 0.0 for now.

        Infinite when it is more than the whole limit.
        """
        self._forget(now)
        calls_over = 0 if self.calls is None else self._calls + 1 - self.calls
        tokens_over = 0 if self.tokens is None else self._tokens + tokens - self.tokens
        if calls_over <= 0 and tokens_over <= 0:
            return 0.0
        for entry in self._entries:
            calls_over -= entry.calls
            tokens_over -= entry.tokens
            if calls_over <= 0 and tokens_over <= 0:
                return _until(entry.last + self.period, now)
        return math.inf

    def take(self, now: float, tokens: int = 0) -> Spent:
        """Spend one call and reserve its tokens; returns what `settle` corrects."""
        return self._spend(now, 1, tokens)

    def settle(self, entry: Spent, reserved: int, actual: int, now: float) -> None:
        """Correct a reservation once the answer says what it used.

        What was not used is free at once. What was used beyond it counts from now, so that later
        calls make up for it.
        """
        if actual > reserved:
            self._spend(now, 0, actual - reserved)
        elif not entry.gone:
            entry.tokens -= reserved - actual
            self._tokens -= reserved - actual

    def undo(self, entry: Spent, tokens: int) -> None:
        """Give back a call that was not sent, and its tokens."""
        if not entry.gone:
            entry.calls -= 1
            entry.tokens -= tokens
            self._calls -= 1
            self._tokens -= tokens

    def exceeded(self, now: float) -> str:
        """Name what refuses a call: `calls` or `tokens`."""
        self._forget(now)
        if self.calls is not None and self._calls >= self.calls:
            return "calls"
        return "tokens"

    def idle(self, now: float) -> bool:
        """Say whether nothing counts any more."""
        self._forget(now)
        return not self._entries

    def _spend(self, now: float, calls: int, tokens: int) -> Spent:
        entry = self._entries[-1] if self._entries else None
        if entry is None or now - entry.first > self._grain():
            entry = Spent(now)
            self._entries.append(entry)
        entry.last = max(entry.last, now)
        entry.calls += calls
        entry.tokens += tokens
        self._calls += calls
        self._tokens += tokens
        return entry

    def _grain(self) -> float:
        exact = self.calls is not None and self.calls <= _EXACT
        return 0.0 if exact else self.period * _GRAIN

    def _forget(self, now: float) -> None:
        entries = self._entries
        while entries and entries[0].last + self.period <= now:
            entry = entries.popleft()
            entry.gone = True
            self._calls -= entry.calls
            self._tokens -= entry.tokens


def _until(due: float, now: float) -> float:
    """Return the wait after which `now` has really reached `due`, whatever floats round to."""
    wait = due - now
    while now + wait < due:
        wait = math.nextafter(wait, math.inf)
    return wait


class Reservation:
    """What one admitted call took from every limit that counts it."""

    __slots__ = ("_parts", "tokens")

    def __init__(self, parts: list[tuple[RollingLimit, Spent]], tokens: int) -> None:
        self._parts = parts
        self.tokens = tokens

    def settle(self, actual: int, now: float) -> None:
        """Correct the reserved tokens to those the answer used."""
        for limit, entry in self._parts:
            if limit.tokens is not None:
                limit.settle(entry, self.tokens, actual, now)

    def undo(self) -> None:
        """Give everything back: the call was not sent."""
        for limit, entry in self._parts:
            limit.undo(entry, self.tokens)


class Exceeded(NamedTuple):
    """A limit that is used up: in `calls` or in `tokens`, for `wait` seconds."""

    limit: RateLimit
    what: str
    wait: float


class Limits:
    """All rate limits declared on an endpoint; the strictest wins (contract C.6).

    `endpoint` counts everybody together, `user` every caller apart, `user_group` the members of its principal
    together. With a `principal`, `user` and `service_principal` count the caller of that name alone. `groups_of` is
    asked on every call, so it has to be quick.
    """

    def __init__(self, declared: Iterable[RateLimit] = (), groups_of: GroupsOf = lambda _: frozenset()) -> None:
        self._groups_of = groups_of
        self._windows: dict[tuple[str, str | None, str, str], RollingLimit] = {}
        self._sweep_at = _CALLERS
        self.declare(declared)

    def declare(self, declared: Iterable[RateLimit]) -> None:
        """Take over new limits; what was spent under the old ones still counts."""
        rules: dict[tuple[str, str | None, str], RateLimit] = {}
        for limit in declared:
            same = (limit.key, limit.principal, limit.renewal_period)
            rules[same] = _stricter(rules.get(same, limit), limit)
        self._declared = tuple(rules.values())
        self.counts_tokens = any(limit.tokens is not None for limit in self._declared)
        self._groups = frozenset(limit.principal or "" for limit in self._declared if limit.key == "user_group")
        self._windows = {name: window for name, window in self._windows.items() if name[:3] in rules}
        for name, window in self._windows.items():
            rule = rules[name[:3]]
            window.calls, window.tokens = rule.calls, rule.tokens

    def __bool__(self) -> bool:
        return bool(self._declared)

    def wait(self, caller: str, now: float, tokens: int = 0) -> float:
        """Return the seconds until every limit lets the call go; 0.0 for now."""
        return max((w.wait(now, tokens) for w, _ in self._counting(caller, now)), default=0.0)

    def take(self, caller: str, now: float, tokens: int = 0) -> Reservation:
        """Spend the call on every limit that counts it."""
        parts = [(w, w.take(now, tokens)) for w, _ in self._counting(caller, now)]
        return Reservation(parts, tokens)

    def largest(self, caller: str) -> float:
        """Return the tokens that one call of this caller can have at most."""
        return min((limit.tokens for limit in self.applying(caller) if limit.tokens is not None), default=math.inf)

    def check(self, endpoint: str, caller: str, tokens: int) -> None:
        """Refuse what no wait can ever admit.

        Raises:
            InvalidRequestError: The request is larger than a whole token limit.
        """
        largest = self.largest(caller)
        if tokens > largest:
            raise InvalidRequestError(
                f"The request to '{endpoint}' needs about {tokens} tokens, but its rate limit "
                f"allows {largest:.0f} per minute: send a shorter request or raise the limit."
            )

    def strictest(self, caller: str, now: float, tokens: int) -> Exceeded | None:
        """Return what holds up a call for longest; None when nothing counts its caller, who may have left a group."""
        every = (Exceeded(one, w.exceeded(now), w.wait(now, tokens)) for w, one in self._counting(caller, now))
        return max(every, key=lambda exceeded: exceeded.wait, default=None)

    def applying(self, caller: str) -> list[RateLimit]:
        """Return the limits that count a caller, no two of which count the same."""
        groups, own = self.counted_groups(caller), (None, caller)
        return [each for each in self._declared if each.principal in (groups if each.key == "user_group" else own)]

    def counted_groups(self, caller: str) -> frozenset[str]:
        """Return those groups of a caller that a limit counts."""
        return self._groups & self._groups_of(caller) if self._groups else self._groups

    def _counting(self, caller: str, now: float) -> list[tuple[RollingLimit, RateLimit]]:
        return [(self._window(limit, caller, now), limit) for limit in self.applying(caller)]

    def _window(self, limit: RateLimit, caller: str, now: float) -> RollingLimit:
        name = (limit.key, limit.principal, limit.renewal_period, counted_apart(limit, caller))
        window = self._windows.get(name)
        if window is None:
            self._sweep(now)
            window = RollingLimit(calls=limit.calls, tokens=limit.tokens, period=PERIODS[limit.renewal_period])
            self._windows[name] = window
        return window

    def _sweep(self, now: float) -> None:
        """Forget callers with nothing left to count, seldom enough to cost nothing per call."""
        if len(self._windows) >= self._sweep_at:
            self._windows = {n: w for n, w in self._windows.items() if not w.idle(now)}
            self._sweep_at = max(_CALLERS, 2 * len(self._windows))


def _stricter(one: RateLimit, other: RateLimit) -> RateLimit:
    return replace(one, calls=_less(one.calls, other.calls), tokens=_less(one.tokens, other.tokens))


def _less(one: int | None, other: int | None) -> int | None:
    return min((amount for amount in (one, other) if amount is not None), default=None)


def counted_apart(limit: RateLimit, caller: str) -> str:
    """Return whom of its callers a limit counts apart from the others; empty when it counts them together."""
    return caller if limit.key == "user" else ""


def refusal(endpoint: str, exceeded: Exceeded) -> TooManyRequestsError:
    """Return the error for a caller that does not wait."""
    kind = "Requests-per-minute (RPM)" if exceeded.what == "calls" else "Tokens-per-minute (TPM)"
    whom = "endpoint" if exceeded.limit.key == "endpoint" else "user"
    return TooManyRequestsError(
        f"User defined rate limit(s) exceeded for '{endpoint}'. {kind} rate limit exceeded for {whom}",
        retry_after=exceeded.wait,
    )


class LearnedLimit:
    """What a provider's answers teach about one of its limits, in calls or in tokens.

    Two rules together keep 429s away from the two ways in which providers count. What an answer
    says is left, less what was still in flight then, is all that goes until newer news or until
    the reset. And no more than `limit` goes in the longest reset ever seen, by our own count: a
    provider with a rolling window frees its first call at the reset, not all of them.

    Examples:
        >>> learned = LearnedLimit()
        >>> learned.observe(Allowance(limit=9, remaining=0, reset_after=7.0), 0.0, in_flight=0)
        >>> learned.wait(0.0), learned.wait(7.0)
        (7.0, 0.0)
    """

    __slots__ = ("_left", "_limit", "_period", "_reset_at", "_sent", "_total", "taught")

    #: Seconds, and part of the period, that a call may travel before the provider counts it.
    _TRAVEL = 1.0
    _TRAVEL_PART = 0.05
    #: Calls kept by their instant; limits above it rely on the provider's own count.
    _KEPT = 65_536

    def __init__(self) -> None:
        self.taught = False
        self._limit: int | None = None
        self._period = 0.0
        self._left: float = math.inf
        self._reset_at = 0.0
        self._sent: deque[list[float]] = deque()
        self._total = 0.0

    def wait(self, now: float, amount: float = 1) -> float:
        """Return the seconds until `amount` may go; 0.0 for now. News may come earlier."""
        if self._left < amount:
            if now < self._reset_at:
                return _until(self._reset_at, now)
            self._left = math.inf
        return self._own_count(now, amount)

    def _own_count(self, now: float, amount: float) -> float:
        if self._limit is None or self._limit > self._KEPT or not self._period:
            return 0.0
        sent, period = self._sent, self._period
        while sent and sent[0][0] + period <= now:
            self._drop()
        over = self._total + min(amount, self._limit) - self._limit
        due = now
        for stamp, spent in sent:
            if over <= 0:
                break
            over -= spent
            due = max(due, stamp + period)
        return _until(due, now)

    def sent(self, now: float, amount: float = 1) -> list[float]:
        """Count what goes now; returns what `finish` corrects."""
        self._left -= amount
        entry = [now + self._TRAVEL, amount]
        self._sent.append(entry)
        self._total += amount
        if len(self._sent) > self._KEPT:
            self._drop()
        return entry

    def finish(self, entry: list[float], now: float, amount: float | None = None) -> None:
        """Note that an answer came: the provider counted the call before that.

        Args:
            entry: What `sent` returned.
            now: The time.
            amount: What it really used, when the answer says so.
        """
        travel = min(self._TRAVEL, self._TRAVEL_PART * self._period or self._TRAVEL)
        entry[0] = min(now, entry[0] - self._TRAVEL + travel)
        if amount is not None and entry[1] >= 0:
            self._total += amount - entry[1]
            entry[1] = amount

    def unsent(self, entry: list[float]) -> None:
        """Take back what `sent` counted, when nothing went after all."""
        if entry[1] >= 0:
            self._left += entry[1]
            self._total -= entry[1]
            entry[1] = 0.0

    def _drop(self) -> None:
        entry = self._sent.popleft()
        self._total -= entry[1]
        entry[1] = -1.0  # late answers must not correct what is not counted any more

    def observe(self, allowance: Allowance, now: float, in_flight: float) -> None:
        """Learn from one answer's headers.

        Args:
            allowance: What they say; unknown parts keep what was known.
            now: The time.
            in_flight: What is still unanswered: it may not be counted in `remaining` yet.
        """
        self.taught = True
        if allowance.limit is not None:
            self._limit = allowance.limit
        if allowance.reset_after is not None:
            self._period = max(self._period, allowance.reset_after)
            self._reset_at = now + allowance.reset_after
        if allowance.remaining is not None:
            self._left = allowance.remaining - in_flight
