"""Makes calls wait for the provisioned throughput of a served entity: the asyncio side of `throughput`.

Everything here belongs to one event loop and needs no lock, but for what says that any thread may ask.
"""

from __future__ import annotations

from typing import NamedTuple

from aiquery_serving import holdups
from aiquery_serving.clock import Clock
from aiquery_serving.errors import ThroughputError
from aiquery_serving.pacing import Turnstile
from aiquery_serving.throughput import Provision, Scaling, Sharing, Taken
from aiquery_serving.throughput.scaling import DOWN_SECONDS
from aiquery_serving.throughput.sharing import BURST_SECONDS

#: Seconds that interactive callers wait at most; who would wait longer is told so at once.
PATIENCE = 2.0
#: Seconds after which who waits asks again: there may be more to go round by then.
_AGAIN = 1.0


class _Asked(NamedTuple):
    """A call as a gate sees it: what it is expected to use, and whether it can wait."""

    tokens: int
    batch: bool


class ThroughputGate:
    """The lines before one served entity: interactive callers in one, batch work in the other.

    Args:
        name: The served entity.
        provision: What is reserved for it.
        clock: Tells the time and waits.

    Attributes:
        provision: As above. Any thread may change it; it counts from the next call on.
    """

    def __init__(self, name: str, provision: Provision, clock: Clock) -> None:
        self.name, self.provision, self._clock = name, provision, clock
        self._scaling = Scaling(provision)
        self._sharing = Sharing(clock.now(), self._scaling.rate, burst=self._burst)
        self._waiting = self._under_way = 0
        self._last = clock.now()
        self._interactive = Turnstile(clock, self._ask, self._take, self.unused)
        self._patient = Turnstile(clock, self._ask, self._take, self.unused)

    @property
    def now_provisioned(self) -> int:
        """The tokens per second that it is scaled to now. From any thread."""
        idle = not self._under_way and not self._waiting and self._clock.now() - self._last > DOWN_SECONDS
        return self.provision.minimum if idle else self._scaling.rate

    async def enter(self, tokens: int, *, patient: bool, again: bool = False, loaded: bool = True) -> Taken:
        """Wait for the throughput that a call needs.

        Args:
            tokens: What it is expected to use.
            patient: Whether it is batch work, which waits however long.
            again: Whether the call was here before; then it goes first.
            loaded: Whether the model is there. Who finds it scaled to zero, and not there, goes to have it loaded; a
                second's worth of calls may, and the others wait for the first answer.

        Raises:
            ThroughputError: The caller is not patient, and would have to wait for long.
        """
        asked = _Asked(max(1, tokens), patient)
        line = self._line(batch=patient)
        self._wake(asked, loaded=loaded)
        if line.free(asked):
            return self._take(asked)
        if not patient:
            self._check_wait(asked)
        self._waiting += asked.tokens
        try:
            return await line.wait(asked, first=again)
        finally:
            self._waiting -= asked.tokens
            self._pump()

    def began(self) -> None:
        """Note that the model answers: it is loaded."""
        if not self._sharing.flowing:
            self._sharing.flow(self._clock.now(), flowing=True)
            self._pump()

    def settle(self, taken: Taken, actual: int) -> None:
        """Correct what a call was expected to use; 0 for one that was not answered."""
        now = self._clock.now()
        if not self._sharing.flowing:
            actual = 0  # the model was not there: others may go in its place
        self._scaling.used(now, actual - taken.tokens)
        self._sharing.settle(taken, now, actual)
        self._scale(self._waiting)
        self._under_way -= 1
        self._pump()

    def unused(self, taken: Taken) -> None:
        """Give back what a call took that was not answered."""
        self.settle(taken, 0)

    def holdup(self) -> str | None:
        """Say in words what calls stand in line for, if any do. Only reads: any thread may ask."""
        if not (self._interactive.waiting or self._patient.waiting):
            return None
        if not self._sharing.flowing:
            return holdups.loading(self.name)
        return holdups.provisioned(self.name, self._scaling.rate)

    @property
    def _burst(self) -> float:
        return self.provision.maximum * BURST_SECONDS if self.provision.burst else 0.0

    def _line(self, *, batch: bool) -> Turnstile[_Asked, Taken]:
        return self._patient if batch else self._interactive

    def _pump(self) -> None:
        self._interactive.pump()
        self._patient.pump()

    def _wake(self, asked: _Asked, *, loaded: bool) -> None:
        """Find out what idle time has meant, and what the call means."""
        self._scale(self._waiting)
        asleep = self._sharing.rate == 0
        self._scale(self._waiting + asked.tokens)
        if asleep:
            self._sharing.flow(self._clock.now(), flowing=loaded)

    def _scale(self, waiting: int) -> None:
        now = self._last = self._clock.now()
        rate = self._scaling.look(now, self.provision, waiting=waiting, busy=self._under_way > 0)
        if rate != self._sharing.rate or self._burst != self._sharing.burst:
            self._sharing.scale(now, rate, burst=self._burst)

    def _ask(self, asked: _Asked) -> float:
        self._scale(max(self._waiting, asked.tokens))
        rivals = self._line(batch=not asked.batch).first(1)
        rival = rivals[0].tokens if rivals else None
        wait = self._sharing.wait(self._clock.now(), asked.tokens, batch=asked.batch, rival=rival)
        return min(wait, _AGAIN) if self._sharing.flowing else wait

    def _take(self, asked: _Asked) -> Taken:
        now = self._clock.now()
        self._under_way += 1
        self._scaling.used(now, asked.tokens)
        return self._sharing.take(now, asked.tokens, batch=asked.batch)

    def _check_wait(self, asked: _Asked) -> None:
        """Refuse a call that would wait for too long. One that waits for its model to be loaded is not refused."""
        if not self._sharing.flowing:
            return
        ahead = sum(call.tokens for call in self._interactive.first(self._interactive.waiting))
        # A call larger than what may be saved up goes when others go that are as large as that.
        own = min(asked.tokens, self._scaling.rate)
        wait = self._sharing.delay(ahead + own, rival=self._patient.waiting > 0)
        if wait > PATIENCE:
            self._scaling.used(self._clock.now(), asked.tokens)  # it was wanted
            raise ThroughputError(
                f"Served entity '{self.name}' has {self._scaling.rate:,} tokens per second now, of "
                f"{self.provision.maximum:,} at most, and they are used up for {wait:.1f} seconds: send the request "
                "again then, or provision more throughput.",
                retry_after=wait,
            )
