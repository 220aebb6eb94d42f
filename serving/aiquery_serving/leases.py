"""Shares declared rate limits between the processes of one workspace, without a server.

Theory of operation. Before a process admits calls, it takes a *lease* on each limit that counts them:
so many calls and tokens, to be spent within a small part of the period, written to the workspace's
`limits.db`. It spends them on its own, and soon after writes down what it has really spent and when.
A lease that nobody gives back, for its process was killed, counts as spent at its end. Leases are as
large as the line of waiting calls; a process that asks often takes some to spare.

Everything belongs to one event loop. The file's lock is never waited for: who does not get it asks
again milliseconds later. While the file cannot be used, each process keeps the limits alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from aiquery_serving.clock import Clock
from aiquery_serving.errors import WorkspaceError
from aiquery_serving.lease_file import LeaseFile
from aiquery_serving.shares import Award, Demand, Grant, Rule, award

#: The part of a period for which a lease may be spent: what a killed process costs the others at most.
LEASE = 1 / 200
#: Seconds after which a waiting line asks again: others may have given something back.
POLL_SECONDS = 0.1
#: Milliseconds for which others go by what a process said it waits for.
STALE_MS = 500
#: Seconds after which what was spent is written down, if no question has taken it along.
SETTLE_SECONDS = 0.1
#: Seconds between two questions about one line, however much news there is.
GAP_SECONDS = 0.01
#: Seconds for which a file that cannot be used is left alone, and for which a locked one is asked for.
LOST_SECONDS = 10.0
#: Seconds for which a process that ends tries to write down what it has spent.
CLOSE_SECONDS = 1.0
#: Most calls of a lease beyond those that wait.
MOST_SPARE = 256

_log = logging.getLogger("aiquery.limits")


class SharedLimit(NamedTuple):
    """A limit as it counts one caller: a name that all processes know it by, and its numbers."""

    name: str
    rule: Rule


class Lease:
    """Calls and tokens to be spent until `until_ms`, and how many were."""

    __slots__ = ("calls", "last_ms", "name", "owner", "tokens", "until_ms", "used_calls", "used_tokens")

    def __init__(self, owner: str, name: str, until_ms: int) -> None:
        self.owner, self.name, self.until_ms = owner, name, until_ms
        self.calls = self.tokens = self.used_calls = self.used_tokens = 0
        self.last_ms = 0

    def covers(self, tokens: int, now_ms: int) -> bool:
        """Say whether it may be spent on a call with that many tokens."""
        return now_ms < self.until_ms and self.used_calls < self.calls and self.used_tokens + tokens <= self.tokens

    def spend(self, calls: int, tokens: int, now_ms: int) -> None:
        """Spend some of it."""
        self.used_calls += calls
        self.used_tokens += tokens
        # An instant in milliseconds lies up to one before the real one.
        self.last_ms = max(self.last_ms, now_ms + 1)

    def over(self, now_ms: int) -> bool:
        """Say whether nothing more of it will be spent."""
        return now_ms >= self.until_ms or self.used_calls == self.calls

    def grant(self, now_ms: int) -> Grant:
        """Return what others have to count."""
        if self.over(now_ms):
            return Grant(self.owner, self.used_calls, self.used_tokens, self.last_ms)
        return Grant(self.owner, self.calls, self.tokens, self.until_ms)


class Account:
    """What one line of calls holds of the limits that count it, each of which other processes share."""

    def __init__(self, leases: Leases, owner: str, limits: tuple[SharedLimit, ...]) -> None:
        self.owner, self.limits = owner, limits
        periods_ms = [limit.rule.period_ms for limit in limits]
        self._life_ms, self._longest_ms = max(2, int(min(periods_ms) * LEASE)), max(periods_ms)
        #: Which limit refused the last question, by its place and by `calls` or `tokens`, and for how many seconds.
        self.refusal: tuple[int, str, float] | None = None
        #: Whether the last question found the file locked.
        self.locked = False
        self._leases = leases
        self._numbers = count()
        self._lease: Lease | None = None
        self._since_ms = 0
        self._spare = 0
        self._asked_at = self._again_at = -math.inf

    def wait(self, tokens: int, ahead: Callable[[], tuple[Sequence[int], int]], *, patient: bool) -> float:
        """Return the seconds until the first call in line may go, or should ask again; 0.0 for now.

        Args:
            tokens: What it will use.
            ahead: Returns the tokens of the first calls in line, in order, and how many stand in line in all.
            patient: Whether they wait if they must, so that others should leave them their share.
        """
        clock = self._leases.clock
        if self._lease is not None and self._lease.covers(tokens, clock.epoch_ms()):
            return 0.0
        now = clock.now()
        if now < self._again_at:
            return self._again_at - now
        return self._leases.ask(self, *ahead(), patient=patient)

    def spend(self, tokens: int) -> Lease | None:
        """Spend a call of what `wait` has found; None when the limits are not shared for now."""
        now_ms = self._leases.clock.epoch_ms()
        lease = self._lease
        if lease is None or lease.used_calls >= lease.calls:
            return None
        # It may have ended since `wait` looked at it. That is written down long before it matters.
        lease.spend(1, tokens, now_ms)
        self._leases.note(self, lease)
        return lease

    def settle(self, lease: Lease, reserved: int, actual: int) -> None:
        """Correct a spent call's tokens; what it used beyond its reservation counts from now."""
        now_ms = self._leases.clock.epoch_ms()
        if actual > reserved:
            lease = self._open(now_ms)
            lease.tokens += actual - reserved
            lease.spend(0, actual - reserved, now_ms)
            self._leases.note(self, lease)
        elif actual < reserved:
            self._give_back(lease, 0, reserved - actual, now_ms)

    def undo(self, lease: Lease, tokens: int) -> None:
        """Give back a call that was not sent."""
        self._give_back(lease, 1, tokens, self._leases.clock.epoch_ms())

    def demand(self, sizes: Sequence[int], waiting: int, now_ms: int) -> Demand:
        """Say what the line waits for."""
        self._since_ms = (self._since_ms or now_ms) if waiting else 0
        tokens = sum(sizes) * waiting // len(sizes)
        return Demand(self.owner, self._since_ms, waiting, tokens, sizes[0])

    def spare(self) -> int:
        """Return how many calls to ask for beyond those that wait: the more, the more often it asks."""
        often = self._leases.clock.now() - self._asked_at < POLL_SECONDS / 2
        self._spare = min(MOST_SPARE, 2 * self._spare + 1) if often else self._spare // 2
        return self._spare

    def granted(self, sizes: Sequence[int], given: Award, now_ms: int) -> Lease:
        """Return the lease that holds what was given."""
        lease = self._open(now_ms)
        lease.calls += given.calls + given.spare
        lease.tokens += sum(sizes[: given.calls]) + given.spare * sizes[0]
        self._since_ms = 0
        return lease

    def answered(self, wait: float, *, locked: bool = False) -> None:
        """Note when to ask again."""
        self._asked_at = self._leases.clock.now()
        self._again_at = self._asked_at + wait
        self.locked = locked

    def idle(self, now_ms: int) -> bool:
        """Say whether it can be forgotten."""
        return self._lease is None or now_ms >= self._lease.until_ms

    def _give_back(self, lease: Lease, calls: int, tokens: int, now_ms: int) -> None:
        if now_ms < lease.last_ms + self._longest_ms:
            lease.used_calls -= calls
            lease.used_tokens -= tokens
            self._again_at = min(self._again_at, self._asked_at + GAP_SECONDS)
            self._leases.note(self, lease)

    def _open(self, now_ms: int) -> Lease:
        """Return the lease that is being spent, or a new one when that has had half its time."""
        lease = self._lease
        if lease is None or now_ms >= lease.until_ms - self._life_ms // 2:
            lease = Lease(self.owner, f"{self.owner}/{next(self._numbers)}", now_ms + self._life_ms)
            self._lease = lease
        return lease


