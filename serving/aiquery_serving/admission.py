"""Admits calls to an endpoint by the rate limits declared on it: the asyncio side of `limits`.

Everything here belongs to one event loop and needs no lock, but for `Admission.holdup`.
"""

from __future__ import annotations

import json
from functools import partial
from typing import NamedTuple

from aiquery_serving import holdups
from aiquery_serving.clock import Clock
from aiquery_serving.endpoint import RateLimit
from aiquery_serving.leases import Account, Lease, Leases, SharedLimit
from aiquery_serving.limits import PERIODS, Exceeded, GroupsOf, Limits, Reservation, counted_apart, refusal
from aiquery_serving.pacing import Turnstile
from aiquery_serving.shares import Rule

#: Calls in line whose tokens are told at once.
_MOST_ASKED = 1000
#: Accounts known before those with nothing to spend are forgotten.
_ACCOUNTS = 1024


class _Asked(NamedTuple):
    """A call as an endpoint's rate limits see it."""

    caller: str
    tokens: int


class _Shared(NamedTuple):
    """What this process has of the limits that count a line, and those limits in the same order."""

    account: Account
    limits: list[RateLimit]


class Admitted(NamedTuple):
    """What one admitted call took: of this process's own count, and of what processes share."""

    own: Reservation
    account: Account | None
    lease: Lease | None

    def settle(self, actual: int, now: float) -> None:
        """Correct the reserved tokens to those the answer used."""
        self.own.settle(actual, now)
        if self.account is not None and self.lease is not None:
            self.account.settle(self.lease, self.own.tokens, actual)

    def undo(self) -> None:
        """Give everything back: the call was not sent."""
        self.own.undo()
        if self.account is not None and self.lease is not None:
            self.account.undo(self.lease, self.own.tokens)


