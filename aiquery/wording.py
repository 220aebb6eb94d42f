"""Says amounts, money and spans of time in few characters."""

from __future__ import annotations

import math

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
#: Below so many, a large number is told to its last digit.
_EXACT = 100_000
#: Below so many, a number is told more exactly.
_FEW = 10


def amount(number: float) -> str:
    """Say a number; a small one with a digit behind the point, unless it is whole.

    Examples:
        >>> amount(12_345), amount(2.25), amount(0.04)
        ('12,345', '2.2', '0.04')
    """
    if isinstance(number, int) or number >= _FEW or number == int(number):
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 1 else f"{number:.2g}"


def short(number: float) -> str:
    """Say a large number in three digits or a little more.

    Examples:
        >>> short(99_999), short(123_456), short(1_280_000), short(20_480_000)
        ('99,999', '123k', '1.28M', '20.5M')
    """
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= max(size, _EXACT):
            return f"{number / size:.3g}{letter}"
    return amount(round(number))


def dollars(cost: float) -> str:
    """Say an amount of money: in cents, or in two digits when it is less than a dollar.

    Examples:
        >>> dollars(1234.5), dollars(0.0375), dollars(0.00002), dollars(0.5), dollars(0)
        ('$1,234.50', '$0.037', '$0.000020', '$0.50', '$0')
    """
    if cost <= 0:
        return "$0"
    digits = max(2, 1 - math.floor(math.log10(cost)))
    return f"${cost:,.{digits}f}"


def span(seconds: float) -> str:
    """Say a span of time.

    Examples:
        >>> span(0.4), span(59.6), span(125), span(3 * 3600 + 300), span(90_000)
        ('1 s', '1 min', '2 min 5 s', '3 h 5 min', '1 d 1 h')
    """
    whole = max(1, round(seconds))
    for size, name, smaller, part in ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min"), (_MINUTE, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {part}" if rest and whole < _FEW * size else "")
    return f"{whole} s"
