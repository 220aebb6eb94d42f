"""`aiquery endpoints`: list, look at, declare and delete endpoints."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aiquery.cli import output
from aiquery.cli.commands import Options, command, group
from aiquery.cli.exits import CommandError, Exit

if TYPE_CHECKING:
    from aiquery.cli.applying import Change
    from aiquery.config_files import DeclaredEndpoint

_PAST: Final = {"create": "created", "update": "updated", "delete": "deleted", "unchanged": "unchanged"}
#: What stands before the host of a URL that holds a name and a password.
_USER_OF_URL: Final = re.compile(r"(?<=://)[^/@\s]+@")
_FILE: Final = typer.Option("--file", "-f", metavar="FILE", help="A YAML or JSON file, or - for standard input.")
_FOLDER: Final = typer.Option("--file", "-f", metavar="FOLDER", help="A folder with YAML and JSON files, or one file.")


def add_to(parent: typer.Typer) -> None:
    """Add the group to the command line."""
    app = group("endpoints", "List, look at, declare and delete serving endpoints.", parent=parent)
    command(app, "list")(list_endpoints)
    command(app, "get", no_args_is_help=True)(get)
    command(app, "create", no_args_is_help=True)(create)
    command(app, "update", no_args_is_help=True)(update)
    command(app, "apply", no_args_is_help=True)(apply)
    command(app, "delete", no_args_is_help=True)(delete)


def list_endpoints(options: Options) -> None:
    """List the endpoints, what they serve, and whether they are ready.

    Examples:
      aiquery endpoints list
      aiquery endpoints list --output json | jq -r '.[].name'
    """
    with options.opened() as workspace:
        endpoints = workspace.list_endpoints()
        where = workspace.path or "the memory"
    view = [
        {
            "name": endpoint["name"],
            "state": state_of(endpoint),
            "serves": ", ".join(_model(entity) for entity in endpoint.get("config", {}).get("served_entities", ())),
            "updated": output.moment(endpoint["last_updated_timestamp"]),
        }
        for endpoint in endpoints
    ]
    none = f"There are no endpoints in {where}. Declare one: aiquery endpoints create --help"
    output.records(endpoints, view, options.output, none=none)


def get(options: Options, name: Annotated[str, typer.Argument(help="The endpoint.")]) -> None:
    """Show one endpoint: its state, its config, and a config that is still loading.

    Values of environment variables are hidden, unless they only refer to a secret.

    Examples:
      aiquery endpoints get gpt
      aiquery endpoints get gpt --output json | jq .state
    """
    with options.opened() as workspace:
        endpoint = _without_secrets(workspace.get_endpoint(name))
    output.document(endpoint, options.output, view=_described(endpoint))


def create(options: Options, file: Annotated[str, _FILE]) -> None:
    """Create the endpoint that a file declares, and wait until it has loaded.

    The file has the JSON of the REST API, or the same as YAML.

    Examples:
      aiquery endpoints create -f gpt.yaml
      echo '{"name": "gpt", "config": {...}}' | aiquery endpoints create -f -
    """
    _declare(options, file, exists=False)


def update(options: Options, file: Annotated[str, _FILE]) -> None:
    """Make an endpoint what a file declares, and wait until it has loaded.

    The old config serves until the new one has loaded. What the file leaves out is removed.

    Examples:
      aiquery endpoints update -f gpt.yaml
    """
    _declare(options, file, exists=True)


def apply(
    options: Options,
    folder: Annotated[Path, _FOLDER],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Delete endpoints that no file declares.")] = False,
) -> None:
    """Make endpoints what the files of a folder declare: create, update, or leave as they are.

    All files are checked first; where one is bad, nothing is changed.

    Examples:
      aiquery endpoints apply -f endpoints/ --dry-run
      aiquery endpoints apply -f endpoints/
    """
    from aiquery.config_files import read_files

    _find(str(folder))
    _apply(options, read_files(folder), dry_run=dry_run, prune=prune)


def delete(options: Options, names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Endpoints.")]) -> None:
    """Delete endpoints, and the secrets that came in clear with their declarations.

    Examples:
      aiquery endpoints delete gpt
    """
    with options.opened() as workspace:
        for name in names:
            workspace.get_endpoint(name)
        for name in names:
            workspace.delete_endpoint(name)
    done = [{"name": name, "action": "deleted"} for name in names]
    output.records(done, done, options.output)


def state_of(endpoint: dict[str, Any]) -> str:
    """Return an endpoint's state in a word or two."""
    state = endpoint["state"]
    words = {
        ("READY", "NOT_UPDATING"): "ready",
        ("READY", "IN_PROGRESS"): "ready, updating",
        ("READY", "UPDATE_FAILED"): "ready, update failed",
        ("NOT_READY", "IN_PROGRESS"): "loading",
        ("NOT_READY", "UPDATE_FAILED"): "failed",
    }
    return words.get((state["ready"], state["config_update"]), "not ready")


