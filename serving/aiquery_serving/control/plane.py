"""Every management operation on endpoints, in the REST API's own JSON, for those who may."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiquery_serving.access import CAN_MANAGE, CAN_VIEW, SERVICE_PRINCIPAL, Access, Grant, Principal
from aiquery_serving.control.interfaces import Interface, Interfaces
from aiquery_serving.control.named_models import check_models
from aiquery_serving.control.named_secrets import check_secrets
from aiquery_serving.control.permissions import LEVELS, permissions_output
from aiquery_serving.endpoint import EndpointRecord, FoundationModel
from aiquery_serving.errors import ConfigurationError, EndpointNotFoundError
from aiquery_serving.messages import Json
from aiquery_serving.served_log import BUILD, SERVE, ServedLog
from aiquery_serving.wire import parse_acl

if TYPE_CHECKING:
    from aiquery_serving.control.external_functions import ExternalFunctions
    from aiquery_serving.model_sources import ModelSources
    from aiquery_serving.registry import Registry

#: Any JSON object that came as the body of a request.
Body = Mapping[str, Any]
_KINDS: Final = {SERVICE_PRINCIPAL: "ServicePrincipal"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """Manages the endpoints of a workspace. From any thread; blocks it.

    Every operation takes who asks first, and raises PermissionDeniedError when they may not: to see an endpoint
    takes CAN_VIEW, to change anything about it CAN_MANAGE, and anybody who is known may create one, and then
    manages it. Secrets of the workspace, folders and models on a hub are named by admins alone. Besides, all of them
    raise WorkspaceError when the workspace cannot be read or written.

    Attributes:
        registry: The endpoints.
        access: Who may do what.
        models: Where models come from.
        served_log: What served entities said.
        external: The named connections to other HTTP services.
        forget: Called with the id of an endpoint that was deleted, to delete what else is kept of it.
        foundation: Says what a foundation model of a name and version is, with its throughput chunk; None of a custom
            one. Raises ConfigurationError when there is none at all.
    """

    registry: Registry
    access: Access
    models: ModelSources
    served_log: ServedLog
    external: ExternalFunctions
    forget: Callable[[str], object] = lambda _: None
    foundation: Callable[[str, str], FoundationModel | None] | None = None

    def create(self, who: Principal, body: Body) -> Json:
        """Create an endpoint and begin to load what it serves.

        Raises:
            ConfigurationError: The declaration breaks a rule, or names an unknown model.
            EndpointExistsError: The name is taken.
        """
        _check_named(who, body)
        return self._shown(who, self.registry.create(body, creator=who.name))

    def create_pt(self, who: Principal, body: Body) -> Json:
        """Create an endpoint of throughput that is reserved in model units.

        Raises:
            ConfigurationError: The declaration breaks a rule, or names an unknown model.
            EndpointExistsError: The name is taken.
        """
        _check_named(who, body)
        return self._shown(who, self.registry.create(body, creator=who.name, provisioned=True))

    def get(self, who: Principal, name: str) -> Json:
        """Return an endpoint.

        Raises:
            EndpointNotFoundError: There is none of that name.
        """
        self.require(who, name, CAN_VIEW)
        return self._shown(who, self.registry.get(name))

    def list(self, who: Principal) -> Json:
        """Return the endpoints that somebody may see, in order of their names."""
        every: list[Json] = self.registry.list()["endpoints"]
        return {"endpoints": [self._with_creator(item) for item in every if self._level(who, item)]}

    def records(self, who: Principal) -> dict[str, EndpointRecord]:
        """Return all that was declared of the endpoints that somebody may see, by name."""
        return {
            name: record
            for name, record in self.registry.records().items()
            if self.access.level(record.id, record.creator, who)
        }

    def wait(self, who: Principal, name: str, timeout: float | None = None) -> Json:
        """Wait until no update of an endpoint is in progress, and return it.

        Raises:
            EndpointNotFoundError: There is none of that name (any more).
            EndpointNotReadyError: `timeout` seconds were not enough.
        """
        self.require(who, name, CAN_VIEW)
        return self._shown(who, self.registry.wait_until_settled(name, timeout))

    def update_config(self, who: Principal, name: str, body: Body) -> Json:
        """Begin to load a new config; the old one serves until it has loaded.

        Raises:
            ConfigurationError: The config breaks a rule, or names an unknown model.
            EndpointNotFoundError: There is no endpoint of that name.
            UpdateConflictError: Another update is in progress.
        """
        _check_named(who, body, self.require(who, name, CAN_MANAGE))
        return self._shown(who, self.registry.update_config(name, body))

    def update_pt_config(self, who: Principal, name: str, body: Body) -> Json:
        """Begin to load a new config of reserved throughput; a model keeps its version where none is named.

        Raises:
            ConfigurationError: The config breaks a rule, or names an unknown model.
            EndpointNotFoundError: There is no endpoint of that name.
            UpdateConflictError: Another update is in progress.
        """
        _check_named(who, body, self.require(who, name, CAN_MANAGE))
        return self._shown(who, self.registry.update_config(name, body, provisioned=True))

    def update_rate_limits(self, who: Principal, name: str, body: Body) -> Json:
        """Replace an endpoint's own rate limits.

        Raises:
            ConfigurationError: A limit breaks a rule.
            EndpointNotFoundError: There is no endpoint of that name.
        """
        self.require(who, name, CAN_MANAGE)
        return self.registry.update_rate_limits(name, body)

    def update_ai_gateway(self, who: Principal, name: str, body: Body) -> Json:
        """Replace an endpoint's AI Gateway block; an empty one unsets it.

        Raises:
            ConfigurationError: The block breaks a rule.
            EndpointNotFoundError: There is no endpoint of that name.
        """
        self.require(who, name, CAN_MANAGE)
        return self.registry.update_ai_gateway(name, body)

    def update_tags(self, who: Principal, name: str, body: Body) -> Json:
        """Add and delete tags, and return all the endpoint then has.

        Raises:
            ConfigurationError: The change cannot be read.
            EndpointNotFoundError: There is no endpoint of that name.
        """
        self.require(who, name, CAN_MANAGE)
        return self.registry.update_tags(name, body)

    def update_notifications(self, who: Principal, name: str, body: Body) -> Json:
        """Replace the addresses that are to hear of updates. Nothing is mailed: updates are logged.

        Raises:
            ConfigurationError: The body cannot be read.
            EndpointNotFoundError: There is no endpoint of that name.
        """
        self.require(who, name, CAN_MANAGE)
        return self.registry.update_notifications(name, body)

    def patch_telemetry(self, who: Principal, name: str, body: Body) -> Json:
        """Change an endpoint's telemetry config; a body without one removes it.

        Raises:
            ConfigurationError: The body cannot be read, or the endpoint serves nothing or external models.
            EndpointNotFoundError: There is no endpoint of that name.
            UpdateConflictError: An update is in progress.
        """
        self.require(who, name, CAN_MANAGE)
        return self._shown(who, self.registry.patch_telemetry(name, body))

    def delete(self, who: Principal, name: str) -> Json:
        """Delete an endpoint, and all that is kept of it: its secrets, permissions and logs.

        Raises:
            EndpointNotFoundError: There is none of that name.
        """
        record = self.require(who, name, CAN_MANAGE)
        self.registry.delete(name)
        self.access.forget(record.id)
        self.served_log.forget(record.id)
        self.forget(record.id)
        return {}

    def build_logs(self, who: Principal, name: str, served_model: str) -> Json:
        """Return what a served entity said while it loaded.

        Raises:
            EndpointNotFoundError: There is no such endpoint or served entity.
        """
        return self._logs(who, name, served_model, BUILD)

    def logs(self, who: Principal, name: str, served_model: str) -> Json:
        """Return what a served entity said while it served.

        Raises:
            EndpointNotFoundError: There is no such endpoint or served entity.
        """
        return self._logs(who, name, served_model, SERVE)

    def interface(self, who: Principal, name: str) -> Interface:
        """Return what an endpoint takes and answers.

        Raises:
            EndpointNotFoundError: There is none of that name.
        """
        record = self.require(who, name, CAN_VIEW)
        return Interfaces(self.models).of(record)

    def permissions_get(self, who: Principal, endpoint_id: str) -> Json:
        """Return who may do what with an endpoint, its creator first.

        Raises:
            EndpointNotFoundError: There is none of that id.
        """
        return self._permissions(self._with_id(who, endpoint_id, CAN_MANAGE))

    def permissions_set(self, who: Principal, endpoint_id: str, body: Body) -> Json:
        """Replace all permissions that were given on an endpoint directly.

        Raises:
            ConfigurationError: The body cannot be read.
            EndpointNotFoundError: There is no endpoint of that id.
        """
        record = self._with_id(who, endpoint_id, CAN_MANAGE)
        self.access.set_acl(endpoint_id, _grants(body), by=who.name)
        return self._permissions(record)  # who asked may have taken their own away

    def permissions_update(self, who: Principal, endpoint_id: str, body: Body) -> Json:
        """Give permissions on an endpoint, in place of what the same principals had.

        Raises:
            ConfigurationError: The body cannot be read.
            EndpointNotFoundError: There is no endpoint of that id.
        """
        record = self._with_id(who, endpoint_id, CAN_MANAGE)
        self.access.merge_acl(endpoint_id, _grants(body), by=who.name)
        return self._permissions(record)

    def permission_levels(self, who: Principal, endpoint_id: str) -> Json:
        """Return the levels of permission that can be given on an endpoint.

        Raises:
            EndpointNotFoundError: There is none of that id.
        """
        self._with_id(who, endpoint_id, CAN_VIEW)
        return {"permission_levels": list(LEVELS)}

    def optimization_info(self, who: Principal, model: str, version: str) -> Json:
        """Say whether throughput can be provisioned for a model, and in which steps: not for custom ones.

        Raises:
            EndpointNotFoundError: There is no such model or version.
        """
        check_models(who, {"entity_name": model})
        try:
            found = self._foundation(model, version)
        except ConfigurationError as error:
            raise EndpointNotFoundError(str(error)) from error
        if found is None:
            return {"optimizable": False}
        chunk = found.throughput_chunk_size
        return {"optimizable": True, "model_type": found.model_type, "throughput_chunk_size": chunk}

    def require(self, who: Principal, name: str, level: str) -> EndpointRecord:
        """Let pass who has a level of permission on an endpoint, and return it.

        Raises:
            EndpointNotFoundError: There is none of that name.
            PermissionDeniedError: They have less.
        """
        record = self.registry.record(name)
        self.access.require(record.name, record.id, record.creator, who, level)
        return record

    def _foundation(self, model: str, version: str) -> FoundationModel | None:
        if self.foundation is not None:
            return self.foundation(model, version)
        self.models.check(model, version)
        return None

    def _permissions(self, record: EndpointRecord) -> Json:
        creator = self.access.principal(record.creator) if record.creator else None
        return permissions_output(record.id, creator, self.access.acl(record.id))

    def _with_id(self, who: Principal, endpoint_id: str, level: str) -> EndpointRecord:
        return self.require(who, self.registry.name_of(endpoint_id), level)

    def _logs(self, who: Principal, name: str, served_model: str, kind: str) -> Json:
        record = self.require(who, name, CAN_VIEW)
        logs = self.served_log.text(record.id, served_model, kind)
        # What could not be loaded is in no config, and its build log is what somebody wants to read.
        if not logs and served_model not in _served(record):
            raise EndpointNotFoundError(f"Endpoint '{name}' has no served model '{served_model}'.")
        return {"logs": logs}

    def _shown(self, who: Principal, endpoint: Json) -> Json:
        """Return an endpoint as one principal sees it."""
        return {**self._with_creator(endpoint), "permission_level": self._level(who, endpoint)}

    def _with_creator(self, endpoint: Json) -> Json:
        creator = self.access.principal(endpoint["creator"])
        return {**endpoint, "creator_display_name": creator.name, "creator_kind": _KINDS.get(creator.kind, "User")}

    def _level(self, who: Principal, endpoint: Json) -> str | None:
        return self.access.level(endpoint["id"], endpoint["creator"], who)


def _check_named(who: Principal, body: Body, record: EndpointRecord | None = None) -> None:
    check_secrets(who, body, record)
    check_models(who, body, record)


def _grants(body: Body) -> list[Grant]:
    return [Grant(*given) for given in parse_acl(body)]


def _served(record: EndpointRecord) -> set[str]:
    configs = [config for config in (record.config, record.pending_config) if config]
    return {entity.name for config in configs for entity in config.served_entities}
