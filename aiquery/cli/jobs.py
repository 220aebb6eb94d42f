"""`aiquery explain`, `aiquery run` and `aiquery jobs`: what a query would cost, doing it, and how far it is."""

from __future__ import annotations

import time
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aiquery.cli import inputs, output
from aiquery.cli.commands import Options, command, default, group
from aiquery.cli.exits import CommandError, Exit
from aiquery.cli.queries import Database, Dialect, DialectOption, interruptible, session_of

if TYPE_CHECKING:
    from aiquery.job_status import JobStatus

_FILE: Final = typer.Argument(metavar="FILE", help="A file with one query, or - for standard input.")
#: How a job that ended so ends its command.
_CODES: Final = {"stopped": Exit.STOPPED, "cancelled": Exit.INTERRUPTED, "failed": Exit.FAILED}


class OnError(StrEnum):
    """What a failed row does to its job."""

    FAIL = "fail"
    RECORD = "record"


def add_to(parent: typer.Typer) -> None:
    """Add the commands to the command line."""
    command(parent, "explain", no_args_is_help=True)(explain)
    command(parent, "run", no_args_is_help=True)(run)
    app = group("jobs", "List the jobs of the workspace, or show one.", parent=parent)
    default(app)(list_jobs)
    command(app, "list")(list_jobs)
    command(app, "show", no_args_is_help=True)(show)


def explain(
    options: Options,
    file: Annotated[str, _FILE],
    *,
    db: Database = ":memory:",
    dialect: DialectOption = Dialect.DUCKDB,
) -> None:
    """Show what a query would ask, what it would cost, and how long it would take. Nothing is sent.

    Answers that the ledger has already, as a job would find them there, are not counted again.

    Examples:
      aiquery explain job.sql
      echo "SELECT ai_query('gpt', text) FROM 'reviews.parquet'" | aiquery explain -
    """
    text = inputs.text_in(file)
    with options.opened() as workspace, session_of(options, workspace, db, cache="reuse") as session:
        explanation = interruptible(session, lambda: session.explain_ai(text, dialect=dialect.value))
    calls = explanation.to_dict()["calls"]
    if options.output is output.Format.CSV:
        output.records(calls, calls, options.output)
    else:
        output.document(explanation.to_dict(), options.output, view=str(explanation))


def run(
    options: Options,
    file: Annotated[str, _FILE],
    *,
    target: Annotated[
        str, typer.Option("-o", "--to", metavar="FILE|TABLE", help="A .parquet, .csv or .jsonl file, or a table.")
    ],
    key: Annotated[list[str] | None, typer.Option(help="A column that tells rows apart; may be repeated.")] = None,
    on_error: Annotated[
        OnError, typer.Option(help="`record` writes failed rows as NULL, with the reason beside it.")
    ] = OnError.FAIL,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again what failed in earlier runs.")
    ] = False,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Stop before this many dollars.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=0, help="Stop before this many tokens, in and out.")] = None,
    max_calls: Annotated[int | None, typer.Option(min=0, help="Stop before this many calls.")] = None,
    deadline: Annotated[
        Any, typer.Option(parser=inputs.deadline, metavar="SPAN|TIME", help="Stop after 2h30m, or at a time.")
    ] = None,
    max_age: Annotated[
        Any, typer.Option(parser=inputs.seconds, metavar="SPAN", help="Ask again what was answered longer ago.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call the job. Default: made up of output and query.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that another job wrote.")] = False,
    db: Database = ":memory:",
    dialect: DialectOption = Dialect.DUCKDB,
) -> None:
    """Run a query as a job, and write its rows to a file or a table.

    What was answered is kept: a job that was stopped, cancelled or killed goes on when it is run again.
    Exit codes: 0 finished, 4 stopped by its budget or deadline, 5 finished with failed rows.

    Examples:
      aiquery run job.sql -o out.parquet --max-cost 5
      aiquery run job.sql -o out.csv --on-error record --key id
      aiquery run job.sql -o labels --db my.db --deadline 6h
    """
    text = inputs.text_in(file)
    try:
        # Not on this thread: DuckDB does not look for Ctrl-C while it computes, and `wait` does.
        with options.opened() as workspace, session_of(options, workspace, db) as session:
            job = session.job(
                text, output=target, key=key, name=name, on_error=on_error.value,
                retry_failed=retry_failed or None, max_cost=max_cost, max_tokens=max_tokens, max_calls=max_calls,
                deadline=deadline, max_age=max_age, overwrite=overwrite, dialect=dialect.value, wait=False,
                progress=options.progress,
            )  # fmt: skip
            status = job.wait()
    except KeyboardInterrupt:
        options.note("What was answered is in the ledger: run the job again, and it goes on from there.")
        raise
    if options.output is not output.Format.TABLE or not options.quiet:
        output.document(_told(status), options.output, view=_summary(status))
    raise typer.Exit(_CODES.get(status.state, Exit.ROWS_FAILED if status.failed else Exit.OK))