def _declare(options: Options, file: str, *, exists: bool) -> None:
    declared = _read(file)
    with options.opened() as workspace:
        names = {endpoint["name"] for endpoint in workspace.list_endpoints()}
    for one in declared:
        if exists and one.name not in names:
            raise CommandError(
                f"{one.place}: There is no endpoint '{one.name}' to update. Create it first.", Exit.NOT_FOUND
            )
        if not exists and one.name in names:
            raise CommandError(f"{one.place}: Endpoint '{one.name}' exists already. Update it, or choose another name.")
    _apply(options, declared)


def _read(file: str) -> list[DeclaredEndpoint]:
    from aiquery.config_files import read_files, read_text

    if file == "-":
        # Nothing that is piped in is kept: a key may be in it, and moves into the secret store.
        return read_text(sys.stdin.read(), "standard input", secrets_in_clear=True)
    _find(file)
    return read_files(Path(file))


def _find(path: str) -> None:
    if not Path(path).exists():
        raise CommandError(f"There is no file or folder '{path}'.", Exit.NOT_FOUND)


def _apply(
    options: Options, declared: Sequence[DeclaredEndpoint], *, dry_run: bool = False, prune: bool = False
) -> None:
    from aiquery.cli.applying import carry_out, plan

    with options.opened() as workspace:
        changes = plan(workspace, declared, prune=prune)
        if dry_run:
            done = [_told(change, f"would {change.action}" * (change.action != "unchanged")) for change in changes]
        else:
            done = [_told(change, problem=problem) for change, problem in carry_out(workspace, changes)]
    view = [{name: value if name != "changed" else ", ".join(value) for name, value in row.items()} for row in done]
    output.records(done, view, options.output)
    if any(row["problem"] for row in done):
        raise typer.Exit(Exit.FAILED)


def _told(change: Change, action: str = "", problem: str = "") -> dict[str, Any]:
    return {
        "name": change.name,
        "action": action or ("failed" if problem else _PAST[change.action]),
        "changed": list(change.fields),
        "place": change.declared.place if change.declared else "",
        "problem": problem,
    }


def _model(entity: dict[str, Any]) -> str:
    external = entity.get("external_model")
    return f"{external['name']} ({external['provider']})" if external else _version(entity)


def _version(entity: dict[str, Any]) -> str:
    name, version = entity.get("entity_name", ""), str(entity.get("entity_version", ""))
    return name + version if not version or version.startswith("@") else f"{name} v{version}"


def _without_secrets(endpoint: dict[str, Any]) -> dict[str, Any]:
    """Return an endpoint without the values of its environment and the passwords of its URLs: people put keys there."""
    from aiquery_serving.secrets import is_reference

    def hidden(value: Any) -> Any:
        if isinstance(value, list):
            return [hidden(each) for each in value]
        if not isinstance(value, dict):
            return _USER_OF_URL.sub("(hidden)@", value) if isinstance(value, str) else value
        return {
            name: {key: text if is_reference(text) else "(hidden)" for key, text in inner.items()}
            if name == "environment_vars"
            else hidden(inner)
            for name, inner in value.items()
        }

    shown: dict[str, Any] = hidden(endpoint)
    return shown


def _described(endpoint: dict[str, Any]) -> str:
    facts = {
        "name": endpoint["name"],
        "state": state_of(endpoint),
        "task": endpoint.get("task", ""),
        "description": endpoint["description"],
        "tags": ", ".join(f"{tag['key']}={tag.get('value', '')}" for tag in endpoint["tags"]),
        "ai_gateway": endpoint.get("ai_gateway"),
        "creator": endpoint["creator"],
        "created": output.moment(endpoint["creation_timestamp"]),
        "updated": output.moment(endpoint["last_updated_timestamp"]),
    }
    shown = output.table(["field", "value"], [fact for fact in facts.items() if fact[1]])
    for name, title in (("config", "Serves"), ("pending_config", "Loading")):
        if config := endpoint.get(name):
            shown += f"\n{title} (config version {config['config_version']})\n" + _served(config)
    return shown


def _served(config: dict[str, Any]) -> str:
    routes = config["traffic_config"]["routes"]
    shares = {route["served_entity_name"]: f"{route['traffic_percentage']} %" for route in routes}
    return output.table(
        ["served entity", "model", "traffic", "state"],
        [
            [entity["name"], _model(entity), shares.get(entity["name"]), _deployment(**entity["state"])]
            for entity in config["served_entities"]
        ],
    )


def _deployment(deployment: str, deployment_state_message: str) -> str:
    return f"{deployment.removeprefix('DEPLOYMENT_').lower()} {deployment_state_message}".strip()
