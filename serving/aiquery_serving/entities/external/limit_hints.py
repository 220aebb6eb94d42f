"""What the headers of an answer teach about the provider's limits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TypeAlias

from aiquery_serving.messages import Allowance, LimitHint

Headers: TypeAlias = Mapping[str, str]

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_SECONDS_OF_UNIT = (86_400.0, 3600.0, 60.0, 1.0, 0.001)


def openai_hint(headers: Headers, _now: float) -> LimitHint | None:
    """Read `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; None without them."""
    requests = _allowance(headers, "x-ratelimit-{}-requests", seconds)
    tokens = _allowance(headers, "x-ratelimit-{}-tokens", seconds)
    return LimitHint(requests=requests, tokens=tokens) if requests or tokens else None


def anthropic_hint(headers: Headers, now: float) -> LimitHint | None:
    """Read `anthropic-ratelimit-{requests,tokens,...}-{limit,remaining,reset}`; None without them.

    Without the figures for all tokens, the scarcer of input and output tokens counts.

    Args:
        headers: The answer's.
        now: Seconds since 1970: resets are moments, not spans.
    """

    def until(text: str) -> float | None:
        return seconds_until(text, now)

    def read(counted: str) -> Allowance | None:
        return _allowance(headers, f"anthropic-ratelimit-{counted}-{{}}", until)

    requests = read("requests")
    tokens = read("tokens") or _scarcer(read("input-tokens"), read("output-tokens"))
    return LimitHint(requests=requests, tokens=tokens) if requests or tokens else None


def seconds(text: str) -> float | None:
    """Read a duration, plain seconds or with units; None when it is neither.

    Examples:
        >>> [seconds(text) for text in ("6m0s", "1s", "20ms", "1h2m3.5s", "7.66", "soon")]
        [360.0, 1.0, 0.02, 3723.5, 7.66, None]
    """
    try:
        return max(float(text), 0.0)
    except ValueError:
        match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    parts = zip(match.groups(), _SECONDS_OF_UNIT, strict=True)
    return sum(float(number) * unit for number, unit in parts if number)


def seconds_until(text: str, now: float) -> float | None:
    """Return the seconds from `now` to an RFC 3339 moment, at least 0; None when it is none.

    Examples:
        >>> seconds_until("1970-01-01T00:01:40Z", 40.0)
        60.0
    """
    try:
        return max(datetime.fromisoformat(text).timestamp() - now, 0.0)
    except ValueError:
        return None


def _allowance(headers: Headers, name: str, reset_after: Callable[[str], float | None]) -> Allowance | None:
    remaining = _count(headers.get(name.format("remaining")))
    if remaining is None:
        return None
    reset = headers.get(name.format("reset"))
    return Allowance(
        limit=_count(headers.get(name.format("limit"))),
        remaining=remaining,
        reset_after=reset_after(reset) if reset else None,
    )


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _scarcer(one: Allowance | None, other: Allowance | None) -> Allowance | None:
    found = [allowance for allowance in (one, other) if allowance is not None]
    return min(found, key=_share_left, default=None)


def _share_left(allowance: Allowance) -> float:
    return (allowance.remaining or 0) / (allowance.limit or 1)
