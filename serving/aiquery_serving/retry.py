"""Decides what a failure means for its own call (retry, fallback) and for all others (cool-down)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aiquery_serving.errors import (
    AiQueryError,
    ProviderAccessError,
    ProviderQuotaError,
    ProviderRateLimitError,
    ProviderResponseError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    ThroughputError,
)

_FALLBACK_WORTHY = (
    ProviderRateLimitError,
    ProviderQuotaError,
    ProviderUnavailableError,
    ProviderTimeoutError,
    ProviderResponseError,
    ThroughputError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long retries wait, in seconds, and how many there are (contract A.10)."""

    initial: float = 0.1
    cap: float = 10.0
    max_retries: int = 10


#: For work that nobody is looking at.
PATIENT = RetryPolicy()
#: For a caller who holds a connection open: its client retries, too.
INTERACTIVE = RetryPolicy(max_retries=2)


def decide(error: AiQueryError, attempt: int, draw: float, policy: RetryPolicy = PATIENT) -> float | None:
    """Return the seconds to wait before the next try, or None to give up.

    The wait is a random part of a bound that doubles (full jitter): callers that failed together
    must not come back together. A 429 says nothing about the request, so it never counts as a
    try, and it waits for the served entity's own cool-down instead of here.

    Args:
        error: What the last try raised.
        attempt: How many retries this call has had.
        draw: A number from 0 to 1.
        policy: The bounds.

    Examples:
        >>> decide(ProviderUnavailableError("down"), attempt=3, draw=0.5)
        0.4
    """
    if isinstance(error, ProviderRateLimitError):
        return 0.0
    if not error.retryable or attempt >= policy.max_retries:
        return None
    # 2.0**1024 overflows; the bound is at its cap long before.
    bound = min(policy.cap, policy.initial * 2.0 ** min(attempt, 64))
    return draw * bound


def fallback_worthy(error: AiQueryError) -> bool:
    """Say whether another served entity may do better: after 429 and 5xx (contract C.6).

    Examples:
        >>> fallback_worthy(ProviderUnavailableError("down"))
        True
    """
    return isinstance(error, _FALLBACK_WORTHY)


def terminal(error: AiQueryError) -> bool:
    """Say whether every later call must fail the same way: a refused key, an empty account."""
    return isinstance(error, (ProviderAccessError, ProviderQuotaError))


class Cooldown:
    """The pause that a provider's 429 or 503 imposes on everything sent to one served entity.

    Nobody sends until it is over. Then one call goes as a probe while the others wait: its answer
    opens the way for all, another refusal closes it again.

    Examples:
        >>> cooldown = Cooldown()
        >>> cooldown.refused(0.0, retry_after=5.0, probe=False)
        >>> cooldown.wait(0.0), cooldown.wait(5.0), cooldown.enter(), cooldown.wait(5.0)
        (5.0, 0.0, True, inf)
    """

    __slots__ = ("_growth", "_probing", "_until", "closed")

    #: Seconds of the first pause when the provider names none; each further refusal doubles it.
    FIRST = 1.0
    LONGEST = 120.0

    def __init__(self) -> None:
        self.closed = False
        self._until = 0.0
        self._probing = False
        self._growth = self.FIRST

    def wait(self, now: float) -> float:
        """Return the seconds until a call may go: 0.0 for now, infinity while a probe is out."""
        if not self.closed:
            return 0.0
        if now < self._until:
            return self._until - now
        return math.inf if self._probing else 0.0

    @property
    def closed_until(self) -> float:
        """When the latest pause ends."""
        return self._until

    def enter(self) -> bool:
        """Note that a call goes; returns whether it is the probe."""
        self._probing = self.closed
        return self.closed

    def answered(self, *, probe: bool) -> None:
        """Open after the probe's answer. Answers to calls from before the pause prove nothing."""
        if probe:
            self.closed = self._probing = False
            self._growth = self.FIRST

    def abandoned(self, *, probe: bool) -> None:
        """Let another call probe: this one told nothing."""
        if probe:
            self._probing = False

    def refused(self, now: float, retry_after: float | None, *, probe: bool) -> None:
        """Close until the provider's instant, or for a growing pause when it named none."""
        if retry_after is not None and retry_after > 0:
            self._close(now + retry_after)
        elif probe or not self.closed:
            self._close(now + self._growth)
            self._growth = min(self.LONGEST, 2 * self._growth)
        self.abandoned(probe=probe)

    def _close(self, until: float) -> None:
        self._until = max(self._until, until) if self.closed else until
        self.closed = True


class Window:
    """How many calls may be in flight: halved by a refusal, regrown by answers, never above `most`.

    The safety net below limits that nobody declares: it finds what a provider bears.

    Examples:
        >>> window = Window(most=8)
        >>> window.refused()
        >>> window.size
        4.0
    """

    __slots__ = ("most", "size")

    #: Growth per answer: a halved window is whole again after five answers per place.
    GROWTH = 0.1

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = float(most)

    def refused(self) -> None:
        """Shrink, once for each cool-down rather than once for each refused call."""
        self.size = max(1.0, self.size / 2)

    def answered(self) -> None:
        """Grow back a little."""
        if self.size < self.most:
            self.size = min(float(self.most), self.size + self.GROWTH)
