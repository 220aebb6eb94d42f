"""What this process has loaded of the workspace's endpoints, kept in step with what is stored."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from aiquery_serving.endpoint import EndpointConfig, EndpointRecord, Kind, RateLimit, loaded_as
from aiquery_serving.errors import (
    AiQueryError,
    EndpointFailedError,
    EndpointNotReadyError,
)
from aiquery_serving.messages import Retirable
from aiquery_serving.registry.documents import Documents, Stored
from aiquery_serving.registry.lifecycle import IN_PROGRESS, LoadFailure, fail, failure_text, succeed
from aiquery_serving.registry.loading import Loader
from aiquery_serving.registry.process import Owner, release
from aiquery_serving.secrets import is_reference
from aiquery_serving.wire import gateway_rate_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiquery_serving.clock import Clock
    from aiquery_serving.messages import Entity
    from aiquery_serving.store import Store

#: How often a process looks for the changes of others, in seconds.
LOOK_SECONDS = 0.2
#: The longest nap of a waiting thread, in seconds.
NAP_SECONDS = 0.05
#: Seconds until a config that did not load in this process is tried again.
RELOAD_SECONDS = 5.0

_log = logging.getLogger("aiquery.registry")

_Entities: TypeAlias = "dict[str, Entity]"


@dataclass(frozen=True, slots=True)
class Serving:
    """What an endpoint's requests run on. A request keeps the one it began with."""

    name: str
    config: EndpointConfig
    entities: Mapping[str, Entity]
    #: The endpoint's own limits and those of its AI gateway block.
    rate_limits: tuple[RateLimit, ...]
    #: Whether an error is retried on the endpoint's other served entities.
    fallback: bool
    endpoint_id: str = ""
    creator: str = ""
    #: The AI Gateway block as it was declared (contract C.6).
    ai_gateway: Mapping[str, Any] | None = None


@dataclass(slots=True)
class _Held:
    """What this process has loaded of one endpoint; numbers are config versions."""

    endpoint_id: str
    serving: Serving | None = None
    loading: int | None = None
    failed: int | None = None
    reason: str = ""
    retry_at: float = 0.0


