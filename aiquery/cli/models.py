"""`aiquery models`: names for models of your own, each with an endpoint that nobody has to create."""

from __future__ import annotations

from typing import Annotated

import typer

from aiquery.cli import output
from aiquery.cli.commands import Options, command, group
from aiquery.cli.exits import CommandError

Name = Annotated[str, typer.Argument(metavar="NAME", help="databricks-<name> or system.ai.<name>, which are one.")]


def add_to(parent: typer.Typer) -> None:
    """Add the group to the command line."""
    app = group("models", "Name models of your own, and serve each as an endpoint.", parent=parent)
    command(app, "alias", no_args_is_help=True)(alias)
    command(app, "aliases")(aliases)
    command(app, "unalias", no_args_is_help=True)(unalias)


def alias(
    options: Options,
    name: Name,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder (/path, ~/path, ./path), a model on a hub (organisation/model), or a registered model"
            " (models:/name/version).",
        ),
    ],
    *,
    version: Annotated[
        str, typer.Option(metavar="VERSION", help="The hub's revision, or a registered model's version or alias.")
    ] = "",
) -> None:
    """Let a name stand for a model, and serve it as the endpoint databricks-<name>.

    Nothing is loaded before somebody asks the endpoint. To give the name to another model is to update it.

    Examples:
      aiquery models alias databricks-tiny ~/models/tiny-llama
      aiquery models alias system.ai.reviews models:/main.ml.reviews/3
    """
    from aiquery.cli.applying import trouble

    with options.opened() as workspace:
        made = workspace.alias_model(name, source, version)
        # An endpoint whose process ends while it is being made ready counts as failed.
        problem = trouble(workspace.wait(made.endpoint))
    if problem:
        raise CommandError(f"{made.name} stands for {made.source}, but cannot be served. {problem}")
    options.note(
        f"{made.name} stands for {made.source}{made.version and f' version {made.version}'};"
        f" ask the endpoint '{made.endpoint}'."
    )


def aliases(options: Options) -> None:
    """List the names that were given to models, what they stand for, and their endpoints.

    Examples:
      aiquery models aliases
    """
    with options.opened() as workspace:
        found = workspace.model_aliases()
    items = [
        {"name": one.name, "endpoint": one.endpoint, "source": one.source, "version": one.version} for one in found
    ]
    output.records(
        items, items, options.output, none="No model has a name. Give one: aiquery models alias databricks-NAME SOURCE"
    )


def unalias(options: Options, name: Name) -> None:
    """Forget a name of a model, and delete its endpoint.

    Examples:
      aiquery models unalias databricks-tiny
    """
    with options.opened() as workspace:
        gone = workspace.unalias_model(name)
    options.note(f"Forgot {gone.name} and deleted the endpoint '{gone.endpoint}'.")