def list_jobs(options: Options) -> None:
    """List the jobs of the workspace, the latest first, whichever process runs them.

    Examples:
      aiquery jobs
      aiquery jobs list --output json | jq '.[] | select(.state == "running")'
    """
    jobs = _jobs(options)
    view = [
        {
            "name": job.name,
            "state": job.state + f", {job.answered} of {job.known}" * (job.state in ("running", "paused")),
            "rows": job.rows,
            "failed": job.failed,
            "cost": _cost(job),
            "started": output.moment(int(job.started.timestamp() * 1000)),
            "took": _span(job.seconds),
        }
        for job in jobs
    ]
    output.records([_told(job) for job in jobs], view, options.output, none="No job has been run: aiquery run --help")


def show(options: Options, name: Annotated[str, typer.Argument(help="The job.")]) -> None:
    """Show one job: how far it is, what it cost, and why rows failed.

    Examples:
      aiquery jobs show out-1a2b3c4d
    """
    found = next((job for job in _jobs(options) if job.name == name), None)
    if found is None:
        raise CommandError(f"There is no job '{name}' in this workspace. See `aiquery jobs list`.", Exit.NOT_FOUND)
    output.document(_told(found), options.output, view=_described(found))


def _jobs(options: Options) -> list[JobStatus]:
    from aiquery.job_status import status_of

    with options.opened() as workspace:
        now_ms = int(time.time() * 1000)
        return [status_of(record, now_ms=now_ms) for record in workspace.job_log.all()]


def _told(job: JobStatus) -> dict[str, Any]:
    return asdict(job) | {"started": job.started.isoformat(), "result": job.result}


def _summary(job: JobStatus) -> str:
    lines = [job.result]
    lines += [f"  {failure.requests:,} × {failure.kind}: {failure.message}" for failure in job.failures]
    spent = f"{job.calls:,} calls, {job.from_ledger:,} answers from the ledger, {job.tokens:,} tokens, {_cost(job)}"
    return "\n".join([*lines, f"Job '{job.name}': {spent}, {_span(job.seconds)}."])


def _described(job: JobStatus) -> str:
    facts = {
        "name": job.name,
        "state": job.state,
        "output": job.output,
        "started": output.moment(int(job.started.timestamp() * 1000)),
        "took": _span(job.seconds),
        "rows": job.rows,
        "requests": f"{job.answered} answered of {job.known} known, {job.from_ledger} from the ledger",
        "failed": job.failed,
        "in flight": job.in_flight,
        "calls": job.calls,
        "tokens": f"{job.prompt_tokens} in, {job.completion_tokens} out",
        "cost": _cost(job),
        "reason": job.reason,
    }
    reasons = "\n".join(f"{failure.requests:,} × {failure.kind}: {failure.message}" for failure in job.failures)
    found = output.table(["field", "value"], [(name, str(value)) for name, value in facts.items() if value != ""])
    return found + (f"\nWhy rows failed\n{reasons}" if reasons else "")


def _cost(job: JobStatus) -> str:
    from aiquery.wording import dollars

    return dollars(job.cost) if job.cost_known else "price unknown" if not job.cost else f"≥ {dollars(job.cost)}"


def _span(seconds: float) -> str:
    from aiquery.wording import span

    return span(seconds)
