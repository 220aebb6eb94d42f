"""The printer: checked values in, the REST API's response objects out (contract B.3, J).

A secret in clear cannot be printed because no value holds one; `rate_limits` and
`burst_scaling_enabled` are write-only on the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

from aiquery_serving.endpoint import PROVIDER_BLOCKS, EndpointConfig, Kind

if TYPE_CHECKING:
    from aiquery_serving.endpoint import AutoCapture, EndpointRecord, ExternalModel, RateLimit, ServedEntity

Json: TypeAlias = dict[str, Any]
States: TypeAlias = Mapping[str, tuple[str, str]]

_IDENTITY = ("name", "entity_name", "entity_version")
_SIZES = (
    "workload_size",
    "min_provisioned_concurrency",
    "max_provisioned_concurrency",
    "min_provisioned_throughput",
    "max_provisioned_throughput",
    "provisioned_model_units",
    "instance_profile_arn",
)
_OLD_WORDS = {"entity_name": "model_name", "entity_version": "model_version"}
#: Members that the deprecated echo never had.
_NEW_MEMBERS = ("min_provisioned_throughput", "max_provisioned_throughput", "foundation_model")
#: Where Databricks keeps the models that it provides.
_BUILT_IN = "system.ai."
#: Until somebody reports otherwise, an entity is on its way.
_UNREPORTED = ("DEPLOYMENT_CREATING", "")


def config_output(config: EndpointConfig, *, creator: str, created_ms: int, states: States) -> Json:
    """Return a config as it serves: EndpointCoreConfigOutput.

    Args:
        config: What is printed.
        creator: Who declared it.
        created_ms: When, in milliseconds since 1970.
        states: Each served entity's deployment state and its explanation.
    """
    history = {"creator": creator, "creation_timestamp": created_ms}
    entities = [
        _entity(entity) | history | {"state": _state(*states.get(entity.name, _UNREPORTED))}
        for entity in config.served_entities
    ]
    return {
        "config_version": config.config_version,
        "served_entities": entities,
        **_served_models(config, entities),
        "traffic_config": {"routes": _routes(config)},
        **_present("auto_capture_config", _auto_capture(config.auto_capture)),
    }


def pending_output(config: EndpointConfig, *, creator: str, start_ms: int, states: States) -> Json:
    """Return a config that is still loading: EndpointPendingConfig."""
    output = config_output(config, creator=creator, created_ms=start_ms, states=states)
    return output | {"start_time": start_ms}


def config_summary(config: EndpointConfig) -> Json:
    """Return a config as lists show it: which models, and nothing about how."""
    entities = [_identity(entity) for entity in config.served_entities]
    return {"served_entities": entities, **_served_models(config, entities)}


def endpoint_output(record: EndpointRecord) -> Json:
    """Return a whole endpoint: ServingEndpointDetailed, but for what depends on who asks."""
    return {
        **_endpoint(record),
        **_present("config", _config(record)),
        **_present("pending_config", _pending(record)),
        **_present("email_notifications", record.email_notifications),
        **_present("effective_budget_policy_id", record.budget_policy_id),
        "route_optimized": record.route_optimized,
    }


def endpoint_item(record: EndpointRecord) -> Json:
    """Return an endpoint as an item of the list of endpoints."""
    summary = config_summary(record.config) if record.config else None
    policy = _present("usage_policy_id", record.budget_policy_id)
    return {**_endpoint(record), **_present("config", summary), **policy}


def rate_limits_output(limits: Iterable[RateLimit]) -> Json:
    """Return rate limits as their update answers them."""
    return {"rate_limits": [_rate_limit(limit) for limit in limits]}


def tags_output(tags: Iterable[tuple[str, str]]) -> Json:
    """Return tags as their update answers them: an object, because clients break on a list."""
    return {"tags": _tags(tags)}


def _endpoint(record: EndpointRecord) -> Json:
    """Return what a whole endpoint and an item of a list share."""
    config = record.config or record.pending_config
    update = record.config_update
    return {
        "name": record.name,
        "id": record.id,
        "creator": record.creator,
        "creation_timestamp": record.created_ms,
        "last_updated_timestamp": record.updated_ms,
        "state": {"ready": "READY" if record.ready else "NOT_READY", "config_update": update},
        "tags": _tags(record.tags),
        "description": record.description,
        **_present("task", config.task if config else None),
        **_present("ai_gateway", record.ai_gateway),
        **_present("telemetry_config", record.telemetry_config),
        **_present("endpoint_type", _type(config) if config else None),
    }


def _type(config: EndpointConfig) -> str:
    if config.kind is Kind.EXTERNAL:
        return "EXTERNAL_MODEL"
    provisioned = any(entity.is_provisioned for entity in config.served_entities)
    return "FOUNDATION_MODEL_API" if provisioned or config.kind is Kind.FOUNDATION else "CUSTOM_MODEL"


def _config(record: EndpointRecord) -> Json | None:
    if record.config is None:
        return None
    return config_output(record.config, creator=record.creator, created_ms=record.created_ms, states=record.states)


def _pending(record: EndpointRecord) -> Json | None:
    if record.pending_config is None:
        return None
    return pending_output(
        record.pending_config,
        creator=record.creator,
        start_ms=record.updated_ms if record.pending_since_ms is None else record.pending_since_ms,
        states=record.pending_states,
    )


def _entity(entity: ServedEntity) -> Json:
    sizes = {member: getattr(entity, member) for member in _SIZES}
    return {
        **_identity(entity),
        **{member: value for member, value in sizes.items() if value is not None},
        **_hosting(entity),
        **_present("environment_vars", dict(entity.environment_vars) or None),
    }


def _hosting(entity: ServedEntity) -> Json:
    if entity.kind is Kind.EXTERNAL:
        return {}
    return {
        "workload_type": entity.workload_type,
        "scale_to_zero_enabled": entity.scale_to_zero_enabled,
    }


def _identity(entity: ServedEntity) -> Json:
    members = {member: getattr(entity, member) for member in _IDENTITY}
    external = _external_model(entity.external_model) if entity.external_model else None
    return {
        **{member: value for member, value in members.items() if value is not None},
        **_present("external_model", external),
        **_present("foundation_model", _foundation_model(entity)),
    }


def _foundation_model(entity: ServedEntity) -> Json | None:
    name = entity.entity_name or ""
    if not (entity.is_provisioned or entity.kind is Kind.FOUNDATION or name.startswith(_BUILT_IN)):
        return None
    shown = name.rstrip("/").rpartition("/" if "/" in name else ".")[2]
    return {"name": name, "display_name": shown, "description": "", "docs": ""}


def _external_model(model: ExternalModel) -> Json:
    return {
        "provider": model.provider,
        "name": model.name,
        "task": model.task,
        PROVIDER_BLOCKS[model.provider]: dict(model.config),
    }


def _served_models(config: EndpointConfig, entities: Iterable[Json]) -> Json:
    """Return the deprecated echo, which knows registered models only."""
    if config.kind is Kind.EXTERNAL:
        return {}
    return {"served_models": [_in_old_words(entity) for entity in entities]}


def _auto_capture(capture: AutoCapture | None) -> Json | None:
    if capture is None:
        return None
    names = {member: value for member, value in asdict(capture).items() if value is not None}
    return {**names, "state": {"payload_table": _payload_table(capture)}}


def _payload_table(capture: AutoCapture) -> Json:
    parts = (capture.catalog_name, capture.schema_name, capture.table_name_prefix)
    name = f"{'.'.join(part for part in parts if part)}_payload"
    return {"name": name, "status": "ENABLED" if capture.enabled else "DISABLED", "status_message": ""}


def _in_old_words(entity: Json) -> Json:
    return {_OLD_WORDS.get(member, member): value for member, value in entity.items() if member not in _NEW_MEMBERS}


def _routes(config: EndpointConfig) -> list[Json]:
    return [
        {
            "served_model_name": route.served_entity_name,
            "served_entity_name": route.served_entity_name,
            "traffic_percentage": route.traffic_percentage,
        }
        for route in config.routes
    ]


def _state(deployment: str, message: str) -> Json:
    return {"deployment": deployment, "deployment_state_message": message}


def _rate_limit(limit: RateLimit) -> Json:
    return {
        "key": limit.key,
        **_present("principal", limit.principal),
        **_present("calls", limit.calls),
        **_present("tokens", limit.tokens),
        "renewal_period": limit.renewal_period,
    }


def _tags(tags: Iterable[tuple[str, str]]) -> list[Json]:
    return [{"key": key, **_present("value", value or None)} for key, value in tags]


def _present(member: str, value: object) -> Json:
    """Return one member, or none where there is nothing to tell."""
    return {} if value is None else {member: value}
