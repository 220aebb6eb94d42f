"""`aiquery connections`: other HTTP services by name, for `/api/2.0/external-function`."""

from __future__ import annotations

from typing import Annotated

import typer

from aiquery.cli import output
from aiquery.cli.commands import Options, command, group

Name = Annotated[str, typer.Argument(help="Letters, digits, '-' and '_'.")]


def add_to(parent: typer.Typer) -> None:
    """Add the group to the command line."""
    app = group("connections", "Name other HTTP services that requests go to through the server.", parent=parent)
    command(app, "create", no_args_is_help=True)(create)
    command(app, "list")(list_connections)
    command(app, "delete", no_args_is_help=True)(delete)


def create(
    options: Options,
    name: Name,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where requests go; their paths stand after it.")],
    *,
    bearer: Annotated[
        str | None, typer.Option(metavar="SCOPE/KEY", help="The secret to send as 'Authorization: Bearer …'.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VALUE", help="Sent with every request; may be given again.")
    ] = None,
) -> None:
    """Name a service. Keys are secrets of the workspace: store them first, and refer to them.

    Examples:
      aiquery connections create jira https://example.org/rest --bearer jira/token
      aiquery connections create search https://example.org --header 'X-Api-Key: {{secrets/search/key}}'
    """
    with options.opened() as workspace:
        created = workspace.control.external.create(
            workspace.access.principal(workspace.user),
            name,
            url,
            headers=dict(_header(text) for text in header or ()),
            bearer_token=None if bearer is None else _reference(bearer),
        )
    options.note(f"Connection '{created.name}' leads to {created.url}. You and admins may use it.")


def list_connections(options: Options) -> None:
    """List the connections that you may use; keys are shown as references.

    Examples:
      aiquery connections list
    """
    from aiquery_serving.control import connection_output

    with options.opened() as workspace:
        found = workspace.control.external.list(workspace.access.principal(workspace.user))
    items = [connection_output(connection) for connection in found]
    view = [{"name": item["name"], "creator": item["creator"], "url": item["url"]} for item in items]
    output.records(
        items, view, options.output, none="There are no connections. Make one: aiquery connections create NAME URL"
    )


def delete(options: Options, name: Name) -> None:
    """Delete a connection.

    Examples:
      aiquery connections delete jira
    """
    with options.opened() as workspace:
        workspace.control.external.delete(workspace.access.principal(workspace.user), name)
    options.note(f"Deleted connection '{name}'.")


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not value.strip():
        raise typer.BadParameter("a header is NAME:VALUE.", param_hint="--header")
    return name.strip(), value.strip()


def _reference(secret: str) -> str:
    from aiquery_serving.secrets import reference

    scope, slash, key = secret.partition("/")
    if not slash or not scope or not key:
        raise typer.BadParameter("a secret is SCOPE/KEY: see `aiquery secrets list`.", param_hint="--bearer")
    return reference(scope, key)
