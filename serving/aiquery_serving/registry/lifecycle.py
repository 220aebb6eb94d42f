"""The life-cycle of a deployment (contract C.5): from pending to served, or to the reason why not.

A config begins as pending. When all its served entities have loaded it takes the old one's place; when
one has not, the old one stays and says why: `pending_config` is gone, `config_update` is UPDATE_FAILED,
and the served entities that still run carry the reason in their `deployment_state_message`. A first
config that fails becomes the endpoint's config, not ready, with the entity in DEPLOYMENT_FAILED.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiquery_serving.endpoint import EndpointConfig, EndpointRecord

NOT_UPDATING = "NOT_UPDATING"
IN_PROGRESS = "IN_PROGRESS"
UPDATE_FAILED = "UPDATE_FAILED"

CREATING = "DEPLOYMENT_CREATING"
READY = "DEPLOYMENT_READY"
FAILED = "DEPLOYMENT_FAILED"
ABORTED = "DEPLOYMENT_ABORTED"


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """Why a config cannot serve: the served entity that did not load, and the reason."""

    served_entity: str
    reason: str


def begin(record: EndpointRecord, config: EndpointConfig, *, now_ms: int) -> EndpointRecord:
    """Return the endpoint with a config that waits for its served entities to load."""
    return replace(
        record,
        config_update=IN_PROGRESS,
        pending_config=config,
        pending_since_ms=now_ms,
        pending_states={entity.name: (CREATING, "") for entity in config.served_entities},
        updated_ms=now_ms,
    )


def succeed(record: EndpointRecord, *, now_ms: int) -> EndpointRecord:
    """Return the endpoint with its pending config in service."""
    config = _pending(record)
    states = {entity.name: (READY, "") for entity in config.served_entities}
    return replace(_settled(record, NOT_UPDATING, now_ms), ready=True, config=config, states=states)


def fail(record: EndpointRecord, failure: LoadFailure, *, now_ms: int) -> EndpointRecord:
    """Return the endpoint without its pending config, telling why."""
    pending, settled = _pending(record), _settled(record, UPDATE_FAILED, now_ms)
    if record.ready and record.config:
        why = (
            f"The update to config version {pending.config_version} failed: served entity"
            f" '{failure.served_entity}': {failure.reason}"
        )
        states = {entity.name: (READY, why) for entity in record.config.served_entities}
        return replace(settled, states=states)
    states = {entity.name: (ABORTED, "") for entity in pending.served_entities}
    states[failure.served_entity] = (FAILED, failure.reason)
    return replace(settled, config=pending, states=states)


def failure_text(record: EndpointRecord) -> str:
    """Return why the endpoint's served entities do not run, without a full stop."""
    return "; ".join(
        f"served entity '{name}': {message.removesuffix('.')}"
        for name, (state, message) in record.states.items()
        if state == FAILED
    )


def _pending(record: EndpointRecord) -> EndpointConfig:
    if record.pending_config is None:
        raise ValueError(f"endpoint '{record.name}' has no pending config")
    return record.pending_config


def _settled(record: EndpointRecord, config_update: str, now_ms: int) -> EndpointRecord:
    return replace(
        record,
        config_update=config_update,
        pending_config=None,
        pending_since_ms=None,
        pending_states={},
        updated_ms=now_ms,
    )
