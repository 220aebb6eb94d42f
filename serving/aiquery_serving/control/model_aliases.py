"""Names for models, each with an endpoint of its own: those that others know as pay-per-token."""

from __future__ import annotations

from aiquery_serving.access import CAN_QUERY, GROUP, USERS, Grant, Principal
from aiquery_serving.control.plane import ControlPlane
from aiquery_serving.endpoint import EndpointRecord
from aiquery_serving.errors import AiQueryError, ConfigurationError, EndpointNotFoundError
from aiquery_serving.messages import Json
from aiquery_serving.model_sources import SYSTEM, ModelAlias, ModelSources


class ModelAliases:
    """Gives names to models, and keeps their endpoints in step. From any thread; blocks it.

    Args:
        control: Manages the endpoints.
        sources: Keeps the names.
    """

    def __init__(self, control: ControlPlane, sources: ModelSources) -> None:
        self._control = control
        self._sources = sources

    def alias(self, who: Principal, name: str, source: str, version: str = "") -> ModelAlias:
        """Let a name stand for a model, and serve it as the endpoint `databricks-<name>`.

        The endpoint scales to zero: nothing is loaded before it is asked. Everybody who is known may query it.

        Args:
            who: Who asks.
            name: `system.ai.<name>` or `databricks-<name>`.
            source: What it is to stand for, as `ModelSources.alias` takes it.
            version: Of the source.

        Raises:
            ConfigurationError: The name is not legal or the endpoint serves something else, or there is no such model.
            PermissionDeniedError: They are no admin.
            UpdateConflictError: The endpoint is being updated.
            WorkspaceError: The workspace cannot be written.
        """
        self._control.access.require_admin(who, "name models")
        before = self._sources.find(name)
        endpoint = self._endpoint(self._sources.read(name, source, version))
        alias = self._sources.alias(name, source, version)
        try:
            self._serve(who, alias, endpoint)
        except AiQueryError:
            if before:
                self._sources.put(before)
            else:
                self._sources.unalias(name)
            raise
        return alias

    def unalias(self, who: Principal, name: str) -> ModelAlias:
        """Forget a name and delete its endpoint; returns what it stood for.

        Raises:
            ConfigurationError: It stands for nothing, or its endpoint serves something else by now.
            PermissionDeniedError: They are no admin.
            WorkspaceError: The workspace cannot be written.
        """
        self._control.access.require_admin(who, "name models")
        alias = self._sources.find(name)
        if alias and self._endpoint(alias):
            self._control.delete(who, alias.endpoint)
        return self._sources.unalias(name)

    def _endpoint(self, alias: ModelAlias) -> EndpointRecord | None:
        """Return the alias's endpoint if there is one."""
        try:
            record = self._control.registry.record(alias.endpoint)
        except EndpointNotFoundError:
            return None
        if alias.name not in {name for name, _ in _served(record)}:
            raise ConfigurationError(
                f"There is an endpoint '{alias.endpoint}' that does not serve {alias.name}. Delete it, or choose"
                " another name for the model."
            )
        return record

    def _serve(self, who: Principal, alias: ModelAlias, endpoint: EndpointRecord | None) -> None:
        if endpoint:
            self._control.update_config(who, alias.endpoint, _config(alias, _next(endpoint)))
            return
        made = self._control.create(who, {"name": alias.endpoint, "config": _config(alias, 1)})
        self._control.access.merge_acl(made["id"], [Grant(GROUP, USERS, CAN_QUERY)], by=who.name)


def _config(alias: ModelAlias, version: int) -> Json:
    """Declare an endpoint. Its version is that of the name: what is named anew has to be loaded anew."""
    entity = {
        "name": alias.name.removeprefix(SYSTEM),
        "entity_name": alias.name,
        "entity_version": str(version),
        "scale_to_zero_enabled": True,
    }
    return {"served_entities": [entity]}


def _next(record: EndpointRecord) -> int:
    return 1 + max((int(version) for _, version in _served(record) if version.isdecimal()), default=0)


def _served(record: EndpointRecord) -> list[tuple[str, str]]:
    configs = [config for config in (record.config, record.pending_config) if config]
    entities = [entity for config in configs for entity in config.served_entities]
    return [(entity.entity_name or "", entity.entity_version or "") for entity in entities]
