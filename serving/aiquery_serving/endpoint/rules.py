"""The words that rules are written in, and the rules of names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from aiquery_serving.errors import ConfigurationError

MAX_NAME_LENGTH = 63

_NAME = re.compile(r"[A-Za-z0-9_-]+")
#: Endpoint names that would hide a path of the REST API (contract B.1).
_RESERVED_NAMES = ("pt", "get-model-optimization-info")


def require(fact: object, otherwise: str) -> None:
    """Refuse a declaration for which a fact does not hold.

    Raises:
        ConfigurationError: With the sentence `otherwise`.
    """
    if not fact:
        raise ConfigurationError(otherwise)


def require_one_of(what: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a word that is not one of a few.

    Raises:
        ConfigurationError: The message lists them.
    """
    known = tuple(choices)
    require(value in known, f"{what} must be one of {', '.join(known)}; got {value!r}")


def check_unique(what: str, names: Iterable[str]) -> None:
    """Refuse names of which one is there twice.

    Raises:
        ConfigurationError: The message names it.
    """
    for name, count in Counter(names).items():
        require(count == 1, f"{count} {what} {name!r}: there may be one of each name")


def check_name(what: str, name: str) -> None:
    """Refuse a name that would not fit a path.

    Raises:
        ConfigurationError: It has other characters than letters, digits, hyphens and underscores, or none.
    """
    require(
        _NAME.fullmatch(name),
        f"{what} name {name[:MAX_NAME_LENGTH]!r} is not legal: use letters, digits, '-' and '_'",
    )


def check_endpoint_name(name: str) -> None:
    """Refuse a name that no endpoint may have.

    Raises:
        ConfigurationError: The name is empty, too long, has other characters than letters,
            digits, hyphens and underscores, or would hide a path of the REST API.
    """
    check_name("endpoint", name)
    require(
        len(name) <= MAX_NAME_LENGTH,
        f"endpoint name {name[:MAX_NAME_LENGTH]!r}... has {len(name)} characters: use at most {MAX_NAME_LENGTH}",
    )
    require(
        name not in _RESERVED_NAMES,
        f"endpoint name {name!r} is taken by a path of the REST API: choose another",
    )
