"""`aiquery tokens`, `groups` and `permissions`: who may ask the server, and what of which endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aiquery.cli import inputs, output
from aiquery.cli.commands import Options, command, group
from aiquery.cli.exits import CommandError, Exit

if TYPE_CHECKING:
    from aiquery.client import Workspace
    from aiquery_serving.access import TokenInfo

Endpoint = Annotated[str, typer.Argument(help="The endpoint.")]
Level = Annotated[str, typer.Argument(help="CAN_VIEW, CAN_QUERY or CAN_MANAGE; each includes those before it.")]
Group = Annotated[str, typer.Argument(help="The group; its members may do everything where it is 'admins'.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Users and service principals.")]
User = Annotated[str | None, typer.Option("--user", metavar="NAME", help="A user.")]
Service = Annotated[
    str | None, typer.Option("--service-principal", metavar="ID", help="A service principal, by its application id.")
]
Team = Annotated[str | None, typer.Option("--group", metavar="NAME", help="A group; 'users' is everybody.")]

_OPEN: Final = (
    "Nobody was given anything yet: everybody who opens the workspace may do everything. Whoever gives the first"
    " token, group or permission becomes an admin."
)


def add_to(parent: typer.Typer) -> None:
    """Add the groups to the command line."""
    app = group("tokens", "Make, list and revoke tokens for the server.", parent=parent)
    command(app, "create", no_args_is_help=True)(create_token)
    command(app, "list")(list_tokens)
    command(app, "revoke", no_args_is_help=True)(revoke_token)
    app = group("groups", "List groups, and change who is in them.", parent=parent)
    command(app, "list")(list_groups)
    command(app, "add", no_args_is_help=True)(add_members)
    command(app, "remove", no_args_is_help=True)(remove_members)
    app = group("permissions", "Show and change who may view, query and manage an endpoint.", parent=parent)
    command(app, "show", no_args_is_help=True)(show)
    command(app, "grant", no_args_is_help=True)(grant)
    command(app, "revoke", no_args_is_help=True)(revoke)


def create_token(
    options: Options,
    *,
    user: User = None,
    service_principal: Service = None,
    expires: Annotated[
        str, typer.Option(metavar="SPAN|TIME|never", help="How long it opens anything: 30d, 2027-01-01, never.")
    ] = "90d",
    comment: Annotated[str, typer.Option(help="What it is for.")] = "",
) -> None:
    """Make a token for a user or a service principal. It is printed this once, and kept nowhere.

    Examples:
      aiquery tokens create --user ann@example.com
      export DATABRICKS_TOKEN=$(aiquery tokens create --service-principal etl --expires 30d)
    """
    kind, name = _one_of(user=user, service_principal=service_principal)
    expires_ms = _end(expires)
    with _giving(options) as workspace:
        text, info = workspace.access.create_token(
            name, by=workspace.user, kind=kind, expires_ms=expires_ms, comment=comment
        )
    output.document({"token": text, **asdict(info)}, options.output, view=text)
    until = f"until {output.moment(expires_ms)}" if expires_ms else "until it is revoked"
    options.note(f"The token of '{name}' is valid {until}. Keep it now: it is not shown again.")


def list_tokens(options: Options) -> None:
    """List the tokens: whose they are and until when, never their text.

    Examples:
      aiquery tokens list
    """
    with options.opened() as workspace:
        found = workspace.access.tokens()
    now_ms = _now_ms()
    items = [{**asdict(info), "expired": info.expired(now_ms)} for info in found]
    view = [_token_row(info, now_ms) for info in found]
    output.records(items, view, options.output, none="There are no tokens. Make one: aiquery tokens create --user NAME")


def revoke_token(options: Options, token_id: Annotated[str, typer.Argument(metavar="ID", help="Its id.")]) -> None:
    """Revoke a token: within a second no server lets in who sends it.

    Examples:
      aiquery tokens revoke 3f9a6c0b12d4e857
    """
    with options.opened() as workspace:
        if token_id not in {info.id for info in workspace.access.tokens()}:
            raise CommandError(
                f"There is no token '{token_id}'. List those there are: aiquery tokens list", Exit.NOT_FOUND
            )
        info = workspace.access.revoke_token(token_id, by=workspace.user)
    options.note(f"Revoked token '{info.id}' of '{info.principal}'.")


def list_groups(options: Options) -> None:
    """List the groups and who is in them. Everybody who is known is in 'users', which is not listed.

    Examples:
      aiquery groups list
    """
    with options.opened() as workspace:
        groups = workspace.access.groups()
    items = [{"group": name, "members": list(members)} for name, members in groups.items()]
    view = [{"group": name, "members": ", ".join(members)} for name, members in groups.items()]
    output.records(items, view, options.output, none="There are no groups. Make one: aiquery groups add GROUP NAME...")


def add_members(options: Options, group: Group, names: Names) -> None:
    """Put users and service principals into a group, which is made by this.

    Examples:
      aiquery groups add analysts ann@example.com bob@example.com
    """
    with _giving(options) as workspace:
        workspace.access.add_members(group, names, by=workspace.user)
    options.note(f"Group '{group}' has {', '.join(names)}.")


def remove_members(options: Options, group: Group, names: Names) -> None:
    """Take members out of a group; the last one of 'admins' has to stay.

    Examples:
      aiquery groups remove analysts bob@example.com
    """
    with options.opened() as workspace:
        workspace.access.remove_members(group, names, by=workspace.user)
    options.note(f"Group '{group}' no longer has {', '.join(names)}.")


def show(options: Options, endpoint: Endpoint) -> None:
    """Show who may do what with an endpoint, and why.

    Examples:
      aiquery permissions show gpt
    """
    with options.opened() as workspace:
        rows = _holders(workspace, workspace.get_endpoint(endpoint))
        configured = workspace.access.configured
    output.records(rows, rows, options.output)
    if not configured:
        options.note(_OPEN)


def grant(
    options: Options,
    endpoint: Endpoint,
    level: Level,
    *,
    user: User = None,
    group: Team = None,
    service_principal: Service = None,
) -> None:
    """Give somebody a permission on an endpoint, in place of the one they had.

    Examples:
      aiquery permissions grant gpt CAN_QUERY --group analysts
      aiquery permissions grant gpt --user ann@example.com CAN_MANAGE
    """
    from aiquery_serving.access import Grant

    given = Grant(*_one_of(user=user, group=group, service_principal=service_principal), level.upper())
    with _giving(options) as workspace:
        workspace.access.merge_acl(_managed(workspace, endpoint), [given], by=workspace.user)
    options.note(f"'{given.principal}' has {given.level} on endpoint '{endpoint}'.")


def revoke(
    options: Options, endpoint: Endpoint, *, user: User = None, group: Team = None, service_principal: Service = None
) -> None:
    """Take away what somebody was given on an endpoint; what their groups were given stays.

    Examples:
      aiquery permissions revoke gpt --user ann@example.com
    """
    kind, name = _one_of(user=user, group=group, service_principal=service_principal)
    with options.opened() as workspace:
        workspace.access.revoke(_managed(workspace, endpoint), kind, name, by=workspace.user)
    options.note(f"'{name}' was taken off endpoint '{endpoint}'.")


@contextmanager
def _giving(options: Options) -> Iterator[Workspace]:
    """Open the workspace, and say so when what is done with it ends everybody's freedom."""
    with options.opened() as workspace:
        was_open = not workspace.access.configured
        yield workspace
        if was_open and workspace.access.configured:
            options.note(
                f"'{workspace.user}' is in the group 'admins' now: others may do only what they are given, or what is"
                " their own."
            )


