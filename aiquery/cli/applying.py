"""What it takes to make a workspace's endpoints those that files declare, and doing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from aiquery_serving.endpoint import check_update
from aiquery_serving.errors import AiQueryError, ConfigurationError

if TYPE_CHECKING:
    from aiquery.client import Workspace
    from aiquery.config_files import DeclaredEndpoint
    from aiquery_serving.endpoint import EndpointConfig, EndpointRecord
    from aiquery_serving.wire import Declaration

Action: TypeAlias = Literal["create", "update", "delete", "unchanged"]

#: What an endpoint keeps as it was created.
_FIXED: Final = ("description", "route_optimized", "email_notifications")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of one endpoint.

    Attributes:
        name: The endpoint.
        action: What is to be done.
        fields: Which of its parts differ, of one that is updated.
        declared: How it is to be; None for one that is deleted.
        tags_gone: Keys of tags that it has and is not to have.
    """

    name: str
    action: Action
    fields: tuple[str, ...] = ()
    declared: DeclaredEndpoint | None = None
    tags_gone: tuple[str, ...] = ()


def plan(workspace: Workspace, declared: Iterable[DeclaredEndpoint], *, prune: bool = False) -> list[Change]:
    """Return what has to change; nothing has changed yet.

    What a declaration leaves out is not there: an endpoint without `rate_limits` has none.

    Args:
        workspace: Where the endpoints are.
        declared: How they are to be.
        prune: Delete those that are not declared.

    Raises:
        ConfigurationError: Something cannot become what it is to be. Every fault has a line in the message.
    """
    existing = workspace.endpoint_records()
    changes, faults = [], []
    for one in declared:
        try:
            changes.append(_change(one, existing.pop(one.name, None), workspace))
        except AiQueryError as error:
            faults.append(f"{one.place}: {error}")
    if faults:
        raise ConfigurationError("\n".join(faults))
    return changes + [Change(name=name, action="delete") for name in existing if prune]


def carry_out(workspace: Workspace, changes: Iterable[Change]) -> Iterator[tuple[Change, str]]:
    """Make the changes, and yield each with why it failed, or with nothing.

    Models load side by side, and all have loaded or failed in the end: a load ends with its process.
    """
    begun = [(change, _tried(_DOING[change.action], workspace, change)) for change in changes]
    for change, problem in begun:
        yield change, problem or ("" if change.action == "delete" else _tried(_settle, workspace, change))


def trouble(endpoint: Mapping[str, Any]) -> str:
    """Return why an endpoint does not serve what it was told to last, or nothing if it does."""
    state = endpoint["state"]
    if state["ready"] == "READY" and state["config_update"] != "UPDATE_FAILED":
        return ""
    told = [
        f"{entity['name']}: {entity['state']['deployment_state_message']}"
        for config in ("pending_config", "config")
        for entity in endpoint.get(config, {}).get("served_entities", ())
        if entity["state"]["deployment_state_message"]
    ]
    if not told and not endpoint.get("config") and not endpoint.get("pending_config"):
        return ""
    return "; ".join(told) or "It is not ready."


def _change(one: DeclaredEndpoint, record: EndpointRecord | None, workspace: Workspace) -> Change:
    declaration = one.declaration
    if record is None:
        _check_models(declaration.config, workspace)
        return Change(name=one.name, action="create", declared=one)
    _check_fixed(declaration, record)
    current = record.pending_config or record.config
    fields = tuple(_differing(declaration, record, current))
    if "config" in fields and declaration.config:
        if current:
            check_update(current, declaration.config)
        _check_models(declaration.config, workspace)
    gone = tuple(key for key, _ in record.tags if key not in dict(declaration.tags))
    return Change(
        name=one.name, action="update" if fields else "unchanged", fields=fields, declared=one, tags_gone=gone
    )


def _differing(declared: Declaration, record: EndpointRecord, current: EndpointConfig | None) -> Iterator[str]:
    if declared.config and _normal(declared.config) != _normal(current):
        yield "config"
    if sorted(declared.tags) != sorted(record.tags):
        yield "tags"
    if declared.rate_limits != record.rate_limits:
        yield "rate_limits"
    if (declared.ai_gateway or None) != (dict(record.ai_gateway or {}) or None):
        yield "ai_gateway"


def _normal(config: EndpointConfig | None) -> EndpointConfig | None:
    """Return a config without what nobody declares: its number, the order of its routes, what models' files say."""
    if config is None:
        return None
    entities = tuple(replace(entity, foundation_model=None) for entity in config.served_entities)
    routes = tuple(sorted(config.routes, key=lambda route: route.served_entity_name))
    return replace(config, served_entities=entities, routes=routes, config_version=0)


def _check_models(config: EndpointConfig | None, workspace: Workspace) -> None:
    for entity in config.served_entities if config else ():
        if entity.entity_name is not None:
            workspace.sources.check(entity.entity_name, entity.entity_version or "")


def _check_fixed(declared: Declaration, record: EndpointRecord) -> None:
    for field in _FIXED:
        if (getattr(declared, field) or None) != (getattr(record, field) or None):
            raise ConfigurationError(
                f"{field} of endpoint '{record.name}' cannot change: leave it as it was, or delete the endpoint first."
            )


def _create(workspace: Workspace, change: Change) -> None:
    if change.declared:
        workspace.create_endpoint(**change.declared.body)


def _update(workspace: Workspace, change: Change) -> None:
    if change.declared is None:
        return
    body, name = change.declared.body, change.name
    if "config" in change.fields:
        workspace.wait(name)
        workspace.update_endpoint_config(name, body["config"])
    if "tags" in change.fields:
        workspace.update_endpoint_tags(
            name, {"add_tags": body.get("tags") or [], "delete_tags": list(change.tags_gone)}
        )
    if "rate_limits" in change.fields:
        workspace.update_endpoint_rate_limits(name, body.get("rate_limits") or [])
    if "ai_gateway" in change.fields:
        workspace.update_endpoint_ai_gateway(name, body.get("ai_gateway") or {})


def _delete(workspace: Workspace, change: Change) -> None:
    workspace.delete_endpoint(change.name)


def _settle(workspace: Workspace, change: Change) -> None:
    if problem := trouble(workspace.wait(change.name)):
        raise ConfigurationError(problem)


def _tried(work: Callable[[Workspace, Change], None], workspace: Workspace, change: Change) -> str:
    try:
        work(workspace, change)
    except AiQueryError as error:
        return str(error)
    return ""


_DOING: Final[dict[Action, Callable[[Workspace, Change], None]]] = {
    "create": _create,
    "update": _update,
    "delete": _delete,
    "unchanged": lambda _workspace, _change: None,
}
