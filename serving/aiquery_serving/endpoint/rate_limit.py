"""Rate limits as they are declared (contract C.6)."""

from __future__ import annotations

from dataclasses import dataclass

from aiquery_serving.endpoint.rules import require, require_one_of

RATE_LIMIT_KEYS = ("endpoint", "user", "user_group", "service_principal")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """`calls` and/or `tokens` per renewal period, counted for a `key`.

    Raises:
        ConfigurationError: Nothing is limited, a number is below 1, or key, principal and
            renewal period do not fit together (contract C.6).
    """

    calls: int | None = None
    tokens: int | None = None
    key: str = "endpoint"
    principal: str | None = None
    renewal_period: str = "minute"

    def __post_init__(self) -> None:
        require_one_of("rate limit: key", self.key, RATE_LIMIT_KEYS)
        require_one_of("rate limit: renewal_period", self.renewal_period, ("minute",))
        amounts = {"calls": self.calls, "tokens": self.tokens}
        require(
            any(amount is not None for amount in amounts.values()),
            "rate limit: nothing is limited; give calls, tokens or both",
        )
        for name, amount in amounts.items():
            require(amount is None or amount > 0, f"rate limit: {name} must be at least 1, got {amount}")
        _check_principal(self)


def _check_principal(limit: RateLimit) -> None:
    if limit.key in ("user_group", "service_principal"):
        require(
            limit.principal,
            f"rate limit: key {limit.key} needs a principal, the name of whom it counts",
        )
    if limit.key == "endpoint":
        require(
            not limit.principal,
            f"rate limit: key endpoint counts everybody; for {limit.principal!r} alone use key "
            "user, user_group or service_principal",
        )
