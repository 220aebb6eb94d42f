"""The endpoints of a workspace as the REST API shows them: create, read, update, delete."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiquery_serving.endpoint import EndpointConfig, EndpointRecord, check_update
from aiquery_serving.errors import (
    EndpointExistsError,
    EndpointNotReadyError,
)
from aiquery_serving.registry.changes import (
    conflict,
    first_telemetry,
    refuse_conflict,
    with_ai_gateway,
    with_old_capture,
    with_tags,
    with_telemetry,
)
from aiquery_serving.registry.deployments import NAP_SECONDS, Deployments, Serving
from aiquery_serving.registry.documents import Documents, Stored
from aiquery_serving.registry.lifecycle import IN_PROGRESS, NOT_UPDATING, begin
from aiquery_serving.registry.loading import Loader, Say
from aiquery_serving.registry.process import Owner, new_owner
from aiquery_serving.registry.stash import Stash
from aiquery_serving.served_log import ServedLog
from aiquery_serving.wire import (
    endpoint_item,
    endpoint_output,
    parse_ai_gateway,
    parse_config,
    parse_create,
    parse_notifications,
    parse_provisioned_config,
    parse_provisioned_create,
    parse_rate_limits,
    parse_tags,
    parse_telemetry,
    rate_limits_output,
    tags_output,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiquery_serving.clock import Clock
    from aiquery_serving.endpoint import ServedEntity
    from aiquery_serving.messages import Entity, Json
    from aiquery_serving.secrets import Secrets
    from aiquery_serving.store import Store
    from aiquery_serving.wire import Declaration


class Registry:
    """The endpoints of a workspace, for all threads of this process and all processes.

    Every answer is the REST API's own JSON. What an update leaves as it was keeps running: a change
    of the traffic split loads no model again.

    Args:
        store: Where endpoints are kept.
        secrets: Where keys sent in clear are put.
        load: Makes a served entity ready to answer. May take long for models of our own, which
            load on a thread of their own, and must not for external ones. It gets a function, too, that writes
            down what the entity says while it serves.
        resolve: Returns a served entity with what its model's files say of it, and raises ConfigurationError when
            there is no such model.
        clock: The time.
    """

    def __init__(
        self,
        store: Store,
        secrets: Secrets,
        *,
        load: Callable[[ServedEntity, Say], Entity],
        resolve: Callable[[ServedEntity], ServedEntity],
        clock: Clock,
    ) -> None:
        self._store = store
        self._secrets = secrets
        self._resolve_entity = resolve
        self._clock = clock
        self._documents = Documents(store, clock.epoch_ms)
        loader = Loader(load, secrets, ServedLog(store, clock.epoch_ms), clock)
        self._deployments = Deployments(store, self._documents, loader=loader, clock=clock)

    def create(self, payload: Mapping[str, Any], *, creator: str, provisioned: bool = False) -> Json:
        """Create an endpoint and begin to load what it serves.

        Args:
            payload: The body of the REST API's create request.
            creator: Who creates it.
            provisioned: Whether the body is the one that reserves throughput in model units.

        Raises:
            ConfigurationError: The declaration breaks a rule, or names an unknown model.
            EndpointExistsError: The name is taken.
            WorkspaceError: The workspace cannot be written.
        """
        stash = Stash(str(payload.get("name")), 1)
        declared = (parse_provisioned_create if provisioned else parse_create)(payload, stash=stash)
        self._refuse_existing(declared.name)
        config = declared.config and with_old_capture(self._resolved(declared.config), None, declared.name)
        record = self._new_record(declared, creator)
        with self._deployments.changed, self._store.write():
            self._refuse_existing(record.name)
            owner = self._begin(record, config, stash)
        if owner and config:
            self._deployments.deploy(record, config, owner)
        return self.get(record.name)

    def get(self, name: str) -> Json:
        """Return an endpoint.

        Raises:
            EndpointNotFoundError: There is none of that name.
            WorkspaceError: The workspace cannot be read.
        """
        return endpoint_output(self._documents.get(name).record)

    def list(self) -> Json:
        """Return all endpoints, in order of their names.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        return {"endpoints": [endpoint_item(record) for record in self.records().values()]}

    def record(self, name: str) -> EndpointRecord:
        """Return all that was declared of an endpoint.

        Raises:
            EndpointNotFoundError: There is none of that name.
            WorkspaceError: The workspace cannot be read.
        """
        return self._documents.get(name).record

    def name_of(self, endpoint_id: str) -> str:
        """Return the name of the endpoint that has an id.

        Raises:
            EndpointNotFoundError: None has.
            WorkspaceError: The workspace cannot be read.
        """
        return self._documents.name_of(endpoint_id)

    def records(self) -> dict[str, EndpointRecord]:
        """Return all that was declared of every endpoint, by name: REST's own form leaves rate limits out.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        return {name: stored.record for name, stored in self._documents.all().items()}

    def update_config(self, name: str, payload: Mapping[str, Any], *, provisioned: bool = False) -> Json:
        """Begin to load a new config. The old one serves until the new one has loaded.

        Args:
            name: The endpoint.
            payload: The body of the REST API's update request.
            provisioned: Whether the body is the one that reserves throughput in model units.

        Raises:
            ConfigurationError: The config breaks a rule, or names an unknown model.
            EndpointNotFoundError: There is no endpoint of that name.
            UpdateConflictError: Another update is in progress.
            WorkspaceError: The workspace cannot be written.
        """
        before = self._settled(name)
        version = before.config.config_version + 1 if before.config else 1
        stash = Stash(name, version)
        config = _parsed(payload, before.config, version, stash, provisioned=provisioned)
        config = with_old_capture(self._resolved(config), before.config, name)
        if before.config:
            check_update(before.config, config)
        with self._deployments.changed, self._store.write():
            record = self._settled(name)
            if (record.id, record.config) != (before.id, before.config):
                raise conflict(name, "was updated by somebody else just now")
            owner = self._begin(record, config, stash)
        if owner:
            self._deployments.deploy(record, config, owner)
        return self.get(name)

    def update_rate_limits(self, name: str, payload: Mapping[str, Any]) -> Json:
        """Replace the endpoint's own rate limits.

        Raises:
            ConfigurationError: A limit breaks a rule.
            EndpointNotFoundError: There is no endpoint of that name.
            WorkspaceError: The workspace cannot be written.
        """
        limits = parse_rate_limits(payload)
        self._change(name, lambda record: replace(record, rate_limits=limits))
        return rate_limits_output(limits)

    def update_tags(self, name: str, payload: Mapping[str, Any]) -> Json:
        """Add and delete tags, and return all the endpoint then has.

        Raises:
            ConfigurationError: The change cannot be read.
            EndpointNotFoundError: There is no endpoint of that name.
            WorkspaceError: The workspace cannot be written.
        """
        change = parse_tags(payload)
        return tags_output(self._change(name, lambda record: with_tags(record, change)).tags)

    def update_ai_gateway(self, name: str, payload: Mapping[str, Any]) -> Json:
        """Replace the endpoint's AI gateway block; an empty one unsets it.

        Raises:
            ConfigurationError: The block breaks a rule.
            EndpointNotFoundError: There is no endpoint of that name.
            WorkspaceError: The workspace cannot be written.
        """
        block = parse_ai_gateway(payload)
        self._change(name, lambda record: with_ai_gateway(record, block or None))
        return block

    def update_notifications(self, name: str, payload: Mapping[str, Any]) -> Json:
        """Replace the addresses that are to hear of updates. Nothing is mailed: updates are logged.

        Raises:
            ConfigurationError: The body cannot be read.
            EndpointNotFoundError: There is no endpoint of that name.
            WorkspaceError: The workspace cannot be written.
        """
        addresses = parse_notifications(payload)
        self._change(name, lambda record: replace(record, email_notifications=addresses))
        return {"name": name, "email_notifications": addresses or {}}

    def patch_telemetry(self, name: str, payload: Mapping[str, Any]) -> Json:
        """Change the telemetry config, and return the endpoint; a body without one removes it.

        Raises:
            ConfigurationError: The body cannot be read, or the endpoint serves nothing or external models.
            EndpointNotFoundError: There is no endpoint of that name.
            UpdateConflictError: An update is in progress.
            WorkspaceError: The workspace cannot be written.
        """
        declared, new_id = parse_telemetry(payload), uuid4().hex
        return endpoint_output(self._change(name, lambda record: with_telemetry(record, declared, new_id=new_id)))

    def delete(self, name: str) -> Json:
        """Delete an endpoint and the secrets that were sent with it.

        Raises:
            EndpointNotFoundError: There is none of that name.
            WorkspaceError: The workspace cannot be written.
        """
        with self._deployments.changed:
            with self._store.write():
                record = self._documents.get(name).record
                self._documents.delete(name)
                self._secrets.delete_owned(record.id)
            self._deployments.catch_up()
        return {}

    def serving(self, name: str, *, wait: float | None = None) -> Serving:
        """Return what the endpoint's requests run on now.

        Costs next to nothing once the endpoint has loaded in this process; the changes of other
        processes show within 0.2 s.

        Args:
            name: The endpoint.
            wait: Seconds to wait for a first deployment; it blocks the thread, so an event loop
                asks without it. None does not wait.

        Raises:
            EndpointNotFoundError: There is none of that name.
            EndpointNotReadyError: Its first deployment is still loading.
            EndpointFailedError: It has nothing that could be loaded; the message says why.
            WorkspaceError: The workspace cannot be read.
        """
        return self._deployments.serving(name, wait or 0.0)

    def loaded(self) -> dict[str, Serving]:
        """Return what is loaded in this process, by endpoint. Loads nothing; from any thread."""
        return self._deployments.loaded()

    def warm(self) -> None:
        """Begin to load every endpoint that is in service, before anybody asks for it.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        self._deployments.warm()

    def warming(self) -> bool:
        """Say whether an endpoint in service is still loading in this process. Only reads."""
        return self._deployments.warming()

    def wait_until_settled(self, name: str, timeout: float | None = None) -> Json:
        """Wait until no update of the endpoint is in progress, in any process, and return it.

        Args:
            name: The endpoint.
            timeout: The most seconds to wait; None waits as long as it takes.

        Raises:
            EndpointNotFoundError: There is none of that name (any more).
            EndpointNotReadyError: The update took longer than `timeout`.
            WorkspaceError: The workspace cannot be read.
        """
        until = None if timeout is None else self._clock.now() + timeout
        with self._deployments.changed:
            while (record := self._documents.get(name).record).config_update == IN_PROGRESS:
                if until is not None and self._clock.now() >= until:
                    raise EndpointNotReadyError(
                        f"Endpoint '{name}' is still being updated after {timeout:g} s. Wait longer,"
                        " or look at its state."
                    )
                self._deployments.changed.wait(NAP_SECONDS)
        return endpoint_output(record)

    def close(self) -> None:
        """Let go of all served entities. A load in progress counts as failed."""
        self._deployments.close()

    def _settled(self, name: str) -> EndpointRecord:
        record = self.record(name)
        refuse_conflict(record)
        return record

    def _new_record(self, declared: Declaration, creator: str) -> EndpointRecord:
        now_ms = self._clock.epoch_ms()
        return EndpointRecord(
            name=declared.name,
            id=uuid4().hex,
            creator=creator,
            created_ms=now_ms,
            updated_ms=now_ms,
            ready=False,
            config_update=NOT_UPDATING,
            tags=declared.tags,
            description=declared.description,
            route_optimized=declared.route_optimized,
            ai_gateway=declared.ai_gateway,
            rate_limits=declared.rate_limits,
            email_notifications=declared.email_notifications,
            telemetry_config=first_telemetry(declared.telemetry_config, declared.config, new_id=uuid4().hex),
            budget_policy_id=declared.budget_policy_id,
        )

    def _begin(self, record: EndpointRecord, config: EndpointConfig | None, stash: Stash) -> Owner | None:
        """Store an endpoint with a config to load, and say who loads it."""
        stash.put_into(self._secrets, owner=record.id)
        if config is None:
            self._documents.save(Stored(record))
            return None
        owner = new_owner()
        pending = begin(record, config, now_ms=self._clock.epoch_ms())
        self._documents.save(Stored(pending, owner))
        return owner

    def _change(self, name: str, change: Callable[[EndpointRecord], EndpointRecord]) -> EndpointRecord:
        with self._deployments.changed:
            with self._store.write():
                stored = self._documents.get(name)
                record = replace(change(stored.record), updated_ms=self._clock.epoch_ms())
                self._documents.save(replace(stored, record=record))
            self._deployments.catch_up()
        return record

    def _refuse_existing(self, name: str) -> None:
        if self._documents.find(name):
            raise EndpointExistsError(f"Endpoint with name '{name}' already exists. Choose another name, or update it.")

    def _resolved(self, config: EndpointConfig) -> EndpointConfig:
        return replace(config, served_entities=tuple(map(self._resolve_entity, config.served_entities)))


def _parsed(
    payload: Mapping[str, Any], before: EndpointConfig | None, version: int, stash: Stash, *, provisioned: bool
) -> EndpointConfig:
    if not provisioned:
        return parse_config(payload, config_version=version, stash=stash)
    entities = before.served_entities if before else ()
    served = {entity.entity_name or "": entity.entity_version or "" for entity in entities}
    return parse_provisioned_config(payload, config_version=version, served=served, stash=stash)