def _one_of(**given: str | None) -> tuple[str, str]:
    """Return the kind and the name of the one who is named."""
    named = [(kind, name) for kind, name in given.items() if name is not None]
    if len(named) != 1:
        known = ", ".join(f"--{kind.replace('_', '-')}" for kind in given)
        raise typer.BadParameter(f"name one: {known}.")
    return named[0]


def _end(given: str) -> int | None:
    """Return the moment at which a token ends, in milliseconds since 1970; None for never."""
    if given.strip().lower() == "never":
        return None
    span = inputs.deadline(given)
    return int(span.timestamp() * 1000) if isinstance(span, datetime) else _now_ms() + int(span * 1000)


def _now_ms() -> int:
    from aiquery_serving.clock import SystemClock

    return SystemClock().epoch_ms()


def _token_row(info: TokenInfo, now_ms: int) -> dict[str, Any]:
    return {
        "id": info.id,
        "of": info.principal,
        "kind": info.kind,
        "made": output.moment(info.created_ms),
        "expires": output.moment(info.expires_ms) or "never",
        "state": "expired" if info.expired(now_ms) else "valid",
        "comment": info.comment,
    }


def _managed(workspace: Workspace, name: str) -> str:
    """Return the id of an endpoint that whoever opened the workspace may manage."""
    from aiquery_serving.access import CAN_MANAGE

    endpoint = workspace.get_endpoint(name)
    workspace.access.require(name, endpoint["id"], endpoint["creator"], workspace.user, CAN_MANAGE)
    return str(endpoint["id"])


def _holders(workspace: Workspace, endpoint: dict[str, Any]) -> list[dict[str, Any]]:
    from aiquery_serving.access import ADMINS, CAN_MANAGE, GROUP

    creator = workspace.access.principal(endpoint["creator"])
    made = [{"kind": creator.kind, "principal": creator.name, "level": CAN_MANAGE, "why": "creator"}]
    given = [{**asdict(grant), "why": "granted"} for grant in workspace.access.acl(endpoint["id"])]
    return [*made, *given, {"kind": GROUP, "principal": ADMINS, "level": CAN_MANAGE, "why": "admins"}]