class Admission:
    """The rate limits declared on one endpoint, and the lines before them.

    Every caller has a line of its own when limits tell callers apart: one who has used up theirs
    holds up nobody else.

    Args:
        endpoint: Its name.
        endpoint_id: What its limits are counted by, in this process and others.
        declared: The limits.
        clock: Tells the time and waits.
        leases: What this process holds of limits that others share; None when there are no others.
        groups_of: Returns the groups of a caller, for limits that count a group; by default nobody is in one.
    """

    def __init__(
        self,
        endpoint: str,
        endpoint_id: str,
        declared: tuple[RateLimit, ...] = (),
        *,
        clock: Clock,
        leases: Leases | None = None,
        groups_of: GroupsOf = lambda _: frozenset(),
    ) -> None:
        self._endpoint, self._id, self._clock, self._leases = endpoint, endpoint_id, clock, leases
        self._lines: dict[str, Turnstile[_Asked, Admitted]] = {}
        self._accounts: dict[tuple[str, frozenset[str]], _Shared | None] = {}
        self._exceeded: Exceeded | None = None
        self.limits = Limits(groups_of=groups_of)
        self.declare(declared)

    def declare(self, declared: tuple[RateLimit, ...]) -> None:
        """Take over changed limits; the lines stay, and who may go by now goes."""
        self.declared = declared
        self.limits.declare(declared)
        self._one_line = all(limit.key == "endpoint" for limit in declared)
        self._accounts.clear()
        self._pump()

    async def enter(self, caller: str, tokens: int, *, patient: bool) -> Admitted:
        """Admit one call.

        Raises:
            TooManyRequestsError: A limit is used up and the caller does not wait.
            InvalidRequestError: The call is larger than a whole limit.
        """
        self.limits.check(self._endpoint, caller, tokens)
        asked = _Asked(caller, tokens)
        line = self._lines.get(self._whose(caller))
        if line is None or not line.waiting:
            wait = self._ask(asked, patient=patient)
            if not patient and wait > 0:
                wait = await self._unlocked(asked, wait)
            if wait <= 0:
                return self._take(asked)
        if not patient and (exceeded := self._strictest(asked)):
            raise refusal(self._endpoint, exceeded)
        if line is None:
            line = Turnstile(self._clock, self._ask, self._take, self.unused)
            self._lines[self._whose(caller)] = line
        try:
            return await line.wait(asked)
        finally:
            self._forget_lines()

    def settle(self, admitted: Admitted, actual: int) -> None:
        """Correct the reserved tokens of an answered call."""
        admitted.settle(actual, self._clock.now())
        if self.limits.counts_tokens:
            self._pump()

    def unused(self, admitted: Admitted) -> None:
        """Give back the right of a call that was not sent."""
        admitted.undo()
        self._pump()

    def holdup(self) -> str | None:
        """Say in words what calls stand in line for, if any do. Only reads: any thread may ask."""
        exceeded = self._exceeded
        if exceeded is None or not any(line.waiting for line in list(self._lines.values())):
            return None
        return holdups.paced(self._endpoint, exceeded.limit, exceeded.what)

    def _whose(self, caller: str) -> str:
        """Name the line in which a caller stands."""
        return "" if self._one_line else caller

    def _pump(self) -> None:
        for line in list(self._lines.values()):
            line.pump()

    def _forget_lines(self) -> None:
        if not self._one_line:
            self._lines = {name: line for name, line in self._lines.items() if line.waiting}

    def _ask(self, asked: _Asked, *, patient: bool = True) -> float:
        """Return the seconds until a call may go: by our own count, and by what processes share."""
        wait = self.limits.wait(asked.caller, self._clock.now(), asked.tokens)
        shared = self._shared(asked.caller)
        if shared is not None:
            # Others learn of us by our asking: it goes on while we alone have used up the limit.
            wait = shared.account.wait(asked.tokens, partial(self._ahead, asked), patient=patient) or wait
        if wait > 0:
            self._exceeded = self._strictest(asked)
        return wait

    def _strictest(self, asked: _Asked) -> Exceeded | None:
        """Return what holds up a call for longest, if anything does."""
        own = self.limits.strictest(asked.caller, self._clock.now(), asked.tokens)
        shared = self._shared(asked.caller)
        if shared is None or shared.account.refusal is None:
            return own
        place, what, wait = shared.account.refusal
        theirs = Exceeded(shared.limits[place], what, wait)
        return own if own and own.wait >= wait else theirs

    async def _unlocked(self, asked: _Asked, wait: float) -> float:
        """Ask again while another process holds the file: nobody is refused for that."""
        while wait > 0 and (shared := self._shared(asked.caller)) and shared.account.locked:
            await self._clock.sleep(wait)
            wait = self._ask(asked, patient=False)
        return wait

    def _take(self, asked: _Asked) -> Admitted:
        own = self.limits.take(asked.caller, self._clock.now(), asked.tokens)
        shared = self._shared(asked.caller)
        if shared is None:
            return Admitted(own, None, None)
        return Admitted(own, shared.account, shared.account.spend(asked.tokens))

    def _ahead(self, asked: _Asked) -> tuple[list[int], int]:
        """Return the tokens of the first calls in line, and how many stand in it in all."""
        line = self._lines.get(self._whose(asked.caller))
        if line is None or not line.waiting:
            return [asked.tokens], 1
        return [call.tokens for call in line.first(_MOST_ASKED)] or [asked.tokens], line.waiting

    def _shared(self, caller: str) -> _Shared | None:
        """Return what this process has of the limits that count a caller; who changes groups gets another account."""
        if self._leases is None:
            return None
        name = (self._whose(caller), self.limits.counted_groups(caller))
        if name not in self._accounts:
            self._forget_accounts()
            limits = self.limits.applying(caller)
            account = self._leases.account(tuple(self._name(limit, caller) for limit in limits)) if limits else None
            self._accounts[name] = _Shared(account, limits) if account else None
        return self._accounts[name]

    def _name(self, limit: RateLimit, caller: str) -> SharedLimit:
        whose = counted_apart(limit, caller)
        name = json.dumps([self._id, limit.key, limit.principal, limit.renewal_period, whose])
        return SharedLimit(name, Rule(limit.calls, limit.tokens, int(PERIODS[limit.renewal_period] * 1000)))

    def _forget_accounts(self) -> None:
        """Forget those that hold nothing, seldom enough to cost nothing per call."""
        if len(self._accounts) >= _ACCOUNTS:
            now_ms = self._clock.epoch_ms()
            self._accounts = {n: one for n, one in self._accounts.items() if one and not one.account.idle(now_ms)}
