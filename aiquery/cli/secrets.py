"""`aiquery secrets`: store, list and delete secrets. No command prints a value."""

from __future__ import annotations

from typing import Annotated

import typer

from aiquery.cli import output
from aiquery.cli.commands import Options, command, group
from aiquery.cli.exits import CommandError, Exit
from aiquery.cli.inputs import secret_from_terminal

Scope = Annotated[str, typer.Argument(help="The group of secrets: a team, a provider.")]
Key = Annotated[str, typer.Argument(help="The name within the scope.")]


def add_to(parent: typer.Typer) -> None:
    """Add the group to the command line."""
    app = group("secrets", "Store, list and delete secrets; no command prints a value.", parent=parent)
    command(app, "put", no_args_is_help=True)(put)
    command(app, "list")(list_secrets)
    command(app, "delete", no_args_is_help=True)(delete)


def put(
    options: Options,
    scope: Scope,
    key: Key,
    *,
    value: Annotated[
        str | None, typer.Option(help="The value. Others can read it in the list of processes: better leave this out.")
    ] = None,
) -> None:
    """Store a secret, encrypted; its value comes from standard input, or from a prompt.

    Endpoints refer to it as {{secrets/SCOPE/KEY}}.

    Examples:
      aiquery secrets put openai key                (asks for the value)
      pass show openai | aiquery secrets put openai key
    """
    from aiquery_serving.secrets import reference

    if value is not None:
        options.note("Warning: a value on the command line stays in the shell's history. Standard input does not.")
    secret = value if value is not None else secret_from_terminal(f"{scope}/{key}")
    with options.opened() as workspace:
        workspace.secrets.put(scope, key, secret)
    options.note(f"Stored. Refer to it as {reference(scope, key)}")


def list_secrets(options: Options) -> None:
    """List the names of the secrets.

    Examples:
      aiquery secrets list
    """
    from aiquery_serving.secrets import reference

    with options.opened() as workspace:
        names = workspace.secrets.list()
    found = [{"scope": scope, "key": key, "reference": reference(scope, key)} for scope, key in names]
    output.records(found, found, options.output, none="There are no secrets. Store one: aiquery secrets put SCOPE KEY")


def delete(options: Options, scope: Scope, key: Key) -> None:
    """Delete a secret.

    Examples:
      aiquery secrets delete openai key
    """
    with options.opened() as workspace:
        if (scope, key) not in workspace.secrets.list():
            raise CommandError(f"Secret '{scope}/{key}' is not in this workspace.", Exit.NOT_FOUND)
        workspace.secrets.delete(scope, key)
    options.note(f"Deleted secret '{scope}/{key}'.")