class Deployments:
    """Loads configs, swaps them in, and follows the changes of other processes.

    External entities load at once, in the calling thread; models of our own on a thread per config.

    Args:
        store: Where endpoints are kept.
        documents: The table of endpoints in it.
        loader: Makes a served entity ready to answer.
        clock: The time.

    Attributes:
        changed: Guards everything here, and is always taken before the store's own lock. Notified
            when a load has ended.
    """

    def __init__(
        self,
        store: Store,
        documents: Documents,
        *,
        loader: Loader,
        clock: Clock,
    ) -> None:
        self._store = store
        self._documents = documents
        self._loader = loader
        self._clock = clock
        self.changed = threading.Condition()
        self._held: dict[str, _Held] = {}
        self._ready: dict[str, Serving] = {}
        self._seen_revision = -1
        self._look_at = 0.0
        self._closed = False

    def serving(self, name: str, wait: float) -> Serving:
        """Return what the endpoint's requests run on now; see `Registry.serving`."""
        if self._clock.now() >= self._look_at:
            self._look()
        return self._ready.get(name) or self._first(name, wait)

    def loaded(self) -> dict[str, Serving]:
        """Return what is loaded, by endpoint."""
        with self.changed:
            return dict(self._ready)

    def deploy(self, record: EndpointRecord, config: EndpointConfig, owner: Owner) -> None:
        """Load a pending config and swap it in, at once or on a thread of its own.

        Raises:
            WorkspaceError: It loaded at once, and the workspace cannot be written.
        """
        running = self._still_good(record, config)
        if config.kind is Kind.EXTERNAL or len(running) == len(config.served_entities):
            self._deploy(record, config, owner, running)
        else:
            self._on_a_thread(record.name, self._deploy, record, config, owner, running)

    def catch_up(self) -> None:
        """Follow what is stored by now.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        with self.changed:
            revision = self._documents.revision()
            stored = self._documents.all()
            self._seen_revision = -1 if revision is None else revision
            for name in tuple(self._held):
                self._follow(name, stored.get(name))

    def warm(self) -> None:
        """Begin to load every endpoint that is in service, before anybody asks for it.

        Raises:
            WorkspaceError: The workspace cannot be read.
        """
        with self.changed:
            for name, stored in self._documents.all().items():
                if stored.record.ready:
                    self._hold(stored.record)
                    self._follow(name, stored)

    def warming(self) -> bool:
        """Say whether an endpoint in service is still loading in this process. Only reads."""
        return any(held.loading is not None and held.serving is None for held in tuple(self._held.values()))

    def close(self) -> None:
        """Let go of everything. A load in progress ends without effect."""
        with self.changed:
            self._closed = True
            for name in tuple(self._held):
                self._drop(name)
            self.changed.notify_all()

    # Loading a pending config.

    def _deploy(self, record: EndpointRecord, config: EndpointConfig, owner: Owner, running: _Entities) -> None:
        try:
            outcome = self._load(record, config, running)
            with self.changed:
                self._finish(record, owner, outcome)
        finally:
            release(owner)
            with self.changed:
                self.changed.notify_all()

    def _finish(self, record: EndpointRecord, owner: Owner, outcome: _Entities | LoadFailure) -> None:
        if self._closed:
            return
        with self._store.write():
            stored = self._documents.find(record.name)
            if stored is None or stored.owner != owner:
                # The endpoint was deleted while it loaded.
                self._retire(outcome, kept=())
                return
            settled = self._settled(stored.record, outcome)
            self._documents.save(Stored(settled))
        _tell_of_update(settled, outcome)
        if settled.config and not isinstance(outcome, LoadFailure):
            self._loader.tell_serving(settled.id, settled.config)
            self._install(self._hold(settled), settled, outcome)
        self.catch_up()

    def _settled(self, record: EndpointRecord, outcome: _Entities | LoadFailure) -> EndpointRecord:
        now_ms = self._clock.epoch_ms()
        if isinstance(outcome, LoadFailure):
            return fail(record, outcome, now_ms=now_ms)
        return succeed(record, now_ms=now_ms)

    def _load(
        self, record: EndpointRecord, config: EndpointConfig, running: Mapping[str, Entity]
    ) -> _Entities | LoadFailure:
        entities = dict(running)
        for entity in config.served_entities:
            if entity.name in entities:
                continue
            loaded = self._loader.load(record.id, entity)
            if isinstance(loaded, LoadFailure):
                _log.warning("Endpoint '%s': '%s' did not load. %s", record.name, entity.name, loaded.reason)
                self._retire(entities, kept=running.values())
                return loaded
            entities[entity.name] = loaded
        return entities

    def _still_good(self, record: EndpointRecord, config: EndpointConfig) -> _Entities:
        """Return the running models that the config serves unchanged."""
        with self.changed:
            held = self._held.get(record.name)
            if held is None or held.serving is None or held.endpoint_id != record.id:
                return {}
            before = [loaded_as(entity) for entity in held.serving.config.served_entities]
            entities = held.serving.entities
        return {
            entity.name: entities[entity.name]
            for entity in config.served_entities
            # Secrets may have changed behind the same references.
            if loaded_as(entity) in before
            and not entity.external_model
            and not any(map(is_reference, entity.environment_vars.values()))
        }

    def _on_a_thread(self, name: str, work: Callable[..., None], *arguments: object) -> None:
        def run() -> None:
            try:
                work(*arguments)
            except AiQueryError as error:
                _log.warning("Endpoint '%s': the load has no effect. %s", name, error)

        threading.Thread(target=run, name=f"aiquery-load-{name}", daemon=True).start()

    # What is held. All of it with `changed` taken.

    def _look(self) -> None:
        """Follow other processes' changes, unless another thread is at it."""
        if not self.changed.acquire(blocking=False):
            return
        try:
            self._look_at = self._clock.now() + LOOK_SECONDS
            if self._documents.revision() not in (None, self._seen_revision):
                self.catch_up()
        finally:
            self.changed.release()

    def _first(self, name: str, wait: float) -> Serving:
        until = self._clock.now() + wait
        with self.changed:
            while True:
                try:
                    return self._attempt(name)
                except EndpointNotReadyError:
                    if self._clock.now() >= until:
                        raise
                self.changed.wait(min(NAP_SECONDS, max(until - self._clock.now(), 0)))

    def _attempt(self, name: str) -> Serving:
        stored = self._documents.get(name)
        record = stored.record
        try:
            return self._loaded(name, stored)
        except (EndpointFailedError, EndpointNotReadyError) as error:
            error.belongs = record.id, record.creator
            raise

    def _loaded(self, name: str, stored: Stored) -> Serving:
        record = stored.record
        if not record.ready or record.config is None:
            raise _not_serving(record)
        held = self._hold(record)
        self._follow(name, stored)
        if held.serving:
            return held.serving
        if held.failed == record.config.config_version:
            raise EndpointFailedError(f"Endpoint '{name}' does not load in this process: {held.reason}")
        loading = _loading(name)
        loading.deployed = True
        raise loading

    def _hold(self, record: EndpointRecord) -> _Held:
        held = self._held.get(record.name)
        if held is None or held.endpoint_id != record.id:
            self._drop(record.name)
            held = self._held[record.name] = _Held(record.id)
        return held

    def _follow(self, name: str, stored: Stored | None) -> None:
        held = self._held[name]
        if stored is None or stored.record.id != held.endpoint_id or not stored.record.config:
            self._drop(name)
            return
        record, version = stored.record, stored.record.config.config_version
        if held.serving and held.serving.config.config_version == version:
            now = _serving(record, held.serving.entities)
            if now != held.serving:  # the gateway may know a Serving by its identity
                held.serving = self._ready[name] = now
        elif record.ready and held.loading != version and not self._closed:
            self._reload(held, record, version)

    def _reload(self, held: _Held, record: EndpointRecord, version: int) -> None:
        """Load a config that another process, or an earlier run, has put in service."""
        if held.failed == version and self._clock.now() < held.retry_at:
            self._seen_revision = -1  # look again until it is time
            return
        held.loading = version
        config = record.config
        if config and config.kind is Kind.EXTERNAL:
            self._fetch(held, record, config)
        elif config:
            self._on_a_thread(record.name, self._fetch, held, record, config)

    def _fetch(self, held: _Held, record: EndpointRecord, config: EndpointConfig) -> None:
        outcome = self._load(record, config, self._still_good(record, config))
        with self.changed:
            held.loading = None
            self._seen_revision = -1  # limits may have changed meanwhile
            if isinstance(outcome, LoadFailure):
                held.failed, held.retry_at = config.config_version, self._clock.now() + RELOAD_SECONDS
                held.reason = f"served entity '{outcome.served_entity}': {outcome.reason}"
            elif self._held.get(record.name) is held:
                self._install(held, record, outcome)
            else:
                self._retire(outcome, kept=())
            self.changed.notify_all()

    def _install(self, held: _Held, record: EndpointRecord, entities: _Entities) -> None:
        before = held.serving
        held.failed = None
        held.serving = self._ready[record.name] = _serving(record, entities)
        if before:
            self._retire(before.entities, kept=entities.values())

    def _drop(self, name: str) -> None:
        self._ready.pop(name, None)
        held = self._held.pop(name, None)
        if held and held.serving:
            self._retire(held.serving.entities, kept=())

    def _retire(self, entities: Mapping[str, Entity] | LoadFailure, *, kept: Iterable[Entity]) -> None:
        if isinstance(entities, LoadFailure):
            return
        staying = {id(entity) for entity in kept}
        for entity in entities.values():
            if isinstance(entity, Retirable) and id(entity) not in staying:
                entity.retire(at_once=self._closed)