class Leases:
    """All that this process holds of shared limits.

    Args:
        folder: The workspace.
        clock: Tells the time, and waits before what was spent is written down.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock = clock
        self._file = LeaseFile(folder)
        self._process = secrets.token_hex(6)
        self._numbers = count()
        self._unsettled: dict[Lease, Account] = {}
        self._settling: asyncio.Task[None] | None = None
        self._busy_since = math.inf
        self._busy = 0
        self._lost_until = -math.inf
        self._warned = False

    def account(self, limits: tuple[SharedLimit, ...]) -> Account:
        """Return an account for a line of calls that these limits count."""
        return Account(self, f"{self._process}.{next(self._numbers)}", limits)

    def ask(self, account: Account, sizes: Sequence[int], waiting: int, *, patient: bool) -> float:
        """Take a lease for the first calls of a line; returns the seconds after which to ask again, or 0.0."""
        if self.clock.now() < self._lost_until:
            return 0.0
        now_ms = self.clock.epoch_ms()
        try:
            with self._file.transaction(now_ms):
                # By now the lock may have been waited for by the system, if not by us.
                now_ms = self.clock.epoch_ms()
                self._settle(now_ms)
                wait = self._asked(account, sizes, waiting, now_ms, patient=patient)
        except BlockingIOError as error:
            return self._locked(account, error)
        except WorkspaceError as error:
            return self._lose(str(error))
        self._found(now_ms)
        account.answered(wait)
        return wait

    async def close(self) -> None:
        """Give back what was not spent, and close the file. What cannot be written down soon counts as spent."""
        now, now_ms = self.clock.now(), self.clock.epoch_ms()
        for lease in self._unsettled:
            lease.until_ms = min(lease.until_ms, now_ms)
        self._settle_now()
        while self._unsettled and self.clock.now() < now + CLOSE_SECONDS:
            await self.clock.sleep(GAP_SECONDS)
            self._settle_now()
        self._file.close()

    def note(self, account: Account, lease: Lease) -> None:
        """Write down soon what has become of a lease."""
        self._unsettled[lease] = account
        if self._settling is None or self._settling.done():
            self._settling = asyncio.get_running_loop().create_task(self._settle_soon())

    def _asked(self, account: Account, sizes: Sequence[int], waiting: int, now_ms: int, *, patient: bool) -> float:
        """Decide within a transaction."""
        mine, spare = account.demand(sizes, waiting, now_ms), account.spare()
        awards = [self._award(limit, mine, sizes, spare, now_ms) for limit in account.limits]
        given = min(awards, key=lambda one: (one.calls, one.spare, -one.wait_ms))
        if not given.calls:
            seconds = given.wait_ms / 1000 or POLL_SECONDS
            account.refusal = (awards.index(given), given.what, seconds)
            self._demand(account, mine._replace(calls=mine.calls * patient), now_ms)
            return min(seconds, POLL_SECONDS)
        account.refusal = None
        lease = account.granted(sizes, given, now_ms)
        self._post(account, lease, now_ms)
        self.note(account, lease)
        left = account.demand(sizes, waiting - given.calls, now_ms)
        self._demand(account, left, now_ms)
        return 0.0

    def _award(self, limit: SharedLimit, mine: Demand, sizes: Sequence[int], spare: int, now_ms: int) -> Award:
        name, rule = limit
        grants = self._file.grants(name, now_ms - rule.period_ms)
        latest_ms = now_ms + rule.period_ms
        if any(grant.last_ms > latest_ms for grant in grants):
            self._file.put_back(name, now_ms)
        others = self._file.demands(name, mine.owner, now_ms - STALE_MS, now_ms + STALE_MS)
        return award(rule, grants, mine, sizes, others=others, now_ms=now_ms, spare=spare)

    def _demand(self, account: Account, demand: Demand, now_ms: int) -> None:
        for limit in account.limits:
            self._file.demand(limit.name, demand, now_ms)

    def _post(self, account: Account, lease: Lease, now_ms: int) -> None:
        grant = lease.grant(now_ms)
        for limit in account.limits:
            self._file.post(limit.name, lease.name, grant)

    def _settle(self, now_ms: int) -> None:
        """Write down within a transaction what was spent of all leases."""
        for lease, account in self._unsettled.items():
            self._post(account, lease, now_ms)

    def _found(self, now_ms: int) -> None:
        """Note that a transaction has gone well: what is over and written down needs no more care."""
        self._unsettled = {lease: account for lease, account in self._unsettled.items() if not lease.over(now_ms)}
        self._busy_since, self._busy, self._warned = math.inf, 0, False

    async def _settle_soon(self) -> None:
        while self._unsettled and self.clock.now() >= self._lost_until:
            await self.clock.sleep(SETTLE_SECONDS)
            self._settle_now()

    def _settle_now(self) -> None:
        if not self._unsettled:
            return
        now_ms = self.clock.epoch_ms()
        try:
            with self._file.transaction(now_ms):
                self._settle(now_ms)
        except BlockingIOError:
            return
        except WorkspaceError as error:
            self._lose(str(error))
        else:
            self._found(now_ms)

    def _locked(self, account: Account, error: BlockingIOError) -> float:
        """Ask again in some milliseconds, more of them each time; returns the seconds."""
        now = self.clock.now()
        self._busy_since = min(self._busy_since, now)
        if now - self._busy_since > LOST_SECONDS:
            return self._lose(f"{error} for {LOST_SECONDS:g} s. End that process.")
        self._busy = min(self._busy + 1, 5)
        wait: float = 2**self._busy / 1000
        account.answered(wait, locked=True)
        return wait

    def _lose(self, reason: str) -> float:
        """Go on without the file for a while."""
        self._lost_until = self.clock.now() + LOST_SECONDS
        self._busy_since, self._busy = math.inf, 0
        self._unsettled.clear()
        if not self._warned:
            self._warned = True
            _log.warning("Rate limits count this process alone for now. %s", reason)
        return 0.0
