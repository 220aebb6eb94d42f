"""`aiquery serve`: the workspace's endpoints behind HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aiquery.cli.commands import Options, command
from aiquery.cli.exits import CommandError
from aiquery.server.logs import LogFormat

if TYPE_CHECKING:
    import socket

    from aiquery.client import Workspace
    from aiquery.server import Settings

_LIMITS: Final = "Limits"


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    command(app, "serve")(serve)


def serve(
    options: Options,
    *,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 for any that is free.")] = 8080,
    workers: Annotated[int, typer.Option(help="How many processes answer.")] = 1,
    certfile: Annotated[str | None, typer.Option(metavar="FILE", help="A TLS certificate in PEM.")] = None,
    keyfile: Annotated[str | None, typer.Option(metavar="FILE", help="Its key in PEM.")] = None,
    tokens_only: Annotated[
        bool, typer.Option("--tokens-only", help="Want a token of local users, too: behind a proxy, for one.")
    ] = False,
    log_format: Annotated[LogFormat, typer.Option(help="How the log on standard error is written.")] = LogFormat.TEXT,
    access_log: Annotated[bool, typer.Option(help="Whether every request is a line of the log.")] = True,
    header_timeout: Annotated[
        float, typer.Option(rich_help_panel=_LIMITS, help="Seconds in which a client sends a request's headers.")
    ] = 10.0,
    request_timeout: Annotated[
        float, typer.Option(rich_help_panel=_LIMITS, help="Seconds in which it sends the body.")
    ] = 60.0,
    closing_timeout: Annotated[
        int, typer.Option(rich_help_panel=_LIMITS, help="Seconds for requests under way when the server ends.")
    ] = 30,
    max_connections: Annotated[
        int, typer.Option(rich_help_panel=_LIMITS, help="Connections that one process serves at once.")
    ] = 8192,
) -> None:
    """Serve the endpoints over HTTP, as Databricks Model Serving and OpenAI do.

    Clients of both work unmodified: mlflow, databricks-sdk, openai, langchain, curl. Ctrl-C ends the server once
    what it was asked is answered; a second Ctrl-C ends it at once.

    Examples:
      aiquery serve
      aiquery serve --host 0.0.0.0 --port 443 --certfile server.pem --keyfile server.key --workers 4
    """
    settings = _settings(
        host=host, port=port, workers=workers, certfile=certfile, keyfile=keyfile, tokens_only=tokens_only,
        access_log=access_log, header_seconds=header_timeout, body_seconds=request_timeout,
        closing_seconds=closing_timeout, max_connections=max_connections,
    )  # fmt: skip
    if options.path is None and workers > 1:
        raise CommandError("A workspace in memory is of one process: serve it with one worker.")
    (_serve_alone if workers == 1 else _serve_together)(options, settings, log_format)


def _settings(**given: Any) -> Settings:
    try:
        from aiquery.server import Settings
    except ImportError as error:
        raise CommandError(f"The server needs '{error.name}'. Install it: pip install 'aiquery[server]'") from error
    return Settings(**given)


def _serve_alone(options: Options, settings: Settings, log_format: LogFormat) -> None:
    from aiquery.server import logs, program

    with options.opened(isolated=True) as workspace:
        listener = _checked(workspace, settings)
        with logs.written(log_format, verbose=options.verbose):
            greeting = _greeting(workspace, settings, listener)
            program.run(workspace, settings, listener, ready=lambda _: _say(options, greeting))


def _serve_together(options: Options, settings: Settings, log_format: LogFormat) -> None:
    from aiquery.server import logs
    from aiquery.server.workers import Task, Workers

    with options.opened() as workspace:
        listener = _checked(workspace, settings)
        greeting, path, user = _greeting(workspace, settings, listener), workspace.path, workspace.user
    if path is not None:
        with logs.written(log_format, verbose=options.verbose):
            workers = Workers(Task(path, user, settings, listener, log_format, options.verbose))
            workers.run(ready=lambda: _say(options, greeting))


def _checked(workspace: Workspace, settings: Settings) -> socket.socket:
    """Return the socket to listen at, if everything else is as it should be, too."""
    from aiquery.server import listening, running

    listening.check_certificate(settings)
    running.require_tokens(workspace, settings)
    return listening.listen(settings)


def _say(options: Options, greeting: list[str]) -> None:
    """Print where the server is; where a person looks, also who may ask, and how."""
    typer.echo(greeting[0])
    for line in greeting[1:]:
        options.note(line)


def _greeting(workspace: Workspace, settings: Settings, listener: socket.socket) -> list[str]:
    from aiquery.server import listening, running

    url, user = listening.url(settings, listener), running.local_user(workspace, settings)
    count = len(workspace.list_endpoints())
    who = (
        f"No token is needed: only this machine can reach the server, and whoever asks is '{user}'."
        if user is not None
        else "Every request needs a token: aiquery tokens create --user NAME"
    )
    token = "local" if user is not None else "<token>"
    header = "" if user is not None else " -H 'Authorization: Bearer <token>'"
    lines = [
        f"Serving {workspace.path or 'a workspace in memory'} ({count} endpoint{'' if count == 1 else 's'}) at {url}",
        who,
    ]
    if user is None and settings.certfile is None:
        lines.append("Warning: without TLS (--certfile, --keyfile) others on the network can read tokens and requests.")
    return [
        *lines,
        f"  curl{header} {url}/api/2.0/serving-endpoints",
        f"  export DATABRICKS_HOST={url}",
        f"  export DATABRICKS_TOKEN={token}",
        "Ctrl-C ends it.",
    ]