def _serving(record: EndpointRecord, entities: Mapping[str, Entity]) -> Serving:
    if record.config is None:
        raise ValueError(f"endpoint '{record.name}' has no config")
    fallback = (record.ai_gateway or {}).get("fallback_config") or {}
    return Serving(
        name=record.name,
        config=record.config,
        entities=entities,
        rate_limits=(*record.rate_limits, *gateway_rate_limits(record.ai_gateway)),
        fallback=bool(fallback.get("enabled")),
        endpoint_id=record.id,
        creator=record.creator,
        ai_gateway=record.ai_gateway,
    )


def _tell_of_update(record: EndpointRecord, outcome: _Entities | LoadFailure) -> None:
    failed = isinstance(outcome, LoadFailure)
    addresses = (record.email_notifications or {}).get("on_update_failure" if failed else "on_update_success")
    if addresses:
        how = "failed" if failed else "succeeded"
        _log.info("Endpoint '%s': the update %s. No mail is sent to %s.", record.name, how, addresses)


def _loading(name: str) -> EndpointNotReadyError:
    error = EndpointNotReadyError(f"Endpoint '{name}' is still loading its served entities. Try again in a moment.")
    error.retry_after = 1.0
    return error


def _not_serving(record: EndpointRecord) -> AiQueryError:
    if record.config_update == IN_PROGRESS:
        return _loading(record.name)
    if record.config is None:
        return EndpointFailedError(f"Endpoint '{record.name}' has no served entities yet. Update its config.")
    return EndpointFailedError(f"Endpoint '{record.name}' did not load: {failure_text(record)}. Update its config.")
