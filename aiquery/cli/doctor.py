"""`aiquery doctor` and `aiquery version`: what is installed, what works, and what to do."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import typer

from aiquery.cli import output
from aiquery.cli.commands import Options, command
from aiquery.cli.exits import Exit

if TYPE_CHECKING:
    from aiquery.cli.examinations import Finding

_MARKS: Final = {"ok": "ok", "warn": "warn", "fail": "FAIL"}


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(app, "doctor")(doctor)
    command(app, "version")(version)


def doctor(options: Options) -> None:
    """Look at everything that aiquery needs, and say what to do about what is wrong.

    Asks a provider in this process something with ai_query; nothing is sent elsewhere but to the model registry.

    Examples:
      aiquery doctor
      aiquery doctor --output json | jq '.[] | select(.state != "ok")'
    """
    found = _examine(options)
    if options.output is output.Format.TABLE:
        for finding in found:
            typer.echo(_line(finding))
    else:
        plain = [asdict(finding) for finding in found]
        output.records(plain, plain, options.output)
    if any(finding.state == "fail" for finding in found):
        raise typer.Exit(Exit.FAILED)


def version(options: Options) -> None:
    """Print the versions of aiquery, Python and DuckDB.

    Examples:
      aiquery version
    """
    import duckdb

    import aiquery

    found = {"aiquery": aiquery.__version__, "python": platform.python_version(), "duckdb": duckdb.__version__}
    view = f"aiquery {found['aiquery']} (Python {found['python']}, DuckDB {found['duckdb']})"
    output.document(found, options.output, view=view)


def _line(finding: Finding) -> str:
    advice = f"\n      → {finding.advice}" if finding.advice else ""
    return f"{_MARKS[finding.state]:<5} {finding.subject}: {finding.found}{advice}"


def _examine(options: Options) -> list[Finding]:
    from aiquery.cli import examinations

    found = [finding for examine in examinations.BASIC for finding in examine()]
    path = options.path
    places = list(examinations.folder(path))
    found += places
    if path is not None and path.exists() and not any(place.state == "fail" for place in places):
        with options.opened() as workspace:
            found += examinations.contents(workspace)
    return found
