"""What commands take: texts given in place, in files or on standard input, spans of time, and secrets."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import typer

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_SPAN: Final = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def text_of(given: str) -> str:
    """Return a text that is given in place, as `@file`, or as `-` for standard input.

    Raises:
        OSError: The file cannot be read.
    """
    if given == "-":
        return sys.stdin.read()
    return text_in(given[1:]) if given.startswith("@") else given


def text_in(path: str) -> str:
    """Return what a file holds, or standard input where its name is `-`.

    Raises:
        OSError: The file cannot be read.
        typer.BadParameter: It is no text.
    """
    if path == "-":
        return sys.stdin.read()
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"'{path}' is not text in UTF-8.") from error


def json_object(given: str, option: str, example: str) -> dict[str, Any]:
    """Return a JSON object that is given in place, as `@file`, or as `-`.

    Raises:
        typer.BadParameter: It is something else.
    """
    try:
        value = json.loads(text_of(given))
    except json.JSONDecodeError as error:
        raise typer.BadParameter(
            f"this is not JSON ({error.msg}, line {error.lineno}). Write for example {example}", param_hint=option
        ) from error
    if not isinstance(value, dict):
        raise typer.BadParameter(f"this is no JSON object. Write for example {example}", param_hint=option)
    return value


def seconds(given: str) -> float:
    """Return a span of time in seconds.

    Raises:
        typer.BadParameter: It cannot be read.

    Examples:
        >>> seconds("90"), seconds("2h30m"), seconds("1.5d")
        (90.0, 9000.0, 129600.0)
    """
    text = given.strip().lower()
    if _SPAN.fullmatch(text):
        parts = (timedelta(**{_UNITS[unit]: float(number)}) for number, unit in _PART.findall(text))
        return sum(parts, timedelta()).total_seconds()
    try:
        span = float(text)
    except ValueError:
        span = -1.0
    if not 0 <= span < timedelta.max.total_seconds():
        raise typer.BadParameter(f"'{given}' is no span of time. Write for example 90s, 15m, 2h30m or 7d.")
    return span


def deadline(given: str) -> float | datetime:
    """Return a span of time in seconds, or a moment; one without a time zone is the machine's.

    Raises:
        typer.BadParameter: It is neither.
    """
    try:
        return datetime.fromisoformat(given).astimezone()
    except ValueError:
        pass
    try:
        return seconds(given)
    except typer.BadParameter:
        raise typer.BadParameter(
            f"'{given}' is neither a span of time (2h30m) nor a moment (2030-01-31T06:00)."
        ) from None


def secret_from_terminal(name: str) -> str:
    """Return a secret from standard input, or from a prompt that shows nothing of it.

    Raises:
        typer.BadParameter: It is empty.
    """
    if sys.stdin.isatty():
        value: str = typer.prompt(f"Value of {name}", hide_input=True, err=True)
    else:
        value = sys.stdin.read().rstrip("\r\n")
    if not value:
        raise typer.BadParameter(f"standard input holds no value for {name}.")
    return value
