"""The command line: `aiquery endpoints`, `models`, `secrets`, `query`, `sql`, `run`, `jobs`, `serve` and the rest."""

from __future__ import annotations

import sys

from aiquery.cli import access, connections, doctor, endpoints, jobs, models, queries, records, secrets, serve
from aiquery.cli.commands import Options, before_all, group

app = group("aiquery", "ai_query for DuckDB: table rows against serving endpoints in your own process.")
endpoints.add_to(app)
secrets.add_to(app)
connections.add_to(app)
models.add_to(app)
access.add_to(app)
queries.add_to(app)
jobs.add_to(app)
records.add_to(app)
serve.add_to(app)
doctor.add_to(app)


@before_all(app)
def _take_options(options: Options) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run the command that the process was started with."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal that has not all letters
    app(prog_name="aiquery")
