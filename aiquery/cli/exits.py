"""How a command ends: its exit code, and the sentence that says what went wrong."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """What a command's exit code means."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    STOPPED = 4
    ROWS_FAILED = 5
    INTERRUPTED = 130
    PIPE_CLOSED = 141


class CommandError(Exception):
    """A command cannot do what it was asked to; `code` is how it ends."""

    def __init__(self, sentence: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(sentence)
        self.code = code


#: What DuckDB puts before the words of an error that was raised in Python.
_RAISED_IN_PYTHON: Final = re.compile(r"\A[\w ]+ Error: Python exception occurred while executing the UDF: (\w+): ")


def exit_code(error: BaseException) -> Exit:
    """Return the exit code of a command that an error ended."""
    from aiquery_serving.errors import EndpointNotFoundError, JobStoppedError

    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, JobStoppedError):
        return Exit.STOPPED
    if isinstance(error, EndpointNotFoundError | FileNotFoundError):
        return Exit.NOT_FOUND
    return Exit.FAILED


def sentence(error: BaseException) -> str:
    """Return what an error says to somebody who knows nothing of Python.

    Examples:
        >>> sentence(FileNotFoundError(2, "No such file or directory", "job.sql"))
        "'job.sql': No such file or directory."
    """
    import duckdb

    from aiquery_serving.errors import AiQueryError

    if isinstance(error, AiQueryError | CommandError):
        return str(error)
    if isinstance(error, duckdb.Error):
        return _RAISED_IN_PYTHON.sub("", str(error)).strip()
    if isinstance(error, OSError) and error.strerror:
        return f"'{error.filename}': {error.strerror}." if error.filename else f"{error.strerror}."
    return f"Something unexpected happened ({type(error).__name__}: {error}). Add --verbose to see where."
