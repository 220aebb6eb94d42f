"""`aiquery ledger` and `aiquery usage`: what was answered before, and what was used."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from aiquery.cli import inputs, output
from aiquery.cli.commands import Options, command, group


def add_to(parent: typer.Typer) -> None:
    """Add the commands to the command line."""
    app = group("ledger", "Look at, shorten and export the answers that were kept.", parent=parent)
    command(app, "stats")(stats)
    command(app, "prune", no_args_is_help=True)(prune)
    command(app, "export", no_args_is_help=True)(export)
    command(parent, "usage")(usage)


def stats(options: Options) -> None:
    """Show how many answers are kept, per endpoint and served entity.

    Examples:
      aiquery ledger stats
    """
    with options.opened() as workspace:
        found = workspace.ledger.stats()
    view = [
        {
            "endpoint": entry["endpoint"],
            "served_entity": entry["served_entity"],
            "answers": entry["answers"],
            "failures": entry["failures"],
            "tokens_in": entry["prompt_tokens"],
            "tokens_out": entry["completion_tokens"],
            "bytes": entry["bytes"],
            "oldest": output.moment(entry["oldest_ms"]),
            "newest": output.moment(entry["newest_ms"]),
        }
        for entry in found
    ]
    output.records(found, view, options.output, none="The ledger is empty: jobs and `sql --cache reuse` fill it.")


def prune(
    options: Options,
    *,
    older_than: Annotated[
        float | None, typer.Option(parser=inputs.seconds, metavar="SPAN", help="Only answers of this age: 30d, 12h.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only answers of this endpoint.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All answers.")] = False,
) -> None:
    """Delete answers from the ledger, and give their disk space back.

    What is deleted is paid for again when it is asked again.

    Examples:
      aiquery ledger prune --older-than 90d
      aiquery ledger prune --endpoint gpt --older-than 7d
      aiquery ledger prune --all
    """
    if everything == (older_than is not None or endpoint is not None):
        raise typer.BadParameter("say which answers: --older-than, --endpoint or both; or --all.")
    before = None if older_than is None else int((time.time() - older_than) * 1000)
    with options.opened() as workspace:
        pruned = workspace.ledger.prune(before_ms=before, endpoint=endpoint)
    output.document({"pruned": pruned}, options.output, view=f"Deleted {pruned:,} answers.")


def export(options: Options, file: Annotated[Path, typer.Argument(help="A .parquet or .jsonl file.")]) -> None:
    """Write the ledger to a file, in clear.

    Examples:
      aiquery ledger export answers.parquet
    """
    with options.opened() as workspace:
        exported = workspace.ledger.export(file)
    output.document(
        {"exported": exported, "file": str(file)}, options.output, view=f"Wrote {exported:,} answers to {file}."
    )


def usage(options: Options) -> None:
    """Show calls, rows, errors, tokens and latency, per endpoint and served entity.

    Examples:
      aiquery usage
      aiquery usage --output csv > usage.csv
    """
    with options.opened() as workspace:
        found = workspace.usage()
    view = [
        {
            "endpoint": entry["endpoint"],
            "served_entity": entry["served_entity"],
            "calls": entry["calls"],
            "rows": entry["rows"],
            "errors": entry["errors"],
            "tokens_in": entry["prompt_tokens"],
            "tokens_out": entry["completion_tokens"],
            "latency_ms": round(entry["mean_latency_ms"], 1),
        }
        for entry in found
    ]
    output.records(found, view, options.output, none="Nothing has been asked yet.")
