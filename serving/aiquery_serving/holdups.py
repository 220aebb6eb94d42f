"""Says in one short phrase what calls to an endpoint stand in line for."""

from __future__ import annotations

import math

from aiquery_serving.endpoint import RateLimit

_UNITS = {"minute": "min"}


def paced(endpoint: str, limit: RateLimit, what: str) -> str:
    """Say that a declared limit is used up; `what` of it, `calls` or `tokens`.

    Examples:
        >>> paced("gpt", RateLimit(tokens=40_000), "tokens")
        'paced by 40,000 tokens/min on `gpt`'
    """
    amount = limit.calls if what == "calls" else limit.tokens
    whom = "" if limit.key == "endpoint" else f" for {limit.principal or 'each user'}"
    return f"paced by {amount:,} {what}/{_UNITS[limit.renewal_period]} on `{endpoint}`{whom}"


def full(in_flight: int) -> str:
    """Say that no more calls may be in flight.

    Examples:
        >>> full(256)
        'at most 256 calls at once'
    """
    return f"at most {in_flight} call{'s' * (in_flight != 1)} at once"


def cooling(status: int, seconds: float) -> str:
    """Say that a provider's refusal holds up everything for `seconds`, and after them until one call has gone well.

    Examples:
        >>> cooling(429, 1.4)
        'cooling down after 429 for 2 s'
    """
    span = f"for {math.ceil(seconds)} s" if seconds > 0 else "until one call is answered"
    return f"cooling down after {status} {span}"


def silent(entity: str, seconds: float) -> str:
    """Say that what a provider allows, by its own headers, is used up.

    Examples:
        >>> silent("openai-1", 2.2)
        'the provider of `openai-1` allows no call for 3 s'
    """
    span = f"for {max(1, math.ceil(seconds))} s" if seconds < math.inf else "for now"
    return f"the provider of `{entity}` allows no call {span}"


def provisioned(entity: str, rate: int) -> str:
    """Say that the throughput is used up that a served entity has now, in tokens per second.

    Examples:
        >>> provisioned("llama", 1960)
        'paced by 1,960 tokens/s of `llama`'
    """
    return f"paced by {rate:,} tokens/s of `{entity}`"


def loading(entity: str) -> str:
    """Say that a model is being loaded, because it was asked again after it had been unloaded.

    Examples:
        >>> loading("llama")
        'waiting for `llama` to be loaded'
    """
    return f"waiting for `{entity}` to be loaded"
